"""Between the lanes of a warp: shuffles, votes, reductions. They begin when all named lanes are there."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.ptx import dtypes
from tests.ptx.dtypes import Array
from tests.ptx.errors import Fault
from tests.ptx.machine import WARP, Machine, Step, Threads
from tests.ptx.opcodes import opcode
from tests.ptx.parser import Instruction


def source_lane(mode: str, lane: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Which lane a shuffle reads, its own where that is outside of its segment; and whether it is inside."""
    segment, clamp = (c >> 8) & 31, c & 31
    lowest = lane & segment
    highest = lowest | (clamp & ~segment & 31)
    b = b & 31
    if mode == "up":
        source = lane - b
        inside = source >= highest
    else:
        source = {"down": lane + b, "bfly": lane ^ b, "idx": lowest | (b & ~segment & 31)}[mode]
        inside = source <= highest
    return np.where(inside, source, lane), inside


@opcode(r"shfl\.sync\.(?P<mode>up|down|bfly|idx)\.b32", "lsu", together=True)
def shuffle(m: Machine, ins: Instruction, mode: str) -> Step:
    target, _, predicate = ins.operands[0].partition("|")
    write, inside_of = m.write(target, "b32"), m.write(predicate or "_", "pred")
    register, b, c = m.register(ins.operands[1]), m.read(ins.operands[2], "s32"), m.read(ins.operands[3], "s32")
    here = np.zeros(m.threads, np.bool_)

    def step(t: Threads) -> None:
        lane = m.lane[t]
        source, inside = source_lane(mode, lane, b(t), c(t))
        at = m.warp[t] * WARP + source
        here[:] = False
        here[t] = True
        if not (present := here[at]).all():
            raise Fault(f"a shuffle reads lane {int(source[~present][0])}, which takes no part")
        write(t, register[at])
        inside_of(t, inside)

    return step


def _of_warp(m: Machine, t: Threads, x: Array, empty: Any, reduce: Any) -> Array:
    """reduce(values of a warp's lanes) for each of the threads; `empty` stands for lanes that take no part."""
    values = np.full(m.threads, empty, x.dtype)
    values[t] = x
    return reduce(values.reshape(-1, WARP), axis=1)[m.warp[t]]


@opcode(r"vote\.sync\.(?P<mode>any|all)\.pred", "alu", together=True)
def vote(m: Machine, ins: Instruction, mode: str) -> Step:
    write, x = m.write(ins.operands[0], "pred"), m.read(ins.operands[1], "pred")
    reduce = np.any if mode == "any" else np.all
    return lambda t: write(t, _of_warp(m, t, x(t), mode == "all", reduce))


@opcode(r"vote\.sync\.ballot\.b32", "alu", together=True)
def ballot(m: Machine, ins: Instruction) -> Step:
    write, x = m.write(ins.operands[0], "b32"), m.read(ins.operands[1], "pred")

    def step(t: Threads) -> None:
        bit = x(t).astype(np.uint32) << m.lane[t].astype(np.uint32)
        write(t, _of_warp(m, t, bit, 0, np.bitwise_or.reduce))

    return step


_REDUCE: dict[str, Any] = {"add": np.add, "min": np.minimum, "max": np.maximum}


@opcode(r"redux\.sync\.(?P<op>add|min|max)\.(?P<of>[su]32)", "alu", together=True)
def reduction(m: Machine, ins: Instruction, op: str, of: str) -> Step:
    limits = np.iinfo(dtypes.values(of))
    empty = {"add": 0, "min": limits.max, "max": limits.min}[op]
    write, x, f = m.write(ins.operands[0], of), m.read(ins.operands[1], of), _REDUCE[op].reduce

    def step(t: Threads) -> None:
        with np.errstate(all="ignore"):
            write(t, _of_warp(m, t, x(t), empty, lambda v, axis: f(v, axis=axis, dtype=v.dtype)))

    return step
