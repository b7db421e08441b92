"""The links between data, policy and world, each looked at by itself, on arrays alone.

A *pair* is a stored episode and what a world showed while the same actions were executed in it.

Legend: C cameras, T frames, S numbers of a robot state, A of an action, G of them binary.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from statevla.evaluators.diagnose_episodes import Episode
from stores.spec import ObsSpec

Array = NDArray[Any]
Pair = tuple[Episode, Episode]
Affine = tuple[Array, Array]
"""Shift and scale of a normalization, ``[D]`` each; a scale of 0: constant."""
Sizes = tuple[tuple[int, int], ...]
"""Height and width of each camera's pictures."""

TURNS: Final[Mapping[str, Callable[[Array], Array]]] = {
    "as it is": lambda frames: frames,
    "upside-down": lambda frames: frames[:, ::-1],
    "mirrored": lambda frames: frames[:, :, ::-1],
    "turned by 180 degrees": lambda frames: frames[:, ::-1, ::-1],
}
"""Ways to turn frames ``[T, H, W, 3]``."""
LIKE: Final = 0.8
"""A picture looks like another one when their difference is below this share of the difference to its own."""
DARKER: Final = 0.15
"""Share by which the brightness of pictures may differ."""
FIRST_FRAMES: Final = 5
LAGS: Final = (-3, -2, -1, 0, 1, 2, 3)
SHIFTED: Final = 0.9
"""A lag is the right one where it leaves less than this share of the difference without a lag."""
UNLIKE: Final = 0.25
"""Share of the motion that may stay different, with the best lag, in a world that repeats an episode."""
SETTLES: Final = range(1, 8)
"""Steps after which a gripper may have followed its command."""
CLEAR: Final = 0.5
"""Correlation from which a number of the state is said to follow the gripper's command."""
OTHER: Final = 0.05
"""Of a standard deviation: by which statistics may differ."""
OUTSIDE: Final = 0.5
"""Share of the stored range by which a state may lie outside it."""
SAME_COSINE: Final = 0.999
WRONG: Final = "wrong sign"
LEARNT: Final = 0.7
"""Of the error of always giving the mean action: above it nothing was learnt."""


@dataclass(frozen=True)
class Errors:
    """Of one dimension of the action: its mean over all frames asked, and by quarter of the episode (None: none there).

    measure: ``squared error``, in squared standard deviations of that dimension, or ``wrong sign``, a share.
    """

    dimension: str
    measure: str
    mean: float
    quarters: tuple[float | None, ...]


@dataclass(frozen=True)
class Link:
    """ok: None where nothing can be told. evidence: what was seen. advice: what to do where it is not true. errors: of
    every dimension, where actions were compared.
    """

    name: str
    ok: bool | None
    evidence: str
    advice: str = ""
    errors: tuple[Errors, ...] = ()

    @property
    def word(self) -> str:
        """For tables."""
        return {True: "ok", False: "BROKEN", None: "not known"}[self.ok]


def pictures(
    pairs: Sequence[Pair], cameras: Sequence[str], same_start: bool = True, sizes: Sequence[Sizes] = ()
) -> Link:
    """Size, order, orientation and brightness of the first frames, camera by camera. same_start: both are known to show
    one layout; otherwise what differs by little says nothing. sizes: what the policy was trained on and what the store
    has; a world draws what it is asked for.
    """
    name = "pictures"
    if len(set(sizes)) > 1:
        trained, stored = (" and ".join(dict.fromkeys(f"{h} x {w}" for h, w in size)) for size in sizes)
        return Link(
            name, False, f"the policy was trained on pictures of {trained} pixels, the store has {stored}",
            "Name its own store, or train on this one",
        )  # fmt: skip
    told, faults = [], []
    for c, camera in enumerate(cameras):
        apart = {
            (other, turn): float(np.mean([_apart(a.images[c], turned(b.images[o])) for a, b in pairs]))
            for (o, other), (turn, turned) in itertools.product(enumerate(cameras), TURNS.items())
        }
        usual, best = apart[camera, "as it is"], min(apart, key=lambda key: apart[key])
        told.append(f"{camera} differs by {usual:.1f} of 255")
        if apart[best] < LIKE * usual:
            other, turn = best
            which = "it" if other == camera else f"the simulator's {other}"
            way = "" if turn == "as it is" else f" {turn}"
            faults.append(f"{camera}: {which}{way} is much nearer ({apart[best]:.1f} of 255, not {usual:.1f})")
    if faults:
        advice = (
            "Make both the same: ingest with --image-convention, or a spec whose cameras are in the simulator's order; "
            "then train again"
        )
        return Link(name, False, "; ".join(faults), advice)
    light = [np.mean([f[:FIRST_FRAMES].mean() for pair in pairs for f in pair[side].images]) for side in (0, 1)]
    bright = float(light[1] / max(light[0], 1e-9))
    if abs(bright - 1) > DARKER:
        evidence = f"the simulator's pictures have {100 * bright:.0f} % of the stored ones' brightness"
        return Link(name, False, evidence, "Run statevla doctor: other MuJoCo versions draw darker scenes")
    if not same_start:
        told.append("of another layout: the store does not say which start its episodes have")
        return Link(name, None, "; ".join(told), "Name the files that the store was made of: --source")
    return Link(name, True, "; ".join(told))


