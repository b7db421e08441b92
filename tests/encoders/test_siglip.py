"""The SigLIP loader: its own mean, std and size, frozen, on a small randomly initialised tower saved by the test."""

import io
import json
from logging import StreamHandler
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.utils import logging

from pipelines.derive.features import _load
from statevla.encoders.preprocessing import Preprocessing, resize
from statevla.encoders.siglip import load_siglip
from stores.errors import UsageError

MEAN, STD = [0.5, 0.4, 0.3], [0.5, 0.6, 0.7]


def save_small_siglip(folder: Path, resize: int = 32) -> Path:
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    SiglipVisionModel(config).save_pretrained(folder)
    settings = {"size": {"height": resize, "width": resize}, "resample": 3, "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def images(count: int, side: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def test_features_are_the_towers_on_its_own_normalization(tmp_path: Path) -> None:
    backbone = load_siglip(str(save_small_siglip(tmp_path / "siglip")))
    frames = images(3, 32)
    pixels = (frames.numpy().astype(np.float32) / 255 - MEAN) / STD
    tower = SiglipVisionModel.from_pretrained(tmp_path / "siglip").eval()
    with torch.no_grad():
        expected = tower(pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float()).last_hidden_state
    features = backbone.patch_features(frames)
    assert features.shape == (3, 4, 24)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def test_frozen_and_in_eval_mode(tmp_path: Path) -> None:
    backbone = load_siglip(str(save_small_siglip(tmp_path / "siglip")))
    assert not backbone.tower.training
    assert not any(parameter.requires_grad for parameter in backbone.tower.parameters())
    assert not backbone.patch_features(images(1, 32)).requires_grad


def test_resizing_agrees_with_pil() -> None:
    # Away from 0 and 255, where PIL also clips between its two passes.
    frames = (images(2, 40) // 4 + 96).to(torch.uint8)
    how = Preprocessing(size=56, resample="bicubic", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    got = resize(frames, how).permute(0, 2, 3, 1).numpy()
    for frame, mine in zip(frames.numpy(), got, strict=True):
        wanted = np.asarray(Image.fromarray(frame).resize((56, 56), Image.Resampling.BICUBIC), dtype=np.float32)
        assert np.abs(mine - wanted).max() <= 1.2  # PIL rounds after each of its two passes: 0.5 x 1.25 + 0.5


def test_absent_incomplete_or_contradicting_weights_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match=r"model\.vision=conv"):
        load_siglip(str(tmp_path / "absent"))
    with pytest.raises(UsageError, match="resizes to 64"):
        load_siglip(str(save_small_siglip(tmp_path / "wide", resize=64)))
    folder = save_small_siglip(tmp_path / "short")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    del settings["image_mean"]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match="image_mean"):
        load_siglip(str(folder))


@pytest.mark.parametrize(("file", "content"), [
    ("model.safetensors", b"abc"), ("model.safetensors", b""), ("model.safetensors", None), ("config.json", b"{"),
    ("config.json", b"[]"), ("config.json", b'{"model_type": "siglip_vision_model", "hidden_size": "x"}'),
    ("preprocessor_config.json", b"{"),
])  # fmt: skip
def test_a_broken_file_of_the_model_is_one_clear_error(tmp_path: Path, file: str, content: bytes | None) -> None:
    """content None: cut in half."""
    path = save_small_siglip(tmp_path / "tower") / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    with pytest.raises(UsageError, match=f"{tmp_path}/tower"):
        load_siglip(str(tmp_path / "tower"))
    if file != "preprocessor_config.json" and file != "model.safetensors":
        with pytest.raises(UsageError, match=f"--encoder {tmp_path}/tower|model.vision siglip"):
            _load(str(tmp_path / "tower"), "cpu")


def test_weights_that_have_no_use_are_no_warning(tmp_path: Path) -> None:
    """The pooling head is left out on purpose; a list of its weights reads as if the features were not the model's."""
    folder, told = str(save_small_siglip(tmp_path / "siglip")), io.StringIO()
    handler = StreamHandler(told)
    logging.set_verbosity_warning()
    logging.add_handler(handler)
    try:
        logging.get_logger("transformers").warning("heard")
        load_siglip(folder)
    finally:
        logging.remove_handler(handler)
    assert told.getvalue() == "heard\n"
    assert logging.get_verbosity() == logging.WARNING
