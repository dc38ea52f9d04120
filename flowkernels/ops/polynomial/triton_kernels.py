"""The polynomial maps in Triton, on the formulas of csrc/polynomial. An element is a row of a tile: of the nodes of a
quadrature, and 1, for sums of squares; of the steps between coefficients for Bernstein polynomials, which are loaded in
the order that the nearer end of the box has them in."""

from __future__ import annotations

import triton
import triton.language as tl

from flowkernels.ops._triton_math import exp, product, sigmoid, softplus
from flowkernels.ops._triton_root import newton_step
from flowkernels.ops._triton_rows import elements, grads_of, of_rows, store_rows

# ---- sums of squares ----


@triton.jit
def _coefficient(at, ok, stride, i, dtype: tl.constexpr):
    return tl.load(at + i * stride, mask=ok, other=0.0).to(dtype)


@triton.jit
def _stopped(v, most: tl.constexpr):
    """v in [-most, most]; a NaN stays one."""
    return tl.where(v < -most, -most, tl.where(v > most, most, v))


@triton.jit
def _squared(at, ok, stride, k, u, N: tl.constexpr, CENTRE: tl.constexpr):
    """p_k(u) of a tile u [E, BN], with its centre."""
    p = tl.zeros_like(u) + _coefficient(at, ok, stride, k * N + N - 1, u.dtype)[:, None]
    for j in range(1, N):
        p = p * u + _coefficient(at, ok, stride, k * N + N - 1 - j, u.dtype)[:, None]
    return p + CENTRE


@triton.jit
def _squares_at(
    x, at, ok, stride, nodes, weights, N: tl.constexpr, TERMS: tl.constexpr, BOUND: tl.constexpr, SLOPE: tl.constexpr,
    CENTRE: tl.constexpr, WEIGHT: tl.constexpr,
):  # fmt: skip
    """The mean of the density from 0 to x, and the density at x, which is that of the node 1."""
    u = (x / BOUND)[:, None] * nodes
    density = tl.zeros_like(u)
    for k in range(TERMS):
        p = _squared(at, ok, stride, k, u, N, CENTRE)
        density += p * p
    density = density * WEIGHT + SLOPE
    last = tl.arange(0, nodes.shape[1])[None, :] == N
    # Not density * 0, which is NaN far out.
    mean = tl.sum(tl.where(weights > 0.0, product(density, weights), 0.0), 1)
    return mean, tl.sum(tl.where(last, density, 0.0), 1)


@triton.jit
def _squares_root(
    y, at, ok, stride, nodes, weights, N: tl.constexpr, TERMS: tl.constexpr, BOUND: tl.constexpr, SLOPE: tl.constexpr,
    CENTRE: tl.constexpr, WEIGHT: tl.constexpr, SHIFT: tl.constexpr, STOP: tl.constexpr,
):  # fmt: skip
    off = y
    if SHIFT:
        off = y - _coefficient(at, ok, stride, TERMS * N, y.dtype)
    size = tl.abs(off)
    sign = tl.where(off < 0.0, -1.0, 1.0).to(y.dtype)
    high = tl.minimum(size / SLOPE, STOP)
    m = tl.minimum(size, high)
    best, low, before = m, tl.zeros_like(m), high
    least = tl.zeros_like(m) + float("inf")
    active = size == size
    step = 0
    while (step < 256) & (tl.max(active.to(tl.int32), 0) > 0):
        mean, slope = _squares_at(
            sign * m, at, ok, stride, nodes, weights, N, TERMS, BOUND, SLOPE, CENTRE, WEIGHT
        )  # fmt: skip
        m, low, high, best, least, before, active = newton_step(
            m * mean - size, slope, size, m, low, high, best, least, before, active, True
        )
        step += 1
    best = tl.where(size == size, best, size)
    return sign * tl.where(size == 0.0, size, best)


