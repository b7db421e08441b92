"""Low loss, and the robot fails: why? The chain from data to action, link by link, on a user's own store and policy.

The world executes the *store's* actions and shows what the store should then hold, so pictures, states, alignment and
gripper are compared without a policy; after that the policy is asked on the store's frames, and then it acts. A broken
link breaks what comes after it: the first one is the cause, and is named.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from statevla.evaluators import diagnose_links as links
from statevla.evaluators import known
from statevla.evaluators.diagnose_episodes import Episode, shown, start_number, stored
from statevla.evaluators.diagnose_links import WRONG, Affine, Errors, Link, Pair
from statevla.evaluators.diagnose_loop import act_in, closed_loop
from statevla.evaluators.evaluate import usual_execution
from statevla.evaluators.runner import ChunkPolicy
from statevla.evaluators.start import first_start
from statevla.evaluators.trials import NUMBERS
from statevla.models.standardize import Standardize
from statevla.observation import square_side
from statevla.policies.controls import ReplayDemos
from statevla.policies.execution import Execution
from statevla.policies.noise import Draw
from statevla.reports.tables import markdown_table, percent
from statevla.sims.suites import SUITES, Suite, find_suite, has_suite
from statevla.sims.world import Start, Task
from stores.disk import durable
from stores.errors import UsageError
from stores.progress import Progress, ProgressEvent
from stores.reader import Store
from stores.statistics import FIELDS

EPISODES: Final = 2
"""Stored episodes a task that are compared."""
DEMOS: Final = 60
"""Stored episodes, at most, that a trial is compared with."""
ASKED: Final = 4
"""Frames between two on which the policy is asked."""


@runtime_checkable
class Learnt(Protocol):
    """What a trained policy is more than a `ChunkPolicy`."""

    @property
    def model(self) -> Any: ...

    @property
    def language(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Diagnosis:
    """All links, in the order of the chain."""

    policy: str
    suite: str
    links: tuple[Link, ...]

    @property
    def broken(self) -> Link | None:
        """The first broken link."""
        return next((link for link in self.links if link.ok is False), None)

    @property
    def verdict(self) -> str:
        """A sentence or two."""
        if self.broken is None:
            unknown = [link.name for link in self.links if link.ok is None]
            return f"No link is seen to be broken; not known: {', '.join(unknown)}" if unknown else "No link is broken"
        later = [link.name for link in self.links if link.ok is False][1:]
        more = f" What comes after it may follow from it: {', '.join(later)}." if later else ""
        return f"Broken: {self.broken.name}. {self.broken.evidence}. {self.broken.advice}.{more}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        broken = None if self.broken is None else self.broken.name
        chain = [asdict(link) for link in self.links]
        return {"policy": self.policy, "suite": self.suite, "broken": broken, "verdict": self.verdict, "links": chain}

    def to_markdown(self) -> str:
        """A table with a row a link, one with a row a dimension of the action, and the verdict."""
        rows = [[link.name, link.word, link.evidence, link.advice] for link in self.links]
        table = markdown_table(("link", "", "what was seen", "what to do"), rows)
        errors = [_cells(errors) for link in self.links for errors in link.errors]
        columns = ("action", "predicted against true", "all", *(f"quarter {q} of the episode" for q in range(1, 5)))
        tables = [table, markdown_table(columns, errors)] if errors else [table]
        return "\n\n".join([f"# {self.policy} in {self.suite}", *tables, self.verdict])

    def save(self, out: Path) -> None:
        """Writes ``diagnosis.json`` and ``diagnosis.md``."""
        durable.write_json(out / "diagnosis.json", self.to_dict())
        durable.write_text(out / "diagnosis.md", self.to_markdown() + "\n")


def _cells(errors: Errors) -> list[str]:
    """A share in percent, an error in squared standard deviations."""
    write = percent if errors.measure == WRONG else _decimals
    return [errors.dimension, errors.measure, *(write(value) for value in (errors.mean, *errors.quarters))]


def _decimals(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def diagnose(
    policy: ChunkPolicy,
    store: Store,
    *,
    name: str,
    suite: str | None = None,
    tasks: Sequence[int] | str | None = None,
    trials: int = 2,
    replay: ReplayDemos | None = None,
    execution: Execution | None = None,
    max_steps: int | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Looks at every link. suite: None: the store's. tasks: None: the first two that the store has. trials: of the
    policy in each task, from initial states that it was not trained on. replay: the files that the store was made of,
    where there are some: their first states are begun from where the store knows no numbered one.

    Raises:
        UsageError: the store has no demonstration of the suite's tasks, or numbers are out of range.
        StateVLAError: store or simulator cannot be used.
    """
    if trials < 1 or (max_steps is not None and max_steps < 1):
        raise UsageError(f"expected trials and max_steps of at least 1, got {trials} and {max_steps}")
    row = suite_of(store, suite)
    row.prepare()
    asked = known.in_trained_words(policy, row.tasks(tasks))
    episodes = _episodes_by_task(store, asked, limit=None if tasks is not None else 2)
    chosen = [task for task in asked if task.name in episodes]
    look = _Look(policy, store, row, _first_states(replay), progress)
    pairs = [pair for task in chosen for pair in look.pairs(task, episodes[task.name])]
    spec, stats = store.spec, store.stats()
    now: dict[str, Affine] = {field: stats.affine(field, spec) for field in FIELDS}
    names = {"action": spec.action_names, "robot_state": spec.state_names}
    states = store.frames["robot_state"]
    held = _held(policy)
    scale = now["robot_state"][1]
    every = known.in_trained_words(policy, row.tasks(None))
    told = {task.name: task.instruction for task in every if task.name in set(store.episode_columns["task"])}
    chain = [
        links.pictures(
            pairs, spec.camera_names, look.knows_starts(episodes, chosen),
            (policy.obs_spec.image_sizes, spec.image_sizes),
        ),
        links.statistics(held, now, names, pairs, (states.min(0), states.max(0))),
        links.alignment(pairs, scale),
        links.gripper(pairs, spec),
        links.instruction(
            told, _texts(store), policy.language if isinstance(policy, Learnt) else {}, _vectors(store)
        ),
        _predictions(policy, [ours for ours, _ in pairs], now["action"], store),
    ]  # fmt: skip
    resolved = usual_execution(row, execution).resolve(policy.chunk)
    acted = [e for task in chosen for e in look.trials(task, trials, resolved, max_steps or row.max_steps)]
    demos = [stored_states(store, i) for task in chosen for i in episodes[task.name]][:DEMOS]
    chain.append(closed_loop(acted, demos, scale, spec.state_names))
    return Diagnosis(name, row.name, tuple(chain))


