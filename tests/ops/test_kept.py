"""What a first call under inference mode makes and keeps must serve later calls that train."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from flowkernels.ops import MadePlan
from flowkernels.ops._kept import kept
from flowkernels.ops.net.plan import LayerPlan, layer_plan

CPU = torch.device("cpu")


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, LayerPlan):
        yield from _tensors(tuple(vars(value).values()))
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)


def _plan(features: int) -> MadePlan:
    """One that no other test has; what hangs on it is made here."""
    return MadePlan([range(1, features + 1), [3, 1, 2] * features, [d for d in range(1, features + 1) for _ in (0, 1)]])


def _sweep(features: int) -> object:
    from flowkernels.ops.autoregressive_inverse import triton

    return triton._sweep(_plan(features), (False, False), CPU)


def _stairs(features: int) -> object:
    from flowkernels.ops.net import triton

    return triton.stairs(_plan(features).layers[0], CPU)


def _layer(features: int) -> LayerPlan:
    plan = layer_plan([1, 2, 40 + features], [3, 1, 2])
    plan.mask(torch.empty(0))
    return plan


MADE = {
    "layer plan": _layer,
    "sweep of Triton": _sweep,
    "stairs of Triton": _stairs,
}


@pytest.mark.parametrize("name", MADE)
def test_nothing_of_inference_mode_stays(name):
    with torch.inference_mode():
        found = list(_tensors(MADE[name](41 + list(MADE).index(name))))
    assert found
    assert not any(t.is_inference() for t in found)


def test_made_once():
    calls = []

    @kept(maxsize=8)
    def make(n: int) -> Tensor:
        calls.append(n)
        return torch.zeros(n)

    with torch.inference_mode():
        first = make(3)
    assert make(3) is first
    assert calls == [3]
