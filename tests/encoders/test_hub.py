"""A model that cannot be had is told at once: one question to the hub, none where the answer lies here."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from statevla.encoders import hub
from statevla.encoders.table import load_text_encoder
from stores.errors import UsageError

asked: list[str] = []


class Offline:
    def model_info(self, model: str, timeout: float) -> Any:
        asked.append(model)
        assert timeout <= 5
        raise ConnectionError("name or service not known")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    asked.clear()
    monkeypatch.setattr(huggingface_hub, "HfApi", Offline)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda model, name: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def test_clip_offline_asks_once_and_names_the_ways_out() -> None:
    with pytest.raises(UsageError, match=r"no usable CLIP text weights.*does not answer.*minilm.*hashed"):
        load_text_encoder("clip")
    assert asked == ["openai/clip-vit-base-patch32"]


def test_told_to_be_offline_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE"):
        hub.require_weights("some/model")
    assert asked == []


def test_a_folder_and_a_cached_model_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.require_weights(str(tmp_path)) is True
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda model, name: f"/cache/{name}")
    assert hub.require_weights("some/model") is True
    assert asked == []
