"""A masked layer in Triton. Units and inputs are counted in the order of their degrees, where the mask is a staircase.

`edge` tells the staircase: of output j, forward, the inputs before edge[j]; of input j, backward, the units from
edge[j] on. It never falls, so that the first or the last entry of a block bounds the loop of the whole block.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flowkernels.ops import _triton
from flowkernels.ops._triton_math import exp, sigmoid, tanh


def _config(BM: int, BN: int, BK: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"BM": BM, "BN": BN, "BK": BK}, num_warps=warps, num_stages=stages)


# By what is multiplied: 16-bit numbers, float32 on tensor cores, wide ones without. Large, medium, for few rows.
_CONFIGS = {
    "half": [_config(128, 128, 64, 8, 3), _config(128, 64, 32, 8, 3), _config(32, 64, 32, 4, 3)],
    "tf32": [_config(128, 128, 32, 8, 3), _config(128, 64, 32, 8, 3), _config(32, 64, 32, 4, 3)],
    "ieee": [_config(64, 64, 16, 8, 2), _config(32, 32, 16, 4, 2)],
}
if _triton.INTERPRETING:  # smaller than the tests' shapes
    _CONFIGS = {kind: [_config(64, 32, 16, 4, 1)] for kind in _CONFIGS}


def _tuned(kernel: triton.JITFunction) -> dict[str, triton.JITFunction]:
    return {kind: _triton.tuned(configs, ("bucket", "n_in", "n_out"))(kernel) for kind, configs in _CONFIGS.items()}


@triton.jit
def activated(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        z = tl.where(z < 0.0, 0.0, z)  # keeps a NaN
    elif ACTIVATION == "leaky_relu":
        z = tl.where(z < 0.0, 0.01 * z, z)
    elif ACTIVATION == "elu":
        z = tl.where(z < 0.0, exp(z) - 1.0, z)
    elif ACTIVATION == "gelu":
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == "silu":
        z = z * sigmoid(z)
    elif ACTIVATION == "tanh":
        z = tanh(z)
    return z


@triton.jit
def activation_slope(kept, ACTIVATION: tl.constexpr):
    """The activation's slope, from its value; of gelu and silu from its argument."""
    if ACTIVATION == "relu":
        slope = tl.where(kept > 0.0, 1.0, 0.0)
    elif ACTIVATION == "leaky_relu":
        one = tl.zeros_like(kept) + 1.0  # as wide: of two numbers alone `where` makes float32
        slope = tl.where(kept > 0.0, one, 0.01 * one)
    elif ACTIVATION == "elu":
        slope = tl.where(kept > 0.0, 1.0, kept + 1.0)
    elif ACTIVATION == "tanh":
        slope = 1.0 - kept * kept
    elif ACTIVATION == "gelu":
        density = 0.3989422804014327 * exp(-0.5 * kept * kept)
        slope = 0.5 * (1.0 + tl.erf(kept * 0.7071067811865476)) + kept * density
    else:
        s = sigmoid(kept)
        slope = s * (1.0 + kept * (1.0 - s))
    return slope


