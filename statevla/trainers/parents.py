"""The checkpoints that a run begins from: the one it goes on from, and the one whose frozen encoder a policy takes."""

from pathlib import Path
from typing import Any, Final

from statevla.config import Config, replace
from statevla.data.frames import make_table
from statevla.data.labelled import labelled_episodes
from statevla.runs.files import MODEL, read_tensors
from statevla.runs.layout import LATEST, is_checkpoint
from statevla.runs.state import read_state, require_store
from statevla.systems.system import Parent, System
from statevla.systems.table import config_of, find_system, system_of
from statevla.trainers.setup import differences
from stores.errors import UsageError
from stores.printable import word
from stores.reader import Store

LEARN_FROM_ACTIONS: Final = ("temporal_jepa",)
"""Encoders whose training sees actions."""


def load_parent(system: System, config: Config, folder: Path, store: Store, unfinished: bool = False) -> Parent:
    """Read the parent's checkpoint of a run of `system`.

    Raises UsageError when it is of a system that is no parent, when its model is configured otherwise (all keys at
    once), or when its training is not finished and `unfinished` does not allow that; StaleKey for another store's.
    """
    wanted = system.parents_of(config)
    if not wanted:
        raise UsageError(f"{folder}: {takes_none(system)}")
    state = read_state(folder)
    row = system_of(state, folder)
    if row.name not in wanted:
        other = f", or set {system.section}.encoder={row.name}" if row.name in system.parent else ""
        raise UsageError(
            f"{folder}: {system.name} needs a state encoder of {' or '.join(wanted)}, got a checkpoint of {row.name}; "
            f"run `statevla train --system {wanted[0]}` or name another checkpoint{other}"
        )
    require_store(state, store.content_hash, folder, str(store.root))
    found = differences(config, config_of(state, folder), "parent")
    if found:
        listed = "; ".join(f"{each.key}: {each.mine!r} here, {each.theirs!r} there" for each in found)
        raise UsageError(
            f"{folder}: both share one encoder, but {listed}; leave these keys out, the encoder's are taken over"
        )
    if not unfinished:
        require_finished(folder)
    return Parent(folder, state, read_tensors(folder, state, MODEL))


def seen_beyond(config: Config, parent: Parent, store: Store) -> str | None:
    """What is to be said of an encoder that was trained on actions which are hidden from this run: these are more
    labels than the run's configuration says. None where there are none.
    """
    theirs = parent.state.config
    if config.data.labelled_share >= 1 or parent.state.system not in LEARN_FROM_ACTIONS:
        return None
    table, share, seed = make_table(store, 1), float(theirs["data"]["labelled_share"]), int(theirs["training"]["seed"])
    mine = labelled_episodes(store, table, config.data.labelled_share, config.training.seed)
    more = int((labelled_episodes(store, table, share, seed) & ~mine).sum())
    if not more:
        return None
    return (
        f"the encoder was trained with data.labelled_share={share:g} and training.seed={seed}, on the actions of "
        f"{more} episodes whose actions are hidden here; for no more labels than this run has, train one with its own "
        "share and seed"
    )


def takes_none(system: System) -> str:
    """Why an encoder is refused where the options want none."""
    if not system.parent:
        return f"--encoder is for systems that take one; {system.name} trains one"
    return (
        f"{system.name} takes a state encoder with {system.section}.{system.options.PARENT_FOR} alone, and is "
        "configured otherwise; set one of these, or leave --encoder out"
    )


def require_finished(folder: Path) -> None:
    """Raise UsageError when the run of an encoder's checkpoint has not reached its length."""
    latest = folder.parent / LATEST
    state = read_state(latest if is_checkpoint(latest) else folder)
    if not state.finished:
        raise UsageError(
            f"{folder}: its training stopped at step {state.step} of {state.total_steps}; finish it with "
            f"`statevla train --resume {word(latest)}`, or take it as it is with --unfinished-encoder"
        )


def inherit(config: Config, folder: Path, given: frozenset[str]) -> Config:
    """`config` with the encoder's model as its checkpoint has it, but for the keys in `given`, which a user set."""
    theirs = config_of(read_state(folder), folder)
    taken = {each.key: each.theirs for each in differences(config, theirs, "parent") if each.key not in given}
    return replace(config, taken)


def origin(parent: Parent) -> dict[str, Any]:
    """Where a frozen encoder came from, for the policy's checkpoints."""
    state = parent.state
    return {
        "system": find_system(state.system).name,
        "checkpoint": parent.folder.name,
        "step": state.step,
        "sha256": state.files[MODEL]["sha256"],
    }


def sources(
    row: System, config: Config, folder: Path, run_dir: Path, resume: Path | bool, encoder: Path | None
) -> tuple[Path | None, Path | None]:
    """The checkpoint to go on from, and that of the frozen encoder, which a resumed policy has in its own."""
    latest = folder / LATEST
    if latest.exists() and resume is False:
        raise UsageError(f"{latest} exists already; go on from it with --resume {run_dir}, or use another --run folder")
    source = latest if resume is True else resume or None
    if source is not None and not is_checkpoint(source):
        raise UsageError(f"{source}: nothing to resume; train without --resume first")
    wanted = row.parents_of(config)
    if wanted and encoder is None and source is None:
        raise UsageError(
            f"{row.name} needs the state encoder of a checkpoint of {' or '.join(wanted)}{_asked_by(row)}; "
            f"run `statevla train --system {wanted[0]}` first"
        )
    if not wanted and encoder is not None:
        raise UsageError(takes_none(row))
    return source, encoder if source is None else None


def _asked_by(row: System) -> str:
    text = row.options.PARENT_FOR
    return f", which {row.section}.{text} takes" if text else ""
