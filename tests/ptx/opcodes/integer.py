"""Integers: wrap-around arithmetic, logic, shifts, bit fields."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.ptx import dtypes
from tests.ptx.dtypes import Array
from tests.ptx.machine import Machine, Step, Threads
from tests.ptx.opcodes import opcode
from tests.ptx.parser import Instruction

_INT = "[su](?:16|32|64)"
_ANY = "[bsu](?:16|32|64)"
_LOGIC: dict[str, Any] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
_DOUBLE: dict[str, Any] = {
    "s16": np.int32, "u16": np.uint32, "s32": np.int64, "u32": np.uint64,
}  # fmt: skip


def _of_two(m: Machine, ins: Instruction, of: str, f: Any) -> Step:
    d, a, b = ins.operands
    write, x, y = m.write(d, of), m.read(a, of), m.read(b, of)

    def step(t: Threads) -> None:
        write(t, f(x(t), y(t)))

    return step


def truncated_quotient(x: Array, y: Array) -> Array:
    """Rounds towards 0, as PTX does and numpy does not."""
    down = x // y
    return down + ((down < 0) & (down * y != x)).astype(down.dtype)


_PLAIN: dict[str, Any] = {
    "add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum, "rem": np.fmod, "div": truncated_quotient,
}  # fmt: skip


@opcode(rf"(?P<op>add|sub|min|max|rem|div)\.(?P<of>{_INT})", "alu")
def plain(m: Machine, ins: Instruction, op: str, of: str) -> Step:
    return _of_two(m, ins, of, _PLAIN[op])


@opcode(rf"(?P<op>and|or|xor)\.(?P<of>{_ANY}|pred)", "alu")
def logic(m: Machine, ins: Instruction, op: str, of: str) -> Step:
    return _of_two(m, ins, of, _LOGIC[op])


def high(x: Array, y: Array) -> Array:
    """The upper 64 of the 128 bits of a product."""
    if x.dtype.kind == "i":
        ux, uy = x.view(np.uint64), y.view(np.uint64)
        return (high(ux, uy) - np.where(x < 0, uy, np.uint64(0)) - np.where(y < 0, ux, np.uint64(0))).view(np.int64)
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    (x0, x1), (y0, y1) = ((v & mask, v >> half) for v in (x, y))
    middle = (x0 * y0 >> half) + (x1 * y0 & mask) + x0 * y1
    # x0 y1 < 2^64 - 2^33 + 1, and what is added to it is below 2^33 - 1: no carry is lost
    return x1 * y1 + (x1 * y0 >> half) + (middle >> half)


@opcode(rf"mul\.lo\.(?P<of>{_INT})", "fma")
def multiply(m: Machine, ins: Instruction, of: str) -> Step:
    return _of_two(m, ins, of, np.multiply)


@opcode(r"mul\.hi\.(?P<of>[su](?:32|64))", "fma")
def multiply_high(m: Machine, ins: Instruction, of: str) -> Step:
    if of.endswith("64"):
        return _of_two(m, ins, of, high)
    wide, bits = _DOUBLE[of], 32

    def upper(x: Array, y: Array) -> Array:
        return ((x.astype(wide) * y.astype(wide)) >> wide(bits)).astype(x.dtype)

    return _of_two(m, ins, of, upper)


@opcode(r"mul\.wide\.(?P<of>[su](?:16|32))", "fma")
def multiply_wide(m: Machine, ins: Instruction, of: str) -> Step:
    d, a, b = ins.operands
    wide = _DOUBLE[of]
    write, x, y = m.write(d, f"{of[0]}{2 * dtypes.bits(of)}"), m.read(a, of), m.read(b, of)

    def step(t: Threads) -> None:
        write(t, x(t).astype(wide) * y(t).astype(wide))

    return step


@opcode(rf"mad\.(?P<part>lo|wide)\.(?P<of>{_INT})", "fma")
def multiply_add(m: Machine, ins: Instruction, part: str, of: str) -> Step:
    d, a, b, c = ins.operands
    to = of if part == "lo" else f"{of[0]}{2 * dtypes.bits(of)}"
    if part == "wide" and of not in _DOUBLE:
        raise m.unsupported(ins)
    kind = dtypes.values(to)
    write, x, y, z = m.write(d, to), m.read(a, of), m.read(b, of), m.read(c, to)

    def step(t: Threads) -> None:
        write(t, x(t).astype(kind) * y(t).astype(kind) + z(t))

    return step


@opcode(r"(?P<op>neg|abs)\.(?P<of>s(?:16|32|64))", "alu")
def negate(m: Machine, ins: Instruction, op: str, of: str) -> Step:
    write, x = m.write(ins.operands[0], of), m.read(ins.operands[1], of)
    f: Any = np.negative if op == "neg" else np.abs
    return lambda t: write(t, f(x(t)))


@opcode(r"not\.(?P<of>b(?:16|32|64)|pred)", "alu")
def invert(m: Machine, ins: Instruction, of: str) -> Step:
    write, x = m.write(ins.operands[0], of), m.read(ins.operands[1], of)
    return lambda t: write(t, ~x(t))


@opcode(rf"(?P<op>shl|shr)\.(?P<of>{_ANY})", "alu")
def shift(m: Machine, ins: Instruction, op: str, of: str) -> Step:
    """By more than the width: 0, or the sign."""
    d, a, b = ins.operands
    write, x, by, bits = m.write(d, of), m.read(a, of), m.read(b, "u32"), dtypes.bits(of)
    kind = dtypes.values(of)
    f: Any = np.left_shift if op == "shl" else np.right_shift
    signed = of[0] == "s" and op == "shr"

    def step(t: Threads) -> None:
        n = by(t)
        shifted = f(x(t), np.minimum(n, bits - 1).astype(kind))
        write(t, shifted if signed else np.where(n < bits, shifted, kind(0)))

    return step


@opcode(r"bfe\.(?P<of>[su](?:32|64))", "alu")
def extract(m: Machine, ins: Instruction, of: str) -> Step:
    """`length` bits from `place` on; beyond the word, zeros or the sign."""
    d, a, place, length = ins.operands
    write, x, kind = m.write(d, of), m.read(a, of), dtypes.values(of)
    at, length_of, bits = m.read(place, "u32"), m.read(length, "u32"), dtypes.bits(of)
    byte = np.uint32(0xFF)

    def step(t: Threads) -> None:
        p, n = ((v(t) & byte).astype(np.int64) for v in (at, length_of))
        n = np.minimum(n, np.maximum(bits - p, 0) if of[0] == "s" else bits)
        # To the top of the word and down again, which brings zeros or the sign.
        up, down = np.clip(bits - p - n, 0, bits - 1), np.clip(bits - n, 0, bits - 1)
        low = np.where(p < bits, x(t) >> np.minimum(p, bits - 1).astype(kind), kind(0))
        found = np.where(p + n <= bits, (x(t) << up.astype(kind)) >> down.astype(kind), low)
        if of[0] == "s":  # a field that begins above the word is its sign
            found = np.where(p >= bits, x(t) >> kind(bits - 1), found)
        write(t, np.where((length_of(t) & byte) == 0, kind(0), found))

    return step


@opcode(r"prmt\.b32", "alu")
def permute(m: Machine, ins: Instruction) -> Step:
    """Four bytes chosen out of eight."""
    d, a, b, c = ins.operands
    write, x, y, choice = m.write(d, "b32"), m.read(a, "b32"), m.read(b, "b32"), m.read(c, "b32")

    def step(t: Threads) -> None:
        both = x(t).astype(np.uint64) | (y(t).astype(np.uint64) << np.uint64(32))
        found = np.zeros(m.count(t), np.uint64)
        for i in range(4):
            nibble = (choice(t) >> np.uint32(4 * i)).astype(np.uint64) & np.uint64(15)
            byte = (both >> (np.uint64(8) * (nibble & np.uint64(7)))) & np.uint64(0xFF)
            sign = np.where(byte & np.uint64(0x80), np.uint64(0xFF), np.uint64(0))
            found = found | (np.where(nibble & np.uint64(8), sign, byte) << np.uint64(8 * i))
        write(t, found.astype(np.uint32))

    return step
