"""The spline in Triton, on the formulas of csrc/rqs/rqs_math.h.

One thread has one element. Logits come in tiles [E, 8], neighbours in memory for neighbouring threads, and are split
into eight vectors [E], so that what follows is arithmetic of one thread with itself: sums along the axis of a tile
would leave every thread of a row with the same element to work on.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flowkernels.ops._triton_math import exp, exp_nonpositive, sigmoid, softplus
from flowkernels.ops._triton_rows import elements, grads_of, of_rows, store_rows


@triton.jit
def _clipped(u, SCALE: tl.constexpr, CLIP: tl.constexpr):
    """Scaled and clipped. What is not clipped is scaled as a difference, which cannot overflow to inf - inf."""
    if CLIP > 0:
        u = u * SCALE
        # Far out the clip is at its limit; of an infinite product it would be NaN, as it is of NaN itself.
        u = tl.where(
            tl.abs(u) > 1152921504606846976.0, tl.where(u > 0, 1.0 / CLIP, -1.0 / CLIP), u / (1.0 + CLIP * tl.abs(u))
        )
    return u


@triton.jit
def _mass(u, top, SCALE: tl.constexpr, CLIP: tl.constexpr):
    z = u - top
    if CLIP == 0:
        z = z * SCALE
    return exp_nonpositive(z)


@triton.jit
def _tile(at, first, ok, stride, K: tl.constexpr, SCALE: tl.constexpr, CLIP: tl.constexpr, dtype: tl.constexpr):
    """Eight logits of each element from bin `first` on, [E, 8]; -inf past the last bin."""
    bins = first + tl.arange(0, 8)[None, :]
    u = tl.load(at[:, None] + bins * stride, mask=ok[:, None] & (bins < K), other=0.0).to(dtype)
    return tl.where(bins < K, _clipped(u, SCALE, CLIP), -float("inf"))


@triton.jit
def _eight(t):
    """[E, 8] → eight [E]."""
    E: tl.constexpr = t.shape[0]
    even, odd = tl.split(tl.reshape(t, [E, 4, 2]))
    t04, t26 = tl.split(tl.reshape(even, [E, 2, 2]))
    t15, t37 = tl.split(tl.reshape(odd, [E, 2, 2]))
    t0, t4 = tl.split(t04)
    t2, t6 = tl.split(t26)
    t1, t5 = tl.split(t15)
    t3, t7 = tl.split(t37)
    return t0, t1, t2, t3, t4, t5, t6, t7


@triton.jit
def _masses(u0, u1, u2, u3, u4, u5, u6, u7, top, SCALE: tl.constexpr, CLIP: tl.constexpr):
    return (
        _mass(u0, top, SCALE, CLIP), _mass(u1, top, SCALE, CLIP), _mass(u2, top, SCALE, CLIP),
        _mass(u3, top, SCALE, CLIP), _mass(u4, top, SCALE, CLIP), _mass(u5, top, SCALE, CLIP),
        _mass(u6, top, SCALE, CLIP), _mass(u7, top, SCALE, CLIP),
    )  # fmt: skip


@triton.jit
def _largest(u0, u1, u2, u3, u4, u5, u6, u7):
    return tl.maximum(
        tl.maximum(tl.maximum(u0, u1), tl.maximum(u2, u3)), tl.maximum(tl.maximum(u4, u5), tl.maximum(u6, u7))
    )


@triton.jit
def _sum(e0, e1, e2, e3, e4, e5, e6, e7):
    return ((e0 + e1) + (e2 + e3)) + ((e4 + e5) + (e6 + e7))


@triton.jit
def _softmax(at, ok, stride, end, K: tl.constexpr, SCALE: tl.constexpr, CLIP: tl.constexpr, dtype: tl.constexpr):
    """The largest of K logits and 1 / the sum of exponentials from there.

    Two passes: a sum that is scaled whenever a larger logit comes is not that of the exponentials that follow.
    """
    top = tl.full(ok.shape, -float("inf"), dtype)
    total = tl.zeros(ok.shape, dtype)
    for first in range(0, end, 8):
        u0, u1, u2, u3, u4, u5, u6, u7 = _eight(_tile(at, first, ok, stride, K, SCALE, CLIP, dtype))
        top = tl.maximum(top, _largest(u0, u1, u2, u3, u4, u5, u6, u7))
    for first in range(0, end, 8):
        u0, u1, u2, u3, u4, u5, u6, u7 = _eight(_tile(at, first, ok, stride, K, SCALE, CLIP, dtype))
        e0, e1, e2, e3, e4, e5, e6, e7 = _masses(u0, u1, u2, u3, u4, u5, u6, u7, top, SCALE, CLIP)
        total += _sum(e0, e1, e2, e3, e4, e5, e6, e7)
    return top, 1.0 / total


@triton.jit
def _past(v, n, sum_a, a, scale, K: tl.constexpr, LOW: tl.constexpr, LEAST: tl.constexpr):
    """Whether v is not below knot n, which has the mass sum_a + a before it and is not the last."""
    # n as v is: an integer times a number would be float32
    return (v >= (LOW + LEAST * (tl.zeros_like(v) + n)) + (sum_a + a) * scale) & (n < K)


@triton.jit
def _upper(up, x0, x1, x2, x3, y0, y1, y2, y3):
    return tl.where(up, y0, x0), tl.where(up, y1, x1), tl.where(up, y2, x2), tl.where(up, y3, x3)


@triton.jit
def _search(v, n, sum_a, a, e0, e1, e2, e3, e4, e5, e6, e7, b, f0, f1, f2, f3, f4, f5, f6, f7, scale,
            K: tl.constexpr, LOW: tl.constexpr, LEAST: tl.constexpr):  # fmt: skip
    """The last of eight bins from n on that begins not above v, or n: its number, the masses a and b before it in the
    tile, e and f in it; and those before the next tile.

    By halves. Registers cannot be indexed, but of two halves one can be kept: 28 choices and 3 comparisons, where
    passing knot after knot takes 40 and 8.
    """
    a1 = a + e0
    a2 = a1 + e1
    a3 = a2 + e2
    a4 = a3 + e3
    a5 = a4 + e4
    a6 = a5 + e5
    a7 = a6 + e6
    b1 = b + f0
    b2 = b1 + f1
    b3 = b2 + f2
    b4 = b3 + f3
    b5 = b4 + f4
    b6 = b5 + f5
    b7 = b6 + f6
    a8 = a7 + e7
    b8 = b7 + f7
    k = tl.zeros(v.shape, tl.int32) + n
    up = _past(v, k + 4, sum_a, a4, scale, K, LOW, LEAST)
    k = tl.where(up, k + 4, k)
    a, a1, a2, a3 = _upper(up, a, a1, a2, a3, a4, a5, a6, a7)
    b, b1, b2, b3 = _upper(up, b, b1, b2, b3, b4, b5, b6, b7)
    e0, e1, e2, e3 = _upper(up, e0, e1, e2, e3, e4, e5, e6, e7)
    f0, f1, f2, f3 = _upper(up, f0, f1, f2, f3, f4, f5, f6, f7)
    up = _past(v, k + 2, sum_a, a2, scale, K, LOW, LEAST)
    k = tl.where(up, k + 2, k)
    a, a1, b, b1 = _upper(up, a, a1, b, b1, a2, a3, b2, b3)
    e0, e1, f0, f1 = _upper(up, e0, e1, f0, f1, e2, e3, f2, f3)
    up = _past(v, k + 1, sum_a, a1, scale, K, LOW, LEAST)
    k = tl.where(up, k + 1, k)
    a, e0, b, f0 = _upper(up, a, e0, b, f0, a1, e1, b1, f1)
    return k, a, e0, b, f0, a8, b8


@triton.jit
def _carry(total, part):
    """Adds a part to a total; what the addition rounds away begins the next part."""
    more = total + part
    return more, part - (more - total)


@triton.jit
def _find(v, at_a, at_b, top_a, r_a, top_b, ok, stride, end, K: tl.constexpr, LOW: tl.constexpr,
          FREE: tl.constexpr, LEAST: tl.constexpr, SCALE: tl.constexpr,
          CLIP: tl.constexpr):  # fmt: skip
    """The bin of v and the masses before and in it: of the side that is searched, of the other.

    LOW, FREE, LEAST: the box's lower end, what its softmax shares out and what every bin has, of the former.
    """
    dtype: tl.constexpr = v.dtype
    scale = r_a * FREE
    k = tl.zeros(v.shape, tl.int32)
    sum_a = tl.zeros_like(v)
    sum_b = tl.zeros_like(v)
    a = tl.zeros_like(v)
    b = tl.zeros_like(v)
    ba = tl.zeros_like(v)
    bb = tl.zeros_like(v)
    ia = tl.zeros_like(v)
    ib = tl.zeros_like(v)
    for n in range(0, end, 8):
        u0, u1, u2, u3, u4, u5, u6, u7 = _eight(_tile(at_a, n, ok, stride, K, SCALE, CLIP, dtype))
        e0, e1, e2, e3, e4, e5, e6, e7 = _masses(u0, u1, u2, u3, u4, u5, u6, u7, top_a, SCALE, CLIP)
        u0, u1, u2, u3, u4, u5, u6, u7 = _eight(_tile(at_b, n, ok, stride, K, SCALE, CLIP, dtype))
        f0, f1, f2, f3, f4, f5, f6, f7 = _masses(u0, u1, u2, u3, u4, u5, u6, u7, top_b, SCALE, CLIP)
        here, a_here, e, b_here, f, a_next, b_next = _search(
            v, n, sum_a, a, e0, e1, e2, e3, e4, e5, e6, e7, b, f0, f1, f2, f3, f4, f5, f6, f7, scale, K, LOW,
            LEAST,
        )  # fmt: skip
        begun = (n == 0) | _past(v, n, sum_a, a, scale, K, LOW, LEAST)
        k = tl.where(begun, here, k)
        ba = tl.where(begun, sum_a + a_here, ba)
        bb = tl.where(begun, sum_b + b_here, bb)
        ia = tl.where(begun, e, ia)
        ib = tl.where(begun, f, ib)
        a = a_next
        b = b_next
        sum_a, a = _carry(sum_a, a)
        sum_b, b = _carry(sum_b, b)
    return k, ba, ia, bb, ib


@triton.jit
def _slope(at, n, ok, stride, K: tl.constexpr, TAILS: tl.constexpr, EDGE: tl.constexpr, dtype: tl.constexpr):
    """Slope logit of knot n, read from memory: of K + 1 only two are needed."""
    if TAILS == "linear":
        inner = (n > 0) & (n < K)
        u = tl.where(inner, tl.load(at + (n - 1) * stride, mask=ok & inner, other=0.0).to(dtype), EDGE)
    elif TAILS == "circular":
        u = tl.load(at + tl.where(n == K, 0, n) * stride, mask=ok, other=0.0).to(dtype)
    else:
        u = tl.load(at + n * stride, mask=ok, other=0.0).to(dtype)
    return u


@triton.jit
def _slope_value(u, MIN: tl.constexpr, CLIP: tl.constexpr):
    if CLIP > 0:
        d = exp(u / (1.0 + CLIP * tl.abs(u)))
    else:  # it stops where the sum of two has a reciprocal that is no denormal
        most: tl.constexpr = 2.0**1020 if u.dtype == tl.float64 else 2.0**124
        d = MIN + softplus(u)
        d = tl.where(d > most, most, d)
    return d


@triton.jit
def _slope_grad(d, u, CLIP: tl.constexpr):
    """d slope / d logit."""
    if CLIP > 0:
        q = 1.0 / (1.0 + CLIP * tl.abs(u))
        g = d * q * q
    else:
        g = sigmoid(u)
    return g


@triton.jit
def _side(
    k, before, mass, r, K: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr, FREE: tl.constexpr, LEAST: tl.constexpr
):
    """Corner and size of the bin. The last one hangs from the box's corner, the outer knot, exactly."""
    size = mass * (r * FREE) + LEAST
    corner = (LOW + k.to(r.dtype) * LEAST) + before * (r * FREE)  # as the search had it
    return tl.where(k == K - 1, HIGH - size, corner), size


