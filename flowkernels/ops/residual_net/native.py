"""The residual conditioner on the compiled kernels: the whole net runs on one tile of rows before the next.

Kept for backward is what enters the second layer of each block; the rest is computed again, in cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flowkernels.ops import _net

from .reference import ResidualNetSpec


def why_not(spec: ResidualNetSpec, *tensors: Tensor) -> str | None:
    return _net.why_not(tensors)


def _describe(spec: ResidualNetSpec, tensors: Sequence[Tensor], needs: Sequence[bool] | None = None) -> _net.Net:
    return _net.describe(tensors, residual=True, activation="relu", adds=spec.adds, gates=spec.gates, needs=needs)


def fwd(spec: ResidualNetSpec, *tensors: Tensor) -> tuple[Tensor]:
    x, *rest = _net.widen(*tensors)
    return (_net.fwd(x, _describe(spec, rest)).to(tensors[0].dtype),)


def fwd_saving(spec: ResidualNetSpec, *tensors: Tensor) -> tuple[tuple[Tensor], list[Tensor]]:
    x, *rest = _net.widen(*tensors)
    net = _describe(spec, rest)
    kept = net.keep(x.numel() // x.shape[-1])
    return (_net.fwd(x, net).to(tensors[0].dtype),), kept


def bwd(
    spec: ResidualNetSpec,
    grads: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    needs: Sequence[bool],
    saved: Sequence[Tensor] = (),
) -> list[Tensor | None]:
    g = grads[0]
    if g is None:
        return [None] * len(tensors)
    x, *rest = _net.widen(*tensors)
    net = _describe(spec, rest, needs[1:])
    net.reuse(saved)
    grad_x = _net.bwd(x, net, g.to(x.dtype), needs[0])
    return [grad_x if grad_x is None else grad_x.to(g.dtype), *net.grads(tensors[0], tensors[1:])]
