"""The mixture map in Triton, on the formulas of csrc/mixture/mixture_math.h. An element is a row of a tile [E, BK], its
components the columns; of those past the last the weight is 0."""

from __future__ import annotations

import triton
import triton.language as tl

from flowkernels.ops._triton_math import exp, log1p_unit, product
from flowkernels.ops._triton_rows import elements, grads_of, of_rows, store_rows


@triton.jit
def _tail(v, table):
    """Of the normal distribution, by the numbers of csrc/common/normal_tail.h: Phi(-|v|) = t / 2 exp(rest - v^2/2)."""
    terms: tl.constexpr = 26 if v.dtype == tl.float64 else 12
    t = 2.0 / (2.0 + tl.abs(v) * 0.7071067811865475)
    u = 2.0 * t - 1.0
    b1 = tl.zeros_like(v)
    b2 = tl.zeros_like(v)
    for i in range(1, terms):  # Clenshaw's recurrence
        b = 2.0 * u * b1 - b2 + tl.load(table + (terms - i))
        b2 = b1
        b1 = b
    return t, u * b1 - b2 + tl.load(table)


@triton.jit
def _params(at, ok, stride, k, K: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, dtype: tl.constexpr):
    """Logits of weights less the largest (-inf past the last), means, logarithms of scales as they are, and stopped."""
    there = ok[:, None] & (k < K)
    first = at[:, None] + k * stride
    w = tl.load(first, mask=there, other=0.0).to(dtype)
    mean = tl.load(first + K * stride, mask=there, other=0.0).to(dtype)
    scale = tl.load(first + 2 * K * stride, mask=there, other=0.0).to(dtype)
    w = tl.where(k < K, w - tl.max(tl.where(k < K, w, -float("inf")), 1)[:, None], -float("inf"))
    stopped = tl.where(scale < LOW, LOW, tl.where(scale > HIGH, HIGH, scale))  # a NaN stays one
    return w, mean, scale, stopped


@triton.jit
def _components(x, mean, per_scale, table, NORMAL: tl.constexpr):
    """Of each component at x: z, its two sides and its density."""
    far: tl.constexpr = 1e18  # its square is a number
    z = (x[:, None] - mean) * per_scale
    z = tl.where(z < -far, -far, tl.where(z > far, far, z))
    if NORMAL:
        t, rest = _tail(z, table)
        e = exp(-0.5 * z * z)  # with the same rounding in both, whose ratio matters
        small = 0.5 * t * exp(rest) * e
        big = 1.0 - small
        density = 0.3989422804014327 * e
    else:
        e = exp(-tl.abs(z))
        big = 1.0 / (1.0 + e)
        small = e * big
        density = small * big
    return z, small, big, density


@triton.jit
def _terms(z, small, big, density, w, scale, per_scale, table, NORMAL: tl.constexpr):
    """Logarithms of a component's terms in the sums, and its density over either side."""
    if NORMAL:
        t, rest = _tail(z, table)
        square = 0.5 * z * z
        of_small = 0.7978845608028654 / t * exp(-rest)
        of_big = density / (1.0 - small)
        log_small = tl.log(0.5 * t) + (rest - square)
        log_big = tl.log(1.0 - small)
        log_density = -square - 0.9189385332046727
    else:
        of_small = 1.0 - small
        of_big = small
        log_big = -log1p_unit(exp(-tl.abs(z)))
        log_small = log_big - tl.abs(z)
        log_density = log_small + log_big
    up = z >= 0.0
    return (
        w + tl.where(up, log_big, log_small), w + tl.where(up, log_small, log_big), w + (log_density - scale),
        tl.where(up, of_big, of_small) * per_scale, tl.where(up, of_small, of_big) * per_scale,
    )  # fmt: skip


@triton.jit
def _log_sum(t):
    """The logarithm of the sum of exponentials, and these less the largest, whose sum it is of."""
    most = tl.max(t, 1)
    e = exp(t - most[:, None])
    total = tl.sum(e, 1)
    return most + tl.log(total), e, total