@triton.jit
def _squares(
    v, at, ok, stride, nodes, weights, N: tl.constexpr, TERMS: tl.constexpr, BOUND: tl.constexpr, SLOPE: tl.constexpr,
    CENTRE: tl.constexpr, WEIGHT: tl.constexpr, SHIFT: tl.constexpr, STOP: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """v mapped, and the logarithm of the slope."""
    far: tl.constexpr = 1e300 if v.dtype == tl.float64 else 1e37  # from where on squares are no numbers
    end: tl.constexpr = 1e290 if v.dtype == tl.float64 else 1e30  # where y ends: networks of it still have numbers
    if INVERSE:
        x = _squares_root(
            v, at, ok, stride, nodes, weights, N, TERMS, BOUND, SLOPE, CENTRE, WEIGHT, SHIFT, STOP
        )  # fmt: skip
    else:
        x = _stopped(v, far)
    mean, density = _squares_at(x, at, ok, stride, nodes, weights, N, TERMS, BOUND, SLOPE, CENTRE, WEIGHT)
    if INVERSE:
        log_slope = -tl.log(density)
        y = tl.where(log_slope == log_slope, x, log_slope)  # a search leaves out what is no number
    else:
        log_slope = tl.log(_stopped(density, far))
        y = x * _stopped(mean, far)
        if SHIFT:
            y = y + _coefficient(at, ok, stride, TERMS * N, v.dtype)
        y = _stopped(y, end)
    return y, log_slope


@triton.jit
def _squares_bwd(
    v, at, ok, stride, to, of_out, of_ladj, nodes, weights, N: tl.constexpr, TERMS: tl.constexpr, BOUND: tl.constexpr,
    SLOPE: tl.constexpr, CENTRE: tl.constexpr, WEIGHT: tl.constexpr, SHIFT: tl.constexpr, STOP: tl.constexpr,
    INVERSE: tl.constexpr, NEED_PARAMS: tl.constexpr,
):  # fmt: skip
    """Stores the gradients of the coefficients from `to` on and returns that of v, of an inverse by the implicit
    function theorem."""
    if INVERSE:
        x = _squares_root(
            v, at, ok, stride, nodes, weights, N, TERMS, BOUND, SLOPE, CENTRE, WEIGHT, SHIFT, STOP
        )  # fmt: skip
    else:
        x = v
    u = x / BOUND
    total = tl.zeros_like(u)
    bend = tl.zeros_like(u)
    for k in range(TERMS):
        p = _coefficient(at, ok, stride, k * N + N - 1, u.dtype)
        d = tl.zeros_like(u)
        for j in range(1, N):
            d = d * u + p
            p = p * u + _coefficient(at, ok, stride, k * N + N - 1 - j, u.dtype)
        p = p + CENTRE
        total += p * p
        bend += p * d
    slope = total * WEIGHT + SLOPE
    along = bend * (2.0 * WEIGHT / BOUND) / slope
    of_y = of_out
    if INVERSE:
        of_v = (of_out - of_ladj * along) / slope
        of_y = -of_v
        of_ladj = -of_ladj
    else:
        of_v = of_out * slope + of_ladj * along
    if NEED_PARAMS:
        tile = u[:, None] * nodes
        last = tl.arange(0, nodes.shape[1])[None, :] == N
        w = tl.where(last, (of_ladj * (2.0 * WEIGHT) / slope)[:, None], (of_y * x * (2.0 * WEIGHT))[:, None] * weights)
        for k in range(TERMS):
            q = product(w, _squared(at, ok, stride, k, tile, N, CENTRE))
            for j in range(N):
                tl.store(to + (k * N + j), tl.sum(q, 1).to(to.dtype.element_ty), mask=ok)
                q = product(q, tile)
        if SHIFT:
            tl.store(to + TERMS * N, of_y.to(to.dtype.element_ty), mask=ok)
    return of_v


# ---- Bernstein polynomials ----


@triton.jit
def _step_of(i, mirrored, N: tl.constexpr):
    """The number of the step that is the i-th from the nearer end."""
    return tl.where(mirrored[:, None], N - 1 - i, i)


@triton.jit
def _steps(i, mirrored, top, per_sum, at, ok, stride, N: tl.constexpr, P: tl.constexpr, LINEAR: tl.constexpr,
           END: tl.constexpr):  # fmt: skip
    """Steps i [1, BN] from the nearer end on, [E, BN]; 0 where there is none."""
    dtype: tl.constexpr = top.dtype
    there = (i >= 0) & (i < N)
    s = _step_of(i, mirrored, N)
    if LINEAR:
        p = tl.minimum(tl.maximum(s, 1), P - 1)
        wanted = ok[:, None] & there
    else:
        p = s - 2
        wanted = ok[:, None] & there & (p >= 0) & (p < P)
    u = tl.load(at[:, None] + p * stride, mask=wanted, other=0.0).to(dtype)
    if LINEAR:
        least: tl.constexpr = 1e-24 if dtype == tl.float64 else 1e-12
        step = softplus(u)
        step = tl.where(step < least, least, step)
    else:
        step = tl.where((p >= 0) & (p < P), exp(u - top[:, None]) * per_sum[:, None], END)
    return tl.where(there, step, 0.0)


@triton.jit
def _ends(v, at, ok, stride, i, N: tl.constexpr, P: tl.constexpr, LINEAR: tl.constexpr, BOUND: tl.constexpr,
          FREE: tl.constexpr, LOWERED: tl.constexpr):  # fmt: skip
    """The first and the last coefficient, and of a softmax the largest logit and what an exponential is a step by."""
    top = tl.zeros_like(v)
    per_sum = tl.zeros_like(v)
    if LINEAR:
        first = tl.load(at, mask=ok, other=0.0).to(v.dtype) - LOWERED
        steps = _steps(i, v != v, top, per_sum, at, ok, stride, N, P, True, 0.0)
        last = first + tl.sum(steps, 1)
    else:
        first = tl.zeros_like(v) - BOUND
        last = tl.zeros_like(v) + BOUND
        u = tl.load(at[:, None] + i * stride, mask=ok[:, None] & (i < P), other=0.0).to(v.dtype)
        top = tl.max(tl.where(i < P, u, -float("inf")), 1)
        per_sum = FREE / tl.sum(tl.where(i < P, exp(u - top[:, None]), 0.0), 1)
    return first, last, top, per_sum


@triton.jit
def _in_order(mirrored, i, top, per_sum, at, ok, stride, N: tl.constexpr, P: tl.constexpr, LINEAR: tl.constexpr,
              END: tl.constexpr):  # fmt: skip
    """The steps from the nearer end, and the sums of those before."""
    steps = _steps(i, mirrored, top, per_sum, at, ok, stride, N, P, LINEAR, END)
    # Of the steps moved by one: less itself, a sum would have lost what is small beside the step.
    before = tl.cumsum(_steps(i - 1, mirrored, top, per_sum, at, ok, stride, N, P, LINEAR, END), 1)
    return steps, before


@triton.jit
def _powers(u, i, n: tl.constexpr):
    """r^i for r = u / (1 - u), and (1 - u)^n."""
    rest = 1.0 - u
    r = u / rest
    tile = tl.cumprod(tl.where(i == 0, 1.0, (r[:, None] + tl.zeros(i.shape, u.dtype))), 1)
    low = tl.zeros_like(u) + 1.0
    for _ in range(n):  # not by squares, each of which would double the errors before it
        low = low * rest
    return tile, low


@triton.jit
def _rise(u, i, steps, before, choose, N: tl.constexpr):
    """How far y is above the coefficient of the nearer end, u of the box away from it, and the slope by u."""
    power, low = _powers(u, i, N - 1)
    basis = choose * power
    of_steps = tl.sum(product(basis, steps), 1)
    return low * (tl.sum(product(basis, before), 1) + u * of_steps), N * (low * of_steps)


@triton.jit
def _place(x, BOUND: tl.constexpr, EDGE: tl.constexpr):
    """Whether x is nearer to the upper end; how far from its end, as a share of the box; the same, within the box."""
    u = (BOUND - tl.abs(x)) / (2.0 * BOUND)
    return x > 0.0, u, tl.where(u < EDGE, EDGE, u)


@triton.jit
def _bernstein_root(
    y, at, ok, stride, choose, i, first, last, top, per_sum, N: tl.constexpr, P: tl.constexpr, LINEAR: tl.constexpr,
    BOUND: tl.constexpr, END: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    half = tl.zeros_like(y) + 0.5
    steps, before = _in_order(y != y, i, top, per_sum, at, ok, stride, N, P, LINEAR, END)
    up, _slope = _rise(half, i, steps, before, choose, N)
    mirrored = (y - first) - up > 0.0
    steps, before = _in_order(mirrored, i, top, per_sum, at, ok, stride, N, P, LINEAR, END)
    target = tl.where(mirrored, last - y, y - first)
    low = tl.zeros_like(y) + EDGE
    at_low, of_low = _rise(low, i, steps, before, choose, N)
    up, _slope = _rise(half, i, steps, before, choose, N)
    outside = (target - at_low if LINEAR else target) <= 0.0
    goal = tl.where(outside, up, target)
    u = half * (goal / up)
    u = tl.where(u > half, half, tl.where(u < low, low, u))
    below = low
    above = half
    best = u
    previous = above - below
    least = tl.zeros_like(u) + float("inf")
    active = goal == goal
    step = 0
    while (step < 256) & (tl.max(active.to(tl.int32), 0) > 0):
        f, slope = _rise(u, i, steps, before, choose, N)
        u, below, above, best, least, previous, active = newton_step(
            f - goal, slope, goal, u, below, above, best, least, previous, active, False
        )
        step += 1
    u = tl.where(goal == goal, best, goal)
    if LINEAR:
        u = tl.where(outside, low + (target - at_low) / of_low, u)
    size = BOUND - u * (2.0 * BOUND)
    x = tl.where(mirrored, size, -size)
    if not LINEAR:
        beyond: tl.constexpr = 2.0 * BOUND * EDGE
        x = tl.where(outside, tl.where(mirrored, y - beyond, y + beyond), x)
    return x


@triton.jit
def _bernstein(
    v, at, ok, stride, choose, i, N: tl.constexpr, P: tl.constexpr, LINEAR: tl.constexpr, BOUND: tl.constexpr,
    END: tl.constexpr, FREE: tl.constexpr, LOWERED: tl.constexpr, EDGE: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """v mapped, and the logarithm of the slope."""
    first, last, top, per_sum = _ends(v, at, ok, stride, i, N, P, LINEAR, BOUND, FREE, LOWERED)
    if INVERSE:
        x = _bernstein_root(
            v, at, ok, stride, choose, i, first, last, top, per_sum, N, P, LINEAR, BOUND, END, EDGE
        )  # fmt: skip
    else:
        x = v
    mirrored, u, inside = _place(x, BOUND, EDGE)
    steps, before = _in_order(mirrored, i, top, per_sum, at, ok, stride, N, P, LINEAR, END)
    up, slope = _rise(inside, i, steps, before, choose, N)
    if LINEAR:
        up = up + slope * (u - inside)
    y = tl.where(mirrored, last - up, first + up)
    log_slope = tl.log(slope / (2.0 * BOUND))
    if not LINEAR:
        beyond: tl.constexpr = 2.0 * BOUND * EDGE
        y = tl.where(u <= EDGE, tl.where(mirrored, x + beyond, x - beyond), y)
        log_slope = tl.where(u <= EDGE, 0.0, log_slope)
    if INVERSE:
        y = x
        log_slope = -log_slope
    return y, log_slope


@triton.jit
def _bernstein_bwd(
    v, at, ok, stride, to, of_out, of_ladj, table, choose, i, N: tl.constexpr, P: tl.constexpr, LINEAR: tl.constexpr,
    BOUND: tl.constexpr, END: tl.constexpr, FREE: tl.constexpr, LOWERED: tl.constexpr, EDGE: tl.constexpr,
    INVERSE: tl.constexpr, NEED_PARAMS: tl.constexpr,
):  # fmt: skip
    """Stores the gradients of the parameters from `to` on and returns that of v, of an inverse by the implicit function
    theorem."""
    first, last, top, per_sum = _ends(v, at, ok, stride, i, N, P, LINEAR, BOUND, FREE, LOWERED)
    if INVERSE:
        x = _bernstein_root(
            v, at, ok, stride, choose, i, first, last, top, per_sum, N, P, LINEAR, BOUND, END, EDGE
        )  # fmt: skip
    else:
        x = v
    mirrored, u, inside = _place(x, BOUND, EDGE)
    steps = _steps(i, mirrored, top, per_sum, at, ok, stride, N, P, LINEAR, END)
    after = _steps(i + 1, mirrored, top, per_sum, at, ok, stride, N, P, LINEAR, END)
    rest = 1.0 - inside
    power, low_before = _powers(inside, i, N - 2)
    low = low_before * rest
    basis = low[:, None] * (choose * power)
    total = tl.sum(product(basis, steps), 1)
    # Of the steps' differences, which a polynomial of one degree less has; N - 2 over i from N - 1 over i.
    fewer = choose * ((N - 1 - i).to(v.dtype) / (N - 1.0))
    differs = tl.sum(tl.where(i < N - 1, product(fewer * power, after - steps), 0.0), 1)
    bend = (N - 1) * (low_before * differs) / total
    along = tl.where(mirrored, -bend, bend) / (2.0 * BOUND)
    along = tl.where(u < EDGE, 0.0, along)
    slope = N * total / (2.0 * BOUND)
    if not LINEAR:
        slope = tl.where(u <= EDGE, 1.0, slope)
        along = tl.where(u <= EDGE, 0.0, along)
    of_y = of_out
    if INVERSE:
        of_v = (of_out - of_ladj * along) / slope
        of_y = -of_v
        of_ladj = -of_ladj
    else:
        of_v = of_out * slope + of_ladj * along
    if NEED_PARAMS:
        r = inside / rest
        next_choose = tl.load(table + i + 1, mask=i + 1 < N, other=0.0)
        tail = tl.cumsum((low * r)[:, None] * (next_choose * power), 1, reverse=True)
        own = inside + N * (u - inside)
        of_up = tl.where(mirrored, -of_y, of_y)[:, None]
        g = of_up * (tail + own[:, None] * basis) + (of_ladj / total)[:, None] * basis
        if LINEAR:
            # Of every step where the far end's coefficient is what y is seen from.
            g += tl.where(mirrored, of_y, 0.0)[:, None]
        s = _step_of(i, mirrored, N)
        there = ok[:, None] & (i < N)
        if LINEAR:
            u_s = tl.load(at[:, None] + s * stride, mask=there & (s > 0) & (s < P), other=0.0).to(v.dtype)
            g = tl.where(i < N, g, 0.0)
            of_low = tl.sum(tl.where(s == 0, g, 0.0), 1)
            of_high = tl.sum(tl.where(s == P, g, 0.0), 1)
            g += tl.where(s == 1, of_low[:, None], 0.0) + tl.where(s == P - 1, of_high[:, None], 0.0)
            least: tl.constexpr = 1e-24 if v.dtype == tl.float64 else 1e-12
            g = tl.where(steps <= least, 0.0, g * sigmoid(u_s))
            tl.store(to[:, None] + s, g.to(to.dtype.element_ty), mask=there & (s > 0) & (s < P))
            tl.store(to, of_y.to(to.dtype.element_ty), mask=ok)
        else:
            g = tl.where((u <= EDGE)[:, None], 0.0, g)
            inner = (s >= 2) & (s < P + 2)
            mean = tl.sum(tl.where(inner, product(steps, g), 0.0), 1) / FREE
            g = steps * (g - mean[:, None])
            tl.store(to[:, None] + (s - 2), g.to(to.dtype.element_ty), mask=there & inner)
    return of_v


# ---- the kernels ----


@triton.jit
def polynomial_fwd(
    x_ptr, params_ptr, y_ptr, ladj_ptr, rows, D, table_ptr, x_row, x_feature, p_row, p_feature, p_param,
    SQUARES: tl.constexpr, N: tl.constexpr, P: tl.constexpr, TERMS: tl.constexpr, BOUND: tl.constexpr,
    SLOPE: tl.constexpr, CENTRE: tl.constexpr, WEIGHT: tl.constexpr, SHIFT: tl.constexpr, STOP: tl.constexpr,
    LINEAR: tl.constexpr, END: tl.constexpr, FREE: tl.constexpr, LOWERED: tl.constexpr, EDGE: tl.constexpr,
    INVERSE: tl.constexpr, BN: tl.constexpr, R: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """x [rows, D], params [rows, D, P] → y [rows, D], dense, and ladj [rows]. The table: nodes of a quadrature, and 1,
    and their weights, and 0; or N - 1 over i."""
    dtype: tl.constexpr = ladj_ptr.dtype.element_ty
    i = tl.arange(0, BN)[None, :]
    total = tl.zeros([R], tl.float64)
    for first in range(0, D, BD):
        row, feature, ok = elements(first, rows, D, R, BD)
        v = tl.load(x_ptr + row * x_row + feature * x_feature, mask=ok, other=0.0).to(dtype)
        at = params_ptr + row * p_row + feature * p_feature
        if SQUARES:
            nodes = tl.load(table_ptr + i, mask=i <= N, other=0.0)
            weights = tl.load(table_ptr + (N + 1) + i, mask=i <= N, other=0.0)
            y, log_slope = _squares(
                v, at, ok, p_param, nodes, weights, N, TERMS, BOUND, SLOPE, CENTRE, WEIGHT, SHIFT, STOP, INVERSE
            )
        else:
            choose = tl.load(table_ptr + i, mask=i < N, other=0.0)
            y, log_slope = _bernstein(
                v, at, ok, p_param, choose, i, N, P, LINEAR, BOUND, END, FREE, LOWERED, EDGE, INVERSE
            )
        tl.store(y_ptr + row * D + feature, y.to(y_ptr.dtype.element_ty), mask=ok)
        total += of_rows(log_slope, ok, R, BD)
    store_rows(ladj_ptr, total, rows, R)


@triton.jit
def polynomial_bwd(
    x_ptr, params_ptr, grad_y_ptr, grad_ladj_ptr, grad_x_ptr, grad_params_ptr, rows, D, table_ptr, x_row, x_feature,
    p_row, p_feature, p_param,
    SQUARES: tl.constexpr, N: tl.constexpr, P: tl.constexpr, TERMS: tl.constexpr, BOUND: tl.constexpr,
    SLOPE: tl.constexpr, CENTRE: tl.constexpr, WEIGHT: tl.constexpr, SHIFT: tl.constexpr, STOP: tl.constexpr,
    LINEAR: tl.constexpr, END: tl.constexpr, FREE: tl.constexpr, LOWERED: tl.constexpr, EDGE: tl.constexpr,
    INVERSE: tl.constexpr, BN: tl.constexpr, R: tl.constexpr, BD: tl.constexpr, HAS_Y: tl.constexpr,
    HAS_LADJ: tl.constexpr, NEED_X: tl.constexpr, NEED_PARAMS: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Gradients of x [rows, D] and params [rows, D, P], dense, from those of y (dense) and ladj."""
    i = tl.arange(0, BN)[None, :]
    for first in range(0, D, BD):
        row, feature, ok = elements(first, rows, D, R, BD)
        v = tl.load(x_ptr + row * x_row + feature * x_feature, mask=ok, other=0.0).to(dtype)
        at = params_ptr + row * p_row + feature * p_feature
        to = grad_params_ptr + (row * D + feature) * P
        of_y, of_ladj = grads_of(grad_y_ptr, grad_ladj_ptr, row, feature, D, ok, HAS_Y, HAS_LADJ, dtype)
        if SQUARES:
            nodes = tl.load(table_ptr + i, mask=i <= N, other=0.0)
            weights = tl.load(table_ptr + (N + 1) + i, mask=i <= N, other=0.0)
            of_v = _squares_bwd(
                v, at, ok, p_param, to, of_y, of_ladj, nodes, weights, N, TERMS, BOUND, SLOPE, CENTRE, WEIGHT, SHIFT,
                STOP, INVERSE, NEED_PARAMS,
            )  # fmt: skip
        else:
            choose = tl.load(table_ptr + i, mask=i < N, other=0.0)
            of_v = _bernstein_bwd(
                v, at, ok, p_param, to, of_y, of_ladj, table_ptr, choose, i, N, P, LINEAR, BOUND, END, FREE, LOWERED,
                EDGE, INVERSE, NEED_PARAMS,
            )  # fmt: skip
        if NEED_X:
            tl.store(grad_x_ptr + row * D + feature, of_v.to(grad_x_ptr.dtype.element_ty), mask=ok)
