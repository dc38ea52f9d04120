"""Actnorm on the compiled kernels of a CPU or a GPU: allocates, calls."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkernels._backend import Grads, Inputs, Needs
from flowkernels._machine import CPU, CUDA, Cpu, Cuda, backend
from flowkernels.ops import _channels
from flowkernels.ops._channels import ChannelSpec


def why_not(on: Cpu | Cuda, spec: ChannelSpec, *tensors: Tensor) -> str | None:
    return on.why_not(tensors)


def _alike(dim: int, *tensors: Tensor) -> tuple[list[Tensor], bool]:
    """All of them walked in one way, by rows (True; pixels then at even distances over all images too) or by planes: as
    they lie, or contiguous."""
    if not all(t.is_contiguous() and not t.is_neg() for t in tensors):
        tensors = tuple(_even(_channels.walkable(t, dim), dim) for t in tensors)
        if len({_channels.walk(t, dim)[1] == 1 for t in tensors}) > 1:
            tensors = tuple(t.contiguous() for t in tensors)
    return list(tensors), _channels.walk(tensors[0], dim)[1] == 1


def _even(t: Tensor, dim: int) -> Tensor:
    image, channel, pixel = _channels.walk(t, dim)
    uneven = channel == 1 and dim == 1 and t.shape[0] > 1 and image != t.shape[2:].numel() * pixel
    return t.contiguous() if uneven else t


def _room_for_sums(x: Tensor, dim: int, by_rows: bool) -> tuple[Tensor, int]:
    """Where a GPU sums over pixels, and into how many slices: some tens of elements for each of its threads."""
    C = x.shape[dim]
    parts = (C + 1023) // 1024 if by_rows else C
    slices = max(1, min(512, x.numel() // (parts * 8192)))
    return x.new_empty((slices, 2 * C + 1), dtype=torch.float64), slices


def fwd(on: Cpu | Cuda, spec: ChannelSpec, x: Tensor, log_scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    dim = spec.channel_dim
    y, ladj = _channels.outputs(x, dim, (x, log_scale, shift))
    log_scale, shift = (_channels.dense(t, ladj.dtype) for t in (log_scale, shift))
    if x.numel() == 0:
        total = log_scale.sum() * _channels.signed_pixels(x, dim, spec.inverse)
        return y, ladj.copy_(total)
    (x, to), _ = _alike(dim, _channels.cast(x, y.dtype), y)
    on.module.actnorm_fwd(dim, spec.inverse, x, log_scale, shift, to, ladj, *on.where(x))
    return y if to is y else y.copy_(to), ladj


def bwd(on: Cpu | Cuda, spec: ChannelSpec, grads: Grads, tensors: Inputs, needs: Needs) -> Grads:
    x, *parameters = tensors
    dim = spec.channel_dim
    out = _channels.out_dtype(tensors)
    dtype = _channels.wide(out)
    log_scale, shift = (_channels.dense(t, dtype) for t in parameters)
    grad_y, grad_ladj = grads
    grad_x = _channels.like(x, out) if needs[0] else None
    grad_log_scale = torch.empty_like(log_scale) if needs[1] else None
    grad_shift = torch.empty_like(shift) if needs[2] else None
    found = (grad_x, grad_log_scale, grad_shift)
    if x.numel() == 0 or grad_y is None:
        for g in found:
            if g is not None:
                g.zero_()
        if grad_log_scale is not None and grad_ladj is not None:
            grad_log_scale += grad_ladj.sum() * _channels.signed_pixels(x, dim, spec.inverse)
    else:
        # Without grad_x the input stands in for it, and is not written.
        given = (_channels.cast(x, out), _channels.cast(grad_y, out), x if grad_x is None else grad_x)
        (x, grad_y, to), by_rows = _alike(dim, *given)
        if grad_ladj is not None:
            grad_ladj = grad_ladj.contiguous().resolve_neg()
        work: tuple[Tensor | int | None, ...] = ()
        if isinstance(on, Cuda):
            sums, slices = _room_for_sums(x, dim, by_rows)
            work = (sums if needs[1] or needs[2] else None, slices)
        on.module.actnorm_bwd(
            dim, spec.inverse, x, log_scale, shift, grad_y, grad_ladj, None if grad_x is None else to, grad_log_scale,
            grad_shift, *work, *on.where(x),
        )  # fmt: skip
        if grad_x is not None and to is not grad_x:
            grad_x.copy_(to)
    return [None if g is None else _channels.cast(g, t.dtype) for g, t in zip(found, tensors, strict=True)]


cpu, cuda = (backend(machine, fwd, bwd, why_not) for machine in (CPU, CUDA))
