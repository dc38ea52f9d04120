"""Planar, radial and Sylvester maps on the compiled kernels of a CPU: describes tensors, allocates, calls.

Kept for backward are the inputs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels import _native
from flowkernels._backend import Grads, Inputs, Needs
from flowkernels.ops.net.native import flat, rows_dense, why_not_run, widen

from .reference import ACTIVATIONS, KINDS, dims

_threads = torch.get_num_threads
_KIND_CODES = {name: code for code, name in enumerate(KINDS)}  # as csrc/low_rank/low_rank.h has them
_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}


def why_not(spec: Any, *tensors: Tensor) -> str | None:
    return why_not_run(tensors)


def _is_shared(spec: Any, params: Sequence[Tensor]) -> bool:
    return params[0].dim() == 1 + dims(spec.kind)[0]


def _settings(spec: Any, params: Sequence[Tensor]) -> tuple[Any, ...]:
    first = dims(spec.kind)[0]
    width = params[1].shape[-1] if spec.kind == "sylvester" else 1
    return (
        _KIND_CODES[spec.kind], _CODES[spec.activation], spec.negative_slope, spec.alpha == "abs", spec.inverse,
        _is_shared(spec, params), params[0].shape[-1 - first], width,
    )  # fmt: skip


def _as_read(spec: Any, params: Sequence[Tensor], rows: int) -> list[Tensor]:
    """``[rows, numbers]`` of each, or ``[1, numbers]``."""
    n = 1 if _is_shared(spec, params) else rows
    return [rows_dense(t.reshape(n, -1)) for t in params]


def _fwd(spec: Any, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """y and ladj in the dtype the kernels compute in."""
    x, *params = tensors
    rows = flat(x)
    y, ladj = x.new_empty(x.shape), x.new_empty(x.shape[:-1])
    if rows.shape[0] > 0:
        given = _as_read(spec, params, rows.shape[0])
        _native.C.low_rank_fwd(_settings(spec, params), rows, given, y, ladj, _threads())
    return y, ladj


def fwd(spec: Any, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    y, ladj = _fwd(spec, widen(*tensors))
    return y.to(tensors[0].dtype), ladj


def bwd(spec: Any, grads: Grads, tensors: Inputs, needs: Needs) -> Grads:
    wide = widen(*tensors)
    x, params = wide[0], wide[1:]
    n = x.numel() // x.shape[-1]
    new = x.new_empty if n > 0 else x.new_zeros
    found = [new(t.shape) if need else None for t, need in zip(wide, needs, strict=True)]
    if n > 0:
        given = [None if g is None else g.to(x.dtype).resolve_neg().contiguous() for g in grads]
        _native.C.low_rank_bwd(
            _settings(spec, params), flat(x), _as_read(spec, params, n), *given, found[0], found[1:], _threads()
        )  # fmt: skip
    return [g.to(t.dtype) if need and g is not None else None for g, t, need in zip(found, tensors, needs, strict=True)]
