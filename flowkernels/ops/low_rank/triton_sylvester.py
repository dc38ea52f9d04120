"""Chains of Sylvester layers: a program owns R rows, whose features and coordinates stay in registers. As the chains of
`triton_kernels.py`, with a matrix of M x M numbers where those have a number."""

from __future__ import annotations

import triton
import triton.language as tl

from flowkernels.ops._triton_math import product, tanh

from .triton_kernels import _add, _bent, _bent_root


@triton.jit
def _column(at, k, i, row, d, there, D, M, stride, SHARED: tl.constexpr):
    """Column i of Q of layer k, [1 or R, BD]."""
    entry = (k * D + d) * M + i
    if SHARED:
        out = tl.load(at + entry, mask=d < D, other=0.0)[None, :]
    else:
        out = tl.load(at + row[:, None] * stride + entry[None, :], mask=there, other=0.0)
    return out


@triton.jit
def _triangle(at, k, M, row, is_row, stride, limit, SHARED: tl.constexpr, BM: tl.constexpr):
    """A matrix with the tanh of its diagonal and nothing below, [1 or R, BM, BM]; the diagonal, [1 or R, BM]."""
    i, j = tl.arange(0, BM)[:, None], tl.arange(0, BM)[None, :]
    inside, entry = (i < M) & (j < M), (k * M + i) * M + j
    if SHARED:
        v = tl.load(at + entry, mask=inside, other=0.0)[None, :, :]
    else:
        mask = is_row[:, None, None] & inside[None, :, :]
        v = tl.load(at + (row * stride)[:, None, None] + entry[None, :, :], mask=mask, other=0.0)
    on = (i == j)[None, :, :]
    bent = tanh(tl.sum(tl.where(on, v, 0.0), 2))
    bent = tl.where(bent > limit, limit, tl.where(bent < -limit, -limit, bent)).to(v.dtype)
    return tl.where(on, bent[:, :, None], tl.where((i < j)[None, :, :], v, 0.0)), bent


@triton.jit
def _numbers(at, k, M, row, is_row, stride, SHARED: tl.constexpr, BM: tl.constexpr):
    """M numbers of layer k, [1 or R, BM]."""
    i = tl.arange(0, BM)
    if SHARED:
        out = tl.load(at + k * M + i, mask=i < M, other=0.0)[None, :]
    else:
        mask = is_row[:, None] & (i < M)[None, :]
        out = tl.load(at + (row * stride)[:, None] + (k * M + i)[None, :], mask=mask, other=0.0)
    return out


@triton.jit
def _times(m, v):
    return tl.sum(product(m, v[:, None, :]), 2)


@triton.jit
def _times_transposed(m, v):
    return tl.sum(product(m, v[:, :, None]), 1)


@triton.jit
def _entry(v, i):
    """Entry i of each row."""
    return tl.sum(tl.where(tl.arange(0, v.shape[1])[None, :] == i, v, 0.0), 1)


@triton.jit
def _with(v, i, entry):
    return tl.where(tl.arange(0, v.shape[1])[None, :] == i, entry[:, None], v)


@triton.jit
def _across(v, q_ptr, k, row, d, there, D, M, stride, SHARED: tl.constexpr, R: tl.constexpr, BM: tl.constexpr):
    """Q^T v, [R, BM]."""
    out = tl.zeros([R, BM], v.dtype)
    for i in range(M):
        column = _column(q_ptr, k, i, row, d, there, D, M, stride, SHARED)
        out = _with(out, i, tl.sum(product(column, v), 1))
    return out


@triton.jit
def _along(v, q_ptr, k, row, d, there, D, M, stride, SHARED: tl.constexpr, BD: tl.constexpr):
    """Q v, [R, BD]."""
    out = tl.zeros([v.shape[0], BD], v.dtype)
    for i in range(M):
        out += _column(q_ptr, k, i, row, d, there, D, M, stride, SHARED) * _entry(v, i)[:, None]
    return out


