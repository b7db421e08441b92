"""Cutting an episode into segments: index arithmetic and the members of one segment.

Legend: F frames (observations) and S steps (actions) of an episode, S is F or F - 1; W steps a segment at most;
n steps of one segment; K chunk length; R numbers of a robot state, A of an action.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stores.errors import SourceError
from stores.npy import encode_npy
from stores.schema import IMAGE_SUFFIX


@dataclass(frozen=True)
class Span:
    """Steps ``first_step … first_step + steps - 1`` and observations ``first_step … + observations - 1``."""

    first_step: int
    steps: int
    observations: int


def segment_spans(frames: int, steps: int, window: int) -> list[Span]:
    """Cut `steps` steps into spans of `window`, the last one shorter. Every step is in exactly one span.

    A span has the observation after its last step where the episode has one. Raises SourceError on impossible counts.
    """
    if steps < 1 or steps not in (frames, frames - 1) or window < 1:
        raise SourceError(
            f"episode of {frames} frames and {steps} steps in windows of {window}: expected steps >= 1, "
            "frames = steps or steps + 1, window >= 1"
        )
    spans = []
    for first in range(0, steps, window):
        count = min(window, steps - first)
        spans.append(Span(first, count, min(count + 1, frames - first)))
    return spans


def chunk_actions(
    actions: NDArray[np.float32], span: Span, chunk: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Actions [S, A] -> (float32 [n + K - 1, A], is_pad bool [n + K - 1]) so that step i's chunk is rows i … i + K - 1.

    Past the episode's end the last action is repeated and is_pad is true.
    """
    wanted = np.arange(span.first_step, span.first_step + span.steps + chunk - 1)
    last = len(actions) - 1
    return np.ascontiguousarray(actions[np.minimum(wanted, last)], np.float32), wanted > last


@dataclass(frozen=True)
class SegmentMembers:
    """One segment as files: `key` is WebDataset's ``__key__``, `members` are (name after "<key>.", bytes) in order."""

    key: str
    members: tuple[tuple[str, bytes], ...]


def segment_key(source_stem: str, demo: str, segment: int) -> str:
    """``<source stem>/<demo>-<segment, 6 digits>``; the stem is a folder for tar, so that long names fit."""
    return f"{source_stem}/{demo}-{segment:06d}"


def image_name(camera: str, index: int, codec: str) -> str:
    """Member name of a camera's `index`-th observation in a segment: ``agentview.00.jpg``."""
    return f"{camera}.{index:02d}.{IMAGE_SUFFIX[codec]}"


_JSON: Final = json.JSONEncoder(sort_keys=True, ensure_ascii=False, allow_nan=False)


@functools.lru_cache(maxsize=1024)
def image_names(camera: str, count: int, codec: str) -> tuple[str, ...]:
    """`image_name` of observations 0 … count - 1. The same few come again with every segment."""
    return tuple(image_name(camera, index, codec) for index in range(count))


def segment_members(
    key: str,
    span: Span,
    meta: Mapping[str, Any],
    robot_state: NDArray[np.float32],
    actions: NDArray[np.float32],
    images: Mapping[str, Sequence[bytes]],
    chunk: int,
    codec: str,
) -> SegmentMembers:
    """Members of the segment `span` of an episode.

    meta: JSON fields of the episode (instruction, source, …); the span's numbers are added.
    robot_state: float32 [F, R] and actions: float32 [S, A] of the whole episode.
    images: per camera, in the spec's order, the encoded bytes of the *span's* observations.
    """
    action, is_pad = chunk_actions(actions, span, chunk)
    stop = span.first_step + span.observations
    record = {**meta, "first_step": span.first_step, "steps": span.steps, "observations": span.observations}
    members = [
        ("json", _JSON.encode(record).encode()),
        ("robot_state.npy", encode_npy(robot_state[span.first_step : stop].astype(np.float32, copy=False))),
        ("action.npy", encode_npy(action)),
        ("is_pad.npy", encode_npy(is_pad)),
    ]
    for camera, encoded in images.items():
        if len(encoded) != span.observations:
            raise SourceError(f"{key}: expected {span.observations} {camera} images, got {len(encoded)}")
        members += zip(image_names(camera, span.observations, codec), encoded, strict=True)
    return SegmentMembers(key, tuple(members))
