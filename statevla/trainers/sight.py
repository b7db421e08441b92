"""What a system sees pictures by, against what its configuration says of a frozen tower and of its kept features."""

from dataclasses import fields

from statevla.encoders.vision import CONV
from statevla.models.tokenizer import FrozenFeatures
from statevla.systems.system import Objective, System
from stores.errors import UsageError


def require_pictures(system: System, model: Objective, features: str | None) -> None:
    """Raise UsageError where kept features would stand in the place of pictures that are looked at otherwise."""
    if features is not None and not (model.sees_by_tower or model.needs.features_beside):
        raise UsageError(
            f"data.features: {system.name} sees pictures by layers of its own, which features/{features} of a frozen "
            f"tower cannot stand for; leave it out{_or(system)}"
        )


def require_tower(system: System, model: Objective, vision: str) -> None:
    """Raise UsageError where a frozen tower is configured that no part of `model` sees by."""
    if vision != CONV and not any(isinstance(part, FrozenFeatures) for part in model.modules()):
        raise UsageError(
            f"model.vision: {system.name} sees pictures by layers of its own as it is configured, not by the frozen "
            f"tower {vision}; leave it out{_or(system)}"
        )


def _or(system: System) -> str:
    """The way to a tower, where the system has one."""
    named = {field.name for field in fields(system.options)}
    return f", or set {system.section}.vision to that tower" if "vision" in named else ""
