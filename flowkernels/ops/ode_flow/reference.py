"""The definition in plain PyTorch, differentiable any number of times, in both directions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkernels._backend import Grads, Inputs, Needs
from flowkernels.ops._checks import without_autocast

from .activations import TABLE
from .mesh import mesh
from .tableau import SOLVERS

State = tuple[Tensor, Tensor]  # x [..., D] and ladj [...]


class Net(NamedTuple):
    """The vector field: its layers, of the first the columns of x and of time, and what `trace_tensors` made."""

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]  # the first may have the leading dims of x: what a context adds
    extra: Sequence[Tensor]


def net_of(spec: Any, tensors: Sequence[Tensor]) -> Net:
    at = len(tensors) - (1 if spec.trace == "product" else 2)
    return Net(tensors[:at:2], tensors[1:at:2], tensors[at:])


def trace_kind(hidden: int, trace: str) -> str:
    return "noise" if trace == "hutchinson" else "product" if hidden <= 2 else "probes"


def trace_tensors(kind: str, weights: Sequence[Tensor], features: int, noise: Tensor | None) -> list[Tensor]:
    """What the trace takes beside slopes d, which does not change on the way; weights: the first of x alone.

    ``product``: c such that the trace is c [1, 1], ``c d1`` ([1, H]), or ``d2 . (c d1)`` ([H2, H1]), of none, one or
    two hidden layers. Else the trace is the sum over probes of ``left . d W ... W d right``, from the first layer's
    product with each probe to what the last one's takes from it: one of each row, or one for each feature.
    """
    first, last = weights[0][:, :features], weights[-1]
    if kind == "product":
        if len(weights) == 1:
            return [first.diagonal().sum().view(1, 1)]
        return [(last.mT * first).sum(1).unsqueeze(0) if len(weights) == 2 else weights[1] * (first @ last).mT]
    if kind == "probes":
        return [first.mT, last]
    assert noise is not None  # for the type checker
    return [F.linear(noise, first), noise @ last if len(weights) > 1 else noise]


# ---- the vector field ----


def time_features(spec: Any, t: Tensor) -> Tensor:
    """``[...]`` → what the first layer sees of time, ``[..., T]``."""
    if spec.time == "none":
        return t.new_empty(*t.shape, 0)
    if spec.time == "concat":
        return t.unsqueeze(-1)
    angles = t.unsqueeze(-1) * (math.pi * torch.arange(1, spec.frequencies + 1, dtype=t.dtype, device=t.device))
    return torch.cat((angles.cos(), angles.sin()), -1)


def field(spec: Any, x: Tensor, time: Tensor, net: Net) -> State:
    """f and the trace of its Jacobian; ``time [T]`` or ``[..., T]``."""
    first, D, act = net.weights[0], x.shape[-1], TABLE[spec.activation]
    z = F.linear(x, first[:, :D]) + (net.biases[0] + F.linear(time, first[:, D:]))
    slopes = []
    for weight, bias in zip(net.weights[1:], net.biases[1:], strict=True):
        h, slope = act(z)
        slopes.append(slope)
        z = F.linear(h, weight) + bias
    return z, _trace(spec, net, slopes, x)


def _trace(spec: Any, net: Net, slopes: Sequence[Tensor], x: Tensor) -> Tensor:
    if spec.trace == "product":
        if not slopes:
            return net.extra[0].view(()).expand(x.shape[:-1])
        passed = F.linear(slopes[0], net.extra[0])
        return (passed if len(slopes) == 1 else slopes[1] * passed).sum(-1)
    v, left = net.extra
    each = spec.trace == "probes"
    for k, slope in enumerate(slopes):
        v = (v if k == 0 else F.linear(v, net.weights[k])) * (slope.unsqueeze(-2) if each else slope)
    return (v * left).sum((-1, -2) if each else -1)


# ---- steps ----


class Step(NamedTuple):
    times: Sequence[Tensor]  # time features of each stage, [T] or [..., T]
    h: Tensor  # [] or [...]


def fixed_steps(spec: Any, x: Tensor) -> Iterator[Step]:
    """Of equal length, all times from one table: nothing is read from the device."""
    c = SOLVERS[spec.solver].c
    h = (spec.t1 - spec.t0) / spec.steps
    exact = torch.float64 if x.device.type != "mps" else x.dtype
    k = torch.arange(spec.steps, dtype=exact, device=x.device).unsqueeze(1)
    offsets = torch.stack([torch.full((), of, dtype=exact, device=x.device) for of in c])
    table = time_features(spec, spec.t0 + h * (k + offsets)).to(x.dtype)
    length = torch.full((), h, dtype=x.dtype, device=x.device)
    for i in range(spec.steps):
        yield Step(list(table[i].unbind(0)), length)


def adaptive_steps(spec: Any, x: Tensor, tensors: Sequence[Tensor]) -> Iterator[Step]:
    """Those that each row takes, found beforehand and without gradients: they are the same the second time."""
    starts, lengths = mesh(spec, x, *tensors)
    for t, h in zip(starts.unbind(0), lengths.unbind(0), strict=True):
        yield Step([time_features(spec, t + of * h) for of in SOLVERS[spec.solver].c], h)


def steps_of(spec: Any, x: Tensor, tensors: Sequence[Tensor]) -> Iterator[Step]:
    return adaptive_steps(spec, x, tensors) if spec.solver == "dopri5" else fixed_steps(spec, x)


def advance(spec: Any, x: Tensor, step: Step, net: Net) -> State:
    """x behind a step, and what it adds to ladj."""
    table, slopes, h = SOLVERS[spec.solver], [], step.h.unsqueeze(-1)
    for row, time in zip(table.a, step.times, strict=True):
        at = x
        for of, (slope, _) in zip(row, slopes, strict=False):
            at = at + (of * h) * slope if of else at
        slopes.append(field(spec, at, time, net))
    moved, traced = x, torch.zeros_like(x[..., 0])
    for of, (slope, trace) in zip(table.b, slopes, strict=True):
        if of:
            moved, traced = moved + (of * h) * slope, traced + (of * step.h) * trace
    return moved, traced


@without_autocast  # that of whoever calls a backward pass that is differentiated again
def fwd(spec: Any, x: Tensor, *tensors: Tensor) -> State:
    net, ladj = net_of(spec, tensors), torch.zeros_like(x[..., 0])
    for step in steps_of(spec, x, tensors):
        x, more = advance(spec, x, step, net)
        ladj = ladj + more
    return x, ladj


def bwd(spec: Any, grads: Grads, tensors: Inputs, needs: Needs) -> Grads:
    """The gradient of the steps that were taken: solved again, x before each of them kept, each walked back alone."""
    found: list[Tensor | None] = [None] * len(tensors)
    with torch.no_grad(), torch.autocast(tensors[0].device.type, enabled=False):
        x, rest = tensors[0].detach(), [t.detach().requires_grad_(n) for t, n in zip(tensors[1:], needs[1:])]  # noqa: B905
        net, states, steps = net_of(spec, rest), [x], list(steps_of(spec, x, rest))
        for step in steps[:-1]:
            states.append(advance(spec, states[-1], step, net)[0])
        g = torch.zeros_like(x) if grads[0] is None else grads[0]
        g_ladj = torch.zeros_like(x[..., 0]) if grads[1] is None else grads[1]
        wanted = [t for t in rest if t.requires_grad]
        sums: list[Tensor | None] = [None] * len(wanted)
        for step in reversed(steps):
            with torch.enable_grad():
                at = states.pop().requires_grad_()
                outputs = advance(spec, at, step, net)
            # Where no weight has hidden layers behind it the trace is a constant.
            used = [(o, of) for o, of in zip(outputs, (g, g_ladj), strict=True) if o.requires_grad]
            g, *more = torch.autograd.grad(
                [o for o, _ in used], [at, *wanted], [of for _, of in used], allow_unused=True
            )
            sums = [a if b is None else b if a is None else a + b for a, b in zip(sums, more, strict=True)]
    found[0], of_rest = g, iter(sums)
    found[1:] = [next(of_rest) if t.requires_grad else None for t in rest]
    return [t if n else None for t, n in zip(found, needs, strict=True)]
