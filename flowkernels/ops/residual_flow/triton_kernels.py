"""Residual blocks in Triton: a program has some rows at a time, from its first to its last number.

B rows go through the network together, as few as products of matrices ask for. Of R of them, which may be less, there
are matrices at a time: of J along R C directions, where C are unit vectors or draws of noise.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flowkernels.ops._triton_math import product

from .triton_back import back_through_directions, back_through_net, clear
from .triton_matrix import inverted
from .triton_tile import fill_matrix, matrices_at, pull, push, root, run_net, tile_at, zero_of


@triton.jit
def _draws(ptr, row, draw, rows, draws, D: tl.constexpr, HP: tl.constexpr):
    """Where a row's draw lies in [draws, rows, D], and which of [M, HP] there is."""
    d = tl.arange(0, HP)
    at = ptr + ((draw * rows.to(tl.int64) + row) * D)[:, None] + d[None, :]
    return at, ((draw < draws) & (row < rows))[:, None] & (d < D)[None, :]


@triton.jit
def _series(
    first_row, group, rows, net, table, slope_at, here, weights_ptr, noise_ptr, inner_ptr, n, terms, draws,
    D: tl.constexpr, TP: tl.constexpr, INNER: tl.constexpr, R: tl.constexpr, C: tl.constexpr, B: tl.constexpr,
    HP: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """The mean over the draws of the sum over k of (-1)^(k+1) / k w_k v^T J^k v, [R]; INNER: and that of
    (-1)^k w_(k+1) (J^T)^k v, for backward. Terms behind the last weight that is not 0 are not made."""
    M: tl.constexpr = R * C
    m = tl.arange(0, M)
    row = first_row + group + m // C
    k = tl.arange(0, TP)
    last = tl.max(tl.where(tl.load(weights_ptr + k, mask=k < terms, other=0.0) != 0.0, k + 1, 0), 0)
    total = tl.zeros([R], tl.float64)
    one = tl.full([], 1.0, dtype)
    for first in range(0, draws, C):
        at, some = _draws(noise_ptr, row, first + m % C, rows, draws, D, HP)
        v = tl.load(at, mask=some, other=0.0)
        q = v
        inner = tl.load(weights_ptr) * v
        of_draws = tl.zeros([M], tl.float64)
        sign = one
        for term in range(1, last + 1):
            q = pull(q, group, net, table, slope_at, here, n, M, C, B, HP, BK, dtype)
            of_term = sign * tl.load(weights_ptr + term - 1) / (term * one)
            of_draws += tl.sum(product(q, v).to(tl.float64), 1) * of_term.to(tl.float64)
            if INNER:
                inner -= (sign * tl.load(weights_ptr + term, mask=term < terms, other=0.0)) * q
            sign = -sign
        if INNER:
            at, some = _draws(inner_ptr, row, first + m % C, rows, draws, D, HP)
            tl.store(at, inner, mask=some)
        total += tl.sum(tl.reshape(of_draws, [R, C]), 1)
    return total / draws


@triton.jit(do_not_specialize=["rows", "x_row", "n", "steps", "terms", "draws"])
def residual_fwd(
    x_ptr, net, table, betas_ptr, weights_ptr, noise_ptr, inner_ptr, room_ptr, y_ptr, ladj_ptr, rows, x_row, n, steps,
    least, terms, draws,
    D: tl.constexpr, ACTIVATION: tl.constexpr, PRE: tl.constexpr, HAS_BETAS: tl.constexpr, INVERSE: tl.constexpr,
    EXACT: tl.constexpr, ROUNDING: tl.constexpr, TP: tl.constexpr, INNER: tl.constexpr, R: tl.constexpr,
    T: tl.constexpr, C: tl.constexpr, B: tl.constexpr, HP: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """y [rows, D] and ladj [rows] of x. room: of a program 2 n B HP + 2 R C HP numbers, and R T T of an exact one."""
    MATRIX: tl.constexpr = R * T * T if EXACT else 0
    a_at = room_ptr + tl.program_id(0).to(tl.int64) * (2 * n * B * HP + 2 * R * C * HP + MATRIX)
    slope_at = a_at + n * B * HP
    here = slope_at + n * B * HP
    matrix_at = here + 2 * R * C * HP
    d = tl.arange(0, HP)
    for tile in range(tl.program_id(0), tl.cdiv(rows, B), tl.num_programs(0)):
        first = tl.full([], 0, tl.int64) + tile * B
        row = first + tl.arange(0, B)
        ok = row < rows
        some = ok[:, None] & (d < D)[None, :]
        x = tl.load(x_ptr + row[:, None] * x_row + d[None, :], mask=some, other=0.0)
        if INVERSE:
            x = root(
                x, ok, steps, least, net, table, betas_ptr, a_at, n, ACTIVATION, PRE, HAS_BETAS, ROUNDING, B, HP, BK,
                dtype,
            )  # fmt: skip
        g = run_net(
            x, net, table, betas_ptr, a_at, slope_at, a_at, n, ACTIVATION, PRE, HAS_BETAS, True, False, B, HP, BK,
            dtype,
        )  # fmt: skip
        y = x if INVERSE else x + g
        tl.store(y_ptr + row[:, None] * D + d[None, :], y, mask=some)
        for group in range(0, B, R):
            if EXACT:
                A = fill_matrix(
                    group, zero_of(tile + group, rows + B), net, table, slope_at, here, here, matrix_at, n, False, R, T,
                    C, B, HP, BK, dtype,
                )  # fmt: skip
                _A, log_det = inverted(A, D, R, T)
            else:
                log_det = _series(
                    first, group, rows, net, table, slope_at, here, weights_ptr, noise_ptr, inner_ptr, n, terms,
                    draws, D, TP, INNER, R, C, B, HP, BK, dtype,
                )  # fmt: skip
            own = first + group + tl.arange(0, R)
            log_det = -log_det if INVERSE else log_det
            tl.store(ladj_ptr + own, log_det.to(dtype), mask=own < rows)


@triton.jit
def _solved(
    w, zero, matrix_at, at, D: tl.constexpr, R: tl.constexpr, T: tl.constexpr, B: tl.constexpr, HP: tl.constexpr
):
    """A^-1 w of the first R rows of w [B, HP], where A^-1 is in room; 0 of the others."""
    tl.store(tile_at(at, B, HP), w)
    tl.debug_barrier()
    i = tl.arange(0, T)
    place = at + (tl.arange(0, R) * HP)[:, None] + i[None, :]
    given = tl.load(place, mask=(i < D)[None, :], other=0.0)
    found = tl.sum(product(tl.load(matrices_at(matrix_at, zero, R, T)), given[:, None, :]), 2)
    tl.debug_barrier()
    tl.store(place, found, mask=(i < D)[None, :])
    tl.debug_barrier()
    some = (tl.arange(0, B) < R)[:, None] & (tl.arange(0, HP) < D)[None, :]
    out = tl.load(tile_at(at, B, HP), mask=some, other=0.0)
    tl.debug_barrier()
    return out


@triton.jit(do_not_specialize=["rows", "x_row", "n", "draws", "n_sums", "of_betas"])
def residual_bwd(
    x_ptr, net, table, betas_ptr, noise_ptr, inner_ptr, room_ptr, grad_y_ptr, grad_ladj_ptr, grad_x_ptr, sums_ptr,
    rows, x_row, n, draws, n_sums, of_betas,
    D: tl.constexpr, ACTIVATION: tl.constexpr, PRE: tl.constexpr, HAS_BETAS: tl.constexpr, INVERSE: tl.constexpr,
    EXACT: tl.constexpr, HAS_Y: tl.constexpr, HAS_LADJ: tl.constexpr, WEIGHTS: tl.constexpr, R: tl.constexpr,
    T: tl.constexpr, C: tl.constexpr, CS: tl.constexpr, B: tl.constexpr, HP: tl.constexpr, BK: tl.constexpr,
    SIDE: tl.constexpr, LANES: tl.constexpr, MOST: tl.constexpr, ROOM: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """The gradient of x [rows, D], and a program's sums of those of weights, biases and betas, one behind the other.

    x is where g is taken: of an inverse what it returned. R rows at a time, of B that the network takes. room: of a
    program (4 B + 2 LANES) HP numbers for each layer, and ROOM."""
    MATRIX: tl.constexpr = INVERSE or (EXACT and HAS_LADJ)
    M: tl.constexpr = R * C
    MS: tl.constexpr = R * CS
    a_at = room_ptr + tl.program_id(0).to(tl.int64) * ((4 * B + 2 * LANES) * n * HP + ROOM)
    slope_at = a_at + n * B * HP
    z_at = slope_at + n * B * HP
    bend_at = z_at + n * B * HP
    tangent_at = bend_at + n * B * HP
    entered_at = tangent_at + n * LANES * HP
    left_at = entered_at + n * LANES * HP
    rows_at = left_at + 2 * MOST * HP
    matrix_at = rows_at + 2 * B * HP
    sums_at = sums_ptr + tl.program_id(0).to(tl.int64) * n_sums
    b = tl.arange(0, B)
    d = tl.arange(0, HP)
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        zero = zero_of(tile, rows)
        first = tl.full([], 0, tl.int64) + tile * R
        row = first + b
        some = ((b < R) & (row < rows))[:, None] & (d < D)[None, :]
        x = tl.load(x_ptr + row[:, None] * x_row + d[None, :], mask=some, other=0.0)
        run_net(
            x, net, table, betas_ptr, a_at, slope_at, z_at, n, ACTIVATION, PRE, HAS_BETAS, True, True, B, HP, BK, dtype
        )  # fmt: skip
        if MATRIX:
            A = fill_matrix(
                0, zero, net, table, slope_at, entered_at, tangent_at, matrix_at, n, EXACT and HAS_LADJ, R, T, C, B, HP,
                BK, dtype,
            )  # fmt: skip
            A, _log_det = inverted(A, D, R, T)
            tl.debug_barrier()  # what it is the inverse of has been read
            tl.store(matrices_at(matrix_at, zero, R, T), A)
            tl.debug_barrier()
        if HAS_LADJ:
            clear(bend_at, n, B, HP, dtype)
            if EXACT:
                m = tl.arange(0, M)
                own = first + m // C
                times = tl.load(grad_ladj_ptr + own, mask=own < rows, other=0.0)
                times = -times if INVERSE else times
                for lane in range(0, T, C):
                    at = matrix_at + (m // C * T * T + lane + m % C)[:, None] + d[None, :] * T
                    there = (lane + m % C < D)[:, None] & (d < D)[None, :]
                    g = tl.load(at, mask=there, other=0.0) * times[:, None]
                    back_through_directions(
                        g, lane, net, table, slope_at, entered_at, tangent_at, bend_at, left_at, sums_at, n, WEIGHTS,
                        R * T, M, C, B, HP, BK, SIDE, dtype,
                    )  # fmt: skip
            else:
                m = tl.arange(0, MS)
                own = first + m // CS
                times = tl.load(grad_ladj_ptr + own, mask=own < rows, other=0.0) / draws
                times = -times if INVERSE else times
                for lane in range(0, draws, CS):
                    at, there = _draws(noise_ptr, own, lane + m % CS, rows, draws, D, HP)
                    v = tl.load(at, mask=there, other=0.0)
                    push(
                        v, 0, 0, net, table, slope_at, entered_at, tangent_at, n, True, MS, MS, CS, B, HP, BK, dtype
                    )  # fmt: skip
                    at, there = _draws(inner_ptr, own, lane + m % CS, rows, draws, D, HP)
                    g = tl.load(at, mask=there, other=0.0) * times[:, None]
                    back_through_directions(
                        g, 0, net, table, slope_at, entered_at, tangent_at, bend_at, left_at, sums_at, n, WEIGHTS, MS,
                        MS, CS, B, HP, BK, SIDE, dtype,
                    )  # fmt: skip
        of_y = tl.zeros([B, HP], dtype)
        if HAS_Y:
            of_y = tl.load(grad_y_ptr + row[:, None] * D + d[None, :], mask=some, other=0.0)
        # Of an inverse first that of x at the root; then that of what it is the root of, by the implicit function
        # theorem, and of weights that moved it.
        FIRST: tl.constexpr = 0 if INVERSE and HAS_LADJ else 1
        for turn in range(FIRST, 2):
            g = of_y
            if INVERSE:
                g = tl.zeros([B, HP], dtype)
                if turn == 1:
                    of_y = _solved(of_y, zero, matrix_at, rows_at, D, R, T, B, HP)
                    g = -of_y
            of_x = back_through_net(
                g, (turn == 0 if INVERSE else HAS_LADJ), net, table, betas_ptr, a_at, z_at, bend_at, rows_at, sums_at,
                of_betas, n, ACTIVATION, PRE, HAS_BETAS, WEIGHTS, B, HP, BK, SIDE, dtype,
            )  # fmt: skip
            of_y = tl.where(turn == 0, of_y + of_x, of_y) if INVERSE else of_y + of_x
        tl.store(grad_x_ptr + row[:, None] * D + d[None, :], of_y, mask=some)