def _apart(ours: Array, theirs: Array) -> float:
    """Mean difference of the first frames ``[T, H, W, 3]``, of 255."""
    frames = min(len(ours), len(theirs), FIRST_FRAMES)
    return float(np.abs(ours[:frames].astype(np.float64) - theirs[:frames]).mean())


def statistics(
    held: Mapping[str, Affine], now: Mapping[str, Affine], names: Mapping[str, Sequence[str]], pairs: Sequence[Pair],
    reach: tuple[Array, Array],
) -> Link:  # fmt: skip
    """The policy's normalization against the store's, and the simulator's first states against the stored range.

    held, now: by field, of the policy and of the store. names: of a field's numbers. reach: least and most of every
    number of the stored states.
    """
    name = "statistics"
    for field, (shift, scale) in held.items():
        mean, spread = now[field]
        unit = np.where(spread == 0, 1.0, spread)
        apart = np.maximum(np.abs(shift - mean) / unit, np.abs(scale - spread) / unit)
        worst = int(np.argmax(apart))
        if apart[worst] > OTHER:
            evidence = (
                f"{field}, {names[field][worst]}: the policy normalizes with mean {shift[worst]:.3g} and deviation "
                f"{scale[worst]:.3g}, the store has {mean[worst]:.3g} and {spread[worst]:.3g}"
            )
            return Link(
                name, False, evidence, "The policy was trained on other data: name its own store, or train again"
            )
    low, high = reach
    room = OUTSIDE * (high - low) + 1e-3
    first = np.concatenate([seen.states[:1] for _, seen in pairs]).astype(np.float64)
    beyond = np.maximum(low - room - first, first - high - room)
    place, number = divmod(int(np.argmax(beyond)), beyond.shape[1])
    if beyond[place, number] > 0:
        evidence = (
            f"{names['robot_state'][number]}: the simulator begins at {first[place, number]:.3g}, the store's are "
            f"{low[number]:.3g} to {high[number]:.3g}"
        )
        return Link(name, False, evidence, "Look at unit and order of the robot state in the data")
    compared = f"{', '.join(held)} as in the store; " if held else ""
    return Link(name, True, f"{compared}the simulator begins within the stored states")


def alignment(pairs: Sequence[Pair], scale: Array) -> Link:
    """Whether the robot moves in the simulator when it does in the store. scale: of a state's numbers."""
    unit = np.where(scale == 0, 1.0, scale)
    left = {lag: _unlike(pairs, unit, lag) for lag in LAGS}
    moved = _unlike(pairs, unit, None)
    best = min(left, key=lambda lag: left[lag])
    if moved == 0:
        return Link("alignment", None, "the robot does not move in these episodes")
    evidence = (
        f"the same actions move the robot alike: {100 * left[0] / moved:.0f} % of its motion differs, with the best "
        f"lag ({best:+d} steps) {100 * left[best] / moved:.0f} %"
    )
    if best != 0 and left[best] < SHIFTED * left[0]:
        when = "later" if best < 0 else "earlier"
        return Link(
            "alignment",
            False,
            f"the simulator moves {abs(best)} steps {when} than the store's frames: {100 * left[0] / moved:.0f} % of "
            f"the motion differs, with that lag {100 * left[best] / moved:.0f} %",
            "Actions and observations are shifted: ingest with --alignment before or after, whichever the data are",
        )
    if left[best] > UNLIKE * moved:
        return Link(
            "alignment",
            None,
            f"the simulator does not repeat these episodes: {evidence.partition(': ')[2]}",
            "Known causes: the store's actions are labels, and others were executed (collect --noise, --from-policy); "
            "another start (--source); another simulator",
        )
    return Link("alignment", True, evidence)


def _unlike(pairs: Sequence[Pair], unit: Array, lag: int | None) -> float:
    """Mean difference of the motions at a lag; None: the simulator's motion itself."""
    total = []
    for ours, theirs in pairs:
        a, b = (np.diff(e.states.astype(np.float64) / unit, axis=0) for e in (ours, theirs))
        steps = np.arange(max(0, -min(LAGS)), min(len(a), len(b)) - max(LAGS))
        if not len(steps):
            continue
        total.append(np.abs(b[steps] - (0.0 if lag is None else a[steps + lag])).mean())
    return float(np.mean(total)) if total else 0.0


