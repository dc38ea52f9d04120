"""Calls CMake. Everything else about the package is in pyproject.toml."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036  (pip asks pyproject.toml, and nobody asks it when this file is run)
    sys.exit("flowkernels: Python must be 3.10 or newer, got {}.{}".format(*sys.version_info))

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PURE = sys.platform == "win32" or os.environ.get("FLOWKERNELS_PURE", "").upper() in ("1", "ON", "TRUE", "YES")
WITHOUT = "FLOWKERNELS_PURE=ON installs the package without kernels, as plain PyTorch"


def run(command: list[str], cwd: Path) -> None:
    """Ends in one sentence where the command cannot do its work; what it said stands above."""
    try:
        done = subprocess.run(command, cwd=cwd, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        sys.exit(f"flowkernels: the build needs CMake 3.20 or newer, got no {command[0]} on PATH; {WITHOUT}")
    sys.stderr.write(done.stderr)
    if done.returncode:
        said = re.search(r"CMake Error.*\n+((?:  .+\n)+)", done.stderr)
        why = " ".join(said[1].split()) if said else f"`{' '.join(command[:2])}` failed"
        if "CMAKE_CXX_COMPILER" in why or "variable CXX" in why:
            why = "the build needs a C++17 compiler (Debian: apt install g++) on PATH or in CXX, got none that runs"
        sys.exit(f"flowkernels: {why}; {WITHOUT}")


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        for before in target.parent.glob("_cuda.*"):  # of a build that had nvcc: this one may not
            before.unlink()
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        configure = [
            "cmake", str(ROOT), *generator,
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            *(f"-D{name}={os.environ.get(name, '')}" for name in ("FLOWKERNELS_CUDA", "FLOWKERNELS_CUDA_ARCHS")),
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]  # fmt: skip
        run(configure, build)
        run(["cmake", "--build", ".", "--parallel"], build)

    def copy_extensions_to_source(self) -> None:
        """The CUDA module too, which is no extension of its own: it may be absent."""
        super().copy_extensions_to_source()
        for module in Path(self.build_lib, "flowkernels").glob("_cuda.*"):
            shutil.copy2(module, ROOT / "flowkernels")


if sys.platform == "win32":
    sys.stderr.write("flowkernels: the kernels do not build on Windows; the package works without, as plain PyTorch\n")
setup(ext_modules=[] if PURE else [Extension("flowkernels._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
