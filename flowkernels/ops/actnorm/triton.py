"""Actnorm on Triton: describes strides, allocates, launches."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flowkernels._backend import Grads, Inputs, Needs
from flowkernels.ops import _channels, _triton
from flowkernels.ops._channels import ChannelSpec

_ELEMENTS = 8192 if _triton.INTERPRETING else 2048  # of a tile; the interpreter's time goes by tiles
_PROGRAMS = 1024  # that share a sum: always so many, or fewer where there are fewer tiles, for equal bits


def why_not(spec: ChannelSpec, *tensors: Tensor) -> str | None:
    return _triton.why_not(tensors)


def _tile(pixels: int, channels: int) -> dict[str, Any]:
    BC = min(_triton.power_of_2(channels), 64)
    return {"BP": min(_triton.power_of_2(pixels), _ELEMENTS // BC), "BC": BC}


def fwd(spec: ChannelSpec, x: Tensor, log_scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    dim = spec.channel_dim
    y, ladj = _channels.outputs(x, dim, (x, log_scale, shift))
    wide = ladj.dtype
    count = _channels.signed_pixels(x, dim, spec.inverse)
    if x.numel() == 0:
        return y, ladj.copy_(log_scale.to(wide).sum() * count)
    from .triton_kernels import actnorm_fwd

    images, pixels, C = _channels.sizes(x, dim)
    x, to = _channels.walkable(x, dim), _channels.writable(y, dim)
    tile = _tile(pixels, C)
    _triton.launch(
        actnorm_fwd, images * -(-pixels // tile["BP"]),
        x, log_scale.resolve_neg().contiguous(), shift.resolve_neg().contiguous(), to, ladj, images, pixels, C,
        count, *_channels.walk(x, dim), *_channels.walk(to, dim), INVERSE=spec.inverse, PER_PIXEL=dim == -1, **tile,
        dtype=_triton.language_dtype(wide),
    )  # fmt: skip
    return y if to is y else y.copy_(to), ladj


def bwd(spec: ChannelSpec, grads: Grads, tensors: Inputs, needs: Needs) -> Grads:
    x, log_scale, shift = tensors
    dim = spec.channel_dim
    out = _channels.out_dtype(tensors)
    wide = _channels.wide(out)
    grad_y, grad_ladj = grads
    need_params = needs[1] or needs[2]
    grad_x = _channels.like(x, x.dtype) if needs[0] else None
    if x.numel() == 0 or grad_y is None:
        if grad_x is not None:
            grad_x.zero_()
        partial = x.new_zeros((2, 0, x.shape[dim]), dtype=wide)
    else:
        from .triton_kernels import actnorm_bwd

        images, pixels, C = _channels.sizes(x, dim)
        tile = _tile(pixels, C)
        programs = min(_PROGRAMS, images * -(-pixels // tile["BP"]))
        partial = x.new_empty((2, programs, C) if need_params else 0, dtype=wide)
        v, g = _channels.walkable(x, dim), _channels.walkable(grad_y, dim)
        to = v if grad_x is None else _channels.writable(grad_x, dim)
        strides = [s for t in (v, g, to) for s in _channels.walk(t, dim)]
        _triton.launch(
            actnorm_bwd, programs,
            v, log_scale.resolve_neg().contiguous(), shift.resolve_neg().contiguous(), g, to, partial, images,
            pixels, C, *strides, INVERSE=spec.inverse, NEED_X=needs[0], NEED_PARAMS=need_params,
            PROGRAMS=programs, **tile, dtype=_triton.language_dtype(wide),
        )  # fmt: skip
        if grad_x is not None and to is not grad_x:
            grad_x.copy_(to)
    found: list[Tensor | None] = [grad_x, None, None]
    if needs[1]:
        of_ladj = 0 if grad_ladj is None else grad_ladj.sum() * _channels.signed_pixels(x, dim, spec.inverse)
        found[1] = (partial[0].double().sum(0) + of_ladj).to(log_scale.dtype)
    if needs[2]:
        found[2] = partial[1].double().sum(0).to(shift.dtype)
    return found
