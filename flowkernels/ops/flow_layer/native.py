"""Flow layers on the compiled kernels: the parameters of the maps never reach memory, forward or backward."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels import _native
from flowkernels.ops import _net

from .spec import Columns, FlowLayerSpec

_threads = torch.get_num_threads


def why_not(spec: FlowLayerSpec, *tensors: Tensor) -> str | None:
    f = spec.univariate
    if f.circle_shift or f.zero_outside:
        return f"no kernel for {'circle_shift' if f.circle_shift else 'zero_outside'}"
    return f.why_not("cpu") or _net.why_not(tensors)


@functools.lru_cache(maxsize=1024)
def _handle(columns: Columns) -> Any:
    return _native.C.Columns(columns.features, columns.inputs, columns.outputs)


def _describe(spec: FlowLayerSpec, tensors: Sequence[Tensor], needs: Sequence[bool] | None = None) -> _net.Net:
    x, *rest = tensors
    return _net.describe(
        rest, residual=spec.residual, activation=spec.activation, adds=spec.adds, gates=spec.gates, needs=needs,
        plans=() if spec.plan is None else spec.plan.layers, lead=x.shape[:-1],
    )  # fmt: skip


def _arguments(spec: FlowLayerSpec, net: _net.Net, rows: Tensor) -> tuple[Any, ...]:
    return net.handle(rows.shape[0]), spec.univariate.handle(_native.C), _handle(spec.columns), rows


def _fwd(spec: FlowLayerSpec, x: Tensor, net: _net.Net) -> tuple[Tensor, Tensor]:
    rows, y, ladj = _net.flat(x), x.new_empty(x.shape), x.new_empty(x.shape[:-1])
    if rows.shape[0] > 0:
        _native.C.flow_layer_fwd(*_arguments(spec, net, rows), y, ladj, _threads())
    return y, ladj


def fwd(spec: FlowLayerSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    wide = _net.widen(*tensors)
    y, ladj = _fwd(spec, wide[0], _describe(spec, wide))
    return y.to(tensors[0].dtype), ladj


def fwd_saving(spec: FlowLayerSpec, *tensors: Tensor) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    wide = _net.widen(*tensors)
    net = _describe(spec, wide)
    kept = net.keep(wide[0].numel() // spec.columns.features)
    y, ladj = _fwd(spec, wide[0], net)
    return (y.to(tensors[0].dtype), ladj), kept


def bwd(
    spec: FlowLayerSpec,
    grads: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    needs: Sequence[bool],
    saved: Sequence[Tensor] = (),
) -> list[Tensor | None]:
    wide = _net.widen(*tensors)
    x, net = wide[0], _describe(spec, wide, needs[1:])
    rows = _net.flat(x)
    net.reuse(saved)
    for layer in net.layers:
        layer.allocate_grads(rows.shape[0])
    grad_y, grad_ladj = (None if g is None else g.to(x.dtype).contiguous().resolve_neg() for g in grads)
    grad_x = x.new_empty(x.shape) if needs[0] else None
    if rows.shape[0] > 0:
        _native.C.flow_layer_bwd(*_arguments(spec, net, rows), grad_y, grad_ladj, grad_x, _threads())
    grad_x = None if grad_x is None else grad_x.to(tensors[0].dtype)
    return [grad_x, *net.grads(tensors[0], tensors[1:])]
