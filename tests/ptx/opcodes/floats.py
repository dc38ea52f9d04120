"""Floating point. Results round to nearest; approximate instructions err by what PTX's documentation allows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.ptx.dtypes import Array
from tests.ptx.machine import Machine, Step
from tests.ptx.opcodes import opcode
from tests.ptx.parser import Instruction

_SMALLEST = np.float32(2.0**-126)


def flushed(x: Array) -> Array:
    """Subnormal numbers become 0 of their sign."""
    return np.where(np.abs(x) < _SMALLEST, np.copysign(np.float32(0), x), x)


def _apply(m: Machine, ins: Instruction, of: str, f: Callable[..., Array], flush: str | None = None) -> Step:
    write = m.write(ins.operands[0], of)
    reads = [m.read(o, of) for o in ins.operands[1:]]
    if flush:
        return lambda t: write(t, flushed(f(*(flushed(r(t)) for r in reads))))
    if len(reads) == 2:
        x, y = reads
        return lambda t: write(t, f(x(t), y(t)))
    return lambda t: write(t, f(*(r(t) for r in reads)))


# ---- exact to rounding ----


def two_sum(x: Array, y: Array) -> tuple[Array, Array]:
    """x + y as rounded, and what rounding took."""
    s = x + y
    other = s - x
    return s, (x - (s - other)) + (y - other)


def _two_product(x: Array, y: Array) -> tuple[Array, Array]:
    def halves(v: Array) -> tuple[Array, Array]:
        c = 134217729.0 * v
        top = c - (c - v)
        return top, v - top

    p = x * y
    (a, b), (c, d) = halves(x), halves(y)
    return p, ((a * c - p) + a * d + b * c) + b * d


def fma64(x: Array, y: Array, z: Array) -> Array:
    """x y + z of float64, rounded once but for rare ties; beyond 2^±480, where halves overflow, twice."""
    p, error = _two_product(x, y)
    s, more = two_sum(p, z)
    once = s + (more + error)
    tame = np.isfinite(once) & (np.abs(p) > 2.0**-900) & (np.abs(x) < 2.0**480) & (np.abs(y) < 2.0**480)
    return np.where(tame, once, s)


def fma32(x: Array, y: Array, z: Array) -> Array:
    """x y + z of float32: the product is exact in float64 (the sum is rounded there once more: 1 in 2^29 differs)."""
    return (x.astype(np.float64) * y + z).astype(np.float32)


def fma32_down(x: Array, y: Array, z: Array) -> Array:
    """x y + z rounded towards -inf."""
    p, z64 = x.astype(np.float64) * y, z.astype(np.float64)
    s, error = two_sum(p, z64)
    near = s.astype(np.float32)
    above = (near > s) | ((near == s) & (error < 0))
    return np.where(above, np.nextafter(near, np.float32(-np.inf)), near)


_TWO: dict[str, Any] = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


@opcode(r"(?P<op>add|sub|mul)\.(?:rn\.)?(?P<flush>ftz\.)?(?P<of>f32)", "fma")
def plain32(m: Machine, ins: Instruction, op: str, flush: str | None, of: str) -> Step:
    return _apply(m, ins, of, _TWO[op], flush)


@opcode(r"(?P<op>add|sub|mul)\.(?:rn\.)?(?P<of>f64)", "fp64")
def plain64(m: Machine, ins: Instruction, op: str, of: str) -> Step:
    return _apply(m, ins, of, _TWO[op])


@opcode(r"fma\.(?P<round>rn|rm)\.(?P<flush>ftz\.)?(?P<of>f32)", "fma")
def multiply_add32(m: Machine, ins: Instruction, round: str, flush: str | None, of: str) -> Step:
    return _apply(m, ins, of, fma32 if round == "rn" else fma32_down, flush)


@opcode(r"fma\.rn\.(?P<of>f64)", "fp64")
def multiply_add64(m: Machine, ins: Instruction, of: str) -> Step:
    return _apply(m, ins, of, fma64)


@opcode(r"div\.rn\.(?P<of>f32|f64)", "call")
@opcode(r"rcp\.rn\.(?P<of>f32|f64)", "call")
def divide(m: Machine, ins: Instruction, of: str) -> Step:
    """In machine code a dozen instructions."""
    if ins.opcode.startswith("div"):
        return _apply(m, ins, of, np.divide)
    return _apply(m, ins, of, np.reciprocal)


@opcode(r"sqrt\.rn\.(?P<of>f32|f64)", "call")
def root(m: Machine, ins: Instruction, of: str) -> Step:
    return _apply(m, ins, of, np.sqrt)


@opcode(r"(?P<op>min|max)\.(?P<flush>ftz\.)?(?P<nan>NaN\.)?(?P<of>f32|f64)", "alu")
def extremum(m: Machine, ins: Instruction, op: str, flush: str | None, nan: str | None, of: str) -> Step:
    """Of a number and a NaN the number, or with .NaN the NaN."""
    if of == "f64" and flush:
        raise m.unsupported(ins)
    f: Any = {"min": (np.fmin, np.minimum), "max": (np.fmax, np.maximum)}[op][bool(nan)]
    return _apply(m, ins, of, f, flush)


@opcode(r"(?P<op>abs|neg)\.(?P<flush>ftz\.)?(?P<of>f32|f64)", "alu")
def sign(m: Machine, ins: Instruction, op: str, flush: str | None, of: str) -> Step:
    return _apply(m, ins, of, np.abs if op == "abs" else np.negative, flush if of == "f32" else None)


@opcode(r"(?P<op>abs|neg)\.(?P<of>b?f16)", "alu")
def sign_of_half(m: Machine, ins: Instruction, op: str, of: str) -> Step:
    write, x = m.write(ins.operands[0], "b16"), m.read(ins.operands[1], "b16")
    if op == "abs":
        return lambda t: write(t, x(t) & np.uint16(0x7FFF))
    return lambda t: write(t, x(t) ^ np.uint16(0x8000))


@opcode(r"copysign\.(?P<of>f32|f64)", "alu")
def copy_sign(m: Machine, ins: Instruction, of: str) -> Step:
    """The first operand's sign on the second's magnitude."""
    return _apply(m, ins, of, lambda x, y: np.copysign(y, x))


# ---- approximate ----


def off(exact: Array, relative: float) -> Array:
    """What an instruction that errs by up to `relative` may give as float32: the same for the same exact result."""
    near = exact.astype(np.float32)
    bits = near.view(np.uint32)
    bits = (bits ^ (bits >> np.uint32(15))) * np.uint32(0x2C1B3C6D)
    bits = (bits ^ (bits >> np.uint32(12))) * np.uint32(0x297A2D39)
    part = (bits ^ (bits >> np.uint32(15))).view(np.int32) * np.float32(2.0**-31)
    wrong = (exact * (1 + (relative - 2.0**-24) * part.astype(np.float64))).astype(np.float32)
    return np.where(np.isfinite(near) & (near != 0), wrong, near)


# Largest relative errors of PTX's tables; of a result of 1 ulp, 2^-23.
_APPROXIMATE: dict[str, tuple[Callable[..., Array], float]] = {
    "ex2.approx": (np.exp2, 2.0**-22),
    "rcp.approx": (lambda x: 1 / x, 2.0**-23),
    "sqrt.approx": (np.sqrt, 2.0**-23),
    "rsqrt.approx": (lambda x: 1 / np.sqrt(x), 2.0**-22.9),
    "div.full": (np.divide, 2.0**-22),
    "div.approx": (np.divide, 2.0**-22),
}


@opcode(r"(?P<op>(?:ex2|rcp|sqrt|rsqrt)\.approx|div\.full|div\.approx)\.(?P<flush>ftz\.)?f32", "mufu")
def approximate(m: Machine, ins: Instruction, op: str, flush: str | None) -> Step:
    exact, error = _APPROXIMATE[op]
    errs = m.settings.errs

    def f(*operands: Array) -> Array:
        found = exact(*(x.astype(np.float64) for x in operands))
        return off(found, error) if errs else found.astype(np.float32)

    return _apply(m, ins, "f32", f, flush)


@opcode(r"rcp\.approx\.ftz\.f64", "mufu")
def approximate64(m: Machine, ins: Instruction) -> Step:
    """Reads and writes the upper 32 bits alone."""
    upper, smallest = np.uint64(0xFFFFFFFF00000000), 2.0**-1022

    def f(x: Array) -> Array:
        x = (x.view(np.uint64) & upper).view(np.float64)
        x = np.where(np.abs(x) < smallest, np.copysign(0.0, x), x)
        found = np.reciprocal(x)
        found = np.where(np.abs(found) < smallest, np.copysign(0.0, found), found)
        return (found.view(np.uint64) & upper).view(np.float64)

    return _apply(m, ins, "f64", f)