@triton.jit
def _unit(t):
    return tl.minimum(tl.maximum(t, 0.0), 1.0)


@triton.jit
def _clamped(t, low: tl.constexpr, high: tl.constexpr):
    """A NaN stays one, which a maximum would lose."""
    return tl.where(t < low, low, tl.where(t > high, high, t))


@triton.jit
def _theta(v, k, x0, w, y0, h, d0, d1, K: tl.constexpr, RIGHT: tl.constexpr, TOP: tl.constexpr, INVERSE: tl.constexpr):
    """The position in the bin, from 0 to 1."""
    last = k == K - 1
    if INVERSE:
        # The root in the form that adds numbers of one sign, counted from the nearer knot.
        below = tl.where(last, h - (TOP - v), v - y0)
        above = tl.where(last, TOP - v, h - below)
        turn = above < below
        rise = tl.where(turn, above, below) / h  # a share, so that no square depends on how large the box is
        # Slopes that have no squares count in smaller units, and s with them.
        most: tl.constexpr = 2.0**500 if v.dtype == tl.float64 else 2.0**60
        smaller: tl.constexpr = 2.0**-520 if v.dtype == tl.float64 else 2.0**-64
        unit = tl.where(d0 + d1 > most, smaller, 1.0).to(v.dtype)
        d = tl.where(turn, d1, d0) * unit
        s = h / w * unit
        bend = rise * ((d0 + d1) * unit - 2.0 * s)
        qb = d - bend
        qa = bend + (s - d)
        root = tl.sqrt(tl.maximum(qb * qb + 4.0 * qa * s * rise, 0.0))
        up = qb >= 0.0
        den = tl.where(up, qb + root, 2.0 * qa)
        theta = tl.where(up, 2.0 * s * rise, root - qb) / tl.where(den == 0.0, 1.0, den)
        theta = _unit(tl.where(den == 0.0, 0.0, theta))
        theta = tl.where(turn, 1.0 - theta, theta)
    else:
        theta = _unit(tl.where(last, 1.0 - (RIGHT - v) / w, (v - x0) / w))
    return theta


