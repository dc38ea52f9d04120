"""Monotone networks in Triton: a program has R elements of one feature, and takes the points at which each of them
wants the network one after another.

Registers cannot be indexed at run time, so what the layers make waits in `room`, memory of the program's own that stays
in the GPU's cache: [unit][element]. A barrier behind every layer lets all threads of the program see what each has
written. Layers are all HP units wide, those past the last with weights of 0. `packed` holds a set's weights: of x, of
the signal, biases, of the layers between, of the last.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flowkernels.ops._triton_math import exp, product
from flowkernels.ops._triton_root import newton_step
from flowkernels.ops.net.triton_kernels import activated, activation_slope


@triton.jit
def _product(w_ptr, W_ROW: tl.constexpr, W_COLUMN: tl.constexpr, a_ptr, HP: tl.constexpr, U: tl.constexpr,
             R: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr):  # fmt: skip
    """[U, R]: U rows of weights by what HP units hold."""
    u = tl.arange(0, U)
    r = tl.arange(0, R)
    total = tl.zeros([U, R], dtype)
    for first in range(0, HP, BK):
        k = first + tl.arange(0, BK)
        w = tl.load(w_ptr + u[:, None] * W_ROW + k[None, :] * W_COLUMN)
        a = tl.load(a_ptr + k[:, None] * R + r[None, :])
        total += tl.dot(w, a, input_precision="ieee", out_dtype=dtype)
    return total


@triton.jit
def _see(
    signal_ptr, packed, room, row, ok, apart, S, HP: tl.constexpr, SP: tl.constexpr, U: tl.constexpr, R: tl.constexpr,
    BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """The signal's half of the first layer, where `room` begins."""
    u = tl.arange(0, U)
    r = tl.arange(0, R)
    for first in range(0, HP, U):
        total = tl.zeros([U, R], dtype) + tl.load(packed + HP + HP * SP + first + u)[:, None]
        for s0 in range(0, SP, BK):
            s = s0 + tl.arange(0, BK)
            w = tl.load(packed + HP + (first + u)[:, None] * SP + s[None, :])
            some = (s < S)[:, None] & ok[None, :]
            given = tl.load(signal_ptr + row[None, :] * apart + s[:, None], mask=some, other=0.0)
            total += tl.dot(w, given, input_precision="ieee", out_dtype=dtype)
        tl.store(room + (first + u)[:, None] * R + r[None, :], total)


@triton.jit
def _tail_slope(z, a, ACTIVATION: tl.constexpr):
    """The slope of an activation where its logarithm counts, by what came in: far out 1 - tanh^2 and elu + 1 are 0."""
    if ACTIVATION == "elu":
        slope = exp(tl.where(z > 0.0, 0.0, z))  # keeps a NaN
    elif ACTIVATION == "tanh":
        e = exp(-2.0 * tl.abs(z))
        q = 1.0 / (1.0 + e)
        slope = 4.0 * e * q * q
    elif ACTIVATION == "identity":
        slope = tl.zeros_like(z) + 1.0
    else:
        slope = activation_slope(a, ACTIVATION)
    return slope


@triton.jit
def _put(z, dz, at, ACTIVATION: tl.constexpr, POSITIVE: tl.constexpr, KINDS: tl.constexpr, HP: tl.constexpr,
         R: tl.constexpr):  # fmt: skip
    """What units make of z, and, of a positive network, its slope of dz; what the way back asks of them besides."""
    a = activated(z, ACTIVATION)
    tl.store(at, a)
    if POSITIVE:
        slope = _tail_slope(z, a, ACTIVATION)
        tl.store(at + HP * R, slope * dz)
        if KINDS == 3:
            tl.store(at + 2 * HP * R, slope)
    elif KINDS == 2:
        tl.store(at + HP * R, activation_slope(z, ACTIVATION))


