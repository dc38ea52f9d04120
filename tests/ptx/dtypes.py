"""PTX's fundamental types as numpy's, and the 16-bit floats that numpy lacks."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_RAW = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
_VALUES = {
    "f16": np.float16, "f32": np.float32, "f64": np.float64, "s8": np.int8, "s16": np.int16, "s32": np.int32,
    "s64": np.int64,
}  # fmt: skip


def bits(of: str) -> int:
    """Width of a type: 32 for "f32", "b32" and "bf16x2"."""
    if of.endswith("x2"):
        return 32
    return int(of.lstrip("abcdefghijklmnopqrstuvwxyz"))


def size(of: str) -> int:
    """Bytes of a type."""
    return bits(of) // 8


def raw(of: str) -> Any:
    """The unsigned integers that hold a type's bits; predicates are numpy's booleans."""
    return np.bool_ if of == "pred" else _RAW[bits(of)]


def values(of: str) -> Any:
    """What numpy computes with: bf16 and packed pairs stay bits, as do all unsigned and untyped ones."""
    return _VALUES.get(of) or raw(of)


def is_float(of: str) -> bool:
    return of in ("f16", "f32", "f64")


def widened(x: Array, to: Any) -> Array:
    """Bits in a register that is wider than the value: of signed integers the sign goes on."""
    x = x.view(_RAW[8 * x.dtype.itemsize]) if x.dtype.kind == "f" else x
    if x.dtype.kind == "i":
        return x.astype(np.dtype(f"i{np.dtype(to).itemsize}")).view(to)
    return x.astype(to)


def from_bf16(x: Array) -> Array:
    """bf16 bits as float32."""
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(x: Array) -> Array:
    """float32 as bf16 bits, to the nearest, ties to even; every NaN is PTX's canonical one."""
    u = x.view(np.uint32)
    odd = (u >> np.uint32(16)) & np.uint32(1)
    nearest = ((u + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), nearest)


def halves(x: Array, of: str) -> tuple[Array, Array]:
    """Lower and upper half of packed pairs ("f16x2", "bf16x2"), as float32."""
    low, high = (x & np.uint32(0xFFFF)).astype(np.uint16), (x >> np.uint32(16)).astype(np.uint16)
    if of == "bf16x2":
        return from_bf16(low), from_bf16(high)
    return low.view(np.float16).astype(np.float32), high.view(np.float16).astype(np.float32)


def packed(low: Array, high: Array, of: str) -> Array:
    """The pair of two float32."""
    with np.errstate(all="ignore"):
        parts = [to_bf16(x) if of == "bf16x2" else x.astype(np.float16).view(np.uint16) for x in (low, high)]
    return parts[0].astype(np.uint32) | (parts[1].astype(np.uint32) << np.uint32(16))
