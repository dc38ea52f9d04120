"""A residual block on the rows of a program: g and its slopes, J along some directions, and the way back through both.

Every layer is as wide as the widest, HP; weights are read as 0 beyond their own, and so is what comes out of them. So
layers are a loop at run time: unrolled, places of weights would take all registers. What passes from one to the next
goes through `room`, memory of the program's own, where any thread finds what another one has made.

net: all weights and biases, one behind the other; table: of each layer where its weight begins, and its two sizes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flowkernels.ops._triton_math import exp, sigmoid, tanh

STEEPEST = tl.constexpr(1.1)  # the slope of a swish is at most 1.0998
FLAT = tl.constexpr(1e3)  # beyond it a sigmoid is 0 or 1, and so is its product with what it is of


# ---- activations ----


@triton.jit
def _within(t):
    return tl.minimum(tl.maximum(t, -FLAT), FLAT)


@triton.jit
def contract(z, beta, ACTIVATION: tl.constexpr):
    """The value of an activation, and its slope."""
    if ACTIVATION == "lipswish":
        t = z * beta
        share = sigmoid(t)
        value = z * share / STEEPEST
        slope = share * (1.0 + _within(t) * sigmoid(-t)) / STEEPEST
    elif ACTIVATION == "elu":
        half = tanh(0.5 * tl.where(z > 0.0, 0.0, z))
        value = tl.where(z > 0.0, z, (half + half) / (1.0 - half))
        slope = exp(tl.where(z > 0.0, 0.0, z))
    else:
        e = exp(-2.0 * tl.abs(z))
        q = 1.0 / (1.0 + e)
        value = tanh(z)
        slope = 4.0 * e * q * q
    return value, slope


@triton.jit
def curve(z, beta, ACTIVATION: tl.constexpr):
    """The slope, and by what it changes with z; with beta, of a lipswish, the value and the slope."""
    none = tl.zeros_like(z)
    by_beta = none
    bend_by_beta = none
    _value, slope = contract(z, beta, ACTIVATION)
    if ACTIVATION == "lipswish":
        t = z * beta
        share = sigmoid(t)
        rest = sigmoid(-t)
        both = share * rest
        by_t = both * (2.0 + _within(t) * (rest - share)) / STEEPEST
        bend = by_t * beta
        by_beta = z * both * z / STEEPEST
        bend_by_beta = by_t * z
    elif ACTIVATION == "elu":
        bend = tl.where(z > 0.0, 0.0, slope)
    else:
        bend = -2.0 * tanh(z) * slope
    return slope, bend, by_beta, bend_by_beta


@triton.jit
def beta_at(ptr, k, PRE: tl.constexpr, HAS_BETAS: tl.constexpr, dtype: tl.constexpr):
    """That of the activation in front of layer k, 1 where there is none."""
    out = tl.full([], 1.0, dtype)
    if HAS_BETAS:
        at = k - 1 + PRE
        out = tl.load(ptr + at, mask=at >= 0, other=1.0)
    return out


# ---- products ----


@triton.jit
def tile_at(at, COUNT: tl.constexpr, HP: tl.constexpr):
    """Where [COUNT, HP] lies, dense."""
    return at + tl.arange(0, COUNT)[:, None] * HP + tl.arange(0, HP)[None, :]


@triton.jit
def zero_of(i, most):
    """0 in a loop where i is never more than `most`, which a compiler does not know: it would find the places of a
    matrix once, in front of the loop, where they take a register each until they are needed."""
    return tl.where(i > most, 256, 0)


@triton.jit
def matrices_at(at, zero, R: tl.constexpr, T: tl.constexpr):
    """Where [R, T, T] lies, dense."""
    i = zero + tl.arange(0, T)
    return at + (tl.arange(0, R) * T * T)[:, None, None] + (i * T)[None, :, None] + i[None, None, :]


@triton.jit
def layer_of(table, k):
    """Where a layer's weight begins, how many numbers enter, and how many come out."""
    return tl.load(table + 3 * k), tl.load(table + 3 * k + 1), tl.load(table + 3 * k + 2)


