"""``python -m statevla.documents.train --config conf/config.yaml --phase 1``, as the StateVLA documents write it.

Checkpoints go to ``checkpoints/phase1_temporal_jepa/`` or ``phase2_flow_matching/`` in the folder where it is called.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from statevla.config.load import read_keys
from statevla.documents.flags import Flag, call, fail, parse, words
from statevla.runs.stores import STORES
from stores.errors import StateVLAError, StoreMissing, UsageError
from stores.manifest import MANIFEST
from stores.printable import word

FLAGS: Final = (
    Flag("config", "YAML file with the documents' keys", ("--config", "{}")),
    Flag("phase", "1: temporal JEPA; 2: flow-matching policy", ("--phase", "{}"), choices=("1", "2")),
    Flag("phase1_checkpoint", "state encoder for phase 2", ("--encoder", "{}")),
    Flag("checkpoint", "go on from here", ("--resume", "{}")),
    Flag("batch_size", "transitions a step", ("--set", "training.batch_size={}")),
    Flag("store", "store folder or URL; not given: by data.data_directory"),
)


def run(argv: Sequence[str] | None = None) -> None:
    """Train a phase."""
    given = parse("statevla.documents.train", "Train a phase of StateVLA.", FLAGS, argv)
    try:
        keys = read_keys(Path(given["config"])) if "config" in given else {}
        store = given.get("store") or find_store(keys)
        if store is not None:
            compare(keys, store)
    except StateVLAError as error:
        fail(error)
    fresh = [] if "checkpoint" in given else ["--run", "."]
    call(["train", *words(FLAGS, given), *fresh, *([] if store is None else ["--store", store])])


def find_store(keys: dict[str, Any]) -> str | None:
    """The store of ``data.data_directory``: that folder itself, or the one ingested from it under its name.

    None where the configuration names none. Raises StoreMissing with the command that makes it.
    """
    directory = keys.get("data.data_directory")
    if keys.get("data.store") is not None or directory is None:
        return None
    suite = Path(str(directory)).name
    for folder in (Path(str(directory)), STORES / suite):
        if (folder / MANIFEST).is_file():
            return str(folder)
    split = f" --train-split {keys['data.train_split']}" if "data.train_split" in keys else ""
    raise StoreMissing(
        f"data.data_directory: no store made from {directory} yet; run `statevla ingest {suite} "
        f"--source {word(directory)}{split}` and `statevla stats`, or name one with --store"
    )


def compare(keys: dict[str, Any], store: str) -> None:
    """What the configuration says of the data against what the store holds.

    Raises UsageError for another split, which trains on other episodes; says on stderr where there is more than said.
    """
    from stores.reader import Store

    opened = Store.open(store)
    mine, theirs = keys.get("data.train_split"), opened.manifest.config.get("train_split")
    if mine is not None and theirs is not None and float(mine) != float(theirs):
        raise UsageError(f"data.train_split: {mine}, but {store} was ingested with {theirs}; ingest again, or say that")
    columns = opened.episode_columns
    instructions = [str(text) for text in columns["instruction"]]
    most = max(instructions.count(text) for text in set(instructions))
    longest = max(int(steps) for steps in columns["steps"])
    for key, has, what in (
        ("data.demos_per_task", most, "demonstrations of one task"),
        ("data.max_len_data", longest, "steps in one demonstration"),
    ):
        if key in keys and has > int(keys[key]):
            print(f"{key}: {keys[key]}, but {store} has up to {has} {what}; all of them are used", file=sys.stderr)


if __name__ == "__main__":
    run()
