"""nvcc's PTX of the CUDA kernels, launched by their own host code: the emulator's build of it hands launches over."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from flowkernels import _native
from flowkernels._machine import CUDA
from tests import emulator
from tests.device import products_of_rows_alone
from tests.gpu_resources.cuda import cuobjdump
from tests.ptx.launch import Launched, run
from tests.ptx.memory import Global
from tests.ptx.parser import Kernel, entries, modules, parse
from tests.ptx.running import How

_HOOK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t), ctypes.c_int,
)  # fmt: skip


def _demangled(names: list[str]) -> list[str]:
    """As both compilers say it: what is in an anonymous namespace has a number of nvcc's."""
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return [name.replace("(anonymous namespace)::", "") for name in text.splitlines()]


@functools.cache
def _texts() -> dict[str, tuple[str, str]]:
    """Of each kernel in the built module: name in C++ → its module's text, and its name there."""
    tool = cuobjdump()
    if _native.CUDA is None or tool is None:
        pytest.skip(_native.why_cuda_missing or "no cuobjdump: it comes with CUDA and with Triton")
    done = subprocess.run([tool, "-ptx", str(_native.CUDA.__file__)], capture_output=True, text=True, check=True)
    found = [(module, name) for module in modules(done.stdout) for name, _ in entries(module)]
    if not found:
        pytest.skip("the module has no PTX: FLOWKERNELS_CUDA_ARCHS=90 keeps it")
    return dict(zip(_demangled([name for _, name in found]), found, strict=True))


@functools.cache
def _parsed(module: str, name: str) -> Kernel:
    return parse(module, name)


@functools.cache
def _symbols(path: Path) -> dict[int, str]:
    """Where each kernel of the emulator's build lies in the file → its name in C++."""
    text = subprocess.run(["nm", str(path)], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in text.splitlines() if "kernel" in line and len(line.split()) == 3]
    names = _demangled([row[2] for row in rows])
    return {int(row[0], 16): name for row, name in zip(rows, names, strict=True)}


class _Watched:
    """The module; the tensors that its functions and classes are given are what kernels may touch."""

    def __init__(self, module: Any) -> None:
        self._module, self.memory, self._alive = module, Global(), []

    def _see(self, value: object) -> None:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            self._alive.append(storage)  # nothing else may come to lie there
            self.memory.add(storage.data_ptr(), storage.nbytes())
        elif isinstance(value, (list, tuple)):
            for item in value:
                self._see(item)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if not callable(found):
            return found

        @functools.wraps(found, updated=())
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._see([*args, *kwargs.values()])
            return found(*args, **kwargs)

        setattr(self, name, watched)
        return watched


@functools.cache
def _watched() -> tuple[emulator.Emulated, _Watched]:
    found = emulator.emulated()
    return found, _Watched(found.module)


def _launched(
    name: str, grid: int, block: int, shared: int, arguments: list[tuple[bytes, int]], memory: Global, how: How
) -> Launched:
    module, entry = _texts()[name]
    kernel = _parsed(how.mutate(module), entry)
    parameters = b""
    for (value, alignment), p in zip(arguments, kernel.parameters, strict=True):
        assert len(value) == p.size, f"{name}: a parameter of {len(value)} bytes, compiled for {p.size}"
        parameters = parameters.ljust(-(-len(parameters) // alignment) * alignment, b"\0") + value
    return run(
        kernel, grid, block, parameters, memory, dynamic_shared=shared, settings=how.settings, order=how.order,
        tracer=how.tracer(),
    )  # fmt: skip


@contextlib.contextmanager
def running(how: How | None = None) -> Iterator[list[Launched]]:
    """Backend "cuda" takes CPU tensors where a call names it, and its launches run as PTX."""
    how, done, faults = how or How(), [], []
    found, module = _watched()
    library = found.library
    first = ctypes.cast(library.fk_emulator_launches, ctypes.c_void_p).value
    assert first is not None
    path = Path(found.module.__file__)
    symbols = _symbols(path)
    base = first - _address_of(path, "fk_emulator_launches")

    def launch(kernel: int, grid: int, block: int, shared: int, at: Any, sizes: Any, alignments: Any, n: int) -> int:
        try:
            arguments = [(ctypes.string_at(at[i], sizes[i]), alignments[i]) for i in range(n)]
            done.append(_launched(symbols[kernel - base], grid, block, shared, arguments, module.memory, how))
        except BaseException as e:  # through C++, which knows only that it failed
            faults.append(e)
            return 1
        return 0

    hook = _HOOK(launch)
    library.fk_emulator_elsewhere(hook)
    before = CUDA.module, CUDA.device_type
    CUDA.become(module, "cpu")
    try:
        with products_of_rows_alone():
            yield done
    except RuntimeError as e:
        if faults:
            raise faults[0] from e
        raise
    finally:
        library.fk_emulator_elsewhere(_HOOK())
        CUDA.become(*before)


@functools.cache
def _address_of(path: Path, symbol: str) -> int:
    text = subprocess.run(["nm", str(path)], capture_output=True, text=True, check=True).stdout
    return next(int(line.split()[0], 16) for line in text.splitlines() if line.split()[-1] == symbol)


def every_kernel() -> list[str]:
    """Names in C++ of all kernels of the built module."""
    return sorted(_texts())
