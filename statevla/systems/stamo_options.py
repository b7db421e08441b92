"""Options of `stamo`, and its presets."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from statevla.config.options import option
from statevla.config.schema import SystemOptions, require_heads
from statevla.encoders.sd3 import DEFAULT_MODEL
from statevla.encoders.vision import CONV

PIXEL: Final = "pixel"
UNIFORM, LOGIT_NORMAL, ONLY_NOISE = "uniform", "logit_normal", "noise"
PARENT: Final = "parent"
STEM: Final = ("features", (CONV,))
UNPRETRAINED: Final = ("decoder", (PIXEL, "vae"))
SD3: Final = ("decoder", ("sd3",))
MOTION: Final = ("motion_weight", ())
"""What some options are seen beside."""


@dataclass(frozen=True)
class StamoOptions(SystemOptions):
    """``stamo.*``."""

    PARENT_FOR: ClassVar[str] = "features=parent"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {
            "image_size": 64, "state_width": 64, "width": 128, "depth": 2, "stem_width": 192, "stages": "32-64-128",
            "decoder_width": 128, "decoder_depth": 4,
        },
    }  # fmt: skip

    learning_rate: float = option(2e-4, "of this system; not given: training.learning_rate if that is", above=0)
    image_size: int = option(128, "pictures are resized to this many pixels a side, and painted so", least=8)
    patch_size: int = option(8, "pixels a side of a painted patch", least=1)
    cameras: str | None = option(
        None, "names like agentview,wrist: these alone are compressed and painted; nothing: all of the store"
    )
    tokens: int = option(2, "of a camera's state", least=1)
    state_width: int = option(256, "numbers of a token", least=1)
    features: str = option(
        CONV, "what the compressor sees: a stem of convolutions trained with it, the frozen tower of model.vision, "
        "which must be the same, or the patches' tokens of a frozen temporal_jepa",
        choices=(CONV, "dinov2", "siglip", PARENT),
    )  # fmt: skip
    stem_width: int = option(384, "width of the stem's features", least=8, beside=STEM)
    stages: str = option(
        "64-128-256", "channels of the stem's stages, each half as large as the one before", beside=STEM
    )
    width: int = option(256, "of the compressor", least=8)
    depth: int = option(4, "blocks of the compressor", least=1)
    decoder_width: int = option(256, "of the decoder", least=8, beside=UNPRETRAINED)
    decoder_depth: int = option(8, "blocks of the decoder", least=1, beside=UNPRETRAINED)
    heads: int = option(4, "of every attention", least=1)
    decoder: str = option(
        PIXEL, "what is painted, and by what: pixels; latents of an autoencoder that is trained first (vae); Stable "
        "Diffusion 3's latents by its transformer, trained further (sd3)", choices=(PIXEL, "vae", "sd3"),
    )  # fmt: skip
    vae_steps: int = option(
        2000,
        "steps of the run in which decoder vae's autoencoder is trained, before all else",
        least=1,
        beside=("decoder", ("vae",)),
    )
    sd3_model: str = option(DEFAULT_MODEL, "hub name, or folder with vae/ and transformer/, of decoder sd3", beside=SD3)
    sd3_revision: str | None = option(
        None, "branch, tag or commit of sd3_model at the hub; nothing: its main one", beside=SD3
    )
    sd3_lora: int = option(
        0,
        "rank of low-rank adapters that are trained and saved in place of sd3's transformer; 0: all of it",
        least=0,
        beside=SD3,
    )
    levels: str = option(
        UNIFORM, "how training draws the level of noise: uniformly; as the logistic function of a normal number, most "
        "in the middle, as Stable Diffusion 3 was trained; always noise alone, so that the decoder tells in one step "
        "the mean of the pictures that a state may be of, without diffusion",
        choices=(UNIFORM, LOGIT_NORMAL, ONLY_NOISE),
    )  # fmt: skip
    predict: str = option("x", "what the decoder gives: the velocity, or the clean picture", choices=("x", "v"))
    state_dropout: float = option(0.1, "share of the pictures that are painted without their state", least=0, most=1)
    motion_weight: float = option(
        0.0, "more weight of the error in patches where something moves, all patches' mean staying 1; 0: none", least=0
    )
    motion_steps: int = option(5, "frames within which it moves", least=1, beside=MOTION)
    motion_threshold: float = option(
        0.08, "change of some colour that counts, of [0, 1]", above=0, most=1, beside=MOTION
    )

    def check(self, section: str) -> None:
        """A pretrained painter has sizes of its own."""
        own = {} if self.decoder == "sd3" else {"decoder_width": self.decoder_width}
        require_heads(section, self.heads, width=self.width, **own)

    def parents(self, may: tuple[str, ...]) -> tuple[str, ...]:
        """A Temporal JEPA where the features are its tokens."""
        return may if self.features == PARENT else ()
