"""What `statevla train` does: what was asked for and the defaults of the rest, as one job, said before it starts.

A new run takes its configuration from recipe, preset, file and ``--set``; a policy's takes over the model of its
encoder. A resumed run takes everything from its checkpoint.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from statevla.config import PRESETS, Config, replace
from statevla.config.load import Request, flatten, parse_overrides, read_keys, with_sections
from statevla.config.options import keys
from statevla.recipes import load_recipe
from statevla.runs.layout import LATEST, RUNS, checkpoints, is_checkpoint, run_of
from statevla.runs.state import read_state
from statevla.runs.stores import STORES, find_store, recorded
from statevla.systems.find import find_parent, resolve, store_to_train_on, to_resume
from statevla.systems.system import System
from statevla.systems.table import SYSTEMS, config_of, find_system, sections
from statevla.trainers.outcome import TrainSummary
from statevla.trainers.parents import inherit, takes_none
from statevla.trainers.said import require_used
from statevla.trainers.trainer import train
from stores.errors import UsageError
from stores.manifest import content_hash
from stores.progress import Progress


@dataclass(frozen=True)
class TrainingJob:
    """One call of `train`. parent: checkpoint of the frozen encoder. resume: the checkpoint to go on from."""

    system: System
    config: Config
    store: Path | str
    run: Path
    parent: Path | None = None
    resume: Path | None = None

    @property
    def text(self) -> str:
        """For people: what was chosen."""
        chosen = f"{self.system.name}: store {self.store}, run {self.run}"
        if self.parent is not None:
            chosen += f", state encoder {self.parent}"
        return chosen if self.resume is None else f"{chosen}, goes on from {self.resume}"

    def start(self, progress: Progress | None = None, unfinished_encoder: bool = False) -> TrainSummary:
        """Train."""
        return train(
            self.system, self.config, self.store, self.run, resume=self.resume or False,
            encoder_checkpoint=self.parent, progress=progress, unfinished_encoder=unfinished_encoder,
        )  # fmt: skip


def ask(
    system: System | None,
    preset: str | None = None,
    recipe: str | None = None,
    file: Path | None = None,
    overrides: tuple[str, ...] = (),
) -> Request:
    """Recipe or preset, then the file's keys, then the overrides; without a system, what holds for all.

    Raises UsageError.
    """
    request = Request(preset, {})
    if recipe is not None:
        if preset is not None:
            raise UsageError(f"--recipe {recipe} says the preset too; leave out --preset {preset}")
        found = load_recipe(recipe)
        unknown = sorted(set(found.systems) - {row.name for row in SYSTEMS})
        if unknown:
            known = ", ".join(row.name for row in SYSTEMS)
            raise UsageError(f"recipe {recipe}: systems: expected some of {known}, got {', '.join(unknown)}")
        request = found.request("" if system is None else system.name)
    given = {} if file is None else read_keys(file)
    said = parse_overrides(overrides)
    return Request(request.preset, {**request.changes, **given, **said}, frozenset(said), frozenset(given))


def plan_training(
    system: System,
    request: Request,
    *,
    store: Path | str | None = None,
    run: Path | None = None,
    encoder: Path | None = None,
    stores: Path = STORES,
    runs: Path = RUNS,
) -> TrainingJob:
    """A new run, with what was left out: store (flag, ``data.store``, the encoder's, the only one), run, encoder.

    The default run is ``runs/<store name>``; that of a policy on an encoder is the run which its encoder comes from.
    Without a preset its model is that of the encoder's run, but for the keys that were set; where the model is the
    encoder's alone, because the policy has a section of its own, its sizes are those of the encoder in any case.
    """
    config = request.config(sections())
    require_used(system, config, request)
    wanted = system.parents_of(config)
    if not wanted:
        if encoder is not None:
            raise UsageError(takes_none(system))
        chosen = find_store(store if store is not None else config.data.store, stores)
        folder = run if run is not None else runs / Path(chosen).name
        return TrainingJob(system, replace(config, {"data.store": recorded(chosen)}), chosen, folder)
    kind = f"{system.section}.encoder"
    names = wanted if kind in request.changes else system.parent
    rows = [find_system(name) for name in names]
    if encoder is not None:
        encoder = resolve(encoder, rows, (LATEST,))
    own = run if run is not None and any(is_checkpoint(checkpoints(run, row.folder) / LATEST) for row in rows) else None
    told = store if store is not None else config.data.store
    if told is None and (encoder is not None or own is not None):
        source = encoder if encoder is not None else resolve(own or Path(), rows, (LATEST,))
        told = store_to_train_on(source)
    chosen = find_store(told, stores)
    if encoder is None:
        encoder = find_parent(names, content_hash(chosen), own, runs)
    if request.preset is None:
        theirs = flatten(config_of(read_state(encoder), encoder).to_dict())
        model = {key: value for key, value in theirs.items() if key.startswith("model.")}
        config = replace(with_sections(PRESETS["base"], sections()), {**model, **request.changes})
    found = read_state(encoder).system
    if found in system.parent and found not in wanted and kind not in request.changes:
        config = replace(config, {kind: found})
    if system.section in config.sections:
        config = inherit(config, encoder, frozenset(request.changes))
    folder = run if run is not None else run_of(encoder)
    return TrainingJob(system, replace(config, {"data.store": recorded(chosen)}), chosen, folder, encoder)


def plan_resume(
    path: Path, asked: Callable[[System], Request], *, system: System | None = None, store: Path | str | None = None
) -> TrainingJob:
    """A run that goes on: everything from its checkpoint, but for the keys that were set. asked: what was, by system.

    Raises UsageError where nothing tells the store; `train` refuses keys that a resumed run may not change.
    """
    row, checkpoint = to_resume(path, system)
    saved = with_sections(config_of(read_state(checkpoint), checkpoint), sections())
    request = asked(row)
    changes = dict(request.changes)
    if request.preset is not None:
        named = Request(request.preset, {}).config()
        values = flatten(named.to_dict())
        for name, part in named.parts().items():
            fixed = [key.name for key in keys(part, f"{name}.") if not key.option.resume]
            changes = {**{key: values[key] for key in fixed if key != "training.seed"}, **changes}
    config = replace(saved, changes)
    require_used(row, config, request)
    told = store if store is not None else changes.get("data.store")
    chosen = find_store(store_to_train_on(checkpoint) if told is None else told)
    config = replace(config, {"data.store": recorded(chosen)})
    return TrainingJob(row, config, chosen, run_of(checkpoint), None, checkpoint)
