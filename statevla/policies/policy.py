"""A trained policy as one object: observations in, action chunks out. Read from a phase-2 checkpoint, nothing else.

Legend: B batch, K chunk.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from statevla.config import Config, replace
from statevla.data.batch import ObservationBatch
from statevla.encoders.siglip import SiglipBackbone
from statevla.encoders.vision import load_backbone, require_identity
from statevla.models.encoder import StateEncoder
from statevla.models.standardize import Standardize
from statevla.observation import Observation, ObsSpec, spec_of
from statevla.policies.prepare import Actor, Scene, convert, torch_dtype
from statevla.runs.files import LANGUAGE, MODEL, load_strict, read_state, read_tensors
from statevla.systems.flow_matching import Acted, PolicyModel, draw_noise
from statevla.systems.table import config_of, require_kind
from stores.errors import ObsSpecMismatch, StoreCorrupt, StoreMissing, UsageError
from stores.reader import Store
from stores.schema import CAMERAS, LANGUAGE_DIM, ROBOT_STATE_DIM
from stores.statistics import Normalization


@dataclass(frozen=True)
class Policy:
    """Everything that acting needs.

    language: float32 [512] by instruction, the only instructions that the policy knows. manifest_hash: the store that
    it was trained on. name: for reports, where it came from. actor, tokens: `model` prepared, and the language token of
    each instruction.
    """

    model: PolicyModel
    config: Config
    obs_spec: ObsSpec
    manifest_hash: str
    language: dict[str, NDArray[np.float32]]
    device: torch.device
    name: str
    actor: Actor
    tokens: dict[str, Tensor]

    @classmethod
    def load(
        cls, checkpoint_dir: Path | str, device: str = "cpu", dtype: str = "float32", euler_steps: int | None = None
    ) -> "Policy":
        """Read a phase-2 checkpoint folder, with every weight checked by name, shape and dtype.

        dtype: what the large matrix products are computed in, float32 or bfloat16. euler_steps: of sampling, when not
        as configured in training. Raises StoreMissing, StoreCorrupt, or UsageError for a phase-1 checkpoint.
        """
        folder = Path(checkpoint_dir)
        state = read_state(folder)
        require_kind(state, "policy", folder)
        config = config_of(state, folder)
        if euler_steps is not None:
            config = replace(config, {"model.euler_steps": euler_steps})
        precision = torch_dtype(dtype)
        backbone = load_backbone(config.model, device)
        if backbone is not None:
            backbone.to(device, precision)
        require_identity(backbone, state.backbone, str(folder))
        model = build_policy(config, None, backbone)
        load_strict(model, read_tensors(folder, state, MODEL), str(folder / MODEL))
        vectors = read_tensors(folder, state, LANGUAGE)["vectors"].numpy()
        if vectors.shape[0] != len(state.instructions):
            raise StoreCorrupt(f"{folder / LANGUAGE}: {len(state.instructions)} instructions, {len(vectors)} vectors")
        language = dict(zip(state.instructions, vectors, strict=True))
        spec = ObsSpec.from_dict(state.obs_spec)
        return ready(model, config, spec, state.manifest_hash, language, device, str(folder), precision)

    @classmethod
    def untrained(cls, config: Config, store: Store, device: str = "cpu", seed: int = 0) -> "Policy":
        """The same interface with random weights: the control that a trained policy must beat."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build_policy(config, store.stats(), load_backbone(config.model, device))
        language = {text: store.language.vector(text) for text in store.manifest.instructions}
        spec = ObsSpec.from_dict(store.obs_spec)
        return ready(model, config, spec, store.manifest_hash, language, device, "untrained")

    def act(self, observations: list[Observation], seed: int = 0) -> NDArray[np.float32]:
        """One chunk for each observation: float32 [B, K, 7] in action units; gripper -1 open, +1 close.

        A pure function of its arguments: `seed` gives the flow's starting noise. Raises ObsSpecMismatch when an
        observation is not what the policy was trained on, StoreMissing for an unknown instruction.
        """
        batch = self.observe(observations)
        noise = draw_noise(
            len(observations), self.config.model.action_seq_len, torch.Generator().manual_seed(seed), self.device
        )
        language = torch.stack([self.tokens[observation.instruction] for observation in observations])
        acted = self.actor.act(
            Scene(batch.images.to(self.device), batch.robot_state.to(self.device), language, noise.epsilon)
        )
        return acted.chunk.cpu().numpy()

    def act_batch(self, obs: ObservationBatch, generator: torch.Generator) -> Acted:
        """`act` for a loader's batch, unchecked; the generator gives the noise."""
        noise = draw_noise(len(obs.robot_state), self.config.model.action_seq_len, generator, self.device)
        obs = obs.to(self.device)
        language = self.actor.language_tokens(obs.language)
        return self.actor.act(Scene(obs.images, obs.robot_state, language, noise.epsilon))

    @property
    def standardize_action(self) -> Standardize:
        """Between action units and the space that the policy was trained in."""
        return self.model.standardize_action

    def observe(self, observations: list[Observation]) -> ObservationBatch:
        """Checked observations as one batch on the CPU."""
        if not observations:
            raise UsageError("policy: expected at least one observation, got none")
        for observation in observations:
            check_observation(observation)
            self.obs_spec.require_same(spec_of(observation), "the policy", "the observation")
        return ObservationBatch(
            images=torch.from_numpy(np.stack([o.images for o in observations])),
            robot_state=torch.from_numpy(np.stack([o.robot_state for o in observations])),
            language=torch.from_numpy(np.stack([self.vector(o.instruction) for o in observations])),
        )

    def vector(self, instruction: str) -> NDArray[np.float32]:
        """The stored embedding of `instruction`, float32 [512]."""
        if instruction not in self.language:
            known = "; ".join(sorted(self.language))
            raise StoreMissing(f"instruction {instruction!r} is not one that {self.name} was trained on: {known}")
        return self.language[instruction]


