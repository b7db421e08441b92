"""Installs everything that pyproject.toml says, and compiles the native CPU kernels if the machine can.

A missing or failing compiler never fails the installation: the toolkit then runs its PyTorch loop and says so.
"""

import importlib.util
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

KERNELS = Path("statevla/models/kernels")


class BuildKernels(build_ext):
    """Hands the kernels to statevla/models/kernels/build.py, which knows their flags; it needs no PyTorch."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"  # a plain shared library, for any Python version

    def build_extension(self, ext: Extension) -> None:
        here = Path(__file__).resolve().parent
        spec = importlib.util.spec_from_file_location("kernel_build", here / KERNELS / "build.py")
        if spec is None or spec.loader is None:
            raise RuntimeError(f"{KERNELS / 'build.py'} is missing")
        kernel_build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(kernel_build)
        try:
            kernel_build.build(Path(self.get_ext_fullpath(ext.name)).resolve().parent, here / KERNELS / "csrc")
        except (kernel_build.BuildError, OSError) as error:
            self.warn(f"native CPU kernels not built, the PyTorch loop will be used: {error}")

    def copy_extensions_to_source(self) -> None:
        built = (Path(self.build_lib) / self.get_ext_filename(ext.name) for ext in self.extensions)
        if all(path.is_file() for path in built):
            super().copy_extensions_to_source()


class AnyPython(bdist_wheel):
    """Tags the wheel for its platform only: the library links no Python, and the rest is Python's own language."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(
    ext_modules=[
        Extension("statevla.models.kernels._native", sources=[str(KERNELS / "csrc" / "kernels.cpp")], optional=True)
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPython},
)