@_tuned
@triton.jit(do_not_specialize=["rows", "bucket"])
def masked_product(
    x_ptr, w_ptr, edge_ptr, order_ptr, bias_ptr, residual_ptr, y_ptr, z_ptr, rows, bucket, n_in, n_out, x_row, w_out,
    w_in, r_row, r_column, y_row,
    SUFFIX: tl.constexpr, ORDER: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, KEEP: tl.constexpr,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, dtype: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """y = act(x (W∘M)^T + b + r), in columns `order`; z on request. SUFFIX: what is seen begins at the edge."""
    # Eight blocks of rows at a time, whose x stays in the cache, by all outputs, those with the longest loops first.
    columns = tl.cdiv(n_out, BN)
    in_group = 8 * columns
    group = tl.program_id(0) // in_group * 8
    height = tl.minimum(tl.cdiv(rows, BM) - group, 8)
    at = tl.program_id(0) % in_group
    block = group + at % height
    column = at // height
    if not SUFFIX:
        column = columns - 1 - column
    m = block.to(tl.int64) * BM + tl.arange(0, BM)
    n = column * BN + tl.arange(0, BN)
    edge = tl.load(edge_ptr + n, mask=n < n_out, other=0)
    # What every column of the block sees needs no mask, so that loads stay wide; only the stair does.
    low = tl.load(edge_ptr + column * BN)
    high = tl.load(edge_ptr + tl.minimum(column * BN + BN, n_out) - 1)
    if SUFFIX:
        stair = low // BK * BK
        stair_end = tl.minimum(tl.cdiv(high, BK) * BK, n_in)
        begin = stair_end
        end = n_in
    else:
        begin = 0
        end = low // BK * BK
        stair = end
        stair_end = high
    total = tl.zeros([BM, BN], dtype)
    for first in range(begin, end, BK):
        k = first + tl.arange(0, BK)
        ok = (k < n_in)[:, None] & (n < n_out)[None, :]
        w = tl.load(w_ptr + k.to(tl.int64)[:, None] * w_in + n.to(tl.int64)[None, :] * w_out, mask=ok, other=0.0)
        ok = (m < rows)[:, None] & (k < n_in)[None, :]
        x = tl.load(x_ptr + m[:, None] * x_row + k[None, :], mask=ok, other=0.0)
        total += tl.dot(x, w, input_precision=PRECISION, out_dtype=dtype)
    for first in range(stair, stair_end, BK):
        k = first + tl.arange(0, BK)
        ok = (k < n_in)[:, None] & (n < n_out)[None, :]
        w = tl.load(w_ptr + k.to(tl.int64)[:, None] * w_in + n.to(tl.int64)[None, :] * w_out, mask=ok, other=0.0)
        seen = (k[:, None] >= edge[None, :]) if SUFFIX else (k[:, None] < edge[None, :])
        ok = (m < rows)[:, None] & (k < n_in)[None, :]
        x = tl.load(x_ptr + m[:, None] * x_row + k[None, :], mask=ok, other=0.0)
        total += tl.dot(x, tl.where(seen, w, 0.0).to(w.dtype), input_precision=PRECISION, out_dtype=dtype)
    to = n
    if ORDER:
        to = tl.load(order_ptr + n, mask=n < n_out, other=0)
    ok = (m < rows)[:, None] & (n < n_out)[None, :]
    if BIAS:
        total += tl.load(bias_ptr + to, mask=n < n_out, other=0.0).to(dtype)[None, :]
    if RESIDUAL:
        at = residual_ptr + m[:, None] * r_row + to.to(tl.int64)[None, :] * r_column
        total += tl.load(at, mask=ok, other=0.0).to(dtype)
    at = m[:, None] * y_row + to[None, :]
    if KEEP:
        tl.store(z_ptr + at, total.to(z_ptr.dtype.element_ty), mask=ok)
    tl.store(y_ptr + at, activated(total, ACTIVATION).to(y_ptr.dtype.element_ty), mask=ok)


@triton.jit
def masked_slope(
    g_ptr, kept_ptr, gz_ptr, sums_ptr, rows, n_out,
    ACTIVATION: tl.constexpr, PROGRAMS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """g act'(z), and its sums [PROGRAMS, n_out] over each program's rows: the gradient of the bias."""
    columns = tl.cdiv(n_out, BN)
    program = tl.program_id(0) // columns
    n = tl.program_id(0) % columns * BN + tl.arange(0, BN)
    total = tl.zeros([BN], dtype)
    for first in range(program * BM, rows, PROGRAMS * BM):
        m = first + tl.arange(0, BM).to(tl.int64)
        ok = (m < rows)[:, None] & (n < n_out)[None, :]
        at = m[:, None] * n_out + n[None, :]
        g = tl.load(g_ptr + at, mask=ok, other=0.0).to(dtype)
        if ACTIVATION != "identity":
            g = g * activation_slope(tl.load(kept_ptr + at, mask=ok, other=0.0).to(dtype), ACTIVATION)
            tl.store(gz_ptr + at, g.to(gz_ptr.dtype.element_ty), mask=ok)
        total += tl.sum(g, 0)
    tl.store(sums_ptr + program.to(tl.int64) * n_out + n, total, mask=n < n_out)


@_tuned
@triton.jit(do_not_specialize=["rows", "bucket"])
def masked_outer(
    g_ptr, x_ptr, limit_ptr, out_order_ptr, in_order_ptr, gw_ptr, rows, bucket, n_in, n_out, x_row, g_row,
    SPLITS: tl.constexpr, OUT_ORDER: tl.constexpr, IN_ORDER: tl.constexpr, PRECISION: tl.constexpr, dtype: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The gradient of W, [SPLITS, n_out, n_in] as its owner orders it: a split has its rows, BK at a time."""
    columns = tl.cdiv(n_in, BN)
    split = tl.program_id(0) % SPLITS
    tile = tl.program_id(0) // SPLITS
    n = tile // columns * BM + tl.arange(0, BM)
    k = tile % columns * BN + tl.arange(0, BN)
    limit = tl.load(limit_ptr + n, mask=n < n_out, other=0)
    total = tl.zeros([BM, BN], dtype)
    if tile % columns * BN < tl.load(limit_ptr + tl.minimum(tile // columns * BM + BM, n_out) - 1):
        for first in range(split * BK, rows, SPLITS * BK):
            m = first + tl.arange(0, BK).to(tl.int64)
            ok = (n < n_out)[:, None] & (m < rows)[None, :]
            g = tl.load(g_ptr + m[None, :] * g_row + n[:, None], mask=ok, other=0.0)
            ok = (m < rows)[:, None] & (k < n_in)[None, :]
            x = tl.load(x_ptr + m[:, None] * x_row + k[None, :], mask=ok, other=0.0)
            total += tl.dot(g, x, input_precision=PRECISION, out_dtype=dtype)
    total = tl.where(k[None, :] < limit[:, None], total, 0.0)
    row = n
    if OUT_ORDER:
        row = tl.load(out_order_ptr + n, mask=n < n_out, other=0)
    column = k
    if IN_ORDER:
        column = tl.load(in_order_ptr + k, mask=k < n_in, other=0)
    at = (split.to(tl.int64) * n_out + row)[:, None] * n_in + column[None, :]
    tl.store(gw_ptr + at, total.to(gw_ptr.dtype.element_ty), mask=(n < n_out)[:, None] & (k < n_in)[None, :])
