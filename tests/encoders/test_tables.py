"""A toy row in each table of encoders runs the whole way: text into a store, features into a model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.derive.stats import compute_statistics
from pipelines.ingest.config import IngestConfig
from pipelines.ingest.driver import ingest
from statevla.encoders import table, vision
from statevla.encoders.backbone import FrozenVision
from statevla.encoders.text import TextEncoder
from statevla.encoders.vision import load_backbone
from statevla.policies.policy import Policy
from statevla.runs import layout
from statevla.trainers.trainer import train
from stores.errors import StaleKey, UsageError
from stores.reader import Store
from tests.models.build import micro
from tests.pipelines.make_hdf5 import write_suite
from tests.trainers.micro import micro_config, micro_store


def letters(texts: Sequence[str]) -> np.ndarray:
    """How often each letter comes."""
    counts = [[text.count(chr(97 + letter)) for letter in range(26)] for text in texts]
    return np.array(counts, np.float32).reshape(-1, 26)


class Blocks:
    """Mean colour of each of 2 x 2 blocks, as patch features of width 3."""

    name = "blocks"

    def __init__(self, revision: str = "1") -> None:
        self.revision = revision

    def patch_features(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.permute(0, 3, 1, 2).float() / 255
        return torch.nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(2).transpose(1, 2)

    def to(self, device: object, dtype: object = None) -> "Blocks":
        return self


def test_a_text_encoder_of_another_width_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(table.TEXT, "letters", lambda model: TextEncoder("letters", "1", 26, letters))
    write_suite(tmp_path / "source", tasks=2, demos=5)
    ingest(IngestConfig("toy", tmp_path / "source", tmp_path / "store", language="letters", train_split=0.8))
    compute_statistics(tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert store.spec.language_width == 26
    assert store.manifest.config["language"] == {"encoder": "letters", "revision": "1"}
    np.testing.assert_array_equal(store.language.vector("put the cup 0 away"), letters(["put the cup 0 away"])[0])
    settings = micro_config("training.max_steps=2", "model.image_size=16", "model.patch_size=8")
    train("temporal_jepa", settings, tmp_path / "store", tmp_path / "run")
    policy = Policy.untrained(settings, store)
    assert policy.model.encoder.tokenizer.language.in_features == 26  # type: ignore[attr-defined]


def test_a_vision_backbone_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vision.VISION, "blocks", lambda model: Blocks(model))
    store = micro_store(tmp_path / "store")
    told = ("model.vision=blocks", "model.vision_model=first", "model.vision_width=3", "model.patch_size=16")
    settings = micro_config("training.max_steps=2", *told)
    assert isinstance(load_backbone(settings.model), FrozenVision)
    train("temporal_jepa", settings, store, tmp_path / "run")
    encoder = layout.checkpoints(tmp_path / "run", "phase1_temporal_jepa") / layout.LATEST
    train("flow_matching", settings, store, tmp_path / "run", encoder_checkpoint=encoder)
    trained = layout.checkpoints(tmp_path / "run", "phase2_flow_matching") / layout.LATEST
    assert Policy.load(trained).chunk == settings.model.action_seq_len
    monkeypatch.setitem(vision.VISION, "blocks", lambda model: Blocks("2"))
    with pytest.raises(StaleKey, match="trained with the vision backbone"):
        Policy.load(trained)


def test_unknown_names_say_which_there_are() -> None:
    with pytest.raises(UsageError, match="--language bert: expected one of clip, minilm, hashed"):
        table.load_text_encoder("bert")
    with pytest.raises(UsageError, match=r"model\.vision: expected one of conv, siglip, dinov2, got 'vit'"):
        load_backbone(micro("model.vision=vit").model)
