"""The linear layers between the steps of a flow on features."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flowkernels.transforms import LULinear, Permutation, Transform

CHOICES = (None, "lu", "lu_permutation", "permutation", "reverse")


def interleaved(
    flow: str, linear: str | None, steps: Sequence[Transform], features: int, draws: torch.Generator | None
) -> list[Transform]:
    """The steps, with a linear layer before each and one after the last, as in the code of Durkan et al."""
    if linear not in CHOICES:
        names = ", ".join(f'"{choice}"' for choice in CHOICES[1:])
        raise ValueError(f"flows.{flow}: linear must be None or one of {names}, got {linear!r:.60}")
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
    # Both leave a feature in the splines' box, which a rotation would not.
    return LULinear(features, init="identity" if linear == "lu" else "permutation", seed=draws)
