"""Samples/s of the real robomimic package's loader on LIBERO's HDF5 demonstrations. By hand (docs/benchmarks.md):

python robomimic_rate.py FOLDER [WORKERS [LENGTH [CACHE]]]      where robomimic can be imported

python robomimic_rate.py --plain FOLDER OUT     copies the files without compression, which it reads many times faster

A sample is what `statevla bench stream` gives: both cameras and the robot's state at t and t + 1. LENGTH: of the
sequence that robomimic reads, 2 for the pair alone, 10 for a chunk of ten actions too (its sequences hold every
picture between). CACHE: its `hdf5_cache_mode`, `none` (default), `low_dim` or `all`. Shuffled, in batches of 64.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import h5py
import torch

CAMERAS, STATE = ["agentview_rgb", "eye_in_hand_rgb"], ["ee_states", "gripper_states"]
BATCHES, WARM, TURNS = 16, 2, 3


def copy_plain(folder, out):
    out.mkdir(parents=True)
    for file in sorted(folder.glob("*.hdf5")):
        with h5py.File(file) as source, h5py.File(out / file.name, "w") as target:

            def copy(name, item, target=target):
                made = (
                    target.create_dataset(name, data=item[()])
                    if isinstance(item, h5py.Dataset)
                    else target.require_group(name)
                )
                made.attrs.update(item.attrs)

            source.visititems(copy)
            target.attrs.update(source.attrs)


def main(folder, workers, length, cache):
    from robomimic.utils import obs_utils
    from robomimic.utils.dataset import SequenceDataset

    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"rgb": CAMERAS, "low_dim": STATE}})
    files = sorted(folder.glob("*.hdf5"))
    tasks = [
        SequenceDataset(
            str(file), (*CAMERAS, *STATE), ("actions",), seq_length=length, hdf5_cache_mode=cache,
            hdf5_use_swmr=False, load_next_obs=False, get_pad_mask=True,
        )
        for file in files
    ]  # fmt: skip
    dataset, rates = torch.utils.data.ConcatDataset(tasks), []
    for turn in range(TURNS):
        loader = torch.utils.data.DataLoader(
            dataset, 64, shuffle=True, num_workers=workers, generator=torch.Generator().manual_seed(turn)
        )
        batches = iter(loader)
        for _ in range(WARM):
            next(batches)
        started = time.perf_counter()
        rows = sum(len(next(batches)["actions"]) for _ in range(BATCHES))
        rates.append(rows / (time.perf_counter() - started))
        del batches
    told = {"workers": workers, "length": length, "cache": cache, "rows": len(dataset)}
    print(json.dumps({**told, "samples/s": statistics.median(rates), "turns": rates}))


if __name__ == "__main__":
    if sys.argv[1] == "--plain":
        copy_plain(Path(sys.argv[2]), Path(sys.argv[3]))
        sys.exit()
    torch.set_num_threads(1)
    given = sys.argv[2:]
    main(
        Path(sys.argv[1]),
        int(given[0]) if given else 0,
        int(given[1]) if given[1:] else 2,
        None if not given[2:] or given[2] == "none" else given[2],
    )
