"""One masked layer on the compiled kernels. Its output is kept for backward: the slopes of most activations follow
from it, and whatever comes next keeps it anyway. Not without an activation: whoever comes next may write into it, as
into that of a linear layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flowkernels.ops import _net

from .reference import MaskedLinearSpec


def why_not(spec: MaskedLinearSpec, *tensors: Tensor) -> str | None:
    return _net.why_not(tensors)


def _describe(spec: MaskedLinearSpec, tensors: Sequence[Tensor], needs: Sequence[bool] | None = None) -> _net.Net:
    layer, wanted = list(tensors[1:]), None if needs is None else list(needs)
    if not spec.has_bias:
        layer.insert(1, layer[0].new_zeros(spec.plan.n_out))
        if wanted is not None:
            wanted.insert(1, False)
    net = _net.describe(
        layer, residual=False, activation="identity", adds=(spec.has_residual,), needs=wanted, plans=(spec.plan,)
    )
    net.last = spec.activation
    return net


def fwd(spec: MaskedLinearSpec, *tensors: Tensor) -> tuple[Tensor]:
    return _net.op_fwd(_describe, spec, tensors)


def fwd_saving(spec: MaskedLinearSpec, *tensors: Tensor) -> tuple[tuple[Tensor], list[Tensor]]:
    wide = _net.widen(*tensors)
    y = _net.fwd(wide[0], _describe(spec, wide))
    return (y.to(tensors[0].dtype),), [] if spec.activation == "identity" else [y]


def saved_of(spec: MaskedLinearSpec, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return _net.widen(*outputs)


def bwd(
    spec: MaskedLinearSpec,
    grads: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    needs: Sequence[bool],
    saved: Sequence[Tensor] = (),
) -> list[Tensor | None]:
    return _net.op_bwd(_describe, spec, grads, tensors, needs, y=saved[0] if saved else None)
