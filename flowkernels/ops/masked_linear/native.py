"""One masked layer on the compiled kernels. Its output is kept for backward: the slopes of most activations follow
from it, and whatever comes next keeps it anyway."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flowkernels.ops import _net

from .reference import MaskedLinearSpec


def why_not(spec: MaskedLinearSpec, *tensors: Tensor) -> str | None:
    return _net.why_not(tensors)


def _describe(spec: MaskedLinearSpec, rest: Sequence[Tensor], needs: Sequence[bool] | None = None) -> _net.Net:
    tensors, wanted = list(rest), None if needs is None else list(needs)
    if not spec.has_bias:
        tensors.insert(1, rest[0].new_zeros(spec.plan.n_out))
        if wanted is not None:
            wanted.insert(1, False)
    net = _net.describe(
        tensors, residual=False, activation="identity", adds=(spec.has_residual,), needs=wanted, plans=(spec.plan,)
    )
    net.last = spec.activation
    return net


def fwd(spec: MaskedLinearSpec, *tensors: Tensor) -> tuple[Tensor]:
    x, *rest = _net.widen(*tensors)
    return (_net.fwd(x, _describe(spec, rest)).to(tensors[0].dtype),)


def fwd_saving(spec: MaskedLinearSpec, *tensors: Tensor) -> tuple[tuple[Tensor], list[Tensor]]:
    x, *rest = _net.widen(*tensors)
    y = _net.fwd(x, _describe(spec, rest))
    return (y.to(tensors[0].dtype),), [y]


def bwd(
    spec: MaskedLinearSpec,
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
    grad_x = _net.bwd(x, net, g.to(x.dtype), needs[0], saved[0] if saved else None)
    found = net.grads(tensors[0], tensors[1:])
    return [None if grad_x is None else grad_x.to(g.dtype), *found]
