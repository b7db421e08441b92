"""Samples/s of the real LeRobot package's loader on a dataset that statevla exported. By hand (docs/benchmarks.md):

python lerobot_rate.py DATASET [WORKERS [BACKEND]]      in LeRobot's environment, which has nothing of ours

A sample is what `statevla bench stream` gives: both cameras at t and t + 1, states, and a chunk of ten actions;
shuffled, in batches of 64. BACKEND: LeRobot's decoder, pyav or torchcodec.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

BATCHES, WARM, TURNS, CHUNK = 8, 2, 3, 10


def main(root, workers, backend):
    info = json.loads((root / "meta/info.json").read_text())
    moments = {key: [0.0, 1 / info["fps"]] for key, each in info["features"].items() if each["dtype"] == "video"}
    moments["observation.state"] = [0.0, 1 / info["fps"]]
    moments["action"] = [step / info["fps"] for step in range(CHUNK)]
    dataset = LeRobotDataset(f"local/{root.name}", root=root, delta_timestamps=moments, video_backend=backend)
    rates = []
    for turn in range(TURNS):
        loader = torch.utils.data.DataLoader(
            dataset, 64, shuffle=True, num_workers=workers, generator=torch.Generator().manual_seed(turn)
        )
        batches = iter(loader)
        for _ in range(WARM):
            next(batches)
        started = time.perf_counter()
        rows = sum(len(next(batches)["action"]) for _ in range(BATCHES))
        rates.append(rows / (time.perf_counter() - started))
        del batches
    told = {"workers": workers, "backend": backend, "rows": len(dataset), "samples/s": statistics.median(rates)}
    print(json.dumps({**told, "turns": rates}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 0, sys.argv[3] if sys.argv[3:] else None)
