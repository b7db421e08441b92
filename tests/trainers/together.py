"""Starting ranks in tests, and what their runs left."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from statevla.runs import layout
from statevla.systems.table import find_system
from statevla.trainers.launch import environment, free_port

REPOSITORY = Path(__file__).parents[2]


def run_ranks(world: int, jobs: Sequence[dict[str, Any]], folder: Path, limit: float = 300) -> list[tuple[int, str]]:
    """Exit status and stderr of every rank. Ranks that wait for one another are ended after `limit` seconds."""
    folder.mkdir(exist_ok=True)
    listed = folder / f"jobs_{world}.json"
    listed.write_text(json.dumps(list(jobs)))
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.trainers.ranks_worker", str(listed)],
            env={**environment(rank, world, port), "OMP_NUM_THREADS": "1"}, cwd=REPOSITORY,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        return [(process.wait(), text) for process in ranks for text in [process.communicate(timeout=limit)[1]]]
    finally:
        for process in ranks:
            process.kill()


def checkpoint(run: Path, system: str, name: str = layout.LATEST) -> Path:
    return layout.checkpoints(run, find_system(system).folder) / name


def weights(run: Path, system: str) -> dict[str, torch.Tensor]:
    return load_file(checkpoint(run, system) / "model.safetensors")


def lines(run: Path, system: str, kind: str) -> list[dict[str, Any]]:
    found = map(json.loads, layout.metrics(run, find_system(system).folder).read_text().splitlines())
    return [line for line in found if line["kind"] == kind]


def largest_difference(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert mine.keys() == theirs.keys()
    return max(float((mine[name].double() - theirs[name].double()).abs().max()) for name in mine)