@triton.jit
def times(at, w_at, n_in, n_out, M: tl.constexpr, HP: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr):
    """[M, HP]: what lies at `at`, [M, HP], by weights [n_out, n_in]."""
    m = tl.arange(0, M)
    n = tl.arange(0, HP)
    total = tl.zeros([M, HP], dtype)
    for first in range(0, n_in, BK):
        k = first + tl.arange(0, BK)
        a = tl.load(at + m[:, None] * HP + k[None, :])
        some = (k < n_in)[:, None] & (n < n_out)[None, :]
        w = tl.load(w_at + n[None, :] * n_in + k[:, None], mask=some, other=0.0)
        total += tl.dot(a, w, input_precision="ieee", out_dtype=dtype)
    return total


@triton.jit
def times_back(at, w_at, n_in, n_out, M: tl.constexpr, HP: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr):
    """The same by the weights the other way."""
    m = tl.arange(0, M)
    k = tl.arange(0, HP)
    total = tl.zeros([M, HP], dtype)
    for first in range(0, n_out, BK):
        n = first + tl.arange(0, BK)
        g = tl.load(at + m[:, None] * HP + n[None, :])
        some = (n < n_out)[:, None] & (k < n_in)[None, :]
        w = tl.load(w_at + n[:, None] * n_in + k[None, :], mask=some, other=0.0)
        total += tl.dot(g, w, input_precision="ieee", out_dtype=dtype)
    return total


