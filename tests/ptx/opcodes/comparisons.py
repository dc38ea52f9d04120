"""setp and selp. Comparisons of floats are ordered (false of a NaN) unless they end in u."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.ptx import dtypes
from tests.ptx.dtypes import Array
from tests.ptx.machine import Machine, Step, Threads
from tests.ptx.opcodes import opcode
from tests.ptx.opcodes.floats import flushed
from tests.ptx.parser import Instruction

_COMPARE: dict[str, Any] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
_COMBINE: dict[str, Any] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def compared(how: str, x: Array, y: Array) -> Array:
    """Of floats: eq, ne, lt, le, gt, ge, the same with u, num and nan."""
    nan = np.isnan(x) | np.isnan(y)
    if how in ("num", "nan"):
        return nan if how == "nan" else ~nan
    if how.endswith("u"):
        return _COMPARE[how[:-1]](x, y) | nan
    return _COMPARE[how](x, y) & ~nan


def _put(m: Machine, operand: str) -> Any:
    """p, or p|q where q takes the opposite."""
    first, _, second = operand.partition("|")
    write = m.write(first, "pred")
    if not second:
        return write
    opposite = m.write(second, "pred")

    def both(t: Threads, x: Array) -> None:
        write(t, x)
        opposite(t, ~x)

    return both


_FLOATS = "(?P<how>(?:eq|ne|lt|le|gt|ge)u?|num|nan)"
_INTEGERS = "(?P<how>eq|ne|lt|le|gt|ge|lo|ls|hi|hs)"
_AND = r"(?P<combine>(?:and|or|xor)\.)?"


@opcode(rf"setp\.{_FLOATS}\.{_AND}(?P<flush>ftz\.)?(?P<of>f32|f64)", "alu")
def of_floats(m: Machine, ins: Instruction, how: str, combine: str | None, flush: str | None, of: str) -> Step:
    x, y = (m.read(o, of) for o in ins.operands[1:3])
    if flush:
        return _set(m, ins, combine, lambda t: compared(how, flushed(x(t)), flushed(y(t))))
    return _set(m, ins, combine, lambda t: compared(how, x(t), y(t)))


@opcode(rf"setp\.{_FLOATS}\.(?P<of>b?f16)", "alu")
def of_halves(m: Machine, ins: Instruction, how: str, of: str) -> Step:
    x, y = (m.read(o, of) for o in ins.operands[1:3])
    if of == "f16":
        return _set(m, ins, None, lambda t: compared(how, x(t), y(t)))
    return _set(m, ins, None, lambda t: compared(how, dtypes.from_bf16(x(t)), dtypes.from_bf16(y(t))))


@opcode(rf"setp\.{_INTEGERS}\.{_AND}(?P<of>[bsu](?:16|32|64))", "alu")
def of_integers(m: Machine, ins: Instruction, how: str, combine: str | None, of: str) -> Step:
    x, y = (m.read(o, of) for o in ins.operands[1:3])
    f = _COMPARE[how]
    return _set(m, ins, combine, lambda t: f(x(t), y(t)))


def _set(m: Machine, ins: Instruction, combine: str | None, found: Any) -> Step:
    write = _put(m, ins.operands[0])
    if combine is None:
        return lambda t: write(t, found(t))
    with_it, f = m.read(ins.operands[3], "pred"), _COMBINE[combine.rstrip(".")]
    first, _, second = ins.operands[0].partition("|")
    to, opposite = m.write(first, "pred"), m.write(second or "_", "pred")

    def step(t: Threads) -> None:  # the second predicate combines the opposite comparison
        x, q = found(t), with_it(t)
        to(t, f(x, q))
        opposite(t, f(~x, q))

    return step


@opcode(rf"setp\.{_FLOATS}\.(?P<of>bf16x2|f16x2)", "alu")
def of_pairs(m: Machine, ins: Instruction, how: str, of: str) -> Step:
    """p|q: of the lower and of the upper halves."""
    lower, _, upper = ins.operands[0].partition("|")
    low, high = m.write(lower, "pred"), m.write(upper or "_", "pred")
    x, y = (m.read(o, of) for o in ins.operands[1:3])

    def step(t: Threads) -> None:
        (a, b), (c, d) = dtypes.halves(x(t), of), dtypes.halves(y(t), of)
        low(t, compared(how, a, c))
        high(t, compared(how, b, d))

    return step


@opcode(r"selp\.(?P<of>[bsu](?:16|32|64)|f32|f64)", "alu")
def select(m: Machine, ins: Instruction, of: str) -> Step:
    d, a, b, p = ins.operands
    write, x, y, which = m.write(d, of), m.read(a, of), m.read(b, of), m.read(p, "pred")
    return lambda t: write(t, np.where(which(t), x(t), y(t)))
