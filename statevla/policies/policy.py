"""A trained policy as one object: observations in, action chunks out. A policy's checkpoint holds all it needs.

Legend: B batch, K actions of a chunk, A numbers of an action, L numbers of an embedding.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from statevla.config import Config, replace
from statevla.data.batch import ObservationBatch
from statevla.encoders.vision import load_backbone, require_identity
from statevla.models.standardize import Standardize
from statevla.observation import Observation, ObsSpec, check_observation
from statevla.policies import instructions
from statevla.policies.identity import identity_of, tensors_hash
from statevla.policies.noise import Draw, normal_rows
from statevla.policies.prepare import Actor, choose_device, convert, torch_dtype
from statevla.runs.files import LANGUAGE, MODEL, load_strict, read_tensors
from statevla.runs.state import CheckpointState, read_state
from statevla.systems.acting import Acted, PolicyNet, Scene
from statevla.systems.system import Given, Objective, System
from statevla.systems.table import config_of, find_system, require_kind
from stores.errors import StaleKey, StateVLAError, StoreCorrupt, StoreMissing, UsageError
from stores.statistics import Normalization

if TYPE_CHECKING:  # a policy acts where the readers of stores are not installed
    from stores.reader import Store

UNTRAINED: Final = "untrained"
"""Name of the control with random weights."""


@dataclass(frozen=True, repr=False)
class Policy:
    """A policy and everything that it needs to act.

    obs_spec: what it must see. content_hash: of the store that it was trained on. name: where it came from, for
    reports. identity: sha256 of weights, options, precision, sampling steps and ObsSpec. step: optimizer steps of its
    checkpoint.

    language: embeddings float32 [L] by instruction: those of training, and those it was asked for since. trained: the
    ones of training alone. text_encoder: id and revision of what embedded them; None where a new instruction is an
    error.

    actor: `model`, prepared to act on `device`. conditions: what the model makes of each instruction, made once.

    init_states: by task, the initial states of its demonstrations. made_by: how these were made (`stores.made_by`).

    control: which one it is where it stands in a checkpoint's place (`statevla.policies.checkpoint_controls`).

    loaded_by: arguments of the `load` that gives this very policy, so that another process may call it. None for one
    that was made or changed in memory: `dataclasses.replace` does not keep it.
    """

    model: PolicyNet
    config: Config
    obs_spec: ObsSpec
    content_hash: str
    language: dict[str, NDArray[np.float32]]
    device: torch.device
    name: str
    identity: str
    actor: Actor
    conditions: dict[str, Tensor]
    init_states: dict[str, list[str]] = field(default_factory=dict)
    made_by: Mapping[str, int] = field(default_factory=dict)
    text_encoder: Mapping[str, str] | None = None
    trained: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    step: int | None = None
    control: str | None = None
    loaded_by: tuple[Any, ...] | None = field(init=False, default=None, compare=False)

    @classmethod
    def load(
        cls, checkpoint_dir: Path | str, device: str = "cpu", dtype: str = "float32", euler_steps: int | None = None,
        closed: bool = False, untrained: int | None = None,
    ) -> "Policy":  # fmt: skip
        """Read a policy's checkpoint folder, with every weight checked by name, shape and dtype.

        Args:
            device: ``auto``, ``cpu`` or ``cuda``.
            dtype: ``float32`` or ``bfloat16``: what the large matrix products are computed in.
            euler_steps: sampling steps; None: as in training.
            closed: an instruction that it was not trained on is an error, instead of being embedded.
            untrained: seed of random weights in place of the checkpoint's, those of its frozen encoder too: the control
                that it must beat. All else is the checkpoint's.

        Raises:
            StoreMissing: there is no checkpoint.
            StoreCorrupt: the checkpoint is damaged.
            UsageError: it is a state encoder's, its frozen vision encoder cannot be had or is another, or
                `euler_steps` is given for a policy that does not sample.
        """
        folder = Path(checkpoint_dir)
        state = read_state(folder)
        system = require_kind(state, "policy", folder)
        config = config_of(state, folder)
        if euler_steps is not None:
            if not system.sized_by_model:
                raise UsageError(f"euler_steps: {euler_steps}, but {folder} is of {system.name}, which samples nothing")
            config = replace(config, {"model.euler_steps": euler_steps})
        precision = torch_dtype(dtype)
        where = choose_device(device)
        backbone = None
        if system.options_of(config).acts_by_tower:
            backbone = load_backbone(config.model, str(where))
            if backbone is not None:
                backbone.to(where, precision)
            require_identity(backbone, state.backbone, str(folder))
        spec = ObsSpec.from_dict(state.obs_spec, f"{folder}: obs_spec")
        if untrained is None:
            model = system.build(config, Given(spec=spec, backbone=backbone))
            load_strict(model, read_tensors(folder, state, MODEL), str(folder / MODEL))
            weights = state.files[MODEL]["sha256"]
        else:
            model = _fresh(system, config, Given(spec, Normalization.from_dict(state.statistics), backbone), untrained)
            weights = tensors_hash(model.state_dict())
        vectors = read_tensors(folder, state, LANGUAGE)["vectors"].numpy()
        if vectors.shape[0] != len(state.instructions):
            raise StoreCorrupt(f"{folder / LANGUAGE}: {len(state.instructions)} instructions, {len(vectors)} vectors")
        language = dict(zip(state.instructions, vectors, strict=True))
        sources = {MODEL: weights, LANGUAGE: state.files[LANGUAGE]["sha256"], "instructions": state.instructions}
        identity = identify(config, spec, dtype, sources, state)
        made = ready(model, config, spec, state.content_hash, language, str(where), str(folder), precision, identity)
        encoder = None if closed else state.language
        loaded = dataclasses.replace(
            made,
            init_states=state.init_states,
            made_by=state.made_by if untrained is None else {},
            trained=dict(language),
            text_encoder=encoder,
            step=state.step if untrained is None else None,
            control=None if untrained is None else UNTRAINED,
        )
        object.__setattr__(loaded, "loaded_by", (folder.absolute(), str(where), dtype, euler_steps, closed, untrained))
        return loaded

    @classmethod
    def untrained(
        cls, config: Config, store: "Store", device: str = "cpu", seed: int = 0, system: str = "flow_matching"
    ) -> "Policy":
        """A policy of random weights: the control that a trained policy must beat."""
        model = _fresh(
            find_system(system), config, Given(store.spec, store.stats(), load_backbone(config.model, device)), seed
        )
        language = {text: store.language.vector(text) for text in store.manifest.instructions}
        return ready(model, config, store.spec, store.content_hash, language, device, "untrained")

    def __repr__(self) -> str:
        sizes = " and ".join(dict.fromkeys(f"{height} x {width}" for height, width in self.obs_spec.image_sizes))
        weights = self.actor.parameters
        return (
            f"Policy({self.name!r}, {weights:,} parameters, chunks of {self.chunk}, {len(self.language)} instructions, "
            f"{sizes} px, on {self.device}, identity {self.identity[:12]})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process, which loads the checkpoint again. Raises UsageError where there is none that holds it.

        Instructions that it was asked for since are embedded again there, when they are asked for.
        """
        if self.loaded_by is None:
            raise UsageError(
                f"{self.name}: this policy was made or changed in memory, and another process could not load it; "
                "expected one of `statevla.load_policy`, unchanged"
            )
        return _load_again, (self.loaded_by, self.identity)

    @property
    def chunk(self) -> int:
        """K, the actions that it plans in one call."""
        return self.config.model.action_seq_len

    def act(
        self,
        observations: Sequence[Observation],
        draws: Sequence[Draw] | None = None,
        goals: Sequence[Observation] | None = None,
    ) -> Acted:
        """One chunk for each observation: float32 [B, K, A] on the CPU, in action units, binary dimensions -1 or +1.

        The result is a function of the arguments alone.

        Args:
            draws: which noise each row gets; None: `Draw()` for all of them.
            goals: an observation that each row is to reach, for a policy that takes goals; None: the instruction says
                what to do.

        Raises:
            ObsSpecMismatch: an observation is not of the kind that the policy was trained on.
            StoreMissing: an instruction is unknown and cannot be embedded.
            UsageError: no observations, another number of draws or goals than observations, or goals for a policy that
                takes none.
        """
        if goals is not None and not hasattr(self.model, "told_by"):
            raise UsageError(f"goals: {self.name} takes none, the instruction says what to do")
        batch = self.observe(observations)
        condition = torch.stack([self.conditions[observation.instruction] for observation in observations])
        goal = None if goals is None else torch.stack(self.observe(goals).images, dim=1)
        if goal is not None and len(goal) != len(observations):
            raise UsageError(f"policy: expected a goal for each of {len(observations)} observations, got {len(goal)}")
        acted = self._act(batch, condition, draws, goal)
        closing = None if acted.closing is None else acted.closing.cpu()
        return Acted(acted.chunk.cpu(), closing, {name: extra.cpu() for name, extra in acted.extras.items()})

    def act_batch(self, obs: ObservationBatch, draws: Sequence[Draw] | None = None) -> Acted:
        """`act` for a batch of a loader. Nothing is checked, and the result stays on the policy's device."""
        return self._act(obs, self.actor.condition(obs.language), draws)

    def _act(
        self, obs: ObservationBatch, condition: Tensor, draws: Sequence[Draw] | None, goal: Tensor | None = None
    ) -> Acted:
        rows, shape = len(obs.robot_state), self.model.noise_shape
        draws = [Draw()] * rows if draws is None else draws
        if len(draws) != rows:
            raise UsageError(f"policy: expected a draw for each of {rows} observations, got {len(draws)}")
        noise = None if shape is None else normal_rows(draws, shape).to(self.device)
        obs = obs.to(self.device)
        goal = None if goal is None else goal.to(self.device)
        return self.actor.act(Scene(obs.images, obs.robot_state, condition, noise, goal))

    @property
    def standardize_action(self) -> Standardize:
        """Turns action units into the numbers that the network was trained on, and back."""
        return self.model.standardize_action

    def observe(self, observations: Sequence[Observation]) -> ObservationBatch:
        """Checked observations as one batch on the CPU."""
        return stack(observations, self.obs_spec, self.vector)

    def vector(self, instruction: str) -> NDArray[np.float32]:
        """The embedding of `instruction`, float32 [L].

        One that the policy was not trained on is embedded by the same text encoder when it is first asked for, with a
        warning that names the nearest instruction of training. Raises StoreMissing where that encoder is not on this
        machine, or where the policy is closed (`load`).
        """
        if instruction not in self.language:
            self._introduce(instruction)
        return self.language[instruction]

    def _introduce(self, instruction: str) -> None:
        trained = "; ".join(sorted(self.trained or self.language))  # not those that it was asked for since
        refusal = f"instruction {instruction!r} is not one that {self.name} was trained on: {trained}"
        if self.text_encoder is None:
            raise StoreMissing(refusal)
        try:
            encoder = instructions.encoder_of(self.text_encoder)
            nearest = instructions.embed(instruction, self.trained, encoder)
        except StateVLAError as error:
            raise StoreMissing(f"{refusal}; and it cannot be embedded here: {error}") from error
        instructions.warn(instruction, nearest, encoder)
        self.language[instruction] = nearest.vector
        self.conditions[instruction] = self.actor.condition(torch.from_numpy(nearest.vector[None]))[0]