def gripper(pairs: Sequence[Pair], spec: ObsSpec) -> Link:
    """Whether the fingers follow their command the same way in both."""
    name = "gripper"
    if not spec.binary:
        return Link(name, None, "the robot has no gripper")
    dim = spec.binary[0]
    ours, theirs = (_follows([pair[side] for pair in pairs], dim) for side in (0, 1))
    both = np.minimum(np.abs(ours), np.abs(theirs))
    against = np.where(np.sign(ours) != np.sign(theirs), both, 0.0)
    number = int(np.argmax(against))
    if against[number] >= CLEAR:
        evidence = (
            f"{spec.state_names[number]} follows the command {ours[number]:+.2f} in the store and "
            f"{theirs[number]:+.2f} in the simulator (correlation)"
        )
        advice = "The gripper's sign is the other way round: ingest again with --gripper high-closes or high-opens"
        return Link(name, False, evidence, advice)
    number = int(np.argmax(both))
    if both[number] < CLEAR:
        return Link(name, None, "the gripper's command does not change in these episodes, or nothing follows it")
    told = f"{spec.state_names[number]} follows the command {ours[number]:+.2f} and {theirs[number]:+.2f} (correlation)"
    return Link(name, True, told)


def _follows(episodes: Sequence[Episode], dim: int) -> Array:
    """Correlation [S] of the command with each number of the state some steps later: the strongest of `SETTLES`."""
    found = np.stack([_correlation(episodes, dim, later) for later in SETTLES])
    strongest = np.abs(found).argmax(0)
    return np.asarray(found[strongest, np.arange(found.shape[1])])


def _correlation(episodes: Sequence[Episode], dim: int, later: int) -> Array:
    commands, states = [], []
    for episode in episodes:
        n = max(0, min(len(episode.actions), len(episode.states) - later))
        commands.append(np.sign(episode.actions[:n, dim].astype(np.float64)))
        states.append(episode.states[later : later + n].astype(np.float64))
    command, state = np.concatenate(commands), np.concatenate(states)
    if not len(command):
        return np.zeros(state.shape[1])
    command, state = command - command.mean(), state - state.mean(0)
    size = np.sqrt((command**2).sum() * (state**2).sum(0))
    found: Array = np.divide(command @ state, size, out=np.zeros(state.shape[1]), where=size > 1e-9)
    return found


def instruction(
    told: Mapping[str, str],
    stored: Mapping[str, Sequence[str]],
    known: Mapping[str, Array],
    vectors: Mapping[str, Array],
) -> Link:
    """The text of each task. told: by task, in the simulator. stored: by task, in the store. known, vectors: embeddings
    that the policy and the store have."""
    name = "instruction"
    for task, text in told.items():
        if text not in stored.get(task, ()):
            evidence = f"{task}: the simulator says {text!r}, the store {', '.join(map(repr, stored.get(task, ())))}"
            advice = "Use one text: train on the simulator's, or evaluate with the store's"
            return Link(name, False, evidence, advice)
        if known and text not in known:
            return Link(name, False, f"{text!r} was not trained on", "Train on a store that has it")
        cosine = _cosine(known[text], vectors[text]) if text in known and text in vectors else 1.0
        if cosine < SAME_COSINE:
            evidence = f"{text!r}: the policy's embedding is not the store's (cosine {cosine:.2f})"
            return Link(name, False, evidence, "Another text encoder made them: ingest and train with one")
    return Link(name, True, f"{len(told)} tasks have the same text in the simulator, the store and the policy")


def _cosine(a: Array, b: Array) -> float:
    if a.shape != b.shape:
        return -1.0
    return float(a.astype(np.float64) @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))


def predictions(predicted: Array, target: Array, when: Array, normalize: Affine, spec: ObsSpec) -> Link:
    """Chunks on stored frames against the demonstrated ones. predicted, target: ``[N, K, A]``. when: ``[N]``, place in
    the episode, 0 to 1. normalize: the actions'."""
    shift, scale = normalize
    unit = np.where(scale == 0, 1.0, scale)
    moves = list(spec.continuous)
    error = (((predicted - target) / unit) ** 2)[..., moves]
    usual = (((target - shift) / unit) ** 2)[..., moves]
    share = float(error.mean()) / max(float(usual.mean()), 1e-9)
    names = [spec.action_names[d] for d in moves]
    by_dim = error.mean((0, 1))
    worst = int(np.argmax(by_dim))
    parts = [(when >= q / 4) & (when < (q + 1) / 4 + (q == 3)) for q in range(4)]
    by_time = ", ".join(f"{error[part].mean():.2f}" if part.any() else "-" for part in parts)
    flipped = (np.sign(predicted) != np.sign(target))[..., list(spec.binary)]
    wrong = flipped.mean((0, 1))
    table = tuple(
        Errors(
            label, measure, float(values.mean()),
            tuple(float(values[part].mean()) if part.any() else None for part in parts),
        )
        for measure, dims, found in (("squared error", moves, error), (WRONG, spec.binary, flipped))
        for label, values in zip([spec.action_names[d] for d in dims], np.moveaxis(found, -1, 0), strict=True)
    )  # fmt: skip
    evidence = (
        f"squared error {share:.2f} of that of always giving the mean action; largest in {names[worst]} "
        f"({by_dim[worst]:.2f}); by quarter of the episode {by_time}"
        + (f"; gripper wrong in {100 * wrong.max():.0f} %" if len(wrong) else "")
    )
    advice = "The policy does not reproduce its own data: train longer, and look at the losses before the simulator"
    return Link("predictions", share < LEARNT, evidence, "" if share < LEARNT else advice, table)
