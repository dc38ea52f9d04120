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
    return _net.describe(tensors[1:], residual=True, activation="relu", adds=spec.adds, gates=spec.gates, needs=needs)


def fwd(spec: ResidualNetSpec, *tensors: Tensor) -> tuple[Tensor]:
    return _net.op_fwd(_describe, spec, tensors)


def fwd_saving(spec: ResidualNetSpec, *tensors: Tensor) -> tuple[tuple[Tensor], list[Tensor]]:
    return _net.op_fwd_saving(_describe, spec, tensors)


def bwd(
    spec: ResidualNetSpec,
    grads: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    needs: Sequence[bool],
    saved: Sequence[Tensor] = (),
) -> list[Tensor | None]:
    return _net.op_bwd(_describe, spec, grads, tensors, needs, kept=saved)