@triton.jit
def _run(
    v, packed, room, N: tl.constexpr, ACTIVATION: tl.constexpr, POSITIVE: tl.constexpr, KINDS: tl.constexpr,
    HP: tl.constexpr, SP: tl.constexpr, U: tl.constexpr, R: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """The net at v [R], and, of a positive network, its slope there. KINDS: rooms of a layer."""
    BIASES: tl.constexpr = HP + HP * SP
    BETWEEN: tl.constexpr = BIASES + (N - 1) * HP
    LAST: tl.constexpr = BETWEEN + (N - 2) * HP * HP
    u = tl.arange(0, U)
    r = tl.arange(0, R)
    tl.debug_barrier()  # what was there has been read
    for first in range(0, HP, U):
        own = room + (first + u)[:, None] * R + r[None, :]
        column = tl.load(packed + first + u)[:, None]
        z = tl.load(own) + column * v[None, :]
        _put(z, column + tl.zeros_like(z), own + HP * R, ACTIVATION, POSITIVE, KINDS, HP, R)
    tl.debug_barrier()
    for k in range(1, N - 1):
        before = room + (HP + (k - 1) * (KINDS * HP)) * R
        for first in range(0, HP, U):
            w = packed + BETWEEN + (k - 1) * (HP * HP) + first * HP
            z = _product(w, HP, 1, before, HP, U, R, BK, dtype)
            z += tl.load(packed + BIASES + k * HP + first + u)[:, None]
            dz = z
            if POSITIVE:
                dz = _product(w, HP, 1, before + HP * R, HP, U, R, BK, dtype)
            own = room + (HP + k * (KINDS * HP) + first + u)[:, None] * R + r[None, :]
            _put(z, dz, own, ACTIVATION, POSITIVE, KINDS, HP, R)
        tl.debug_barrier()
    total = tl.zeros([R], dtype)
    slope = tl.zeros([R], dtype)
    for first in range(0, HP, U):
        own = room + (HP + (N - 2) * (KINDS * HP) + first + u)[:, None] * R + r[None, :]
        w = tl.load(packed + LAST + first + u)[:, None]
        total += tl.sum(product(w, tl.load(own)), 0)
        if POSITIVE:
            slope += tl.sum(product(w, tl.load(own + HP * R)), 0)
    return total + tl.load(packed + LAST + HP), slope


@triton.jit
def _rule(
    start, by, here, nodes, points, packed, room, per_bound, N: tl.constexpr, ACTIVATION: tl.constexpr,
    HP: tl.constexpr, SP: tl.constexpr, U: tl.constexpr, R: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """The sum of g(start + by t) w over the rule's points, whose t and w lie in turn, and log g at `here`."""
    total = tl.zeros([R], dtype)
    log = tl.zeros([R], dtype)
    for i in range(points + 1):
        last = i == points
        t = tl.load(nodes + 2 * i)  # one more is there
        w = tl.load(nodes + 2 * i + 1)
        v = tl.where(last, here, start + by * t)
        u, _slope = _run(v, packed, room, N, ACTIVATION, False, 1, HP, SP, U, R, BK, dtype)
        log = u / (1.0 + tl.abs(u) * per_bound)
        total += tl.where(last, 0.0, exp(log) * w)
    return total, log


@triton.jit(do_not_specialize=["rows", "S", "D"])
def monotone_fwd(
    x_ptr, signal_ptr, packed_ptr, nodes_ptr, room_ptr, y_ptr, terms_ptr, rows, D, S, numbers, sets, points, per_bound,
    bound,
    SHIFT: tl.constexpr, INVERSE: tl.constexpr, POSITIVE: tl.constexpr, FEW: tl.constexpr, ACTIVATION: tl.constexpr,
    N: tl.constexpr, HP: tl.constexpr, SP: tl.constexpr, SIZE: tl.constexpr, U: tl.constexpr, R: tl.constexpr,
    BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """y [rows, D] and the terms of ladj. nodes: of the rule of `points`, behind them, from FEW on, of three."""
    KINDS: tl.constexpr = 2 if POSITIVE else 1
    ROOM: tl.constexpr = HP * (1 + (N - 1) * KINDS) * R
    EPS: tl.constexpr = 2.0**-52 if dtype == tl.float64 else 2.0**-23
    room = room_ptr + tl.program_id(0).to(tl.int64) * ROOM
    r = tl.arange(0, R)
    blocks = tl.cdiv(rows, R)
    for tile in range(tl.program_id(0), blocks * D, tl.num_programs(0)):
        feature = tile // blocks
        packed = packed_ptr + tl.where(sets == 1, 0, feature).to(tl.int64) * SIZE
        row = (tl.zeros([R], tl.int64) + tile % blocks) * R + r
        ok = row < rows
        place = row * D + feature
        _see(signal_ptr + feature * numbers, packed, room, row, ok, D * numbers, S, HP, SP, U, R, BK, dtype)
        v = tl.load(x_ptr + place, mask=ok, other=0.0)
        shift = tl.zeros([R], dtype)
        if SHIFT:
            shift = tl.load(signal_ptr + place * numbers + numbers - 1, mask=ok, other=0.0)
        if INVERSE:
            v -= shift
        low = tl.zeros([R], dtype) - bound
        high = tl.zeros([R], dtype) + bound
        least = tl.zeros([R], dtype) + float("inf")
        at = tl.zeros([R], dtype)
        if POSITIVE and not INVERSE:
            y, slope = _run(v, packed, room, N, ACTIVATION, POSITIVE, KINDS, HP, SP, U, R, BK, dtype)
            log = tl.log(slope)
        elif POSITIVE:
            y = at
            slope = at
            active = ok
            for end in range(2):
                edge = tl.where(end == 0, low, high)
                f, here = _run(edge, packed, room, N, ACTIVATION, POSITIVE, KINDS, HP, SP, U, R, BK, dtype)
                beyond = tl.where(end == 0, v <= f, v >= f)
                inside = tl.where(end == 0, v > f, v < f)
                y = tl.where(beyond, edge, tl.where(inside, y, float("nan")))
                slope = tl.where(beyond, here, slope)
                active = active & inside
            before = high - low
            step = 0
            while (step < 256) & (tl.max(active.to(tl.int32), 0) > 0):
                f, here = _run(at, packed, room, N, ACTIVATION, POSITIVE, KINDS, HP, SP, U, R, BK, dtype)
                off = f - v
                size = tl.abs(off)
                nearer = (size < least) & active
                slope = tl.where(nearer, here, slope)
                y = tl.where((off != off) & active, off, y)
                # What is left are the roundings of f, whose terms are larger than it is.
                settled = (size >= least) & (size <= 16.0 * EPS * (1.0 + tl.abs(v)))
                at, low, high, y, least, before, active = newton_step(
                    off, here, v, at, low, high, y, least, before, active, False
                )
                active = active & (settled == 0)
                step += 1
            log = tl.log(slope + (y - y))
        elif not INVERSE:
            y, log = _rule(at, v, v, nodes_ptr, points, packed, room, per_bound, N, ACTIVATION, HP, SP, U, R, BK, dtype)
            y = y * v
        else:
            low = tl.where(v < 0.0, low, 0.0)
            high = tl.where(v < 0.0, 0.0, high)
            end = tl.where(v < 0.0, low, high)
            f_end, log_end = _rule(
                at, end, end, nodes_ptr, points, packed, room, per_bound, N, ACTIVATION, HP, SP, U, R, BK, dtype
            )  # fmt: skip
            f_end = f_end * end
            beyond = tl.where(v < 0.0, v <= f_end, v >= f_end)
            inside = ok & tl.where(v < 0.0, v > f_end, v < f_end)
            # First by a rule of three points from each place to the next, which costs little and errs a little.
            left = low
            right = high
            # Not `at`, which it becomes in the loop: Triton 3.9 takes what begins as the same value for unchanged.
            last = tl.zeros([R], dtype)
            area = at
            best = at
            before = right - left
            active = inside
            step = 0
            while (step < 24) & (tl.max(active.to(tl.int32), 0) > 0):
                by = at - last
                part, log = _rule(
                    last, by, at, nodes_ptr + FEW, 3, packed, room, per_bound, N, ACTIVATION, HP, SP, U, R, BK, dtype
                )  # fmt: skip
                area += by * part
                last = at
                at, left, right, best, least, before, active = newton_step(
                    area - v, exp(log), v, at, left, right, best, least, before, active, False
                )
                active = active & (tl.abs(before) > 1e-3 * (1.0 + tl.abs(at)))
                step += 1
            # Then by the full one, whose slope is off by what that rule errs.
            least = tl.zeros([R], dtype) + float("inf")
            before = high - low
            active = inside
            y = tl.where(beyond, end, tl.where(inside, at, float("nan")))
            found = tl.where(beyond, log_end, y)
            step = 0
            while (step < 256) & (tl.max(active.to(tl.int32), 0) > 0):
                part, log = _rule(
                    tl.zeros([R], dtype), at, at, nodes_ptr, points, packed, room, per_bound, N, ACTIVATION, HP, SP, U,
                    R, BK, dtype,
                )  # fmt: skip
                off = at * part - v
                size = tl.abs(off)
                found = tl.where((size < least) & active, log, found)
                y = tl.where((off != off) & active, off, y)
                settled = (size >= least) & (size <= 16.0 * EPS * (1.0 + tl.abs(v)))
                at, low, high, y, least, before, active = newton_step(
                    off, exp(log), v, at, low, high, y, least, before, active, False
                )
                active = active & (settled == 0)
                step += 1
            log = found + (y - y)
        if not INVERSE:
            y += shift
        tl.store(y_ptr + place, y, mask=ok)
        tl.store(terms_ptr + place, -log if INVERSE else log, mask=ok)
        tl.debug_barrier()  # before the next signal


# ---- the way back ----


@triton.jit
def _add(ptr, more):
    """Threads that share a number have all read it before one writes."""
    total = tl.load(ptr) + more.to(tl.float64)
    tl.debug_barrier()
    tl.store(ptr, total)


@triton.jit
def _put_back(g, dg, at, ACTIVATION: tl.constexpr, POSITIVE: tl.constexpr, KINDS: tl.constexpr, HP: tl.constexpr,
              R: tl.constexpr):  # fmt: skip
    """From gradients of what units made to those of their sums, in the place of what they made."""
    if POSITIVE:
        slope = tl.load(at + 2 * HP * R)
        a = tl.load(at)
        da = tl.load(at + HP * R)
        z = slope * g
        if ACTIVATION == "elu":
            z += tl.where(a > 0.0, 0.0, da) * dg
        elif ACTIVATION == "tanh":
            z -= 2.0 * a * da * dg
        tl.debug_barrier()
        tl.store(at, z)
        tl.store(at + HP * R, slope * dg)
    else:
        if KINDS == 2:
            z = g * tl.load(at + HP * R)
        elif ACTIVATION == "identity":
            z = g
        else:
            z = g * activation_slope(tl.load(at), ACTIVATION)
        tl.debug_barrier()
        tl.store(at, z)


@triton.jit
def _outer(
    g_ptr, g_row: tl.constexpr, a_ptr, first, HP: tl.constexpr, U: tl.constexpr, R: tl.constexpr, dtype: tl.constexpr
):  # fmt: skip
    """[U, U]: sums over elements of rows of g by rows of a, these from `first` on."""
    u = tl.arange(0, U)
    r = tl.arange(0, R)
    g = tl.load(g_ptr + u[:, None] * R + r[None, :])
    a = tl.load(a_ptr + (first + u)[None, :] * R + r[:, None])
    return tl.dot(g, a, input_precision="ieee", out_dtype=dtype)


@triton.jit
def _back(
    v, g, dg, packed, room, sums, SUMS: tl.constexpr, N: tl.constexpr, ACTIVATION: tl.constexpr,
    POSITIVE: tl.constexpr, KINDS: tl.constexpr, HP: tl.constexpr, SP: tl.constexpr, U: tl.constexpr, R: tl.constexpr,
    BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Behind _run: from the gradients of what it returned to that of v, which it returns, to those of the signal's half
    of the first layer, which add up, and to those of weights, which add to `sums`, laid out as `packed`."""
    BIASES: tl.constexpr = HP + HP * SP
    BETWEEN: tl.constexpr = BIASES + (N - 1) * HP
    LAST: tl.constexpr = BETWEEN + (N - 2) * HP * HP
    SEEN: tl.constexpr = HP * (1 + (N - 1) * KINDS)
    u = tl.arange(0, U)
    r = tl.arange(0, R)
    tl.debug_barrier()
    for first in range(0, HP, U):
        own = room + (HP + (N - 2) * (KINDS * HP) + first + u)[:, None] * R + r[None, :]
        w = tl.load(packed + LAST + first + u)[:, None]
        if SUMS:
            of_weight = tl.sum(product(tl.load(own), g[None, :]), 1)
            if POSITIVE:
                of_weight += tl.sum(product(tl.load(own + HP * R), dg[None, :]), 1)
            _add(sums + LAST + first + u, of_weight)
        _put_back(w * g[None, :], w * dg[None, :], own, ACTIVATION, POSITIVE, KINDS, HP, R)
    if SUMS:
        _add(sums + LAST + HP, tl.sum(g, 0))
    tl.debug_barrier()
    for i in range(N - 2):
        k = N - 2 - i
        own = room + (HP + k * (KINDS * HP)) * R
        before = own - KINDS * HP * R
        weights = BETWEEN + (k - 1) * (HP * HP)
        if SUMS:
            for first in range(0, HP, U):
                for c in range(0, HP, U):
                    total = _outer(own + first * R, R, before, c, HP, U, R, dtype)
                    if POSITIVE:
                        total += _outer(own + (HP + first) * R, R, before + HP * R, c, HP, U, R, dtype)
                    to = sums + weights + (first + u)[:, None] * HP + (c + u)[None, :]
                    tl.store(to, tl.load(to) + total.to(tl.float64))
                z = tl.load(own + (first + u)[:, None] * R + r[None, :])
                _add(sums + BIASES + k * HP + first + u, tl.sum(z, 1))
        tl.debug_barrier()
        for first in range(0, HP, U):
            z = _product(packed + weights + first, 1, HP, own, HP, U, R, BK, dtype)
            dz = z
            if POSITIVE:
                dz = _product(packed + weights + first, 1, HP, own + HP * R, HP, U, R, BK, dtype)
            _put_back(
                z, dz, before + (first + u)[:, None] * R + r[None, :], ACTIVATION, POSITIVE, KINDS, HP, R
            )  # fmt: skip
        tl.debug_barrier()
    g_v = tl.zeros([R], dtype)
    for first in range(0, HP, U):
        own = room + (HP + first + u)[:, None] * R + r[None, :]
        z = tl.load(own)
        g_v += tl.sum(product(z, tl.load(packed + first + u)[:, None]), 0)
        seen = room + (SEEN + first + u)[:, None] * R + r[None, :]
        total = tl.load(seen) + z
        if SUMS:
            of_column = tl.sum(product(z, v[None, :]), 1)
            if POSITIVE:
                of_column += tl.sum(tl.load(own + HP * R), 1)
            _add(sums + first + u, of_column)
        else:
            tl.debug_barrier()
        tl.store(seen, total)
    return g_v


@triton.jit(do_not_specialize=["rows", "S", "D"])
def monotone_bwd(
    x_ptr, signal_ptr, packed_ptr, nodes_ptr, room_ptr, grad_y_ptr, grad_ladj_ptr, grad_x_ptr, grad_signal_ptr,
    sums_ptr, rows, D, S, numbers, sets, slices, points, per_bound,
    HAS_Y: tl.constexpr, HAS_LADJ: tl.constexpr, NEED_X: tl.constexpr, NEED_SIGNAL: tl.constexpr, SUMS: tl.constexpr,
    SHIFT: tl.constexpr, INVERSE: tl.constexpr, POSITIVE: tl.constexpr, ACTIVATION: tl.constexpr, KINDS: tl.constexpr,
    N: tl.constexpr, HP: tl.constexpr, SP: tl.constexpr, SIZE: tl.constexpr, U: tl.constexpr, R: tl.constexpr,
    BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Gradients of x and of the signal, per program sums of those of the weights. x: of an inverse what it found."""
    SEEN: tl.constexpr = HP * (1 + (N - 1) * KINDS)
    BIASES: tl.constexpr = HP + HP * SP
    room = room_ptr + tl.program_id(0).to(tl.int64) * (SEEN + HP) * R
    sums = sums_ptr + tl.program_id(0).to(tl.int64) * SIZE
    r = tl.arange(0, R)
    u = tl.arange(0, U)
    blocks = tl.cdiv(rows, R)
    set = tl.program_id(0) // slices
    packed = packed_ptr + set.to(tl.int64) * SIZE
    tiles = blocks * tl.where(sets == 1, D, 1)
    for tile in range(tl.program_id(0) % slices, tiles, slices):
        feature = set + tile // blocks
        row = (tl.zeros([R], tl.int64) + tile % blocks) * R + r
        ok = row < rows
        place = row * D + feature
        signal = signal_ptr + feature * numbers
        _see(signal, packed, room, row, ok, D * numbers, S, HP, SP, U, R, BK, dtype)
        for first in range(0, HP, U):
            tl.store(room + (SEEN + first + u)[:, None] * R + r[None, :], tl.zeros([U, R], dtype))
        x = tl.load(x_ptr + place, mask=ok, other=0.0)
        g_out = tl.zeros([R], dtype)
        if HAS_Y:
            g_out = tl.load(grad_y_ptr + place, mask=ok, other=0.0)
        g_ladj = tl.zeros([R], dtype)
        if HAS_LADJ:
            g_ladj = tl.load(grad_ladj_ptr + row, mask=ok, other=0.0)
        if INVERSE:
            g_ladj = -g_ladj
        # The first pass is at x; the others are the points of the quadrature. Of an inverse what y gets is known behind
        # what x gets of the slope: a positive network passes x twice.
        passes = points + 1
        if POSITIVE:
            passes = 2 if INVERSE else 1
        g_x = tl.zeros([R], dtype)
        g_y = g_out
        for p in range(passes):
            if POSITIVE:
                v = x
                _u, slope = _run(v, packed, room, N, ACTIVATION, True, KINDS, HP, SP, U, R, BK, dtype)
                g = tl.where(INVERSE & (p == 0), 0.0, g_y)
                dg = tl.where(p == 0, g_ladj / slope, 0.0)
            else:
                before = nodes_ptr + 2 * tl.maximum(p - 1, 0)
                v = tl.where(p == 0, x, x * tl.load(before))
                found, _s = _run(v, packed, room, N, ACTIVATION, False, KINDS, HP, SP, U, R, BK, dtype)
                q = 1.0 / (1.0 + tl.abs(found) * per_bound)
                slope = exp(found * q)
                g = tl.where(p == 0, g_ladj, g_y * x * tl.load(before + 1) * slope) * q * q
                dg = g
            of_x = _back(
                v, g, dg, packed, room, sums, SUMS, N, ACTIVATION, POSITIVE, KINDS, HP, SP, U, R, BK, dtype
            )  # fmt: skip
            if p == 0:
                if INVERSE:
                    g_x = (g_out + of_x) / slope
                    g_y = -g_x
                elif POSITIVE:
                    g_x = of_x
                else:
                    g_x = of_x + g_out * slope
        if NEED_X:
            tl.store(grad_x_ptr + place, g_x, mask=ok)
        tl.debug_barrier()
        seen = room + SEEN * R
        if NEED_SIGNAL:
            to = grad_signal_ptr + place * numbers
            for s in range(0, SP, U):
                g = _product(packed + HP + s, 1, SP, seen, HP, U, R, BK, dtype)
                some = (s + u < S)[:, None] & ok[None, :]
                tl.store(to[None, :] + (s + u)[:, None], g, mask=some)
            if SHIFT:
                tl.store(to + numbers - 1, g_y, mask=ok)
        if SUMS:
            for first in range(0, HP, U):
                g = tl.load(seen + (first + u)[:, None] * R + r[None, :])
                for s in range(0, SP, U):
                    some = (s + u < S)[None, :] & ok[:, None]
                    given = tl.load(signal + row[:, None] * (D * numbers) + (s + u)[None, :], mask=some, other=0.0)
                    total = tl.dot(g, given, input_precision="ieee", out_dtype=dtype)
                    at = sums + HP + (first + u)[:, None] * SP + (s + u)[None, :]
                    tl.store(at, tl.load(at) + total.to(tl.float64))
                _add(sums + BIASES + first + u, tl.sum(g, 1))
        tl.debug_barrier()  # before the next signal
