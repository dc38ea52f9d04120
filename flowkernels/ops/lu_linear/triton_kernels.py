"""The LU linear map in Triton: a product, two triangular solves, a sum of outer products, all on tiles of pixels.

A pixel's channels lie `channel` elements apart, pixels `pixel`, images `image`: rows of features, channels-first images
and channels_last are the same to these kernels. `order_ptr` says which channel stands for the i-th one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from flowkernels.ops._triton_math import exp


@triton.jit
def _pixels(block, pixels, BP: tl.constexpr):
    """Image and pixels of a tile."""
    blocks = tl.cdiv(pixels, BP)
    return (tl.zeros([1], tl.int64) + block) // blocks, (block % blocks) * BP + tl.arange(0, BP).to(tl.int64)


@triton.jit
def lu_product(
    x_ptr, w_ptr, bias_ptr, y_ptr, pixels, channels, x_image, x_channel, x_pixel, y_image, y_channel, y_pixel, w_out,
    w_in,
    BIAS: tl.constexpr, BP: tl.constexpr, BO: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    """y = W x + b at every pixel."""
    columns = tl.cdiv(channels, BO)
    image, pixel = _pixels(tl.program_id(0) // columns, pixels, BP)
    out = tl.program_id(0) % columns * BO + tl.arange(0, BO).to(tl.int64)
    total = tl.zeros([BP, BO], dtype)
    for first in range(0, channels, BC):
        c = first + tl.arange(0, BC).to(tl.int64)
        ok = (pixel < pixels)[:, None] & (c < channels)[None, :]
        at = (image * x_image + pixel * x_pixel)[:, None] + (c * x_channel)[None, :]
        v = tl.load(x_ptr + at, mask=ok, other=0.0).to(dtype)
        ok = (c < channels)[:, None] & (out < channels)[None, :]
        w = tl.load(w_ptr + (c * w_in)[:, None] + (out * w_out)[None, :], mask=ok, other=0.0)
        total += tl.dot(v, w, input_precision=PRECISION, out_dtype=dtype)
    if BIAS:
        total += tl.load(bias_ptr + out, mask=out < channels, other=0.0)[None, :]
    at = (image * y_image + pixel * y_pixel)[:, None] + (out * y_channel)[None, :]
    ok = (pixel < pixels)[:, None] & (out < channels)[None, :]
    tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=ok)


@triton.jit
def _substituted(r, i, t_ptr, log_s_ptr, sign_ptr, channels, step, other, DOWN: tl.constexpr, UNIT: tl.constexpr):
    """T^-1 of every column of r [CP, BP], row by row, downwards or upwards. T[i, j] lies at i step + j other."""
    for n in range(0, channels):
        j = n if DOWN else channels - 1 - n
        row = (i == j)[:, None]
        h = tl.sum(tl.where(row, r, 0.0), 0)
        if not UNIT:
            h = h * (exp(-tl.load(log_s_ptr + j)) / tl.load(sign_ptr + j))
        later = (i > j) if DOWN else (i < j)
        t = tl.load(t_ptr + i * step + j * other, mask=later & (i < channels), other=0.0)
        r = tl.where(row, h[None, :], r - t[:, None] * h[None, :])
    return r


@triton.jit
def lu_solve(
    x_ptr, first_ptr, second_ptr, log_s_ptr, sign_ptr, bias_ptr, order_ptr, between_ptr, y_ptr, pixels, channels,
    x_image, x_channel, x_pixel, b_image, b_channel, b_pixel, y_image, y_channel, y_pixel,
    BACKWARD: tl.constexpr, BIAS: tl.constexpr, ORDER: tl.constexpr, BETWEEN: tl.constexpr, RESULT: tl.constexpr,
    CP: tl.constexpr, BP: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Both triangular solves of the inverse, or of its backward pass, in registers; what is between them on request.

    first, second: the triangles, transposed for the inverse (their columns lie dense) and as they are backward.
    """
    image, pixel = _pixels(tl.program_id(0), pixels, BP)
    i = tl.arange(0, CP)
    ok = (i < channels)[:, None] & (pixel < pixels)[None, :]
    place = i.to(tl.int64)
    if ORDER:
        place = tl.load(order_ptr + i, mask=i < channels, other=0)
    at = image * x_image + pixel * x_pixel
    source = i.to(tl.int64) if BACKWARD else place
    r = tl.load(x_ptr + (source * x_channel)[:, None] + at[None, :], mask=ok, other=0.0).to(dtype)
    if BIAS:
        r = tl.where(ok, r - tl.load(bias_ptr + place, mask=i < channels, other=0.0)[:, None], 0.0)
    r = _substituted(r, i, first_ptr, log_s_ptr, sign_ptr, channels, 1, channels, True, not BACKWARD)
    if BETWEEN:
        at = image * b_image + pixel * b_pixel
        to = between_ptr + (i.to(tl.int64) * b_channel)[:, None] + at[None, :]
        tl.store(to, r.to(between_ptr.dtype.element_ty), mask=ok)
    if RESULT:
        r = _substituted(r, i, second_ptr, log_s_ptr, sign_ptr, channels, 1, channels, False, BACKWARD)
        target = place if BACKWARD else i.to(tl.int64)
        at = image * y_image + pixel * y_pixel
        to = y_ptr + (target * y_channel)[:, None] + at[None, :]
        tl.store(to, r.to(y_ptr.dtype.element_ty), mask=ok)


@triton.jit
def lu_outer(
    a_ptr, b_ptr, order_ptr, outer_ptr, sums_ptr, images, pixels, channels, a_image, a_channel, a_pixel, b_image,
    b_channel, b_pixel,
    ORDER: tl.constexpr, PROGRAMS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, PRECISION: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    """Sums of a b^T [PROGRAMS, C, C] and of a [PROGRAMS, C] over a program's pixels; a with its channels in order."""
    columns = tl.cdiv(channels, BC)
    program = tl.program_id(0) // (columns * columns)
    ai = tl.program_id(0) // columns % columns * BC + tl.arange(0, BC)
    bi = (tl.program_id(0) % columns * BC + tl.arange(0, BC)).to(tl.int64)
    place = ai.to(tl.int64)
    if ORDER:
        place = tl.load(order_ptr + ai, mask=ai < channels, other=0)
    outer = tl.zeros([BC, BC], dtype)
    total = tl.zeros([BC], dtype)
    for block in range(program, images * tl.cdiv(pixels, BP), PROGRAMS):
        image, pixel = _pixels(block, pixels, BP)
        ok = (ai < channels)[:, None] & (pixel < pixels)[None, :]
        at = (place * a_channel)[:, None] + (image * a_image + pixel * a_pixel)[None, :]
        a = tl.load(a_ptr + at, mask=ok, other=0.0).to(dtype)
        ok = (pixel < pixels)[:, None] & (bi < channels)[None, :]
        at = (image * b_image + pixel * b_pixel)[:, None] + (bi * b_channel)[None, :]
        b = tl.load(b_ptr + at, mask=ok, other=0.0).to(dtype)
        outer += tl.dot(a, b, input_precision=PRECISION, out_dtype=dtype)
        total += tl.sum(a, 1)
    ok = (ai < channels)[:, None] & (bi < channels)[None, :]
    row = program.to(tl.int64) * channels + ai
    tl.store(outer_ptr + (row * channels)[:, None] + bi[None, :], outer, mask=ok)
    if tl.program_id(0) % columns == 0:
        tl.store(sums_ptr + row, total, mask=ai < channels)
