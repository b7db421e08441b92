"""CLIP's text tower through from_pretrained, on a small randomly initialised model saved by the test."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from statevla.encoders.table import load_text_encoder
from stores.errors import UsageError

START, END = "<|startoftext|>", "<|endoftext|>"


def save_small_clip(folder: Path, projection: int = 512) -> Path:
    """A two-layer CLIP text tower with a byte-level vocabulary and no merges."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    folder.mkdir()
    tokenizer = CLIPTokenizer(vocab={token: number for number, token in enumerate(vocabulary)}, merges=[])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=40, projection_dim=projection,
        bos_token_id=vocabulary.index(START), eos_token_id=vocabulary.index(END), pad_token_id=vocabulary.index(END),
    )  # fmt: skip
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_clip(tmp_path_factory.mktemp("clip") / "tiny")


def test_projected_embedding_of_each_text(clip_folder: Path) -> None:
    encoder = load_text_encoder("clip", str(clip_folder))
    texts = ["pick the milk", "pick the soup up"]
    vectors = encoder.encode(texts)
    assert vectors.shape == (2, 512)
    assert vectors.dtype == np.float32
    tower = CLIPTextModelWithProjection.from_pretrained(clip_folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    for text, vector in zip(texts, vectors, strict=True):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tower.config.bos_token_id
        assert ids[-1] == tower.config.eos_token_id
        with torch.no_grad():
            hidden = tower.text_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        np.testing.assert_allclose(vector, (tower.text_projection.weight @ hidden).detach().numpy(), atol=1e-5)


def test_a_vector_does_not_depend_on_its_company(clip_folder: Path) -> None:
    encoder = load_text_encoder("clip", str(clip_folder))
    alone = encoder.encode(["pick the milk"])
    together = encoder.encode(["a much longer instruction", "pick the milk"])
    np.testing.assert_array_equal(alone[0], together[1])


def test_identity_names_the_weights_not_the_machine(clip_folder: Path, tmp_path: Path) -> None:
    first = load_text_encoder("clip", str(clip_folder))
    assert first.id == "clip:tiny"
    assert first.revision.startswith("sha256:")
    other = save_small_clip(tmp_path / "tiny")
    weights = other / "model.safetensors"
    assert load_text_encoder("clip", str(other)).revision == first.revision
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert load_text_encoder("clip", str(other)).revision != first.revision


def test_errors_name_the_offline_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match="--language hashed"):
        load_text_encoder("clip", str(tmp_path / "absent"))


def test_another_width_is_taken_and_missing_weights_are_refused(tmp_path: Path) -> None:
    narrow = save_small_clip(tmp_path / "narrow", projection=256)
    assert load_text_encoder("clip", str(narrow)).width == 256
    config = json.loads((narrow / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (narrow / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="lacks text weights"):
        load_text_encoder("clip", str(narrow))


@pytest.mark.parametrize(("file", "content"), [
    ("model.safetensors", b"abc"), ("config.json", b"[]"), ("config.json", b"{"), ("tokenizer.json", b"{"),
    ("tokenizer.json", b"[]"),
])  # fmt: skip
def test_a_broken_file_of_the_model_is_one_clear_error(tmp_path: Path, file: str, content: bytes) -> None:
    folder = save_small_clip(tmp_path / "clip")
    (folder / file).write_bytes(content)
    with pytest.raises(UsageError, match=f"--language clip: no usable CLIP text weights at '{folder}'"):
        load_text_encoder("clip", str(folder))
