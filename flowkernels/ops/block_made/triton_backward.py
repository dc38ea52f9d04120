"""The way back through block autoregressive maps in Triton: a program has R rows, computes everything again, and leaves
what the gradients of weights are products of in memory of the whole call, [unit][row]: what enters every layer, the
gradients of what it sums up to, and those of the logarithms of slopes."""

from __future__ import annotations

import triton
import triton.language as tl

from flowkernels.ops._triton_math import exp, product, sigmoid

from .triton_inverse import own_column, own_row, own_times
from .triton_kernels import biases, layer, of_gate, put_in, slope, times, units_of


@triton.jit
def _log_slope_slope(z, h, ACTIVATION: tl.constexpr):
    """d log slope / d z, where the value is h."""
    if ACTIVATION == "tanh":
        out = -2.0 * h
    elif ACTIVATION == "sigmoid":
        out = 1.0 - 2.0 * h
    elif ACTIVATION == "elu":
        out = tl.where(z <= 0.0, tl.zeros_like(z) + 1.0, 0.0)
    else:
        out = tl.zeros_like(z)
    return out


@triton.jit
def _keep(
    net_ptr, logs_ptr, h_ptr, l_ptr, z_ptr, m_ptr, apart, row, ok, LAYER: tl.constexpr, LAST: tl.constexpr,
    D: tl.constexpr, ACTIVATION: tl.constexpr, R: tl.constexpr, U: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """A layer forward; its sums and the logarithms of their slopes stay."""
    for first in range(0, D, U // LAYER[2]):
        z = biases(net_ptr, first, LAYER, LAYER[2], D, R, U, dtype)
        z, log = layer(
            z, net_ptr, logs_ptr, h_ptr, l_ptr, apart, row, ok, first, 0, LAYER, LAYER[2], LAST, D, ACTIVATION, R, U,
            BK, dtype,
        )  # fmt: skip
        unit, _feature, some = units_of(first, D, LAYER[1], LAYER[2], U)
        to = (LAYER[7] + unit)[:, None] * apart + row[None, :]
        tl.store(z_ptr + to, z, mask=some[:, None] & ok[None, :])
        tl.store(m_ptr + to, log, mask=some[:, None] & ok[None, :])


@triton.jit
def _last_back(
    m_ptr, g_ptr, gl_ptr, grad_y_ptr, of_ladj, gate, apart, row, ok, LAYER: tl.constexpr, D: tl.constexpr,
    RESIDUAL: tl.constexpr, EPS: tl.constexpr, INVERSE: tl.constexpr, HAS_Y: tl.constexpr, HAS_LADJ: tl.constexpr,
    R: tl.constexpr, U: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """From the gradient of ladj to those of f's logarithms; of a forward map from those of y to those of f. Returns
    what a gate gets of slopes, of each row and 1 of ladj."""
    kept, passed, log_kept, log_passed = gate
    of_slopes = tl.zeros([R], dtype)
    for first in range(0, D, U):
        d = first + tl.arange(0, U)
        some = (d < D)[:, None] & ok[None, :]
        to = (LAYER[7] + d)[:, None] * apart + row[None, :]
        if HAS_LADJ:
            share = tl.zeros([U, R], dtype) + 1.0
            if RESIDUAL != "none":
                above = tl.load(m_ptr + to, mask=some, other=0.0) + (log_passed - log_kept)
                share = sigmoid(above)
                if RESIDUAL == "gated":
                    # The shares' own slopes by the gate; with an eps they are less.
                    of_kept = kept * passed / (kept + EPS) if EPS > 0 else passed
                    of_passed = kept * passed / (passed + EPS) if EPS > 0 else kept
                    each = of_kept * sigmoid(-above) - of_passed * share
                    of_slopes += tl.sum(tl.where(some, each, 0.0), 0)
            sign: tl.constexpr = -1.0 if INVERSE else 1.0
            tl.store(gl_ptr + to, (sign * of_ladj)[None, :] * share, mask=some)
        if not INVERSE:
            g = tl.zeros([U, R], dtype)
            if HAS_Y:
                g = tl.load(grad_y_ptr + row[None, :] * D + d[:, None], mask=some, other=0.0)
            tl.store(g_ptr + to, passed * g, mask=some)
    return of_slopes


@triton.jit
def _logs_back(
    logs_ptr, l_ptr, m_ptr, gl_ptr, apart, row, ok, LAYER: tl.constexpr, BELOW: tl.constexpr, D: tl.constexpr,
    R: tl.constexpr, U: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Through a layer's blocks: from the gradients of the logarithms behind it to those of what entered, which are the
    logarithms behind the layer BELOW."""
    BEFORE: tl.constexpr = LAYER[0]
    AFTER: tl.constexpr = LAYER[1]
    for first in range(0, D, U // BELOW[2]):
        unit, feature, some = units_of(first, D, BEFORE, BELOW[2], U)
        mask = some[:, None] & ok[None, :]
        log = tl.load(l_ptr + (LAYER[6] + unit)[:, None] * apart + row[None, :], mask=mask, other=0.0)
        total = tl.zeros([U, R], dtype)
        for i in range(AFTER):
            to = feature * AFTER + i
            w = tl.load(logs_ptr + LAYER[5] + to * BEFORE + (unit - feature * BEFORE), mask=some, other=0.0)
            at = (LAYER[7] + to)[:, None] * apart + row[None, :]
            g = tl.load(gl_ptr + at, mask=mask, other=0.0)
            total += g * exp(w[:, None] + log - tl.load(m_ptr + at, mask=mask, other=0.0))
        tl.store(gl_ptr + (BELOW[7] + unit)[:, None] * apart + row[None, :], total, mask=mask)


@triton.jit
def _beneath(z_ptr, h_ptr, gl_ptr, apart, unit, mask, row, LAYER: tl.constexpr, BELOW: tl.constexpr,
             ACTIVATION: tl.constexpr, HAS_LADJ: tl.constexpr):  # fmt: skip
    """Of units that enter a layer: the slopes of their activations, and what ladj gives to their sums."""
    at = (BELOW[7] + unit)[:, None] * apart + row[None, :]
    z = tl.load(z_ptr + at, mask=mask, other=0.0)
    more = tl.zeros_like(z)
    if HAS_LADJ:
        h = tl.load(h_ptr + (LAYER[6] + unit)[:, None] * apart + row[None, :], mask=mask, other=0.0)
        more = tl.load(gl_ptr + at, mask=mask, other=0.0) * _log_slope_slope(z, h, ACTIVATION)
    return slope(z, ACTIVATION), more


@triton.jit
def _values_back(
    net_ptr, h_ptr, z_ptr, g_ptr, gl_ptr, apart, row, ok, LAYER: tl.constexpr, BELOW: tl.constexpr, D: tl.constexpr,
    ACTIVATION: tl.constexpr, HAS_LADJ: tl.constexpr, R: tl.constexpr, U: tl.constexpr, BK: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    """From the gradients of a layer's sums to those of the layer BELOW."""
    BEFORE: tl.constexpr = LAYER[0]
    AFTER: tl.constexpr = LAYER[1]
    for first in range(0, D, U // BELOW[2]):
        unit, _feature, some = units_of(first, D, BEFORE, BELOW[2], U)
        mask = some[:, None] & ok[None, :]
        g = times(
            tl.zeros([U, R], dtype), net_ptr + LAYER[3], unit, some, g_ptr + LAYER[7] * apart, apart, row, ok,
            first * AFTER, D * AFTER, 1, D * BEFORE, BK, dtype,
        )  # fmt: skip
        of_slope, more = _beneath(z_ptr, h_ptr, gl_ptr, apart, unit, mask, row, LAYER, BELOW, ACTIVATION, HAS_LADJ)
        to = g_ptr + (BELOW[7] + unit)[:, None] * apart + row[None, :]
        tl.store(to, g * of_slope + more, mask=mask)


@triton.jit
def _x_back(
    net_ptr, g_ptr, grad_y_ptr, grad_x_ptr, kept, apart, row, ok, LAYER: tl.constexpr, D: tl.constexpr,
    RESIDUAL: tl.constexpr, HAS_Y: tl.constexpr, R: tl.constexpr, U: tl.constexpr, BK: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    for first in range(0, D, U):
        d = first + tl.arange(0, U)
        some = (d < D)[:, None] & ok[None, :]
        g = times(
            tl.zeros([U, R], dtype), net_ptr + LAYER[3], d, d < D, g_ptr + LAYER[7] * apart, apart, row, ok,
            first * LAYER[1], D * LAYER[1], 1, D, BK, dtype,
        )  # fmt: skip
        at = row[None, :] * D + d[:, None]
        if RESIDUAL != "none" and HAS_Y:
            g += kept * tl.load(grad_y_ptr + at, mask=some, other=0.0)
        tl.store(grad_x_ptr + at, g, mask=some)


@triton.jit
def _own_back(
    known, each, net_ptr, room_ptr, g_ptr, apart, row, ok, d, LAST: tl.constexpr, FIRST: tl.constexpr,
    LAYER: tl.constexpr, D: tl.constexpr, R: tl.constexpr, U: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """What the inputs of feature d's block get of the layer's own units, which have `known` + `each` times a number, as
    the room has them too, and, beside the number, of those of the features behind."""
    unit, _feature, some = units_of(d, D, LAYER[0], U, U)
    behind = times(
        tl.zeros([U, R], dtype), net_ptr + LAYER[3], unit, some, g_ptr + LAYER[7] * apart, apart, row, ok,
        (d + 1) * LAYER[1], D * LAYER[1], 1, D * LAYER[0], BK, dtype,
    )  # fmt: skip
    u = tl.arange(0, U)
    if LAST:  # one unit: the number is its
        of_known = behind
        of_each = own_row(net_ptr, d, LAYER, D, U)[:, None] + tl.zeros([U, R], dtype)
    elif FIRST:  # one input
        w = own_column(net_ptr, d, LAYER, D, U)[:, None]
        of_known = tl.where((u == 0)[:, None], behind + tl.sum(product(w, known), 0)[None, :], 0.0)
        of_each = tl.where((u == 0)[:, None], tl.sum(product(w, each), 0)[None, :], 0.0)
    else:
        of_known, of_each = own_times(behind, tl.zeros([U, R], dtype), net_ptr, room_ptr, d, LAYER, True, D, R, U)
    return of_known, of_each


@triton.jit
def _solve_back(
    net_ptr, room_ptr, h_ptr, z_ptr, g_ptr, gl_ptr, grad_x_ptr, grad_y_ptr, kept, passed, apart, row, lane, ok,
    LAYERS: tl.constexpr, N: tl.constexpr, D: tl.constexpr, ACTIVATION: tl.constexpr, HAS_Y: tl.constexpr,
    HAS_LADJ: tl.constexpr, R: tl.constexpr, U: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Of an inverse: the gradients of all sums and of what was given, from those of what was found, grad_x. No feature
    depends on those behind it: so from the last to the first, each a linear equation of one number. A unit's gradient
    is `known` + `each` times that of the feature's last sum; both wait in the room."""
    of_units = tl.arange(0, U)[:, None] * R + lane[None, :]
    for back in range(D):
        d = D - 1 - back
        known = tl.zeros([U, R], dtype)
        each = tl.zeros([U, R], dtype)
        for down in tl.static_range(N):
            known, each = _own_back(
                known, each, net_ptr, room_ptr + 2 * down * (U * R), g_ptr, apart, row, ok, d, down == 0,
                down == N - 1, LAYERS[N - 1 - down], D, R, U, BK, dtype,
            )  # fmt: skip
            if down < N - 1:
                unit, _feature, some = units_of(d, D, LAYERS[N - 1 - down][0], U, U)
                of_slope, more = _beneath(
                    z_ptr, h_ptr, gl_ptr, apart, unit, some[:, None] & ok[None, :], row, LAYERS[N - 1 - down],
                    LAYERS[N - 2 - down], ACTIVATION, HAS_LADJ,
                )  # fmt: skip
                known = known * of_slope + more
                each = each * of_slope
                room = room_ptr + 2 * (down + 1) * (U * R) + of_units
                tl.store(room, known)
                tl.store(room + U * R, each)
                tl.debug_barrier()
        of_x = tl.sum(known, 0)
        if HAS_Y:
            of_x += tl.load(grad_x_ptr + row * D + d, mask=ok, other=0.0)
        of_y = of_x / (kept + passed * tl.sum(each, 0))
        of_last = -(passed * of_y)
        tl.store(grad_y_ptr + row * D + d, of_y, mask=ok)
        tl.store(g_ptr + (LAYERS[N - 1][7] + d) * apart + row, of_last, mask=ok)
        tl.debug_barrier()
        for down in tl.static_range(N - 1):
            unit, _feature, some = units_of(d, D, LAYERS[N - 2 - down][1], U, U)
            room = room_ptr + 2 * (down + 1) * (U * R) + of_units
            g = tl.load(room) + of_last[None, :] * tl.load(room + U * R)
            to = g_ptr + (LAYERS[N - 2 - down][7] + unit)[:, None] * apart + row[None, :]
            tl.store(to, g, mask=some[:, None] & ok[None, :])
        tl.debug_barrier()


@triton.jit
def _gate_back(
    h_ptr, z_ptr, grad_y_ptr, apart, row, ok, LAYER: tl.constexpr, D: tl.constexpr, R: tl.constexpr, U: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    """What a gate gets of values, but for kept passed: sums of g (x - f), of each row."""
    total = tl.zeros([R], dtype)
    for first in range(0, D, U):
        d = first + tl.arange(0, U)
        some = (d < D)[:, None] & ok[None, :]
        x = tl.load(h_ptr + d[:, None] * apart + row[None, :], mask=some, other=0.0)
        f = tl.load(z_ptr + (LAYER[7] + d)[:, None] * apart + row[None, :], mask=some, other=0.0)
        g = tl.load(grad_y_ptr + row[None, :] * D + d[:, None], mask=some, other=0.0)
        total += tl.sum(product(g, x - f), 0)
    return total


@triton.jit(do_not_specialize=["rows", "x_row"])
def block_bwd(
    x_ptr, net_ptr, logs_ptr, gate_ptr, room_ptr, grad_out_ptr, grad_ladj_ptr, grad_in_ptr, h_ptr, l_ptr, z_ptr, m_ptr,
    g_ptr, gl_ptr, gates_ptr, rows, x_row, LAYERS: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
    INPUTS: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr, INVERSE: tl.constexpr,
    HAS_Y: tl.constexpr, HAS_LADJ: tl.constexpr, R: tl.constexpr, U: tl.constexpr, BK: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    """The gradient of what was given, and all that those of weights are made of. x: of an inverse what it found; room:
    for each of its programs 2 N U R numbers. gates: of each program what the gate gets."""
    lane = tl.arange(0, R)
    row = tl.program_id(0).to(tl.int64) * R + lane
    ok = row < rows
    apart = rows.to(tl.int64)
    gate = of_gate(gate_ptr, RESIDUAL, EPS, dtype)
    kept, passed, _log_kept, _log_passed = gate
    put_in(x_ptr, x_row, row, ok, h_ptr, apart, row, D, U)
    tl.debug_barrier()
    for k in tl.static_range(N):
        _keep(
            net_ptr, logs_ptr, h_ptr, l_ptr, z_ptr, m_ptr, apart, row, ok, LAYERS[k], k == N - 1, D, ACTIVATION, R, U,
            BK, dtype,
        )  # fmt: skip
        tl.debug_barrier()
    of_ladj = tl.zeros([R], dtype)
    if HAS_LADJ:
        of_ladj = tl.load(grad_ladj_ptr + row, mask=ok, other=0.0)
    of_slopes = _last_back(
        m_ptr, g_ptr, gl_ptr, grad_out_ptr, of_ladj, gate, apart, row, ok, LAYERS[N - 1], D, RESIDUAL, EPS, INVERSE,
        HAS_Y, HAS_LADJ, R, U, dtype,
    )  # fmt: skip
    tl.debug_barrier()
    if HAS_LADJ:
        for down in tl.static_range(N - 1):
            _logs_back(
                logs_ptr, l_ptr, m_ptr, gl_ptr, apart, row, ok, LAYERS[N - 1 - down], LAYERS[N - 2 - down], D, R, U,
                dtype,
            )  # fmt: skip
            tl.debug_barrier()
    if INVERSE:
        room = room_ptr + tl.program_id(0).to(tl.int64) * (2 * N * U * R)
        _solve_back(
            net_ptr, room, h_ptr, z_ptr, g_ptr, gl_ptr, grad_out_ptr, grad_in_ptr, kept, passed, apart, row, lane, ok,
            LAYERS, N, D, ACTIVATION, HAS_Y, HAS_LADJ, R, U, BK, dtype,
        )  # fmt: skip
    else:
        for down in tl.static_range(N - 1):
            _values_back(
                net_ptr, h_ptr, z_ptr, g_ptr, gl_ptr, apart, row, ok, LAYERS[N - 1 - down], LAYERS[N - 2 - down], D,
                ACTIVATION, HAS_LADJ, R, U, BK, dtype,
            )  # fmt: skip
            tl.debug_barrier()
        _x_back(
            net_ptr, g_ptr, grad_out_ptr, grad_in_ptr, kept, apart, row, ok, LAYERS[0], D, RESIDUAL, HAS_Y, R, U, BK,
            dtype,
        )  # fmt: skip
    if RESIDUAL == "gated":
        total = of_ladj * of_slopes
        if INVERSE or HAS_Y:
            of_y = grad_in_ptr if INVERSE else grad_out_ptr
            total += (kept * passed) * _gate_back(
                h_ptr, z_ptr, of_y, apart, row, ok, LAYERS[N - 1], D, R, U, dtype
            )  # fmt: skip
        total = tl.sum(tl.where(ok, total, 0.0).to(tl.float64), 0)
        tl.store(gates_ptr + tl.program_id(0), -total if INVERSE else total)
