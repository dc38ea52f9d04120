"""Residual maps with their exact determinant on the compiled kernels of a CPU: describes tensors, allocates, calls.

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

from .reference import ACTIVATIONS, n_steps
from .spec import ResidualSpec

_threads = torch.get_num_threads
_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}  # as csrc/residual_flow/residual_flow.h has them
MOST_FEATURES = 128  # kMostResidualFeatures there


def why_not(spec: ResidualSpec, *tensors: Tensor) -> str | None:
    if spec.log_det != "exact":
        return "no kernel estimates a determinant"
    if tensors[0].shape[-1] > MOST_FEATURES:
        return f"x has more than {MOST_FEATURES} features"
    return why_not_run(tensors)


def _layers(spec: ResidualSpec, rows: Tensor, tensors: Sequence[Tensor], grads: Sequence[Tensor | None] = ()) -> Any:
    steps = n_steps(spec.lipschitz, rows.dtype)
    least = spec.tolerance * (1 - spec.lipschitz) / spec.lipschitz
    settings = _CODES[spec.activation], spec.preactivated, spec.inverse, steps, least
    return _native.C.ResidualLayers(*rows.shape, *settings, [dense(t) for t in tensors], grads)


def _fwd(spec: ResidualSpec, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """y and ladj in the dtype the kernels compute in."""
    x, *rest = tensors
    rows = flat(x)
    y, ladj = x.new_empty(x.shape), x.new_empty(x.shape[:-1])
    if rows.shape[0] > 0:
        _native.C.residual_flow_fwd(_layers(spec, rows, rest), rows, y, ladj, _threads())
    return y, ladj


def fwd(spec: ResidualSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    y, ladj = _fwd(spec, widen(*tensors))
    return y.to(tensors[0].dtype), ladj


def fwd_saving(spec: ResidualSpec, *tensors: Tensor) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    return given_and_saved(spec.inverse, *_fwd(spec, widen(*tensors)), tensors[0].dtype)


def bwd(spec: ResidualSpec, grads: Grads, tensors: Inputs, needs: Needs, saved: Inputs = ()) -> Grads:
    wide = widen(*tensors)
    x, rest = wide[0], wide[1:]
    rows = flat(x)
    new = x.new_empty if rows.shape[0] > 0 else x.new_zeros
    found = [new(t.shape) if need else None for t, need in zip(wide, needs, strict=True)]
    if rows.shape[0] > 0:
        y = None
        if spec.inverse:
            y = saved[0] if saved else _fwd(spec, wide)[0]
        given = [None if g is None else g.to(x.dtype).resolve_neg().contiguous() for g in grads]
        _native.C.residual_flow_bwd(_layers(spec, rows, rest, found[1:]), rows, y, *given, found[0], _threads())
    return [g.to(t.dtype) if need and g is not None else None for g, t, need in zip(found, tensors, needs, strict=True)]
