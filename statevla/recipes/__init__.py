"""Named configurations that are known to work, each on the data that its file names: YAML beside this file.

A recipe has the keys of the configuration, and beside them ``about``, ``preset``, and ``systems``: keys that hold for
one system's training only, such as the length of its run.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from statevla.config.load import Request, flatten, read_yaml
from stores.errors import UsageError

FOLDER: Final = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """changes: dotted keys for every system. systems: dotted keys by system. preset: None for ``base``."""

    name: str
    preset: str | None
    changes: dict[str, Any]
    systems: dict[str, dict[str, Any]] = field(default_factory=dict)

    def request(self, system: str) -> Request:
        """What the recipe says for training `system`."""
        return Request(self.preset, {**self.changes, **self.systems.get(system, {})})


def names() -> list[str]:
    """Recipes by name."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """A recipe by name, or from a file whose name ends in ``.yaml`` or ``.yml``. Raises UsageError."""
    file = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if file.parent == FOLDER and file.stem not in names():
        raise UsageError(f"recipe {name!r}: expected one of {', '.join(names())}, or a file that ends in .yaml")
    tree = read_yaml(file)
    preset, systems = tree.pop("preset", None), tree.pop("systems", None) or {}
    tree.pop("about", None)
    if not isinstance(systems, dict) or not all(isinstance(value, dict) for value in systems.values()):
        raise UsageError(f"{file}: systems: expected a mapping of a system's name to its keys")
    if preset is not None and not isinstance(preset, str):
        raise UsageError(f"{file}: preset: expected a name, got {preset!r}")
    return Recipe(name, preset, flatten(tree), {key: flatten(value) for key, value in systems.items()})
