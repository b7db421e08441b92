"""The configuration as frozen dataclasses. Keys are those of the StateVLA documents.

``data.*``, ``model.*``, ``training.*``; the options of the two first systems stand in ``training.phase1.*`` and
``training.phase2.*``, those of every other system in a section of its own name (``systems.SYSTEMS``).
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from statevla.config.options import keys, option
from statevla.config.world import WorldOptions
from stores.errors import UsageError
from stores.schema import CHUNK


@dataclass(frozen=True)
class DataConfig:
    """What to stream and how. `lanes` and `block_segments` fix the sample order (see `statevla/data/order.py`)."""

    store: str | None = option(None, "store folder or URL; nothing: the only one below data/stores/", resume=True)
    lanes: int = option(8, "streams that the segments of an epoch are dealt to", least=1)
    block_segments: int = option(16, "segments of a lane that are mixed at a time", least=1)
    loader_threads: int | None = option(
        None, "threads that fetch and decode, of data.stream=sequential processes; nothing: the cores, up to 8",
        least=1, resume=True,
    )  # fmt: skip
    cache_gib: float | None = option(
        None, "keep a split's decoded frames when they fit in this many GiB; 0: always stream; nothing: an eighth of "
        "the free memory, up to 16", least=0, resume=True,
    )  # fmt: skip
    stream: str = option(
        "indexed", "indexed: segments by the index, in the order that seed and epoch fix; sequential: shards from end "
        "to end through webdataset, for clusters without local disks", choices=("indexed", "sequential"),
    )  # fmt: skip
    shuffle_buffer: int = option(
        4096, "transitions of data.stream=sequential that are mixed at a time, shared among its processes", least=1,
        resume=True, beside=("stream", ("sequential",)),
    )  # fmt: skip
    remote_cache: str | None = option(
        None, "folder that keeps what was read of a remote store; nothing: the user's folder for caches",
        resume=True, compare=False,
    )  # fmt: skip
    remote_cache_gib: float | None = option(
        None, "most that it holds; nothing: a quarter of the disk's room, up to 64", above=0, resume=True
    )
    remote_requests: int = option(32, "requests to a remote store at once", least=1, most=256, resume=True)
    features: str | None = option(
        None, "folder below the store's features/ that stands for the pictures; see statevla features", resume=True
    )
    latents: bool = option(
        True, "a policy on a frozen state encoder trains from its states, computed once and kept", resume=True
    )
    cache: str = option(
        "memory", "decoded: pictures are decoded once, into a file beside the store that all processes map",
        choices=("memory", "decoded"), resume=True,
    )  # fmt: skip
    shuffle_instructions: bool = option(False, "a control: pair every episode with another task's instruction")
    oversample_gripper: int = option(
        1, "times that a step is drawn an epoch whose chunk opens or closes a gripper", least=1, most=100
    )
    labelled_share: float = option(
        1.0, "share of the train split's episodes, of every instruction, whose actions may be seen", above=0, most=1
    )
    unlabelled: str = option(
        "leave_out", "episodes beyond data.labelled_share: left out, or kept with their actions hidden, for what "
        "learns without", choices=("leave_out", "keep"),
    )  # fmt: skip
    labelled_times: int = option(
        1, "times that a labelled step is drawn an epoch, beside the others of data.unlabelled=keep", least=1, most=1000
    )
    data_directory: str | None = option(
        None, "the documents': folder of HDF5 files named like the suite (statevla ingest)", resume=True, compare=False
    )
    demos_per_task: int = option(50, "the documents': demonstrations a task that were ingested", least=1, resume=True)
    max_len_data: int = option(260, "the documents': longest episode that was ingested", least=1, resume=True)
    train_split: float = option(
        0.9, "the documents': share of episodes to train on; of an ingest", above=0, most=1, resume=True
    )


OF_TOWERS: Final = ("vision", ("siglip", "dinov2"))
"""What an option of frozen towers is seen beside."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of every part; defaults are the documents' base model."""

    vision: str = option("conv", "patch convolution (conv), or a frozen tower (siglip, dinov2)", parent=True)
    stem: str = option(
        "patch", "with model.vision=conv: one convolution a patch, or stages of 3 x 3 that halve (conv)",
        choices=("patch", "conv"), parent=True,
    )  # fmt: skip
    vision_model: str = option(
        "google/siglip-base-patch16-224", "name or folder of the frozen tower", parent=True, beside=OF_TOWERS
    )
    vision_width: int = option(768, "feature width of vision_model", least=1, parent=True, beside=OF_TOWERS)
    vision_pool: int = option(
        1, "a tower's patches are averaged over squares of this side", choices=(1, 2, 4), parent=True
    )
    image_size: int = option(224, "pictures are resized to this many pixels a side", least=1, parent=True)
    patch_size: int = option(16, "pixels a side of a patch", least=1, parent=True)
    embed_dim: int = option(256, "width of tokens and state; a multiple of 4", least=4, parent=True)
    encoder_depth: int = option(12, "Mamba blocks of the context encoder", least=1, parent=True)
    d_state: int = option(16, "Mamba's state size in the encoder", least=1, parent=True)
    d_conv: int = option(4, "Mamba's convolution width", least=1, parent=True)
    expand: int = option(2, "Mamba's inner width over embed_dim", least=1, parent=True)
    action_seq_len: int = option(CHUNK, "actions a decision; no more than the longest episode has", least=1)
    policy_layers: int = option(3, "Mamba blocks of the flow policy", least=1)
    policy_d_state: int = option(64, "Mamba's state size in the flow policy", least=1)
    policy_mlp: int = option(0, "hidden width of a gated MLP in each policy block; 0: none", least=0)
    policy_context: str = option(
        "z", "what the policy sees: the state, or the encoder's tokens too", choices=("z", "z+tokens")
    )
    gripper_width: int = option(256, "hidden width of the gripper classifier", least=1)
    euler_steps: int = option(4, "steps of sampling", least=1)
    mamba_backend: str = option(
        "auto", "kernels", choices=("auto", "cuda", "triton", "cpu", "loop", "reference"), resume=True
    )
    lang_emb_dim: int | None = option(
        None, "says the store's language width again", least=1, resume=True, compare=False
    )
    robot_state_dim: int | None = option(
        None, "says the store's robot state again", least=1, resume=True, compare=False
    )
    action_dim: int | None = option(None, "says the store's action width again", least=1, resume=True, compare=False)
    state_dim: int | None = option(None, "says embed_dim again", least=1, resume=True, compare=False)
    policy_embed_dim: int | None = option(None, "says embed_dim again", least=1, resume=True, compare=False)

    @property
    def patches(self) -> int:
        """Patch tokens of one camera."""
        return (-(-(self.image_size // self.patch_size) // self.vision_pool)) ** 2


@dataclass(frozen=True)
class SystemOptions:
    """What every system's section has. PRESETS: what a preset of that name changes of the defaults. PARENT_FOR: for
    people, the options with which a frozen encoder is taken, where that is up to the options.
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    PARENT_FOR: ClassVar[str] = ""
    ACTING: ClassVar[tuple[str, ...]] = ()
    """Options that change no weight, but how the policy acts."""

    num_epochs: int = option(1000, "epochs; training.max_steps may end a run before", least=1, resume=True)
    learning_rate: float = option(1e-4, "of this system; not given: training.learning_rate if that is", above=0)

    @property
    def acts_by_tower(self) -> bool:
        """Whether acting sees by the frozen tower of ``model.vision``, where there is one."""
        return True

    def parents(self, may: tuple[str, ...]) -> tuple[str, ...]:
        """Of the systems whose frozen encoder the system `may` take, those that will do with these options."""
        return ()

    def check(self, section: str) -> None:
        """Raise UsageError, naming keys below `section`, where two options do not go together; the default: all do."""


def require_heads(section: str, heads: int, **widths: int) -> None:
    """Raise UsageError where the heads of an attention cannot share a width, by the name of its option."""
    for name, width in widths.items():
        if width % heads:
            raise UsageError(
                f"{section}.heads: {heads} heads cannot share {section}.{name} {width}, which is not a multiple of "
                f"{heads}; set another number of heads, or another width"
            )


def require_vision(key: str, wanted: str, vision: str) -> None:
    """Raise UsageError where the option `key` names another frozen tower than ``model.vision``."""
    if vision != wanted:
        raise UsageError(
            f"{key}: {wanted}, but model.vision is {vision}; set model.vision={wanted}, and model.vision_model and "
            "model.vision_width of that tower"
        )


@dataclass(frozen=True)
class Phase1Config(SystemOptions):
    """Temporal JEPA."""

    temporal_predictor_hidden_dim: int = option(512, "hidden width of the temporal predictor", least=1)
    prediction_weight: float = option(
        1.0, "weight of the prediction's error; with both VICReg weights, 0 leaves the inverse dynamics alone", least=0
    )
    variance_weight: float = option(1.0, "weight of the variance term", least=0)
    covariance_weight: float = option(0.04, "weight of the covariance term", least=0)
    regularize: str = option(
        "z_next",
        "states whose variance and covariance the two terms take: the predicted next ones (the documents'), the "
        "encoder's, or the sum of both",
        choices=("z_next", "z", "both"),
    )
    sigreg_weight: float = option(
        0.0, "weight of SIGReg on the states that regularize names: their distance from a normal distribution; in "
        "place of VICReg with both of its weights 0", least=0,
    )  # fmt: skip
    gap: int = option(
        1, "observations from the state to the one that is predicted, at most: fewer at a segment's end; the predictor "
        "is applied once an action between", least=1,
    )  # fmt: skip
    inverse_dynamics_weight: float = option(
        0.0, "foretell actions from this state and the target's next one; 0 leaves it out", least=0
    )
    inverse_dynamics_horizon: int = option(
        1, "how many actions it foretells; up to model.action_seq_len", least=1, beside=("inverse_dynamics_weight", ())
    )


@dataclass(frozen=True)
class Phase2Config(WorldOptions, SystemOptions):
    """Flow-matching policy on the frozen state, whose later ones its world head foretells."""

    learning_rate: float = option(5e-5, "of this system; not given: training.learning_rate if that is", above=0)
    gripper_weight: float = option(1.0, "weight of the gripper's cross entropy", least=0)

    def parents(self, may: tuple[str, ...]) -> tuple[str, ...]:
        """All: there is no policy on a state without an encoder."""
        return may


@dataclass(frozen=True)
class TrainingConfig:
    """The loop."""

    seed: int = option(0, "of weights, order and noise", least=0, most=2**63 - 1)
    batch_size: int = option(64, "transitions a step", least=1)
    learning_rate: float = option(1e-4, "of every system whose section does not give its own", above=0)
    weight_decay: float = option(0.05, "AdamW's, on matrices and kernels", least=0)
    gradient_clip: float = option(1.0, "largest norm of the gradient", above=0)
    accumulate: int = option(
        1, "micro-batches in which a batch is computed, to the same gradients", least=1, resume=True
    )
    policy_ema: float = option(
        0.0,
        "decay of an average of the weights of a policy or of stamo, which is validated and acts; 0: none",
        least=0,
        most=0.999999,
    )
    augment_shift: float = option(
        0.0, "largest shift of pictures, in pixels of 128; documents' kind: 4", least=0, most=64
    )
    augment_colour: float = option(
        0.0, "largest change of brightness, contrast, saturation, such as 0.2", least=0, most=1
    )
    augment_affine: bool = option(False, "turn by 5 degrees, shift and scale by 5% at most, as the documents do")
    schedule: str = option("constant", "of the learning rate, after the warmup", choices=("constant", "cosine"))
    warmup_steps: int = option(0, "steps of linear warmup", least=0)
    ema_momentum: float = option(0.996, "of moving averages, at the first step", least=0, most=1)
    ema_momentum_schedule: str = option("cosine", "from ema_momentum to 1 over the run", choices=("cosine",))
    max_steps: int | None = option(None, "a run ends here; nothing: its epochs decide", least=1, resume=True)
    save_interval: int = option(100, "epochs between the checkpoints that are kept", least=1, resume=True)
    log_interval: int = option(10, "steps between the lines of the metrics", least=1, resume=True)
    validate_every_steps: int | None = option(
        None, "steps between validations; nothing: at the end of every epoch", least=1, resume=True
    )
    tracker: str = option(
        "none", "where metrics go beside the JSONL file", choices=("none", "tensorboard", "trackio"), resume=True
    )
    device: str = option("auto", "auto, cpu or cuda", resume=True)
    precision: str = option(
        "auto", "bf16 is autocast; auto: bf16 on CUDA, fp32 elsewhere", choices=("auto", "fp32", "bf16")
    )
    torch_threads: int | None = option(
        None, "threads of torch on the CPU; nothing: its own choice", least=1, resume=True
    )
    phase1: Phase1Config = field(default_factory=Phase1Config)
    phase2: Phase2Config = field(default_factory=Phase2Config)


@dataclass(frozen=True)
class Config:
    """Everything a training run needs; equal configs give equal runs. sections: of further systems, by name."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    sections: Mapping[str, SystemOptions] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self)

    def section(self, path: str) -> Any:
        """Options at a dotted path: ``training.phase1``, or the name of a further system's section."""
        if path in self.sections:
            return self.sections[path]
        node: Any = self
        for name in path.split("."):
            node = getattr(node, name)
        return node

    def parts(self) -> dict[str, Any]:
        """The sections that stand at the top of the YAML, by name."""
        return {"data": self.data, "model": self.model, "training": self.training, **self.sections}

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dict with the YAML keys."""
        return {name: dataclasses.asdict(part) for name, part in self.parts().items()}


def check(config: Config) -> None:
    """Raise UsageError naming the key when a value is outside its range, or two values do not go together."""
    for name, part in config.parts().items():
        for key in keys(part, f"{name}."):
            key.option.check(key.name, key.value)
    for name, options in config.sections.items():
        options.check(name)
    model = config.model
    if model.image_size % model.patch_size:
        raise UsageError(
            f"model.image_size: {model.image_size} is not a multiple of model.patch_size {model.patch_size}"
        )
    horizon = config.training.phase1.inverse_dynamics_horizon
    if horizon > model.action_seq_len:
        raise UsageError(
            f"training.phase1.inverse_dynamics_horizon: {horizon} is more than "
            f"model.action_seq_len {model.action_seq_len}"
        )
    gap = config.training.phase1.gap
    if gap > model.action_seq_len:
        raise UsageError(
            f"training.phase1.gap: {gap} is more than model.action_seq_len {model.action_seq_len}, the actions of a row"
        )
    if model.stem != "patch" and model.vision != "conv":
        raise UsageError(
            f"model.stem: {model.stem} is for model.vision=conv, not for a frozen tower; set model.stem=patch"
        )
    if model.vision_pool != 1 and model.vision == "conv":
        raise UsageError(f"model.vision_pool: {model.vision_pool} is for a frozen tower, not for model.vision=conv")
    if config.data.features is not None and model.vision == "conv":
        raise UsageError(
            f"data.features: {config.data.features} are of a frozen tower, which model.vision=conv is not; "
            "use model.vision=siglip or dinov2"
        )
    if model.embed_dim % 4:
        raise UsageError(f"model.embed_dim: {model.embed_dim} is not a multiple of 4")
    for name in ("state_dim", "policy_embed_dim"):
        _same(f"model.{name}", getattr(model, name), "model.embed_dim", model.embed_dim)
    _check_tower(model)


TOWER: Final = re.compile(r"patch(\d+)-(\d+)$")


def _check_tower(model: ModelConfig) -> None:
    """A frozen tower has one picture size and one patch size, and its public name tells both."""
    told = TOWER.search(model.vision_model) if model.vision == "siglip" else None
    if told is not None and (model.patch_size, model.image_size) != (int(told[1]), int(told[2])):
        raise UsageError(
            f"model.image_size, model.patch_size: {model.vision_model} takes pictures of {told[2]} pixels in patches "
            f"of {told[1]}, got {model.image_size} and {model.patch_size}; "
            f"use --set model.image_size={told[2]} --set model.patch_size={told[1]}"
        )


def require_widths(config: ModelConfig, language: int, robot_state: int, action: int, store: str) -> None:
    """Raise UsageError where a key that says one of the store's widths again says another one."""
    for key, mine, theirs in (
        ("lang_emb_dim", config.lang_emb_dim, language),
        ("robot_state_dim", config.robot_state_dim, robot_state),
        ("action_dim", config.action_dim, action),
    ):
        _same(f"model.{key}", mine, store, theirs)


def _same(key: str, value: int | None, where: str, wanted: int) -> None:
    if value is not None and value != wanted:
        raise UsageError(f"{key}: {value}, but {where} has {wanted}; this key only says it again, leave it out")
