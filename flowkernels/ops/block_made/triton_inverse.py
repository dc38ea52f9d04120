"""The inverse of block autoregressive maps in Triton, one sweep over the features: what stands before one adds a
constant to the layers of its own units, which are an increasing function of one number."""

from __future__ import annotations

import triton
import triton.language as tl

from flowkernels.ops._triton_math import product
from flowkernels.ops._triton_root import newton_step

from .triton_kernels import bent, biases, layer, log_of_both, of_gate, slope, times, units_of


@triton.jit
def own_column(net_ptr, d, LAYER: tl.constexpr, D: tl.constexpr, U: tl.constexpr):
    """The block of the first layer, which has one input."""
    unit = tl.arange(0, U)
    at = net_ptr + LAYER[3] + (d * LAYER[1] + unit) * D + d
    return tl.load(at, mask=unit < LAYER[1], other=0.0)


@triton.jit
def own_row(net_ptr, d, LAYER: tl.constexpr, D: tl.constexpr, U: tl.constexpr):
    """The block of the last layer, which has one unit."""
    j = tl.arange(0, U)
    return tl.load(net_ptr + LAYER[3] + d * (D * LAYER[0]) + d * LAYER[0] + j, mask=j < LAYER[0], other=0.0)


@triton.jit
def own_times(
    a, b, net_ptr, room_ptr, d, LAYER: tl.constexpr, BACK: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
    U: tl.constexpr,
):  # fmt: skip
    """a and b [U, R], and feature d's block by two that lie in the room, one behind the other: by what its inputs hold,
    or BACK, its units. One number of all rows at a time, which takes few registers."""
    r, u = tl.arange(0, R), tl.arange(0, U)
    N_IN: tl.constexpr = D * LAYER[0]
    own = net_ptr + LAYER[3] + d * (LAYER[1] * N_IN + LAYER[0])
    for j in range(LAYER[1] if BACK else LAYER[0]):
        if BACK:
            w = tl.load(own + j * N_IN + u, mask=u < LAYER[0], other=0.0)[:, None]
        else:
            w = tl.load(own + u * N_IN + j, mask=u < LAYER[1], other=0.0)[:, None]
        a += w * tl.load(room_ptr + j * R + r)[None, :]
        b += w * tl.load(room_ptr + U * R + j * R + r)[None, :]
    return a, b


