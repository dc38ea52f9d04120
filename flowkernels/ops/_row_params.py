"""Maps whose parameters are rows of one tensor: what a compiler is told of them, and the kernels of a CPU or a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkernels import _native
from flowkernels._backend import Grads, Inputs, Needs
from flowkernels._machine import Cpu, Cuda
from flowkernels._native import DTYPES

_WIDE = (torch.float32, torch.float64)
_MAX_LEADING = 8  # of csrc/common/tensor.h


def fake(spec: Any, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """y and ladj without their values."""
    dtype = torch.promote_types(x.dtype, params.dtype)
    ladj_dtype = torch.promote_types(dtype, torch.float32)
    return (
        torch.empty(x.shape, dtype=dtype, device=x.device),
        torch.empty(x.shape[:-1], dtype=ladj_dtype, device=x.device),
    )


def _readable(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """As the kernels read them: of types they have, with the values that are in memory, params dense in their last dim
    and at most 8 leading dims that cannot be merged."""
    if x.dtype is not params.dtype:
        x, params = _native.common_types(x, params)
    if x.is_neg() or params.is_neg():  # the sign of an imaginary part is not in its memory
        x, params = x.resolve_neg(), params.resolve_neg()
    if params.stride(-1) != 1 and params.numel() > 0:
        params = params.contiguous()
    if x.dim() > 9 and not _merges(x, params):
        x, params = x.contiguous(), params.contiguous()
    return x, params


def _merges(x: Tensor, params: Tensor) -> bool:
    """Whether the leading dims are 8 or fewer, merged where both tensors allow it."""
    dims: list[tuple[int, int]] = []  # strides of x and params
    for n, a, b in zip(x.shape[:-1], x.stride()[:-1], params.stride()[:-2], strict=True):
        if n != 1:
            dims[-1:] = [(a, b)] if dims and dims[-1] == (n * a, n * b) else [*dims[-1:], (a, b)]
    return len(dims) <= _MAX_LEADING


def fwd(op: str, on: Cpu | Cuda, spec: Any, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    # Here and not in functions: this is most of what a small call costs.
    dense = x.is_contiguous() and params.is_contiguous()
    if not dense or x.dtype is not params.dtype or x.is_neg() or params.is_neg():
        x, params = _readable(x, params)
    y, lead = on.empty_like(x), x.shape[:-1]
    if x.dtype not in _WIDE:
        ladj = x.new_empty(lead, dtype=torch.float32)
    else:
        ladj = x.new_empty(lead[0]) if len(lead) == 1 else x.new_empty(lead)  # a number is parsed in half the time
    if x.numel() == 0:
        return y, ladj.zero_()
    getattr(on.module, op)(spec.settings(on.module), x, params, y, ladj, *on.where(x))
    return y, ladj


def bwd(op: str, on: Cpu | Cuda, spec: Any, grads: Grads, tensors: Inputs, needs: Needs) -> Grads:
    x_in, params_in = tensors
    x, params = _readable(x_in, params_in)
    grad_y, grad_ladj = (None if g is None else g.contiguous().resolve_neg() for g in grads)
    grad_x, grad_params = on.empty_like(x), on.empty_like(params)
    if x.numel() > 0:
        getattr(on.module, op)(
            spec.settings(on.module), x, params, grad_y, grad_ladj, grad_x, grad_params, *on.where(x)
        )  # fmt: skip
    return (
        grad_x.to(x_in.dtype) if needs[0] else None,
        grad_params.to(params_in.dtype) if needs[1] else None,
    )


def why_not(on: Cpu | Cuda, x: Tensor, params: Tensor) -> str | None:
    """Why kernels cannot read these, or None."""
    if x.dtype not in DTYPES or params.dtype not in DTYPES:
        return f"no kernel for {x.dtype} with {params.dtype}"
    return on.why_not((x, params))
