"""The real LeRobot package's side of `tests/packaging/lerobot.sh`; runs in its environment, which has nothing of ours.

python lerobot_peer.py open DATASET EXPECTED.npz LEAST_DB     what statevla exported, read by LeRobot
python lerobot_peer.py write DATASET EXPECTED.npz video|image   what LeRobot writes, for statevla to ingest
"""

import os
import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

TASKS = ("put the cup away", "open the drawer")
SIDE = 64


def decibels(a, b):
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def pictures(frame, key):
    return np.moveaxis((frame[key].numpy() * 255).round().astype(np.uint8), 0, -1)


def open_exported(root, expected, least):
    dataset = LeRobotDataset(f"local/{root.name}", root=root, video_backend=os.environ.get("VIDEO_BACKEND"))
    wanted = np.load(expected)
    assert len(dataset) == len(wanted["action"]), (len(dataset), len(wanted["action"]))
    worst = float("inf")
    for number in range(len(dataset)):
        row = dataset[number]
        np.testing.assert_array_equal(row["observation.state"].numpy(), wanted["state"][number])
        np.testing.assert_array_equal(row["action"].numpy(), wanted["action"][number])
        assert row["task"] == str(wanted["task"][number]), (number, row["task"])
        assert int(row["episode_index"]) == int(wanted["episode"][number])
        for key in (key for key in wanted.files if key.startswith("observation.images.")):
            worst = min(worst, decibels(pictures(row, key), wanted[key][number]))
    assert worst >= least, f"frames are {worst:.1f} dB, expected {least}"
    stats = dataset.meta.stats["action"]
    np.testing.assert_allclose(np.ravel(stats["mean"]), wanted["action"].mean(axis=0), atol=1e-4)
    print(f"opened: {dataset.num_episodes} episodes, {len(dataset)} rows, frames at least {worst:.1f} dB")


def write_dataset(root, expected, kind):
    features = {
        "observation.images.top": {"dtype": kind, "shape": (SIDE, SIDE, 3), "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["a", "b"]},
    }
    dataset = LeRobotDataset.create(f"local/{root.name}", 10, features, root=root, use_videos=kind == "video")
    rng = np.random.default_rng(0)
    rows = {"state": [], "action": [], "task": [], "episode": [], "top": []}
    across, down = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    for episode in range(4):
        for moment in range(12 + episode):
            picture = np.stack([across * 3, down * 3, np.full_like(down, 20 * episode + 5 * moment)], -1).astype(
                np.uint8
            )
            row = {"state": rng.normal(size=3).astype(np.float32), "action": rng.normal(size=2).astype(np.float32)}
            row |= {"task": TASKS[episode % 2], "episode": episode, "top": picture}
            for name, value in row.items():
                rows[name].append(value)
            frame = {"observation.images.top": picture, "observation.state": row["state"], "action": row["action"]}
            dataset.add_frame({**frame, "task": row["task"]})
        dataset.save_episode()
    if hasattr(dataset, "finalize"):
        dataset.finalize()
    np.savez(expected, **{name: np.array(values) for name, values in rows.items()})
    print(f"wrote: {dataset.meta.total_episodes} episodes with pictures as {kind}")


if __name__ == "__main__":
    what, root, expected, last = sys.argv[1:]
    if what == "open":
        open_exported(Path(root), expected, float(last))
    else:
        write_dataset(Path(root), expected, last)
