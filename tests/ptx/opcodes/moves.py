"""mov between registers, into and out of vectors; cvta between windows of generic addresses."""

from __future__ import annotations

import numpy as np

from tests.ptx import dtypes
from tests.ptx.machine import SHARED_WINDOW, Machine, Step, Threads
from tests.ptx.opcodes import opcode
from tests.ptx.parser import Instruction, vector

_ANY = "[bsu](?:16|32|64)|f32|f64|pred"


@opcode(rf"mov\.(?P<of>{_ANY})", "free")
def move(m: Machine, ins: Instruction, of: str) -> Step:
    d, a = ins.operands
    if d.startswith("{"):
        return _unpack(m, vector(d), a, of)
    if a.startswith("{"):
        return _pack(m, d, vector(a), of)
    write, x = m.write(d, of), m.read(a, of)
    return lambda t: write(t, x(t))


def _unpack(m: Machine, parts: list[str], source: str, of: str) -> Step:
    """The first register takes the lowest bits."""
    bits = dtypes.bits(of) // len(parts)
    writes, x, kind = [m.write(p, f"b{bits}") for p in parts], m.read(source, of), dtypes.raw(f"b{bits}")

    def step(t: Threads) -> None:
        whole = x(t).view(dtypes.raw(of))
        pieces = [(whole >> whole.dtype.type(bits * i)).astype(kind) for i in range(len(parts))]
        for write, piece in zip(writes, pieces, strict=True):
            write(t, piece)

    return step


def _pack(m: Machine, target: str, parts: list[str], of: str) -> Step:
    bits, kind = dtypes.bits(of) // len(parts), dtypes.raw(of)
    write, reads = m.write(target, of), [m.read(p, f"b{bits}") for p in parts]

    def step(t: Threads) -> None:
        whole = np.zeros(1, kind)
        for i, read in enumerate(reads):
            whole = whole | (read(t).astype(kind) << kind(bits * i))
        write(t, whole)

    return step


@opcode(r"cvta\.(?P<to>to\.)?(?P<space>global|shared|param)\.u64", "free")
def generic(m: Machine, ins: Instruction, to: str | None, space: str) -> Step:
    """Global addresses are generic as they are; shared memory has a window of its own."""
    write, x = m.write(ins.operands[0], "u64"), m.read(ins.operands[1], "u64")
    window = np.uint64(SHARED_WINDOW if space == "shared" else 0)
    if to:
        return lambda t: write(t, x(t) - window)
    return lambda t: write(t, x(t) + window)
