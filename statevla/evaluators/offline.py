"""Offline evaluation: the chunks that a policy predicts for held-out observations against the demonstrated ones.

Both are compared in the same space: raw with raw (action units), standardized with standardized, by the statistics that
the policy carries.

Legend: N frames, B batch, K chunk, A numbers of an action, of them G binary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from statevla.data.batch import ObservationBatch
from statevla.data.loaders import iterate_once
from statevla.evaluators import metrics
from statevla.evaluators.offline_results import OfflineResults, Smoothness
from statevla.models.standardize import Standardize
from statevla.observation import ObsSpec
from statevla.policies.noise import Draw
from statevla.systems.acting import Acted
from stores.errors import StaleKey, StateVLAError
from stores.progress import Progress, ProgressEvent
from stores.reader import Store
from stores.spec import LIBERO

POSITION = "position"
"""The field of an action whose smoothness is measured; without one, that of all continuous dimensions."""


@runtime_checkable
class OfflinePolicy(Protocol):
    """What an offline evaluation reads of a policy bundle."""

    @property
    def obs_spec(self) -> ObsSpec: ...

    @property
    def chunk(self) -> int: ...

    @property
    def content_hash(self) -> str: ...

    @property
    def standardize_action(self) -> Standardize: ...

    def act_batch(self, obs: ObservationBatch, draws: Sequence[Draw]) -> Acted:
        """Chunks in action units; each row's noise by its draw."""
        ...


@dataclass(frozen=True)
class Predictions:
    """A split's predicted and demonstrated chunks, float32 [N, K, A] in action units, in store order.

    probability: of +1 in each binary dimension, float32 [N, K, G]; None when the policy tells none.
    """

    predicted: NDArray[np.float32]
    target: NDArray[np.float32]
    is_pad: NDArray[np.bool_]
    episode: NDArray[np.int64]
    frame: NDArray[np.int64]
    probability: NDArray[np.float32] | None


def evaluate_offline(
    policy: OfflinePolicy,
    store: Store,
    split: str = "val",
    *,
    batch_size: int = 64,
    seed: int = 0,
    allow_other_store: bool = False,
    progress: Progress | None = None,
) -> OfflineResults:
    """Measure ``policy`` on every step of a split. ``seed`` draws the noise that sampling starts from.

    Raises:
        ObsSpecMismatch: the store's observations are not those that the policy was trained on.
        StaleKey: the policy was trained from another store; ``allow_other_store`` measures it nevertheless.
        StateVLAError: the policy predicts NaN or infinity.
    """
    store.spec.require_same(policy.obs_spec, f"store {store.root}", "the policy")
    if policy.content_hash != store.content_hash and not allow_other_store:
        raise StaleKey(
            f"{store.root} (content {store.content_hash[:12]}): the policy was trained from another store (content "
            f"{policy.content_hash[:12]}), perhaps on this one's validation episodes; evaluate on the store it came "
            "from, or allow another one (--allow-other-store)"
        )
    predictions = predict(policy, store, split, batch_size=batch_size, seed=seed, progress=progress)
    standardize = policy.standardize_action
    shift, scale = (buffer.detach().cpu().double().numpy() for buffer in (standardize.shift, standardize.scale))
    train_mean = np.asarray(store.stats().action.mean, np.float64)
    return measure(predictions, shift, scale, train_mean, split, store.spec)


def predict(
    policy: OfflinePolicy, store: Store, split: str, *, batch_size: int, seed: int, progress: Progress | None = None
) -> Predictions:
    """Run the policy over a split. A step's noise is its own: (seed, episode, frame), whatever the batch."""
    total = int(sum(store.episode_columns["steps"][store.episode_columns["split"] == split]))
    rows: list[tuple[Tensor, ...]] = []
    probabilities: list[Tensor] = []
    done = 0
    for batch in iterate_once(store, split, batch_size, policy.chunk):
        draws = [Draw(seed, int(e), int(f)) for e, f in zip(batch.episode, batch.frame, strict=True)]
        acted = policy.act_batch(batch.obs, draws)
        chunk, probability = acted.chunk, acted.closing
        if not torch.isfinite(chunk).all():
            raise StateVLAError("policy: predicts NaN or infinite actions; its training diverged")
        rows.append((chunk.float().cpu(), batch.chunk, batch.is_pad, batch.episode, batch.frame))
        if probability is not None:
            probabilities.append(probability.cpu())
        done += len(batch)
        if progress is not None:
            progress(ProgressEvent("offline evaluation", done, total, "frames"))
    predicted, target, is_pad, episode, frame = (torch.cat(column).numpy() for column in zip(*rows, strict=True))
    closing = torch.cat(probabilities).numpy() if probabilities else None
    return Predictions(predicted, target, is_pad, episode, frame, closing)


