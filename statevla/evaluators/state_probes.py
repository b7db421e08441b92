"""Linear probes of actions: how well the difference of a feature between two frames tells the actions between them.

Legend: N frames of a split, F numbers of a feature, A continuous action dimensions, G binary ones, V frames of the
store.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from statevla.encoders.features import CLASS_TOKEN, MAKE, kept_towers, vectors
from statevla.evaluators.state_measures import FOLDS, Probe, principal, probe
from stores.reader import Store

HORIZONS: Final = (1, 2, 5, 10)
REDUCED: Final = 64
"""Principal components to which every feature is also reduced, so that width is no excuse."""
Floats = NDArray[np.floating]
Found = dict[str, Probe | None]
"""By horizon; None where there are too few frames or episodes, or nothing varies that could be told."""


@dataclass(frozen=True)
class Coded:
    """Frames of whole episodes in order. features: [N F] by name. action: [N A], standardized. row: of the store.
    gripper: [N G], -1 or +1; None: not read.
    """

    features: Mapping[str, Float[np.ndarray, "N _"]]
    action: Float[np.ndarray, "N A"]
    episode: Int[np.ndarray, " N"]
    row: Int[np.ndarray, " N"]
    gripper: Float[np.ndarray, "N G"] | None = None


def kept_vectors(store: Store) -> tuple[dict[str, Floats], list[str]]:
    """Of every frame of the store [V F]: the mean over a tower's patches, and its class token, of all features that are
    kept with it; and what of DINOv2's is absent.
    """
    found: dict[str, Floats] = {}
    absent = []
    towers = kept_towers(store)
    for each in towers:
        told = vectors(each, store.manifest.counts["frames"])
        found |= {f"features/{each.name}, {name}": values for name, values in told.items()}
        if each.made_from["encoder"] == "dinov2" and "class" not in told:
            name = CLASS_TOKEN.format(camera="<camera>")
            absent.append(f"features/{each.name} has no {name}, so its class token is absent; run `{MAKE}` again")
    if not any(each.made_from["encoder"] == "dinov2" for each in towers):
        absent.append(f"no features of dinov2 are kept with this store, so they are absent; run `{MAKE}` with it")
    return found, absent


def probe_all(train: Coded, val: Coded, seed: int) -> tuple[dict[str, Found], dict[str, Found]]:
    """Of the continuous actions, and of the binary ones (empty where there is none), by every feature and by its
    principal components, fitted to `train` and measured on `val`.
    """
    arm: dict[str, Found] = {}
    gripper: dict[str, Found] = {}
    wanted = [(arm, train.action, val.action)]
    if train.gripper is not None and val.gripper is not None and train.gripper.shape[1]:
        wanted.append((gripper, train.gripper, val.gripper))
    for name in train.features:
        sides = (train.features[name], val.features[name])
        mean, directions = principal(sides[0].astype(np.float64), REDUCED)
        reduced = ((sides[0] - mean) @ directions, (sides[1] - mean) @ directions)
        for found, *done in wanted:
            found[name] = _probes(sides, train, val, done, seed)
            found[f"{name}, {REDUCED} components"] = _probes(reduced, train, val, done, seed)
    return arm, gripper


def _probes(sides: tuple[Floats, Floats], train: Coded, val: Coded, done: Sequence[Floats], seed: int) -> Found:
    found: Found = {}
    for k in HORIZONS:
        fitted, measured = pairs(sides[0], train, k, done[0]), pairs(sides[1], val, k, done[1])
        varies = len(measured[0]) and bool((measured[1] != fitted[1][:1]).any() or np.ptp(fitted[1], axis=0).any())
        found[str(k)] = probe(fitted, measured, seed) if varies and enough(fitted) else None
    return found


Pairs = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]


def enough(fitted: Pairs) -> bool:
    """Whether they are of several folds, which choosing a penalty takes."""
    return len(np.unique(fitted[2] % FOLDS)) > 1


def pairs(feature: Floats, coded: Coded, k: int, done: Floats | None = None) -> Pairs:
    """Differences over k frames of one episode, what was done between, summed, and the episode.

    done: numbers of an action by frame; None: the continuous ones.
    """
    done = coded.action if done is None else done
    same = coded.episode[k:] == coded.episode[:-k]
    sums = np.cumsum(np.concatenate([np.zeros((1, done.shape[1])), done]), axis=0)
    between = sums[k:-1] - sums[: -k - 1]
    return (feature[k:] - feature[:-k])[same].astype(np.float64), between[same], coded.episode[k:][same]
