"""The LU linear map on the compiled kernels: describes strides, allocates, calls."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkernels import _native
from flowkernels._native import DTYPES
from flowkernels.ops import _channels

from .reference import LuSpec

_threads = torch.get_num_threads


def why_not(spec: LuSpec, *tensors: Tensor) -> str | None:
    return _native.why_not(tensors)


def _in(dtype: torch.dtype, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The parameters as the kernels read them: lower, upper, log_s, sign_s, permutation, bias."""
    found = []
    for i, t in enumerate(tensors):
        if t.dtype is not dtype and i != 4:
            t = t.to(dtype)
        found.append(t if t.is_contiguous() and not t.is_neg() else t.resolve_neg().contiguous())
    return found


def _pointers(parameters: Sequence[Tensor]) -> tuple[int, ...]:
    lower, upper, log_s, sign_s, permutation, bias = parameters
    absent = (bias.shape[0] == 0, permutation.shape[0] == 0)
    return (
        lower.data_ptr(), upper.data_ptr(), log_s.data_ptr(), sign_s.data_ptr(), 0 if absent[0] else bias.data_ptr(),
        0 if absent[1] else permutation.data_ptr(),
    )  # fmt: skip


def fwd(spec: LuSpec, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    dim = spec.channel_dim
    out = _channels.out_dtype((x, *parameters[:4], parameters[5]))
    dtype = _channels.wide(out)
    y = _channels.like(x, out)
    ladj = x.new_empty(_channels.ladj_shape(x, dim), dtype=dtype)
    given = _in(dtype, parameters)
    if x.numel() == 0:
        total = given[2].sum() * _channels.signed_pixels(x, dim, spec.inverse)
        return y, ladj.copy_(total)
    wide = y if out is dtype else _channels.like(x, dtype)  # 16-bit: computed in float32 and rounded once
    to, at = _channels.writable(wide, dim)
    x, source = _channels.walkable(_channels.cast(x, dtype), dim)
    _native.C.lu_fwd(  # type: ignore[union-attr]
        DTYPES[dtype], spec.inverse, _channels.sizes(x, dim), source, _pointers(given), at, ladj.data_ptr(), _threads()
    )
    return y if to is y else y.copy_(to), ladj


def fwd_saving(spec: LuSpec, *tensors: Tensor) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    """The inverse keeps its output, which whatever comes next keeps anyway: one solve less in backward."""
    outputs = fwd(spec, *tensors)
    exact = outputs[0].dtype is _channels.wide(outputs[0].dtype)
    return outputs, [outputs[0]] if spec.inverse and exact else []


def bwd(
    spec: LuSpec,
    grads: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    needs: Sequence[bool],
    saved: Sequence[Tensor] = (),
) -> list[Tensor | None]:
    x, *parameters = tensors
    dim = spec.channel_dim
    out = _channels.out_dtype((x, *parameters[:4], parameters[5]))
    dtype = _channels.wide(out)
    given = _in(dtype, parameters)
    grad_y, grad_ladj = grads
    new = x.new_zeros if x.numel() == 0 or grad_y is None else x.new_empty
    grad_x = _channels.like(x, dtype) if needs[0] else None
    found = [
        new(p.shape, dtype=dtype) if n and i != 4 else None
        for i, (p, n) in enumerate(zip(given, needs[1:], strict=True))
    ]
    lower, upper, log_s, sign_s, _, bias = found
    if x.numel() == 0 or grad_y is None:
        if grad_x is not None:
            grad_x.zero_()
        if log_s is not None and grad_ladj is not None:
            log_s += grad_ladj.sum() * _channels.signed_pixels(x, dim, spec.inverse)
    else:
        x, source = _channels.walkable(_channels.cast(x, dtype), dim)
        _y, result = _channels.walkable(saved[0], dim) if saved else (None, (0, 0, 0, 0))
        grad_y, incoming = _channels.walkable(_channels.cast(grad_y, dtype), dim)
        if grad_ladj is not None:
            grad_ladj = grad_ladj.contiguous().resolve_neg()
        to, at = (None, (0, 0, 0, 0)) if grad_x is None else _channels.writable(grad_x, dim)
        _native.C.lu_bwd(  # type: ignore[union-attr]
            DTYPES[dtype], spec.inverse, _channels.sizes(x, dim), source, _pointers(given), result, incoming,
            0 if grad_ladj is None else grad_ladj.data_ptr(), at,
            tuple(0 if g is None else g.data_ptr() for g in (lower, upper, log_s, sign_s, bias)), _threads(),
        )  # fmt: skip
        if grad_x is not None and to is not None and to is not grad_x:
            grad_x.copy_(to)
    return [None if g is None else _channels.cast(g, t.dtype) for g, t in zip((grad_x, *found), tensors, strict=True)]
