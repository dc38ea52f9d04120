"""ld and st: of parameters, global and shared memory, up to 16 bytes a thread."""

from __future__ import annotations

import numpy as np

from tests.ptx import dtypes
from tests.ptx.machine import PARAMETER_WINDOW, Machine, Step, Threads
from tests.ptx.opcodes import opcode
from tests.ptx.parser import Instruction, vector

_OF = r"(?:\.v(?P<count>[24]))?\.(?P<of>[bsu](?:8|16|32|64)|f32|f64)"
_CACHE = r"(?:\.(?:nc|ca|cg|cs|cv|wb|wt|L1::\w+|L2::\w+))*"


def _lanes(m: Machine, instruction: Instruction, operand: str, count: str | None) -> list[str]:
    parts = vector(operand)
    if len(parts) != int(count or 1):
        raise m.unsupported(instruction)
    return parts


@opcode(rf"ld\.param{_OF}", "free")
def load_parameter(m: Machine, ins: Instruction, count: str | None, of: str) -> Step:
    """A parameter is an operand of other instructions in machine code."""
    writes = [m.write(d, of) for d in _lanes(m, ins, ins.operands[0], count)]
    address, size, kind = m.address(ins.operands[1]), dtypes.size(of), dtypes.values(of)

    def step(t: Threads) -> None:
        for write, x in zip(writes, m.parameter(address(t) - PARAMETER_WINDOW, size, len(writes)), strict=True):
            write(t, x.view(kind))

    return step


@opcode(rf"ld\.global{_CACHE}{_OF}", "lsu")
def load(m: Machine, ins: Instruction, count: str | None, of: str) -> Step:
    writes = [m.write(d, of) for d in _lanes(m, ins, ins.operands[0], count)]
    address, size, kind = m.address(ins.operands[1]), dtypes.size(of), dtypes.values(of)

    def step(t: Threads) -> None:
        where = address(t)
        if m.tracer:
            m.tracer.global_(t, where, size * len(writes), "load")
        for write, x in zip(writes, m.memory.load(where, size, len(writes)), strict=True):
            write(t, x.view(kind))

    return step


@opcode(rf"st\.global{_CACHE}{_OF}", "lsu")
def store(m: Machine, ins: Instruction, count: str | None, of: str) -> Step:
    reads = [m.read(d, of) for d in _lanes(m, ins, ins.operands[1], count)]
    address, size, raw = m.address(ins.operands[0]), dtypes.size(of), dtypes.raw(of)

    def step(t: Threads) -> None:
        where = address(t)
        if m.tracer:
            m.tracer.global_(t, where, size * len(reads), "store")
        m.memory.store(where, [np.asarray(read(t)).view(raw) for read in reads])

    return step


@opcode(rf"ld\.shared(?:::cta)?{_OF}", "lsu")
def load_shared(m: Machine, ins: Instruction, count: str | None, of: str) -> Step:
    writes = [m.write(d, of) for d in _lanes(m, ins, ins.operands[0], count)]
    address, size, kind = m.address(ins.operands[1]), dtypes.size(of), dtypes.values(of)

    def step(t: Threads) -> None:
        where = address(t)
        if m.tracer:
            m.tracer.shared(t, where, size * len(writes))
        for write, x in zip(writes, m.shared.load(m.block_of[t], where, size, len(writes)), strict=True):
            write(t, x.view(kind))

    return step


@opcode(rf"st\.shared(?:::cta)?{_OF}", "lsu")
def store_shared(m: Machine, ins: Instruction, count: str | None, of: str) -> Step:
    reads = [m.read(d, of) for d in _lanes(m, ins, ins.operands[1], count)]
    address, size, raw = m.address(ins.operands[0]), dtypes.size(of), dtypes.raw(of)

    def step(t: Threads) -> None:
        where = address(t)
        if m.tracer:
            m.tracer.shared(t, where, size * len(reads))
        m.shared.store(m.block_of[t], where, [np.asarray(read(t)).view(raw) for read in reads])

    return step
