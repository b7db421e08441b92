"""Tokenizer: order of tokens, pixels, patches, SigLIP projection."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from statevla.models.pixels import prepare_pixels
from statevla.models.standardize import Standardize
from statevla.models.stems import ConvPatchStem
from statevla.models.tokenizer import Tokenizer, TowerVision
from stores.errors import ObsSpecMismatch, UsageError
from tests.models.build import micro, normalization, observations


class Recorded:
    """A backbone whose features are the image's mean brightness times a fixed matrix."""

    def patch_features(self, images: torch.Tensor) -> torch.Tensor:
        means = images.float().reshape(len(images), -1).mean(dim=1) / 255
        return means[:, None, None] * torch.linspace(-1, 1, 4 * 12).reshape(1, 4, 12)


SIGLIP = ("model.vision=siglip", "model.vision_model=recorded", "model.vision_width=12")


def test_pixels_without_resizing_run_from_minus_one_to_one() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(1, 4, 4, 3).contiguous()
    pixels = prepare_pixels(images, 4)
    assert pixels.shape == (1, 3, 4, 4)
    expected = torch.tensor([-1.0, -0.6, 1.0])[None, :, None, None].expand(1, 3, 4, 4)
    torch.testing.assert_close(pixels, expected)


def bilinear(image: np.ndarray, size: int) -> np.ndarray:
    """Plain bilinear interpolation at pixel centres, edges repeated; for enlarging [H, W]."""
    height, width = image.shape
    out = np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            y, x = (row + 0.5) * height / size - 0.5, (column + 0.5) * width / size - 0.5
            top, left = math.floor(y), math.floor(x)
            for dy in (0, 1):
                for dx in (0, 1):
                    weight = (1 - abs(y - top - dy)) * (1 - abs(x - left - dx))
                    source = image[min(max(top + dy, 0), height - 1), min(max(left + dx, 0), width - 1)]
                    out[row, column] += weight * source
    return out


def test_enlarging_is_bilinear() -> None:
    images = torch.randint(0, 256, (1, 5, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = prepare_pixels(images, 8).numpy()
    for channel in range(3):
        expected = bilinear(images[0, :, :, channel].numpy().astype(np.float64), 8) / 127.5 - 1
        np.testing.assert_allclose(pixels[0, channel], expected, atol=1e-5)


def test_halving_is_antialiased() -> None:
    """A one-pixel checkerboard becomes grey inside; picking single pixels would keep it black or white."""
    board = ((torch.arange(16)[:, None] + torch.arange(16)) % 2 * 255).to(torch.uint8)
    pixels = prepare_pixels(board[None, :, :, None].expand(1, 16, 16, 3).contiguous(), 8)
    assert pixels[..., 2:-2, 2:-2].abs().max() < 0.01


def test_tokens_are_what_the_design_lists() -> None:
    config = micro().model
    tokenizer = Tokenizer(config, normalization())
    obs = observations(3, size=32)
    tokens = tokenizer(obs)
    assert tokens.shape == (3, 2 * 4 + 3, 32)
    state = dict(tokenizer.named_parameters())
    text = obs.language / obs.language.norm(dim=1, keepdim=True) * 512**0.5
    language = text @ state["language.weight"].T + state["language.bias"]
    torch.testing.assert_close(tokens[:, 0], language + state["position_language"][0] + state["modality"][0])
    hidden = Standardize("robot_state", normalization())(obs.robot_state) @ state["robot.0.weight"].T
    hidden = hidden + state["robot.0.bias"]
    gelu = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    robot = gelu @ state["robot.2.weight"].T + state["robot.2.bias"]
    torch.testing.assert_close(
        tokens[:, 1], robot + state["position_robot"][0] + state["modality"][1], rtol=1e-4, atol=1e-5
    )
    for camera, first in ((0, 2), (1, 6)):
        weight = state[f"vision.cameras.{camera}.weight"].flatten(1)
        for patch in range(4):
            row, column = divmod(patch, 2)
            crop = obs.images[camera][:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            flat = (crop.float() / 127.5 - 1).permute(0, 3, 1, 2).flatten(1)
            expected = flat @ weight.T + state[f"vision.cameras.{camera}.bias"]
            expected = expected + state["position_cameras"][camera, patch] + state["modality"][2 + camera]
            torch.testing.assert_close(tokens[:, first + patch], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(tokens[:, -1], state["cls"].expand(3, -1))


def test_stages_stand_where_the_patch_convolution_stood() -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(micro("model.stem=conv").model, normalization())
    obs = observations(3, size=48)
    tokens = tokenizer(obs)
    assert tokens.shape == (3, 2 * 4 + 3, 32)
    for camera, frames in enumerate(obs.images):
        alone = ConvPatchStem(32, 16, 32)
        prefix = f"vision.cameras.{camera}."
        alone.load_state_dict(
            {
                name.removeprefix(prefix): value
                for name, value in tokenizer.state_dict().items()
                if name.startswith(prefix)
            }
        )
        place = tokenizer.position_cameras[camera] + tokenizer.modality[2 + camera]
        expected = alone(prepare_pixels(frames, 32)) + place
        torch.testing.assert_close(tokens[:, 2 + 4 * camera : 6 + 4 * camera], expected)


def test_siglip_projects_each_cameras_features() -> None:
    tokenizer = Tokenizer(micro(*SIGLIP).model, None, Recorded())
    vision = tokenizer.vision
    assert isinstance(vision, TowerVision)
    obs = observations(2)
    features = vision.features(obs.images)
    assert features.shape == (2, 2, 4, 12)
    torch.testing.assert_close(features[:, 1], Recorded().patch_features(obs.images[1]))
    weight, bias = vision.cameras[1].weight, vision.cameras[1].bias
    torch.testing.assert_close(
        vision.project(features.half())[:, 1], features[:, 1] @ weight.T + bias, atol=2e-3, rtol=0
    )
    assert tokenizer(obs).shape == (2, 11, 32)


def test_the_backbone_is_no_part_of_the_module() -> None:
    tower = torch.nn.Linear(2, 2)

    class Tower:
        def __init__(self) -> None:
            self.tower = tower

        def patch_features(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(images), 4, 12)

    tokenizer = Tokenizer(micro(*SIGLIP).model, None, Tower())
    assert not any(parameter is tower.weight for parameter in tokenizer.parameters())
    assert not any("tower" in name for name in tokenizer.state_dict())


def test_missing_or_foreign_backbone_is_named() -> None:
    obs = observations(2)
    with pytest.raises(UsageError, match="without its backbone"):
        Tokenizer(micro(*SIGLIP).model)(obs)
    with pytest.raises(UsageError, match=r"\(4, 12\)"):
        Tokenizer(micro("model.vision=siglip", "model.vision_model=recorded").model, None, Recorded())(obs)


def test_one_camera_is_refused() -> None:
    obs = observations(2)
    with pytest.raises(ObsSpecMismatch, match="expected 2 cameras"):
        Tokenizer(micro().model)(dataclasses.replace(obs, images=obs.images[:1]))
