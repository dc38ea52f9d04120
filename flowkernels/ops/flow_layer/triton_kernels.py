"""A whole flow layer in Triton: one launch maps, one takes gradients back to the net's layers, one multiplies those
into the weights'.

A program takes R rows through the net at a time, then some of the mapped features of each. The stream of a residual net
stays in registers. These cannot be indexed at run time, so what enters the next layer, and the parameters of a few
features, wait in `room`, memory of the program's own that stays in the GPU's cache; a barrier lets all threads of the
program see what each has written. Parameters lie there as [param][feature][row], neighbours for neighbouring threads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flowkernels.ops.affine.triton_kernels import logit_grad, scale_at
from flowkernels.ops.net.triton_kernels import activated, activation_slope
from flowkernels.ops.rqs.triton_kernels import in_bin, in_bin_bwd, mapped


@triton.jit
def _inputs(
    room, rows, row, LAYER: tl.constexpr, BEFORE: tl.constexpr, WIDTH: tl.constexpr, KEEP: tl.constexpr,
    R: tl.constexpr, HP: tl.constexpr,
):  # fmt: skip
    """Where each row [R] has what enters a layer: if all is kept, behind that of the BEFORE units that enter others."""
    at = room + LAYER % 2 * R * HP + tl.arange(0, R) * HP  # in turn in one half of the room and in the other
    if KEEP:
        at = room + rows.to(tl.int64) * BEFORE + row * WIDTH
    return at


@triton.jit
def _units(ptr, rows, row, ok, BEFORE: tl.constexpr, WIDTH: tl.constexpr, HP: tl.constexpr):
    """Where [R, HP] lies in [rows, WIDTH], behind BEFORE units of all rows, and which of it does."""
    n = tl.arange(0, HP)
    at = ptr + rows.to(tl.int64) * BEFORE + row[:, None] * WIDTH + n[None, :]
    return at, ok[:, None] & (n < WIDTH)[None, :]


@triton.jit
def _times(
    total, at, ok, w_ptr, DEPTH: tl.constexpr, COUNT: tl.constexpr, HP: tl.constexpr, BK: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    """total [R, HP], and what DEPTH units hold of each row from `at` on, by weights [COUNT, DEPTH]."""
    n = tl.arange(0, HP)
    for first in range(0, DEPTH, BK):
        k = first + tl.arange(0, BK)
        a = tl.load(at[:, None] + k[None, :], mask=ok[:, None] & (k < DEPTH)[None, :], other=0.0)
        some = (k < DEPTH)[:, None] & (n < COUNT)[None, :]
        w = tl.load(w_ptr + n[None, :] * DEPTH + k[:, None], mask=some, other=0.0).to(dtype)
        total += tl.dot(a, w, input_precision="ieee", out_dtype=dtype)
    return total


@triton.jit
def _times_back(
    at, ok, w_ptr, column, COUNT: tl.constexpr, DEPTH: tl.constexpr, R: tl.constexpr, HP: tl.constexpr,
    BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """[R, HP]: what gradients of COUNT units, from `at` on, bring to HP of their DEPTH inputs, from `column` on."""
    k = column + tl.arange(0, HP)
    total = tl.zeros([R, HP], dtype)
    for first in range(0, COUNT, BK):
        n = first + tl.arange(0, BK)
        g = tl.load(at[:, None] + n[None, :], mask=ok[:, None] & (n < COUNT)[None, :], other=0.0)
        some = (n < COUNT)[:, None] & (k < DEPTH)[None, :]
        w = tl.load(w_ptr + n[:, None] * DEPTH + k[None, :], mask=some, other=0.0).to(dtype)
        total += tl.dot(g, w, input_precision="ieee", out_dtype=dtype)
    return total


@triton.jit
def _first_layer(
    x_ptr, x_row, row, ok, places, to, w_ptr, SEEN: tl.constexpr, COUNT: tl.constexpr, KEEP: tl.constexpr,
    R: tl.constexpr, HP: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """[R, HP]: features of x, those in the columns `places`, by weights [COUNT, SEEN]; KEEP: and stored at `to`."""
    n = tl.arange(0, HP)
    total = tl.zeros([R, HP], dtype)
    for first in range(0, SEEN, BK):
        k = first + tl.arange(0, BK)
        column = tl.load(places + k, mask=k < SEEN, other=0)
        some = ok[:, None] & (k < SEEN)[None, :]
        a = tl.load(x_ptr + row[:, None] * x_row + column[None, :], mask=some, other=0.0).to(dtype)
        if KEEP:
            tl.store(to[:, None] + k[None, :], a, mask=some)
        some = (k < SEEN)[:, None] & (n < COUNT)[None, :]
        w = tl.load(w_ptr + n[None, :] * SEEN + k[:, None], mask=some, other=0.0).to(dtype)
        total += tl.dot(a, w, input_precision="ieee", out_dtype=dtype)
    return total


@triton.jit
def _hidden(
    x_ptr, x_row, net, terms, places, room, z_ptr, rows, row, ok, N: tl.constexpr, WIDTHS: tl.constexpr,
    BEFORE: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, ADD: tl.constexpr, GATED: tl.constexpr,
    KEEP: tl.constexpr, KEEP_Z: tl.constexpr, R: tl.constexpr, HP: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """All layers but the last, whose input is left in `room`.

    KEEP: what enters every layer is. KEEP_Z: in `z_ptr` what each activation was given, where its value is in `room`.
    GATED: not below 0 where blocks are closed by gates; with KEEP what each multiplies is in `z_ptr`, behind so many
    units.
    """
    n = tl.arange(0, HP)
    h = tl.zeros([R, HP], dtype)
    for i in tl.static_range(N - 1):
        at = _inputs(room, rows, row, i, BEFORE[i], WIDTHS[i], KEEP, R, HP)
        if i == 0:
            z = _first_layer(x_ptr, x_row, row, ok, places, at, net[0], WIDTHS[0], WIDTHS[1], KEEP, R, HP, BK, dtype)
        else:
            z = tl.zeros([R, HP], dtype)
            z = _times(z, at, ok, net[2 * i], WIDTHS[i], WIDTHS[i + 1], HP, BK, dtype)
        z += tl.load(net[2 * i + 1] + n, mask=n < WIDTHS[i + 1], other=0.0).to(dtype)[None, :]
        if ADD and i == 0:
            given, some = _units(terms[0], rows, row, ok, 0, WIDTHS[1], HP)
            z += tl.load(given, mask=some, other=0.0).to(dtype)
        if GATED >= 0 and i % 2 == 0 and i > 0:
            if KEEP:
                to, some = _units(z_ptr, rows, row, ok, GATED + (i // 2 - 1) * WIDTHS[1], WIDTHS[1], HP)
                tl.store(to, z, mask=some)
            gate, some = _units(terms[i // 2 - 1 + ADD], rows, row, ok, 0, WIDTHS[1], HP)
            z = z * tl.load(gate, mask=some, other=0.0).to(dtype)
        if RESIDUAL and i % 2 == 0:
            z += h
            h = z
        if KEEP_Z and not (RESIDUAL and i == N - 2):
            to, some = _units(z_ptr, rows, row, ok, BEFORE[i + 1], WIDTHS[i + 1], HP)
            tl.store(to, z, mask=some)
        if not (RESIDUAL and i == N - 2):
            z = activated(z, ACTIVATION)
        to = _inputs(room, rows, row, i + 1, BEFORE[i + 1], WIDTHS[i + 1], KEEP, R, HP)
        tl.store(to[:, None] + n[None, :], z, mask=ok[:, None] & (n < WIDTHS[i + 1])[None, :])
        tl.debug_barrier()


@triton.jit
def _params(
    at, ok, w_ptr, b_ptr, to_ptr, first, DEPTH: tl.constexpr, MAPPED: tl.constexpr, P: tl.constexpr, PP: tl.constexpr,
    F: tl.constexpr, NB: tl.constexpr, R: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """The parameters of F mapped features from `first` on, [P, F, R], by the last layer; NB numbers of a row at a time,
    of which a feature has PP."""
    r = tl.arange(0, R)
    for c in range(0, F * PP, NB):
        n = c + tl.arange(0, NB)
        param = n % PP
        feature = n // PP
        some = (param < P) & (first + feature < MAPPED)
        unit = (first + feature) * P + param
        total = tl.zeros([R, NB], dtype)
        for k0 in range(0, DEPTH, BK):
            k = k0 + tl.arange(0, BK)
            a = tl.load(at[:, None] + k[None, :], mask=ok[:, None] & (k < DEPTH)[None, :], other=0.0)
            with_k = (k < DEPTH)[:, None] & some[None, :]
            w = tl.load(w_ptr + unit[None, :] * DEPTH + k[:, None], mask=with_k, other=0.0).to(dtype)
            total += tl.dot(a, w, input_precision="ieee", out_dtype=dtype)
        total += tl.load(b_ptr + unit, mask=some, other=0.0).to(dtype)[None, :]
        to = to_ptr + (param * (F * R) + feature * R)[None, :] + r[:, None]
        tl.store(to, total, mask=(param < P)[None, :])
    tl.debug_barrier()


@triton.jit
def _copy(from_ptr, from_row, to_ptr, to_row, row, ok, places, COUNT: tl.constexpr, HAS: tl.constexpr):
    """The numbers in the columns `places`, 0 where there are none to copy."""
    for first in range(0, COUNT, 32):
        k = first + tl.arange(0, 32)
        column = tl.load(places + k, mask=k < COUNT, other=0)
        some = ok[:, None] & (k < COUNT)[None, :]
        v = tl.zeros(some.shape, to_ptr.dtype.element_ty)
        if HAS:
            v = tl.load(from_ptr + row[:, None] * from_row + column[None, :], mask=some, other=0.0).to(v.dtype)
        tl.store(to_ptr + row[:, None] * to_row + column[None, :], v, mask=some)


@triton.jit(do_not_specialize=["rows", "begin", "x_row"])
def layer_fwd(
    x_ptr, net, terms, places_ptr, room_ptr, y_ptr, ladj_ptr, rows, begin, x_row, D, bins,
    N: tl.constexpr, WIDTHS: tl.constexpr, BEFORE: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
    ADD: tl.constexpr, GATED: tl.constexpr, MAPPED: tl.constexpr, REST: tl.constexpr, P: tl.constexpr,
    PP: tl.constexpr, F: tl.constexpr, NB: tl.constexpr, R: tl.constexpr, HP: tl.constexpr, BK: tl.constexpr,
    dtype: tl.constexpr, SPLINE: tl.constexpr, INVERSE: tl.constexpr, SCALE: tl.constexpr,
    MIN: tl.constexpr = 0.0, CLAMP: tl.constexpr = 0.0, LOW: tl.constexpr = 0.0, HIGH: tl.constexpr = 0.0,
    SHIFT_FIRST: tl.constexpr = False,
    K: tl.constexpr = 0, TAILS: tl.constexpr = "", LEFT: tl.constexpr = 0.0, FREE_X: tl.constexpr = 0.0,
    LEAST_X: tl.constexpr = 0.0, BOTTOM: tl.constexpr = 0.0, FREE_Y: tl.constexpr = 0.0, LEAST_Y: tl.constexpr = 0.0,
    RIGHT: tl.constexpr = 0.0, TOP: tl.constexpr = 0.0, MIN_SLOPE: tl.constexpr = 0.0, CLIP: tl.constexpr = 0.0,
    EDGE: tl.constexpr = 0.0,
):  # fmt: skip
    """y [rows, D] and ladj [rows] of x. net: weight and bias of each layer. terms: what is added to the first, gates.
    places: the columns that are seen, those that are mapped, the rest of those that are not."""
    E: tl.constexpr = R * F
    own = room_ptr + tl.program_id(0).to(tl.int64) * (2 * R * HP + P * E)
    params = own + 2 * R * HP
    seen: tl.constexpr = WIDTHS[0]
    depth: tl.constexpr = WIDTHS[N - 1]
    tile = tl.program_id(0) + begin
    row = (tl.zeros([R], tl.int64) + tile) * R + tl.arange(0, R)
    ok = row < rows
    _copy(x_ptr, x_row, y_ptr, D, row, ok, places_ptr + seen + MAPPED, REST, True)
    _hidden(
        x_ptr, x_row, net, terms, places_ptr, own, own, rows, row, ok, N, WIDTHS, BEFORE, RESIDUAL, ACTIVATION, ADD,
        GATED, False, False, R, HP, BK, dtype,
    )  # fmt: skip
    last = _inputs(own, rows, row, N - 1, 0, depth, False, R, HP)
    e = tl.arange(0, E)
    element_row = (tl.zeros([E], tl.int64) + tile) * R + e % R
    sums = tl.zeros([R], tl.float64)  # terms of both signs
    for first in range(0, MAPPED, F):
        _params(
            last, ok, net[2 * N - 2], net[2 * N - 1], params, first, depth, MAPPED, P, PP, F, NB, R, BK, dtype
        )  # fmt: skip
        feature = first + e // R
        some = (element_row < rows) & (feature < MAPPED)
        column = tl.load(places_ptr + seen + feature, mask=feature < MAPPED, other=0)
        v = tl.load(x_ptr + element_row * x_row + column, mask=some, other=0.0).to(dtype)
        at = params + e
        if SPLINE:
            y, term = mapped(
                v, at, some, E, bins, K, TAILS, LEFT, FREE_X, LEAST_X, BOTTOM, FREE_Y, LEAST_Y, RIGHT, TOP,
                MIN_SLOPE, SCALE, CLIP, EDGE, INVERSE,
            )  # fmt: skip
        elif SCALE == "additive":
            shift = tl.load(at)
            y = v - shift if INVERSE else v + shift
            term = tl.zeros_like(y)
        else:
            logit = tl.load(at + E if SHIFT_FIRST else at)
            shift = tl.load(at if SHIFT_FIRST else at + E)
            factor, term, _slope, _of_factor = scale_at(logit, SCALE, MIN, CLAMP, LOW, HIGH, INVERSE)
            y = (v - shift) * factor if INVERSE else v * factor + shift
            term = -term if INVERSE else term
        tl.store(y_ptr + element_row * D + column, y.to(y_ptr.dtype.element_ty), mask=some)
        sums += tl.sum(tl.reshape(tl.where(some, term, 0.0).to(tl.float64), [F, R]), 0)
        tl.debug_barrier()  # the parameters have been read
    tl.store(ladj_ptr + row, sums.to(dtype), mask=ok)


@triton.jit
def _slope_of(kept_ptr, rows, row, ok, BEFORE: tl.constexpr, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr,
              HP: tl.constexpr):  # fmt: skip
    """[R, HP]: the slopes of the activations that made what enters a layer."""
    at, some = _units(kept_ptr, rows, row, ok, BEFORE, WIDTH, HP)
    kept = tl.load(at, mask=some, other=0.0)
    slope = tl.zeros_like(kept) + 1.0
    if ACTIVATION != "identity":
        slope = activation_slope(kept, ACTIVATION)
    return slope


@triton.jit
def _leave(g, to_ptr, rows, row, ok, BEFORE: tl.constexpr, WIDTH: tl.constexpr, HP: tl.constexpr):
    """Stores the gradients of a layer's units, behind those of BEFORE others; and where each row's begin."""
    to, some = _units(to_ptr, rows, row, ok, BEFORE, WIDTH, HP)
    tl.store(to, g, mask=some)
    tl.debug_barrier()
    return to_ptr + rows.to(tl.int64) * BEFORE + row * WIDTH


@triton.jit(do_not_specialize=["rows", "x_row"])
def layer_bwd(
    x_ptr, net, terms, places_ptr, room_ptr, grad_y_ptr, grad_ladj_ptr, grad_x_ptr, kept_ptr, z_ptr, left_ptr, rows,
    x_row, D, bins,
    N: tl.constexpr, WIDTHS: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr, ADD: tl.constexpr, GATED: tl.constexpr, KEEP_Z: tl.constexpr, HAS_Y: tl.constexpr,
    HAS_LADJ: tl.constexpr, NEED_X: tl.constexpr, MAPPED: tl.constexpr, REST: tl.constexpr, P: tl.constexpr,
    PP: tl.constexpr, F: tl.constexpr, NB: tl.constexpr, R: tl.constexpr, HP: tl.constexpr, BK: tl.constexpr,
    dtype: tl.constexpr, SPLINE: tl.constexpr, INVERSE: tl.constexpr, SCALE: tl.constexpr,
    MIN: tl.constexpr = 0.0, CLAMP: tl.constexpr = 0.0, LOW: tl.constexpr = 0.0, HIGH: tl.constexpr = 0.0,
    SHIFT_FIRST: tl.constexpr = False,
    K: tl.constexpr = 0, TAILS: tl.constexpr = "", LEFT: tl.constexpr = 0.0, FREE_X: tl.constexpr = 0.0,
    LEAST_X: tl.constexpr = 0.0, BOTTOM: tl.constexpr = 0.0, FREE_Y: tl.constexpr = 0.0, LEAST_Y: tl.constexpr = 0.0,
    RIGHT: tl.constexpr = 0.0, TOP: tl.constexpr = 0.0, MIN_SLOPE: tl.constexpr = 0.0, CLIP: tl.constexpr = 0.0,
    EDGE: tl.constexpr = 0.0,
):  # fmt: skip
    """The gradient of x [rows, D], dense, and what the gradients of weights are products of: in `kept` what enters each
    layer, in `left` the gradients of what it returns, [rows, units] of one layer behind the other's.

    The net runs forward once more. BEFORE and AFTER: how many units enter, and leave, the layers before each.
    """
    E: tl.constexpr = R * F
    params = room_ptr + tl.program_id(0).to(tl.int64) * (P * E)
    seen: tl.constexpr = WIDTHS[0]
    depth: tl.constexpr = WIDTHS[N - 1]
    outputs: tl.constexpr = MAPPED * P
    tile = tl.program_id(0)
    row = (tl.zeros([R], tl.int64) + tile) * R + tl.arange(0, R)
    ok = row < rows
    if NEED_X:
        _copy(grad_y_ptr, D, grad_x_ptr, D, row, ok, places_ptr + seen + MAPPED, REST, HAS_Y)
    _hidden(
        x_ptr, x_row, net, terms, places_ptr, kept_ptr, z_ptr, rows, row, ok, N, WIDTHS, BEFORE, RESIDUAL,
        ACTIVATION, ADD, GATED, True, KEEP_Z, R, HP, BK, dtype,
    )  # fmt: skip
    last = _inputs(kept_ptr, rows, row, N - 1, BEFORE[N - 1], depth, True, R, HP)
    left = left_ptr + rows.to(tl.int64) * AFTER[N - 1]
    e = tl.arange(0, E)
    element_row = (tl.zeros([E], tl.int64) + tile) * R + e % R
    for first in range(0, MAPPED, F):
        _params(
            last, ok, net[2 * N - 2], net[2 * N - 1], params, first, depth, MAPPED, P, PP, F, NB, R, BK, dtype
        )  # fmt: skip
        feature = first + e // R
        some = (element_row < rows) & (feature < MAPPED)
        column = tl.load(places_ptr + seen + feature, mask=feature < MAPPED, other=0)
        v = tl.load(x_ptr + element_row * x_row + column, mask=some, other=0.0).to(dtype)
        given = tl.zeros([E], dtype)
        if HAS_Y:
            given = tl.load(grad_y_ptr + element_row * D + column, mask=some, other=0.0).to(dtype)
        gl = tl.zeros([E], dtype)
        if HAS_LADJ:
            gl = tl.load(grad_ladj_ptr + element_row, mask=some, other=0.0).to(dtype)
        at = params + e
        to_params = left + element_row * outputs + feature * P
        to_x = grad_x_ptr + element_row * D + column
        if SPLINE:
            k, _x0, w, _y0, h, u0, u1, bw, mw, rw, top_w, bh, mh, rh, top_h, d0, d1, theta, inside = in_bin(
                v, at, some, E, bins, K, TAILS, LEFT, FREE_X, LEAST_X, BOTTOM, FREE_Y, LEAST_Y, RIGHT, TOP,
                MIN_SLOPE, SCALE, CLIP, EDGE, INVERSE,
            )  # fmt: skip
            in_bin_bwd(
                k, w, h, u0, u1, bw, mw, rw, top_w, bh, mh, rh, top_h, d0, d1, theta, inside, at, to_params, to_x,
                given, gl, some, E, 1, bins, K, TAILS, FREE_X, FREE_Y, SCALE, CLIP, INVERSE, NEED_X, True,
            )  # fmt: skip
        elif SCALE == "additive":
            tl.store(to_params, -given if INVERSE else given, mask=some)
            if NEED_X:
                tl.store(to_x, given.to(grad_x_ptr.dtype.element_ty), mask=some)
        else:
            at_shift: tl.constexpr = 0 if SHIFT_FIRST else 1
            logit = tl.load(at + (1 - at_shift) * E)
            moved = v
            if INVERSE:
                moved = v - tl.load(at + at_shift * E)
            factor, _log_s, slope, of_factor = scale_at(logit, SCALE, MIN, CLAMP, LOW, HIGH, INVERSE)
            g_logit = logit_grad(given, gl, moved, factor, slope, of_factor, INVERSE)
            g_x = tl.where(given == 0.0, given, given * factor)
            tl.store(to_params + (1 - at_shift), g_logit, mask=some)
            tl.store(to_params + at_shift, -g_x if INVERSE else given, mask=some)
            if NEED_X:
                tl.store(to_x, g_x.to(grad_x_ptr.dtype.element_ty), mask=some)
        tl.debug_barrier()  # the parameters have been read
    at = left + row * outputs
    g = _times_back(at, ok, net[2 * N - 2], 0, outputs, depth, R, HP, BK, dtype)
    of_slopes = z_ptr if KEEP_Z else kept_ptr
    in_block = g
    for i in tl.static_range(N - 2, -1, -1):
        if RESIDUAL and i % 2 == 0:  # g is the gradient of the stream that leaves the layer
            of_units = g
            if GATED >= 0 and i > 0:
                gate, some = _units(terms[i // 2 - 1 + ADD], rows, row, ok, 0, WIDTHS[1], HP)
                to, some = _units(z_ptr, rows, row, ok, GATED + (i // 2 - 1) * WIDTHS[1], WIDTHS[1], HP)
                tl.store(to, g * tl.load(to, mask=some, other=0.0), mask=some)
                of_units = g * tl.load(gate, mask=some, other=0.0).to(dtype)
        elif RESIDUAL:
            of_units = in_block
        else:
            of_units = g * _slope_of(of_slopes, rows, row, ok, BEFORE[i + 1], WIDTHS[i + 1], ACTIVATION, HP)
        at = _leave(of_units, left_ptr, rows, row, ok, AFTER[i], WIDTHS[i + 1], HP)
        if i > 0:
            back = _times_back(at, ok, net[2 * i], 0, WIDTHS[i + 1], WIDTHS[i], R, HP, BK, dtype)
            if RESIDUAL:
                back = back * _slope_of(of_slopes, rows, row, ok, BEFORE[i], WIDTHS[i], ACTIVATION, HP)
            if RESIDUAL and i % 2 == 0:
                in_block = back
            elif RESIDUAL:
                g += back
            else:
                g = back
    if NEED_X:
        at = left_ptr + row * WIDTHS[1]
        for first in range(0, seen, HP):
            total = _times_back(at, ok, net[0], first, WIDTHS[1], seen, R, HP, BK, dtype)
            k = first + tl.arange(0, HP)
            column = tl.load(places_ptr + k, mask=k < seen, other=0)
            to = grad_x_ptr + row[:, None] * D + column[None, :]
            some = ok[:, None] & (k < seen)[None, :]
            total += tl.load(to, mask=some, other=0.0).to(dtype)
            tl.debug_barrier()
            tl.store(to, total.to(grad_x_ptr.dtype.element_ty), mask=some)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["rows"])
def layer_weights(
    left_ptr, kept_ptr, tiles_ptr, out_ptr, rows, size,
    SPLITS: tl.constexpr, COLUMNS: tl.constexpr, B: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """[SPLITS, size]: gradients of all weights and biases, one layer behind the other; a split has its rows, BK at a
    time. tiles: of each tile of B x B weights its layer's units before, inputs before, how many of both, its own first
    unit and input, and where its layer's weight and bias begin."""
    tile = tiles_ptr + tl.program_id(0) // SPLITS * COLUMNS
    split = tl.program_id(0) % SPLITS
    n_out = tl.load(tile + 2)
    n_in = tl.load(tile + 3)
    first_in = tl.load(tile + 5)
    n = tl.load(tile + 4) + tl.arange(0, B)
    k = first_in + tl.arange(0, B)
    left = left_ptr + rows.to(tl.int64) * tl.load(tile)
    kept = kept_ptr + rows.to(tl.int64) * tl.load(tile + 1)
    total = tl.zeros([B, B], dtype)
    of_bias = tl.zeros([B], dtype)
    for first in range(split * BK, rows, SPLITS * BK):
        m = first + tl.arange(0, BK).to(tl.int64)
        ok = (n < n_out)[:, None] & (m < rows)[None, :]
        g = tl.load(left + m[None, :] * n_out + n[:, None], mask=ok, other=0.0)
        ok = (m < rows)[:, None] & (k < n_in)[None, :]
        a = tl.load(kept + m[:, None] * n_in + k[None, :], mask=ok, other=0.0)
        total += tl.dot(g, a, input_precision="ieee", out_dtype=dtype)
        of_bias += tl.sum(g, 1)
    out = out_ptr + split.to(tl.int64) * size
    to = out + tl.load(tile + 6) + n[:, None] * n_in + k[None, :]
    tl.store(to, total.to(out_ptr.dtype.element_ty), mask=(n < n_out)[:, None] & (k < n_in)[None, :])
    to = out + tl.load(tile + 7) + n
    tl.store(to, of_bias.to(out_ptr.dtype.element_ty), mask=n < tl.where(first_in == 0, n_out, 0))


@triton.jit
def layer_sums(parts_ptr, out_ptr, size, splits, B: tl.constexpr):
    """[size]: the sums over splits [splits, size], in one order."""
    at = tl.program_id(0) * B + tl.arange(0, B)
    total = tl.zeros([B], tl.float64)
    for split in range(splits):
        total += tl.load(parts_ptr + split * size.to(tl.int64) + at, mask=at < size, other=0.0).to(tl.float64)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=at < size)
