"""The installed command `statevla`, and `python -m statevla`: our own `cli.py`, found by its place.

`cli`, `stores` and `pipelines` are common names. A project that has its own must neither answer for this toolkit nor
be imported by it: `cli.py` is loaded from beside the package, whatever else is called so, and a `stores` or
`pipelines` that comes first on the path is refused before it runs.
"""

import importlib.util
import io
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGES: Final = ("stores", "pipelines")
FIRST_WORDS: Final = '"""The `statevla` command'
"""How our cli.py begins: another package may have been installed over it."""


def main() -> None:
    """Run the command line; exit status 2 where another project's modules are in the way."""
    try:
        mend_streams()
        obstacle = foreign_module() or foreign_cli()
        if obstacle is not None:
            print(f"error: {obstacle}", file=sys.stderr)
            sys.exit(2)
        load_cli().main()
    except KeyboardInterrupt:  # while it loads; a command that has begun says by itself that it was stopped
        sys.exit(130)


def mend_streams() -> None:
    """Make the standard streams ones that can be written to.

    A closed one (``>&-``) swallows what it is told, and its number becomes no file of a store; a letter that the
    terminal's encoding lacks is escaped. JSON is ASCII in any case.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # stays open to the end
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(errors="backslashreplace")


def foreign_module(root: Path = ROOT) -> str | None:
    """What to do about a `stores` or `pipelines` that is not the one in `root`; None when both are ours."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)  # finds it, and runs nothing of it
        if spec is None:
            return f"{root / name}: this part of StateVLA is not installed; run: pip install --force-reinstall statevla"
        places = [Path(place).resolve() for place in spec.submodule_search_locations or [spec.origin or ""]]
        if root / name not in places:
            found = spec.origin or places[0]
            return (
                f"{found}: a module named {name!r} that is not StateVLA's ({root / name}) comes first on the path; "
                "run from another folder, or take its folder out of PYTHONPATH"
            )
    return None


def foreign_cli(root: Path = ROOT) -> str | None:
    """What to do where the cli.py in `root` is missing or another package's; None when it is ours."""
    path, repair = root / "cli.py", "run: pip install --force-reinstall --no-deps statevla"
    if not path.is_file():
        return f"{path}: StateVLA's command line is missing (removed with another package that has a cli.py?); {repair}"
    if not path.read_text(encoding="utf-8", errors="replace").startswith(FIRST_WORDS):
        return f"{path}: another package has put its cli.py over StateVLA's; {repair}"
    return None


def load_cli(root: Path = ROOT) -> ModuleType:
    """Our cli.py as a module, whatever `import cli` would find."""
    spec = importlib.util.spec_from_file_location("cli", root / "cli.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{root / 'cli.py'}: cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules["cli"] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
