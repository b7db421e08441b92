"""Where the LIBERO simulator and its config are, and whether its versions are the ones that work.

LIBERO asks questions on standard input when it is imported without a config file, so that is written before anything
imports it.
"""

import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from statevla.sims.libero.errors import SimulatorMissing, SimulatorVersion
from statevla.sims.libero.render_check import BACKENDS
from stores.disk import durable
from stores.errors import UsageError
from stores.printable import word


def install_command(root: Path) -> str:
    """What installs the simulator: of a checkout at `root` its Makefile, else the script that the wheel brought."""
    if (root / "Makefile").is_file():
        return "make libero"
    return f"sh {word(Path(__file__).with_name('install.sh'))} {word(sys.executable)}"


INSTALL = install_command(Path(__file__).resolve().parents[3])
PACKAGES = {"hf-libero": "0.1.4", "robosuite": "1.4.0", "bddl": "1.0.1", "mujoco": "3.3.2"}
"""What ``install.sh`` installs. Only MuJoCo's version is guarded: the others have one that works."""

MUJOCO_LIMIT = (3, 3, 3)
FORCE_MUJOCO = "STATEVLA_FORCE_MUJOCO"


def package_root() -> Path:
    """Folder of the Python package ``libero.libero``.

    Raises:
        SimulatorMissing: a simulator package is not installed.
    """
    for package in PACKAGES:
        if installed_version(package) is None:
            raise SimulatorMissing(
                f"the LIBERO simulator is not installed: no package {package!r} in {sys.prefix}. Run: {INSTALL}"
            )
    spec = importlib.util.find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        raise SimulatorMissing(f"package 'hf-libero' is installed but 'libero' cannot be imported. Run: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations))) / "libero"


def installed_version(package: str) -> str | None:
    """Installed version of a distribution, None when it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_mujoco(version: str | None = None) -> str:
    """The MuJoCo version, when it is one whose pictures and contacts match LIBERO's data.

    Measured: 3.2.7 and 3.3.2 render within 2/255 of 2.3.7, which recorded the data; 3.3.7 and 3.8.1 about 25% darker
    (they heed the sRGB mark of textures, see ``render_check.stripes``). A policy would see another world than it was
    trained on, and its success rate would say nothing.

    Raises:
        SimulatorMissing: no MuJoCo.
        SimulatorVersion: 3.3.3 or later, and ``STATEVLA_FORCE_MUJOCO=1`` is not set.
    """
    version = version or installed_version("mujoco")
    if version is None:
        raise SimulatorMissing(f"MuJoCo is not installed. Run: {INSTALL}")
    parts = tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in version.split(".")[:3])
    if parts >= MUJOCO_LIMIT and os.environ.get(FORCE_MUJOCO) != "1":
        raise SimulatorVersion(
            f"MuJoCo {version} is installed; LIBERO's data and published results need a version before "
            f"{'.'.join(map(str, MUJOCO_LIMIT))} (later ones draw about 25% darker and simulate contacts differently). "
            f"Run: pip install mujoco=={PACKAGES['mujoco']}   (or set {FORCE_MUJOCO}=1 to go on regardless)"
        )
    return version


def config_dir() -> Path:
    """Folder of LIBERO's ``config.yaml``: ``$LIBERO_CONFIG_PATH`` or a folder below the user's cache."""
    named = os.environ.get("LIBERO_CONFIG_PATH")
    if named:
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "statevla" / "libero"


def prepare() -> Path:
    """Makes ``import libero.libero`` possible without questions; returns the folder of the package.

    Writes LIBERO's config when there is none (or when it points to another install), and sets ``LIBERO_CONFIG_PATH``
    and ``MUJOCO_GL`` for this process and the processes it starts. Which assets are used is each worker's own business
    (:func:`use_assets`).

    Raises:
        SimulatorMissing: a package is missing.
        SimulatorVersion: see :func:`check_mujoco`.
        UsageError: ``MUJOCO_GL`` names a library that draws into a window, or none.
    """
    chosen = os.environ.get("MUJOCO_GL", BACKENDS[0])
    if chosen not in BACKENDS:
        raise UsageError(
            f"MUJOCO_GL: expected {' or '.join(BACKENDS)}, which draw without a screen, got {chosen!r}; unset it"
        )
    root = package_root()
    check_mujoco()
    _write_config(root)
    os.environ["LIBERO_CONFIG_PATH"] = str(config_dir())
    os.environ["MUJOCO_GL"] = chosen
    os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])
    return root


def configured_assets() -> Path | None:
    """What LIBERO's config says under ``assets``: the folder that ``LIBERO_ASSETS`` named when the simulator was
    installed, or the user's own.
    """
    named = _read_config().get("assets")
    return Path(named).expanduser() if isinstance(named, str) else None


def use_assets(assets: Path) -> None:
    """Makes LIBERO read its meshes and textures from ``assets``, in this process only; imports LIBERO.

    LIBERO heeds neither its config's ``assets`` key nor a variable, but it remembers a folder that it once found; what
    it would do without is to link one below its package, which all processes share, or to download.
    """
    import libero.libero

    libero.libero._assets_path_cache = str(assets)


def portable(text: str, assets: Path | None = None) -> str:
    """Text without this machine's folders: ``libero/...`` and ``robosuite/...`` are left."""
    if assets is not None:
        text = text.replace(f"{assets}/", "libero/libero/assets/")
    return text.replace(f"{package_root().parents[1]}/", "")


def _read_config() -> dict[str, Any]:
    """LIBERO's config, empty without one. Raises SimulatorMissing where it is not what LIBERO could read."""
    file = config_dir() / "config.yaml"
    try:
        present = yaml.safe_load(file.read_text()) if file.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SimulatorMissing(f"{file}: expected LIBERO's folders as YAML ({error}). Remove it; {INSTALL}") from error
    return present if isinstance(present, dict) else {}


def _write_config(root: Path) -> None:
    named, assets = os.environ.get("LIBERO_ASSETS"), configured_assets()
    if named:  # it holds for later commands too, which may not have the variable
        assets = Path(named).expanduser()
    elif assets is None or not assets.is_dir():
        assets = root / "assets"
    config = {
        "benchmark_root": str(root),
        "bddl_files": str(root / "bddl_files"),
        "init_states": str(root / "init_files"),
        "datasets": str(config_dir() / "datasets"),
        "assets": str(assets.absolute()),
    }
    present = _read_config()
    if present == config:
        return
    if os.environ.get("LIBERO_CONFIG_PATH") and present.get("bddl_files") and Path(present["bddl_files"]).is_dir():
        return  # the user's own config, complete enough to import with
    file = config_dir() / "config.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    durable.write_text(file, yaml.safe_dump(config, sort_keys=True))
