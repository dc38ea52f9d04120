"""The autoregressive inverse on the compiled kernels: one sweep over the hidden units, and one back.

Kept for backward are z and x; the network runs forward once more, in cache, before the sweep back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkernels import _native
from flowkernels._native import DTYPES
from flowkernels.ops import _net
from flowkernels.ops._maps import univariate_map
from flowkernels.ops.made.native import describe

from .reference import SweepSpec

_threads = torch.get_num_threads


def why_not(spec: SweepSpec, *tensors: Tensor) -> str | None:
    return _net.why_not(tensors)


def _arguments(spec: SweepSpec, net: _net.Net, rows: Tensor) -> tuple:
    inverse = univariate_map(spec.univariate._replace(inverse=True))
    return net.handle(), inverse, DTYPES[rows.dtype], *rows.shape, rows.data_ptr(), rows.stride(0)


def _fwd(spec: SweepSpec, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """x and ladj in the dtype the kernels compute in."""
    z = tensors[0]
    net, rows = describe(spec, tensors), _net.flat(z)
    x, ladj = z.new_empty(z.shape), z.new_empty(z.shape[:-1])
    if rows.shape[0] > 0:
        _native.C.sweep_fwd(*_arguments(spec, net, rows), x.data_ptr(), ladj.data_ptr(), _threads())
    return x, ladj


def fwd(spec: SweepSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    x, ladj = _fwd(spec, _net.widen(*tensors))
    return x.to(tensors[0].dtype), ladj


def fwd_saving(spec: SweepSpec, *tensors: Tensor) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    x, ladj = _fwd(spec, _net.widen(*tensors))
    return (x.to(tensors[0].dtype), ladj), [x]


def bwd(
    spec: SweepSpec,
    grads: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    needs: Sequence[bool],
    saved: Sequence[Tensor] = (),
) -> list[Tensor | None]:
    wide = _net.widen(*tensors)
    z, net, rows = wide[0], describe(spec, wide, needs[1:]), _net.flat(wide[0])
    for layer in net.layers:
        layer.allocate_grads(rows.shape[0])
    grad_x, grad_ladj = (None if g is None else g.to(z.dtype).contiguous().resolve_neg() for g in grads)
    grad_z = z.new_empty(z.shape) if needs[0] else None
    if rows.shape[0] > 0:
        x = saved[0] if saved else _fwd(spec, wide)[0]
        _native.C.sweep_bwd(
            *_arguments(spec, net, rows), x.data_ptr(), _net.pointer(grad_x), _net.pointer(grad_ladj),
            _net.pointer(grad_z), _threads(),
        )  # fmt: skip
    grad_z = None if grad_z is None else grad_z.to(tensors[0].dtype)
    return [grad_z, *net.grads(tensors[0], tensors[1:])]
