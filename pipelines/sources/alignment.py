"""Was an observation stored before or after its action was executed? Read from the file itself.

LIBERO's official files store ``obs[t]`` *after* ``actions[t]``; regenerated files store it *before*. ``states[t]``,
the simulator's own state, is before the action in both. So the joint angles in ``obs/joint_states[t]`` equal those of
``states[t]`` in a *before* file and those of ``states[t + 1]`` in an *after* file. Not exactly: the simulator's sensors
sample one physics substep early. The rule therefore compares two root-mean-square errors.

Where the arm's joints are in ``states`` is in the demonstration's ``model_file``. Regenerated files often lack it; then
the joints are the seven neighbouring columns of ``states`` that follow the observed ones, if there are such.

Measured on 14 demonstrations of libero_object (2026-11-20): the errors differ by a factor of 24.3 to 24.5 over a
whole demonstration and by at least 16 over any 20 steps; the joints move 0.009 to 0.013 rad (RMS) a step.

Legend: T rows of the demonstration, S numbers of a simulator state, nq of qpos, nv of qvel.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from stores.errors import SourceError

AFTER: Final = "after"
BEFORE: Final = "before"
DETECT: Final = "detect"

MIN_RATIO: Final = 3.0
"""The better reading must fit this many times better than the other, and than the motion of a step."""
MIN_MOTION: Final = 1e-4
"""RMS joint motion a step [rad] below which the two readings cannot be told apart."""

ARM_JOINTS: Final = tuple(f"robot0_joint{number}" for number in range(1, 8))
QPOS_SIZE: Final = {"free": 7, "ball": 4, "slide": 1, "hinge": 1}
QVEL_SIZE: Final = {"free": 6, "ball": 3, "slide": 1, "hinge": 1}
XML_LIMIT: Final = 16 * 2**20


@dataclass(frozen=True)
class JointLayout:
    """Where joints are in qpos, and how long qpos and qvel are. free: joints of things that nothing holds."""

    address: dict[str, int]
    nq: int
    nv: int
    free: tuple[str, ...] = ()


@lru_cache(maxsize=16)
def joint_layout(model_xml: str) -> JointLayout:
    """Joint addresses of a MuJoCo model: bodies depth-first, the joints of a body before its children.

    That is the compiler's own order. Raises SourceError on XML that is not such a model.
    """
    if len(model_xml) > XML_LIMIT or "<!" in model_xml.replace("<!--", ""):
        raise SourceError(f"model_file: expected at most {XML_LIMIT} characters of XML without declarations")
    try:
        world = ElementTree.fromstring(model_xml).find("worldbody")
    except ElementTree.ParseError as error:
        raise SourceError(f"model_file: expected MuJoCo XML, got {error}") from error
    if world is None:
        raise SourceError("model_file: expected an element worldbody, got none")
    address: dict[str, int] = {}
    free: list[str] = []
    nq = nv = 0
    waiting = [world]
    while waiting:
        body = waiting.pop()
        for joint in body:
            if joint.tag not in ("joint", "freejoint"):
                continue
            kind = "free" if joint.tag == "freejoint" else joint.get("type", "hinge")
            if kind not in QPOS_SIZE:
                raise SourceError(f"model_file: joint type {kind!r}, expected one of {', '.join(QPOS_SIZE)}")
            name = joint.get("name", f"unnamed at {nq}")
            address[name] = nq
            free += [name] if kind == "free" else []
            nq, nv = nq + QPOS_SIZE[kind], nv + QVEL_SIZE[kind]
        waiting.extend(reversed(body.findall("body")))
    return JointLayout(address, nq, nv, tuple(free))


def arm_positions(states: NDArray[np.float64], layout: JointLayout) -> NDArray[np.float64]:
    """Simulator states [T, 1 + nq + nv] (time, qpos, qvel) -> the arm's seven joint positions [T, 7]."""
    missing = [name for name in ARM_JOINTS if name not in layout.address]
    if missing:
        raise SourceError(f"model_file: joints {missing} are missing; it has {sorted(layout.address)[:12]}")
    width = 1 + layout.nq + layout.nv
    if states.ndim != 2 or states.shape[1] != width:
        raise SourceError(f"states: model_file asks for [T, {width}] (time, qpos, qvel), got {list(states.shape)}")
    return states[:, [1 + layout.address[name] for name in ARM_JOINTS]]


@dataclass(frozen=True)
class Fit:
    """RMS differences [rad] of the joints in states and in observations, read both ways, and RMS motion of a step."""

    before: float
    after: float
    motion: float

    @property
    def alignment(self) -> str | None:
        """``after`` or ``before``; None where neither fits, both do, or nothing moves."""
        better, worse = min(self.before, self.after), max(self.before, self.after)
        # Written so that NaN fails every comparison.
        if self.motion >= MIN_MOTION and worse > MIN_RATIO * better and self.motion >= MIN_RATIO * better:
            return BEFORE if self.before < self.after else AFTER
        return None

    @property
    def text(self) -> str:
        """The numbers, for people."""
        return (
            f"joint positions of states and observations differ by {self.before:.2g} rad read as 'before', "
            f"{self.after:.2g} rad read as 'after', with {self.motion:.2g} rad of motion a step"
        )


def fit_joints(simulated: NDArray[np.float64], observed: NDArray[np.float64]) -> Fit:
    """Of joint positions from states [T, 7] and from observations [T, 7], T >= 2."""
    return Fit(
        before=rms(simulated[:-1] - observed[:-1]),
        after=rms(simulated[1:] - observed[:-1]),
        motion=rms(simulated[1:] - simulated[:-1]),
    )


def fit_columns(states: NDArray[np.float64], observed: NDArray[np.float64]) -> Fit:
    """Without a model: the best of every seven neighbouring columns of `states` [T, S], for each reading by itself.

    Columns that fit one reading and others that fit the other so end in "cannot tell". observed: [T, 7], T >= 2.
    """
    joints = observed.shape[1]
    motion = rms(observed[1:] - observed[:-1])
    best = [
        min(
            (rms(part[:, column : column + joints] - observed[:-1]) for column in _candidates(part, observed[:-1])),
            default=math.inf,
        )
        for part in (states[:-1], states[1:])
    ]
    return Fit(before=best[0], after=best[1], motion=motion)


def _candidates(states: NDArray[np.float64], observed: NDArray[np.float64], most: int = 8) -> list[int]:
    """First columns of the windows of `states` [T, S] nearest to `observed` [T, J] on a few rows: all are too many."""
    windows = states.shape[1] - observed.shape[1] + 1
    if windows < 1:
        return []
    rows = np.unique(np.linspace(0, len(states) - 1, 16).astype(int))
    picked, wanted = states[rows], observed[rows]
    error = sum(
        np.square(picked[:, joint : joint + windows] - wanted[:, joint : joint + 1]).sum(axis=0)
        for joint in range(observed.shape[1])
    )
    return [int(column) for column in np.argsort(error, kind="stable")[:most]]


def detect_alignment(fit: Fit) -> str:
    """``after`` or ``before``. Raises SourceError when the demonstration does not tell: too still, or fitting neither
    reading.
    """
    found = fit.alignment
    if found is None:
        raise SourceError(
            f"alignment: cannot tell whether observations were stored before or after their actions: {fit.text}; "
            f"expected a factor of {MIN_RATIO:g} between them and at least {MIN_MOTION:g} rad of motion. Where you "
            "know which it is, pass --alignment after or --alignment before"
        )
    return found


def rms(values: NDArray[np.float64]) -> float:
    """Root mean square of all elements."""
    return float(np.sqrt(np.mean(np.square(values))))
