"""The LU linear map on the compiled kernels of a CPU or a GPU: allocates, calls."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkernels._backend import Grads, Inputs, Needs
from flowkernels._machine import CPU, CUDA, Cpu, Cuda, backend
from flowkernels._native import DTYPES
from flowkernels.ops import _channels
from flowkernels.ops._channels import ChannelSpec

from .reference import log_size, numbers


def why_not(on: Cpu | Cuda, spec: ChannelSpec, *tensors: Tensor) -> str | None:
    reason = on.why_not(tensors)
    if reason is None and isinstance(on, Cuda):
        x, C = tensors[0], tensors[0].shape[spec.channel_dim]
        dtype = _channels.wide(_channels.out_dtype(numbers(tensors)))
        if not on.module.lu_fits(DTYPES[dtype], C, x.device.index or 0):
            return f"a matrix of {C} channels does not fit in the GPU's shared memory"
    return reason


def _in(dtype: torch.dtype, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The parameters as the kernels read them: lower, upper, log_s, sign_s, permutation, bias."""
    return [_channels.dense(t, t.dtype if i == 4 else dtype) for i, t in enumerate(tensors)]


def _factors(parameters: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """As an entry point takes them: None for a permutation or bias that is empty."""
    *triangles, permutation, bias = parameters
    return (*triangles, permutation if permutation.shape[0] else None, bias if bias.shape[0] else None)


def fwd(on: Cpu | Cuda, spec: ChannelSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    x, dim = tensors[0], spec.channel_dim
    y, ladj = _channels.outputs(x, dim, numbers(tensors))
    out, dtype = y.dtype, ladj.dtype
    given = _in(dtype, tensors[1:])
    if x.numel() == 0:
        total = log_size(given[2], given[3]) * _channels.signed_pixels(x, dim, spec.inverse)
        return y, ladj.copy_(total)
    # 16-bit: computed in float32 and rounded once, on a GPU as it is read and written.
    moved = out if isinstance(on, Cuda) else dtype
    to = _channels.writable(y if out is moved else _channels.like(x, moved), dim)
    x = _channels.walkable(_channels.cast(x, moved), dim)
    on.module.lu_fwd(dim, spec.inverse, x, *_factors(given), to, ladj, *on.where(x))
    return y if to is y else y.copy_(to), ladj


def fwd_saving(on: Cpu | Cuda, spec: ChannelSpec, *tensors: Tensor) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    """The inverse keeps its output, which whatever comes next keeps anyway: one solve less in backward."""
    outputs = fwd(on, spec, *tensors)
    exact = outputs[0].dtype is _channels.wide(outputs[0].dtype)
    return outputs, [outputs[0]] if spec.inverse and exact else []


def _work(x: Tensor, C: int, between: bool) -> tuple[list[Tensor], int]:
    """What a GPU sums over pixels in, into how many slices, and what comes between the triangles of the inverse."""
    pixels = x.numel() // C
    slices = max(1, min(264, pixels // 512))
    sums = x.new_empty((slices, 2 * C * C + C + 1), dtype=torch.float64)
    return [sums, *(x.new_empty((C, pixels)) for _ in range(2 if between else 0))], slices


def bwd(on: Cpu | Cuda, spec: ChannelSpec, grads: Grads, tensors: Inputs, needs: Needs, saved: Inputs = ()) -> Grads:
    x, *parameters = tensors
    dim = spec.channel_dim
    out = _channels.out_dtype(numbers(tensors))
    dtype = _channels.wide(out)
    given = _in(dtype, parameters)
    grad_y, grad_ladj = grads
    weights = any(needs[1:])
    # 16-bit: computed in float32, on a GPU as it is read and written where one kernel does all but the last sums.
    fuses = isinstance(on, Cuda) and on.module.lu_fuses(DTYPES[dtype], spec.inverse, x.shape[dim], x.device.index or 0)
    moved = out if isinstance(on, Cuda) and (fuses or not weights) else dtype
    new = x.new_zeros if x.numel() == 0 or grad_y is None else x.new_empty
    grad_x = _channels.like(x, moved) if needs[0] else None
    found = [
        new(p.shape, dtype=dtype) if n and i != 4 else None
        for i, (p, n) in enumerate(zip(given, needs[1:], strict=True))
    ]
    lower, upper, log_s, sign_s, _, bias = found
    if x.numel() == 0 or grad_y is None:
        if grad_x is not None:
            grad_x.zero_()
        if grad_ladj is not None:
            of_ladj = grad_ladj.sum() * _channels.signed_pixels(x, dim, spec.inverse)
            if log_s is not None:
                log_s += of_ladj
            if sign_s is not None:
                sign_s += of_ladj / given[3]
    else:
        x = _channels.walkable(_channels.cast(x, moved), dim)
        y = saved[0] if saved else None
        work = ()
        if isinstance(on, Cuda):
            room, slices = _work(x, x.shape[dim], spec.inverse and not fuses) if weights else ([], 1)
            work = (*[*room, None, None, None][:3], slices)
            if weights and spec.inverse:  # the sums are of its gradient and its output
                y = fwd(on, spec, x, *given)[0] if y is None else y
                grad_x = _channels.like(x, moved) if grad_x is None and not fuses else grad_x
        y = None if y is None else _channels.walkable(y, dim)
        grad_y = _channels.walkable(_channels.cast(grad_y, moved), dim)
        if grad_ladj is not None:
            grad_ladj = grad_ladj.contiguous().resolve_neg()
        to = None if grad_x is None else _channels.writable(grad_x, dim)
        of_bias = None if parameters[5].shape[0] == 0 else bias
        on.module.lu_bwd(
            dim, spec.inverse, x, *_factors(given), y, grad_y, grad_ladj, to, lower, upper, log_s, sign_s, of_bias,
            *work, *on.where(x),
        )  # fmt: skip
        if grad_x is not None and to is not None and to is not grad_x:
            grad_x.copy_(to)
    grad_x = grad_x if needs[0] else None
    return [None if g is None else _channels.cast(g, t.dtype) for g, t in zip((grad_x, *found), tensors, strict=True)]


cpu, cuda = (backend(machine, fwd, bwd, why_not, fwd_saving) for machine in (CPU, CUDA))
