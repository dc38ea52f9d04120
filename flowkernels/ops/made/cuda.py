"""A whole MADE on a GPU: the library's products in strips, and kernels of our own between them.

Kept for backward are the packed weights, what enters each hidden layer, and for gelu and silu what they were given.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flowkernels.ops import _strip_net

from .reference import MadeSpec, unpack


def why_not(spec: MadeSpec, *tensors: Tensor) -> str | None:
    return "no kernel for gates" if spec.gates else _strip_net.why_not(tensors)


def _net(spec: MadeSpec, tensors: Sequence[Tensor]) -> _strip_net.Net:
    x, layers, adds, _ = unpack(spec.adds, tensors)
    return _strip_net.Net(x, spec.plan, [w for w, _ in layers], [b for _, b in layers], adds, spec.activation)


def fwd(spec: MadeSpec, *tensors: Tensor) -> tuple[Tensor]:
    return _strip_net.op_fwd(_net, spec, tensors)


def fwd_saving(spec: MadeSpec, *tensors: Tensor) -> tuple[tuple[Tensor], list[Tensor]]:
    return _strip_net.op_fwd_saving(_net, spec, tensors)


def bwd(
    spec: MadeSpec,
    grads: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    needs: Sequence[bool],
    saved: Sequence[Tensor] = (),
) -> list[Tensor | None]:
    return _strip_net.op_bwd(_net, spec, grads, tensors, needs, saved)
