"""The residual conditioner as one autograd node: products by torch's GEMM, what lies between them in place.

What it saves against a module tree: an autograd node and a fresh tensor per relu, add and gate. Kept for backward is
the residual stream between blocks and nothing else, (blocks - 1) x [B, H] against 5 x [B, H] at two blocks; backward
computes one product per block again, and the second of the last block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels._backend import Grads, Inputs, Needs
from flowkernels.ops._checks import why_not_multiplied

from .spec import NetSpec, unpack

_threshold_backward = torch.ops.aten.threshold_backward


def why_not(spec: NetSpec, *tensors: Tensor) -> str | None:
    if spec.activation != "relu":
        return f"no fused backward of {spec.activation} there"
    if any(spec.scales):
        return "no fused backward of scales there"
    if tensors[0].dim() != 2:
        return "x must be [B, features]"
    return why_not_multiplied(tensors)


def _blocks(spec: NetSpec) -> int:
    return spec.n // 2 - 1


class _Net:
    """The tensors of a call, by their roles."""

    def __init__(self, spec: NetSpec, tensors: Sequence[Tensor]) -> None:
        self.x, parts = unpack(spec, tensors)
        self.weights, self.n_layers = tensors[1 : 1 + spec.n_weights()], spec.n
        self.add, self.gates = parts.adds[0], parts.gates[2:-1:2] if spec.gates else []

    def linear(self, i: int, x: Tensor) -> Tensor:
        weight, bias = self.weights[2 * i : 2 * i + 2]
        return torch.addmm(bias, x, weight.t())

    def initial(self) -> Tensor:
        h = self.linear(0, self.x)
        return h if self.add is None else h.add_(self.add)

    def inside(self, block: int, h: Tensor) -> tuple[Tensor, Tensor]:
        """The two relu outputs of a block."""
        a0 = torch.relu(h)
        return a0, self.linear(1 + 2 * block, a0).relu_()

    def after(self, block: int, h: Tensor, a1: Tensor) -> Tensor:
        """The residual stream after a block."""
        i = 2 + 2 * block
        if self.gates:
            return torch.addcmul(h, self.linear(i, a1), self.gates[block])
        weight, bias = self.weights[2 * i : 2 * i + 2]
        return torch.addmm(h, a1, weight.t()).add_(bias)


def _run(spec: NetSpec, tensors: Sequence[Tensor], saved: list[Tensor] | None) -> Tensor:
    net = _Net(spec, tensors)
    h = net.initial()
    for block in range(_blocks(spec)):
        if block > 0 and saved is not None:
            saved.append(h)
        h = net.after(block, h, net.inside(block, h)[1])
    return net.linear(net.n_layers - 1, h)


def fwd(spec: NetSpec, *tensors: Tensor) -> tuple[Tensor]:
    return (_run(spec, tensors, None),)


def fwd_saving(spec: NetSpec, *tensors: Tensor) -> tuple[tuple[Tensor], list[Tensor]]:
    saved: list[Tensor] = []
    return (_run(spec, tensors, saved),), saved


def bwd(spec: NetSpec, grads: Grads, tensors: Inputs, needs: Needs, saved: Inputs = ()) -> Grads:
    out: list[Tensor | None] = [None] * len(tensors)
    g = grads[0]
    if g is None:
        return out
    net = _Net(spec, tensors)
    first_term = 1 + 2 * net.n_layers

    def back(i: int, g: Tensor, x: Tensor, need_x: bool = True) -> Tensor | None:
        """The gradients of layer i's weight and bias, and of its input."""
        w = 1 + 2 * i
        if needs[w]:
            out[w] = g.t() @ x
        if needs[w + 1]:
            out[w + 1] = g.sum(0)
        return g @ tensors[w] if need_x else None

    stream = [net.initial(), *saved]
    relus = None
    last_h = stream[0]
    if _blocks(spec) > 0:
        relus = net.inside(_blocks(spec) - 1, stream[-1])
        last_h = net.after(_blocks(spec) - 1, stream[-1], relus[1])
    gh: Any = back(net.n_layers - 1, g, last_h)
    for block in reversed(range(_blocks(spec))):
        a0, a1 = relus or net.inside(block, stream[block])
        relus = None
        i, gt = 1 + 2 * block, gh
        if net.gates:
            at = first_term + 1 + block
            if needs[at]:
                out[at] = gh * net.linear(i + 1, a1)
            gt = gh * net.gates[block]
        g1 = back(i + 1, gt, a1)
        g0 = back(i, _threshold_backward(g1, a1, 0), a0)
        gh.add_(_threshold_backward(g0, a0, 0))
    if net.add is not None and needs[first_term]:
        out[first_term] = gh
    out[0] = back(0, gh, net.x, needs[0])
    return out
