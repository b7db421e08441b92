"""What is done to get from one state to another: along a straight line by a linear probe, or by a small network.

Both are fitted to demonstrations whose states are known, and both answer a pair of states with the next few actions.

Legend: N frames, F numbers of a state, A continuous action dimensions, G binary ones, B pairs, E = `EXECUTED` actions,
K = `STEP` frames.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from statevla.evaluators.state_measures import Floats, Linear, fit_probe
from statevla.evaluators.state_plan import STEP, clipped
from statevla.evaluators.state_probes import Coded, enough, pairs
from stores.errors import UsageError

EXECUTED: Final = STEP // 2
"""Actions of an answer."""
PENALTY: Final = 1e-3
"""Of the logistic regression's squared weights, a row."""
ITERATIONS: Final = 200
HIDDEN: Final = 512
STEPS: Final = 3000
BATCH: Final = 256
RATE: Final = 1e-3

Answered = tuple[Float[np.ndarray, "B E A"], Bool[np.ndarray, "B E G"]]
"""Standardized continuous actions, and whether each binary one is +1."""


Answer = Callable[[Floats, Floats], Answered]
"""From states to states [B F], a function of each pair alone."""


@dataclass(frozen=True, eq=False)
class Gripper:
    """A logistic regression on standardized features [N, F]: whether each binary dimension is to be +1."""

    shift: Floats
    scale: Floats
    weights: Floats
    offset: Floats

    def __call__(self, features: Float[np.ndarray, "B F"]) -> Bool[np.ndarray, "B G"]:
        return np.asarray((features - self.shift) / self.scale @ self.weights + self.offset > 0)


@dataclass(frozen=True, eq=False)
class Line:
    """The probe of K-step differences is asked for the actions of the difference, cut to the `length` that states move
    in K frames; E times the K-th part of its answer. The gripper is asked of both states.
    """

    told: Linear
    gripper: Gripper
    length: float

    def __call__(self, here: Floats, there: Floats) -> Answered:
        each = self.told(clipped(there - here, self.length)) / STEP
        closed = self.gripper(np.concatenate([here, there], axis=1))
        return each[:, None].repeat(EXECUTED, axis=1), closed[:, None].repeat(EXECUTED, axis=1)


@dataclass(frozen=True, eq=False)
class Network:
    """Two hidden layers on both standardized states. actions: A."""

    shift: Floats
    scale: Floats
    layers: nn.Sequential
    actions: int

    def __call__(self, here: Floats, there: Floats) -> Answered:
        states = [torch.from_numpy((side - self.shift) / self.scale).float() for side in (here, there)]
        with torch.inference_mode():
            told = self.layers(torch.cat(states, dim=1)).unflatten(1, (EXECUTED, -1)).double().numpy()
        return told[..., : self.actions], told[..., self.actions :] > 0


def fit_line(train: Coded, feature: str, closed: Bool[np.ndarray, "N G"]) -> Line:
    """To the `feature` of frames and which binary actions were +1. Raises UsageError for too few episodes."""
    fitted = pairs(train.features[feature], train, STEP)
    if not enough(fitted):
        raise UsageError(f"too few episodes of {STEP} or more frames to fit a plan to")
    values = train.features[feature].astype(np.float64)
    gripper = fit_gripper(np.concatenate([values, values[_ends(train)]], axis=1), closed)
    return Line(fit_probe(fitted), gripper, float(np.median(np.linalg.norm(fitted[0], axis=1))))


def fit_gripper(features: Float[np.ndarray, "N F"], closed: Bool[np.ndarray, "N G"]) -> Gripper:
    """Mean cross entropy + `PENALTY` / 2 · ‖weights‖², by L-BFGS from zero, in float64."""
    shift, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-8)
    x = torch.from_numpy((features - shift) / scale)
    y = torch.from_numpy(closed.astype(np.float64))
    weights = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(y.shape[1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weights, offset], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        wrong = nn.functional.binary_cross_entropy_with_logits(x @ weights + offset, y)
        total = wrong + PENALTY / 2 * weights.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    solver.step(loss)  # type: ignore[no-untyped-call]
    return Gripper(shift, scale, weights.detach().numpy(), offset.detach().numpy())


def fit_network(
    train: Coded, feature: str, closed: Bool[np.ndarray, "N G"], seed: int, steps: int | None = None
) -> Network:
    """To the next E actions of a frame, told the state of a later frame of its episode, any of them alike: MSE of the
    continuous ones + cross entropy of the others, by AdamW; steps: of it, None: `STEPS`. Raises UsageError
    where no episode has E frames.
    """
    values = train.features[feature].astype(np.float64)
    shift, scale = values.mean(axis=0), np.maximum(values.std(axis=0), 1e-8)
    states = torch.from_numpy((values - shift) / scale).float()
    ends = torch.from_numpy(_ends(train))
    here = torch.nonzero(torch.arange(len(ends)) + EXECUTED - 1 <= ends).flatten()
    if not len(here):
        raise UsageError(f"no episode has the {EXECUTED} frames that a plan is fitted to")
    action, binary = torch.from_numpy(train.action).float(), torch.from_numpy(closed).float()
    window = torch.arange(EXECUTED)
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Sequential(
            nn.Linear(2 * states.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, EXECUTED * (action.shape[1] + binary.shape[1])),
        )  # fmt: skip
    optimizer = torch.optim.AdamW(layers.parameters(), lr=RATE)
    for _ in range(STEPS if steps is None else steps):
        rows = here[torch.randint(len(here), (BATCH,), generator=draw)]
        first = torch.minimum(rows + EXECUTED, ends[rows])
        goals = first + (torch.rand(BATCH, generator=draw) * (ends[rows] - first + 1)).long()
        told = layers(torch.cat([states[rows], states[goals]], dim=1)).unflatten(1, (EXECUTED, -1))
        shown = rows[:, None] + window
        pose, gripper = told.split([action.shape[1], binary.shape[1]], dim=2)
        loss = nn.functional.mse_loss(pose, action[shown])
        loss = loss + nn.functional.binary_cross_entropy_with_logits(gripper, binary[shown])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Network(shift, scale, layers.eval().requires_grad_(False), action.shape[1])


def _ends(train: Coded) -> np.ndarray:
    """Of each frame, the last one of its episode; frames are in order of episodes."""
    return np.asarray(np.searchsorted(train.episode, train.episode, side="right") - 1)
