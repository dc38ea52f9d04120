"""A few instructions as a kernel of their own: each thread loads its inputs, runs them, and stores what they give."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.ptx.dtypes import Array
from tests.ptx.launch import run
from tests.ptx.machine import Settings
from tests.ptx.memory import Global
from tests.ptx.parser import parse
from tests.ptx.scheduler import Order

_HEAD = """
.version 8.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 room[];
.visible .entry snippet({parameters})
{{
.reg .pred %p<16>;
.reg .b16 %h<16>;
.reg .b32 %r<64>;
.reg .b64 %q<64>;
.reg .b32 %tid_, %byte;
.reg .b64 %at<32>;
mov.u32 %tid_, %tid.x;
mov.u32 %byte, %ctaid.x;
mad.lo.s32 %tid_, %byte, {block}, %tid_;
{body}
ret;
}}
"""
_PREFIX = {2: "h", 4: "r", 8: "q"}


def _place(i: int, width: int) -> str:
    return f"ld.param.u64 %at{i}, [p{i}];\nmad.wide.s32 %at{i}, %tid_, {width}, %at{i};\n"


def kernel_text(code: str, inputs: list[Array], outputs: list[tuple[str, Any]], block: int) -> str:
    body = ""
    for i, x in enumerate(inputs):
        width = x.dtype.itemsize
        body += _place(i, width) + f"ld.global.b{8 * width} %{_PREFIX[width]}{i}, [%at{i}];\n"
    body += code + "\n"
    for k, (register, dtype) in enumerate(outputs, len(inputs)):
        width = np.dtype(dtype).itemsize
        body += _place(k, width) + f"st.global.b{8 * width} [%at{k}], {register};\n"
    names = ", ".join(f".param .u64 p{i}" for i in range(len(inputs) + len(outputs)))
    return _HEAD.format(parameters=names, body=body, block=block)


def evaluate(
    code: str, *inputs: Array, outputs: list[tuple[str, Any]], block: int = 32, blocks: int = 1, shared: int = 0,
    settings: Settings | None = None, order: Order | None = None,
) -> list[Array]:  # fmt: skip
    """Input i of each thread is in %h0i, %r0i or %q0i, written %h, %r, %q and i, by its width; `outputs` are registers.

    Each input and output has an element for every thread.
    """
    threads = block * blocks
    given = [np.ascontiguousarray(np.broadcast_to(x, threads)) for x in inputs]
    found = [np.zeros(threads, dtype) for _, dtype in outputs]
    memory, parameters = Global(), b""
    for x in (*given, *found):
        memory.add(x.ctypes.data, x.nbytes)
        parameters += int(x.ctypes.data).to_bytes(8, "little")
    kernel = parse(kernel_text(code, given, outputs, block))
    run(kernel, blocks, block, parameters, memory, dynamic_shared=shared, settings=settings, order=order)
    return found