def check_observation(observation: Observation) -> None:
    """Raise ObsSpecMismatch unless dtypes and shapes are those of a canonical observation and numbers are finite."""
    images, state = observation.images, observation.robot_state
    if images.dtype != np.uint8 or images.ndim != 4 or (images.shape[0], images.shape[3]) != (len(CAMERAS), 3):
        raise ObsSpecMismatch(f"images: expected uint8 [{len(CAMERAS)}, H, W, 3], got {images.dtype} {images.shape}")
    if state.dtype != np.float32 or state.shape != (ROBOT_STATE_DIM,):
        raise ObsSpecMismatch(f"robot_state: expected float32 [{ROBOT_STATE_DIM}], got {state.dtype} {state.shape}")
    if not np.isfinite(state).all():
        raise ObsSpecMismatch(f"robot_state: expected finite numbers, got {state.tolist()}")


def build_policy(config: Config, statistics: Normalization | None, backbone: SiglipBackbone | None) -> PolicyModel:
    """Encoder and policy with fresh weights; without statistics, normalization is still to be loaded."""
    return PolicyModel(config, StateEncoder(config.model, statistics, backbone), statistics)


def ready(
    model: PolicyModel,
    config: Config,
    spec: ObsSpec,
    manifest_hash: str,
    language: dict[str, NDArray[np.float32]],
    device: str,
    name: str,
    dtype: torch.dtype = torch.float32,
) -> Policy:
    """A policy of a model with its weights in; the model is changed in place."""
    where = torch.device(device)
    convert(model.to(where).eval().requires_grad_(False), dtype)
    actor = Actor(model)
    vectors = torch.from_numpy(np.asarray(list(language.values()), np.float32).reshape(-1, LANGUAGE_DIM))
    tokens = dict(zip(language, actor.language_tokens(vectors), strict=True))
    return Policy(model, config, spec, manifest_hash, language, where, name, actor, tokens)
