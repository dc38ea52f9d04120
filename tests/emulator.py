"""The CUDA kernels' own source on the CPU: csrc/**/*_cuda.cu compiled against tests/cuda_emulator, in place of _cuda.

Built once for a state of the sources, into a folder of build/. `FLOWKERNELS_EMULATOR_ASAN=1` builds it with
AddressSanitizer, for a process that has libasan loaded before everything else.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flowkernels import use_backend
from flowkernels._machine import CUDA
from tests.device import products_of_rows_alone

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "tests" / "cuda_emulator"
ORDERS = {"forward": (0, 0), "reverse": (1, 0), "shuffled": (2, 1), "shuffled again": (2, 2)}
ASAN = os.environ.get("FLOWKERNELS_EMULATOR_ASAN") == "1"
_FLAGS = ("-std=c++17", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
# Misalignment is reported by emulator.cpp, without libubsan.
_OF_KERNELS = ("-fsanitize=alignment", "-fsanitize-recover=alignment")
# nvcc contracts products and sums; so does the emulator where the processor can.
_CONTRACTS = Path("/proc/cpuinfo").exists() and " fma " in Path("/proc/cpuinfo").read_text()


def _flags(source: Path) -> tuple[str, ...]:
    if source.suffix != ".cu":
        return (*_FLAGS, "-O2" if source.name == "emulator.cpp" else "-O0")
    if ASAN:
        return (*_FLAGS, *_OF_KERNELS, "-O1", "-fsanitize=address")
    return (*_FLAGS, *_OF_KERNELS, "-O2", *(("-mfma", "-ffp-contract=fast") if _CONTRACTS else ()))


def sources() -> list[Path]:
    """Every kernel, what turns Python's arguments into calls, and the bindings."""
    cuda = sorted(ROOT.glob("csrc/*/*_cuda.cu"))
    args = [f for f in sorted(ROOT.glob("csrc/*/*_args.cpp")) if (f.parent / f"{f.parent.name}_cuda.cu") in cuda]
    return [*cuda, *args, ROOT / "csrc" / "univariate" / "map_args.cpp", ROOT / "csrc" / "cuda_bindings.cpp"]


def compile_module(name: str, files: Sequence[Path]) -> Path:
    """The shared library of these sources and the emulator, if it is not there yet for this state of the sources."""
    text = b"".join(f.read_bytes() for f in [*sorted(ROOT.glob("csrc/**/*.*")), *sorted(HERE.iterdir())])
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("the emulator needs a C++ compiler")
    state = hashlib.sha256(text + repr((compiler, sys.version, _FLAGS, _CONTRACTS)).encode()).hexdigest()[:16]
    folder = ROOT / "build" / "cuda_emulator" / state
    of_files = hashlib.sha256(" ".join(map(str, files)).encode()).hexdigest()[:8]
    out = folder / f"{name}_{of_files}{'_asan' * ASAN}{sysconfig.get_config_var('EXT_SUFFIX')}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:  # another process of tests may be at it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            _compile(compiler, files, folder, out)
    return out


def _compile(compiler: str, files: Sequence[Path], folder: Path, out: Path) -> None:
    import pybind11

    for old in folder.parent.glob("*/"):
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    include = [f"-I{p}" for p in (HERE, ROOT / "csrc", pybind11.get_include(), sysconfig.get_paths()["include"])]

    def one(source: Path) -> Path:
        flags = _flags(source)
        key = hashlib.sha256(repr(flags).encode()).hexdigest()[:8]
        to = folder / f"{source.parent.name}_{source.name}_{key}.o"
        if not to.exists():  # what holds no kernel is the same with AddressSanitizer
            command = [compiler, *flags, *include, '-DFK_CUDA_ARCHS="emulated"', "-x", "c++", "-c", str(source)]
            done = subprocess.run([*command, "-o", f"{to}.new"], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            os.replace(f"{to}.new", to)
        return to

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(one, [*files, HERE / "emulator.cpp"]))
    link = [compiler, "-shared", *(["-fsanitize=address"] if ASAN else []), *objects, "-o", f"{out}.new"]
    subprocess.run(link, check=True)
    os.replace(f"{out}.new", out)


class Emulated:
    """The module, and what its emulator tells and is told."""

    def __init__(self, path: Path, name: str = "_cuda") -> None:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        self.module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self.library = ctypes.CDLL(str(path))
        self.library.fk_emulator_launches.restype = ctypes.c_long

    @property
    def launches(self) -> int:
        return self.library.fk_emulator_launches()

    @contextlib.contextmanager
    def order(self, name: str) -> Iterator[None]:
        """In which order the threads of a block are resumed: a result that depends on it misses a barrier."""
        self.library.fk_emulator_order(*ORDERS[name])
        yield
        self.library.fk_emulator_order(0, 0)

    @contextlib.contextmanager
    def exact(self) -> Iterator[None]:
        """Instructions that CUDA documents as approximate do not err."""
        self.library.fk_emulator_exact(True)
        yield
        self.library.fk_emulator_exact(False)


@functools.cache
def emulated() -> Emulated:
    """Every kernel of the package."""
    return Emulated(compile_module("all", sources()))


@contextlib.contextmanager
def available() -> Iterator[Emulated]:
    """Backend "cuda" takes CPU tensors where a call names it."""
    before = CUDA.module, CUDA.device_type
    found = emulated()
    CUDA.become(found.module, "cpu")
    try:
        with products_of_rows_alone():
            yield found
    finally:
        CUDA.become(*before)


@contextlib.contextmanager
def running() -> Iterator[Emulated]:
    """Backend "cuda" takes CPU tensors, and calls that name no backend take it."""
    with available() as found, use_backend("cuda"):
        yield found