@triton.jit
def _sums(x, w, weight, mean, scale, per_scale, table, NORMAL: tl.constexpr):
    """Of the distribution function, of what it lacks to 1 and of the density, the largest weight as 1: as they are, and
    where one of them is `far` too small their logarithms; the slopes of log below and of -log above; the components,
    and the logarithms of their terms."""
    tiny: tl.constexpr = 1e-200 if x.dtype == tl.float64 else 1e-20
    z, small, big, density = _components(x, mean, per_scale, table, NORMAL)
    up = z >= 0.0
    below = tl.sum(product(weight, tl.where(up, big, small)), 1)
    above = tl.sum(product(weight, tl.where(up, small, big)), 1)
    dense = tl.sum(product(weight, density * per_scale), 1)
    far = tl.minimum(tl.minimum(below, above), dense) < tiny
    of_below = dense / below
    of_above = dense / above
    t_below, t_above, t_dense = z, z, z
    log_below, log_above, log_dense = below, above, dense
    if tl.max(far.to(tl.int32), 0) > 0:
        t_below, t_above, t_dense, h_below, h_above = _terms(
            z, small, big, density, w, scale, per_scale, table, NORMAL
        )  # fmt: skip
        log_below, e, total = _log_sum(t_below)
        of_below = tl.where(far, tl.sum(product(e, h_below), 1) / total, of_below)
        log_above, e, total = _log_sum(t_above)
        of_above = tl.where(far, tl.sum(product(e, h_above), 1) / total, of_above)
        log_dense, e, total = _log_sum(t_dense)
    return (
        below, above, dense, far, log_below, log_above, log_dense, of_below, of_above, z, small, big, density, t_below,
        t_above, t_dense,
    )  # fmt: skip


@triton.jit
def _quantile(L, table):
    """log p for p <= 1/2 as -L: t >= 0 with Phi(-t) = p, and the derivative of -log Phi(-t) there. Halley's steps."""
    rest = L - 0.6931471805599453
    rest = tl.where(rest < 0.0, 0.0, rest)
    t = 1.2533141373155003 * rest / tl.sqrt(1.0 + 0.7853981633974483 * rest)
    rate = t
    steps: tl.constexpr = 4 if L.dtype == tl.float64 else 3
    for _ in range(steps):
        share, tail = _tail(t, table)
        rate = 0.7978845608028654 / share * exp(-tail)
        miss = (0.5 * t * t - tail - tl.log(0.5 * share)) - L
        t = t - miss / (rate - 0.5 * miss * (rate - t))
        t = tl.where(t < 0.0, 0.0, t)
    return t, rate


@triton.jit
def _outer(below, above, dense, far, log_below, log_above, log_dense, of_below, of_above, total, table,
           OUTER: tl.constexpr):  # fmt: skip
    """y, log dy/dx, and of probit how fast log of the smaller side falls with |y|, of unit the smaller side."""
    log_total = tl.log(total)
    side = below
    if OUTER == "logit":
        y = tl.where(far, log_below - log_above, tl.log(below / above))
        ladj = tl.log(dense / below * (total / above))
        ladj = tl.where(far, (log_dense - log_below) + (log_total - log_above), ladj)
    else:
        low = tl.where(far, log_below - log_above, below - above) < 0.0
        log_side = tl.where(low, log_below, log_above) - log_total
        half = tl.where(low, below, above) / total
        if OUTER == "unit":
            side = tl.where(far, exp(log_side), half)
            ladj = tl.where(far, log_dense - log_total, tl.log(dense / total))
            y = tl.where(low, side, 1.0 - side)
        else:
            t, side = _quantile(-tl.where(far, log_side, tl.log(half)), table)
            # Not log density - log phi(y), whose squares cancel, but where the slope itself has no digits left.
            tiny: tl.constexpr = 1e-200 if t.dtype == tl.float64 else 1e-20
            slope = tl.where(low, of_below, of_above)
            ladj = tl.where(
                far & (slope < tiny), log_dense - log_total + (0.5 * t * t + 0.9189385332046727), tl.log(slope / side)
            )
            y = tl.where(low, -t, t)
    return y, ladj, side


@triton.jit
def _target(y, table, NORMAL: tl.constexpr, OUTER: tl.constexpr):
    """The logit of the distribution function that y asks for, and where a component of mean 0 and scale 1 has it."""
    target = y
    if OUTER == "unit":
        target = tl.log(y) - tl.log(1.0 - y)
    if OUTER == "probit":
        t, rest = _tail(y, table)
        small = tl.log(0.5 * t) + (rest - 0.5 * y * y)
        rise = tl.log(1.0 - exp(small)) - small
        target = tl.where(y < 0.0, -rise, rise)
    quantile = target
    if NORMAL:
        if OUTER == "probit":
            quantile = y
        else:
            size = tl.abs(target)
            t, _rate = _quantile(size + log1p_unit(exp(-size)), table)
            quantile = tl.where(target < 0.0, -t, t)
    return target, quantile


