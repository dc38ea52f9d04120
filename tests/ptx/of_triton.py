"""Triton's launches, compiled for a GPU that is not here and run by the interpreter on tensors of the CPU."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import triton
from torch import Tensor
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

from flowkernels.ops import _triton
from tests.gpu_resources import triton as resources
from tests.ptx.launch import Launched, run
from tests.ptx.machine import WARP
from tests.ptx.memory import Global
from tests.ptx.parser import Kernel, parse
from tests.ptx.running import How


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> Kernel:
    return parse(text)


def parameter_block(kernel: Kernel, values: list[Any]) -> bytes:
    """The kernel's parameters: addresses and 32-bit numbers; those that Triton adds behind are null."""
    block = b""
    for p, offset in zip(kernel.parameters, kernel.offsets().values(), strict=True):
        value = values.pop(0) if values else 0
        block = block.ljust(offset, b"\0")
        if isinstance(value, float):
            block += np.array(value, np.float32 if p.size == 4 else np.float64).tobytes()
        else:
            block += (value & ((1 << 8 * p.size) - 1)).to_bytes(p.size, "little")
    assert not values, f"{len(values)} arguments too many for {kernel.name}"
    return block


def launched(
    fn: JITFunction, args: tuple[Any, ...], constants: dict[str, Any], grid: Any, target: str, how: How
) -> Launched:
    """Compiles what would be launched for the target, and runs it."""
    source, options = resources._source((fn, args, constants))
    compiled = triton.compile(source, target=resources.TARGETS[target], options=options)
    kernel = _parsed(how.mutate(compiled.asm["ptx"]))
    given = dict(zip(fn.arg_names, args, strict=False)) | constants
    memory, values = Global(), []
    for name in fn.arg_names:
        if name not in given or source.signature[name] == "constexpr":
            continue
        several = given[name] if isinstance(given[name], tuple) else (given[name],)
        for value in several:
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                memory.add(storage.data_ptr(), storage.nbytes())
                value = value.data_ptr()
            values.append(value)
    blocks = grid(given) if callable(grid) else grid
    assert len(blocks) == 1
    shared = max(0, compiled.metadata.shared - kernel.static_shared)
    return run(
        kernel, blocks[0], WARP * compiled.metadata.num_warps, parameter_block(kernel, values), memory,
        dynamic_shared=shared, settings=how.settings, order=how.order, tracer=how.tracer(),
    )  # fmt: skip


@contextlib.contextmanager
def running(target: str, how: How | None = None, config: int = 0) -> Iterator[list[Launched]]:
    """Backend "triton" takes CPU tensors; what it launches runs as PTX. Of tuned kernels one config runs."""
    how, done = how or How(), []

    def launch(self: JITFunction, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
        done.append(launched(self, args, kwargs, grid, target, how))

    def tune(self: Autotuner, *args: Any, **kwargs: Any) -> None:
        chosen = self.configs[config % len(self.configs)]
        self.fn.run(*args, **kwargs, **chosen.all_kwargs())

    before = JITFunction.run, Autotuner.run, _triton._GPUS
    JITFunction.run, Autotuner.run = launch, tune  # type: ignore[method-assign]
    _triton._GPUS = (*before[2], "cpu")
    try:
        yield done
    finally:
        JITFunction.run, Autotuner.run, _triton._GPUS = before  # type: ignore[method-assign]
