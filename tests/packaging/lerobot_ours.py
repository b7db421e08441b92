"""Our side of `tests/packaging/lerobot.sh`.

python lerobot_ours.py expect STORE OUT.npz           what LeRobot must find in the store's export
python lerobot_ours.py compare STORE WRITTEN.npz DB   a store against what LeRobot was given to write
"""

import sys

import numpy as np

from stores.reader import Store


def decibels(a, b):
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def pictures(store, episode):
    columns = store.episode_columns
    first, count = int(columns["first_segment"][episode]), int(columns["segments"][episode])
    left, shown = int(columns["frames"][episode]), []
    for number in range(first, first + count):
        stop = left if number == first + count - 1 else int(store.segment_columns["steps"][number])
        shown.append([camera[:stop] for camera in store.decode_segment(number)])
        left -= stop
    return [np.concatenate(parts) for parts in zip(*shown, strict=True)]


def rows(store, order):
    """Columns of the dataset that the episodes make in that order."""
    columns = store.episode_columns
    found = {"state": [], "action": [], "task": [], "episode": []}
    found |= {f"observation.images.{name}": [] for name in store.spec.camera_names}
    for number, episode in enumerate(order):
        first, frames, steps = (int(columns[name][episode]) for name in ("first_frame", "frames", "steps"))
        action = store.frames["action"][first : first + frames].copy()
        action[steps:] = action[steps - 1]
        found["state"].append(store.frames["robot_state"][first : first + frames])
        found["action"].append(action)
        found["task"].append(np.array([str(columns["instruction"][episode])] * frames))
        found["episode"].append(np.full(frames, number))
        for name, shown in zip(store.spec.camera_names, pictures(store, episode), strict=True):
            found[f"observation.images.{name}"].append(shown)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def main():
    what, root, file, *least = sys.argv[1:]
    store = Store.open(root)
    if what == "expect":
        held = store.episode_columns["split"] != "train"
        np.savez(file, **rows(store, np.argsort(held, kind="stable").tolist()))
        return
    with np.load(file) as wanted:
        found = rows(store, range(len(store.episodes)))
        for name in ("state", "action", "task", "episode"):
            np.testing.assert_array_equal(found[name], wanted[name])
        shown = found["observation.images.top"]
        worst = min(decibels(a, b) for a, b in zip(shown, wanted["top"], strict=True))
    assert worst >= float(least[0]), f"pictures are {worst:.1f} dB, expected {least[0]}"
    print(f"ingested: {len(store.episodes)} episodes, {len(shown)} rows, pictures at least {worst:.1f} dB")


if __name__ == "__main__":
    main()