@triton.jit
def _root(
    y, k, w, weight, mean, scale, per_scale, table, K: tl.constexpr, NORMAL: tl.constexpr, OUTER: tl.constexpr
):  # fmt: skip
    """x: bracketed Newton; an element that is done stays where it is."""
    is_double: tl.constexpr = y.dtype == tl.float64
    eps: tl.constexpr = 2.0**-52 if is_double else 2.0**-23
    flattest: tl.constexpr = 1e-300 if is_double else 1e-37  # of slopes: of plateaus it is 0
    largest: tl.constexpr = 1e308 if is_double else 3e38
    target, quantile = _target(y, table, NORMAL, OUTER)
    each = mean + quantile[:, None] / per_scale
    low = tl.min(tl.where(k < K, each, float("inf")), 1)
    high = tl.max(tl.where(k < K, each, -float("inf")), 1)
    # Steps over which no component's slope changes much.
    short_step = 0.015625 / tl.max(tl.where(k < K, per_scale, 0.0), 1)
    x = tl.where(low < high, low + 0.5 * (high - low), low)
    last = tl.zeros_like(x) + float("inf")
    enough = (1.0 + tl.abs(target)) * (4.0 * eps)
    active = tl.zeros_like(x) == 0.0
    step = 0
    while (step < 128) & (tl.max(active.to(tl.int32), 0) > 0):
        (
            below, above, _dense, far, log_below, log_above, _log_dense, of_below, of_above, _z, _small, _big, _density,
            _t0, _t1, _t2,
        ) = _sums(x, w, weight, mean, scale, per_scale, table, NORMAL)  # fmt: skip
        miss = tl.where(far, log_below - log_above, tl.log(below / above)) - target
        size = tl.abs(miss)
        slope = of_below + of_above
        slope = tl.where(slope < flattest, flattest, slope)
        low = tl.where(active & (miss < 0.0), x, low)
        high = tl.where(active & (miss > 0.0), x, high)
        tangent = x - miss / slope
        inside = tl.where(tangent < low, low, tl.where(tangent > high, high, tangent))
        small = size <= enough
        within = inside == tangent
        # At a root the tangent gives the last digits; of a plateau it leads away from it.
        last_digits = within & (tl.abs(tangent - x) <= short_step)
        following = tl.where(within & (size < 0.5 * last), inside, low + 0.5 * (high - low))
        following = tl.where(small, tl.where(last_digits, inside, x), following)
        # NaN is never equal to itself, and done at once.
        bad = miss != miss
        ends = small | (tl.abs(following - x) <= eps * tl.abs(x)) | bad
        x = tl.where(active, tl.where(bad, miss, following), x)
        last = size
        active = active & (ends == 0)
        step += 1
    return tl.where(tl.abs(target) > largest, target, x)


