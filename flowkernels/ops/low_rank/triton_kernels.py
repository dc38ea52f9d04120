"""Chains of planar and radial layers: a program owns R rows, whose features stay in registers through all layers.

Backward runs the chain again, keeps what enters each layer in memory of the program's own, and walks back. Gradients
of shared parameters are sums over a program's tiles, in float64; the formulas are those of `README.md`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flowkernels.ops._triton_math import product, sigmoid, softplus, tanh
from flowkernels.ops._triton_root import newton_step


@triton.jit
def _vector(at, k, row, d, there, D, stride, SHARED: tl.constexpr):
    """Numbers of each feature of layer k, [1 or R, BD]."""
    if SHARED:
        out = tl.load(at + k * D + d, mask=d < D, other=0.0)[None, :]
    else:
        out = tl.load(at + row[:, None] * stride + k * D + d[None, :], mask=there, other=0.0)
    return out


@triton.jit
def _number(at, k, row, rows, stride, SHARED: tl.constexpr):
    """A number of layer k, [R]."""
    own = row * 0 if SHARED else row * stride
    return tl.load(at + own + k, mask=row < rows, other=0.0)


@triton.jit
def _slope(z, BELOW: tl.constexpr):
    """Of a leaky_relu."""
    one = tl.zeros_like(z) + 1.0
    return tl.where(z != z, z, tl.where(z < 0.0, one * BELOW, one))


@triton.jit
def _bent(z, BELOW: tl.constexpr, TANH: tl.constexpr):
    """h of z, its slope, 1 less that, and the slope of the slope."""
    if TANH:
        h = tanh(z)
        rest = h * h
        slope = 1.0 - rest
        curve = -2.0 * h * slope
    else:
        slope = _slope(z, BELOW)
        h = slope * z
        rest = 1.0 - slope
        curve = tl.zeros_like(z)
    return h, slope, rest, curve


@triton.jit
def _bent_root(s, plus, BELOW: tl.constexpr, TANH: tl.constexpr):
    """z of z + (plus - 1) h(z) = s, which grows with z."""
    if TANH:
        target, c = tl.abs(s), plus - 1.0
        high = target + tl.where(c < 0.0, -c, 0.0)
        # A side from which Newton's steps come monotonously: before the root where f is concave, else behind it.
        at = tl.where(c > 0.0, tl.maximum(target / plus, target - c), tl.minimum(target / plus, high))
        best, low, before = at, tl.zeros_like(at), high
        least = tl.zeros_like(at) + float("inf")
        active = (target == target) & (plus == plus)
        step = 0
        while (step < 256) & (tl.max(active.to(tl.int32), 0) > 0):
            h = tanh(at)
            rest = h * h
            at, low, high, best, least, before, active = newton_step(
                at + c * h - target, rest + plus * (1.0 - rest), target, at, low, high, best, least, before, active,
                False,
            )  # fmt: skip
            step += 1
        best = tl.where(s < 0.0, -best, best)
        out = tl.where((target == target) & (plus == plus), best, s + plus)
    else:
        slope = _slope(s, BELOW)
        out = s / ((1.0 - slope) + plus * slope)
    return out


# ---- planar ----


@triton.jit
def _constrained(u, w, floor, tiny):
    """w u, w w, 1 + w u' and k of u' = u + k w, [1 or R]."""
    inner, square = tl.sum(product(u, w), 1), tl.sum(product(w, w), 1)
    none = square < tiny  # of a w that is none every u will do
    plus = tl.where(none, 1.0 + inner, softplus(inner))
    plus = tl.where(plus < floor, floor, plus).to(inner.dtype)
    k = tl.where(none, 0.0, (plus - 1.0 - inner) / tl.where(none, 1.0, square)).to(inner.dtype)
    return inner, square, plus, k


@triton.jit
def _planar(x, u, w, b, floor, tiny, BELOW: tl.constexpr, TANH: tl.constexpr, INVERSE: tl.constexpr):
    """y, ladj and z."""
    _inner, _square, plus, k = _constrained(u, w, floor, tiny)
    z = tl.sum(product(w, x), 1) + b
    plus = plus + tl.zeros_like(z)
    if INVERSE:
        z = _bent_root(z, plus, BELOW, TANH)
    h, slope, rest, _curve = _bent(z, BELOW, TANH)
    ladj = tl.log(rest + plus * slope)
    moved = (u + k[:, None] * w) * h[:, None]
    if INVERSE:
        out, ladj = x - moved, -ladj
    else:
        out = x + moved
    return out, ladj, z


@triton.jit
def _planar_back(
    x, g, of_ladj, z, u, w, floor, tiny, BELOW: tl.constexpr, TANH: tl.constexpr, INVERSE: tl.constexpr
):  # fmt: skip
    """The gradient of what came in, and of u', z, 1 + w u': what multiplies g, [R]; [R]; [R]."""
    _inner, _square, plus, k = _constrained(u, w, floor, tiny)
    plus = plus + tl.zeros_like(z)
    h, slope, rest, curve = _bent(z, BELOW, TANH)
    q, c = rest + plus * slope, plus - 1.0
    along = tl.sum(product(u + k[:, None] * w, g), 1)
    if INVERSE:
        # g gains of_z w, as large as 1 / q. What that adds to the gradient of u' cancels on its way to u and w, but
        # for two terms: of w, where what came in stands for x, and of 1 + w u'. So parameters see g as it was.
        of_slope = -(of_ladj * (c * curve / q))
        of_z = of_slope - slope * ((along + of_slope * c) / q)
        of_plus = -(of_ladj * (slope / q)) - h * of_z
        h = -h
    else:
        of_z = along * slope + of_ladj * (c * curve / q)
        of_plus = of_ladj * (slope / q)
    return g + of_z[:, None] * w, h, of_z, of_plus


# ---- radial ----


@triton.jit
def _positive(given, floor, ABS: tl.constexpr):
    """What has to be, and its slope."""
    if ABS:
        out = tl.abs(given)
        slope = tl.where(given < 0.0, -1.0, 1.0).to(given.dtype)
    else:
        out = softplus(given)
        slope = sigmoid(given)
    low = out < floor
    return tl.where(low, floor, out).to(given.dtype), tl.where(low, 0.0, slope).to(given.dtype)


@triton.jit
def _slope_of_length(r, a, s):
    inner = r + a
    far, near = r / inner, a / inner
    return far * far + near * (far + far + s / inner)


@triton.jit
def _radial(x, center, alpha, beta, there, others, floor, ABS: tl.constexpr, INVERSE: tl.constexpr):
    """y, ladj and r."""
    a, _slope_a = _positive(alpha, floor, ABS)
    s, _slope_s = _positive(beta, floor, False)
    apart = tl.where(there, x - center, 0.0)
    r = tl.sqrt(tl.sum(product(apart, apart), 1))
    if INVERSE:
        # r (r + s) = length (r + a), a quadratic; of its forms the one that does not cancel.
        q, area = s - r, r * a
        both = tl.abs(q) + tl.sqrt(q * q + 4.0 * area)
        r = tl.where(q < 0.0, 0.5 * both, (area + area) / both)
    ladj = others * (tl.log(r + s) - tl.log(r + a)) + tl.log(_slope_of_length(r, a, s))
    if INVERSE:
        by, ladj = (a - s) / (r + s), -ladj
    else:
        by = (s - a) / (r + a)
    return x + by[:, None] * apart, ladj, r


@triton.jit
def _radial_back(
    x, g, of_ladj, r, center, alpha, beta, there, others, floor, ABS: tl.constexpr, INVERSE: tl.constexpr
):  # fmt: skip
    """The gradients of what came in, of alpha and of beta; that of the center is g less the first."""
    a, slope_a = _positive(alpha, floor, ABS)
    s, slope_s = _positive(beta, floor, False)
    inner, outer = 1.0 / (r + a), 1.0 / (r + s)
    far, near = r * inner, a * inner
    per_r = tl.where(r > 0.0, 1.0 / tl.where(r > 0.0, r, 1.0), tl.where(r != r, r, 0.0))
    ratio = (r + s) * inner
    ratio_a = -(ratio * inner)
    radial = _slope_of_length(r, a, s)
    each = inner / radial
    ladj_r = others * (outer - inner) + 2.0 * (each - inner)
    ladj_s = others * outer + near * each
    ladj_a = each * (far + far + s * inner) - inner * (others + 2.0)
    apart = tl.where(there, x - center, 0.0)
    dot = tl.sum(product(apart, g), 1)
    if INVERSE:
        # Across x - c the map multiplies by ratio, along it by radial: so does, the other way, its inverse. What comes
        # out may be so close to the center that a rounding is all that is left: what came in, over the ratio, is the
        # same.
        less = -(of_ladj * ladj_r) * per_r  # along x - c
        across = 1.0 / ratio
        along = (dot * across + less * (r * r)) * per_r * per_r
        more = less * across + (1.0 / radial - across) * along
        apart = apart * across[:, None]
        of_x = across[:, None] * g + more[:, None] * apart
        of_v = tl.sum(product(of_x, apart), 1)
        of_a = -(of_v * ratio_a + of_ladj * ladj_a)
        of_s = -(of_v * inner + of_ladj * ladj_s)
    else:
        of_r = (dot * ((a - s) * inner * inner) + of_ladj * ladj_r) * per_r
        of_r = tl.where(r > 0.0, of_r, tl.where(r != r, r, 0.0))
        of_x = ratio[:, None] * g + of_r[:, None] * apart
        of_a = dot * ratio_a + of_ladj * ladj_a
        of_s = dot * inner + of_ladj * ladj_s
    return of_x, tl.where(slope_a == 0.0, 0.0, of_a * slope_a), tl.where(slope_s == 0.0, 0.0, of_s * slope_s)


# ---- chains ----


@triton.jit
def low_rank_fwd(
    x_ptr, first_ptr, second_ptr, third_ptr, y_ptr, ladj_ptr, rows, D, n, x_stride, first_stride, second_stride,
    third_stride, BELOW: tl.constexpr, RADIAL: tl.constexpr, TANH: tl.constexpr, ABS: tl.constexpr,
    INVERSE: tl.constexpr, SHARED: tl.constexpr, FLOOR: tl.constexpr, TINY: tl.constexpr, R: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    d = tl.arange(0, BD)
    there = (row < rows)[:, None] & (d < D)[None, :]
    x = tl.load(x_ptr + row[:, None] * x_stride + d[None, :], mask=there, other=0.0)
    others = tl.zeros([R], x.dtype) + (D - 1)
    # In float64, as terms have both signs: an addition a layer.
    ladj = tl.zeros([R], tl.float64)
    for i in range(n):
        k = (n - 1 - i) if INVERSE else i
        first = _vector(first_ptr, k, row, d, there, D, first_stride, SHARED)
        third = _number(third_ptr, k, row, rows, third_stride, SHARED)
        if RADIAL:
            alpha = _number(second_ptr, k, row, rows, second_stride, SHARED)
            x, term, _r = _radial(x, first, alpha, third, there, others, FLOOR, ABS, INVERSE)
        else:
            w = _vector(second_ptr, k, row, d, there, D, second_stride, SHARED)
            x, term, _z = _planar(x, first, w, third, FLOOR, TINY, BELOW, TANH, INVERSE)
        ladj += term.to(tl.float64)
    tl.store(y_ptr + row[:, None] * D + d[None, :], x, mask=there)
    tl.store(ladj_ptr + row, ladj.to(x.dtype), mask=row < rows)


@triton.jit
def _add(at, index, v, mask):
    tl.store(at + index, tl.load(at + index, mask=mask, other=0.0) + v.to(tl.float64), mask=mask)


@triton.jit
def low_rank_bwd(
    x_ptr, first_ptr, second_ptr, third_ptr, grad_y_ptr, grad_ladj_ptr, grad_x_ptr, grad_first_ptr, grad_second_ptr,
    grad_third_ptr, states_ptr, kept_ptr, sums_ptr, rows, D, n, x_stride, first_stride, second_stride, third_stride,
    BELOW: tl.constexpr, HAS_Y: tl.constexpr, HAS_LADJ: tl.constexpr, PARAMS: tl.constexpr, RADIAL: tl.constexpr,
    TANH: tl.constexpr, ABS: tl.constexpr, INVERSE: tl.constexpr, SHARED: tl.constexpr, FLOOR: tl.constexpr,
    TINY: tl.constexpr, R: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    d, lane = tl.arange(0, BD), tl.arange(0, R)
    per_layer = tl.full([], 1, tl.int64) * rows  # numbers between layers, whatever their count
    sums = sums_ptr + tl.program_id(0).to(tl.int64) * n * (2 * D + 2)
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        row = tl.zeros([R], tl.int64) + tile * R + lane
        is_row = row < rows
        there = is_row[:, None] & (d < D)[None, :]
        of_features = row[:, None] * D + d[None, :]
        x = tl.load(x_ptr + row[:, None] * x_stride + d[None, :], mask=there, other=0.0)
        others = tl.zeros([R], x.dtype) + (D - 1)
        states, kept = states_ptr + of_features, kept_ptr + row
        for i in range(n):
            k = (n - 1 - i) if INVERSE else i
            first = _vector(first_ptr, k, row, d, there, D, first_stride, SHARED)
            third = _number(third_ptr, k, row, rows, third_stride, SHARED)
            tl.store(states + i * per_layer * D, x, mask=there)
            if RADIAL:
                alpha = _number(second_ptr, k, row, rows, second_stride, SHARED)
                x, _term, of_layer = _radial(x, first, alpha, third, there, others, FLOOR, ABS, INVERSE)
            else:
                w = _vector(second_ptr, k, row, d, there, D, second_stride, SHARED)
                x, _term, of_layer = _planar(x, first, w, third, FLOOR, TINY, BELOW, TANH, INVERSE)
            tl.store(kept + i * per_layer, of_layer, mask=is_row)
        g = tl.zeros([R, BD], x.dtype)
        if HAS_Y:
            g = tl.load(grad_y_ptr + of_features, mask=there, other=0.0)
        of_ladj = tl.zeros([R], x.dtype)
        if HAS_LADJ:
            of_ladj = tl.load(grad_ladj_ptr + row, mask=is_row, other=0.0)
        tl.debug_barrier()  # what other threads have kept
        for back in range(n):
            i = n - 1 - back
            k = back if INVERSE else i
            came = tl.load(states + i * per_layer * D, mask=there, other=0.0)
            of_layer = tl.load(kept + i * per_layer, mask=is_row, other=0.0)
            first = _vector(first_ptr, k, row, d, there, D, first_stride, SHARED)
            third = _number(third_ptr, k, row, rows, third_stride, SHARED)
            of_sums = sums + k * (2 * D + 2)
            if RADIAL:
                alpha = _number(second_ptr, k, row, rows, second_stride, SHARED)
                before, of_alpha, of_beta = _radial_back(
                    came, g, of_ladj, of_layer, first, alpha, third, there, others, FLOOR, ABS, INVERSE
                )  # fmt: skip
                if PARAMS:
                    of_center = g - before
                    if SHARED:
                        _add(of_sums, d, tl.sum(tl.where(there, of_center, 0.0), 0), d < D)
                        one = tl.arange(0, 2)
                        both = tl.where(
                            one == 0, tl.sum(tl.where(is_row, of_alpha, 0.0), 0),
                            tl.sum(tl.where(is_row, of_beta, 0.0), 0),
                        )  # fmt: skip
                        _add(of_sums + 2 * D, one, both, one < 2)
                    else:
                        tl.store(grad_first_ptr + row[:, None] * n * D + k * D + d[None, :], of_center, mask=there)
                        tl.store(grad_second_ptr + row * n + k, of_alpha, mask=is_row)
                        tl.store(grad_third_ptr + row * n + k, of_beta, mask=is_row)
            else:
                w = _vector(second_ptr, k, row, d, there, D, second_stride, SHARED)
                before, h, of_z, of_plus = _planar_back(
                    came, g, of_ladj, of_layer, first, w, FLOOR, TINY, BELOW, TANH, INVERSE
                )  # fmt: skip
                if PARAMS:
                    if SHARED:
                        of_used = tl.where(there, h[:, None] * g, 0.0)
                        _add(of_sums, d, tl.sum(of_used, 0), d < D)
                        _add(of_sums + D, d, tl.sum(tl.where(there, of_z[:, None] * came, 0.0), 0), d < D)
                        one = tl.arange(0, 2)
                        both = tl.where(
                            one == 0, tl.sum(tl.where(is_row, of_z, 0.0), 0), tl.sum(tl.where(is_row, of_plus, 0.0), 0)
                        )  # fmt: skip
                        _add(of_sums + 2 * D, one, both, one < 2)
                    else:
                        inner, square, _plus, times = _constrained(first, w, FLOOR, TINY)
                        none = square < TINY
                        along = h * tl.sum(product(w, g), 1)
                        slope = sigmoid(inner)
                        per = 1.0 / tl.where(none, 1.0, square)
                        of_inner = tl.where(none, of_plus, of_plus * slope + along * ((slope - 1.0) * per))
                        of_square = tl.where(none, 0.0, -2.0 * along * (times * per))
                        of_used = h[:, None] * g
                        of_u = of_used + of_inner[:, None] * w
                        of_w = of_z[:, None] * came + times[:, None] * of_used
                        of_w += of_inner[:, None] * first + of_square[:, None] * w
                        at = row[:, None] * n * D + k * D + d[None, :]
                        tl.store(grad_first_ptr + at, of_u, mask=there)
                        tl.store(grad_second_ptr + at, of_w, mask=there)
                        tl.store(grad_third_ptr + row * n + k, of_z, mask=is_row)
            g = before
        tl.store(grad_x_ptr + of_features, g, mask=there)
        tl.debug_barrier()  # before the next tile's
