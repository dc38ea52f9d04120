"""Asks a CUDA module again for what `recording.py` wrote down, without torch, so that compute-sanitizer sees our
kernels from its first second on: `compute-sanitizer python tests/cuda/replay.py MODULE FILE`.

Every tensor is an allocation of its own, which ends where the tensor does. Prints how many calls there were, and fails
where a call raises or leaves other bytes than it left when it was recorded. `--host` takes memory of the CPU, for the
emulator's module.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import glob
import hashlib
import importlib.util
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

ALIGNED = 256
DTYPES = ("float32", "float64", "bfloat16", "float16", "int32", "int64", "bool", "uint8")
RUNTIMES = ("libcudart.so", "/usr/local/cuda/lib64/libcudart.so", "libcudart.so.13", "libcudart.so.12")


class Host:
    """Memory of the CPU, as the emulator takes it."""

    def __init__(self) -> None:
        self.blocks: list[Any] = []

    def allocate(self, size: int) -> int:
        self.blocks.append(ctypes.create_string_buffer(size + ALIGNED))
        return -(-ctypes.addressof(self.blocks[-1]) // ALIGNED) * ALIGNED

    def free(self) -> None:
        self.blocks = []

    def write(self, to: int, data: bytes) -> None:
        ctypes.memmove(to, data, len(data))

    def read(self, at: int, size: int) -> bytes:
        return ctypes.string_at(at, size)


class Device:
    """Memory of the GPU, by CUDA's runtime."""

    def __init__(self) -> None:
        found = [*RUNTIMES, *(f for p in sys.path for f in glob.glob(f"{p}/nvidia/*/lib/libcudart.so.*"))]
        for name in found:
            try:
                self.runtime = ctypes.CDLL(name)
                break
            except OSError:
                continue
        else:
            raise SystemExit(f"replay: needs CUDA's runtime, found none of {', '.join(found)}")
        self.blocks: list[ctypes.c_void_p] = []

    def _call(self, name: str, *arguments: Any) -> None:
        if error := getattr(self.runtime, name)(*arguments):
            raise RuntimeError(f"{name}: error {error}")

    def allocate(self, size: int) -> int:
        at = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(at), ctypes.c_size_t(max(size, 1)))
        self.blocks.append(at)
        return at.value or 0

    def free(self) -> None:
        self._call("cudaDeviceSynchronize")
        for block in self.blocks:
            self._call("cudaFree", block)
        self.blocks = []

    def write(self, to: int, data: bytes) -> None:
        self._call("cudaMemcpy", ctypes.c_void_p(to), data, ctypes.c_size_t(len(data)), ctypes.c_int(1))

    def read(self, at: int, size: int) -> bytes:
        found = ctypes.create_string_buffer(size)
        self._call("cudaMemcpy", found, ctypes.c_void_p(at), ctypes.c_size_t(size), ctypes.c_int(2))
        return found.raw


class Tensor:
    """What the module asks a tensor for."""

    def __init__(self, memory: Host | Device, said: dict[str, Any], dtypes: dict[str, object]) -> None:
        data = base64.b64decode(said["tensor"])
        self.shape, self._stride, self.dtype = tuple(said["shape"]), tuple(said["stride"]), dtypes[said["dtype"]]
        self.memory, self.size = memory, len(data)
        self.at = memory.allocate(said["at"] + len(data)) + said["at"]
        memory.write(self.at, data)

    def data_ptr(self) -> int:
        return self.at

    def stride(self) -> tuple[int, ...]:
        return self._stride

    def digest(self) -> str:
        return hashlib.sha256(self.memory.read(self.at, self.size)).hexdigest()[:16]


def without_torch() -> dict[str, object]:
    """In place of torch, dtypes: the module knows them by identity."""
    dtypes: dict[str, object] = {name: object() for name in DTYPES}
    torch = types.ModuleType("torch")
    torch.__dict__.update(dtypes, Tensor=type("Tensor", (), {}))
    sys.modules["torch"] = torch
    return dtypes


def load(path: Path, name: str = "_cuda") -> Any:
    """A module, or the one in a folder."""
    if path.is_dir():
        path = next(path.glob(f"{name}*.so"))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def replay(module: Any, lines: list[dict[str, Any]], memory: Host | Device, dtypes: dict[str, object],
           say: Callable[[str], None]) -> tuple[int, int]:  # fmt: skip
    """How many calls there were, and how many went wrong."""
    made: list[Any] = []
    test, calls, wrong = "", 0, 0
    for line in lines:
        if "test" in line:
            memory.free()
            test, made = line["test"], []
            continue
        tensors: list[Tensor] = []
        name = line.get("make") or line["call"]
        try:
            arguments = _read(line["arguments"], memory, dtypes, made, tensors)
            named = {key: _read(value, memory, dtypes, made, tensors) for key, value in line["named"].items()}
            answer = getattr(module, name)(*arguments, **named)
            found = [t.digest() for t in tensors]
            error = "" if found == line["after"] else f"other bytes in tensors {_differing(found, line['after'])}"
        except (RuntimeError, TypeError, ValueError) as e:
            answer, error = None, str(e)
        if "make" in line:
            made.append(answer)
        calls += "call" in line
        if error:
            wrong += 1
            say(f"{test}: {name}: {error}")
    memory.free()
    return calls, wrong


def _differing(found: list[str], wanted: list[str]) -> list[int]:
    return [i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b]


def _read(said: Any, memory: Host | Device, dtypes: dict[str, object], made: list[Any], tensors: list[Tensor]) -> Any:
    if not isinstance(said, dict):
        return said
    if "made" in said:
        return made[said["made"]]
    if "tensor" in said:
        tensors.append(Tensor(memory, said, dtypes))
        return tensors[-1]
    ((kind, values),) = said.items()
    return {"list": list, "tuple": tuple}[kind](_read(v, memory, dtypes, made, tensors) for v in values)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--host", action="store_true", help="memory of the CPU")
    given = parser.parse_args()
    dtypes = without_torch()
    module = load(given.module)
    lines = [json.loads(line) for line in given.file.read_text().splitlines()]
    calls, wrong = replay(module, lines, Host() if given.host else Device(), dtypes, print)
    print(f"{calls} calls, {wrong} of them wrong")
    return int(wrong > 0 or calls == 0)


if __name__ == "__main__":
    sys.exit(main())
