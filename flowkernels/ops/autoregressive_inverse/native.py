"""The autoregressive inverse on the compiled kernels: one sweep over the hidden units, and one back.

Kept for backward are z and x; the network runs forward once more before the sweep back: on a CPU in cache, on a GPU as
the dense products of `dense`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels._machine import CPU, CUDA, Backend, Cpu, Cuda
from flowkernels._native import DTYPES
from flowkernels.ops import _net
from flowkernels.ops._maps import univariate_map
from flowkernels.ops.made.native import describe
from flowkernels.ops.rqs.spec import NO_LINEAR, RqsSpec

from . import dense, schedule
from .reference import SweepSpec

_MAX_CUDA_LAYERS = 16  # kMaxSweepLayers of csrc/autoregressive_inverse/autoregressive_inverse.h


def why_not(on: Cpu | Cuda, spec: SweepSpec, *tensors: Tensor) -> str | None:
    reason = _net.why_not(tensors, on)
    if reason is not None or isinstance(on, Cpu):
        return reason
    if isinstance(spec.univariate, RqsSpec) and spec.univariate.splits:
        return NO_LINEAR
    if len(spec.plan.layers) > _MAX_CUDA_LAYERS:
        return f"the net has more than {_MAX_CUDA_LAYERS} layers"
    x, dtype = tensors[0], torch.promote_types(tensors[0].dtype, torch.float32)
    units, P = sum(layer.n_in for layer in spec.plan.layers), spec.plan.params_per_feature
    bins = spec.univariate.bins if isinstance(spec.univariate, RqsSpec) else 0
    if not on.module.sweep_fits(units, P, bins, DTYPES[dtype], x.device.index or 0):
        return "the hidden units of 32 rows do not fit in the GPU's shared memory"
    return None


def _map(on: Cpu | Cuda, spec: SweepSpec) -> Any:
    return univariate_map(spec.univariate._replace(inverse=True), on.module)


def _arguments(on: Cpu | Cuda, spec: SweepSpec, net: _net.Net, rows: Tensor) -> tuple:
    return net.handle(on.module), _map(on, spec), DTYPES[rows.dtype], *rows.shape, rows.data_ptr(), rows.stride(0)


def _on_gpu(on: Cuda, spec: SweepSpec, net: _net.Net, z: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Puts the masks where the kernels are; what they need beside the net, and the room that holds it."""
    for layer, plan in zip(net.layers, spec.plan.layers, strict=True):
        layer.in_order, layer.out_order, layer.limit = schedule.layer_on_device(plan, z.device)
    steps = schedule.on_device(spec.plan, z.device)
    packed = z.new_empty(net.handle(on.module).packed())
    return packed, (steps.data_ptr(), steps.shape[0], packed.data_ptr())


def _fwd(on: Cpu | Cuda, spec: SweepSpec, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """x and ladj in the dtype the kernels compute in."""
    z = tensors[0]
    net, rows = describe(spec, tensors), _net.flat(z)
    x, ladj = z.new_empty(z.shape), z.new_empty(z.shape[:-1])
    if rows.shape[0] > 0:
        _packed, work = _on_gpu(on, spec, net, z) if isinstance(on, Cuda) else (None, ())
        written = x.data_ptr(), ladj.data_ptr()
        on.module.sweep_fwd(*_arguments(on, spec, net, rows), *written, spec.half_turn, *work, *on.where(z))
    return x, ladj


def fwd(on: Cpu | Cuda, spec: SweepSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    x, ladj = _fwd(on, spec, _net.widen(*tensors))
    return x.to(tensors[0].dtype), ladj


def fwd_saving(on: Cpu | Cuda, spec: SweepSpec, *tensors: Tensor) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    x, ladj = _fwd(on, spec, _net.widen(*tensors))
    return (x.to(tensors[0].dtype), ladj), [x]


def bwd(
    on: Cpu | Cuda,
    spec: SweepSpec,
    grads: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    needs: Sequence[bool],
    saved: Sequence[Tensor] = (),
) -> list[Tensor | None]:
    wide = _net.widen(*tensors)
    z, net, rows = wide[0], describe(spec, wide, needs[1:]), _net.flat(wide[0])
    grad_x, grad_ladj = (None if g is None else g.to(z.dtype).contiguous().resolve_neg() for g in grads)
    grad_z = z.new_empty(z.shape) if needs[0] else None
    x = saved[0] if saved else _fwd(on, spec, wide)[0]
    passed = x.data_ptr(), _net.pointer(grad_x), _net.pointer(grad_ladj), _net.pointer(grad_z)
    if isinstance(on, Cuda) and rows.shape[0] > 0:
        with torch.autocast(z.device.type, enabled=False):  # that of whoever calls backward
            units = dense.forward(spec, net, x.view(rows.shape))
            _packed, work = _on_gpu(on, spec, net, z)
            on.module.sweep_bwd(*_arguments(on, spec, net, rows), *passed, *work, units.pointers(), *on.where(z))
            dense.gradients(net, spec.plan, units)
    else:
        for layer in net.layers:
            layer.allocate_grads(rows.shape[0])
        if rows.shape[0] > 0:
            on.module.sweep_bwd(*_arguments(on, spec, net, rows), *passed, *on.where(z))
    grad_z = None if grad_z is None else grad_z.to(tensors[0].dtype)
    return [grad_z, *net.grads(tensors[0], tensors[1:])]


cpu, cuda = (Backend(machine, fwd, bwd, why_not, fwd_saving) for machine in (CPU, CUDA))
