"""A whole MADE on the compiled kernels: masked products skipped, nothing between its layers in memory.

Kept for backward is what enters each hidden layer (of a residual one: the second layer of each block).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flowkernels.ops import _net

from .reference import MadeSpec


def why_not(spec: MadeSpec, *tensors: Tensor) -> str | None:
    return _net.why_not(tensors)


def describe(spec: MadeSpec, x: Tensor, rest: Sequence[Tensor], needs: Sequence[bool] | None = None) -> _net.Net:
    """The network as the kernels take it."""
    return _net.describe(
        rest, residual=spec.plan.residual, activation=spec.activation, adds=spec.adds, needs=needs,
        plans=spec.plan.layers, lead=x.shape[:-1],
    )  # fmt: skip


def fwd(spec: MadeSpec, *tensors: Tensor) -> tuple[Tensor]:
    x, *rest = _net.widen(*tensors)
    return (_net.fwd(x, describe(spec, x, rest)).to(tensors[0].dtype),)


def fwd_saving(spec: MadeSpec, *tensors: Tensor) -> tuple[tuple[Tensor], list[Tensor]]:
    x, *rest = _net.widen(*tensors)
    net = describe(spec, x, rest)
    kept = net.keep(x.numel() // x.shape[-1])
    return (_net.fwd(x, net).to(tensors[0].dtype),), kept


def bwd(
    spec: MadeSpec,
    grads: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    needs: Sequence[bool],
    saved: Sequence[Tensor] = (),
) -> list[Tensor | None]:
    g = grads[0]
    if g is None:
        return [None] * len(tensors)
    x, *rest = _net.widen(*tensors)
    net = describe(spec, x, rest, needs[1:])
    net.reuse(saved)
    grad_x = _net.bwd(x, net, g.to(x.dtype), needs[0])
    return [None if grad_x is None else grad_x.to(g.dtype), *net.grads(tensors[0], tensors[1:])]
