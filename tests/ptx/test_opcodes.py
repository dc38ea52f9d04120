"""Each opcode beside its semantics as the PTX ISA states them, written a second time in plain Python."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.ptx.errors import Unsupported
from tests.ptx.machine import Settings
from tests.ptx.snippets import evaluate

NUMPY = {
    "u16": np.uint16, "s16": np.int16, "b16": np.uint16, "u32": np.uint32, "s32": np.int32, "b32": np.uint32,
    "u64": np.uint64, "s64": np.int64, "b64": np.uint64, "f32": np.float32, "f64": np.float64, "f16": np.float16,
}  # fmt: skip
EXACT = Settings(errs=False)


def register(of: str, i: int) -> str:
    return f"%{ {2: 'h', 4: 'r', 8: 'q'}[np.dtype(NUMPY[of]).itemsize] }{i}"


def draws(of: str, seed: int) -> np.ndarray:
    """32 values with the edges among them."""
    g = np.random.default_rng(seed)
    kind = NUMPY[of]
    if of.startswith("f"):
        x = g.standard_normal(32).astype(kind) * kind(3)
        edges = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.5]
        x[: len(edges)] = np.array(edges, kind)
        return np.roll(x, 5 * seed)
    limits = np.iinfo(kind)
    x = g.integers(limits.min, limits.max, 32, dtype=kind, endpoint=True)
    x[:6] = np.array([limits.min, limits.max, 0, 1, 2, limits.max // 2], kind)
    return np.roll(x, 5 * seed)


def check(code: str, kinds: Sequence[str], to: str, expected: Callable[..., Any], settings: Settings = EXACT) -> None:
    """`code` with registers a, b, c of `kinds` into d, lane by lane."""
    inputs = [draws(k, i) for i, k in enumerate(kinds)]
    names = dict(zip("abc", (register(k, i) for i, k in enumerate(kinds)), strict=False))
    (found,) = evaluate(code.format(d=register(to, 9), **names), *inputs, outputs=[(register(to, 9), NUMPY[to])],
                        settings=settings)  # fmt: skip
    for lane in range(32):
        values = [x[lane].item() for x in inputs]
        with np.errstate(all="ignore"):
            want = np.array(expected(*values)).astype(NUMPY[to])
        same = np.array_equal(found[lane], want, equal_nan=to.startswith("f"))
        assert same, f"lane {lane}: {code} of {values} is {found[lane]}, not {want}"


def wrap(value: int, of: str) -> int:
    bits = int(of[1:])
    value &= (1 << bits) - 1
    return value - (1 << bits) if of[0] == "s" and value >> (bits - 1) else value


def quotient(a: int, b: int) -> int:
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q


INTEGER: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul.lo": lambda a, b: a * b, "min": min, "max": max,
}  # fmt: skip


@pytest.mark.parametrize("of", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_integers_wrap(of) -> None:
    for name, f in INTEGER.items():
        check(f"{name}.{of} {{d}}, {{a}}, {{b}};", [of, of], of, lambda a, b, f=f: wrap(f(a, b), of))
    check(f"mad.lo.{of} {{d}}, {{a}}, {{b}}, {{c}};", [of] * 3, of, lambda a, b, c: wrap(a * b + c, of))


@pytest.mark.parametrize("of", ["u32", "s32", "u64", "s64"])
def test_quotients_round_towards_0_and_remainders_have_the_sign_of_what_is_divided(of) -> None:
    # A divisor of 0 is left to the hardware.
    code = "or.b{0} {{b}}, {{b}}, 1; {1}.{2} {{d}}, {{a}}, {{b}};"
    check(code.format(of[1:], "div", of), [of, of], of, lambda a, b: wrap(quotient(a, b | 1), of))
    check(code.format(of[1:], "rem", of), [of, of], of, lambda a, b: wrap(a - (b | 1) * quotient(a, b | 1), of))


@pytest.mark.parametrize("of", ["u32", "s32", "u64", "s64"])
def test_upper_halves_of_products(of) -> None:
    bits = int(of[1:])
    check(f"mul.hi.{of} {{d}}, {{a}}, {{b}};", [of, of], of, lambda a, b: wrap((a * b) >> bits, of))


@pytest.mark.parametrize("of", ["u16", "s16", "u32", "s32"])
def test_wide_products(of) -> None:
    to = f"{of[0]}{2 * int(of[1:])}"
    check(f"mul.wide.{of} {{d}}, {{a}}, {{b}};", [of, of], to, lambda a, b: a * b)
    check(f"mad.wide.{of} {{d}}, {{a}}, {{b}}, {{c}};", [of, of, to], to, lambda a, b, c: wrap(a * b + c, to))


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_logic_and_shifts(bits) -> None:
    b, u, s = f"b{bits}", f"u{bits}", f"s{bits}"
    for name, f in (("and", int.__and__), ("or", int.__or__), ("xor", int.__xor__)):
        check(f"{name}.{b} {{d}}, {{a}}, {{b}};", [b, b], b, f)
    check(f"not.{b} {{d}}, {{a}};", [b], b, lambda a: wrap(~a, u))
    by = "and.b32 {b}, {b}, 127;"  # beyond the width, too
    check(f"{by} shl.{b} {{d}}, {{a}}, {{b}};", [b, "u32"], b, lambda a, n: wrap(a << (n & 127), u))
    check(f"{by} shr.{u} {{d}}, {{a}}, {{b}};", [u, "u32"], u, lambda a, n: a >> (n & 127))
    check(f"{by} shr.{s} {{d}}, {{a}}, {{b}};", [s, "u32"], s, lambda a, n: a >> (n & 127))
    check(f"neg.{s} {{d}}, {{a}};", [s], s, lambda a: wrap(-a, s))
    check(f"abs.{s} {{d}}, {{a}};", [s], s, lambda a: wrap(abs(a), s))


def field(a: int, place: int, length: int, of: str) -> int:
    """The pseudocode of bfe."""
    bits = int(of[1:])
    msb = bits - 1
    a &= (1 << bits) - 1
    sign = 0 if of[0] == "u" or length == 0 else (a >> min(place + length - 1, msb)) & 1
    found = 0
    for i in range(bits):
        found |= ((a >> (place + i)) & 1 if i < length and place + i <= msb else sign) << i
    return wrap(found, of)


@pytest.mark.parametrize("of", ["u32", "s32", "u64", "s64"])
def test_bit_fields(of) -> None:
    for place, length in ((0, 5), (5, 2), (3, 0), (28, 9), (31, 1), (40, 3), (0, 32), (60, 10), (70, 200)):
        check(f"bfe.{of} {{d}}, {{a}}, {place}, {length};", [of], of, lambda a, p=place, n=length: field(a, p, n, of))


def test_bytes_are_chosen() -> None:
    def chosen(a: int, b: int) -> int:
        both = list(struct.pack("<II", a, b))
        return int.from_bytes([both[4], 0xFF if both[1] & 0x80 else 0, both[7], both[0]], "little")

    check("prmt.b32 {d}, {a}, {b}, 0x0794;", ["b32", "b32"], "b32", chosen)


def nearest(x: Fraction, of: str) -> float:
    """To the nearest, ties to even."""
    if x == 0:
        return 0.0
    digits, least = (24, -149) if of == "f32" else (53, -1074)
    e = max(math.floor(math.log2(abs(x))) - digits + 1, least)
    for k in (e - 1, e, e + 1):  # the logarithm may be off by one
        scaled = x / Fraction(2) ** k
        if abs(scaled) <= 2**digits and k >= least:
            return float(round(scaled) * Fraction(2) ** k)
    raise AssertionError(x)


def fused(a: float, b: float, c: float, of: str) -> float:
    if not all(map(math.isfinite, (a, b, c))):
        return float(np.float64(a) * np.float64(b) + np.float64(c))
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    return nearest(exact, of) if exact else a * b + c


@pytest.mark.parametrize("of", ["f32", "f64"])
def test_products_and_sums_are_rounded_once(of) -> None:
    check(f"fma.rn.{of} {{d}}, {{a}}, {{b}}, {{c}};", [of] * 3, of, lambda a, b, c: fused(a, b, c, of))
    # Where all but the rounding of the product cancels: what two roundings would give is 0.
    kind = NUMPY[of]
    a = (1 + np.arange(32) * np.finfo(kind).eps).astype(kind)
    (left,) = evaluate(
        f"fma.rn.{of} {register(of, 9)}, {register(of, 0)}, {register(of, 0)}, {register(of, 1)};", a, -(a * a),
        outputs=[(register(of, 9), kind)],
    )  # fmt: skip
    assert [float(x) for x in left] == [fused(float(x), float(x), -float(x * x), of) for x in a]
    assert np.count_nonzero(left) > 20


def test_a_sum_rounded_down() -> None:
    def down(a: float, b: float, c: float) -> float:
        if not all(map(math.isfinite, (a, b, c))):
            return float(np.float64(a) * np.float64(b) + np.float64(c))
        exact, near = Fraction(a) * Fraction(b) + Fraction(c), np.float32(fused(a, b, c, "f32"))
        return float(near if Fraction(float(near)) <= exact else np.nextafter(near, np.float32(-np.inf)))

    check("fma.rm.f32 {d}, {a}, {b}, {c};", ["f32"] * 3, "f32", down)
    check("fma.rm.f32 {d}, {a}, {b}, 0f4B400001;", ["f32"] * 2, "f32", lambda a, b: down(a, b, 12582913.0))


@pytest.mark.parametrize("of", ["f32", "f64"])
def test_floats(of) -> None:
    kind = NUMPY[of]
    two: dict[str, Any] = {"add": np.add, "sub": np.subtract, "div.rn": np.divide, "mul": np.multiply}
    two |= {"min": np.fmin, "max": np.fmax, "min.NaN": np.minimum, "max.NaN": np.maximum}
    for name, f in two.items():
        check(f"{name}.{of} {{d}}, {{a}}, {{b}};", [of, of], of, lambda a, b, f=f: f(kind(a), kind(b)))
    check(f"copysign.{of} {{d}}, {{a}}, {{b}};", [of, of], of, lambda a, b: math.copysign(b, a))
    for name, g in {"neg": np.negative, "abs": np.abs, "sqrt.rn": np.sqrt, "rcp.rn": np.reciprocal}.items():
        check(f"{name}.{of} {{d}}, {{a}};", [of], of, lambda a, g=g: g(kind(a)))


def test_subnormal_numbers_are_flushed_where_the_opcode_says_so() -> None:
    tiny = np.float32(1e-40)
    for name, want in (("add.f32", tiny + tiny), ("add.ftz.f32", np.float32(0))):
        (found,) = evaluate(f"{name} %r9, %r0, %r0;", np.array([tiny]), outputs=[("%r9", np.float32)])
        assert found[0] == want
    (found,) = evaluate("mul.ftz.f32 %r9, %r0, %r1;", np.array([np.float32(-1e-30)]), np.array([np.float32(1e-9)]),
                        outputs=[("%r9", np.float32)])  # fmt: skip
    assert found[0] == 0 and np.signbit(found[0])


APPROXIMATE: dict[str, tuple[Callable[..., Any], float]] = {
    "ex2.approx.ftz.f32": (np.exp2, 2.0**-22), "rcp.approx.ftz.f32": (np.reciprocal, 2.0**-23),
    "sqrt.approx.ftz.f32": (np.sqrt, 2.0**-23), "rsqrt.approx.f32": (lambda x: 1 / np.sqrt(x), 2.0**-22.9),
    "div.full.f32": (lambda x: 1.5 / x, 2.0**-22), "div.approx.f32": (lambda x: 1.5 / x, 2.0**-22),
}  # fmt: skip


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximate_instructions_err_by_what_is_documented_and_not_more(name) -> None:
    f, error = APPROXIMATE[name]
    x = np.random.default_rng(0).uniform(0.5, 3, 1024).astype(np.float32)
    operands = "0f3FC00000, %r0" if name.startswith("div") else "%r0"
    for settings, least in ((Settings(), error), (EXACT, 0.0)):
        (found,) = evaluate(f"{name} %r9, {operands};", x, outputs=[("%r9", np.float32)], block=1024, settings=settings)
        exact = f(x.astype(np.float64))
        worst = np.abs(found / exact - 1).max()
        assert least / 2 <= worst <= (error if settings.errs else 2.0**-24) * 1.001


def test_the_reciprocal_of_the_upper_half() -> None:
    x = np.random.default_rng(0).uniform(-3, 3, 32)
    (found,) = evaluate("rcp.approx.ftz.f64 %q9, %q0;", x, outputs=[("%q9", np.float64)])
    assert not (found.view(np.uint64) & np.uint64(0xFFFFFFFF)).any()
    assert 0 < np.abs(found * x - 1).max() < 2.0**-19


COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
}  # fmt: skip


@pytest.mark.parametrize("of", ["f32", "f64", "s16", "u16", "s32", "u32", "b32", "s64", "u64"])
def test_comparisons(of) -> None:
    for name, f in COMPARISONS.items():
        if of[0] == "b" and name not in ("eq", "ne"):
            continue
        code = f"setp.{{how}}.{of} %p0, {{a}}, {{b}}; selp.u32 {{d}}, 1, 0, %p0;"

        def ordered(a: float, b: float, f: Any = f) -> bool:
            return f(a, b) and not (a != a or b != b)

        check(code.replace("{how}", name), [of, of], "u32", ordered)
        if of[0] == "f":
            check(code.replace("{how}", f"{name}u"), [of, of], "u32", lambda a, b, f=f: f(a, b) or a != a or b != b)
    if of[0] == "f":
        check(f"setp.nan.{of} %p0, {{a}}, {{b}}; selp.u32 {{d}}, 1, 0, %p0;", [of, of], "u32",
              lambda a, b: a != a or b != b)  # fmt: skip
        check(f"setp.num.{of} %p0, {{a}}, {{b}}; selp.u32 {{d}}, 1, 0, %p0;", [of, of], "u32",
              lambda a, b: a == a and b == b)  # fmt: skip


def test_two_predicates_and_a_third() -> None:
    code = "setp.lt.s32 %p2, {a}, 0; setp.gt.and.s32 %p0|%p1, {a}, {b}, %p2;"
    check(f"{code} selp.u32 {{d}}, 1, 0, %p0;", ["s32", "s32"], "u32", lambda a, b: a > b and a < 0)
    check(f"{code} selp.u32 {{d}}, 1, 0, %p1;", ["s32", "s32"], "u32", lambda a, b: not a > b and a < 0)
    check("setp.lt.s32 %p0, {a}, {b}; not.pred %p1, %p0; xor.pred %p2, %p1, %p0; @!%p2 mov.u32 {d}, 5; "
          "@%p1 mov.u32 {d}, 7; @%p0 mov.u32 {d}, 8;", ["s32", "s32"], "u32",
          lambda a, b: 8 if a < b else 7)  # fmt: skip


@pytest.mark.parametrize(("to", "of"), [("s64", "s32"), ("u64", "u32"), ("u32", "u64"), ("u16", "u32"), ("u32", "u16"),
                                        ("s32", "s16"), ("u64", "s32")])  # fmt: skip
def test_integers_grow_by_their_sign_and_are_cut(to, of) -> None:
    check(f"cvt.{to}.{of} {{d}}, {{a}};", [of], to, lambda a: wrap(a, to))


def test_bytes_grow_by_their_sign() -> None:
    check("cvt.s32.s8 {d}, {a};", ["s32"], "s32", lambda a: wrap(a, "s8"))


@pytest.mark.parametrize("of", ["f32", "f64"])
def test_floats_and_integers(of) -> None:
    kind = NUMPY[of]
    for i in ("s32", "u32", "s64"):
        check(f"cvt.rn.{of}.{i} {{d}}, {{a}};", [i], of, lambda a: nearest(Fraction(a), of))

    def into(f: Callable[[float], float], low: int, high: int, nan: int) -> Callable[[float], int]:
        def g(a: float) -> int:
            if a != a:
                return nan
            return low if a <= low else high if a >= high else int(f(a))

        return g

    nan = 0 if of == "f32" else -(2**31)
    for mode, f in {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}.items():
        check(f"cvt.{mode}.s32.{of} {{d}}, {{a}};", [of], "s32", into(f, -(2**31), 2**31 - 1, nan))
        check(f"cvt.{mode}.{of}.{of} {{d}}, {{a}};", [of], of, lambda a, f=f: f(kind(a)))
    check(f"cvt.rzi.s64.{of} {{d}}, {{a}};", [of], "s64", into(np.trunc, -(2**63), 2**63 - 1, -(2**63)))


def test_floats_of_other_widths() -> None:
    check("cvt.f64.f32 {d}, {a};", ["f32"], "f64", lambda a: a)
    check("cvt.rn.f32.f64 {d}, {a};", ["f64"], "f32", np.float32)
    check("cvt.rn.f16.f32 {d}, {a};", ["f32"], "f16", np.float16)
    check("cvt.f32.f16 {d}, {a};", ["f16"], "f32", np.float32)
    check("cvt.sat.f32.f32 {d}, {a};", ["f32"], "f32", lambda a: 0.0 if a != a else min(max(a, 0.0), 1.0))


def of_bf16(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits << 16))[0]


def to_bf16(x: float) -> int:
    """Of the two neighbours the nearer, of two as near the even one."""
    if x != x:
        return 0x7FFF
    bits = struct.unpack("<I", struct.pack("<f", x))[0]
    low, rest = bits >> 16, bits & 0xFFFF
    return low + (rest > 0x8000 or (rest == 0x8000 and low & 1))


def test_bf16() -> None:
    import torch

    check("cvt.f32.bf16 {d}, {a};", ["b16"], "f32", of_bf16)
    check("cvt.rn.bf16.f32 {d}, {a};", ["f32"], "b16", to_bf16)
    check("cvt.rn.bf16x2.f32 {d}, {a}, {b};", ["f32", "f32"], "b32", lambda a, b: to_bf16(a) << 16 | to_bf16(b))
    x = torch.randn(64)
    x[:2] = torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8])  # ties
    assert x.bfloat16().view(torch.int16).tolist() == [int(np.uint16(to_bf16(v)).view(np.int16)) for v in x.tolist()]


def test_halves() -> None:
    check("abs.f16 {d}, {a};", ["f16"], "f16", abs)
    check("neg.f16 {d}, {a};", ["f16"], "f16", lambda a: -a)
    check("abs.bf16 {d}, {a};", ["b16"], "b16", lambda a: a & 0x7FFF)
    check("neg.bf16 {d}, {a};", ["b16"], "b16", lambda a: a ^ 0x8000)
    select = "selp.u32 {d}, 1, 0, %p0;"
    check(f"setp.gt.f16 %p0, {{a}}, {{b}}; {select}", ["f16", "f16"], "u32", lambda a, b: a > b)
    check(f"setp.neu.f16 %p0, {{a}}, {{b}}; {select}", ["f16", "f16"], "u32", lambda a, b: a != b)
    check(f"setp.lt.bf16 %p0, {{a}}, {{b}}; {select}", ["b16", "b16"], "u32", lambda a, b: of_bf16(a) < of_bf16(b))


def test_pairs_are_compared_half_by_half() -> None:
    low, high = np.float32(np.arange(32) - 16), np.float32(16 - np.arange(32))
    pairs = np.array([to_bf16(h) << 16 | to_bf16(v) for v, h in zip(low, high, strict=True)], np.uint32)
    found = evaluate("setp.gt.bf16x2 %p0|%p1, %r0, 0; selp.u32 %r8, 1, 0, %p0; selp.u32 %r9, 1, 0, %p1;", pairs,
                     outputs=[("%r8", np.uint32), ("%r9", np.uint32)])  # fmt: skip
    assert np.array_equal(found[0], low > 0) and np.array_equal(found[1], high > 0)


def test_vectors_of_registers() -> None:
    code = "mov.b64 {{%r8, %r9}}, {a}; mov.b64 {d}, {{%r9, %r8}};"
    check(code, ["b64"], "b64", lambda a: (a >> 32) | (a & 0xFFFFFFFF) << 32)
    check("mov.b32 {{%h8, %h9}}, {a}; mov.b32 {d}, {{%h9, %h8}};", ["b32"], "b32",
          lambda a: (a >> 16) | (a & 0xFFFF) << 16)  # fmt: skip


@pytest.mark.parametrize(
    "code", ["add.sat.s32 %r9, %r0, %r0;", "lop3.b32 %r9, %r0, %r0, %r0, 0x80;", "fma.rz.f32 %r9, %r0, %r0, %r0;",
             "atom.global.add.u32 %r9, [%at0], 1;", "bar.sync 0, 64;", "wgmma.fence.sync.aligned;"],
)  # fmt: skip
def test_what_is_outside_of_the_subset_is_refused_by_name(code) -> None:
    with pytest.raises(Unsupported, match=code.split()[0].rstrip(";").replace(".", r"\.")):
        evaluate(code, np.zeros(32, np.uint32), outputs=[("%r9", np.uint32)])
