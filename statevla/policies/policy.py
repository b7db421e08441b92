"""A trained policy as one object: observations in, action chunks out. Read from a phase-2 checkpoint, nothing else.

Legend: B batch, K chunk, A numbers of an action, L of an embedding.
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
from statevla.observation import Observation, ObsSpec, check_observation
from statevla.policies.prepare import Actor, Scene, convert, torch_dtype
from statevla.runs.files import LANGUAGE, MODEL, load_strict, read_state, read_tensors
from statevla.systems.flow_matching import Acted, PolicyModel
from statevla.systems.table import config_of, require_kind
from stores.errors import StoreCorrupt, StoreMissing, UsageError
from stores.reader import Store
from stores.spec import LIBERO
from stores.statistics import Normalization


@dataclass(frozen=True)
class Policy:
    """Everything that acting needs.

    language: float32 [L] by instruction, the only instructions that the policy knows. manifest_hash: the store that
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
        spec = ObsSpec.from_dict(state.obs_spec)
        model = build_policy(config, None, backbone, spec)
        load_strict(model, read_tensors(folder, state, MODEL), str(folder / MODEL))
        vectors = read_tensors(folder, state, LANGUAGE)["vectors"].numpy()
        if vectors.shape[0] != len(state.instructions):
            raise StoreCorrupt(f"{folder / LANGUAGE}: {len(state.instructions)} instructions, {len(vectors)} vectors")
        language = dict(zip(state.instructions, vectors, strict=True))
        return ready(model, config, spec, state.manifest_hash, language, device, str(folder), precision)

    @classmethod
    def untrained(cls, config: Config, store: Store, device: str = "cpu", seed: int = 0) -> "Policy":
        """The same interface with random weights: the control that a trained policy must beat."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build_policy(config, store.stats(), load_backbone(config.model, device), store.spec)
        language = {text: store.language.vector(text) for text in store.manifest.instructions}
        return ready(model, config, store.spec, store.content_hash, language, device, "untrained")

    def act(self, observations: list[Observation], seed: int = 0) -> NDArray[np.float32]:
        """One chunk for each observation: float32 [B, K, A] in action units; binary dimensions -1 or +1.

        A pure function of its arguments: `seed` gives the flow's starting noise. Raises ObsSpecMismatch when an
        observation is not what the policy was trained on, StoreMissing for an unknown instruction.
        """
        batch = self.observe(observations)
        noise = self.model.noise(len(observations), torch.Generator().manual_seed(seed), self.device)
        language = torch.stack([self.tokens[observation.instruction] for observation in observations])
        acted = self.actor.act(
            Scene(
                tuple(frames.to(self.device) for frames in batch.images),
                batch.robot_state.to(self.device),
                language,
                noise,
            )
        )
        return acted.chunk.cpu().numpy()

    def act_batch(self, obs: ObservationBatch, generator: torch.Generator) -> Acted:
        """`act` for a loader's batch, unchecked; the generator gives the noise."""
        noise = self.model.noise(len(obs.robot_state), generator, self.device)
        obs = obs.to(self.device)
        language = self.actor.language_tokens(obs.language)
        return self.actor.act(Scene(obs.images, obs.robot_state, language, noise))

    @property
    def standardize_action(self) -> Standardize:
        """Between action units and the space that the policy was trained in."""
        return self.model.standardize_action

    def observe(self, observations: list[Observation]) -> ObservationBatch:
        """Checked observations as one batch on the CPU."""
        if not observations:
            raise UsageError("policy: expected at least one observation, got none")
        for observation in observations:
            check_observation(observation, self.obs_spec)
        return ObservationBatch(
            images=tuple(
                torch.from_numpy(np.stack(frames)) for frames in zip(*(o.images for o in observations), strict=True)
            ),
            robot_state=torch.from_numpy(np.stack([o.robot_state for o in observations])),
            language=torch.from_numpy(np.stack([self.vector(o.instruction) for o in observations])),
        )

    def vector(self, instruction: str) -> NDArray[np.float32]:
        """The stored embedding of `instruction`, float32 [L]."""
        if instruction not in self.language:
            known = "; ".join(sorted(self.language))
            raise StoreMissing(f"instruction {instruction!r} is not one that {self.name} was trained on: {known}")
        return self.language[instruction]


def build_policy(
    config: Config, statistics: Normalization | None, backbone: SiglipBackbone | None, spec: ObsSpec = LIBERO
) -> PolicyModel:
    """Encoder and policy with fresh weights; without statistics, normalization is still to be loaded."""
    return PolicyModel(config, StateEncoder(config.model, statistics, backbone, spec), statistics)


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
    vectors = torch.from_numpy(np.asarray(list(language.values()), np.float32).reshape(-1, spec.language_width))
    tokens = dict(zip(language, actor.language_tokens(vectors), strict=True))
    return Policy(model, config, spec, manifest_hash, language, where, name, actor, tokens)
