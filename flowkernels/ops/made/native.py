"""A whole MADE on the compiled kernels: masked products skipped, nothing between its layers in memory.

Kept for backward is what enters each hidden layer (of a residual one: the second layer of each block).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flowkernels.ops import _net

from .reference import MadeSpec


def why_not(spec: MadeSpec, *tensors: Tensor) -> str | None:
    return _net.why_not(tensors)


def describe(spec: Any, tensors: Sequence[Tensor], needs: Sequence[bool] | None = None) -> _net.Net:
    """The network of an op whose spec has a plan, an activation, adds and gates, as the kernels take it."""
    x, *rest = tensors
    return _net.describe(
        rest, residual=spec.plan.residual, activation=spec.activation, adds=spec.adds, gates=spec.gates,
        needs=needs, plans=spec.plan.layers, lead=x.shape[:-1],
    )  # fmt: skip


def fwd(spec: MadeSpec, *tensors: Tensor) -> tuple[Tensor]:
    return _net.op_fwd(describe, spec, tensors)


def fwd_saving(spec: MadeSpec, *tensors: Tensor) -> tuple[tuple[Tensor], list[Tensor]]:
    return _net.op_fwd_saving(describe, spec, tensors)


def bwd(
    spec: MadeSpec,
    grads: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    needs: Sequence[bool],
    saved: Sequence[Tensor] = (),
) -> list[Tensor | None]:
    return _net.op_bwd(describe, spec, grads, tensors, needs, kept=saved)
