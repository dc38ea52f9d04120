"""Whole flows on the compiled kernels: one call forward, one backward, and between layers nothing but what is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels import _native
from flowkernels._backend import Grads, Inputs, Needs
from flowkernels._machine import CPU
from flowkernels.ops.autoregressive_inverse.reference import SweepSpec
from flowkernels.ops.flow_layer import native as layer_native
from flowkernels.ops.flow_layer.reference import FlowLayerSpec
from flowkernels.ops.net import native
from flowkernels.ops.net.activations import SLOPE_NEEDS_INPUT
from flowkernels.ops.net.spec import NetSpec, unpack

from .spec import NET_STEPS, FlowSpec, NetStep
from .steps import ElementwiseSpec, OwnSpec

_threads = torch.get_num_threads
_KERNELS = (torch.float32, torch.float64)
# Bytes up to which backward gets every activation of a residual network that saves it a product, and not one in two.
_KEEP_ALL = 32 << 20
_FEW_ROWS = 4  # kFewRows of csrc/net/pack.h: what so few rows get forward has other bits than what backward computes


def why_not(spec: FlowSpec, *tensors: Tensor) -> str | None:
    for step, part in zip(spec.full, spec.parts(tensors[1:]), strict=True):
        reason = _why_not(step, tensors[0], *part)
        if reason is not None:
            return reason
    if tensors[0].dtype not in _KERNELS:
        return f"no kernel for {tensors[0].dtype}: layers round to it, one by one"
    return None


def _why_not(step: NetStep | OwnSpec, *tensors: Tensor) -> str | None:
    if isinstance(step, NET_STEPS):
        return layer_native.why_not_map(step.univariate) or native.why_not_run(tensors)
    return (layer_native.why_not_map(step.univariate) if isinstance(step, ElementwiseSpec) else None) or (
        native.why_not_run(tensors)
    )


def _as_read(spec: FlowSpec, tensors: Sequence[Tensor], lead: Sequence[int]) -> Sequence[Tensor]:
    """The tensors behind x as the kernels read them."""
    if not spec.has_terms and _native.C.are_dense(tuple(tensors)):
        return tensors
    found: list[Tensor] = []
    for step, part in zip(spec.full, spec.parts(tensors), strict=True):
        if isinstance(step, NET_STEPS):
            found += native.as_read(step.net, part, lead)
        else:
            found += [t.resolve_neg().contiguous() for t in part]
    return found


def _call(spec: FlowSpec, x: Tensor, tensors: Sequence[Tensor]) -> tuple[Any, Tensor]:
    """A call of the kernels, and x as they read it."""
    rows, module = native.flat(x), _native.C
    return module.FlowCall(spec.handle(module), rows.shape[0], _as_read(spec, tensors, x.shape[:-1])), rows


def fwd(spec: FlowSpec, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    y, ladj = x.new_empty(x.shape), x.new_empty(x.shape[:-1])
    if x.numel() > 0:
        call, rows = _call(spec, x, tensors)
        call.fwd(rows, y, ladj, None, _threads())
    return y, ladj


def fwd_saving(spec: FlowSpec, x: Tensor, *tensors: Tensor) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    y, ladj = x.new_empty(x.shape), x.new_empty(x.shape[:-1])
    if x.numel() == 0:
        return (y, ladj), [x.new_empty(0)]
    call, rows = _call(spec, x, tensors)
    kept = _room(spec, x, rows.shape[0], call.kept_size)
    call.fwd(rows, y, ladj, kept if kept.numel() > 0 else None, _threads())
    return (y, ladj), [kept]


def _room(
    spec: FlowSpec, x: Tensor, rows: int, size_of: Callable[[bool], int], room: Callable[..., Tensor] = CPU.room
) -> Tensor:
    """For what is kept: all of it, less, or nothing; ``size_of(all)`` numbers."""
    if rows > _FEW_ROWS:
        if spec.flat:
            return x.new_empty(0)
        size = size_of(True)
        if size * x.element_size() <= _KEEP_ALL:
            return room(x, size)
    return room(x, size_of(False))


def saves(spec: FlowSpec, x: Tensor, *tensors: Tensor) -> Tensor:
    """What `fwd_saving` saves, of tensors that may have no numbers."""
    rows = math.prod(x.shape[:-1])
    return _room(spec, x, rows, lambda all: rows * _kept_width(spec, tensors, all), Tensor.new_empty)


def _kept_width(spec: FlowSpec, tensors: Sequence[Tensor], all: bool) -> int:
    """`FlowCall::kept_size` of one row."""
    # What enters each step but the first, and what leaves a sweep that is the last.
    width = (len(spec.full) - 1 + isinstance(spec.full[-1], SweepSpec)) * spec.features
    for step, part in zip(spec.full, spec.parts(tensors), strict=True):
        if isinstance(step, FlowLayerSpec):
            weights = unpack(step.net, (None, *part))[1].weights
            width += sum(weight.shape[1] for weight in _that_keep(step.net, weights, all))
    return width


def _that_keep(net: NetSpec, weights: Sequence[Tensor], all: bool) -> Sequence[Tensor]:
    """Of the layers whose input is kept, as csrc/flow/flow_args.cpp has them."""
    if net.activation in SLOPE_NEEDS_INPUT:
        return ()
    if not net.residual or (all and not any(net.gates) and not any(net.scales)):
        return weights[1:]
    return weights[2 : net.n - 1 : 2]


def saved_of(spec: FlowSpec, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return outputs


def bwd(spec: FlowSpec, grads: Grads, tensors: Inputs, needs: Needs, saved: Inputs = ()) -> Grads:
    x, *rest = tensors
    if x.numel() == 0:
        return [torch.zeros_like(t) if n else None for t, n in zip(tensors, needs, strict=True)]
    call, rows, kept = _call_back(spec, x, rest, saved)
    grad_y, grad_ladj = _dense(grads)
    grad_x = x.new_empty(x.shape) if needs[0] else None
    if not spec.has_terms:
        found = [torch.empty_like(t, memory_format=torch.contiguous_format) if n else None
                 for t, n in zip(rest, needs[1:], strict=True)]  # fmt: skip
        call.bwd(rows, grad_y, grad_ladj, grad_x, kept, found, _threads())
        return [grad_x, *found]
    lead, found, wanted = x.shape[:-1], [], needs[1:]
    for step, part in zip(spec.full, spec.parts(rest), strict=True):
        needed = wanted[len(found) : len(found) + len(part)]
        if isinstance(step, NET_STEPS):
            found += native.allocate_grads(step.net, part, needed, rows.shape[0])
        else:
            found += [t.new_empty(t.shape) if n else None for t, n in zip(part, needed, strict=True)]
    call.bwd(rows, grad_y, grad_ladj, grad_x, kept, found, _threads())
    return [grad_x, *native.given_back(found, rest, lead)]


def bwd_flat(
    spec: FlowSpec, grads: Grads, tensors: Inputs, wants_x: bool, saved: Inputs, places: Sequence[int], size: int
) -> tuple[Tensor | None, Tensor]:  # fmt: skip
    """The gradient of x, and those of all other tensors in one of this size, each from its place on: they leave nothing
    of it out. Of a flow without terms."""
    x, *rest = tensors
    call, rows, kept = _call_back(spec, x, rest, saved)
    grad_x = x.new_empty(x.shape) if wants_x else None
    flat = x.new_empty(size)
    call.bwd_flat(rows, *_dense(grads), grad_x, kept, flat, places, _threads())
    return grad_x, flat


def _dense(grads: Grads) -> tuple[Tensor | None, ...]:
    return tuple([None if g is None else g.contiguous().resolve_neg() for g in grads])


def _call_back(spec: FlowSpec, x: Tensor, rest: Sequence[Tensor], saved: Inputs) -> tuple[Any, Tensor, Tensor | None]:
    """A call, x as it reads it, and what was kept; None: flat, or of a library op that does not save."""
    call, rows = _call(spec, x, rest)
    kept = saved[0] if saved and saved[0].numel() > 0 else None
    if not saved and rows.shape[0] <= _FEW_ROWS:
        kept = x.new_empty(call.kept_size(True))
        call.fwd(rows, x.new_empty(x.shape), x.new_empty(x.shape[:-1]), kept, _threads())
    return call, rows, kept