@triton.jit
def add_product(
    g_at, a_at, to, n_in, n_out, M: tl.constexpr, HP: tl.constexpr, BK: tl.constexpr, SIDE: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    """Adds to [n_out, n_in] the products of gradients and of what entered, both [M, HP], SIDE x SIDE at a time."""
    STEP: tl.constexpr = BK if BK < M else M
    for unit in range(0, n_out, SIDE):
        for column in range(0, n_in, SIDE):
            n = unit + tl.arange(0, SIDE)
            k = column + tl.arange(0, SIDE)
            total = tl.zeros([SIDE, SIDE], dtype)
            for first in range(0, M, STEP):
                m = first + tl.arange(0, STEP)
                g = tl.load(g_at + m[None, :] * HP + n[:, None])
                a = tl.load(a_at + m[:, None] * HP + k[None, :])
                total += tl.dot(g, a, input_precision="ieee", out_dtype=dtype)
            at = to + n[:, None] * n_in + k[None, :]
            some = (n < n_out)[:, None] & (k < n_in)[None, :]
            tl.store(at, tl.load(at, mask=some, other=0.0) + total, mask=some)
    tl.debug_barrier()


# ---- g ----


@triton.jit
def run_net(
    x, net, table, betas_ptr, a_at, slope_at, z_at, n, ACTIVATION: tl.constexpr, PRE: tl.constexpr,
    HAS_BETAS: tl.constexpr, SLOPES: tl.constexpr, KEEP: tl.constexpr, B: tl.constexpr, HP: tl.constexpr,
    BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """g of x [B, HP]. In room: what enters each of n layers; SLOPES: those of the activations in front of them; KEEP:
    what these were given."""
    h = x
    for k in range(0, n):
        if KEEP:
            tl.store(tile_at(z_at + k * B * HP, B, HP), h)
        value, slope = contract(h, beta_at(betas_ptr, k, PRE, HAS_BETAS, dtype), ACTIVATION)
        bends = (k > 0) | PRE
        h = tl.where(bends, value, h)
        if SLOPES:
            tl.store(tile_at(slope_at + k * B * HP, B, HP), tl.where(bends, slope, 1.0))
        tl.store(tile_at(a_at + k * B * HP, B, HP), h)
        tl.debug_barrier()
        begin, n_in, n_out = layer_of(table, k)
        unit = tl.arange(0, HP)
        h = times(a_at + k * B * HP, net + begin, n_in, n_out, B, HP, BK, dtype)
        h += tl.load(net + begin + n_in * n_out + unit, mask=unit < n_out, other=0.0)[None, :]
    tl.debug_barrier()  # all has been read
    return h


@triton.jit
def root(
    given, ok, steps, least, net, table, betas_ptr, a_at, n, ACTIVATION: tl.constexpr, PRE: tl.constexpr,
    HAS_BETAS: tl.constexpr, ROUNDING: tl.constexpr, B: tl.constexpr, HP: tl.constexpr, BK: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    """x of x + g(x) = given, by Banach's iteration: a row rests once its step says so, or is no number."""
    x = given
    moves = ok.to(tl.int32)
    taken = 0
    while (taken < steps) & (tl.max(moves, 0) > 0):
        g = run_net(
            x, net, table, betas_ptr, a_at, a_at, a_at, n, ACTIVATION, PRE, HAS_BETAS, False, False, B, HP, BK, dtype
        )  # fmt: skip
        following = tl.where((moves > 0)[:, None], given - g, x)
        moved = tl.abs(following - x)
        no_number = tl.max((moved != moved).to(tl.int32), 1) > 0
        size = tl.max(tl.abs(following), 1)
        far = tl.max(moved, 1) > tl.maximum(ROUNDING * size, tl.zeros([B], dtype) + least)
        moves = tl.where(no_number | (far == 0), 0, moves)
        x = following
        taken += 1
    return x


# ---- J along directions ----


@triton.jit
def slopes_of(slope_at, group, M: tl.constexpr, C: tl.constexpr, HP: tl.constexpr):
    """[M, HP]: of the rows from `group` on, each C times."""
    row = group + tl.arange(0, M) // C
    return tl.load(slope_at + row[:, None] * HP + tl.arange(0, HP)[None, :])


@triton.jit
def push(
    tangent, group, lane, net, table, slope_at, entered_at, tangent_at, n, KEEP: tl.constexpr, LANES: tl.constexpr,
    M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, HP: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """J of directions [M, HP], C of each row from `group` on. KEEP: in room, which has LANES of them, stays what these,
    from `lane` on, are in front of each activation and what enters each layer."""
    for k in range(0, n):
        at = entered_at + k % 2 * M * HP
        if KEEP:
            at = entered_at + (k * LANES + lane) * HP
            tl.store(tile_at(tangent_at + (k * LANES + lane) * HP, M, HP), tangent)
        tl.store(tile_at(at, M, HP), tangent * slopes_of(slope_at + k * B * HP, group, M, C, HP))
        tl.debug_barrier()
        begin, n_in, n_out = layer_of(table, k)
        tangent = times(at, net + begin, n_in, n_out, M, HP, BK, dtype)
    tl.debug_barrier()
    return tangent


@triton.jit
def pull(
    q, group, net, table, slope_at, here, n, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, HP: tl.constexpr,
    BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """J^T of q [M, HP]."""
    for i in range(0, n):
        k = n - 1 - i
        at = here + k % 2 * M * HP
        tl.store(tile_at(at, M, HP), q)
        tl.debug_barrier()
        begin, n_in, n_out = layer_of(table, k)
        q = times_back(at, net + begin, n_in, n_out, M, HP, BK, dtype)
        q = q * slopes_of(slope_at + k * B * HP, group, M, C, HP)
    tl.debug_barrier()
    return q


@triton.jit
def fill_matrix(
    group, zero, net, table, slope_at, entered_at, tangent_at, matrix_at, n, KEEP: tl.constexpr, R: tl.constexpr,
    T: tl.constexpr, C: tl.constexpr, B: tl.constexpr, HP: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """(I + J)^T of R rows from `group` on, [R, T, T] with 1 on the diagonal beyond D; C of its rows at a time."""
    M: tl.constexpr = R * C
    m = tl.arange(0, M)
    d = tl.arange(0, HP)
    for first in range(0, T, C):  # with more than one row, all at a time
        unit = (d[None, :] == (zero + first + m % C)[:, None]).to(dtype)
        last = push(
            unit, group, first, net, table, slope_at, entered_at, tangent_at, n, KEEP, R * T, M, C, B, HP, BK, dtype
        )  # fmt: skip
        tl.store(matrix_at + (first + m)[:, None] * T + d[None, :], last, mask=(d < T)[None, :])
    tl.debug_barrier()
    i = tl.arange(0, R * T)
    diagonal = matrix_at + i * T + i % T
    tl.store(diagonal, tl.load(diagonal) + 1.0)
    tl.debug_barrier()
    return tl.load(matrices_at(matrix_at, zero, R, T))
