"""Where the LIBERO simulator, its assets and its config are, and whether its versions are the ones that work.

LIBERO asks questions on standard input when it is imported without a config file, and looks for its meshes below its
own package; so the config is written, and the assets are linked, before anything imports it.
"""

import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

import yaml

from statevla.sims.libero.errors import SimulatorMissing, SimulatorVersion
from stores.disk import durable

INSTALL = "make libero"
PACKAGES = {"hf-libero": "0.1.4", "robosuite": "1.4.0", "bddl": "1.0.1", "mujoco": "3.3.2"}
"""What ``install.sh`` installs. Only MuJoCo's version is guarded: the others have one that works."""

MUJOCO_LIMIT = (3, 3, 3)
FORCE_MUJOCO = "STATEVLA_FORCE_MUJOCO"
ASSETS_PROBE = ("scenes", "stable_hope_objects", "stable_scanned_objects", "textures")
"""Folders that every complete or partial copy of LIBERO's assets has."""


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


def find_assets(root: Path) -> Path | None:
    """Folder with LIBERO's assets: ``$LIBERO_ASSETS``, else those of the install, else those LIBERO downloaded.

    Raises:
        SimulatorMissing: ``$LIBERO_ASSETS`` names something that is not an assets folder.
    """
    named = os.environ.get("LIBERO_ASSETS")
    if named:
        folder = Path(named).expanduser().resolve()
        if not _is_assets(folder):
            found = f"it has {sorted(p.name for p in folder.iterdir())}" if folder.is_dir() else "no such folder"
            raise SimulatorMissing(
                f"LIBERO_ASSETS={named}: expected LIBERO's folder 'libero/libero/assets' with "
                f"{', '.join(ASSETS_PROBE)}; {found}"
            )
        return folder
    downloaded = Path("~/.cache/libero/assets").expanduser()
    return next((p.resolve() for p in (root / "assets", downloaded) if _is_assets(p)), None)


def _is_assets(folder: Path) -> bool:
    return all((folder / name).is_dir() for name in ASSETS_PROBE)


def prepare() -> Path:
    """Makes ``import libero.libero`` possible without questions; returns the folder of the package.

    Writes LIBERO's config when there is none (or when it points to another install), links the assets below the
    package when they are elsewhere, and sets ``LIBERO_CONFIG_PATH`` and ``MUJOCO_GL`` for this process and the
    processes it starts.

    Raises:
        SimulatorMissing: packages or assets are missing.
        SimulatorVersion: see :func:`check_mujoco`.
    """
    root = package_root()
    check_mujoco()
    assets = _required_assets(root)
    _link_assets(root, assets)
    _write_config(root, assets)
    os.environ["LIBERO_CONFIG_PATH"] = str(config_dir())
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("PYOPENGL_PLATFORM", os.environ["MUJOCO_GL"])
    return root


def _required_assets(root: Path) -> Path:
    assets = find_assets(root)
    if assets is None:
        raise SimulatorMissing(
            f"LIBERO's assets (meshes, textures) are not there. Looked at $LIBERO_ASSETS, {root / 'assets'} and "
            f"~/.cache/libero/assets. Run: {INSTALL}   (or: LIBERO_ASSETS=<folder> {INSTALL})"
        )
    return assets


def _link_assets(root: Path, assets: Path) -> None:
    """LIBERO ignores its config's ``assets`` key and looks only below its package."""
    place = root / "assets"
    if place.exists() and place.resolve() == assets:
        return
    if place.exists() and not place.is_symlink():
        raise SimulatorMissing(
            f"{place} holds other assets than LIBERO_ASSETS={assets}. Remove that folder or unset LIBERO_ASSETS"
        )
    fresh = root / f".assets-{os.getpid()}"
    fresh.symlink_to(assets, target_is_directory=True)
    fresh.replace(place)


def _write_config(root: Path, assets: Path) -> None:
    config = {
        "benchmark_root": str(root),
        "bddl_files": str(root / "bddl_files"),
        "init_states": str(root / "init_files"),
        "datasets": str(config_dir() / "datasets"),
        "assets": str(assets),
    }
    file = config_dir() / "config.yaml"
    if file.is_file() and yaml.safe_load(file.read_text()) == config:
        return
    if file.is_file() and os.environ.get("LIBERO_CONFIG_PATH"):
        present = yaml.safe_load(file.read_text())
        if isinstance(present, dict) and present.get("bddl_files") and Path(present["bddl_files"]).is_dir():
            return  # the user's own config, complete enough to import with
    file.parent.mkdir(parents=True, exist_ok=True)
    durable.write_text(file, yaml.safe_dump(config, sort_keys=True))


def install_assets() -> Path:
    """Last step of an installation: assets found or downloaded, config written; returns the assets' folder."""
    root = package_root()
    if find_assets(root) is None:
        print("LIBERO's assets are not on this machine; trying LIBERO's own download", file=sys.stderr)
        _write_config(root, root / "assets")
        os.environ["LIBERO_CONFIG_PATH"] = str(config_dir())
        # Imported here, at installation only: the package asks for a config at import, which exists now.
        from libero.libero.utils import download_utils

        try:
            download_utils.download_assets_from_huggingface()
        except Exception as error:  # whatever the network does; the message says what else can be done
            raise SimulatorMissing(
                f"LIBERO's download of its assets failed ({error}). Get the folder 'libero/libero/assets' of LIBERO's "
                f"repository on a machine with a network and run: LIBERO_ASSETS=<folder> {INSTALL}"
            ) from error
    prepare()
    return _required_assets(root)


def main() -> int:
    """``python -m statevla.sims.libero.paths``: called at the end of ``install.sh``."""
    try:
        assets = install_assets()
    except (SimulatorMissing, SimulatorVersion) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"LIBERO simulator ready: assets {assets}, config {config_dir() / 'config.yaml'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