@triton.jit
def _z_of_inverse(t, r, r_d, s, s_d, b, plus, M, BELOW: tl.constexpr, TANH: tl.constexpr):
    """Of y's coordinates: z, and those of x. The last has a z of its own, each before it one of what lies behind."""
    index = tl.arange(0, t.shape[1])
    z, h = tl.zeros_like(t), tl.zeros_like(t)
    for back in range(M):
        i = M - 1 - back
        of_i = (index == i)[None, :, None]
        known = _entry(t, i) - tl.sum(product(tl.sum(tl.where(of_i, r, 0.0), 1), h), 1)
        behind = tl.where((index > i)[None, :], tl.sum(tl.where(of_i, s, 0.0), 1), 0.0)
        target = _entry(s_d, i) * known + _entry(b, i) + tl.sum(product(behind, t), 1)
        of_z = _bent_root(target, _entry(plus, i) + tl.zeros_like(target), BELOW, TANH)
        of_h, _slope, _rest, _curve = _bent(of_z, BELOW, TANH)
        z, h = _with(z, i, of_z), _with(h, i, of_h)
        t = _with(t, i, known - _entry(r_d, i) * of_h)
    return z, t


@triton.jit
def _layer(
    x, q_ptr, r, r_d, s, s_d, b, k, row, d, there, D, M, stride, BELOW: tl.constexpr, TANH: tl.constexpr,
    INVERSE: tl.constexpr, SHARED: tl.constexpr, R: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """y, ladj, the coordinates of the layer's x, and z."""
    t = _across(x, q_ptr, k, row, d, there, D, M, stride, SHARED, R, BM)
    plus = 1.0 + r_d * s_d
    if INVERSE:
        z, t = _z_of_inverse(t, r, r_d, s, s_d, b, plus, M, BELOW, TANH)
    else:
        z = _times(s, t) + b
    h, slope, rest, _curve = _bent(z, BELOW, TANH)
    ladj = tl.sum(tl.log(rest + plus * slope), 1)
    moved = _along(_times(r, h), q_ptr, k, row, d, there, D, M, stride, SHARED, BD)
    if INVERSE:
        out, ladj = x - moved, -ladj
    else:
        out = x + moved
    return out, ladj, t, z


@triton.jit
def sylvester_fwd(
    x_ptr, q_ptr, r_ptr, s_ptr, b_ptr, y_ptr, ladj_ptr, rows, D, n, M, x_stride, q_stride, r_stride, s_stride, b_stride,
    BELOW: tl.constexpr, TANH: tl.constexpr, INVERSE: tl.constexpr, SHARED: tl.constexpr, LIMIT: tl.constexpr,
    R: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    d, is_row = tl.arange(0, BD), row < rows
    there = is_row[:, None] & (d < D)[None, :]
    x = tl.load(x_ptr + row[:, None] * x_stride + d[None, :], mask=there, other=0.0)
    ladj = tl.zeros([R], tl.float64)
    for i in range(n):
        k = (n - 1 - i) if INVERSE else i
        r, r_d = _triangle(r_ptr, k, M, row, is_row, r_stride, LIMIT, SHARED, BM)
        s, s_d = _triangle(s_ptr, k, M, row, is_row, s_stride, LIMIT, SHARED, BM)
        b = _numbers(b_ptr, k, M, row, is_row, b_stride, SHARED, BM)
        x, term, _t, _z = _layer(
            x, q_ptr, r, r_d, s, s_d, b, k, row, d, there, D, M, q_stride, BELOW, TANH, INVERSE, SHARED, R, BD, BM
        )  # fmt: skip
        ladj += term.to(tl.float64)
    tl.store(y_ptr + row[:, None] * D + d[None, :], x, mask=there)
    tl.store(ladj_ptr + row, ladj.to(x.dtype), mask=is_row)


@triton.jit
def _back_through_inverse(mu, slope, q, r, r_d, s, s_d, M):
    """mu with mu + S^T nu known, a lower triangle, and nu = h' R^T mu."""
    index, nu = tl.arange(0, mu.shape[1]), tl.zeros_like(mu)
    for i in range(M):
        of_i, before = (index == i)[None, None, :], (index < i)[None, :]
        above_r = tl.where(before, tl.sum(tl.where(of_i, r, 0.0), 2), 0.0)
        above_s = tl.where(before, tl.sum(tl.where(of_i, s, 0.0), 2), 0.0)
        come, of_slope = tl.sum(product(above_r, mu), 1), _entry(slope, i)
        own = _entry(mu, i) - tl.sum(product(above_s, nu), 1)
        own = (own - _entry(s_d, i) * (of_slope * come)) / _entry(q, i)
        mu, nu = _with(mu, i, own), _with(nu, i, of_slope * (come + _entry(r_d, i) * own))
    return mu, nu


@triton.jit
def _of_triangle(of_row, of_column, of_diagonal, diagonal, BM: tl.constexpr):
    """The gradient of a matrix, [R, BM, BM], nothing below the diagonal, whose tanh has its slope."""
    i, j = tl.arange(0, BM)[:, None], tl.arange(0, BM)[None, :]
    outer = of_row[:, :, None] * of_column[:, None, :]
    on = (outer + of_diagonal[:, :, None]) * (1.0 - diagonal * diagonal)[:, :, None]
    return tl.where((i == j)[None, :, :], on, tl.where((i < j)[None, :, :], outer, 0.0))


@triton.jit
def sylvester_bwd(
    x_ptr, q_ptr, r_ptr, s_ptr, b_ptr, grad_y_ptr, grad_ladj_ptr, grad_x_ptr, grad_q_ptr, grad_r_ptr, grad_s_ptr,
    grad_b_ptr, states_ptr, kept_ptr, sums_ptr, rows, D, n, M, x_stride, q_stride, r_stride, s_stride, b_stride,
    BELOW: tl.constexpr, HAS_Y: tl.constexpr, HAS_LADJ: tl.constexpr, PARAMS: tl.constexpr, TANH: tl.constexpr,
    INVERSE: tl.constexpr, SHARED: tl.constexpr, LIMIT: tl.constexpr, R: tl.constexpr, BD: tl.constexpr,
    BM: tl.constexpr,
):  # fmt: skip
    d, lane, m = tl.arange(0, BD), tl.arange(0, R), tl.arange(0, BM)
    square = m[:, None] * M + m[None, :]
    in_square = (m < M)[:, None] & (m < M)[None, :]
    per_layer = tl.full([], 1, tl.int64) * rows
    sums = sums_ptr + tl.program_id(0).to(tl.int64) * n * (D * M + 2 * M * M + M)
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        row = tl.zeros([R], tl.int64) + tile * R + lane
        is_row = row < rows
        there = is_row[:, None] & (d < D)[None, :]
        of_features = row[:, None] * D + d[None, :]
        in_width = is_row[:, None] & (m < M)[None, :]
        x = tl.load(x_ptr + row[:, None] * x_stride + d[None, :], mask=there, other=0.0)
        states, kept = states_ptr + of_features, kept_ptr + row[:, None] * M + m[None, :]
        for i in range(n):
            k = (n - 1 - i) if INVERSE else i
            r, r_d = _triangle(r_ptr, k, M, row, is_row, r_stride, LIMIT, SHARED, BM)
            s, s_d = _triangle(s_ptr, k, M, row, is_row, s_stride, LIMIT, SHARED, BM)
            b = _numbers(b_ptr, k, M, row, is_row, b_stride, SHARED, BM)
            tl.store(states + i * per_layer * D, x, mask=there)
            x, _term, t, z = _layer(
                x, q_ptr, r, r_d, s, s_d, b, k, row, d, there, D, M, q_stride, BELOW, TANH, INVERSE, SHARED, R, BD, BM
            )  # fmt: skip
            tl.store(kept + 2 * i * per_layer * M, t, mask=in_width)
            tl.store(kept + (2 * i + 1) * per_layer * M, z, mask=in_width)
        g = tl.zeros([R, BD], x.dtype)
        if HAS_Y:
            g = tl.load(grad_y_ptr + of_features, mask=there, other=0.0)
        of_ladj = tl.zeros([R], x.dtype)
        if HAS_LADJ:
            of_ladj = tl.load(grad_ladj_ptr + row, mask=is_row, other=0.0)
        if INVERSE:
            of_ladj = -of_ladj
        tl.debug_barrier()  # what other threads have kept
        for back in range(n):
            i = n - 1 - back
            k = back if INVERSE else i
            came = tl.load(states + i * per_layer * D, mask=there, other=0.0)
            t = tl.load(kept + 2 * i * per_layer * M, mask=in_width, other=0.0)
            z = tl.load(kept + (2 * i + 1) * per_layer * M, mask=in_width, other=0.0)
            r, r_d = _triangle(r_ptr, k, M, row, is_row, r_stride, LIMIT, SHARED, BM)
            s, s_d = _triangle(s_ptr, k, M, row, is_row, s_stride, LIMIT, SHARED, BM)
            h, slope, rest, curve = _bent(z, BELOW, TANH)
            plus = 1.0 + r_d * s_d
            q = rest + plus * slope
            mu = _across(g, q_ptr, k, row, d, there, D, M, q_stride, SHARED, R, BM)
            of_z = of_ladj[:, None] * ((plus - 1.0) * curve / q)
            if INVERSE:
                mu, nu = _back_through_inverse(mu + _times_transposed(s, of_z), slope, q, r, r_d, s, s_d, M)
                of_z = of_z - nu
                of_moved = -mu
            else:
                of_z = of_z + slope * _times_transposed(r, mu)
                of_moved = mu
            of_x = _times_transposed(s, of_z)
            if PARAMS:
                of_plus = of_ladj[:, None] * (slope / q)
                of_r = _of_triangle(of_moved, h, of_plus * s_d, r_d + tl.zeros_like(h), BM)
                of_s = _of_triangle(of_z, t, of_plus * r_d, s_d + tl.zeros_like(h), BM)
                moved = _times(r, h)
                of_sums = sums + k * (D * M + 2 * M * M + M)
                for i in range(M):
                    of_y = -g if INVERSE else g
                    of_q = of_y * _entry(moved, i)[:, None] + came * _entry(of_x, i)[:, None]
                    if SHARED:
                        _add(of_sums, d * M + i, tl.sum(tl.where(there, of_q, 0.0), 0), d < D)
                    else:
                        at = row[:, None] * (n * D * M) + ((k * D + d) * M + i)[None, :]
                        tl.store(grad_q_ptr + at, of_q, mask=there)
                if SHARED:
                    of_tile = is_row[:, None, None]
                    _add(of_sums + D * M, square, tl.sum(tl.where(of_tile, of_r, 0.0), 0), in_square)
                    _add(of_sums + D * M + M * M, square, tl.sum(tl.where(of_tile, of_s, 0.0), 0), in_square)
                    _add(of_sums + D * M + 2 * M * M, m, tl.sum(tl.where(is_row[:, None], of_z, 0.0), 0), m < M)
                else:
                    at = (row * (n * M * M))[:, None, None] + (k * M * M + square)[None, :, :]
                    mask = is_row[:, None, None] & in_square[None, :, :]
                    tl.store(grad_r_ptr + at, of_r, mask=mask)
                    tl.store(grad_s_ptr + at, of_s, mask=mask)
                    tl.store(grad_b_ptr + (row * (n * M))[:, None] + (k * M + m)[None, :], of_z, mask=in_width)
            g += _along(of_x, q_ptr, k, row, d, there, D, M, q_stride, SHARED, BD)
        tl.store(grad_x_ptr + of_features, g, mask=there)
        tl.debug_barrier()  # before the next tile's