@triton.jit
def _shape(theta, w, h, d0, d1):
    """s, t, beta, 1/den and num, and the slope's numerator, as the README derives them."""
    s = h / w
    t = theta * (1.0 - theta)
    beta = d0 + d1 - 2.0 * s
    rest = 1.0 - theta
    num = s * theta * theta + d0 * t
    return s, t, beta, 1.0 / (s + beta * t), num, d1 * theta * theta + 2.0 * s * t + d0 * rest * rest


@triton.jit
def in_bin(
    v, at, ok, stride, end, K: tl.constexpr, TAILS: tl.constexpr, LEFT: tl.constexpr, FREE_X: tl.constexpr,
    LEAST_X: tl.constexpr, BOTTOM: tl.constexpr, FREE_Y: tl.constexpr, LEAST_Y: tl.constexpr, RIGHT: tl.constexpr,
    TOP: tl.constexpr, MIN_SLOPE: tl.constexpr, SCALE: tl.constexpr, CLIP: tl.constexpr, EDGE: tl.constexpr,
    INVERSE: tl.constexpr,
):  # fmt: skip
    """How every pass begins: the bin of v, its number, corners, sizes, slope logits; of both softmaxes what backward
    needs; the slopes, the position in the bin, and whether v is in the box."""
    dtype: tl.constexpr = v.dtype
    top_w, r_w = _softmax(at, ok, stride, end, K, SCALE, 2.0 * CLIP, dtype)
    top_h, r_h = _softmax(at + K * stride, ok, stride, end, K, SCALE, 2.0 * CLIP, dtype)
    if INVERSE:
        inside = (v >= BOTTOM) & (v <= TOP)
        k, before_h, in_h, before_w, in_w = _find(
            v, at + K * stride, at, top_h, r_h, top_w, ok, stride, end, K, BOTTOM, FREE_Y, LEAST_Y, SCALE, 2.0 * CLIP
        )
    else:
        inside = (v >= LEFT) & (v <= RIGHT)
        k, before_w, in_w, before_h, in_h = _find(
            v, at, at + K * stride, top_w, r_w, top_h, ok, stride, end, K, LEFT, FREE_X, LEAST_X, SCALE, 2.0 * CLIP
        )
    x0, w = _side(k, before_w, in_w, r_w, K, RIGHT, LEFT, FREE_X, LEAST_X)
    y0, h = _side(k, before_h, in_h, r_h, K, TOP, BOTTOM, FREE_Y, LEAST_Y)
    u0 = _slope(at + 2 * K * stride, k, ok, stride, K, TAILS, EDGE, dtype)
    u1 = _slope(at + 2 * K * stride, k + 1, ok, stride, K, TAILS, EDGE, dtype)
    d0 = _slope_value(u0, MIN_SLOPE, CLIP)
    d1 = _slope_value(u1, MIN_SLOPE, CLIP)
    theta = _theta(v, k, x0, w, y0, h, d0, d1, K, RIGHT, TOP, INVERSE)
    return k, x0, w, y0, h, u0, u1, before_w, in_w, r_w, top_w, before_h, in_h, r_h, top_h, d0, d1, theta, inside


