"""Compile the native CPU kernels: `python -m statevla.models.kernels.build` builds them in place.

Standard library only, because `setup.py` loads this file while installing, when nothing else is there. The library
links neither PyTorch nor Python nor OpenMP: one file serves every version of them.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LIBRARY = "_native.so"
_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
_FLAGS += ["-ffp-contract=fast", "-Wall", "-Wextra", "-Wno-psabi"]
_X86 = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512", "-mfma"],
}


class BuildError(Exception):
    """The kernels cannot be compiled here; the text says why. Everything still runs, slower, without them."""


def find_compiler() -> str:
    """Path of $CXX, g++ or clang++, the first there is.

    Raises:
        BuildError: none is on the path, or the system is Windows (the sources use GCC's vector types).
    """
    if os.name != "posix":
        raise BuildError("the native kernels need g++ or clang++ on Linux or macOS")
    for name in (os.environ.get("CXX", ""), "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise BuildError("no C++ compiler on the path: install g++ (or clang++), or set CXX")


def build(folder: Path, sources: Path) -> Path:
    """Compile `sources` (the csrc folder) into `folder`/_native.so, replacing it whole; returns its path.

    Raises:
        BuildError: no compiler, or it failed (its message is in the text).
    """
    compiler = find_compiler()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    variants = {"baseline": [], **(_X86 if x86 else {})}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        jobs = {
            name: [*_FLAGS, *flags, f"-DISA={name}", str(sources / "kernels.cpp")] for name, flags in variants.items()
        }
        for name in ("dispatch", "gather"):
            jobs[name] = [*_FLAGS, *(["-DHAVE_X86"] if x86 else []), str(sources / f"{name}.cpp")]
        objects = [Path(work) / f"{name}.o" for name in jobs]
        running = [
            subprocess.Popen([compiler, *flags, "-c", "-o", str(out)], stderr=subprocess.PIPE, text=True)
            for flags, out in zip(jobs.values(), objects, strict=True)
        ]
        messages = [process.communicate()[1] for process in running]
        for name, process, message in zip(jobs, running, messages, strict=True):
            if process.returncode != 0:
                raise BuildError(f"{compiler} failed on {name}:\n{message}")
        linked = Path(work) / LIBRARY
        link = subprocess.run(
            [compiler, "-shared", "-o", str(linked), *map(str, objects)], capture_output=True, text=True, check=False
        )
        if link.returncode != 0:
            raise BuildError(f"{compiler} failed to link:\n{link.stderr}")
        os.replace(linked, folder / LIBRARY)
    return folder / LIBRARY


def main() -> int:
    """Build next to this file; prints the path, or the reason on standard error with exit code 1."""
    here = Path(__file__).resolve().parent
    try:
        print(build(here, here / "csrc"))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
