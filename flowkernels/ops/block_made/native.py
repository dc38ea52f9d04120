"""Block autoregressive maps on the compiled kernels of a CPU: describes tensors, allocates, calls.

Kept for backward are the inputs, and of an inverse a copy of x, which whoever called may write to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels import _native
from flowkernels._backend import Grads, Inputs, Needs
from flowkernels.ops.net.native import dense, flat, given_and_saved, why_not_run, widen

from .reference import ACTIVATIONS, RESIDUALS

_threads = torch.get_num_threads
_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}  # as csrc/block_made/block_made.h has them
_RESIDUAL_CODES = {name: code for code, name in enumerate(RESIDUALS)}


def why_not(spec: Any, *tensors: Tensor) -> str | None:
    return why_not_run(tensors)


def _layers(spec: Any, rows: Tensor, tensors: Sequence[Tensor], grads: Sequence[Tensor | None] = ()) -> Any:
    n, D = rows.shape
    settings = _CODES[spec.activation], _RESIDUAL_CODES[spec.residual], spec.inverse, spec.eps, spec.normalized
    return _native.C.BlockLayers(n, D, *settings, [dense(t) for t in tensors], grads)


def _fwd(spec: Any, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """y and ladj in the dtype the kernels compute in."""
    x, *rest = tensors
    rows = flat(x)
    y, ladj = x.new_empty(x.shape), x.new_empty(x.shape[:-1])
    if rows.shape[0] > 0:
        _native.C.block_made_fwd(_layers(spec, rows, rest), rows, y, ladj, _threads())
    return y, ladj


def fwd(spec: Any, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    y, ladj = _fwd(spec, widen(*tensors))
    return y.to(tensors[0].dtype), ladj


def fwd_saving(spec: Any, *tensors: Tensor) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    return given_and_saved(spec.inverse, *_fwd(spec, widen(*tensors)), tensors[0].dtype)


def bwd(spec: Any, grads: Grads, tensors: Inputs, needs: Needs, saved: Inputs = ()) -> Grads:
    wide = widen(*tensors)
    x, rest = wide[0], wide[1:]
    rows = flat(x)
    new = x.new_empty if rows.shape[0] > 0 else x.new_zeros
    beside = list(needs)
    if spec.normalized:  # a row's norm has its gradient from those of the row's weights
        n_layers = (len(needs) - 1) // 3
        for k in range(1, 1 + 3 * n_layers, 3):
            beside[k] |= needs[k + 2]
    found = [new(t.shape) if need else None for t, need in zip(wide, beside, strict=True)]
    if rows.shape[0] > 0:
        y = None
        if spec.inverse:
            y = saved[0] if saved else _fwd(spec, wide)[0]
        given = [None if g is None else g.to(x.dtype).resolve_neg().contiguous() for g in grads]
        _native.C.block_made_bwd(_layers(spec, rows, rest, found[1:]), rows, y, *given, found[0], _threads())
    return [g.to(t.dtype) if need and g is not None else None for g, t, need in zip(found, tensors, needs, strict=True)]
