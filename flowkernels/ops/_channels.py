"""Ops on the channels of rows [..., C] or images [N, C, ...]: their checks, and how kernels walk them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkernels._arguments import channel_dim, flag
from flowkernels.ops._checks import check_device, check_floating, check_shape, is_like

# ---- contract ----


class ChannelSpec(NamedTuple):
    channel_dim: int
    inverse: bool


def spec_of(op: str, x: object, dim: object, inverse: object) -> ChannelSpec:
    """The settings of a call; raises unless `x` is a dense floating tensor that has this channel dim, -1 or 1."""
    dim = channel_dim(op, "channel_dim", dim)
    check_floating(op, "x", x)
    assert isinstance(x, Tensor)  # for the type checker
    if dim == -1 and x.dim() == 0:
        raise ValueError(f"{op}: x must be [..., C], got a scalar")
    if dim == 1 and x.dim() < 2:
        raise ValueError(f"{op}: x must be [N, C, ...] where channel_dim is 1, got {list(x.shape)}")
    return ChannelSpec(dim, flag(op, "inverse", inverse))


def check_parameter(op: str, name: str, t: Any, shape: Sequence[int], x: Tensor) -> None:
    """Raises unless `t` is a dense floating tensor of this shape beside `x`; its dtype may differ."""
    if is_like(t, x) and t.shape == shape:
        return
    check_floating(op, name, t)
    check_device(op, name, t, x)
    check_shape(op, name, t, shape)


# ---- shapes and dtypes ----


def out_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """The dtype of y: that of the inputs, promoted."""
    first = tensors[0].dtype
    for t in tensors:
        if t.dtype is not first:
            return functools.reduce(torch.promote_types, (t.dtype for t in tensors))
    return first


def wide(dtype: torch.dtype) -> torch.dtype:
    """What is computed in, and the dtype of ladj: float32, or float64 for float64."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def ladj_shape(x: Tensor, channel_dim: int) -> torch.Size:
    """[...] for x [..., C]; [N] for x [N, C, ...]."""
    return x.shape[:-1] if channel_dim == -1 else x.shape[:1]


def pixels(x: Tensor, channel_dim: int) -> int:
    """How many times the channels of one entry of ladj are transformed."""
    return 1 if channel_dim == -1 else math.prod(x.shape[2:])


def cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """`t.to(dtype)`, at no cost where it is of that dtype: a call of `to` takes a microsecond."""
    return t if t.dtype is dtype else t.to(dtype)


def dense(t: Tensor, dtype: torch.dtype) -> Tensor:
    """A parameter as kernels read it."""
    t = cast(t, dtype)
    return t if t.is_contiguous() and not t.is_neg() else t.resolve_neg().contiguous()


def signed_pixels(x: Tensor, channel_dim: int, inverse: bool) -> int:
    """What a channel's logarithm counts in ladj."""
    return -pixels(x, channel_dim) if inverse else pixels(x, channel_dim)


def like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for y: strides as those of x where x is dense, so that channels_last stays channels_last."""
    return torch.empty_like(x, dtype=dtype)


def outputs(x: Tensor, channel_dim: int, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Room for y and ladj."""
    dtype = out_dtype(tensors)
    return like(x, dtype), x.new_empty(ladj_shape(x, channel_dim), dtype=wide(dtype))


# ---- how compiled kernels walk a tensor ----


def sizes(x: Tensor, channel_dim: int) -> tuple[int, int, int]:
    """Images, pixels, channels. Rows of features are the pixels of one image."""
    C = x.shape[channel_dim]
    return (x.shape[0], x.shape[2:].numel(), C) if channel_dim == 1 else (1, x.shape[:-1].numel(), C)


def walkable(t: Tensor, channel_dim: int) -> Tensor:
    """The tensor, copied where it must be: kernels need the pixels of an image at even distances, and pixels or
    channels side by side."""
    if t.is_neg():
        t = t.resolve_neg()
    return t if t.is_contiguous() or _strides(t, channel_dim) is not None else t.contiguous()


def walk(t: Tensor, channel_dim: int) -> tuple[int, int, int]:
    """The strides of image, channel and pixel of a walkable tensor."""
    strides = None if t.is_contiguous() else _strides(t, channel_dim)
    if strides is not None:
        return strides
    C = t.shape[channel_dim]
    if channel_dim == -1:
        return 0, 1, C
    n = t.shape[2:].numel()
    return (C * n, n, 1) if n > 1 else (C, 1, C)


def _strides(t: Tensor, channel_dim: int) -> tuple[int, int, int] | None:
    # The pixels' dims as one, if they can be: sizes of 1 have no say.
    shape, stride = (t.shape[:-1], t.stride()[:-1]) if channel_dim == -1 else (t.shape[2:], t.stride()[2:])
    pixel = expected = None
    for n, s in zip(reversed(shape), reversed(stride), strict=True):
        if n == 1:
            continue
        if expected is not None and s != expected:
            return None
        pixel = s if pixel is None else pixel
        expected = n * s
    channel = t.stride(channel_dim)
    if t.shape[channel_dim] == 1:  # has no neighbours
        channel = 0 if channel_dim == 1 and pixel == 1 else 1
    image = 0 if channel_dim == -1 else t.stride(0)
    if pixel is None:  # one pixel: the next one is that of the next image
        pixel = image if channel == 1 else 1
    return (image, channel, pixel) if channel == 1 or pixel == 1 else None


def writable(like: Tensor, channel_dim: int) -> Tensor:
    """What a kernel writes to in place of `like`: itself, or a contiguous tensor."""
    if like.is_contiguous() or _strides(like, channel_dim) is not None:
        return like
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)
