"""cvt: integers wrap or grow by their sign, floats round as the modifier says and saturate on becoming integers."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.ptx import dtypes
from tests.ptx.dtypes import Array
from tests.ptx.machine import Machine, Step
from tests.ptx.opcodes import opcode
from tests.ptx.opcodes.floats import flushed
from tests.ptx.parser import Instruction

_INT = "[su](?:8|16|32|64)"
_ROUND: dict[str, Any] = {"rni": np.rint, "rmi": np.floor, "rpi": np.ceil, "rzi": np.trunc}


@opcode(rf"cvt\.(?P<to>{_INT})\.(?P<of>{_INT})", "alu")
def integers(m: Machine, ins: Instruction, to: str, of: str) -> Step:
    write, x, kind = m.write(ins.operands[0], to), m.read(ins.operands[1], of), dtypes.values(to)
    return lambda t: write(t, x(t).astype(kind))


@opcode(rf"cvt\.rn\.(?P<to>f32|f64)\.(?P<of>{_INT})", "convert")
def to_float(m: Machine, ins: Instruction, to: str, of: str) -> Step:
    write, x, kind = m.write(ins.operands[0], to), m.read(ins.operands[1], of), dtypes.values(to)
    return lambda t: write(t, x(t).astype(kind))


def saturated(x: Array, to: str, of: str) -> Array:
    """A float without a fraction as an integer: the nearest there is; a NaN becomes 0, of 64 bits the topmost bit."""
    kind = dtypes.values(to)
    limits = np.iinfo(kind)
    nan = 1 << (limits.bits - 1) if "64" in (to[1:], of[1:]) else 0
    wide = x.astype(np.float64)
    inside = (wide >= float(limits.min)) & (wide < float(limits.max) + (limits.bits < 64))
    found = np.where(inside, wide, 0.0).astype(kind)
    found = np.where(wide >= float(limits.max), kind(limits.max), found)
    found = np.where(wide < float(limits.min), kind(limits.min), found)
    return np.where(np.isnan(wide), np.array(nan, dtypes.raw(to)).view(kind), found)


@opcode(rf"cvt\.(?P<round>r[nmpz]i)\.(?P<flush>ftz\.)?(?P<to>{_INT})\.(?P<of>f32|f64)", "convert")
def to_integer(m: Machine, ins: Instruction, round: str, flush: str | None, to: str, of: str) -> Step:
    write, x, f = m.write(ins.operands[0], to), m.read(ins.operands[1], of), _ROUND[round]
    return lambda t: write(t, saturated(f(flushed(x(t)) if flush else x(t)), to, of))


@opcode(r"cvt\.(?P<round>r[nmpz]i)\.(?P<flush>ftz\.)?(?P<of>f32|f64)\.(?P=of)", "convert")
def rounded(m: Machine, ins: Instruction, round: str, flush: str | None, of: str) -> Step:
    write, x, f = m.write(ins.operands[0], of), m.read(ins.operands[1], of), _ROUND[round]
    return lambda t: write(t, f(flushed(x(t)) if flush else x(t)))


@opcode(r"cvt\.sat\.f32\.f32", "alu")
def unit(m: Machine, ins: Instruction) -> Step:
    """Into [0, 1]; a NaN becomes 0."""
    write, x = m.write(ins.operands[0], "f32"), m.read(ins.operands[1], "f32")
    return lambda t: write(t, np.fmin(np.fmax(x(t), np.float32(0)), np.float32(1)))


@opcode(r"cvt\.f64\.f32", "convert")
@opcode(r"cvt\.rn\.f32\.f64", "convert")
@opcode(r"cvt\.f32\.f16", "convert")
@opcode(r"cvt\.rn\.f16\.f32", "convert")
def between_floats(m: Machine, ins: Instruction) -> Step:
    to, of = ins.opcode.split(".")[-2:]
    write, x, kind = m.write(ins.operands[0], to), m.read(ins.operands[1], of), dtypes.values(to)
    return lambda t: write(t, x(t).astype(kind))


@opcode(r"cvt\.f32\.bf16", "convert")
def from_bf16(m: Machine, ins: Instruction) -> Step:
    write, x = m.write(ins.operands[0], "f32"), m.read(ins.operands[1], "bf16")
    return lambda t: write(t, dtypes.from_bf16(x(t)))


@opcode(r"cvt\.rn\.bf16\.f32", "convert")
def to_bf16(m: Machine, ins: Instruction) -> Step:
    write, x = m.write(ins.operands[0], "bf16"), m.read(ins.operands[1], "f32")
    return lambda t: write(t, dtypes.to_bf16(x(t)))


@opcode(r"cvt\.rn\.(?P<to>bf16x2|f16x2)\.f32", "convert")
def to_pair(m: Machine, ins: Instruction, to: str) -> Step:
    """d, a, b: a becomes the upper half."""
    write, high, low = m.write(ins.operands[0], to), m.read(ins.operands[1], "f32"), m.read(ins.operands[2], "f32")
    return lambda t: write(t, dtypes.packed(low(t), high(t), to))


@opcode(r"cvt\.rna\.tf32\.f32", "convert")
def to_tf32(m: Machine, ins: Instruction) -> Step:
    """To 10 bits of fraction, ties away from 0."""
    write, x = m.write(ins.operands[0], "b32"), m.read(ins.operands[1], "b32")

    def f(bits: Array) -> Array:
        near = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
        return np.where(np.isfinite(bits.view(np.float32)), near, bits)

    return lambda t: write(t, f(x(t)))
