"""ld and st: of parameters, global and shared memory, up to 16 bytes a thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.ptx import dtypes
from tests.ptx.machine import PARAMETER_WINDOW, Machine, Step, Threads
from tests.ptx.opcodes import opcode
from tests.ptx.parser import Instruction, vector

_OF = r"(?:\.v(?P<count>[24]))?\.(?P<of>[bsu](?:8|16|32|64)|f32|f64)"
_CACHE = r"(?:\.(?:nc|ca|cg|cs|cv|wb|wt|L1::\w+|L2::\w+))*"

Fetch = Callable[[Threads, Any, int, int], Any]  # threads, addresses, bytes and number of values
Put = Callable[[Threads, Any, int, list[Any]], None]


def _lanes(m: Machine, instruction: Instruction, operand: str, count: str | None) -> list[str]:
    parts = vector(operand)
    if len(parts) != int(count or 1):
        raise m.unsupported(instruction)
    return parts


def _load(m: Machine, ins: Instruction, count: str | None, of: str, fetch: Fetch) -> Step:
    writes = [m.write(d, of) for d in _lanes(m, ins, ins.operands[0], count)]
    address, size, kind = m.address(ins.operands[1]), dtypes.size(of), dtypes.values(of)

    def step(t: Threads) -> None:
        for write, x in zip(writes, fetch(t, address(t), size, len(writes)), strict=True):
            write(t, x.view(kind))

    return step


def _store(m: Machine, ins: Instruction, count: str | None, of: str, put: Put) -> Step:
    reads = [m.read(d, of) for d in _lanes(m, ins, ins.operands[1], count)]
    address, size, raw = m.address(ins.operands[0]), dtypes.size(of), dtypes.raw(of)

    def step(t: Threads) -> None:
        put(t, address(t), size, [np.asarray(read(t)).view(raw) for read in reads])

    return step


@opcode(rf"ld\.param{_OF}", "free")
def load_parameter(m: Machine, ins: Instruction, count: str | None, of: str) -> Step:
    """A parameter is an operand of other instructions in machine code."""
    return _load(m, ins, count, of, lambda t, where, size, n: m.parameter(where - PARAMETER_WINDOW, size, n))


@opcode(rf"ld\.global{_CACHE}{_OF}", "lsu")
def load(m: Machine, ins: Instruction, count: str | None, of: str) -> Step:
    def fetch(t: Threads, where: Any, size: int, n: int) -> Any:
        if m.tracer:
            m.tracer.global_(t, where, size * n, "load")
        return m.memory.load(where, size, n)

    return _load(m, ins, count, of, fetch)


@opcode(rf"st\.global{_CACHE}{_OF}", "lsu")
def store(m: Machine, ins: Instruction, count: str | None, of: str) -> Step:
    def put(t: Threads, where: Any, size: int, values: list[Any]) -> None:
        if m.tracer:
            m.tracer.global_(t, where, size * len(values), "store")
        m.memory.store(where, values)

    return _store(m, ins, count, of, put)


@opcode(rf"ld\.shared(?:::cta)?{_OF}", "lsu")
def load_shared(m: Machine, ins: Instruction, count: str | None, of: str) -> Step:
    def fetch(t: Threads, where: Any, size: int, n: int) -> Any:
        if m.tracer:
            m.tracer.shared(t, where, size * n)
        return m.shared.load(m.block_of[t], where, size, n)

    return _load(m, ins, count, of, fetch)


@opcode(rf"st\.shared(?:::cta)?{_OF}", "lsu")
def store_shared(m: Machine, ins: Instruction, count: str | None, of: str) -> Step:
    def put(t: Threads, where: Any, size: int, values: list[Any]) -> None:
        if m.tracer:
            m.tracer.shared(t, where, size * len(values))
        m.shared.store(m.block_of[t], where, values)

    return _store(m, ins, count, of, put)
