"""Block autoregressive maps in Triton: a program takes R rows through the network, U units at a time, which are those
of whole features.

Registers cannot be indexed at run time, so what enters a layer, and the logarithms of its slopes, wait in memory as
[unit][row]: of the program's own, which stays in the GPU's cache, or of the whole call where backward needs it. A
barrier behind every layer lets all threads of the program see what each has written. LAYERS are those of
`triton.layers_of`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flowkernels.ops._triton_math import exp, log1p_unit, sigmoid, tanh
from flowkernels.ops.net.triton_kernels import activated

# ---- activations ----


@triton.jit
def expm1(z):
    """exp(z) - 1 without cancelling, up to 1 or so."""
    t = tanh(0.5 * z)
    return tl.where(z < -1.0, exp(z) - 1.0, 2.0 * t / (1.0 - t))


@triton.jit
def bent(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "sigmoid":
        h = sigmoid(z)
    elif ACTIVATION == "elu":
        h = tl.where(z < 0.0, expm1(tl.where(z < 0.0, z, 0.0)), z)
    else:
        h = activated(z, ACTIVATION)
    return h


@triton.jit
def slope(z, ACTIVATION: tl.constexpr):
    """Which does not cancel in the tails."""
    if ACTIVATION == "elu":
        out = exp(tl.where(z > 0.0, 0.0, z))  # keeps a NaN
    elif ACTIVATION == "leaky_relu":
        one = tl.zeros_like(z) + 1.0  # as wide: of two numbers alone `where` makes float32
        out = tl.where(z > 0.0, one, 0.01 * one)
    else:
        k: tl.constexpr = 2.0 if ACTIVATION == "tanh" else 1.0
        e = exp(-k * tl.abs(z))
        q = 1.0 / (1.0 + e)
        out = (k * k) * e * q * q
    return out


@triton.jit
def log_slope(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "tanh":
        a = tl.abs(z)
        out = 2.0 * (0.69314718055994531 - a - log1p_unit(exp(-2.0 * a)))
    elif ACTIVATION == "sigmoid":
        a = tl.abs(z)
        out = -a - 2.0 * log1p_unit(exp(-a))
    elif ACTIVATION == "elu":
        out = tl.where(z > 0.0, 0.0, z)
    else:
        out = tl.where(z < 0.0, -4.6051701859880914, tl.zeros_like(z))
    return out


# ---- behind the last layer ----


@triton.jit
def of_gate(gate_ptr, RESIDUAL: tl.constexpr, EPS: tl.constexpr, dtype: tl.constexpr):
    """y = kept x + passed f: both, and their logarithms."""
    passed = tl.full([], 1.0, dtype)
    log_kept = tl.full([], 0.0, dtype)
    log_passed = log_kept
    kept = log_kept
    if RESIDUAL == "sum":
        kept = passed
    elif RESIDUAL == "gated":
        g = tl.load(gate_ptr)
        rest = log1p_unit(exp(-tl.abs(g)))
        kept = sigmoid(g)
        passed = sigmoid(-g)
        log_kept = tl.minimum(g, 0.0) - rest
        log_passed = tl.minimum(-g, 0.0) - rest
        if EPS > 0:
            log_kept = tl.log(kept + EPS)
            log_passed = tl.log(passed + EPS)
    return kept, passed, log_kept, log_passed


@triton.jit
def log_of_both(log, passed, log_kept, log_passed, RESIDUAL: tl.constexpr, EPS: tl.constexpr):
    """The logarithm of kept + passed e^log."""
    out = log
    if RESIDUAL != "none":
        of_f = log + log_passed
        high = tl.maximum(of_f, log_kept)
        out = high + log1p_unit(exp(tl.minimum(of_f, log_kept) - high))
        if RESIDUAL == "gated":
            # Shares of 1 cancel in the logarithm where the slope is near 1: log(1 + u), u = passed (e^log - 1).
            u = 2.0 * EPS + (passed + EPS) * expm1(tl.minimum(log, 1.0))
            one = 1.0 + u
            near = (tl.abs(log) < 1.0) & (u > -0.5)
            out = tl.where(near, tl.log(one) + (u - (one - 1.0)) / one, out)
        out = tl.where(log == log, out, log)
    return out


# ---- layers ----


@triton.jit
def units_of(first, D: tl.constexpr, COUNT: tl.constexpr, PLACES: tl.constexpr, U: tl.constexpr):
    """U units of features from `first` on, PLACES for the COUNT that each has; their features, and which are any."""
    u = tl.arange(0, U)
    feature = first + u // PLACES
    return feature * COUNT + u % PLACES, feature, (u % PLACES < COUNT) & (feature < D)


@triton.jit
def put_in(x_ptr, x_row, row, ok, h_ptr, apart, lane, D: tl.constexpr, U: tl.constexpr):
    """Rows of x as what enters the first layer."""
    for first in range(0, D, U):
        d = first + tl.arange(0, U)
        some = (d < D)[:, None] & ok[None, :]
        v = tl.load(x_ptr + row[None, :] * x_row + d[:, None], mask=some, other=0.0)
        tl.store(h_ptr + d[:, None] * apart + lane[None, :], v, mask=some)


@triton.jit
def times(
    z, w_ptr, unit, some, h_ptr, apart, lane, ok, begin, end, W_UNIT: tl.constexpr, W_INPUT: tl.constexpr,
    BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """z [U, R], and weights of the units by what inputs from `begin` to `end` hold."""
    for first in range(begin, end, BK):
        k = first + tl.arange(0, BK)
        is_input = k < end
        w = tl.load(
            w_ptr + unit[:, None] * W_UNIT + k[None, :] * W_INPUT, mask=some[:, None] & is_input[None, :], other=0.0
        )
        h = tl.load(h_ptr + k[:, None] * apart + lane[None, :], mask=is_input[:, None] & ok[None, :], other=0.0)
        z += tl.dot(w, h, input_precision="ieee", out_dtype=dtype)
    return z


@triton.jit
def log_sum(
    logs_ptr, unit, feature, some, l_ptr, apart, lane, ok, BEFORE: tl.constexpr, FIRST: tl.constexpr, R: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    """Of each unit the logarithm of the sum of exp(W + L) over its own feature's inputs, pair by pair."""
    at = logs_ptr + unit * BEFORE
    if FIRST:
        out = tl.load(at, mask=some, other=0.0)[:, None] + tl.zeros([1, R], dtype)
    else:
        mask = some[:, None] & ok[None, :]
        of = l_ptr + (feature * BEFORE)[:, None] * apart + lane[None, :]
        most = tl.full([unit.shape[0], R], float("-inf"), dtype)
        for j in range(BEFORE):
            w = tl.load(at + j, mask=some, other=0.0)
            most = tl.maximum(most, w[:, None] + tl.load(of + j * apart, mask=mask, other=0.0))
        most = tl.where(most > float("-inf"), most, 0.0)  # of none but zeros
        total = tl.zeros_like(most)
        for j in range(BEFORE):
            w = tl.load(at + j, mask=some, other=0.0)
            total += exp(w[:, None] + tl.load(of + j * apart, mask=mask, other=0.0) - most)
        out = most + tl.log(total)
    return out


