"""One masked layer on a GPU: the library's products in strips, one launch behind them.

Kept for backward are the packed weight, and the output or, for gelu and silu, what they were given.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flowkernels.ops import _strip_net

from .reference import MaskedLinearSpec, unpack


def why_not(spec: MaskedLinearSpec, *tensors: Tensor) -> str | None:
    return _strip_net.why_not(tensors)


def _net(spec: MaskedLinearSpec, tensors: Sequence[Tensor]) -> _strip_net.Net:
    x, weight, bias, residual = unpack(spec, tensors)
    return _strip_net.Net(x, spec.plan, (weight,), (bias,), (residual,), "identity", last=spec.activation)


def fwd(spec: MaskedLinearSpec, *tensors: Tensor) -> tuple[Tensor]:
    return _strip_net.op_fwd(_net, spec, tensors)


def fwd_saving(spec: MaskedLinearSpec, *tensors: Tensor) -> tuple[tuple[Tensor], list[Tensor]]:
    return _strip_net.op_fwd_saving(_net, spec, tensors)


def saved_of(spec: MaskedLinearSpec, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return [y.view(-1, y.shape[-1]) for y in outputs]


def bwd(
    spec: MaskedLinearSpec,
    grads: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    needs: Sequence[bool],
    saved: Sequence[Tensor] = (),
) -> list[Tensor | None]:
    return _strip_net.op_bwd(_net, spec, grads, tensors, needs, saved)
