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


@pytest.mark.parametrize("shape", [(128, 128), (84, 112), (256, 256), (240, 320)])
@pytest.mark.parametrize(
    "processor", [siglip(224, 3), siglip(96, 2), bit(64, 56)], ids=["bicubic", "bilinear", "shortest edge and crop"]
)
def test_pixels_are_those_of_the_image_processor(tmp_path: Path, processor: Any, shape: tuple[int, int]) -> None:
    assert off(tmp_path, processor, pictures(*shape)).max() < LEVEL / 100


def test_where_columns_come_first_a_level_may_be_off(tmp_path: Path) -> None:
    images = pictures(300, 256) // 4 + 96  # away from the ends, where the first pass clips
    assert LEVEL / 2 < off(tmp_path, siglip(224, 3), images).max() < 1.5 * LEVEL


def off(folder: Path, processor: Any, images: torch.Tensor) -> torch.Tensor:
    """How far the pixels are from the processor's, of [0, 1]."""
    processor.save_pretrained(folder)
    how = read_preprocessing(folder / "preprocessor_config.json")
    mean, std = affine(how)
    mine = (resize(images, how) - mean) / std
    wanted = torch.stack([processor(image.numpy(), return_tensors="pt")["pixel_values"][0] for image in images])
    assert mine.shape == wanted.shape
    return (mine - wanted).abs() * torch.tensor(how.std)[:, None, None]


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


def test_a_broken_file_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    good = {"size": {"height": 32, "width": 32}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    path.write_text(json.dumps({**good, "size": {"height": 32, "width": 32, "longest_edge": None}}))
    assert read_preprocessing(path).side == 32
    for change, match in (
        ({"size": {"longest_edge": 32}}, "size: expected a square .*'longest_edge': 32"),
        ({"size": None}, "size: expected a square"),
        ({"size": [32, 32]}, "size: expected a square"),
        ({"size": {"height": "32", "width": "32"}}, "size: expected a square"),
        ({"size": {"height": 0, "width": 0}}, "size: expected a square"),
        ({"size": {"shortest_edge": 32}, "do_center_crop": True}, "crop_size within size"),
        ({"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": {"width": 28}}, "crop_size within size"),
        ({"resample": None}, "resample in"),
        ({"resample": [3]}, "resample in"),
        ({"rescale_factor": None}, "divided by 255 and normalized, got rescale_factor None"),
        ({"rescale_factor": "x"}, "divided by 255"),
        ({"image_mean": 0.5}, "image_mean: expected three numbers, one a channel, got 0.5"),
        ({"image_mean": [0.5, None, 0.5]}, "image_mean: expected three numbers"),
        ({"image_std": None}, "image_std: expected three numbers"),
        ({"image_std": [0.5, 0.5]}, "image_std: expected three numbers"),
        ({"image_std": [0.5, 0.5, float("nan")]}, "image_std: expected three numbers"),
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(UsageError, match=match) as caught:
            read_preprocessing(path)
        assert str(path) in str(caught.value)
    for text, match in (
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "expected an object"),
        ("\xff", "not JSON"),
    ):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(UsageError, match=match):
            read_preprocessing(path)
