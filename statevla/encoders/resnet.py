"""The trunk of ResNet-18 (He et al., 1512.03385) by `transformers`: 11,176,512 parameters."""

from typing import Final

from torch import nn

from statevla.encoders.hub import require_weights, usable

CHANNELS: Final = 512
"""Of its last map."""
GROUP: Final = 16
"""Channels of a group, where groups are normalized."""
SIZES: Final = {
    "embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic",
    "downsample_in_first_stage": False,
}  # fmt: skip
KEPT_COUNT: Final = "num_batches_tracked"
"""Of a batch norm that never averages; some files lack it."""


def make_resnet18(grouped: bool) -> nn.Module:
    """Fresh weights. grouped: with group norms, by which a trunk learns from nothing whose batch norms may not look at
    the batch; otherwise with the batch norms of released weights.
    """
    from transformers import ResNetConfig, ResNetModel

    trunk: nn.Module = ResNetModel(ResNetConfig(**SIZES))
    norms = {name: part.num_features for name, part in trunk.named_modules() if isinstance(part, nn.BatchNorm2d)}
    for name, channels in norms.items() if grouped else ():
        trunk.set_submodule(name, nn.GroupNorm(channels // GROUP, channels))
    return trunk


def load_resnet18(key: str, weights: str) -> nn.Module:
    """Released weights, float32: a name at the hub or a folder (safetensors).

    Raises UsageError, naming the option `key`, where they cannot be had, are incomplete or of another ResNet.
    """
    from transformers import ResNetConfig, ResNetModel

    def unusable(reason: str) -> str:
        return (
            f"{key}: no usable weights of a ResNet-18 at {weights!r} ({reason}). Connect to the network once, name a "
            "folder with a downloaded copy (safetensors), or leave it out: the trunk then begins with fresh weights"
        )

    with usable(unusable):
        local = require_weights(weights)
        told = ResNetConfig.from_pretrained(weights, local_files_only=local)
        other = {name: getattr(told, name) for name, value in SIZES.items() if getattr(told, name) != value}
        if other:
            raise ValueError(f"its configuration has {other}, expected { {name: SIZES[name] for name in other} }")
        found, info = ResNetModel.from_pretrained(
            weights, use_safetensors=True, local_files_only=local, output_loading_info=True
        )
        missing = sorted(name for name in info["missing_keys"] if not name.endswith(KEPT_COUNT))
        if missing:
            raise ValueError(f"it lacks weights {missing[:4]}")
        trunk: nn.Module = found.float()
        return trunk
