"""Keys that a user has set and that the training of a system would not see: refused, not ignored.

Recipes and presets may have keys for many systems, and a run's recorded configuration has all of the model's: of a file
therefore only another system's section is refused, of ``--set`` every key that changes nothing.
"""

from collections.abc import Iterator
from dataclasses import fields

from statevla.config import Config
from statevla.config.load import Request
from statevla.config.options import keys
from statevla.encoders.vision import CONV
from statevla.systems.system import System
from statevla.systems.table import find_system, own_sections, sections
from stores.errors import UsageError

MODEL = "model"
OF_EVERY_MODEL = ("action_seq_len", "lang_emb_dim", "robot_state_dim", "action_dim", "state_dim", "policy_embed_dim")
"""The chunk, and keys that only say again what is known."""
OF_A_TOWER = ("vision", "vision_model", "vision_width", "vision_pool", "image_size", "patch_size")
OF_A_TARGET = ("training.ema_momentum", "training.ema_momentum_schedule")
OF_AN_ENCODER = "data.latents"
OF_PHASES = ("training.phase1.", "training.phase2.")


def require_used(system: System, config: Config, request: Request) -> None:
    """Raise UsageError naming every key that was said and that training `system` by `config` does not see."""
    unused = list(_unused(system, config, request))
    if unused:
        instead, them = _instead(system, config, unused), "it" if len(unused) == 1 else "them"
        raise UsageError(
            f"{', '.join(unused)}: not seen by {system.name} as it is configured{instead}; leave {them} out"
        )


def _unused(system: System, config: Config, request: Request) -> Iterator[str]:
    wanted, alone = system.parents_of(config), _alone(system, config)
    seen = {system.section, *own_sections(system, config)}
    if wanted:  # which kind of encoder it is may still be up to the one that is found
        seen |= {name for row in map(find_system, system.parent) for name in own_sections(row, config)}
    for key in sorted(request.changes):
        section, name = key.split(".")[0], key.rpartition(".")[2]
        if (key in request.said or key in request.filed) and section in sections() and section not in seen:
            yield key
        if key in request.said and key in alone:
            yield key
        if key not in request.said or wanted:
            continue
        if key == "training.policy_ema" and system.name == "temporal_jepa":
            yield key
        if system.sized_by_model:
            continue
        tower = config.model.vision != CONV and (system.kind == "encoder" or _takes_tower(system, config))
        if key == f"{system.section}.encoder" and not _foretells_features(system, config):
            yield key
        if key in (OF_AN_ENCODER, *OF_A_TARGET) or key.startswith(OF_PHASES):
            yield key
        if section == MODEL and name not in OF_EVERY_MODEL + (OF_A_TOWER if tower else ()):
            yield key


def _takes_tower(system: System, config: Config) -> bool:
    """Of a policy with a section of its own: whether its options say that a frozen tower is what it sees by, or what
    its world head foretells.
    """
    return getattr(system.options_of(config), "vision", CONV) != CONV or _foretells_features(system, config)


def _foretells_features(system: System, config: Config) -> bool:
    return bool(getattr(system.options_of(config), "foretells_features", False))


def _alone(system: System, config: Config) -> dict[str, str]:
    """Options that stand beside another one which is not as they want it, and how they want it."""
    parts = {"data": config.data, system.section: system.options_of(config)}
    if system.sized_by_model and not system.parents_of(config):  # a policy's model is still to come, its encoder's
        parts[MODEL] = config.model
    return {
        key.name: f"{name}.{key.option.wants}"
        for name, part in parts.items()
        for key in keys(part, f"{name}.")
        if not key.option.seen(part)
    }


def _instead(system: System, config: Config, unused: list[str]) -> str:
    """What they want beside them, or options of the system's own section that have the name of one that it does not
    see.
    """
    alone = _alone(system, config)
    wants = dict.fromkeys(alone[key] for key in unused if key in alone)
    if wants:
        return f", which takes {' and '.join(wants)}"
    own = {item.name for item in fields(system.options)}
    found = sorted({key.rpartition(".")[2] for key in unused} & own) if not system.sized_by_model else []
    if "training.policy_ema" in unused:
        return ", which has a moving average of its own (training.ema_momentum)"
    return f", which has {', '.join(f'{system.section}.{name}' for name in found)}" if found else ""
