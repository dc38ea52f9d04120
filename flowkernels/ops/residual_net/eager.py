"""The residual conditioner as one autograd node: products by torch's GEMM, what lies between them in place.

What it saves against a module tree: an autograd node and a fresh tensor per relu, add, cat and gate. Kept for backward
is the residual stream between blocks and nothing else, (blocks - 1) x [B, H] against 5 x [B, H] at two blocks; backward
computes one product per block again, and the second of the last block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .reference import ResidualNetSpec

_threshold_backward = torch.ops.aten.threshold_backward


def why_not(spec: ResidualNetSpec, *tensors: Tensor) -> str | None:
    if any(t.dtype != tensors[0].dtype for t in tensors):
        return "the inputs have several dtypes"
    if tensors[0].dim() != 2 or (spec.context and tensors[1].dim() != 2):
        return "x and context must be [B, features]"
    if torch.is_autocast_enabled(tensors[0].device.type):
        return "autocast chooses the dtype of every product"
    return None


class _Net:
    """The tensors of a call, by their roles."""

    def __init__(self, spec: ResidualNetSpec, tensors: Sequence[Tensor]) -> None:
        self.x, self.context = tensors[0], tensors[1] if spec.context else None
        self.joined = self.x if self.context is None else torch.cat((self.x, self.context), dim=1)
        self.first = 2 if spec.context else 1  # of the weights
        self.tensors = tensors
        self.last = (len(tensors) - self.first) // 2 - 1  # the final layer
        self.per_block = 3 if spec.context else 2

    def linear(self, i: int, x: Tensor) -> Tensor:
        weight, bias = self.tensors[self.first + 2 * i : self.first + 2 * i + 2]
        return torch.addmm(bias, x, weight.t())

    def inside(self, block: int, h: Tensor) -> tuple[Tensor, Tensor]:
        """The two relu outputs of a block."""
        a0 = torch.relu(h)
        return a0, self.linear(1 + self.per_block * block, a0).relu_()

    def gated(self, block: int, a1: Tensor) -> tuple[Tensor, Tensor]:
        """A block's second product and its gate."""
        i = 2 + self.per_block * block
        return self.linear(i, a1), self.linear(i + 1, self.context).sigmoid_()  # type: ignore[arg-type]

    def after(self, block: int, h: Tensor, a1: Tensor) -> Tensor:
        """The residual stream after a block."""
        if self.context is not None:
            return torch.addcmul(h, *self.gated(block, a1))
        weight, bias = self.tensors[self.first + 2 * (2 + 2 * block) :][:2]
        return torch.addmm(h, a1, weight.t()).add_(bias)


def _run(spec: ResidualNetSpec, tensors: Sequence[Tensor], saved: list[Tensor] | None) -> Tensor:
    net = _Net(spec, tensors)
    h = net.linear(0, net.joined)
    for block in range(spec.blocks):
        if block > 0 and saved is not None:
            saved.append(h)
        h = net.after(block, h, net.inside(block, h)[1])
    return net.linear(net.last, h)


def fwd(spec: ResidualNetSpec, *tensors: Tensor) -> tuple[Tensor]:
    return (_run(spec, tensors, None),)


def fwd_saving(spec: ResidualNetSpec, *tensors: Tensor) -> tuple[tuple[Tensor], list[Tensor]]:
    saved: list[Tensor] = []
    return (_run(spec, tensors, saved),), saved


def bwd(
    spec: ResidualNetSpec,
    grads: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    needs: Sequence[bool],
    saved: Sequence[Tensor] = (),
) -> list[Tensor | None]:
    out: list[Tensor | None] = [None] * len(tensors)
    g = grads[0]
    if g is None:
        return out
    net = _Net(spec, tensors)

    def back(i: int, g: Tensor, x: Tensor, need_x: bool = True) -> Tensor | None:
        """The gradients of layer i's weight and bias, and of its input."""
        w = net.first + 2 * i
        if needs[w]:
            out[w] = g.t() @ x
        if needs[w + 1]:
            out[w + 1] = g.sum(0)
        return g @ tensors[w] if need_x else None

    stream = [net.linear(0, net.joined), *saved]
    relus = None
    last_h = stream[0]
    if spec.blocks > 0:
        relus = net.inside(spec.blocks - 1, stream[-1])
        last_h = net.after(spec.blocks - 1, stream[-1], relus[1])
    gh: Any = back(net.last, g, last_h)
    g_context: Tensor | None = None
    for block in reversed(range(spec.blocks)):
        a0, a1 = relus or net.inside(block, stream[block])
        relus = None
        i, gt = 1 + net.per_block * block, gh
        if net.context is not None:
            t, gate = net.gated(block, a1)
            g_gate = (gh * t).mul_(gate).mul_(1 - gate)
            part = back(i + 2, g_gate, net.context, needs[1])
            g_context = part if g_context is None or part is None else g_context.add_(part)
            gt = gh * gate
        g1 = back(i + 1, gt, a1)
        g0 = back(i, _threshold_backward(g1, a1, 0), a0)
        gh.add_(_threshold_backward(g0, a0, 0))
    need_context = spec.context and needs[1]
    g_in = back(0, gh, net.joined, needs[0] or need_context)
    if g_in is not None:
        D = net.x.shape[1]
        out[0] = g_in[:, :D] if needs[0] else None
        if need_context:
            out[1] = g_in[:, D:] if g_context is None else g_context.add_(g_in[:, D:])
    return out