def suite_of(store: Store, said: str | None) -> Suite:
    """Where a store's actions are replayed: the suite that is said, else its own. Raises UsageError where there is none
    of that name.
    """
    name = said or store.manifest.suite
    if said is None and not has_suite(name):  # that of a format, such as lerobot
        raise UsageError(
            f"{store.root}: its suite is called {name!r}, which no simulator here has, and a diagnosis replays the "
            f"store in one. Pass --suite where its episodes are of one of {', '.join(SUITES)}; else measure the policy "
            "on its store: statevla eval offline"
        )
    return find_suite(name)


@dataclass(frozen=True)
class _Look:
    """Opens worlds and says how far it is."""

    policy: ChunkPolicy
    store: Store
    row: Suite
    states: dict[str, NDArray[np.float64]]
    progress: Progress | None

    def pairs(self, task: Task, episodes: Sequence[int]) -> list[Pair]:
        """Stored episodes of a task, and what its world shows under their actions."""
        world = self.row.open(task, square_side(self.store.spec, f"{self.row.name}'s"), 1)
        found = []
        try:
            for number, episode in enumerate(episodes[:EPISODES]):
                self._say(f"{task.name}: stored actions", number, EPISODES)
                ours = stored(self.store, episode)
                found.append((ours, shown(world, self._start_of(episode), ours.actions)))
        finally:
            world.close()
        return found

    def _start_of(self, episode: int) -> Start:
        number = start_number(self.store, episode)
        return Start(0, state=self.states.get(self._source(episode))) if number is None else Start(number)

    def knows_starts(self, episodes: dict[str, list[int]], tasks: Sequence[Task]) -> bool:
        """Whether it is known where the episodes of `pairs` began."""
        seen = [episode for task in tasks for episode in episodes[task.name][:EPISODES]]
        return all(start_number(self.store, i) is not None or self._source(i) in self.states for i in seen)

    def _source(self, episode: int) -> str:
        rows = self.store.episode_columns
        return f"{rows['source'][episode]}/{rows['demo'][episode]}"

    def trials(self, task: Task, count: int, execution: Execution, steps: int) -> list[Episode]:
        """Trials of the policy in a task."""
        first = first_start(self.policy, self.row, [task], count)
        world = self.row.open(task, square_side(self.policy.obs_spec, f"{self.row.name}'s"), 1)
        found = []
        try:
            for repetition in range(count):
                self._say(f"{task.name}: the policy acts", repetition, count)
                start = Start(self.row.number(task, first + repetition))
                trial = task.index * NUMBERS + start.number
                found.append(act_in(world, self.policy, start, execution, steps, trial))
        finally:
            world.close()
        return found

    def _say(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(ProgressEvent("diagnosis", done, total, "episodes", what))


def stored_states(store: Store, episode: int) -> Episode:
    """As `stored`, without pictures."""
    rows = store.episode_columns
    first, frames, steps = (int(rows[name][episode]) for name in ("first_frame", "frames", "steps"))
    states, actions = (store.frames[name] for name in ("robot_state", "action"))
    text = str(rows["instruction"][episode])
    return Episode(
        str(rows["id"][episode]), text, (), states[first : first + frames], actions[first : first + steps]
    )  # fmt: skip


def _episodes_by_task(store: Store, tasks: Sequence[Task], limit: int | None) -> dict[str, list[int]]:
    names = store.episode_columns["task"]
    found = {task.name: [int(i) for i in np.flatnonzero(names == task.name)] for task in tasks}
    found = {name: rows for name, rows in found.items() if rows}
    if not found:
        there = ", ".join(sorted({str(name) for name in names}))
        raise UsageError(f"{store.root}: no episode of the tasks {[task.name for task in tasks]}; it has {there}")
    return dict(list(found.items())[:limit])


def _first_states(replay: ReplayDemos | None) -> dict[str, NDArray[np.float64]]:
    """By file and demonstration."""
    return {} if replay is None else {demo.source: demo.state for demos in replay.demos.values() for demo in demos}


def _held(policy: ChunkPolicy) -> dict[str, Affine]:
    """The policy's own normalization, by field."""
    if not isinstance(policy, Learnt):
        return {}
    found: dict[str, Affine] = {}
    for name, module in policy.model.named_modules():
        field = name.rsplit(".", 1)[-1].removeprefix("standardize_")
        if isinstance(module, Standardize) and field in FIELDS:
            shift, scale = (buffer.detach().cpu().double().numpy() for buffer in (module.shift, module.scale))
            found[field] = (shift, scale)
    return found


def _texts(store: Store) -> dict[str, list[str]]:
    rows = store.episode_columns
    found: dict[str, set[str]] = {}
    for task, text in zip(rows["task"], rows["instruction"], strict=True):
        found.setdefault(str(task), set()).add(str(text))
    return {task: sorted(texts) for task, texts in found.items()}


def _vectors(store: Store) -> dict[str, NDArray[np.float32]]:
    return {text: store.language.vector(text) for text in store.manifest.instructions}


def _predictions(policy: ChunkPolicy, episodes: Sequence[Episode], normalize: Affine, store: Store) -> Link:
    """Asks the policy on some frames of stored episodes."""
    if policy.obs_spec.image_sizes != store.spec.image_sizes:
        return Link("predictions", None, "the policy cannot be shown the store's pictures, which have another size")
    predicted, target, when = [], [], []
    for number, episode in enumerate(episodes):
        for t in range(0, len(episode.actions) - policy.chunk + 1, ASKED):
            predicted.append(policy.act([episode.observation(t)], [Draw(0, number, t)]).chunk[0].numpy())
            target.append(episode.actions[t : t + policy.chunk])
            when.append(t / max(1, len(episode.actions) - 1))
    if not predicted:
        return Link("predictions", None, f"no stored episode has {policy.chunk} actions")
    return links.predictions(np.stack(predicted), np.stack(target), np.asarray(when), normalize, store.spec)
