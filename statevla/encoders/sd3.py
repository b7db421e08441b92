"""Stable Diffusion 3's autoencoder and transformer, by `from_pretrained` of the package diffusers, and low-rank
adapters for the transformer by the package peft (extra ``stamo``).
"""

from typing import Any, Final

import torch
from torch import nn

from statevla.encoders.hub import require_weights, usable
from stores.errors import UsageError

DEFAULT_MODEL: Final = "stabilityai/stable-diffusion-3-medium-diffusers"
VAE, TRANSFORMER = "vae", "transformer"
ADAPTED: Final = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj",
    "attn.to_add_out",
)  # fmt: skip
"""Layers of the transformer's joint attention that get an adapter: those of diffusers' own script for it."""
ADAPTER: Final = "lora_"
"""In the names of the adapters' weights."""


def load_sd3(model: str = DEFAULT_MODEL, revision: str | None = None) -> tuple[Any, Any]:
    """`AutoencoderKL` and `SD3Transformer2DModel`, float32, from the folders ``vae`` and ``transformer`` of a hub's
    repository or of a local folder. revision: the hub's branch, tag or commit.

    Only safetensors are read, and no code of the repository is run. On the meta device nothing but their configuration
    is read. Raises UsageError where the package or the weights cannot be had, or weights are missing.
    """
    try:
        from diffusers import AutoencoderKL, SD3Transformer2DModel
    except ImportError as error:
        raise UsageError(
            f"stamo.decoder sd3: the package diffusers cannot be imported ({error}): pip install 'statevla[stamo]', or "
            "use stamo.decoder=vae or pixel"
        ) from error

    def unusable(reason: str) -> str:
        return (
            f"stamo.decoder sd3: no usable weights at {model!r} ({reason}). Accept its licence at the hub and connect "
            f"to the network once, or set stamo.sd3_model to a folder with {VAE}/ and {TRANSFORMER}/ (safetensors), or "
            "use stamo.decoder=vae or pixel"
        )

    with usable(unusable):
        local = require_weights(model, f"{VAE}/config.json", revision)
        vae = _load(AutoencoderKL, model, VAE, revision, local)
        return vae, _load(SD3Transformer2DModel, model, TRANSFORMER, revision, local)


def add_adapters(transformer: nn.Module, rank: int) -> None:
    """Low-rank adapters (LoRA, 2106.09685) of `rank` in every projection of the transformer's attention, which alone
    are trained further: W x + B A x, where B starts at zero, so that at first nothing changes. Raises UsageError
    without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UsageError(
            f"stamo.sd3_lora: the package peft cannot be imported ({error}): pip install 'statevla[stamo]', or set it "
            "to 0, which trains the whole transformer"
        ) from error
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(ADAPTED)), transformer)


def _load(kind: Any, model: str, folder: str, revision: str | None, local: bool) -> Any:
    where = {"subfolder": folder, "revision": revision, "local_files_only": local}
    if torch.get_default_device().type == "meta":
        return kind.from_config(kind.load_config(model, **where))
    found, info = kind.from_pretrained(
        model, torch_dtype=torch.float32, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True,
        **where,
    )  # fmt: skip
    if info["missing_keys"]:
        raise ValueError(f"{folder} lacks weights {sorted(info['missing_keys'])[:4]}")
    return found
