"""Records what tests/cuda/test_small.py asks of the CUDA module, for `replay.py` to ask again without torch:
`python -m tests.cuda.recording FILE [--device cuda]`; without a GPU on the emulator.

Torch under compute-sanitizer takes longer to start than all the kernels to run. A line of the file is a JSON object:
what is made (`make`), or called (`call`), with its arguments; the bytes of a tensor are in it, and the digest of those
after the call.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch
from torch import Tensor

from flowkernels._machine import CUDA

ALIGNED = 256  # as cudaMalloc's addresses are; those of tensors within are kept


def bytes_of(t: Tensor) -> bytes:
    """All from a tensor's first element to its last, whatever lies between."""
    elements = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    flat = t.detach().as_strided((elements,), (1,)) if t.numel() else t.detach().reshape(-1)
    return flat.cpu().contiguous().view(torch.uint8).numpy().tobytes()


class Recorder:
    """A module that writes down what is asked of it, and answers as the one it stands before."""

    def __init__(self, module: Any, to: TextIO) -> None:
        self._module, self._to = module, to
        self._made: list[Any] = []  # kept, so that no other object gets the identity of one

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if not callable(found):
            return found

        def asked(*arguments: Any, **named: Any) -> Any:
            tensors: list[Tensor] = []
            line = {
                "make" if isinstance(found, type) else "call": name, "arguments": self._said(arguments, tensors),
                "named": {key: self._said(value, tensors) for key, value in named.items()},
            }  # fmt: skip
            torch_waits(tensors)
            answer = found(*arguments, **named)
            torch_waits(tensors)
            if isinstance(found, type):
                self._made.append(answer)
            line["after"] = [hashlib.sha256(bytes_of(t)).hexdigest()[:16] for t in tensors]
            self._to.write(json.dumps(line) + "\n")
            return answer

        return asked

    def _said(self, value: Any, tensors: list[Tensor]) -> Any:
        """An argument as JSON has it; what JSON does not know is an object with one key."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            tensors.append(value)
            return {
                "tensor": base64.b64encode(bytes_of(value)).decode(), "dtype": str(value.dtype).removeprefix("torch."),
                "shape": list(value.shape), "stride": list(value.stride()), "at": value.data_ptr() % ALIGNED,
            }  # fmt: skip
        if isinstance(value, tuple | list):
            return {"list" if isinstance(value, list) else "tuple": [self._said(v, tensors) for v in value]}
        for i, made in enumerate(self._made):
            if made is value:
                return {"made": i}
        raise TypeError(f"no way to record a {type(value).__name__}")


def torch_waits(tensors: list[Tensor]) -> None:
    if any(t.is_cuda for t in tensors):
        torch.cuda.synchronize()


class Plugin:
    """Stands before the module while a test runs; objects made before it are another recorder's."""

    def __init__(self, to: TextIO) -> None:
        self.to = to

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        before = CUDA.module, CUDA.device_type
        self.to.write(json.dumps({"test": item.nodeid}) + "\n")
        CUDA.become(Recorder(before[0], self.to), before[1])
        try:
            return (yield)
        finally:
            CUDA.become(*before)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cuda.recording", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("tests", nargs="*", default=["tests/cuda/test_small.py"])
    given = parser.parse_args()
    with given.file.open("w") as to:
        options = ["-q", "-p", "no:cacheprovider", "--device", given.device, *given.tests]
        return int(pytest.main(options, [Plugin(to)]))


if __name__ == "__main__":
    sys.exit(main())
