"""A call whose learned tensors are all the views of one flat parameter: one input of autograd, and one gradient.

Autograd and optimizers take their time by the tensor: a small flow's three dozen take longer than its kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels._backend import Backend
from flowkernels.ops._routing import Op, needs_reference

from . import native
from .spec import FlowSpec


def run(
    op: Op, module: Backend, spec: FlowSpec, flat: Tensor, places: Sequence[int], x: Tensor, views: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """What ``op.run`` of ``x`` and these views returns; the gradient of all views is that of ``flat``.

    ``places``: where each view begins in ``flat``, of which they leave nothing out; -1 of tensors that learn nothing.
    Nothing may depend on a context.
    """
    return _Direct.apply(op, module, spec, places, views, flat, x)  # type: ignore[return-value]


class _Direct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, op: Op, module: Backend, spec: FlowSpec, places: Sequence[int], views: tuple[Tensor, ...],
        flat: Tensor, x: Tensor,
    ) -> Any:  # fmt: skip
        ctx.op, ctx.module, ctx.spec, ctx.places, ctx.size = op, module, spec, places, flat.numel()
        ctx.set_materialize_grads(False)
        assert module.fwd_saving is not None
        outputs, saved = module.fwd_saving(spec, x, *views)
        ctx.save_for_backward(x, *views, *saved)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        n, kept = 1 + len(ctx.places), ctx.saved_tensors
        tensors, saved, wants_x = kept[:n], kept[n:], ctx.needs_input_grad[-1]
        if needs_reference(grads) or tensors[0].numel() == 0:
            needs = (wants_x, *[at >= 0 for at in ctx.places])
            grad_x, *found = ctx.op.backward(ctx.module, ctx.spec, grads, tensors, needs, saved)
            grad = _together(found, tensors[1:], ctx.places)
        else:
            grad_x, grad = native.bwd_flat(ctx.spec, grads, tensors, wants_x, saved, ctx.places, ctx.size)
        return (None, None, None, None, None, grad, grad_x)


def _together(found: Sequence[Tensor | None], views: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    """Gradients of views as that of the flat parameter, by torch's own operations."""
    order = sorted((i for i, at in enumerate(places) if at >= 0), key=places.__getitem__)
    whole = [torch.zeros_like(v) if g is None else g for g, v in zip(found, views, strict=True)]
    return torch.cat([whole[i].reshape(-1) for i in order])
