"""The autoregressive inverse on the compiled kernels: one sweep over the hidden units, and one back.

Kept for backward are z and a copy of x, which whoever called may write to; the network runs forward once more before
the sweep back: on a CPU in cache, on a GPU as the dense products of `dense`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels._machine import CPU, CUDA, Backend, Cpu, Cuda
from flowkernels._native import DTYPES
from flowkernels.ops import _net
from flowkernels.ops.made.native import describe

from . import dense, schedule, seen
from .reference import SweepSpec

_MAX_CUDA_LAYERS = 16  # kMaxSweepLayers of csrc/autoregressive_inverse/autoregressive_inverse.h


def why_not(on: Cpu | Cuda, spec: SweepSpec, *tensors: Tensor) -> str | None:
    reason = _net.why_not(tensors, on) or spec.univariate.why_not("cpu" if isinstance(on, Cpu) else "cuda")
    if reason is not None or isinstance(on, Cpu):
        return reason
    if len(spec.plan.layers) > _MAX_CUDA_LAYERS:
        return f"the net has more than {_MAX_CUDA_LAYERS} layers"
    if spec.only_on_cpu:
        return f"no kernel for {spec.only_on_cpu}"
    x, dtype = tensors[0], torch.promote_types(tensors[0].dtype, torch.float32)
    units, P = sum(layer.n_in for layer in spec.plan.layers), spec.plan.params_per_feature
    if not on.module.sweep_fits(units, P, spec.univariate.bins, DTYPES[dtype], x.device.index or 0):
        return "the hidden units of 32 rows do not fit in the GPU's shared memory"
    return None


def _without_waves(spec: SweepSpec, tensors: Sequence[Any]) -> tuple[Sequence[Any], Any]:
    """What belongs to the network, z first, and the waves; None where there are none."""
    return (tensors[:-1], tensors[-1]) if spec.waves else (tensors, None)


def _map(on: Cpu | Cuda, spec: SweepSpec) -> Any:
    return spec.univariate.inverted().handle(on.module)


def _on_gpu(on: Cuda, spec: SweepSpec, net: Any, z: Tensor) -> tuple[Any, Tensor]:
    """What a GPU is told besides: the steps, and room for the weights in order of the degrees."""
    return schedule.handle(spec.plan, on.module, z.device), z.new_empty(on.module.sweep_packed(net))


def _fwd(on: Cpu | Cuda, spec: SweepSpec, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """x and ladj in the dtype the kernels compute in."""
    tensors, waves = _without_waves(spec, tensors)
    z = tensors[0]
    net, rows = describe(spec, tensors), _net.flat(z)
    waves = None if waves is None else waves.contiguous().resolve_neg()
    x, ladj = z.new_empty(z.shape), z.new_empty(z.shape[:-1])
    if rows.shape[0] > 0:
        handle = net.handle(rows.shape[0], on.module, z.device if isinstance(on, Cuda) else None)
        more = _on_gpu(on, spec, handle, z) if isinstance(on, Cuda) else (spec.univariate.zero_outside, waves)
        on.module.sweep_fwd(handle, _map(on, spec), rows, x, ladj, spec.univariate.circle_shift, *more, *on.where(z))
    return x, ladj


def fwd(on: Cpu | Cuda, spec: SweepSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    x, ladj = _fwd(on, spec, _net.widen(*tensors))
    return x.to(tensors[0].dtype), ladj


def fwd_saving(on: Cpu | Cuda, spec: SweepSpec, *tensors: Tensor) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    x, ladj = _fwd(on, spec, _net.widen(*tensors))
    given = x.to(tensors[0].dtype)
    return (given, ladj), [x.clone() if given is x else x]


def bwd(
    on: Cpu | Cuda,
    spec: SweepSpec,
    grads: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    needs: Sequence[bool],
    saved: Sequence[Tensor] = (),
) -> list[Tensor | None]:
    wide, waves = _without_waves(spec, _net.widen(*tensors))
    needs_net, need_waves = _without_waves(spec, needs)
    z, net, rows = wide[0], describe(spec, wide, needs_net[1:]), _net.flat(wide[0])
    grad_x, grad_ladj = (None if g is None else g.to(z.dtype).contiguous().resolve_neg() for g in grads)
    grad_z, grad_waves = z.new_empty(z.shape) if needs[0] else None, None
    x = saved[0] if saved else _fwd(on, spec, _net.widen(*tensors))[0]
    if isinstance(on, Cuda) and rows.shape[0] > 0:
        with torch.autocast(z.device.type, enabled=False):  # that of whoever calls backward
            units = dense.forward(spec, net, x.view(rows.shape))
            handle = net.handle(rows.shape[0], on.module, z.device)
            given = rows, x, grad_x, grad_ladj, grad_z, *_on_gpu(on, spec, handle, z)
            on.module.sweep_bwd(handle, _map(on, spec), *given, units.pairs(), *on.where(z))
            dense.gradients(net, spec.plan, units)
    else:
        for layer in net.layers:
            layer.allocate_grads(rows.shape[0])
        given = None if waves is None else seen.seen(x, waves)
        slope = None if waves is None else seen.slope(x, waves)
        if spec.univariate.zero_outside:
            f: Any = spec.univariate.inverted()
            slope = f.zeroed(torch.ones_like(x) if slope is None else slope, z).contiguous()
            grad_x = None if grad_x is None else f.zeroed(grad_x, z).contiguous()
        grad_seen = torch.zeros_like(x) if need_waves else None
        if rows.shape[0] > 0:
            passed = (rows, x, grad_x, grad_ladj, grad_z, given, slope, grad_seen)
            on.module.sweep_bwd(net.handle(rows.shape[0], on.module), _map(on, spec), *passed, *on.where(z))
        if grad_seen is not None and waves is not None:
            grad_waves = seen.gradient(x.view(rows.shape), waves, grad_seen.view(rows.shape)).to(tensors[0].dtype)
    grad_z = None if grad_z is None else grad_z.to(tensors[0].dtype)
    of_net, _ = _without_waves(spec, tensors)
    return [grad_z, *net.grads(of_net[0], of_net[1:]), *([grad_waves] if spec.waves else [])]


cpu, cuda = (Backend(machine, fwd, bwd, why_not, fwd_saving) for machine in (CPU, CUDA))
