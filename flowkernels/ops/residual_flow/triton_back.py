"""The way back through a residual block, on the rows of a program, from what `triton_tile.py` has left in room."""

from __future__ import annotations

import triton
import triton.language as tl

from flowkernels.ops._triton_math import product

from .triton_tile import add_product, beta_at, curve, layer_of, slopes_of, tile_at, times_back


@triton.jit
def clear(at, n, B: tl.constexpr, HP: tl.constexpr, dtype: tl.constexpr):
    """The gradients of slopes, [n, B, HP], are 0."""
    for k in range(0, n):
        tl.store(tile_at(at + k * B * HP, B, HP), tl.zeros([B, HP], dtype))
    tl.debug_barrier()


@triton.jit
def back_through_directions(
    g, lane, net, table, slope_at, entered_at, tangent_at, bend_at, left_at, sums_at, n, WEIGHTS: tl.constexpr,
    LANES: tl.constexpr, M: tl.constexpr, C: tl.constexpr, B: tl.constexpr, HP: tl.constexpr, BK: tl.constexpr,
    SIDE: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """From g [M, HP], the gradient of J along directions that `push` has kept, adds to those of weights and, in
    `bend_at`, of slopes."""
    R: tl.constexpr = M // C
    for i in range(0, n):
        k = n - 1 - i
        at = left_at + k % 2 * M * HP
        own = (k * LANES + lane) * HP
        tl.store(tile_at(at, M, HP), g)
        tl.debug_barrier()
        begin, n_in, n_out = layer_of(table, k)
        if WEIGHTS:
            add_product(at, entered_at + own, sums_at + begin, n_in, n_out, M, HP, BK, SIDE, dtype)
        g = times_back(at, net + begin, n_in, n_out, M, HP, BK, dtype)
        of = product(g, tl.load(tile_at(tangent_at + own, M, HP)))
        bend = tile_at(bend_at + k * B * HP, R, HP)
        tl.store(bend, tl.load(bend) + tl.sum(tl.reshape(of, [R, C, HP]), 1))
        g = g * slopes_of(slope_at + k * B * HP, 0, M, C, HP)
    tl.debug_barrier()


@triton.jit
def back_through_net(
    g, bent, net, table, betas_ptr, a_at, z_at, bend_at, left_at, sums_at, of_betas, n, ACTIVATION: tl.constexpr,
    PRE: tl.constexpr, HAS_BETAS: tl.constexpr, WEIGHTS: tl.constexpr, B: tl.constexpr, HP: tl.constexpr,
    BK: tl.constexpr, SIDE: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """From g [B, HP], the gradient of g(x), and where `bent` those of slopes, adds to those of weights and, `of_betas`
    behind them, of betas; that of x."""
    for i in range(0, n):
        k = n - 1 - i
        at = left_at + k % 2 * B * HP
        tl.store(tile_at(at, B, HP), g)
        tl.debug_barrier()
        begin, n_in, n_out = layer_of(table, k)
        if WEIGHTS:
            add_product(at, a_at + k * B * HP, sums_at + begin, n_in, n_out, B, HP, BK, SIDE, dtype)
            unit = tl.arange(0, HP)
            of_bias = sums_at + begin + n_in * n_out + unit
            total = tl.load(of_bias, mask=unit < n_out, other=0.0) + tl.sum(tl.load(tile_at(at, B, HP)), 0)
            tl.store(of_bias, total, mask=unit < n_out)
        g = times_back(at, net + begin, n_in, n_out, B, HP, BK, dtype)
        z = tl.load(tile_at(z_at + k * B * HP, B, HP))
        slope, bend, by_beta, bend_by_beta = curve(z, beta_at(betas_ptr, k, PRE, HAS_BETAS, dtype), ACTIVATION)
        of_slope = tl.load(tile_at(bend_at + k * B * HP, B, HP), mask=tl.zeros([B, HP], tl.int32) + bent > 0, other=0.0)
        bends = (k > 0) | PRE
        if WEIGHTS and HAS_BETAS:
            term = tl.sum(product(g, by_beta) + product(of_slope, bend_by_beta), 1).to(tl.float64)
            to = sums_at + of_betas + k - 1 + PRE
            tl.store(to, tl.load(to, mask=bends, other=0.0) + tl.sum(term, 0).to(dtype), mask=bends)
        g = tl.where(bends, g * slope + of_slope * bend, g)
    tl.debug_barrier()
    return g