def measure(
    predictions: Predictions,
    shift: NDArray[np.float64],
    scale: NDArray[np.float64],
    train_mean: NDArray[np.float64],
    split: str,
    spec: ObsSpec = LIBERO,
) -> OfflineResults:
    """All measures of some predictions. shift, scale: the policy's normalization [A]; train_mean: the baseline [A]."""
    predicted, target, is_pad = predictions.predicted, predictions.target, predictions.is_pad
    dims, names = list(spec.continuous), spec.action_names
    scale = np.where(scale == 0, 1.0, scale)  # of a constant dimension: centred, as `Standardize` does it
    same_space = ((predicted - shift) / scale)[..., dims], ((target - shift) / scale)[..., dims]
    by_dimension = metrics.mse_by_dimension(*same_space, is_pad)
    baseline = np.broadcast_to(((train_mean - shift) / scale)[dims], same_space[1].shape)
    moving = _moving(same_space[1][~is_pad])
    averaged = same_space[0][..., moving], same_space[1][..., moving]
    known = [field.name for field in spec.action]
    moved = spec.slice_of(POSITION) if POSITION in known else dims
    chain = predictions.episode, predictions.frame
    return OfflineResults(
        split=split,
        episodes=len(np.unique(predictions.episode)),
        frames=len(predicted),
        mse=dict(zip(names, map(float, metrics.mse_by_dimension(predicted, target, is_pad)), strict=True)),
        mse_normalized=float(by_dimension[moving].mean()),
        mse_normalized_by_dimension=dict(zip((names[d] for d in dims), map(float, by_dimension), strict=True)),
        mse_normalized_by_horizon=metrics.mse_by_horizon(*averaged, is_pad),
        baseline_mean_action_mse_normalized=float(
            metrics.mse_by_dimension(baseline[..., moving], averaged[1], is_pad).mean()
        ),
        **_binary(predictions, spec),
        smoothness=Smoothness(
            policy_jerk=metrics.jerk(predicted[..., moved], is_pad),
            demo_jerk=metrics.jerk(target[..., moved], is_pad),
            policy_seam=metrics.seam(predicted[..., moved], is_pad, *chain),
            demo_seam=metrics.seam(target[..., moved], is_pad, *chain),
        ),
    )


def _moving(target: NDArray[np.float64]) -> NDArray[np.int64]:
    """Columns of the demonstrated actions [n, D] that ever change: an average over others would only look better.

    All of them where none does.
    """
    found = np.flatnonzero(np.ptp(target, axis=0) > 0)
    return found if len(found) else np.arange(target.shape[1])


def _binary(predictions: Predictions, spec: ObsSpec) -> dict[str, float | None]:
    """The measures of binary dimensions, each a mean over those that have it."""
    found: dict[str, list[float | None]] = {"gripper_accuracy": [], "gripper_transition_f1": [], "gripper_ece": []}
    for number, dim in enumerate(spec.binary):
        closes, should_close = predictions.predicted[..., dim] > 0, predictions.target[..., dim] > 0
        found["gripper_accuracy"].append(metrics.gripper_accuracy(closes, should_close, predictions.is_pad))
        found["gripper_transition_f1"].append(metrics.gripper_transition_f1(closes, should_close, predictions.is_pad))
        if predictions.probability is not None:
            told = predictions.probability[..., number]
            found["gripper_ece"].append(metrics.calibration_error(told, should_close, predictions.is_pad))
    return {name: _mean([value for value in values if value is not None]) for name, values in found.items()}


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
