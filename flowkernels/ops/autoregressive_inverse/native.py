"""The autoregressive inverse on the compiled kernels: one sweep over the hidden units, and one back.

Kept for backward are z and a copy of x, which whoever called may write to; the network runs forward once more before
the sweep back: on a CPU in cache, on a GPU as the dense products of `dense`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels._backend import Grads, Inputs, Needs
from flowkernels._machine import CPU, CUDA, Cpu, Cuda, backend
from flowkernels._native import DTYPES
from flowkernels.ops.net import native
from flowkernels.ops.net.spec import without_periodic

from . import dense, periodic, schedule
from .reference import SweepSpec

_MAX_CUDA_LAYERS = 16  # kMaxSweepLayers of csrc/autoregressive_inverse/autoregressive_inverse.h


def why_not(on: Cpu | Cuda, spec: SweepSpec, *tensors: Tensor) -> str | None:
    reason = native.why_not_run(tensors, on) or spec.univariate.why_not("cpu" if isinstance(on, Cpu) else "cuda")
    if reason is not None or isinstance(on, Cpu):
        return reason
    if spec.net.n > _MAX_CUDA_LAYERS:
        return f"the net has more than {_MAX_CUDA_LAYERS} layers"
    if spec.only_on_cpu():
        return f"no kernel for {spec.only_on_cpu()}"
    x, dtype = tensors[0], torch.promote_types(tensors[0].dtype, torch.float32)
    units = sum(layer.n_in for layer in spec.plan().layers)
    if not on.module.sweep_fits(units, _map(on, spec), DTYPES[dtype], x.device.index or 0):
        return "the hidden units of 32 rows do not fit in the GPU's shared memory"
    return None


def _map(on: Cpu | Cuda, spec: SweepSpec) -> Any:
    return spec.univariate.inverted().handle(on.module)


def _on_gpu(on: Cuda, spec: SweepSpec, net: Any, z: Tensor) -> tuple[Any, Tensor]:
    """What a GPU is told besides: the steps, and room for the weights in order of the degrees."""
    return schedule.handle(spec.plan(), on.module, z.device), z.new_empty(on.module.sweep_packed(net))


def _fwd(on: Cpu | Cuda, spec: SweepSpec, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """x and ladj in the dtype the kernels compute in."""
    (z, *rest), features = without_periodic(spec.net, tensors)
    rows, lead = native.flat(z), z.shape[:-1]
    features = None if features is None else features.contiguous().resolve_neg()
    x, ladj = z.new_empty(z.shape), z.new_empty(lead)
    if rows.shape[0] > 0:
        on_gpu = isinstance(on, Cuda)
        device = z.device if on_gpu else None
        net = native.handle(spec.net, rest, lead, rows.shape[0], module=on.module, device=device)
        more = _on_gpu(on, spec, net, z) if on_gpu else (spec.univariate.zero_outside, features)
        on.module.sweep_fwd(net, _map(on, spec), rows, x, ladj, spec.univariate.circle_shift, *more, *on.where(z))
    return x, ladj


def fwd(on: Cpu | Cuda, spec: SweepSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    x, ladj = _fwd(on, spec, native.widen(*tensors))
    return x.to(tensors[0].dtype), ladj


def fwd_saving(on: Cpu | Cuda, spec: SweepSpec, *tensors: Tensor) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    x, ladj = _fwd(on, spec, native.widen(*tensors))
    given = x.to(tensors[0].dtype)
    return (given, ladj), [x.clone() if given is x else x]


def bwd(on: Cpu | Cuda, spec: SweepSpec, grads: Grads, tensors: Inputs, needs: Needs, saved: Inputs = ()) -> Grads:
    wide = native.widen(*tensors)
    (z, *rest), features = without_periodic(spec.net, wide)
    (need_z, *needs_net), need_features = without_periodic(spec.net, needs)
    rows, lead = native.flat(z), z.shape[:-1]
    grad_x, grad_ladj = (None if g is None else g.to(z.dtype).contiguous().resolve_neg() for g in grads)
    grad_z, grad_features = z.new_empty(z.shape) if need_z else None, None
    x = saved[0] if saved else _fwd(on, spec, wide)[0]
    if isinstance(on, Cuda) and rows.shape[0] > 0:
        with torch.autocast(z.device.type, enabled=False):  # that of whoever calls backward
            layers = dense.layers_of(spec, wide, needs)
            units = dense.forward(spec, layers, x.view(rows.shape))
            net = native.handle(spec.net, rest, lead, rows.shape[0], module=on.module, device=z.device)
            given = rows, x, grad_x, grad_ladj, grad_z, *_on_gpu(on, spec, net, z)
            on.module.sweep_bwd(net, _map(on, spec), *given, units.pairs(), *on.where(z))
            found = dense.gradients(layers, units)
    else:
        found = native.allocate_grads(spec.net, rest, needs_net, rows.shape[0])
        seen = None if features is None else periodic.periodic_features(x, features)
        slope = None if features is None else periodic.slope(x, features)
        if spec.univariate.zero_outside:
            f: Any = spec.univariate.inverted()
            slope = f.zeroed(torch.ones_like(x) if slope is None else slope, z).contiguous()
            grad_x = None if grad_x is None else f.zeroed(grad_x, z).contiguous()
        grad_seen = torch.zeros_like(x) if need_features else None
        if rows.shape[0] > 0:
            net = native.handle(spec.net, rest, lead, rows.shape[0], grads=found, module=on.module)
            given = (rows, x, grad_x, grad_ladj, grad_z, seen, slope, grad_seen)
            on.module.sweep_bwd(net, _map(on, spec), *given, *on.where(z))
        if grad_seen is not None and features is not None:
            grad_features = periodic.gradient(x.view(rows.shape), features, grad_seen.view(rows.shape))
            grad_features = grad_features.to(tensors[0].dtype)
    grad_z = None if grad_z is None else grad_z.to(tensors[0].dtype)
    of_net = native.given_back(found, without_periodic(spec.net, tensors)[0][1:], lead)
    return [grad_z, *of_net, *([grad_features] if spec.net.periodic else [])]


cpu, cuda = (backend(machine, fwd, bwd, why_not, fwd_saving) for machine in (CPU, CUDA))