def _load_again(loaded_by: tuple[Any, ...], identity: str) -> Policy:
    """The policy that another process had. Raises as `Policy.load`, and StaleKey when it is another one now."""
    policy = Policy.load(*loaded_by)
    if policy.identity != identity:
        raise StaleKey(
            f"{policy.name}: expected the policy of identity {identity:.12} that was handed over, got "
            f"{policy.identity:.12}: it was trained on meanwhile; load it again, and hand it over again"
        )
    return policy


def _fresh(system: System, config: Config, given: Given, seed: int) -> Objective:
    """A model with the random weights of `seed`; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return system.build(config, given)


def stack(
    observations: Sequence[Observation], spec: ObsSpec, vector: Callable[[str], NDArray[np.float32]]
) -> ObservationBatch:
    """Observations as one batch on the CPU, each checked against `spec` first. vector: embeds an instruction.

    Raises ObsSpecMismatch, UsageError for none, and what `vector` raises.
    """
    if not observations:
        raise UsageError("policy: expected at least one observation, got none")
    for observation in observations:
        check_observation(observation, spec)
    return ObservationBatch(
        images=tuple(
            torch.from_numpy(np.stack(frames)) for frames in zip(*(o.images for o in observations), strict=True)
        ),
        robot_state=torch.from_numpy(np.stack([o.robot_state for o in observations])),
        language=torch.from_numpy(np.stack([vector(o.instruction) for o in observations])),
    )


def identify(
    config: Config, spec: ObsSpec, dtype: str, weights: Mapping[str, Any], state: CheckpointState | None = None
) -> str:
    """A policy's identity: sha256 of all that bears on its actions.

    weights: hashes of what was learnt. For a checkpoint (`state`) these are the hashes of its files, already known.
    """
    options = None if state is None else find_system(state.system).options_of(config)
    acting = {} if options is None else {name: True for name in options.ACTING if getattr(options, name)}
    return identity_of(
        {
            **({"acting": acting} if acting else {}),  # without any, the identity of before there was this key
            "weights": dict(weights),
            "model": config.to_dict()["model"],
            "system": None if state is None else state.system,
            "backbone": None if state is None else state.backbone,
            "precision": dtype,
            "obs_spec": spec.to_dict(),
        }
    )


def ready(
    model: Objective,
    config: Config,
    spec: ObsSpec,
    content_hash: str,
    language: dict[str, NDArray[np.float32]],
    device: str,
    name: str,
    dtype: torch.dtype = torch.float32,
    identity: str | None = None,
) -> Policy:
    """A policy made of a model that has its weights. The model is moved, frozen and converted to `dtype` in place.

    identity: None: computed from the weights. Raises UsageError when the model is no policy's.
    """
    if not isinstance(model, PolicyNet):
        raise UsageError(f"{name}: {type(model).__name__} does not act; expected a policy")
    where = choose_device(device)
    vectors = torch.from_numpy(np.asarray(list(language.values()), np.float32).reshape(-1, spec.language_width))
    if identity is None:
        tensors = {**model.state_dict(), "language": vectors}
        learnt = {"tensors": tensors_hash(tensors), "instructions": [*language]}
        identity = identify(config, spec, str(dtype).removeprefix("torch."), learnt)
    model.to(where).eval().requires_grad_(False)
    convert(model, dtype)
    actor = Actor(model)
    conditions = dict(zip(language, actor.condition(vectors), strict=True))
    return Policy(model, config, spec, content_hash, language, where, name, identity, actor, conditions)
