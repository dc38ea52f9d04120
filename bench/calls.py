"""The calls that are timed: without a graph, forward and backward, a training step; and their compiled form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bench.suite import Tensors
from flowkernels._flat import FlatParameter

R = TypeVar("R")


def without_graph(call: Callable[[], R]) -> Callable[[], R]:
    def values() -> R:
        with torch.no_grad():
            return call()

    return values


def forward_backward(forward: Callable[[], Tensors], leaves: Sequence[Tensor], grads: Tensors) -> Callable[[], Tensors]:
    """→ what `forward` gives, and behind it the gradients of those leaves that it used."""

    def call() -> Tensors:
        outputs = forward()
        found = torch.autograd.grad(outputs, leaves, grads, allow_unused=True)
        return *(y.detach() for y in outputs), *(g for g in found if g is not None)

    return call


def training_step(
    module: nn.Module, loss: Callable[[], Tensor], lr: float, flat: FlatParameter | None = None
) -> Callable[[], Tensor]:
    """zero_grad, loss, backward and a step of Adam, on the `flat` parameter of a module that has one."""
    optimizer = torch.optim.Adam(module.parameters() if flat is None else [flat], lr=lr, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        if flat is not None:
            flat.collect()
        optimizer.step()
        return value.detach()

    return step


def fresh_compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` with its defaults, from no compiled code, so that every row is compiled for its own shape."""
    torch.compiler.reset()
    _counters().clear()
    return torch.compile(function)


def graph_breaks() -> int:
    """Graph breaks since `fresh_compile`."""
    return sum(_counters()["graph_break"].values())


def _counters() -> dict[str, Any]:
    from torch._dynamo.utils import counters  # seconds to import, and eager rows need none of it

    return counters