@triton.jit
def mapped(
    v, at, ok, stride, end, K: tl.constexpr, TAILS: tl.constexpr, LEFT: tl.constexpr, FREE_X: tl.constexpr,
    LEAST_X: tl.constexpr, BOTTOM: tl.constexpr, FREE_Y: tl.constexpr, LEAST_Y: tl.constexpr, RIGHT: tl.constexpr,
    TOP: tl.constexpr, MIN_SLOPE: tl.constexpr, SCALE: tl.constexpr, CLIP: tl.constexpr, EDGE: tl.constexpr,
    INVERSE: tl.constexpr,
):  # fmt: skip
    """v [E] mapped, and the log of the slope. The parameters of an element stand `stride` apart from `at` [E] on."""
    _k, x0, w, y0, h, _u0, _u1, _bw, _mw, _rw, _tw, _bh, _mh, _rh, _th, d0, d1, theta, inside = in_bin(
        v, at, ok, stride, end, K, TAILS, LEFT, FREE_X, LEAST_X, BOTTOM, FREE_Y, LEAST_Y, RIGHT, TOP, MIN_SLOPE, SCALE,
        CLIP, EDGE, INVERSE,
    )  # fmt: skip
    s, _t, _beta, inv_den, num, slope_num = _shape(theta, w, h, d0, d1)
    # In this order: q^2 underflows where a slope is 1e30. A bin flatter than that counts in larger units.
    flat = s * inv_den < 1e-15
    q = tl.where(flat, s * 1152921504606846976.0, s) * inv_den  # 2^60
    log_slope = tl.log(q * (q * slope_num))
    log_slope = tl.where(flat, log_slope - 83.17766166719343, log_slope)  # 120 ln 2
    if INVERSE:
        out = _clamped(x0 + w * theta, LEFT, RIGHT)
        log_slope = -log_slope
    else:
        out = _clamped(y0 + h * (num * inv_den), BOTTOM, TOP)
    return tl.where(inside, out, v), tl.where(inside, log_slope, 0.0)


