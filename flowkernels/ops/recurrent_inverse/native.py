"""The recurrent inverse on the compiled kernel of a CPU: all steps of a tile of rows in cache, and all of them back.

Kept for backward are the inputs and a copy of x, which whoever called may write to; the states are made of it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels import _native
from flowkernels._backend import Grads, Inputs, Needs
from flowkernels.ops.flow_layer.native import why_not_map
from flowkernels.ops.net import native
from flowkernels.ops.net.spec import NetSpec

_threads = torch.get_num_threads
_LAYER = NetSpec(1, None, False, "identity")


def why_not(spec: Any, *tensors: Tensor) -> str | None:
    return why_not_map(spec.univariate.inverted()) or native.why_not_run(tensors)


def _given(spec: Any, tensors: Sequence[Tensor], grads: Sequence[Tensor | None] = ()) -> tuple[Any, ...]:
    """What both entries take: the layers, the map, and what has a row for each of z."""
    z, state, gates, value, *layers = tensors
    rows, lead = native.flat(z), z.shape[:-1]
    n = rows.shape[0]
    nets = [native.handle(_LAYER, layers[i : i + 2], lead, n, grads=grads[4 + i : 6 + i]) for i in (0, 2)]
    of_rows = [native.flat(t.expand(*lead, t.shape[-1])) for t in (state, gates)]
    return *nets, spec.univariate.inverted().handle(_native.C), rows, *of_rows, value.resolve_neg().contiguous()


def _fwd(spec: Any, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """x and ladj in the dtype the kernels compute in."""
    x, ladj = native.outputs(tensors[0])
    if x.numel() > 0:
        _native.C.recurrent_inverse_fwd(*_given(spec, tensors), x, ladj, _threads())
    return x, ladj


def fwd(spec: Any, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    x, ladj = _fwd(spec, native.widen(*tensors))
    return x.to(tensors[0].dtype), ladj


def fwd_saving(spec: Any, *tensors: Tensor) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    return native.given_and_saved(True, *_fwd(spec, native.widen(*tensors)), tensors[0].dtype)


def bwd(spec: Any, grads: Grads, tensors: Inputs, needs: Needs, saved: Inputs = ()) -> Grads:
    wide = native.widen(*tensors)
    z, lead = wide[0], wide[0].shape[:-1]
    new = z.new_empty if z.numel() > 0 else z.new_zeros
    # What belongs to rows has a gradient for each; the weight of the value too, in sums behind the kernel.
    of_rows = [new(*lead, t.shape[-1]) if need else None for t, need in zip(wide[:4], needs[:4], strict=True)]
    found = [*of_rows, *(new(t.shape) if need else None for t, need in zip(wide[4:], needs[4:], strict=True))]
    if z.numel() > 0:
        x = saved[0] if saved else _fwd(spec, wide)[0]
        given = [None if g is None else g.to(z.dtype).resolve_neg().contiguous() for g in grads]
        _native.C.recurrent_inverse_bwd(*_given(spec, wide, found), x, *given, *of_rows, _threads())
    return [
        None if g is None else g.sum_to_size(t.shape).to(t.dtype) for g, t in zip(found, tensors, strict=True)
    ]  # fmt: skip
