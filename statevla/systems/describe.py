"""What a configuration says: the parameters of every part, counted without memory (the meta device), and its keys."""

import textwrap
from typing import NamedTuple, TypedDict

import torch
from torch import nn

from statevla.config import Config
from statevla.config.options import keys
from statevla.systems.flow_matching import PolicyModel
from statevla.systems.system import Given, System
from statevla.systems.temporal_jepa import JepaModel


class Description(TypedDict):
    """parts: parameters by part. trainable: their sum. total: with the moving-average copy of the context encoder."""

    parts: dict[str, int]
    trainable: int
    total: int


def count(module: nn.Module) -> int:
    """Number of parameters, frozen ones too."""
    return sum(parameter.numel() for parameter in module.parameters())


def describe(config: Config) -> Description:
    """Per-part counts; the frozen vision backbone is not counted.

    `total` counts a copy of the context encoder as the StateVLA documents do (their "~14.9M" for preset `original`).
    The target of phase 1 also copies the tokenizer and the state projection: those are in no count.
    """
    with torch.device("meta"):
        jepa = JepaModel(config)
        policy = PolicyModel(config, jepa.encoder)
    parts = {
        "tokenizer": count(jepa.encoder.tokenizer),
        "context_encoder": count(jepa.encoder.context_encoder),
        "state_projection": count(jepa.encoder.state_projection),
        "temporal_predictor": count(jepa.predictor),
        "flow_policy": count(policy.flow),
        "gripper_classifier": count(policy.gripper),
    }
    if jepa.inverse is not None:
        parts["inverse_dynamics"] = count(jepa.inverse)
    if policy.world is not None:
        parts["world_head"] = count(policy.world)
    trainable = sum(parts.values())
    return Description(parts=parts, trainable=trainable, total=trainable + parts["context_encoder"])


class SystemDescription(TypedDict):
    """parts: trained parameters by part. frozen: those that it holds and does not train, such as its encoder's."""

    system: str
    parts: dict[str, int]
    trainable: int
    frozen: int


def describe_system(row: System, config: Config) -> SystemDescription:
    """What `config` makes of one system; a frozen vision tower is not counted. Raises what building raises."""
    with torch.device("meta"):
        model = row.build(config, Given())
    parts: dict[str, int] = {}
    frozen = 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            frozen += parameter.numel()
            continue
        part = name.removeprefix("net.").partition(".")[0]
        parts[part] = parts.get(part, 0) + parameter.numel()
    return SystemDescription(system=row.name, parts=parts, trainable=sum(parts.values()), frozen=frozen)


class KeyRow(NamedTuple):
    """One configuration key for people. range: its type too."""

    key: str
    value: object
    range: str
    help: str


def list_keys(config: Config) -> list[KeyRow]:
    """Every key of `config` in order."""
    rows = []
    for name, part in config.parts().items():
        for key in keys(part, f"{name}."):
            allowed = ", ".join(text for text in (key.type, key.option.range) if text)
            rows.append(
                KeyRow(key.name, key.value, key.option.range if key.option.choices else allowed, key.option.help)
            )
    return rows


def key_lines(rows: list[KeyRow], columns: int | None = None) -> list[str]:
    """One line a key: name, value, what it is, and in brackets what it may be.

    columns: of the terminal; a line that is longer becomes the key with its value, and the rest below it, indented.
    """
    names = max(len(row.key) for row in rows)
    values = ["-" if row.value is None else str(row.value) for row in rows]
    width = min(max(map(len, values)), 24)
    lines = []
    for row, value in zip(rows, values, strict=True):
        line = f"{row.key:{names}}  {value:{width}}  {row.help} [{row.range}]"
        if columns is None or len(line) <= columns:
            lines.append(line)
        else:
            what = textwrap.wrap(f"{row.help} [{row.range}]", columns - 4)
            lines += [f"{row.key:{names}}  {value}", *(f"    {part}" for part in what)]
    return lines
