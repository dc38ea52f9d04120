"""Values and gradients of every class that is accelerated, in the directions it has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.compat import ability_cases

CASES = ability_cases.CASES
EVERY = [(name, direction) for name, case in CASES.items() for direction in case.directions]


def make(name: str) -> Any:
    """The layer of a case; every call makes the same one."""
    return ability_cases.build(CASES[name])


def data(name: str) -> Tensor:
    return ability_cases.data(CASES[name])


def values_and_gradients(name: str, layer: nn.Module, x: Tensor, direction: str) -> list[Tensor | None]:
    """What a call returns, and the gradients of all of it by x and by every parameter."""
    x = x.detach().clone().requires_grad_()
    found = ability_cases.Run(layer, CASES[name].call, direction == "inverse")(x)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    total = sum(t.square().sum() + 1.3 * t.sum() for t in found)
    return [*(t.detach() for t in found), *torch.autograd.grad(total, [x, *parameters], allow_unused=True)]  # type: ignore[arg-type]


def assert_same(found: list[Tensor | None], wanted: list[Tensor | None]) -> None:
    """Up to rounding; log-determinants may be summed already, and Pyro looks for bins with knots moved by 1e-6."""
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is None or b is None:
            continue
        if a.shape != b.shape:
            a, b = a.flatten(1).sum(1), b.flatten(1).sum(1)
        within = 1e-7 if b.dtype == torch.float64 else 1e-4
        torch.testing.assert_close(a, b, rtol=within, atol=within * max(1.0, float(b.abs().max())))