@triton.jit
def rqs_fwd(
    x_ptr, params_ptr, y_ptr, ladj_ptr, rows, D, bins, x_row, x_feature, p_row, p_feature, p_param,
    K: tl.constexpr, TAILS: tl.constexpr, LEFT: tl.constexpr, FREE_X: tl.constexpr, LEAST_X: tl.constexpr,
    BOTTOM: tl.constexpr, FREE_Y: tl.constexpr, LEAST_Y: tl.constexpr, RIGHT: tl.constexpr, TOP: tl.constexpr,
    MIN_SLOPE: tl.constexpr, SCALE: tl.constexpr, CLIP: tl.constexpr, EDGE: tl.constexpr, INVERSE: tl.constexpr,
    R: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """x [rows, D], params [rows, D, P] → y [rows, D], dense, and ladj [rows]."""
    dtype: tl.constexpr = ladj_ptr.dtype.element_ty
    # Up to 8 bins the loops have one turn, and logits stay in registers; beyond, unrolled turns would spill.
    end = K if K <= 8 else bins
    total = tl.zeros([R], tl.float64)
    for first in range(0, D, BD):
        row, feature, ok = elements(first, rows, D, R, BD)
        v = tl.load(x_ptr + row * x_row + feature * x_feature, mask=ok, other=0.0).to(dtype)
        at = params_ptr + row * p_row + feature * p_feature
        y, log_slope = mapped(
            v, at, ok, p_param, end, K, TAILS, LEFT, FREE_X, LEAST_X, BOTTOM, FREE_Y, LEAST_Y, RIGHT, TOP, MIN_SLOPE,
            SCALE, CLIP, EDGE, INVERSE,
        )  # fmt: skip
        tl.store(y_ptr + row * D + feature, y.to(y_ptr.dtype.element_ty), mask=ok)
        total += of_rows(log_slope, ok, R, BD)
    store_rows(ladj_ptr, total, rows, R)


@triton.jit
def _size_coefficients(k, mass, before, r, g_corner, g_size, K: tl.constexpr, FREE: tl.constexpr, SCALE: tl.constexpr):
    """Softmax backward of g_corner before bin k, g_size in it, 0 after: what times an exponential is the gradient."""
    # The mass after the bin, not before it: in the last bin it is 0, and what cancels is never formed.
    after = tl.where(k == K - 1, 0.0, 1.0 - (before + mass) * r)
    g_corner = tl.where(k > 0, g_corner, 0.0)  # the first bin's is the box's, which no parameter moves
    excess = g_corner - g_size
    low = g_corner * after + excess * (mass * r)
    scale = r * (SCALE * FREE)
    return low * scale, (low - excess) * scale, (low - g_corner) * scale


@triton.jit
def _store_sizes(to_ptr, to_stride, at, ok, stride, end, k, top, before, here, after, K: tl.constexpr,
                 SCALE: tl.constexpr, CLIP: tl.constexpr):  # fmt: skip
    """Gradients of K logits, by tiles as they lie in memory."""
    for first in range(0, end, 8):
        bins = first + tl.arange(0, 8)[None, :]
        wanted = ok[:, None] & (bins < K)
        u = _clipped(tl.load(at[:, None] + bins * stride, mask=wanted, other=0.0).to(top.dtype), SCALE, CLIP)
        n = k[:, None]
        g = tl.where(bins == n, here[:, None], tl.where(bins < n, before[:, None], after[:, None]))
        g = _mass(u, top[:, None], SCALE, CLIP) * g
        if CLIP > 0:
            q = 1.0 - CLIP * tl.abs(u)
            g = g * q * q
        tl.store(to_ptr[:, None] + bins * to_stride, g.to(to_ptr.dtype.element_ty), mask=wanted)


@triton.jit
def _store_slopes(to_ptr, to_stride, ok, end, k, g0, g1, K: tl.constexpr, TAILS: tl.constexpr):
    """Gradients of the slope logits, of which those at the two knots of bin k are not 0."""
    n_slopes: tl.constexpr = K + (-1 if TAILS == "linear" else 0 if TAILS == "circular" else 1)
    stop = end + 1 if TAILS == "none" else end
    for first in range(0, stop, 8):
        columns = first + tl.arange(0, 8)[None, :]
        knots = columns + 1 if TAILS == "linear" else columns
        g = tl.where(knots == k[:, None], g0[:, None], 0.0) + tl.where(knots == k[:, None] + 1, g1[:, None], 0.0)
        if TAILS == "circular":
            g += tl.where((knots == 0) & (k == K - 1)[:, None], g1[:, None], 0.0)
        at = to_ptr[:, None] + columns * to_stride
        tl.store(at, g.to(to_ptr.dtype.element_ty), mask=ok[:, None] & (columns < n_slopes))


@triton.jit
def in_bin_bwd(
    k, w, h, u0, u1, bw, mw, rw, top_w, bh, mh, rh, top_h, d0, d1, theta, inside, at, to, to_v, given, gl, ok,
    stride, to_stride, end, K: tl.constexpr, TAILS: tl.constexpr, FREE_X: tl.constexpr, FREE_Y: tl.constexpr,
    SCALE: tl.constexpr, CLIP: tl.constexpr, INVERSE: tl.constexpr, NEED_X: tl.constexpr, NEED_PARAMS: tl.constexpr,
):  # fmt: skip
    """Stores the gradient of v [E] from that of what it is mapped to, `given`, that of the log of the slope, `gl`, and
    what `in_bin` found; from `to` on, `to_stride` apart, those of the parameters, which stand `stride` apart at `at`.
    """
    s, t, beta, inv_den, num, slope_num = _shape(theta, w, h, d0, d1)
    inv_num = 1.0 / slope_num
    rest = 1.0 - theta
    one_2theta = 1.0 - 2.0 * theta
    one_2t = 1.0 - 2.0 * t
    q = s * inv_den
    slope = q * (q * slope_num)
    # Per x before it is multiplied: beside a slope of 1e30, of a box far wider than high, 1 / den alone is too large.
    of_num = (d1 * theta + s * one_2theta - d0 * rest) * inv_num
    ladj_slope = 2.0 * (of_num / w - beta * one_2theta * (inv_den / w))
    gy = given
    if INVERSE:  # implicit function theorem: see the derivation
        g_v = (given - gl * ladj_slope) / slope
        gy = -g_v
        gl = -gl
    # (y - y0) / h from the nearer end: at the upper knot it is 1 exactly, and what vanishes there vanishes.
    r = tl.where(theta > 0.5, 1.0 - (s * rest * rest + d1 * t) * inv_den, num * inv_den)
    gyh = gy * h * inv_den
    # Of the inverse, x moves with its bin, and ladj does not: what cancels would leave its rounding.
    g_x = -given if INVERSE else gy * slope + gl * ladj_slope
    g_s = gyh * (theta * theta - r * one_2t) + gl * 2.0 * (1.0 / s + t * inv_num - one_2t * inv_den)
    common = gl * 2.0 * t * inv_den
    if NEED_X:
        out = g_v if INVERSE else g_x
        tl.store(to_v, tl.where(inside, out, given).to(to_v.dtype.element_ty), mask=ok)
    if NEED_PARAMS:
        g_d0 = (gyh * t * (1.0 - r) + gl * rest * rest * inv_num - common) * _slope_grad(d0, u0, CLIP)
        g_d1 = (gl * theta * theta * inv_num - gyh * t * r - common) * _slope_grad(d1, u1, CLIP)
        g_h = tl.where(inside, gy * r + g_s / w, 0.0)
        g_w = tl.where(inside, -(g_s * s / w + g_x * theta), 0.0)
        g_x0 = tl.where(inside, -g_x, 0.0)
        g_y0 = tl.where(inside, gy, 0.0)
        before, here, after = _size_coefficients(k, mw, bw, rw, g_x0, g_w, K, FREE_X, SCALE)
        _store_sizes(to, to_stride, at, ok, stride, end, k, top_w, before, here, after, K, SCALE, 2.0 * CLIP)
        before, here, after = _size_coefficients(k, mh, bh, rh, g_y0, g_h, K, FREE_Y, SCALE)
        _store_sizes(
            to + K * to_stride, to_stride, at + K * stride, ok, stride, end, k, top_h, before, here, after, K, SCALE,
            2.0 * CLIP,
        )  # fmt: skip
        g_d0 = tl.where(inside, g_d0, 0.0)
        g_d1 = tl.where(inside, g_d1, 0.0)
        _store_slopes(to + 2 * K * to_stride, to_stride, ok, end, k, g_d0, g_d1, K, TAILS)


@triton.jit
def rqs_bwd(
    x_ptr, params_ptr, grad_y_ptr, grad_ladj_ptr, grad_x_ptr, grad_params_ptr, rows, D, bins, x_row, x_feature, p_row,
    p_feature, p_param,
    K: tl.constexpr, TAILS: tl.constexpr, LEFT: tl.constexpr, FREE_X: tl.constexpr, LEAST_X: tl.constexpr,
    BOTTOM: tl.constexpr, FREE_Y: tl.constexpr, LEAST_Y: tl.constexpr, RIGHT: tl.constexpr, TOP: tl.constexpr,
    MIN_SLOPE: tl.constexpr, SCALE: tl.constexpr, CLIP: tl.constexpr, EDGE: tl.constexpr, INVERSE: tl.constexpr,
    R: tl.constexpr, BD: tl.constexpr, HAS_Y: tl.constexpr, HAS_LADJ: tl.constexpr, NEED_X: tl.constexpr,
    NEED_PARAMS: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Gradients of x [rows, D] and params [rows, D, P], dense, from those of y (dense) and ladj."""
    # Up to 8 bins the loops have one turn, and logits stay in registers; beyond, unrolled turns would spill.
    end = K if K <= 8 else bins
    for first in range(0, D, BD):
        row, feature, ok = elements(first, rows, D, R, BD)
        v = tl.load(x_ptr + row * x_row + feature * x_feature, mask=ok, other=0.0).to(dtype)
        at = params_ptr + row * p_row + feature * p_feature
        k, _x0, w, _y0, h, u0, u1, bw, mw, rw, top_w, bh, mh, rh, top_h, d0, d1, theta, inside = in_bin(
            v, at, ok, p_param, end, K, TAILS, LEFT, FREE_X, LEAST_X, BOTTOM, FREE_Y, LEAST_Y, RIGHT, TOP, MIN_SLOPE,
            SCALE, CLIP, EDGE, INVERSE,
        )  # fmt: skip
        given, gl = grads_of(grad_y_ptr, grad_ladj_ptr, row, feature, D, ok, HAS_Y, HAS_LADJ, dtype)
        P: tl.constexpr = 3 * K + (-1 if TAILS == "linear" else 0 if TAILS == "circular" else 1)
        to = grad_params_ptr + (row * D + feature) * P
        in_bin_bwd(
            k, w, h, u0, u1, bw, mw, rw, top_w, bh, mh, rh, top_h, d0, d1, theta, inside, at, to,
            grad_x_ptr + row * D + feature, given, gl, ok, p_param, 1, end, K, TAILS, FREE_X, FREE_Y, SCALE, CLIP,
            INVERSE, NEED_X, NEED_PARAMS,
        )  # fmt: skip
