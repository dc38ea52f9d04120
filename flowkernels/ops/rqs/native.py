"""The spline on the compiled kernels of a CPU or a GPU: allocates, describes strides, calls."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels import _native
from flowkernels._machine import CPU, CUDA, Backend, Cpu, Cuda
from flowkernels._native import DTYPES

from .spec import NO_LINEAR, TAILS, RqsSpec

_WIDE = (torch.float32, torch.float64)


def why_not(on: Cpu | Cuda, spec: RqsSpec, x: Tensor, params: Tensor) -> str | None:
    if x.dtype not in DTYPES or params.dtype not in DTYPES:
        return f"no kernel for {x.dtype} with {params.dtype}"
    if spec.splits and isinstance(on, Cuda):
        return NO_LINEAR
    return on.why_not((x, params))


@functools.lru_cache(maxsize=1024)
def handle(module: Any, spec: RqsSpec) -> Any:
    """The settings as this compiled module takes them."""
    clip = 1 / -math.log(spec.slope) if spec.clipped else 0.0
    return module.RqsSpec(
        spec.bins, TAILS.index(spec.tails), spec.left, spec.right, spec.bottom, spec.top, spec.min_bin_width,
        spec.min_bin_height, spec.min_derivative, spec.logit_scale, 2 * clip, clip, spec.edge_logit, spec.inverse,
        spec.min_lambda,
    )  # fmt: skip


def _rows(x: Tensor, params: Tensor) -> list[tuple[int, int, int]]:
    """Leading dims as (size, stride of x, stride of params), merged where both tensors allow it."""
    dims: list[tuple[int, int, int]] = []
    for n, a, b in zip(x.shape[:-1], x.stride()[:-1], params.stride()[:-2], strict=True):
        if n == 1:
            continue
        if dims and dims[-1][1] == n * a and dims[-1][2] == n * b:
            dims[-1] = (dims[-1][0] * n, a, b)
        else:
            dims.append((n, a, b))
    return dims


def _geometry(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor, tuple]:
    dtype = x.dtype
    if dtype is params.dtype and x.is_contiguous() and params.is_contiguous() and not (x.is_neg() or params.is_neg()):
        D, P = params.shape[-2:]  # most calls: one row of Python less is a microsecond of ten
        kind = DTYPES[dtype]
        return x, params, ([(x.numel() // D, D, D * P)] if D else [(0, 0, 0)], D, 1, P, kind, kind)
    if dtype is not params.dtype:
        x, params = _native.common_types(x, params)
    if x.is_neg() or params.is_neg():  # the sign of an imaginary part is not in its memory
        x, params = x.resolve_neg(), params.resolve_neg()
    if params.stride(-1) != 1 and params.numel() > 0:
        params = params.contiguous()
    rows = _rows(x, params)
    if len(rows) > 8:
        x, params = x.contiguous(), params.contiguous()
        rows = _rows(x, params)
    return x, params, (rows, x.shape[-1], x.stride(-1), params.stride(-2), DTYPES[x.dtype], DTYPES[params.dtype])


def _ladj_like(x: Tensor) -> Tensor:
    lead = x.shape[:-1]
    if x.dtype not in _WIDE:
        return x.new_empty(lead, dtype=torch.float32)
    return x.new_empty(lead[0]) if len(lead) == 1 else x.new_empty(lead)  # a number is parsed in half the time


def fwd(on: Cpu | Cuda, spec: RqsSpec, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    x, params, geometry = _geometry(x, params)
    y, ladj = on.empty_like(x), _ladj_like(x)
    if x.numel() == 0:
        return y, ladj.zero_()
    tensors = (x.data_ptr(), params.data_ptr(), y.data_ptr(), ladj.data_ptr(), 0, 0, 0, 0)
    on.module.rqs_fwd(handle(on.module, spec), *geometry, tensors, *on.where(x))
    return y, ladj


def bwd(
    on: Cpu | Cuda,
    spec: RqsSpec,
    grads: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    x_in, params_in = tensors
    x, params, geometry = _geometry(x_in, params_in)
    grad_y, grad_ladj = (None if g is None else g.contiguous().resolve_neg() for g in grads)
    grad_x, grad_params = on.empty_like(x), on.empty_like(params)
    if x.numel() > 0:
        addresses = (
            x.data_ptr(), params.data_ptr(), 0, 0, 0 if grad_y is None else grad_y.data_ptr(),
            0 if grad_ladj is None else grad_ladj.data_ptr(), grad_x.data_ptr(), grad_params.data_ptr(),
        )  # fmt: skip
        on.module.rqs_bwd(handle(on.module, spec), *geometry, addresses, *on.where(x))
    return (
        grad_x.to(x_in.dtype) if needs[0] else None,
        grad_params.to(params_in.dtype) if needs[1] else None,
    )


cpu, cuda = (Backend(machine, fwd, bwd, why_not) for machine in (CPU, CUDA))
