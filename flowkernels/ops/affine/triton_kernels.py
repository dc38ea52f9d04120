"""The affine map in Triton, on the formulas of csrc/affine/affine_math.h.

A program owns R rows (or a share of the event of one) and walks the event BE elements at a time, so that ladj is summed
in one order. The event has up to three dims, each tensor its own strides.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flowkernels.ops._triton_math import atan, exp, log1p_unit, tanh


@triton.jit
def _exponential(log_s, slope, INVERSE: tl.constexpr):
    """Factor, log s, d log s/du, and that of the s that stops: beyond, it or its inverse would be inf, inf * 0 NaN."""
    bound: tl.constexpr = 708.0 if log_s.dtype == tl.float64 else 87.0
    stopped = tl.where(log_s < -bound, -bound, tl.where(log_s > bound, bound, log_s))
    if INVERSE:
        stopped = -stopped
    return exp(stopped), log_s, slope, tl.where(tl.abs(log_s) <= bound, slope, 0.0)


@triton.jit
def scale_at(
    u, SCALE: tl.constexpr, MIN: tl.constexpr, CLAMP: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    INVERSE: tl.constexpr,
):  # fmt: skip
    """At logit u: s or 1/s, log s, d log s/du, and the slope that the factor has."""
    bound: tl.constexpr = 708.0 if u.dtype == tl.float64 else 87.0
    if SCALE == "exp":
        factor, log_s, slope, of_factor = _exponential(u, tl.zeros_like(u) + 1.0, INVERSE)
    elif SCALE == "tanh":
        h = tanh(u / CLAMP)
        factor, log_s, slope, of_factor = _exponential(CLAMP * h, 1.0 - h * h, INVERSE)
    elif SCALE == "atan":
        unit: tl.constexpr = CLAMP * 0.6366197723675814
        r = u / unit
        factor, log_s, slope, of_factor = _exponential(unit * atan(r), 1.0 / (1.0 + r * r), INVERSE)
    elif SCALE == "soft_clip":
        q = 1.0 / (1.0 + tl.abs(u / CLAMP))
        factor, log_s, slope, of_factor = _exponential(u * q, q * q, INVERSE)
    elif SCALE == "clip":  # not tl.minimum, which drops NaN
        clipped = tl.where(u < LOW, LOW, tl.where(u > HIGH, HIGH, u))
        factor, log_s, slope, of_factor = _exponential(clipped, tl.zeros_like(u) + 1.0, INVERSE)
    else:
        z = u if SCALE == "softplus" else u + 2.0
        c = tl.where(z < -bound, -bound, z)
        e = exp(-tl.abs(c))
        q = 1.0 / (1.0 + e)
        above = tl.where(c >= 0.0, q, e * q)  # sigmoid(c)
        if SCALE == "softplus":
            s = tl.maximum(c, 0.0) + log1p_unit(e) + MIN
            slope = above / s
            log_s = tl.log(s)
            if MIN == 0:  # below -37 a softplus is e^u, to the last bit of a double
                log_s = tl.where(u >= -37.0, log_s, u)
        elif SCALE == "reciprocal_sigmoid":
            slope = -tl.where(c >= 0.0, e * q, q)
            s = tl.where(c >= 0.0, 1.0 + e, (1.0 + e) / e)
            log_s = log1p_unit(e) - tl.minimum(z, 0.0)
        else:
            below = tl.where(c >= 0.0, e * q, q)
            s = above + MIN
            if MIN > 0:
                slope = above * below / s
                log_s = tl.log(s)
            else:
                slope = below
                log_s = tl.minimum(z, 0.0) - log1p_unit(e)
        of_factor = tl.where(z >= -bound, slope, 0.0)
        if MIN > 0 and SCALE != "reciprocal_sigmoid":  # a floor is all that is left of s
            slope = of_factor
        factor = 1.0 / s if INVERSE else s
    return factor, log_s, slope, of_factor


@triton.jit
def logit_grad(gy, gl, moved, factor, slope, of_factor, INVERSE: tl.constexpr):
    """From those of y and ladj; `moved`: what the factor multiplies, x or, inverse, y less the shift. Where y has no
    gradient, or the scale has stopped, there is none by way of y, whatever y is: it may be inf, and inf * 0 NaN."""
    moved = moved * factor * of_factor if INVERSE else moved * (factor * of_factor)
    g = tl.where((gy == 0.0) | (of_factor == 0.0), 0.0, gy * moved) + gl * slope
    return -g if INVERSE else g


@triton.jit
def _place(first, rows, n0, n1, n2, R: tl.constexpr, BE: tl.constexpr, PARTS: tl.constexpr):
    """Row and place in the event of each of a program's elements, and whether it is one."""
    i = tl.arange(0, R * BE)
    row = (tl.program_id(0) // PARTS).to(tl.int64) * R + i // BE
    e = first + i % BE
    ok = (row < rows) & (e < n0 * n1 * n2)
    return row, (e // (n1 * n2)).to(tl.int64), (e // n2 % n1).to(tl.int64), (e % n2).to(tl.int64), ok


@triton.jit
def affine_fwd(
    x_ptr, u_ptr, t_ptr, mask_ptr, y_ptr, ladj_ptr, rows, n0, n1, n2, x_r, x_0, x_1, x_2, u_r, u_0, u_1, u_2, t_r, t_0,
    t_1, t_2, m_0, m_1, m_2, y_r, y_0, y_1, y_2,
    SCALE: tl.constexpr, MIN: tl.constexpr, CLAMP: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    INVERSE: tl.constexpr, MASK: tl.constexpr,
    PARTS: tl.constexpr, R: tl.constexpr, BE: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """y, and ladj [rows, PARTS]: each the sum of one share of the event."""
    total = tl.zeros([R], tl.float64)  # terms of both signs
    part = tl.program_id(0) % PARTS
    for first in range(part * BE, n0 * n1 * n2, PARTS * BE):
        row, i, j, k, ok = _place(first, rows, n0, n1, n2, R, BE, PARTS)
        v = tl.load(x_ptr + row * x_r + i * x_0 + j * x_1 + k * x_2, mask=ok, other=0.0).to(dtype)
        mapped = ok
        if MASK:
            mapped = ok & (tl.load(mask_ptr + i * m_0 + j * m_1 + k * m_2, mask=ok, other=0) != 0)
        t = tl.load(t_ptr + row * t_r + i * t_0 + j * t_1 + k * t_2, mask=mapped, other=0.0).to(dtype)
        if SCALE == "additive":
            y = v - t if INVERSE else v + t
        else:
            u = tl.load(u_ptr + row * u_r + i * u_0 + j * u_1 + k * u_2, mask=mapped, other=0.0).to(dtype)
            factor, log_s, _slope, _of_factor = scale_at(u, SCALE, MIN, CLAMP, LOW, HIGH, INVERSE)
            y = (v - t) * factor if INVERSE else v * factor + t
            total += tl.sum(tl.reshape(tl.where(mapped, log_s, 0.0).to(tl.float64), [R, BE]), 1)
        y = tl.where(mapped, y, v).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + row * y_r + i * y_0 + j * y_1 + k * y_2, y, mask=ok)
    r = (tl.program_id(0) // PARTS).to(tl.int64) * R + tl.arange(0, R)
    if INVERSE:
        total = -total
    tl.store(ladj_ptr + r * PARTS + part, total.to(ladj_ptr.dtype.element_ty), mask=r < rows)


@triton.jit
def affine_bwd(
    x_ptr, u_ptr, t_ptr, mask_ptr, gy_ptr, gl_ptr, gx_ptr, gu_ptr, gt_ptr, rows, n0, n1, n2, x_r, x_0, x_1, x_2, u_r,
    u_0, u_1, u_2, t_r, t_0, t_1, t_2, m_0, m_1, m_2, gy_r, gy_0, gy_1, gy_2, gx_r, gx_0, gx_1, gx_2, gu_r, gu_0, gu_1,
    gu_2, gt_r, gt_0, gt_1, gt_2,
    SCALE: tl.constexpr, MIN: tl.constexpr, CLAMP: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    INVERSE: tl.constexpr, MASK: tl.constexpr,
    PARTS: tl.constexpr, R: tl.constexpr, BE: tl.constexpr, HAS_Y: tl.constexpr, HAS_LADJ: tl.constexpr,
    NEED_X: tl.constexpr, NEED_PARAMS: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Gradients of x, of the logits and of the shifts."""
    for first in range(tl.program_id(0) % PARTS * BE, n0 * n1 * n2, PARTS * BE):
        row, i, j, k, ok = _place(first, rows, n0, n1, n2, R, BE, PARTS)
        mapped = ok
        if MASK:
            mapped = ok & (tl.load(mask_ptr + i * m_0 + j * m_1 + k * m_2, mask=ok, other=0) != 0)
        gy = tl.zeros([R * BE], dtype)
        if HAS_Y:
            gy = tl.load(gy_ptr + row * gy_r + i * gy_0 + j * gy_1 + k * gy_2, mask=ok, other=0.0).to(dtype)
        if SCALE == "additive":
            gx = gy
        else:
            gl = tl.zeros_like(gy)
            if HAS_LADJ:
                gl = tl.load(gl_ptr + row, mask=ok, other=0.0).to(dtype)
            u = tl.load(u_ptr + row * u_r + i * u_0 + j * u_1 + k * u_2, mask=mapped, other=0.0).to(dtype)
            factor, _log_s, slope, of_factor = scale_at(u, SCALE, MIN, CLAMP, LOW, HIGH, INVERSE)
            gx = tl.where(mapped & (gy != 0.0), gy * factor, gy)
            if NEED_PARAMS:
                v = tl.load(x_ptr + row * x_r + i * x_0 + j * x_1 + k * x_2, mask=mapped, other=0.0).to(dtype)
                if INVERSE:
                    t = tl.load(t_ptr + row * t_r + i * t_0 + j * t_1 + k * t_2, mask=mapped, other=0.0).to(dtype)
                    v = v - t
                gu = logit_grad(gy, gl, v, factor, slope, of_factor, INVERSE)
                gu = tl.where(mapped, gu, 0.0).to(gu_ptr.dtype.element_ty)
                tl.store(gu_ptr + row * gu_r + i * gu_0 + j * gu_1 + k * gu_2, gu, mask=ok)
        if NEED_X:
            gx_ = gx.to(gx_ptr.dtype.element_ty)
            tl.store(gx_ptr + row * gx_r + i * gx_0 + j * gx_1 + k * gx_2, gx_, mask=ok)
        if NEED_PARAMS:
            gt = tl.where(mapped, -gx if INVERSE else gx if SCALE == "additive" else gy, 0.0)
            tl.store(gt_ptr + row * gt_r + i * gt_0 + j * gt_1 + k * gt_2, gt.to(gt_ptr.dtype.element_ty), mask=ok)
