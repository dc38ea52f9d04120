"""The sweep of the autoregressive inverse in Triton, and its way back: all steps in one launch each.

Registers cannot be indexed at run time, so what a step needs of the steps before waits in `room`, memory of the
program's own that stays in the GPU's cache: [unit][row], R rows at a time. A barrier after every step lets all threads
of the program see what each has written.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flowkernels.ops.affine.triton_kernels import logit_grad, scale_at
from flowkernels.ops.net.triton_kernels import activated, activation_slope
from flowkernels.ops.rqs.triton_kernels import in_bin, in_bin_bwd, mapped


@triton.jit
def _product(
    w_ptr, w_row, a_ptr, count, depth, R: tl.constexpr, U: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr
):
    """[U, R]: `count` rows of weights by what `depth` units hold of R rows."""
    u = tl.arange(0, U)
    r = tl.arange(0, R)
    total = tl.zeros([U, R], dtype)
    for first in range(0, depth, BK):
        k = first + tl.arange(0, BK)
        ok = (u < count)[:, None] & (k < depth)[None, :]
        w = tl.load(w_ptr + u[:, None] * w_row + k[None, :], mask=ok, other=0.0)
        a = tl.load(a_ptr + k[:, None] * R + r[None, :], mask=(k < depth)[:, None], other=0.0)
        total += tl.dot(w, a, input_precision="ieee", out_dtype=dtype)
    return total


@triton.jit(do_not_specialize=["rows", "z_row", "add_row"])
def sweep(
    z_ptr, packed_ptr, adds_ptr, steps_ptr, room_ptr, x_ptr, ladj_ptr, rows, n_steps, room, params, z_row, x_row,
    add_row, bins,
    ADDS: tl.constexpr, ACTIVATION: tl.constexpr, SPLINE: tl.constexpr, INVERSE: tl.constexpr, SCALE: tl.constexpr,
    R: tl.constexpr, U: tl.constexpr, BK: tl.constexpr, COLUMNS: tl.constexpr, dtype: tl.constexpr,
    MIN: tl.constexpr = 0.0, CLAMP: tl.constexpr = 0.0, LOW: tl.constexpr = 0.0, HIGH: tl.constexpr = 0.0,
    SHIFT_FIRST: tl.constexpr = False,
    K: tl.constexpr = 0, TAILS: tl.constexpr = "", LEFT: tl.constexpr = 0.0, FREE_X: tl.constexpr = 0.0,
    LEAST_X: tl.constexpr = 0.0, BOTTOM: tl.constexpr = 0.0, FREE_Y: tl.constexpr = 0.0, LEAST_Y: tl.constexpr = 0.0,
    RIGHT: tl.constexpr = 0.0, TOP: tl.constexpr = 0.0, MIN_SLOPE: tl.constexpr = 0.0, CLIP: tl.constexpr = 0.0,
    EDGE: tl.constexpr = 0.0, TURN: tl.constexpr = 0.0, MIDDLE: tl.constexpr = 0.0,
):  # fmt: skip
    """x [rows, D] and ladj [rows] from z, the weights in order of the degrees, and the steps of `triton.schedule`.

    `room`: units that a program keeps, with the parameters of one feature from `params` on. What a spline returns is
    turned by half of `TURN`, the length of a circle, if that is not 0.
    """
    own = room_ptr + tl.program_id(0).to(tl.int64) * room * R
    r = tl.arange(0, R)
    u = tl.arange(0, U)
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        row = (tl.zeros([R], tl.int64) + tile) * R + r
        ok = row < rows
        total = tl.zeros([R], tl.float64)  # terms of both signs
        for i in range(n_steps):
            step = steps_ptr + i * COLUMNS
            count = tl.load(step)
            to = tl.load(step + 1)
            if count == 0:  # the feature in this column of z and x, which is unit `to` of what enters the first layer
                column = tl.load(step + 2)
                v = tl.load(z_ptr + row * z_row + column, mask=ok, other=0.0)
                at = own + params * R + r
                if SPLINE:
                    end = K if K <= 8 else bins
                    x, term = mapped(
                        v, at, r < R, R, end, K, TAILS, LEFT, FREE_X, LEAST_X, BOTTOM, FREE_Y, LEAST_Y, RIGHT, TOP,
                        MIN_SLOPE, SCALE, CLIP, EDGE, INVERSE,
                    )  # fmt: skip
                    if TURN > 0:  # into [MIDDLE - TURN / 2, MIDDLE + TURN / 2), from wherever x is
                        x -= 0.5 * TURN * (2 * tl.floor((x - MIDDLE) * (1 / TURN)) + 1)
                elif SCALE == "additive":
                    shift = tl.load(at)
                    x = v - shift if INVERSE else v + shift
                    term = tl.zeros_like(x)
                else:
                    logit = tl.load(at + R if SHIFT_FIRST else at)
                    shift = tl.load(at if SHIFT_FIRST else at + R)
                    factor, term, _slope, _of_factor = scale_at(logit, SCALE, MIN, CLAMP, LOW, HIGH, INVERSE)
                    x = (v - shift) * factor if INVERSE else v * factor + shift
                    term = -term if INVERSE else term
                tl.store(x_ptr + row * x_row + column, x, mask=ok)
                tl.store(own + to * R + r, x)
                total += term.to(tl.float64)
            else:  # `count` units of a layer
                depth = tl.load(step + 2)
                w_row = tl.load(step + 3)
                weights = packed_ptr + tl.load(step + 4)
                z = _product(weights, w_row, own + tl.load(step + 5) * R, count, depth, R, U, BK, dtype)
                some = (u < count)[:, None]
                z += tl.load(packed_ptr + tl.load(step + 6) + u, mask=u < count, other=0.0)[:, None]
                if ADDS:
                    add = tl.load(step + 7)
                    if add >= 0:
                        at = adds_ptr + row[None, :] * add_row + (add + u)[:, None]
                        z += tl.load(at, mask=some & ok[None, :], other=0.0)
                stream = tl.load(step + 8)
                plain = tl.load(step + 9)
                place = own + u[:, None] * R + r[None, :]
                if stream >= 0:
                    z += tl.load(place + stream * R, mask=some, other=0.0)
                if plain >= 0:
                    tl.store(place + plain * R, z, mask=some)
                if to >= 0:
                    tl.store(place + to * R, activated(z, ACTIVATION), mask=some)
            tl.debug_barrier()
        tl.store(ladj_ptr + row, total.to(dtype), mask=ok)


@triton.jit
def _pass_on(
    g, w_ptr, w_row, to_ptr, count, depth, R: tl.constexpr, U: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr
):
    """Adds what `count` units with gradients g [U, R] bring to those of their first `depth` inputs."""
    u = tl.arange(0, U)
    r = tl.arange(0, R)
    for first in range(0, depth, BK):
        k = first + tl.arange(0, BK)
        ok = (k < depth)[:, None] & (u < count)[None, :]
        w = tl.load(w_ptr + u[None, :] * w_row + k[:, None], mask=ok, other=0.0)
        to = to_ptr + k[:, None] * R + r[None, :]
        total = tl.load(to, mask=(k < depth)[:, None], other=0.0)
        total += tl.dot(w, g, input_precision="ieee", out_dtype=dtype)
        tl.store(to, total, mask=(k < depth)[:, None])


@triton.jit(do_not_specialize=["rows", "z_row"])
def sweep_back(
    z_ptr, grad_x_ptr, grad_ladj_ptr, grad_z_ptr, packed_ptr, steps_ptr, places_ptr, room_ptr, values_ptr, left_ptr,
    rows, n_steps, room, params, z_row, x_row, bins,
    HAS_X: tl.constexpr, HAS_LADJ: tl.constexpr, NEED_Z: tl.constexpr, LEAVE: tl.constexpr, ACTIVATION: tl.constexpr,
    SPLINE: tl.constexpr, INVERSE: tl.constexpr, SCALE: tl.constexpr, R: tl.constexpr, U: tl.constexpr,
    BK: tl.constexpr, COLUMNS: tl.constexpr, dtype: tl.constexpr,
    MIN: tl.constexpr = 0.0, CLAMP: tl.constexpr = 0.0, LOW: tl.constexpr = 0.0, HIGH: tl.constexpr = 0.0,
    SHIFT_FIRST: tl.constexpr = False,
    K: tl.constexpr = 0, TAILS: tl.constexpr = "", LEFT: tl.constexpr = 0.0, FREE_X: tl.constexpr = 0.0,
    LEAST_X: tl.constexpr = 0.0, BOTTOM: tl.constexpr = 0.0, FREE_Y: tl.constexpr = 0.0, LEAST_Y: tl.constexpr = 0.0,
    RIGHT: tl.constexpr = 0.0, TOP: tl.constexpr = 0.0, MIN_SLOPE: tl.constexpr = 0.0, CLIP: tl.constexpr = 0.0,
    EDGE: tl.constexpr = 0.0,
):  # fmt: skip
    """The steps of `sweep` from the last to the first, each turned round: where one took a unit from its inputs, the
    unit's gradient is complete, as all that saw it came later, and goes on to those inputs.

    `room` holds, where forward had a unit, what has come to it so far. `values` [units, rows]: what the network
    computes at x, hidden units before their activation, the parameters of the features; their gradients are `left`
    likewise. `places`: where there a unit of the steps is.
    """
    own = room_ptr + tl.program_id(0).to(tl.int64) * room * R
    r = tl.arange(0, R)
    u = tl.arange(0, U)
    apart = rows.to(tl.int64)  # the numbers of a row in `values`
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        row = (tl.zeros([R], tl.int64) + tile) * R + r
        ok = row < rows
        gl = tl.zeros([R], dtype)
        if HAS_LADJ:
            gl = tl.load(grad_ladj_ptr + row, mask=ok, other=0.0)
        for first in range(0, room, U):
            empty = own + (first + u)[:, None] * R + r[None, :]
            tl.store(empty, tl.zeros([U, R], dtype), mask=(first + u < room)[:, None])
        tl.debug_barrier()
        for i in range(n_steps):
            step = steps_ptr + (n_steps - 1 - i) * COLUMNS
            count = tl.load(step)
            to = tl.load(step + 1)
            place = tl.load(step + 10)
            if count == 0:  # a feature, whose x has its gradient now
                column = tl.load(step + 2)
                given = tl.load(own + to * R + r)
                if HAS_X:
                    given += tl.load(grad_x_ptr + row * x_row + column, mask=ok, other=0.0)
                v = tl.load(z_ptr + row * z_row + column, mask=ok, other=0.0)
                theirs = values_ptr + place * apart + row
                to_params = own + params * R + r
                to_z = grad_z_ptr + row * x_row + column
                if SPLINE:
                    end = K if K <= 8 else bins
                    k, _x0, w, _y0, h, u0, u1, bw, mw, rw, top_w, bh, mh, rh, top_h, d0, d1, theta, inside = in_bin(
                        v, theirs, ok, apart, end, K, TAILS, LEFT, FREE_X, LEAST_X, BOTTOM, FREE_Y, LEAST_Y, RIGHT, TOP,
                        MIN_SLOPE, SCALE, CLIP, EDGE, INVERSE,
                    )  # fmt: skip
                    in_bin_bwd(
                        k, w, h, u0, u1, bw, mw, rw, top_w, bh, mh, rh, top_h, d0, d1, theta, inside, theirs, to_params,
                        to_z, given, gl, ok, apart, R, end, K, TAILS, FREE_X, FREE_Y, SCALE, CLIP, INVERSE, NEED_Z,
                        True,
                    )  # fmt: skip
                elif SCALE == "additive":
                    tl.store(to_params, -given)
                    if NEED_Z:
                        tl.store(to_z, given, mask=ok)
                else:
                    at_shift: tl.constexpr = 0 if SHIFT_FIRST else 1
                    logit = tl.load(theirs + (1 - at_shift) * apart, mask=ok, other=0.0)
                    shift = tl.load(theirs + at_shift * apart, mask=ok, other=0.0)
                    factor, _log_s, slope, of_factor = scale_at(logit, SCALE, MIN, CLAMP, LOW, HIGH, INVERSE)
                    g_logit = logit_grad(given, gl, v - shift, factor, slope, of_factor, INVERSE)
                    tl.store(to_params + (1 - at_shift) * R, g_logit)
                    tl.store(to_params + at_shift * R, -(given * factor))
                    if NEED_Z:
                        tl.store(to_z, given * factor, mask=ok)
            else:  # `count` units of a layer
                some = (u < count)[:, None]
                stream = tl.load(step + 9)
                own_place = own + u[:, None] * R + r[None, :]
                unit = tl.load(places_ptr + place + u, mask=u < count, other=0)
                at = unit[:, None] * apart + row[None, :]
                g = tl.zeros([U, R], dtype)
                if to >= 0:
                    g = tl.load(own_place + to * R, mask=some, other=0.0)
                    if ACTIVATION != "identity":
                        z = tl.load(values_ptr + at, mask=some & ok[None, :], other=0.0)
                        if ACTIVATION != "gelu" and ACTIVATION != "silu":
                            z = activated(z, ACTIVATION)
                        g = g * activation_slope(z, ACTIVATION)
                if stream >= 0:  # which passes a block by; or the parameters of a feature, which stay
                    g += tl.load(own_place + stream * R, mask=some, other=0.0)
                    tl.debug_barrier()  # threads that share an element have all read it
                    tl.store(own_place + stream * R, g, mask=some)
                if LEAVE:
                    tl.store(left_ptr + at, g, mask=some & ok[None, :])
                depth = tl.load(step + 2)
                w_row = tl.load(step + 3)
                weights = packed_ptr + tl.load(step + 4)
                _pass_on(g, weights, w_row, own + tl.load(step + 5) * R, count, depth, R, U, BK, dtype)
            tl.debug_barrier()
