"""Layers whose inputs are not kept for backward, which finds each again by the layer's inverse.

What is kept, the first input and the last output, does not grow with the number of layers, nor with what their networks
keep inside. Rounding makes the inputs that are found a little different ones. How far they have come away is known at
the end, where the first input is at hand: beyond a bound the layers run again from there, and keep everything.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels.nets.reading import hooked, hooked_globally
from flowkernels.ops._checks import in_autocast
from flowkernels.ops._routing import in_transform

from .actnorm import ActNorm
from .batch_norm import BatchNorm
from .coupling import Coupling
from .diagonal import DiagonalScale
from .image_coupling import ImageCoupling
from .linear import LUConv1x1, LULinear
from .parts import Leaf
from .permutation import Permutation
from .reshape import Squeeze
from .runs import Piece, run_pieces
from .standardize import Standardize

# Both directions cost the same, and say the same of the same x.
_KINDS = (
    ActNorm, BatchNorm, Coupling, DiagonalScale, ImageCoupling, LUConv1x1, LULinear, Permutation, Squeeze, Standardize,
)  # fmt: skip
# The largest difference of the first input from the one that was found, as a fraction of its largest value.
FAR = {torch.float32: 1e-3, torch.float64: 1e-9}
_CHANGES = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm, BatchNorm)  # in training


def run_flat(found: Sequence[Piece], x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """What pieces make of x, as `run_pieces`; neighbours that can be inverted keep nothing of what is between them."""
    total: Tensor | None = None
    for group in _groups(found, _may_run(x, context)):
        if len(group) > 1:
            params = {p: None for leaf in group for p in leaf.transform.parameters() if p.requires_grad}
            x, ladj = _Reversible.apply(tuple(group), x, context, *params)  # type: ignore[misc]
            total = ladj if total is None else total + ladj
        else:
            x, total = run_pieces(group, x, context, total)
    return x, total


def _may_run(x: Tensor, context: Tensor | None) -> bool:
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or x.dtype not in FAR or hooked_globally():
        return False
    return not in_autocast(x) and not in_transform((x, context))


def _groups(found: Sequence[Piece], may_run: bool) -> list[list[Any]]:
    """Leaves that follow each other and can all be inverted; every other piece alone."""
    groups: list[list[Any]] = []
    open_ = False
    for piece in found:
        able = may_run and isinstance(piece, Leaf) and _is_able(piece.transform)
        if able and open_:
            groups[-1].append(piece)
        else:
            groups.append([piece])
        open_ = able
    return groups


def _is_able(transform: nn.Module) -> bool:
    if type(transform) not in _KINDS:
        return False
    return not any(hooked(m) or (m.training and isinstance(m, _CHANGES)) for m in transform.modules())


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, leaves: tuple[Leaf, ...], x: Tensor, context: Tensor | None, *params: Tensor) -> Any:  # type: ignore[override]
        y, total = run_pieces(leaves, x, context)
        ctx.leaves, ctx.params = leaves, params
        ctx.save_for_backward(x, y, context, *params)  # once they ran: actnorm starts from its first batch
        return y.view_as(y), total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_ladj: Tensor) -> Any:  # type: ignore[override]
        x, y, context, *_ = ctx.saved_tensors  # which says where a parameter was written to since
        params = ctx.params
        of_context = ctx.needs_input_grad[2]
        sums = _Sums(params, context, of_context)
        at, g, error = y, grad_y, 0.0
        for i, leaf in reversed(list(enumerate(ctx.leaves))):
            with torch.no_grad():
                before = Leaf(leaf.transform, not leaf.inverse).run(at, context)[0]
            if i == 0:
                error, before = _apart(before, x), x
            at, g = before, sums.add([leaf], before, g, grad_ladj)
        if not error <= FAR[x.dtype]:  # a NaN is not
            warnings.warn(
                f'flowkernels: memory="flat" must find the input of layers by inverses within {FAR[x.dtype]:.0e} of '
                f"its largest value, got {error:.0e}; these gradients were computed again with everything kept",
                stacklevel=2,
            )
            sums = _Sums(params, context, of_context)
            g = sums.add(ctx.leaves, x, grad_y, grad_ladj)
        return None, g if ctx.needs_input_grad[1] else None, sums.of_context, *(sums.of[p] for p in params)


class _Sums:
    """Gradients of parameters, and of a context that wants one, over layers."""

    def __init__(self, params: Sequence[Tensor], context: Tensor | None, of_context: bool) -> None:
        self.of: dict[Tensor, Tensor | None] = dict.fromkeys(params)
        self.context = None if context is None else context.detach().requires_grad_(of_context)
        self.of_context: Tensor | None = None

    def add(self, leaves: Sequence[Leaf], x: Tensor, grad_y: Tensor, grad_ladj: Tensor) -> Tensor:
        """Runs layers on x with a graph and adds what they give; → the gradient of x."""
        own = {p: None for leaf in leaves for p in leaf.transform.parameters() if p in self.of}
        of_context = self.context is not None and self.context.requires_grad
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y, ladj = run_pieces(leaves, x, self.context)
            wanted = [x, *own, *([self.context] if of_context else ())]
            pairs = [(t, g) for t, g in ((y, grad_y), (ladj, grad_ladj)) if t.requires_grad]
            given = torch.autograd.grad([t for t, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)
        for p, g in zip(own, given[1:], strict=False):
            self.of[p] = _sum(self.of[p], g)
        if of_context:
            self.of_context = _sum(self.of_context, given[-1])
        return torch.zeros_like(x) if given[0] is None else given[0]


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _apart(found: Tensor, x: Tensor) -> float:
    if x.numel() == 0:
        return 0.0
    return float((found - x).abs().max() / x.abs().max().clamp(min=torch.finfo(x.dtype).tiny))
