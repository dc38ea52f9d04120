"""The definition in plain PyTorch, differentiable any number of times, in both directions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkernels.ops._root import root
from flowkernels.ops._routing import _dual_level_active, _lib, _transforms_active

# Increasing activations: the value, and the logarithm of the slope.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "tanh": (torch.tanh, lambda z: 2 * (math.log(2) - torch.logaddexp(z, -z))),
    "sigmoid": (torch.sigmoid, lambda z: F.logsigmoid(z) + F.logsigmoid(-z)),
    "elu": (F.elu, lambda z: z.clamp(max=0)),
    "leaky_relu": (F.leaky_relu, lambda z: torch.where(z < 0, z.new_full((), math.log(0.01)), z.new_zeros(()))),
}
RESIDUALS = ("none", "sum", "gated")
# How far from 0 a root is looked for.
_FARTHEST = {torch.float32: 1e18, torch.float64: 1e150}


class Block(NamedTuple):
    """A layer: its masked weight with the diagonal blocks' exponentials, their logarithms ``[D, o, i]``, its bias.

    With an eps logarithms are not quite those of the weights, which ladj has and Newton's steps do not.
    """

    weight: Tensor
    logs: Tensor
    bias: Tensor
    exact: Tensor


def _blocks(features: int, tensors: Sequence[Tensor], normalized: bool, eps: float) -> list[Block]:
    found, each = [], 3 if normalized else 2
    for at in range(0, len(tensors), each):
        weight, bias = tensors[at : at + 2]
        o, i = (n // features for n in weight.shape)
        d = torch.arange(features, device=weight.device)
        rows, columns = d.repeat_interleave(o).unsqueeze(1), d.repeat_interleave(i)
        on, below = rows == columns, rows > columns
        zero = weight.new_zeros(())
        # What is not on the diagonal must not reach an exponential, whose gradient would be inf * 0.
        effective = torch.where(on, torch.where(on, weight, zero).exp(), torch.where(below, weight, zero))
        logs = weight.unflatten(0, (features, o)).unflatten(2, (features, i)).diagonal(dim1=0, dim2=2).movedim(-1, 0)
        exact = logs
        if normalized:
            norm, square = tensors[at + 2], effective.square().sum(1)
            root = square.sqrt() + eps
            effective = effective * (norm.exp() / root).unsqueeze(1)
            logs, exact = (
                logs + t.view(features, o, 1) for t in (norm - 0.5 * (square + eps).log(), norm - root.log())
            )
        found.append(Block(effective, logs, bias, exact))
    return found


def _through(
    weights: Sequence[tuple[Tensor, Tensor, Tensor]], h: Tensor, logs: Tensor, activation: str
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Through layers (weight, logs, bias): what comes out, the logarithm of each feature's slope, what enters each.

    ``h [..., n i]`` and ``logs [..., n, i]``, of n features.
    """
    act, log_slope = ACTIVATIONS[activation]
    entered = []
    for k, (weight, of_block, bias) in enumerate(weights):
        entered.append(h)
        h = F.linear(h, weight) + bias
        logs = torch.logsumexp(of_block + logs.unsqueeze(-2), -1)
        if k < len(weights) - 1:
            logs = logs + log_slope(h).unflatten(-1, logs.shape[-2:])
            h = act(h)
    return h, logs, entered


def _with_residual(
    residual: str, eps: float, gate: Tensor | None, x: Tensor, y: Tensor, logs: Tensor
) -> tuple[Tensor, Tensor]:
    if residual == "sum":
        return x + y, torch.logaddexp(logs, logs.new_zeros(()))  # softplus stops at 20
    if residual == "gated":
        assert gate is not None  # for the type checker
        share = torch.sigmoid(gate)
        kept, passed = F.logsigmoid(gate), F.logsigmoid(-gate)
        if eps > 0:
            kept, passed = (share + eps).log(), (torch.sigmoid(-gate) + eps).log()
        return share * x + (1 - share) * y, torch.logaddexp(kept.expand_as(logs), passed + logs)
    return y, logs


