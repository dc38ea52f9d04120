"""Flow layers on the compiled kernels: the parameters of the maps never reach memory, forward or backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkernels import _native
from flowkernels._backend import Grads, Inputs, Needs
from flowkernels.ops.net import native
from flowkernels.ops.univariate import Map

from .reference import FlowLayerSpec

_threads = torch.get_num_threads


def why_not(spec: FlowLayerSpec, *tensors: Tensor) -> str | None:
    return why_not_map(spec.univariate) or native.why_not_run(tensors)


def why_not_map(f: Map, backend: str = "cpu") -> str | None:
    """Why a fused layer's kernels lack this map, or None."""
    if f.circle_shift or f.zero_outside:
        return f"no kernel for {'circle_shift' if f.circle_shift else 'zero_outside'}"
    return f.why_not(backend)


def _fwd(
    spec: FlowLayerSpec, x: Tensor, tensors: Sequence[Tensor], kept: Sequence[Tensor | None] = ()
) -> tuple[Tensor, Tensor]:
    rows, (y, ladj) = native.flat(x), native.outputs(x)
    n, C = rows.shape[0], _native.C
    if n > 0:
        net = native.handle(spec.net, tensors, ladj.shape, n, kept)
        C.flow_layer_fwd(net, spec.univariate.handle(C), spec.split.handle(C), rows, y, ladj, _threads())
    return y, ladj


def fwd(spec: FlowLayerSpec, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    if x.dtype in native.KERNELS:
        return _fwd(spec, x, tensors)
    wide, *rest = native.widen(x, *tensors)
    y, ladj = _fwd(spec, wide, rest)
    return y.to(x.dtype), ladj


def fwd_saving(spec: FlowLayerSpec, *tensors: Tensor) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    wide = native.widen(*tensors)
    kept = native.keep(spec.net, wide[1:], wide[0].numel() // spec.split.features)
    y, ladj = _fwd(spec, wide[0], wide[1:], kept)
    return (y.to(tensors[0].dtype), ladj), native.saved_from(kept)


def bwd(spec: FlowLayerSpec, grads: Grads, tensors: Inputs, needs: Needs, saved: Inputs = ()) -> Grads:
    x, *rest = native.widen(*tensors)
    rows, lead = native.flat(x), x.shape[:-1]
    found = native.allocate_grads(spec.net, rest, needs[1:], rows.shape[0])
    grad_y, grad_ladj = (None if g is None else g.to(x.dtype).contiguous().resolve_neg() for g in grads)
    grad_x = x.new_empty(x.shape) if needs[0] else None
    if rows.shape[0] > 0:
        net, C = native.handle(spec.net, rest, lead, rows.shape[0], native.reuse(spec.net, saved), found), _native.C
        given = net, spec.univariate.handle(C), spec.split.handle(C), rows
        C.flow_layer_bwd(*given, grad_y, grad_ladj, grad_x, _threads())
    grad_x = None if grad_x is None else grad_x.to(tensors[0].dtype)
    return [grad_x, *native.given_back(found, tensors[1:], lead)]
