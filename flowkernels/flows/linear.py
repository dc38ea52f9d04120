"""The linear layers between the steps of a flow on features."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flowkernels.transforms import LULinear, Permutation, Transform

CHOICES = (None, "lu", "permutation", "reverse")


def interleaved(
    flow: str, linear: str | None, steps: Sequence[Transform], features: int, draws: torch.Generator | None
) -> list[Transform]:
    """The steps, with a linear layer before each and one after the last, as in the code of Durkan et al."""
    if linear not in CHOICES:
        raise ValueError(f'flows.{flow}: linear must be None, "lu", "permutation" or "reverse", got {linear!r:.60}')
    if linear is None:
        return list(steps)
    layers = [_linear(linear, features, draws)]
    for step in steps:
        layers += [step, _linear(linear, features, draws)]
    return layers


def _linear(linear: str, features: int, draws: torch.Generator | None) -> Transform:
    if linear == "reverse":
        return Permutation.reverse(features)
    if linear == "permutation":
        return Permutation(torch.randperm(features, generator=draws, device="cpu").tolist())  # the meta device has none
    layer = LULinear(features, seed=draws)
    # The paper starts at L = U = 1, so that a feature stays in the splines' box. The P of a random rotation is a
    # random permutation: its rows could have come in any order.
    with torch.no_grad():
        for factor in (layer.lower, layer.upper, layer.log_s):
            factor.zero_()
        layer.sign_s.fill_(1)
    return layer
