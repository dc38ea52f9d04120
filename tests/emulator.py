"""The CUDA kernels' own source on the CPU: csrc/**/*_cuda.cu compiled against tests/cuda_emulator, in place of _cuda.

Built once for a state of the sources, into a folder of build/; `FLOWKERNELS_EMULATOR_ASAN=1` builds it with
AddressSanitizer, for a process that has libasan loaded before everything else.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flowkernels import use_backend
from flowkernels._machine import CUDA

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "tests" / "cuda_emulator"
ORDERS = {"forward": (0, 0), "reverse": (1, 0), "shuffled": (2, 1), "shuffled again": (2, 2)}
ASAN = os.environ.get("FLOWKERNELS_EMULATOR_ASAN") == "1"
_FLAGS = (
    "-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
    "-fsanitize=alignment", "-fsanitize-recover=alignment",  # reported by emulator.cpp, without libubsan
)  # fmt: skip

# nvcc contracts products and sums; so does the emulator where the processor can.
_CONTRACTS = Path("/proc/cpuinfo").exists() and " fma " in Path("/proc/cpuinfo").read_text()
FLAGS = (*_FLAGS, *(("-mfma", "-ffp-contract=fast") if _CONTRACTS else ()))


def sources() -> list[Path]:
    """Every kernel, what turns Python's arguments into calls, and the bindings."""
    cuda = sorted(ROOT.glob("csrc/*/*_cuda.cu"))
    args = [f for f in sorted(ROOT.glob("csrc/*/*_args.cpp")) if (f.parent / f"{f.parent.name}_cuda.cu") in cuda]
    return [*cuda, *args, ROOT / "csrc" / "cuda_bindings.cpp"]


def compile_module(files: Sequence[Path], folder: Path) -> Path:
    """The shared library of these sources and the emulator in `folder`, if it is not there yet."""
    import pybind11

    text = b"".join(f.read_bytes() for f in [*sorted(ROOT.glob("csrc/**/*.*")), *sorted(HERE.iterdir()), *files])
    key = hashlib.sha256(text + " ".join(map(str, (*FLAGS, ASAN, *files))).encode()).hexdigest()[:16]
    out = folder / f"{key}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if out.exists():
        return out
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("the emulator needs a C++ compiler")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    include = [f"-I{p}" for p in (HERE, ROOT / "csrc", pybind11.get_include(), sysconfig.get_paths()["include"])]

    def one(source: Path) -> Path:
        to = folder / f"{source.parent.name}_{source.name}.o"
        kernels = source.name != "emulator.cpp"
        flags = [*FLAGS, *(["-fsanitize=address"] if ASAN and kernels else [])]
        command = [compiler, *flags, *include, '-DFK_CUDA_ARCHS="emulated"', "-x", "c++", "-c", str(source), "-o", to]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return to

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(one, [*files, HERE / "emulator.cpp"]))
    link = [compiler, "-shared", *(["-fsanitize=address"] if ASAN else []), *objects, "-o", str(out) + ".new"]
    subprocess.run(link, check=True)
    os.replace(str(out) + ".new", out)
    return out


class Emulated:
    """The module, and what its emulator tells and is told."""

    def __init__(self, path: Path, name: str = "_cuda") -> None:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        self.module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self._library = ctypes.CDLL(str(path))
        self._library.fk_emulator_launches.restype = ctypes.c_long

    @property
    def launches(self) -> int:
        return self._library.fk_emulator_launches()

    @contextlib.contextmanager
    def order(self, name: str) -> Iterator[None]:
        """In which order the threads of a block are resumed: a result that depends on it misses a barrier."""
        self._library.fk_emulator_order(*ORDERS[name])
        yield
        self._library.fk_emulator_order(0, 0)


@functools.cache
def emulated() -> Emulated:
    """Every kernel of the package."""
    return Emulated(compile_module(sources(), folder("all")))


def folder(name: str) -> Path:
    return ROOT / "build" / "cuda_emulator" / (name + ("_asan" if ASAN else ""))


@contextlib.contextmanager
def available() -> Iterator[Emulated]:
    """Backend "cuda" takes CPU tensors where a call names it."""
    before = CUDA.module, CUDA.device_type
    found = emulated()
    CUDA.module, CUDA.device_type = found.module, "cpu"
    CUDA.__dict__.pop("devices", None)
    try:
        yield found
    finally:
        CUDA.module, CUDA.device_type = before
        CUDA.__dict__.pop("devices", None)


@contextlib.contextmanager
def running() -> Iterator[Emulated]:
    """Backend "cuda" takes CPU tensors, and calls that name no backend take it."""
    with available() as found, use_backend("cuda"):
        yield found
