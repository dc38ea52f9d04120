"""Batch norm on the compiled kernels of a CPU: allocates, calls. What it returned is kept for the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels import _native
from flowkernels._backend import Grads, Inputs, Needs
from flowkernels._machine import CPU
from flowkernels.ops.net.activations import CODES
from flowkernels.ops.net.native import why_not_run, widen

_threads = torch.get_num_threads


def why_not(spec: Any, x: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    return "x has no rows" if x.shape[0] == 0 else why_not_run((x, weight, bias))


def _dense(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.resolve_neg().contiguous() for t in widen(*tensors)]


def _fwd(spec: Any, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """In the dtype the kernels compute in."""
    x, weight, bias = _dense(tensors)
    y, mean, var = CPU.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    _native.C.batch_norm_fwd(CODES[spec.activation], spec.eps, x, weight, bias, y, mean, var, _threads())
    return y, mean, var


def fwd(spec: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
    dtype = tensors[0].dtype
    return tuple([t.to(dtype) for t in _fwd(spec, tensors)])


def fwd_saving(spec: Any, *tensors: Tensor) -> tuple[tuple[Tensor, ...], Sequence[Tensor]]:
    found, dtype = _fwd(spec, tensors), tensors[0].dtype
    return tuple([t.to(dtype) for t in found]), found


def bwd(spec: Any, grads: Grads, tensors: Inputs, needs: Needs, saved: Inputs = ()) -> Grads:
    dtype = tensors[0].dtype
    x, weight, bias = _dense(tensors)
    y, mean, var = saved or _fwd(spec, tensors)
    grad_y, grad_mean, grad_var = [None if g is None else g.to(x.dtype) for g in grads]
    given = torch.zeros_like(x) if grad_y is None else grad_y.resolve_neg().contiguous()
    found = [torch.empty_like(t) if need else None for t, need in zip((x, weight, bias), needs, strict=True)]
    _native.C.batch_norm_bwd(
        CODES[spec.activation], spec.eps, x, weight, bias, y, mean, var, given, *found, _threads()
    )  # fmt: skip
    if found[0] is not None and grad_mean is not None:
        found[0] += grad_mean / x.shape[0]
    if found[0] is not None and grad_var is not None:
        found[0] += (x - mean) * (grad_var * (2 / x.shape[0]))
    return [None if g is None else g.to(dtype) for g in found]