@triton.jit
def _own_value(
    v, net_ptr, room_ptr, d, kept, passed, LAYERS: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
    ACTIVATION: tl.constexpr, R: tl.constexpr, U: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """The feature's own function at v [R], and its slope. Room: the constants of N layers, [U, R] of each; twice what
    enters a layer, and its slope."""
    r = tl.arange(0, R)
    u = tl.arange(0, U)
    of_units = u[:, None] * R + r[None, :]
    last = tl.load(room_ptr + (N - 1) * (U * R) + r)
    if N == 1:
        w = tl.load(net_ptr + LAYERS[0][3] + d * D + d)
        f = last + w * v
        along = tl.zeros([R], dtype) + w
    else:
        column = own_column(net_ptr, d, LAYERS[0], D, U)
        z = tl.load(room_ptr + of_units) + column[:, None] * v[None, :]
        h = bent(z, ACTIVATION)
        s = column[:, None] * slope(z, ACTIVATION)
        for k in tl.static_range(1, N - 1):
            entered = room_ptr + (N + k % 2 * 2) * (U * R)
            tl.debug_barrier()  # what was there has been read
            tl.store(entered + of_units, h)
            tl.store(entered + U * R + of_units, s)
            tl.debug_barrier()
            z, s = own_times(
                tl.load(room_ptr + k * (U * R) + of_units), tl.zeros([U, R], dtype), net_ptr, entered, d, LAYERS[k],
                False, D, R, U,
            )  # fmt: skip
            h = bent(z, ACTIVATION)
            s = s * slope(z, ACTIVATION)
        w = own_row(net_ptr, d, LAYERS[N - 1], D, U)
        f = last + tl.sum(product(w[:, None], h), 0)
        along = tl.sum(product(w[:, None], s), 0)
    return kept * v + passed * f, kept + passed * along


@triton.jit
def _middle(low, high, farthest):
    """Between two distances from 0, in the middle of their logarithms."""
    return tl.sqrt(tl.maximum(low, 1.0 / farthest)) * tl.sqrt(high)


@triton.jit
def _own_root(
    target, ok, net_ptr, room_ptr, d, kept, passed, LAYERS: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
    ACTIVATION: tl.constexpr, R: tl.constexpr, U: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Where feature d is the target, NaN where it never is: Newton's method on the distance from 0, whose bracket is
    halved in its logarithm. The function, which is long code, is in one loop of all stages."""
    FARTHEST: tl.constexpr = 1e150 if dtype == tl.float64 else 1e18
    ULP: tl.constexpr = 2.0**-52 if dtype == tl.float64 else 2.0**-23
    HALVINGS: tl.constexpr = 64 if dtype == tl.float64 else 32  # some 2^7 or 2^10 binades, to a rounding
    # Each by itself: Triton 3.9 takes what begins as the same value for unchanged.
    at = tl.zeros([R], dtype)
    low = tl.zeros([R], dtype)
    best = tl.zeros([R], dtype)
    reach = tl.zeros([R], dtype)
    missing = tl.zeros([R], dtype) + float("inf")  # of a target of inf stays so
    sign = tl.zeros([R], dtype) + 1.0
    high = tl.zeros([R], dtype) + FARTHEST
    before = tl.zeros([R], dtype) + FARTHEST
    least = tl.zeros([R], dtype) + float("inf")
    goal = target
    is_number = target == target
    active = ok & is_number
    none = ok & (target != target)
    flat = ok & (target != target)
    step = 0
    stage = 0
    while stage < 5:
        f, along = _own_value(
            sign * at, net_ptr, room_ptr, d, kept, passed, LAYERS, N, D, ACTIVATION, R, U, dtype
        )  # fmt: skip
        off = sign * f - goal
        if stage == 0:  # at 0: on which side, and how far
            is_number = is_number & (f == f)
            sign = tl.where(target < f, -1.0, sign)
            goal = sign * target
            at = tl.where(target == f, 0.0, tl.minimum(tl.abs(target - f) / along, FARTHEST))
            best = at
            active = ok & is_number
            stage = 1
        elif stage == 1:  # Newton's steps
            nearer = (tl.abs(off) < least) & active
            missing = tl.where(nearer, -off, missing)
            reach = tl.where(nearer, at * along, reach)
            at, low, high, best, least, before, active = newton_step(
                off, along, goal, at, low, high, best, least, before, active, True
            )  # fmt: skip
            step += 1
        elif stage == 2:  # at the end of the bracket
            none = none & (off < 0.0)
            stage = 3
        else:  # along a plateau
            nearer = (tl.abs(off) <= least) & flat
            best = tl.where(nearer, at, best)
            least = tl.where(nearer, tl.abs(off), least)
            low = tl.where(off >= 0.0, low, at)
            high = tl.where(off >= 0.0, at, high)
            at = _middle(low, high, FARTHEST)
            step += 1
            stage = tl.where(step == HALVINGS, 5, 4)
        if (stage == 1) & ((step == 256) | (tl.max(active.to(tl.int32), 0) == 0)):
            # Where Newton's method would not stay, for want of a slope, there may be no root.
            none = ok & is_number & (missing > 0.0) & (64.0 * ULP * reach < missing)
            at = tl.zeros([R], dtype) + FARTHEST
            stage = 3 - tl.max(none.to(tl.int32), 0)
        if stage == 3:
            # A plateau: `best` is any of its points. The first of them, by halving alone, from one where so much is
            # missing.
            flat = ok & is_number & (reach <= tl.abs(missing)) & (best > 0.0) & (none == 0)
            low = tl.where(missing > 0.0, best, 0.0)
            high = tl.where(missing > 0.0, FARTHEST, best)
            least = tl.abs(missing)
            at = _middle(low, high, FARTHEST)
            step = 0
            stage = 5 - tl.max(flat.to(tl.int32), 0)
    return tl.where(is_number & (none == 0), sign * best, float("nan"))


@triton.jit
def _constants(
    net_ptr, h_ptr, to_ptr, lane, ok, d, LAYER: tl.constexpr, D: tl.constexpr, R: tl.constexpr, U: tl.constexpr,
    BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """What stands before feature d adds to the sums of its units."""
    BEFORE: tl.constexpr = LAYER[0]
    unit, _feature, some = units_of(d, D, LAYER[1], U, U)
    z = biases(net_ptr, d, LAYER, U, D, R, U, dtype)
    z = times(
        z, net_ptr + LAYER[3], unit, some, h_ptr + LAYER[6] * R, R, lane, ok, 0, d * BEFORE, D * BEFORE, 1, BK, dtype
    )  # fmt: skip
    tl.store(to_ptr + tl.arange(0, U)[:, None] * R + lane[None, :], z)


@triton.jit(do_not_specialize=["rows", "y_row"])
def block_inverse(
    y_ptr, net_ptr, logs_ptr, gate_ptr, room_ptr, x_ptr, ladj_ptr, rows, y_row, LAYERS: tl.constexpr, N: tl.constexpr,
    D: tl.constexpr, INPUTS: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr,
    R: tl.constexpr, U: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """x [rows, D] and ladj [rows] of y. Room: as `block_fwd` has it, and what `_own_value` asks."""
    h = room_ptr + tl.program_id(0).to(tl.int64) * ((2 * INPUTS + (N + 4) * U) * R)
    logs = h + INPUTS * R
    constants = logs + INPUTS * R
    lane = tl.arange(0, R)
    of_units = tl.arange(0, U)[:, None] * R + lane[None, :]
    kept, passed, log_kept, log_passed = of_gate(gate_ptr, RESIDUAL, EPS, dtype)
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        row = (tl.zeros([R], tl.int64) + tile) * R + lane
        ok = row < rows
        total = tl.zeros([R], tl.float64)  # terms of both signs
        for d in range(D):
            for k in tl.static_range(N):
                _constants(net_ptr, h, constants + k * (U * R), lane, ok, d, LAYERS[k], D, R, U, BK, dtype)
            tl.debug_barrier()
            target = tl.load(y_ptr + row * y_row + d, mask=ok, other=0.0)
            x = _own_root(target, ok, net_ptr, constants, d, kept, passed, LAYERS, N, D, ACTIVATION, R, U, dtype)
            tl.store(x_ptr + row * D + d, x, mask=ok)
            tl.store(h + d * R + lane, x)
            tl.debug_barrier()
            for k in tl.static_range(N - 1):
                layer(
                    tl.load(constants + k * (U * R) + of_units), net_ptr, logs_ptr, h, logs, R, lane, ok, d,
                    d * LAYERS[k][0], LAYERS[k], U, False, D, ACTIVATION, R, U, BK, dtype,
                )  # fmt: skip
                tl.debug_barrier()
            _z, log = layer(
                tl.load(constants + (N - 1) * (U * R) + of_units), net_ptr, logs_ptr, h, logs, R, lane, ok, d,
                d * LAYERS[N - 1][0], LAYERS[N - 1], U, True, D, ACTIVATION, R, U, BK, dtype,
            )  # fmt: skip
            log = tl.sum(tl.where((tl.arange(0, U) == 0)[:, None], log, 0.0), 0)
            total += log_of_both(log, passed, log_kept, log_passed, RESIDUAL, EPS).to(tl.float64)
            tl.debug_barrier()  # the constants have been read
        tl.store(ladj_ptr + row, (-total).to(dtype), mask=ok)
