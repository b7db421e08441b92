"""What a run checks and chooses before its first step: device, precision, which keys a resumed run may change."""

import contextlib
from dataclasses import dataclass, fields
from typing import Any, Final

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from statevla.config import Config
from statevla.config.load import flatten
from statevla.config.options import Key, keys
from statevla.config.schema import SystemOptions
from statevla.data.needs import Needs
from statevla.systems.system import System
from statevla.systems.table import own_sections
from stores.errors import UsageError


def rows_of_rank(batch_size: int, world: int) -> int:
    """Rows of a batch that each of `world` ranks has. Raises UsageError where that is less than two."""
    rows = batch_size // world
    if world > 1 and rows < 2:
        raise UsageError(
            f"training.batch_size: {batch_size} rows are fewer than two for each of {world} ranks; "
            f"use --set training.batch_size={2 * world} or more, or at most {max(batch_size // 2, 1)} ranks"
        )
    return rows


def require_learnable(system: System, needs: Needs, config: Config, learns_unlabelled: bool) -> None:
    """Raise UsageError where a batch would have too few rows, or rows that teach the system nothing, and where states
    are wanted that are not kept.
    """
    training, data = config.training, config.data
    if training.batch_size < needs.rows:
        raise UsageError(
            f"training.batch_size: {system.name} takes statistics of a batch and needs {needs.rows} rows or more, "
            f"got {training.batch_size}"
        )
    if data.labelled_share < 1 and data.unlabelled == "keep" and not learns_unlabelled:
        raise UsageError(
            f"data.unlabelled=keep: {system.name} learns nothing from rows without actions as it is configured; "
            "use a world head (world_target), or leave_out"
        )
    if needs.states and (data.shuffle_instructions or not data.latents):
        off = (
            "latents: false keeps no states" if not data.latents else "shuffle_instructions: kept states have their own"
        )
        raise UsageError(
            f"data.{off}, and the targets of {system.section}.world_target are made of kept ones as it is configured; "
            "leave it out, or use world_target=state or motion"
        )


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to autocast to bfloat16."""
    return precision == "bf16" or (precision == "auto" and device.type == "cuda")


def slow_bf16(autocast: bool, device: torch.device) -> str | None:
    """What to say of a processor that has no instructions for bfloat16: PyTorch's products are loops then."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if not autocast or device.type != "cpu" or supported is None or supported():
        return None
    return (
        "training.precision=bf16: this processor has no instructions for bfloat16, so that a step takes several times "
        "as long as with float32 (training.precision=auto)"
    )


def attention_kernel(device: torch.device, autocast: bool) -> contextlib.AbstractContextManager[None]:
    """Chooses PyTorch's attention. In bfloat16 on a CPU its fused one takes five times as long backward as in float32
    (PyTorch 2.13), which its plain products do not (docs/log.md).
    """
    slow = autocast and device.type == "cpu"
    chosen: contextlib.AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH) if slow else contextlib.nullcontext()
    return chosen


HOW_TRAINED: Final = frozenset(item.name for item in fields(SystemOptions))
"""Options of every system: they say how it was trained, not what it is."""


@dataclass(frozen=True)
class Difference:
    """A key that two configurations set differently."""

    key: str
    mine: Any
    theirs: Any


def differences(mine: Config, theirs: Config, which: str) -> list[Difference]:
    """Keys on which two configurations differ.

    which: ``resume``, those that a resumed run must keep, or ``parent``, those that fix the frozen encoder of `theirs`:
    marked ones, and the whole section of its system but for how it was trained.
    """
    left, right = flatten(mine.to_dict()), flatten(theirs.to_dict())

    def checks(section: str, key: Key) -> bool:
        if which == "resume":
            return not key.option.resume
        return key.option.parent or (section in theirs.sections and key.name.rpartition(".")[2] not in HOW_TRAINED)

    checked = [key.name for name, part in mine.parts().items() for key in keys(part, f"{name}.") if checks(name, key)]
    return [Difference(key, left[key], right[key]) for key in checked if key in right and left[key] != right[key]]


def require_same_config(config: Config, saved: Config, system: System, where: object) -> None:
    """Raise UsageError naming every key on which a resumed run may not differ from its checkpoint, but does.

    Options of other systems do not count, but those of its own frozen encoder.
    """
    mine = {system.section, *own_sections(system, config)}
    others = tuple(f"{path}." for path in ("training.phase1", "training.phase2", *config.sections) if path not in mine)
    found = [each for each in differences(config, saved, "resume") if not each.key.startswith(others)]
    if found:
        listed = "; ".join(f"{each.key}: {each.mine!r} here, {each.theirs!r} there" for each in found)
        raise UsageError(
            f"a resumed run keeps the configuration of {where}, but: {listed}; "
            "leave these keys, or the preset, out, or start another run without --resume"
        )
