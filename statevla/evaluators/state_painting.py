"""Pictures that a StaMo paints of validation frames' states, and of the straight ways between them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor

from statevla.data.batch import ObservationBatch
from statevla.evaluators.state_between import Way, ends, way
from statevla.evaluators.state_pictures import compare_pictures, read_frames
from statevla.systems.stamo import StamoModel
from statevla.systems.stamo_options import ONLY_NOISE
from statevla.systems.system import Objective
from stores.errors import UsageError
from stores.reader import Store

MOVED: Final = 0.08
"""A pixel moves where some colour changes by more within `MOTION` frames, of [0, 1]."""
MOTION: Final = 5
PAINTED: Final = 64
"""Frames of the validation split that are painted."""
WAYS: Final = 16
"""Validation episodes in each of which a straight way between two states is painted."""


@dataclass(frozen=True)
class Pictures:
    """PSNR in dB by what painted, over whole pictures and where something moves; SSIM likewise."""

    whole: dict[str, float]
    moving: dict[str, float | None]
    ssim: dict[str, float]
    ssim_moving: dict[str, float | None]
    frames: int


def require_guidance(model: Objective, system: str, guidance: float) -> None:
    """Raises UsageError where guidance means nothing."""
    if not isinstance(model, StamoModel):
        raise UsageError(f"--guidance {guidance:g}: {system} paints nothing")
    if model.options.state_dropout == 0:
        raise UsageError(
            f"--guidance {guidance:g}: this decoder never painted without a state (stamo.state_dropout=0); train one "
            "that did"
        )


def told_painting(model: Objective, store: Store, guidance: float) -> Iterator[str]:
    """Notes on how it was painted, and what was not."""
    if guidance != 1:
        yield f"painted with guidance {guidance:g}"
    names, seen = store.spec.camera_names, seen_by(model)
    if seen and len(seen) < len(names):
        yield f"its states are of {', '.join(names[camera] for camera in seen)}; pooled pixels are of every camera"


def seen_by(model: Objective) -> Sequence[int]:
    """Numbers of the cameras that an encoder paints."""
    return model.seen if isinstance(model, StamoModel) else ()


def paint_frames(
    models: Mapping[str, Objective], store: Store, device: torch.device, seed: int, guidance: float
) -> Pictures:
    """Validation frames painted from their states, beside what needs no painter.

    models: the first, and others that are named; of them those are painted too that paint the same pictures.
    """
    first, *others = [(name, model) for name, model in models.items() if isinstance(model, StamoModel)]
    painters = _painters("its state", first[1], device, seed, guidance)
    for name, model in others:
        if _what(model) == _what(first[1]):
            painters |= _painters(name, model, device, seed, 1.0)
    size, numbers = first[1].options.image_size, math.prod(first[1].state_shape)
    return Pictures(*compare_pictures(painters, numbers, store, size, first[1].seen, PAINTED, MOTION, MOVED))


def _what(model: StamoModel) -> tuple[int, Sequence[int]]:
    """Of which size pictures are, and of which cameras."""
    return model.options.image_size, model.seen


def _painters(
    name: str, model: StamoModel, device: torch.device, seed: int, guidance: float
) -> dict[str, Callable[[ObservationBatch], Tensor]]:
    """In many steps, and in one."""

    def paint(obs: ObservationBatch, steps: int) -> Tensor:
        with torch.inference_mode():
            state = torch.cat([model.state(part.to(device)) for part in _parts(obs)])
        return model.decode(state, torch.Generator().manual_seed(seed), steps, guidance)

    found: dict[str, Callable[[ObservationBatch], Tensor]] = {name: partial(paint, steps=25)}
    if model.options.levels == ONLY_NOISE:  # which has no other way than in one step
        found.clear()
    return found | {f"{name}, in one step": partial(paint, steps=1)}


def paint_ways(model: StamoModel, store: Store, device: torch.device, seed: int, guidance: float) -> list[Way]:
    """Straight ways between states of validation episodes."""
    seen = read_frames(store, "val", model.options.image_size, model.seen, None)

    def code(rows: Tensor) -> Tensor:
        with torch.inference_mode():
            return model.state(seen.obs.each(lambda tensor: tensor[rows]).to(device))

    def decode(state: Tensor) -> Tensor:
        return model.decode(state, torch.Generator().manual_seed(seed), guidance=guidance)

    return [way(seen, rows, code, decode) for rows in ends(seen.episode, WAYS)]


def _parts(obs: ObservationBatch, rows: int = 64) -> Iterator[ObservationBatch]:
    for start in range(0, len(obs.robot_state), rows):
        part = slice(start, start + rows)
        yield obs.each(lambda tensor, part=part: tensor[part])  # type: ignore[misc]
