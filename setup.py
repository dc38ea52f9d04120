"""Calls CMake. Everything else about the package is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


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
        subprocess.run(configure, cwd=build, check=True)
        subprocess.run(["cmake", "--build", ".", "--parallel"], cwd=build, check=True)

    def copy_extensions_to_source(self) -> None:
        """The CUDA module too, which is no extension of its own: it may be absent."""
        super().copy_extensions_to_source()
        for module in Path(self.build_lib, "flowkernels").glob("_cuda.*"):
            shutil.copy2(module, ROOT / "flowkernels")


setup(ext_modules=[Extension("flowkernels._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
