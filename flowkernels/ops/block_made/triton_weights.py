"""The weights of block autoregressive maps in Triton: what layers multiply with is made of what is given, a unit a
program; their gradients are sums over the rows of a split, which the last kernel adds up and takes back to what was
given."""

from __future__ import annotations

import triton
import triton.language as tl

from flowkernels.ops._triton_math import exp, product


@triton.jit
def block_weights(
    given_ptr, net_ptr, logs_ptr, square_ptr, units_ptr, NORMALIZED: tl.constexpr, EPS: tl.constexpr,
    COLUMNS: tl.constexpr, B: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Weights with the diagonal blocks' exponentials, and nothing above them; the blocks' logarithms; of rows that are
    scaled the squares of their lengths before. units: of `triton.units_of`."""
    pid = tl.program_id(0)
    weight = tl.load(units_ptr + pid * COLUMNS)
    own = tl.load(units_ptr + pid * COLUMNS + 1)
    end = own + tl.load(units_ptr + pid * COLUMNS + 2)
    n_in = tl.load(units_ptr + pid * COLUMNS + 3)
    bias = tl.load(units_ptr + pid * COLUMNS + 4)
    log_at = tl.load(units_ptr + pid * COLUMNS + 5)
    c = tl.arange(0, B)
    scale = tl.full([], 1.0, dtype)
    log_scale = tl.full([], 0.0, dtype)
    shift = tl.full([], 0.0, dtype)
    if NORMALIZED:
        squares = tl.zeros([B], tl.float64)
        for first in range(0, own, B):
            w = tl.load(given_ptr + weight + first + c, mask=first + c < own, other=0.0).to(tl.float64)
            squares += w * w
        for first in range(own, end, B):
            w = tl.load(given_ptr + weight + first + c, mask=first + c < end, other=float("-inf"))
            squares += exp(2.0 * w.to(tl.float64))
        square = tl.sum(squares, 0)
        tl.store(square_ptr + pid, square)
        norm = tl.load(given_ptr + tl.load(units_ptr + pid * COLUMNS + 6)).to(tl.float64)
        shift = (norm - 0.5 * tl.log(square + EPS)).to(dtype)
        log_scale = (norm - tl.log(tl.sqrt(square) + EPS)).to(dtype)
        scale = exp(log_scale)
    for first in range(0, n_in, B):
        column = first + c
        w = tl.load(given_ptr + weight + column, mask=column < end, other=0.0)
        on = (column >= own) & (column < end)
        made = tl.where(on, exp(tl.where(on, w, 0.0) + log_scale), w * scale)
        tl.store(net_ptr + weight + column, made, mask=column < n_in)
        tl.store(logs_ptr + log_at + (column - own), w + shift, mask=on)
    tl.store(net_ptr + bias, tl.load(given_ptr + bias))


@triton.jit
def _rows_of(split, rows, SPLITS: tl.constexpr, BK: tl.constexpr):
    """Where a split's rows begin, and end."""
    each = tl.cdiv(tl.cdiv(rows, SPLITS), BK) * BK
    return split * each, tl.minimum(rows, (split + 1) * each)


@triton.jit(do_not_specialize=["rows"])
def block_sums(
    g_ptr, h_ptr, tiles_ptr, shares_ptr, rows, size, SPLITS: tl.constexpr, COLUMNS: tl.constexpr, B: tl.constexpr,
    BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """A tile of a layer's weights' gradients, and of biases': products of those of its sums, g, with what entered, h,
    over a split of the rows."""
    tile = tiles_ptr + tl.program_id(0) // SPLITS * COLUMNS
    split = tl.program_id(0) % SPLITS
    n_out = tl.load(tile + 2)
    n_in = tl.load(tile + 3)
    column = tl.load(tile + 5)
    unit = tl.load(tile + 4) + tl.arange(0, B)
    into = column + tl.arange(0, B)
    apart = rows.to(tl.int64)
    g_at = g_ptr + (tl.load(tile) + unit) * apart
    h_at = h_ptr + (tl.load(tile + 1) + into) * apart
    total = tl.zeros([B, B], dtype)
    of_bias = tl.zeros([B], dtype)
    begin, end = _rows_of(split, rows, SPLITS, BK)
    for first in range(begin, end, BK):
        row = first + tl.arange(0, BK)
        ok = row < end
        g = tl.load(g_at[:, None] + row[None, :], mask=(unit < n_out)[:, None] & ok[None, :], other=0.0)
        h = tl.load(h_at[None, :] + row[:, None], mask=(into < n_in)[None, :] & ok[:, None], other=0.0)
        total += tl.dot(g, h, input_precision="ieee", out_dtype=dtype)
        of_bias += tl.sum(g, 1)
    shares = shares_ptr + split.to(tl.int64) * size
    to = shares + tl.load(tile + 6) + unit[:, None] * n_in + into[None, :]
    tl.store(to, total, mask=(unit < n_out)[:, None] & (into < n_in)[None, :])
    if column == 0:
        tl.store(shares + tl.load(tile + 7) + unit, of_bias, mask=unit < n_out)


@triton.jit(do_not_specialize=["rows"])
def block_pairs(
    g_ptr, m_ptr, l_ptr, logs_ptr, tiles_ptr, shares_ptr, rows, size, SPLITS: tl.constexpr, COLUMNS: tl.constexpr,
    B: tl.constexpr, J: tl.constexpr, BK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """What the blocks' logarithms, of B units by J inputs of their feature, get of g, the gradients of the logarithms m
    that they lead to: of each row g exp(W + L - m)."""
    tile = tiles_ptr + tl.program_id(0) // SPLITS * COLUMNS
    split = tl.program_id(0) % SPLITS
    after = tl.load(tile + 2)
    before = tl.load(tile + 3)
    unit = tl.load(tile + 4) + tl.arange(0, B)
    j = tl.load(tile + 5) + tl.arange(0, J)
    of = unit[:, None] * before + j[None, :]
    some = (unit < tl.load(tile + 6))[:, None] & (j < before)[None, :]
    log_at = tl.load(tile + 7)
    w = tl.load(logs_ptr + log_at + of, mask=some, other=0.0)
    apart = rows.to(tl.int64)
    out = (tl.load(tile) + unit) * apart
    in_at = tl.load(tile + 1)
    has_log = some & (unit * 0 + in_at > 0)[:, None]  # those of the first layer are 0
    into = (in_at + (unit // after * before)[:, None] + j[None, :]) * apart
    total = tl.zeros([B, J], dtype)
    begin, end = _rows_of(split, rows, SPLITS, BK)
    for first in range(begin, end, BK):
        row = first + tl.arange(0, BK)
        ok = row < end
        mask = (unit < tl.load(tile + 6))[:, None] & ok[None, :]
        g = tl.load(g_ptr + out[:, None] + row[None, :], mask=mask, other=0.0)
        m = tl.load(m_ptr + out[:, None] + row[None, :], mask=mask, other=0.0)
        mask = has_log[:, :, None] & ok[None, None, :]
        log = tl.load(l_ptr + into[:, :, None] + row[None, None, :], mask=mask, other=0.0)
        share = exp(w[:, :, None] + log - m[:, None, :])
        total += tl.sum(product(g[:, None, :], share), 2)
    shares = shares_ptr + split.to(tl.int64) * size
    tl.store(shares + log_at + of, total, mask=some)


@triton.jit
def _added(shares_ptr, at, mask, size, SPLITS: tl.constexpr, B: tl.constexpr):
    total = tl.zeros([B], tl.float64)
    of_split = shares_ptr + at
    for _split in range(SPLITS):
        total += tl.load(of_split, mask=mask, other=0.0).to(tl.float64)
        of_split += size
    return total


@triton.jit
def block_finish(
    given_ptr, net_ptr, square_ptr, units_ptr, shares_ptr, pairs_ptr, grad_ptr, size, n_pairs, SPLITS: tl.constexpr,
    PAIRS: tl.constexpr, NORMALIZED: tl.constexpr, EPS: tl.constexpr, COLUMNS: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """The gradients of a unit's weights, bias and norm, as `README.md` has them: logarithms have two ways to the
    outputs, and a row's norm goes through all of it."""
    pid = tl.program_id(0)
    weight = tl.load(units_ptr + pid * COLUMNS)
    own = tl.load(units_ptr + pid * COLUMNS + 1)
    end = own + tl.load(units_ptr + pid * COLUMNS + 2)
    n_in = tl.load(units_ptr + pid * COLUMNS + 3)
    bias = tl.load(units_ptr + pid * COLUMNS + 4)
    log_at = tl.load(units_ptr + pid * COLUMNS + 5) - own
    c = tl.arange(0, B)
    scale = tl.full([], 1.0, tl.float64)
    both = tl.full([], 0.0, tl.float64)
    if NORMALIZED:
        square = tl.load(square_ptr + pid)
        of_scale = tl.zeros([B], tl.float64)
        of_shift = tl.zeros([B], tl.float64)
        for first in range(0, end, B):
            column = first + c
            some = column < end
            w = tl.load(net_ptr + weight + column, mask=some, other=0.0).to(tl.float64)
            of_scale += _added(shares_ptr, weight + column, some, size, SPLITS, B) * w
            if PAIRS:
                of_shift += _added(pairs_ptr, log_at + column, some & (column >= own), n_pairs, SPLITS, B)
        of_scales = tl.sum(of_scale, 0)
        of_shifts = tl.sum(of_shift, 0)
        at = tl.load(units_ptr + pid * COLUMNS + 6)
        norm = tl.load(given_ptr + at).to(tl.float64)
        root = tl.sqrt(square)
        # Of w by the square: in scale w / (root (root + eps)), in shift w / (square + eps).
        both = of_scales * (square / (square + root * EPS)) + of_shifts * (square / (square + EPS))
        both = both / square
        scale = exp(norm - tl.log(root + EPS))
        tl.store(grad_ptr + at, (of_scales + of_shifts).to(grad_ptr.dtype.element_ty))
    for first in range(0, n_in, B):
        column = first + c
        some = column < end
        on = some & (column >= own)
        g = _added(shares_ptr, weight + column, some, size, SPLITS, B)
        w = tl.load(net_ptr + weight + column, mask=on, other=0.0).to(tl.float64)
        out = tl.where(on, g * w, g * scale)
        if PAIRS:
            out += _added(pairs_ptr, log_at + column, on, n_pairs, SPLITS, B)
        if NORMALIZED:
            given = tl.load(given_ptr + weight + column, mask=some, other=0.0).to(tl.float64)
            out -= both * tl.where(on, exp(2.0 * tl.where(on, given, 0.0)), given)
        out = tl.where(some, out, 0.0).to(grad_ptr.dtype.element_ty)
        tl.store(grad_ptr + weight + column, out, mask=column < n_in)
    one = tl.arange(0, 1)
    of_bias = _added(shares_ptr, bias + one, one < 1, size, SPLITS, 1)
    tl.store(grad_ptr + bias + one, of_bias.to(grad_ptr.dtype.element_ty))
