"""Actnorm in Triton: tiles of pixels × channels. A fixed number of programs shares the sums over pixels."""

from __future__ import annotations

import triton
import triton.language as tl

from flowkernels.ops._triton_math import exp


@triton.jit
def actnorm_fwd(
    x_ptr, log_scale_ptr, shift_ptr, y_ptr, ladj_ptr, images, pixels, channels, count, x_image, x_channel, x_pixel,
    y_image, y_channel, y_pixel,
    INVERSE: tl.constexpr, PER_PIXEL: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """y; and ladj, one number per pixel or per image: `count` times the sum of log_scale."""
    blocks = tl.cdiv(pixels, BP)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = (tl.program_id(0) % blocks).to(tl.int64) * BP + tl.arange(0, BP)
    total = tl.zeros([BC], tl.float64)
    for first in range(0, channels, BC):
        channel = first + tl.arange(0, BC).to(tl.int64)
        a = tl.load(log_scale_ptr + channel, mask=channel < channels, other=0.0).to(dtype)
        b = tl.load(shift_ptr + channel, mask=channel < channels, other=0.0).to(dtype)
        total += a.to(tl.float64)
        ok = (pixel < pixels)[:, None] & (channel < channels)[None, :]
        at = image * x_image + pixel[:, None] * x_pixel + channel[None, :] * x_channel
        v = tl.load(x_ptr + at, mask=ok, other=0.0).to(dtype)
        y = (v - b[None, :]) * exp(-a)[None, :] if INVERSE else v * exp(a)[None, :] + b[None, :]
        at = image * y_image + pixel[:, None] * y_pixel + channel[None, :] * y_channel
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=ok)
    ladj = (tl.sum(total, 0) * count).to(ladj_ptr.dtype.element_ty)
    if PER_PIXEL:
        tl.store(ladj_ptr + pixel, tl.zeros([BP], ladj_ptr.dtype.element_ty) + ladj, mask=pixel < pixels)
    else:
        tl.store(ladj_ptr + image, ladj, mask=tl.program_id(0) % blocks == 0)


@triton.jit
def actnorm_bwd(
    x_ptr, log_scale_ptr, shift_ptr, gy_ptr, gx_ptr, sums_ptr, images, pixels, channels, x_image, x_channel, x_pixel,
    gy_image, gy_channel, gy_pixel, gx_image, gx_channel, gx_pixel,
    INVERSE: tl.constexpr, NEED_X: tl.constexpr, NEED_PARAMS: tl.constexpr, PROGRAMS: tl.constexpr, BP: tl.constexpr,
    BC: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """The gradient of x, and sums [2, PROGRAMS, channels], a program's own: gradients of log_scale and shift."""
    blocks = tl.cdiv(pixels, BP)
    for first in range(0, channels, BC):
        channel = first + tl.arange(0, BC).to(tl.int64)
        a = tl.load(log_scale_ptr + channel, mask=channel < channels, other=0.0).to(dtype)
        b = tl.load(shift_ptr + channel, mask=channel < channels, other=0.0).to(dtype)
        factor = exp(-a) if INVERSE else exp(a)
        of_scale = tl.zeros([BC], dtype)
        of_shift = tl.zeros([BC], dtype)
        for block in range(tl.program_id(0), images * blocks, PROGRAMS):
            image = tl.zeros([1, 1], tl.int64) + block // blocks
            pixel = (block % blocks) * BP + tl.arange(0, BP).to(tl.int64)
            ok = (pixel < pixels)[:, None] & (channel < channels)[None, :]
            at = image * gy_image + pixel[:, None] * gy_pixel + channel[None, :] * gy_channel
            g = tl.load(gy_ptr + at, mask=ok, other=0.0).to(dtype)
            if NEED_X:
                at = image * gx_image + pixel[:, None] * gx_pixel + channel[None, :] * gx_channel
                tl.store(gx_ptr + at, (g * factor[None, :]).to(gx_ptr.dtype.element_ty), mask=ok)
            if NEED_PARAMS:
                at = image * x_image + pixel[:, None] * x_pixel + channel[None, :] * x_channel
                v = tl.load(x_ptr + at, mask=ok, other=0.0).to(dtype)
                if INVERSE:  # the difference before the sum: sum(g y) - b sum(g) cancels where b is large
                    v = tl.where(ok, v - b[None, :], 0.0)
                of_scale += tl.sum(g * v, 0)
                of_shift += tl.sum(g, 0)
        if NEED_PARAMS:
            to = sums_ptr + tl.program_id(0) * channels + channel
            of_scale = -of_scale * factor if INVERSE else of_scale * factor
            of_shift = -of_shift * factor if INVERSE else of_shift
            tl.store(to, of_scale, mask=channel < channels)
            tl.store(to + PROGRAMS * channels, of_shift, mask=channel < channels)