@triton.jit
def layer(
    z, net_ptr, logs_ptr, h_ptr, l_ptr, apart, lane, ok, first, begin, LAYER: tl.constexpr, PLACES: tl.constexpr,
    LAST: tl.constexpr, D: tl.constexpr, ACTIVATION: tl.constexpr, R: tl.constexpr, U: tl.constexpr, BK: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    """What U units of features from `first` on sum up to, from z and the inputs from `begin` on, and the logarithms of
    the slopes of that. What they make of it, but of the last layer, enters the next."""
    BEFORE: tl.constexpr = LAYER[0]
    AFTER: tl.constexpr = LAYER[1]
    unit, feature, some = units_of(first, D, AFTER, PLACES, U)
    end = tl.minimum(first + U // PLACES, D) * BEFORE
    entered = h_ptr + LAYER[6] * apart
    slopes = l_ptr + LAYER[6] * apart
    z = times(
        z, net_ptr + LAYER[3], unit, some, entered, apart, lane, ok, begin, end, D * BEFORE, 1, BK, dtype
    )  # fmt: skip
    log = log_sum(
        logs_ptr + LAYER[5], unit, feature, some, slopes, apart, lane, ok, BEFORE, LAYER[6] == 0, R, dtype
    )  # fmt: skip
    if not LAST:
        to = (D * BEFORE + unit)[:, None] * apart + lane[None, :]
        mask = some[:, None] & ok[None, :]
        tl.store(entered + to, bent(z, ACTIVATION), mask=mask)
        tl.store(slopes + to, log + log_slope(z, ACTIVATION), mask=mask)
    return z, log


@triton.jit
def biases(net_ptr, first, LAYER: tl.constexpr, PLACES: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
           U: tl.constexpr, dtype: tl.constexpr):  # fmt: skip
    unit, _feature, some = units_of(first, D, LAYER[1], PLACES, U)
    return tl.load(net_ptr + LAYER[4] + unit, mask=some, other=0.0)[:, None] + tl.zeros([U, R], dtype)


@triton.jit
def _last_layer(
    net_ptr, logs_ptr, h_ptr, l_ptr, y_ptr, kept, passed, log_kept, log_passed, row, lane, ok,
    LAYER: tl.constexpr, D: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr,
    R: tl.constexpr, U: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Stores y, returns ladj."""
    total = tl.zeros([R], tl.float64)  # terms of both signs
    for first in range(0, D, U):
        z = biases(net_ptr, first, LAYER, 1, D, R, U, dtype)
        z, log = layer(
            z, net_ptr, logs_ptr, h_ptr, l_ptr, R, lane, ok, first, 0, LAYER, 1, True, D, ACTIVATION, R, U, BK, dtype
        )  # fmt: skip
        d = first + tl.arange(0, U)
        some = (d < D)[:, None] & ok[None, :]
        if RESIDUAL != "none":
            z = passed * z + kept * tl.load(h_ptr + d[:, None] * R + lane[None, :], mask=some, other=0.0)
        tl.store(y_ptr + row[None, :] * D + d[:, None], z, mask=some)
        log = log_of_both(log, passed, log_kept, log_passed, RESIDUAL, EPS)
        total += tl.sum(tl.where(some, log, 0.0).to(tl.float64), 0)
    return total


@triton.jit
def hidden_layer(
    net_ptr, logs_ptr, h_ptr, l_ptr, apart, lane, ok, LAYER: tl.constexpr, D: tl.constexpr, ACTIVATION: tl.constexpr,
    R: tl.constexpr, U: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    for first in range(0, D, U // LAYER[2]):
        z = biases(net_ptr, first, LAYER, LAYER[2], D, R, U, dtype)
        layer(
            z, net_ptr, logs_ptr, h_ptr, l_ptr, apart, lane, ok, first, 0, LAYER, LAYER[2], False, D, ACTIVATION, R, U,
            BK, dtype,
        )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "x_row"])
def block_fwd(
    x_ptr, net_ptr, logs_ptr, gate_ptr, room_ptr, y_ptr, ladj_ptr, rows, x_row, LAYERS: tl.constexpr, N: tl.constexpr,
    D: tl.constexpr, INPUTS: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr,
    R: tl.constexpr, U: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """y [rows, D] and ladj [rows]. Room: of R rows the inputs of all layers, and the logarithms of their slopes."""
    h = room_ptr + tl.program_id(0).to(tl.int64) * (2 * INPUTS * R)
    logs = h + INPUTS * R
    lane = tl.arange(0, R)
    kept, passed, log_kept, log_passed = of_gate(gate_ptr, RESIDUAL, EPS, dtype)
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        row = (tl.zeros([R], tl.int64) + tile) * R + lane
        ok = row < rows
        put_in(x_ptr, x_row, row, ok, h, R, lane, D, U)
        tl.debug_barrier()
        for k in tl.static_range(N - 1):
            hidden_layer(net_ptr, logs_ptr, h, logs, R, lane, ok, LAYERS[k], D, ACTIVATION, R, U, BK, dtype)
            tl.debug_barrier()
        total = _last_layer(
            net_ptr, logs_ptr, h, logs, y_ptr, kept, passed, log_kept, log_passed, row, lane, ok, LAYERS[N - 1], D,
            ACTIVATION, RESIDUAL, EPS, R, U, BK, dtype,
        )  # fmt: skip
        tl.store(ladj_ptr + row, total.to(dtype), mask=ok)
        tl.debug_barrier()  # before the next rows