@triton.jit
def mixture_fwd(
    x_ptr, params_ptr, y_ptr, ladj_ptr, rows, D, table_ptr, x_row, x_feature, p_row, p_feature, p_param,
    K: tl.constexpr, NORMAL: tl.constexpr, OUTER: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    INVERSE: tl.constexpr, BK: tl.constexpr, R: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """x [rows, D], params [rows, D, 3K] → y [rows, D], dense, and ladj [rows]."""
    dtype: tl.constexpr = ladj_ptr.dtype.element_ty
    k = tl.arange(0, BK)[None, :]
    total = tl.zeros([R], tl.float64)
    for first in range(0, D, BD):
        row, feature, ok = elements(first, rows, D, R, BD)
        v = tl.load(x_ptr + row * x_row + feature * x_feature, mask=ok, other=0.0).to(dtype)
        at = params_ptr + row * p_row + feature * p_feature
        w, mean, _scale, scale = _params(at, ok, p_param, k, K, LOW, HIGH, dtype)
        weight = exp(w)
        per_scale = exp(-scale)
        x = _root(v, k, w, weight, mean, scale, per_scale, table_ptr, K, NORMAL, OUTER) if INVERSE else v
        below, above, dense, far, log_below, log_above, log_dense, of_below, of_above, _z, _s, _b, _d, _t0, _t1, _t2 = (
            _sums(x, w, weight, mean, scale, per_scale, table_ptr, NORMAL)
        )
        y, log_slope, _side = _outer(
            below, above, dense, far, log_below, log_above, log_dense, of_below, of_above, tl.sum(weight, 1), table_ptr,
            OUTER,
        )  # fmt: skip
        if INVERSE:
            y = x
            log_slope = -log_slope
        elif OUTER != "unit":  # infinities are themselves
            largest: tl.constexpr = 1e308 if dtype == tl.float64 else 3e38
            y = tl.where(tl.abs(x) > largest, x, y)
        tl.store(y_ptr + row * D + feature, y.to(y_ptr.dtype.element_ty), mask=ok)
        total += of_rows(log_slope, ok, R, BD)
    store_rows(ladj_ptr, total, rows, R)


@triton.jit
def mixture_bwd(
    x_ptr, params_ptr, grad_y_ptr, grad_ladj_ptr, grad_x_ptr, grad_params_ptr, rows, D, table_ptr, x_row, x_feature,
    p_row, p_feature, p_param,
    K: tl.constexpr, NORMAL: tl.constexpr, OUTER: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    INVERSE: tl.constexpr, BK: tl.constexpr, R: tl.constexpr, BD: tl.constexpr, HAS_Y: tl.constexpr,
    HAS_LADJ: tl.constexpr, NEED_X: tl.constexpr, NEED_PARAMS: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Gradients of x [rows, D] and params [rows, D, 3K], dense, from those of y (dense) and ladj."""
    k = tl.arange(0, BK)[None, :]
    for first in range(0, D, BD):
        row, feature, ok = elements(first, rows, D, R, BD)
        v = tl.load(x_ptr + row * x_row + feature * x_feature, mask=ok, other=0.0).to(dtype)
        at = params_ptr + row * p_row + feature * p_feature
        w, mean, raw_scale, scale = _params(at, ok, p_param, k, K, LOW, HIGH, dtype)
        weight = exp(w)
        per_scale = exp(-scale)
        x = _root(v, k, w, weight, mean, scale, per_scale, table_ptr, K, NORMAL, OUTER) if INVERSE else v
        (
            below, above, dense, far, log_below, log_above, log_dense, of_below, of_above, z, small, big, density,
            t_below, t_above, t_dense,
        ) = _sums(x, w, weight, mean, scale, per_scale, table_ptr, NORMAL)  # fmt: skip
        total = tl.sum(weight, 1)
        y, log_slope, side = _outer(
            below, above, dense, far, log_below, log_above, log_dense, of_below, of_above, total, table_ptr, OUTER
        )
        g_out, g_ladj = grads_of(grad_y_ptr, grad_ladj_ptr, row, feature, D, ok, HAS_Y, HAS_LADJ, dtype)
        up = z >= 0.0
        at_far = far[:, None]
        share = weight * (density * per_scale) / dense[:, None]
        share = tl.where(at_far, exp(t_dense - log_dense[:, None]), share)
        rho = -z if NORMAL else tl.where(up, small - big, big - small)
        bend = tl.sum(product(share, per_scale * rho), 1)  # the derivative of the density's logarithm
        if OUTER == "logit":
            slope = of_below + of_above
            of_ladj = bend + (of_above - of_below)
        elif OUTER == "probit":
            slope = tl.where(y < 0.0, of_below, of_above) / side
            of_ladj = bend + y * slope
        else:
            slope = exp(log_slope)
            of_ladj = bend
        g_y = g_out
        g_l = g_ladj
        if INVERSE:  # the implicit function theorem
            g_v = (g_out - g_ladj * of_ladj) / slope
            g_y = -g_v
            g_l = -g_ladj
        else:
            g_v = g_out * slope + g_ladj * of_ladj
        if NEED_X:
            tl.store(grad_x_ptr + row * D + feature, g_v.to(grad_x_ptr.dtype.element_ty), mask=ok)
        if NEED_PARAMS:
            # Gradients of log below, of log above; g_l is that of the density's logarithm.
            if OUTER == "logit":
                g_below = g_y - g_l
                g_above = -g_y - g_l
            else:
                low = y < (0.5 if OUTER == "unit" else 0.0)
                of_side = g_y * side if OUTER == "unit" else (g_y + g_l * y) / side
                g_below = tl.where(low, of_side, 0.0)
                g_above = tl.where(low, 0.0, -of_side)
            every = ((g_below + g_above + g_l) / total)[:, None]
            moved = (g_above * of_above - g_below * of_below)[:, None]
            g_l = g_l[:, None]
            in_below = weight * tl.where(up, big, small) / below[:, None]
            in_above = weight * tl.where(up, small, big) / above[:, None]
            in_below = tl.where(at_far, exp(t_below - log_below[:, None]), in_below)
            in_above = tl.where(at_far, exp(t_above - log_above[:, None]), in_above)
            of_mean = share * moved
            to = grad_params_ptr + (row * D + feature)[:, None] * (3 * K) + k
            there = ok[:, None] & (k < K)
            if K == 1:  # whose weight is 1 whatever its logit
                g = share - share
            else:
                g = g_below[:, None] * in_below + g_above[:, None] * in_above + (g_l * share - every * weight)
            tl.store(to, g.to(to.dtype.element_ty), mask=there)
            g = of_mean - g_l * (share * (per_scale * rho))
            tl.store(to + K, g.to(to.dtype.element_ty), mask=there)
            g = of_mean * (z / per_scale) - g_l * (share * (1.0 + z * rho))
            g = tl.where((raw_scale >= LOW) & (raw_scale <= HIGH), g, 0.0)
            tl.store(to + 2 * K, g.to(to.dtype.element_ty), mask=there)