def fwd(spec: Any, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """``x [..., D]``, then weight, bias (and norm) of each layer, and the gate where there is one → y, ladj."""
    out_dtype = x.dtype
    wide = torch.promote_types(out_dtype, torch.float32)
    x, *tensors = (t.to(wide) for t in (x, *tensors))  # type: ignore[assignment]
    gate = tensors[-1] if spec.residual == "gated" else None
    layers = _blocks(x.shape[-1], tensors[:-1] if gate is not None else tensors, spec.normalized, spec.eps)
    if spec.inverse:
        y, logs = _inverse(spec, x, layers, gate)
        return y.to(out_dtype), -logs.sum(-1)
    y, logs, _ = _through([(b.weight, b.logs, b.bias) for b in layers], x, x.new_zeros(*x.shape, 1), spec.activation)
    y, logs = _with_residual(spec.residual, spec.eps, gate, x, y, logs.squeeze(-1))
    return y.to(out_dtype), logs.sum(-1)


def _inverse(spec: Any, y: Tensor, layers: Sequence[Block], gate: Tensor | None) -> tuple[Tensor, Tensor]:
    """x, and the logarithms of the slopes there: feature after feature, each unit of the network once.

    Everything in front of a feature is a constant of its own layers, which are an increasing function of one number.
    """
    entered: list[list[Tensor]] = [[] for _ in layers]
    found, logs = [], []
    for d in range(y.shape[-1]):
        own, of_ladj = [], []
        for k, (weight, of_block, bias, exact) in enumerate(layers):
            o, i = of_block.shape[1:]
            rows, constant = slice(d * o, (d + 1) * o), bias[d * o : (d + 1) * o]
            if d > 0:
                before = torch.cat(entered[k], -1)
                constant = constant + F.linear(before, weight[rows, : d * i])
            own.append((weight[rows, d * i : (d + 1) * i], exact[d : d + 1], constant))
            of_ladj.append((own[-1][0], of_block[d : d + 1], constant))

        at = functools.partial(_of_one, own, gate, spec.activation, spec.residual, 0.0)
        target = y[..., d]
        v = start = _start(own, gate, spec, target)
        # Newton's step squares an error: after one, the derivatives of the root are those of the implicit function
        # theorem, after two also those of these. Its value stays what was found.
        for _ in range(2):
            f, log, _inner = at(v)
            v = v - (f - target) * (-log).exp()
        v = start + (v - v.detach())
        _, log, inner = _of_one(of_ladj, gate, spec.activation, spec.residual, spec.eps, v)
        for k, h in enumerate(inner):
            entered[k].append(h)
        found.append(v)
        logs.append(log)
    return torch.stack(found, -1), torch.stack(logs, -1)


def _of_one(
    own: Sequence[tuple[Tensor, ...]], gate: Tensor | None, activation: str, residual: str, eps: float, v: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """A feature's own function of one number: its value, the logarithm of its slope, what enters each layer."""
    f, log, inner = _through(own, v.unsqueeze(-1), v.new_zeros(*v.shape, 1, 1), activation)  # type: ignore[arg-type]
    f, log = _with_residual(residual, eps, gate, v, f.squeeze(-1), log.squeeze(-1).squeeze(-1))
    return f, log, inner


def _start(own: Sequence[tuple[Tensor, ...]], gate: Tensor | None, spec: Any, target: Tensor) -> Tensor:
    """The root, without derivatives."""
    tensors = [t for layer in own for t in layer] + ([] if gate is None else [gate])
    if torch.compiler.is_compiling() and not _transforms_active() and not _dual_level_active():
        # One node of a graph: its steps, unrolled for every feature, take a compiler minutes.
        return torch.ops.flowkernels.block_root(target, tensors, spec.activation, spec.residual)
    with torch.no_grad():
        return _root(target.detach(), [t.detach() for t in tensors], spec.activation, spec.residual)


def _root(target: Tensor, tensors: Sequence[Tensor], activation: str, residual: str) -> Tensor:
    gate = tensors[-1] if residual == "gated" else None
    own = [tuple(tensors[k : k + 3]) for k in range(0, len(tensors) - 2, 3)]
    return _solve(functools.partial(_of_one, own, gate, activation, residual, 0.0), target)


_lib.define("block_root(Tensor target, Tensor[] tensors, str activation, str residual) -> Tensor")
_lib.impl("block_root", _root, "CompositeExplicitAutograd")
torch.library.register_fake("flowkernels::block_root", lambda target, *_: torch.empty_like(target), lib=_lib)
# Nothing flows back through it: what follows has the derivatives of the root.
torch.library.register_autograd(
    "flowkernels::block_root", lambda ctx, g: (None, [None] * ctx.n, None, None), lib=_lib,
    setup_context=lambda ctx, inputs, output: setattr(ctx, "n", len(inputs[1])),
)  # fmt: skip


def _solve(at: Callable[[Tensor], tuple[Tensor, Tensor, list[Tensor]]], target: Tensor) -> Tensor:
    """Where the increasing function is the target; NaN where it never is."""
    f, log, _ = at(torch.zeros_like(target))
    sign = torch.where(target < f, -1.0, 1.0).to(target.dtype)
    farthest = _FARTHEST[target.dtype]

    def away(m: Tensor) -> tuple[Tensor, Tensor]:
        f, log, _ = at(sign * m)
        return sign * f, log.exp()

    high = torch.full_like(target, farthest)
    guess = ((target - f).abs() * (-log).exp()).clamp(max=farthest)

    def middle(low: Tensor, high: Tensor) -> Tensor:  # of the logarithms: the bracket has many powers of ten
        return low.clamp(min=1 / farthest).sqrt() * high.sqrt()

    m = root(away, sign * target, torch.zeros_like(target), high, guess, middle)
    m = torch.where(target == f, torch.zeros_like(m), m)
    reached = away(high)[0] >= sign * target
    return torch.where(reached, sign * m, torch.nan)
