"""The table of systems: a new one is one file beside this one and one row here."""

from typing import Final

from statevla.config.load import Sections, from_dict
from statevla.config.schema import Config, Phase1Config, Phase2Config
from statevla.runs.state import CheckpointState
from statevla.systems import act, film, flow_matching, frozen, goal, stamo, temporal_jepa, vla
from statevla.systems.stamo_options import StamoOptions
from statevla.systems.system import System
from stores.errors import UsageError

ANY_ENCODER: Final = tuple(frozen.ENCODERS)

SYSTEMS: Final[list[System]] = [
    System(
        "temporal_jepa", "phase1_temporal_jepa", "encoder", "Temporal JEPA", temporal_jepa.build, Phase1Config,
        "training.phase1",
    ),
    System(
        "flow_matching", "phase2_flow_matching", "policy", "flow-matching policy", flow_matching.build, Phase2Config,
        "training.phase2", parent=("temporal_jepa",),
    ),
    System("film", "film", "policy", "FiLM policy", film.build, film.FilmOptions, "film", parent=ANY_ENCODER),
    System(
        "act", "act", "policy", "action chunking transformer", act.build, act.ActOptions, "act", parent=ANY_ENCODER,
    ),
    System(
        "vla", "vla", "policy", "vision-language-action transformer", vla.build, vla.VlaOptions, "vla",
        parent=ANY_ENCODER,
    ),
    System(
        "goal", "goal", "policy", "policy told by language or a picture", goal.build, goal.GoalOptions, "goal",
        parent=ANY_ENCODER,
    ),
    System(
        "stamo", "stamo", "encoder", "StaMo states", stamo.build, StamoOptions, "stamo",
        parent=("temporal_jepa",),
    ),
]  # fmt: skip


def find_system(name: str) -> System:
    """A row by name; ``1`` and ``2``, the documents' phases, are other names of the first two. Raises UsageError."""
    phases = {str(number): row.name for number, row in enumerate(SYSTEMS[:2], 1)}
    for row in SYSTEMS:
        if row.name == phases.get(name, name):
            return row
    raise UsageError(f"system {name!r}: expected one of {', '.join(row.name for row in SYSTEMS)}")


def system_of(state: CheckpointState, where: object) -> System:
    """The row that a checkpoint was trained by. Raises UsageError when this version has none of its name."""
    try:
        return find_system(state.system)
    except UsageError as error:
        raise UsageError(f"{where}: checkpoint of a system that this statevla does not know: {error}") from error


def sections() -> Sections:
    """Sections of the configuration beside ``data``, ``model`` and ``training``."""
    return {row.section: row.options for row in SYSTEMS if "." not in row.section}


def own_sections(system: System, config: Config) -> tuple[str, ...]:
    """Sections that the checkpoints of `system` record: its own, and those of the encoder that `config` wants."""
    own = (system.section,) if "." not in system.section else ()
    return own + tuple(
        section for name in system.parents_of(config) for section in own_sections(find_system(name), config)
    )


def _may_record(system: System) -> set[str]:
    return {system.section}.union(*(_may_record(find_system(name)) for name in system.parent))


def config_of(state: CheckpointState, where: object) -> Config:
    """The configuration in a checkpoint. Raises StoreCorrupt when a key is missing or unknown."""
    system = system_of(state, where)
    may = _may_record(system)
    known = {
        name: options
        for name, options in sections().items()
        if name == system.section or (name in may and name in state.config)
    }
    return from_dict(state.config, known, f"{where} (format {state.format}, statevla {state.code_version})")


def require_kind(state: CheckpointState, kind: str, where: object) -> System:
    """The row of a checkpoint. Raises UsageError when it is not an encoder, or not a policy, as wanted."""
    row = system_of(state, where)
    if row.kind != kind:
        fitting = [other for other in SYSTEMS if other.kind == kind]
        raise UsageError(
            f"{where}: expected a trained {kind} ({', '.join(other.folder for other in fitting)}), got the {row.kind} "
            f"{row.name}; run `statevla train --system {fitting[0].name}` or name another checkpoint"
        )
    return row
