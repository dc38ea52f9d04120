"""The residual conditioner as one autograd node: products by torch's GEMM, everything between them in place.

What it saves against a module tree: an autograd node and a fresh tensor per relu, add, cat and gate, and the copies of
the residual stream that autograd keeps. Saved for backward: the two relu outputs of each block (their signs are the
relu masks), the last hidden state, and with a context its concatenation and the gates.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def _run(spec: ResidualNetSpec, tensors: Sequence[Tensor], saved: list[Tensor] | None) -> Tensor:
    x, *rest = tensors
    context = rest.pop(0) if spec.context else None
    layers = iter(zip(rest[::2], rest[1::2], strict=True))
    joined = x if context is None else torch.cat((x, context), dim=1)
    weight, bias = next(layers)
    h = torch.addmm(bias, joined, weight.t())
    for _ in range(spec.blocks):
        a0 = torch.relu(h)
        weight, bias = next(layers)
        a1 = torch.addmm(bias, a0, weight.t()).relu_()
        weight, bias = next(layers)
        if context is None:
            h.addmm_(a1, weight.t()).add_(bias)
            if saved is not None:
                saved += (a0, a1)
            continue
        t = torch.addmm(bias, a1, weight.t())
        weight, bias = next(layers)
        gate = torch.addmm(bias, context, weight.t()).sigmoid_()
        h.addcmul_(t, gate)
        if saved is not None:
            saved += (a0, a1, t, gate)
    if saved is not None:
        saved.append(h)
        if context is not None:
            saved.append(joined)
    weight, bias = next(layers)
    return torch.addmm(bias, h, weight.t())


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
    first = 2 if spec.context else 1  # of the weights
    context = tensors[1] if spec.context else None
    joined = saved[-1] if spec.context else tensors[0]
    last_h = saved[-2] if spec.context else saved[-1]
    per_block = 4 if spec.context else 2

    def linear(i: int, g: Tensor, x: Tensor, need_x: bool = True) -> Tensor | None:
        """The gradients of layer i's weight and bias, and of its input."""
        w = first + 2 * i
        if needs[w]:
            out[w] = g.t() @ x
        if needs[w + 1]:
            out[w + 1] = g.sum(0)
        return g @ tensors[w] if need_x else None

    i = (len(tensors) - first) // 2 - 1
    gh = linear(i, g, last_h)
    assert gh is not None
    g_context = None
    for block in reversed(range(spec.blocks)):
        a0, a1, *gated = saved[per_block * block : per_block * (block + 1)]
        gt = gh
        if context is not None:
            t, gate = gated
            g_gate = (gh * t).mul_(gate).mul_(1 - gate)
            i -= 1
            g_c = linear(i, g_gate, context, needs[1])
            if g_c is not None:
                g_context = g_c if g_context is None else g_context.add_(g_c)
            gt = gh * gate
        i -= 1
        g1 = linear(i, gt, a1)
        i -= 1
        g0 = linear(i, _threshold_backward(g1, a1, 0), a0)
        gh.add_(_threshold_backward(g0, a0, 0))
    need_input = needs[0] or (spec.context and needs[1])
    g_in = linear(0, gh, joined, need_input)
    if g_in is not None:
        D = tensors[0].shape[1]
        out[0] = g_in[:, :D] if needs[0] else None
        if context is not None and needs[1]:
            out[1] = g_in[:, D:] if g_context is None else g_context.add_(g_in[:, D:])
    return out
