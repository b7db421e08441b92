"""Pictures reach a tower as its own image processor would make them: the processors of `transformers` say so."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BitImageProcessorPil, SiglipImageProcessorPil

from statevla.encoders.preprocessing import affine, read_preprocessing, resize
from stores.errors import UsageError

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LEVEL = 1 / 255


def pictures(height: int, width: int) -> torch.Tensor:
    """Noise, edges and the ends of the range, where rounding and clipping show."""
    values = np.random.default_rng(0).integers(0, 256, (4, height, width, 3), dtype=np.uint8)
    values[1] = np.where(values[1] > 127, 255, 0)
    values[2, :, : width // 2], values[2, :, width // 2 :] = 0, 255
    values[3] = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]
    return torch.from_numpy(values)


def siglip(size: int, resample: int) -> Any:
    return SiglipImageProcessorPil(
        size={"height": size, "width": size}, resample=resample, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def bit(size: int, crop: int) -> Any:
    return BitImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": crop, "width": crop}, do_center_crop=True, resample=3,
        image_mean=MEAN, image_std=STD, do_convert_rgb=True,
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(128, 128), (84, 112), (300, 256), (256, 256)])
@pytest.mark.parametrize(
    "processor", [siglip(224, 3), siglip(96, 2), bit(64, 56)], ids=["bicubic", "bilinear", "shortest edge and crop"]
)
def test_pixels_are_those_of_the_image_processor(tmp_path: Path, processor: Any, shape: tuple[int, int]) -> None:
    processor.save_pretrained(tmp_path)
    how = read_preprocessing(tmp_path / "preprocessor_config.json")
    images = pictures(*shape)
    if shape[0] != shape[1]:
        images = images // 4 + 96  # away from the ends: Pillow's passes may come in the other order, and clip between
    mean, std = affine(how)
    mine = (resize(images, how) - mean) / std
    wanted = torch.stack([processor(image.numpy(), return_tensors="pt")["pixel_values"][0] for image in images])
    assert mine.shape == wanted.shape
    off = (mine - wanted).abs() * torch.tensor(how.std)[:, None, None]  # in pixels of [0, 1]
    # A sum at a half may be rounded to the other level, and the second pass makes two of that at most.
    assert off.max() <= 2 * LEVEL * 1.001
    assert (off > LEVEL * 1.001).float().mean() < 1e-3
    if shape[0] == shape[1]:
        assert (off > LEVEL / 2).float().mean() < 0.02


def test_what_cannot_be_reproduced_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    good = {"size": {"height": 32, "width": 32}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    for change, match in (
        ({"resample": 1}, "resample"),
        ({"do_normalize": False}, "do_normalize"),
        ({"rescale_factor": 1 / 127.5}, "divided by 255"),
        ({"size": {"shortest_edge": 64}}, "crop_size"),
        ({"size": {"height": 32, "width": 48}}, "square"),
        ({"image_std": [0.0, 1.0, 1.0]}, "positive stds"),
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(UsageError, match=match):
            read_preprocessing(path)
