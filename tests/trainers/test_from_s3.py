"""A store with features and latents, published to an S3 and trained from there, by the commands a user types."""

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs
from typer.testing import CliRunner

import cli
from statevla.runs import layout
from statevla.systems.table import find_system
from statevla.trainers import kept
from tests.encoders.test_siglip import save_small_siglip
from tests.trainers.micro import SETTINGS, micro_store
from tests.trainers.test_latents import no_pictures


def statevla(*words: object) -> dict[str, Any]:
    done = CliRunner().invoke(cli.app, [*map(str, words), "--json"])
    assert done.exit_code == 0, (done.stderr, done.exception)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def losses(run: Path, system: str) -> list[float]:
    lines = layout.metrics(run, find_system(system).folder).read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_features_and_latents_are_published_and_trained_from(
    tmp_path: Path, s3: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"AWS_ENDPOINT_URL": "endpoint_url", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, option in names.items():
        monkeypatch.setenv(name, s3[option])
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    store, tower = micro_store(tmp_path / "store"), save_small_siglip(tmp_path / "tower")
    url = f"s3://robots/{uuid.uuid4().hex}"
    vision = ("model.vision=siglip", f"model.vision_model={tower}", "model.vision_width=24", "model.patch_size=16")
    keys = (*SETTINGS, *vision, "training.max_steps=4", "data.features=half", "data.remote_cache_gib=0.5")
    given = ("--preset", "tiny", *(word for key in keys for word in ("--set", key)))

    statevla("features", store, "--encoder", tower, "--name", "half", "--device", "cpu")
    statevla("train", "--phase", 1, *given, "--store", store, "--run", tmp_path / "here")
    statevla("latents", store, "--checkpoint", tmp_path / "here", "--device", "cpu")
    statevla("train", "--phase", 2, *given, "--store", store, "--run", tmp_path / "here")
    published = statevla("publish", store, url)
    assert [name.split("/")[0] for name in published["derived"]] == ["features", "latents", "stats"]
    assert statevla("verify", url)["ok"] is True
    rows = {row["folder"].split("/")[0]: row for row in statevla("inspect", url)["derived"]}
    assert rows["features"]["state"] == rows["latents"]["state"] == "finished"
    assert rows["features"]["made_from"]["encoder"] == "siglip"

    no_pictures(monkeypatch)
    monkeypatch.setattr(kept, "compute_latents", None)  # they are there
    statevla("train", "--phase", 1, *given, "--store", url, "--run", tmp_path / "far")
    encoder = tmp_path / "here/checkpoints/phase1_temporal_jepa/checkpoint_latest"
    statevla("train", "--phase", 2, *given, "--store", url, "--run", tmp_path / "far", "--encoder", encoder)
    for system in ("temporal_jepa", "flow_matching"):
        np.testing.assert_array_equal(losses(tmp_path / "far", system), losses(tmp_path / "here", system))
    assert any((tmp_path / "caches/statevla/remote").rglob("*-*"))
