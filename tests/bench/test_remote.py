"""The measurement of a far store: the same epochs from folder, HTTP and cache."""

import json
from pathlib import Path

import pytest

from statevla.bench import remote
from statevla.bench.far import serve_folder
from stores.errors import UsageError
from tests.stores.make_store import make_tiny_store


def test_every_contender_has_a_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_store(tmp_path / "store", episodes=8, frames=20, image=16)
    monkeypatch.setattr(remote, "apart", lambda serve, *arguments, cores: _here(serve, *arguments))
    monkeypatch.setattr(remote, "LATENCY", 0.0)
    monkeypatch.setitem(__import__("sys").modules, "moto.server", None)
    result = remote.bench_remote(tmp_path / "store", batch_size=8, repeats=1, threads=1)
    assert set(result["details"]["ratios"]) == {
        "folder", "http", "http, kept", "http, fetched alone", "folder, sequential", "http, sequential",
    }  # fmt: skip
    assert result["details"]["s3"].startswith("not measured")
    assert result["ratio"] == result["ours"] / result["limit"] > 0
    json.dumps(result, allow_nan=False)
    with serve_folder(tmp_path / "store") as server, pytest.raises(UsageError, match="name a folder"):
        remote.bench_remote(server.url)


class _here:
    def __init__(self, serve: object, folder: Path, latency: float) -> None:
        self.inner = serve_folder(folder, latency)

    def __enter__(self) -> str:
        return self.inner.__enter__().url

    def __exit__(self, *error: object) -> None:
        self.inner.__exit__(None, None, None)
