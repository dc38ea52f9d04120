"""What the tests of residual maps run."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

Layers = list[tuple[Tensor, Tensor]]
# The settings that have formulas of their own.
WAYS: dict[str, dict[str, Any]] = {
    "lipswish": {"activation": "lipswish"},
    "betas": {"activation": "lipswish", "betas": True},
    "preactivated": {"activation": "lipswish", "betas": True, "preactivated": True},
    "elu": {"activation": "elu"},
    "tanh": {"activation": "tanh", "preactivated": True},
}


def drawn(
    way: dict[str, Any], rows: int, D: int, *hidden: int, norm: float = 0.9, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Layers, dict[str, Any]]:
    """x [rows, D], layers whose weights have this spectral norm, and the settings; drawn in float64."""
    g = torch.Generator().manual_seed(rows + D)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    layers = []
    for n_in, n_out in itertools.pairwise((D, *hidden, D)):
        weight = randn(n_out, n_in)
        weight = norm * weight / torch.linalg.matrix_norm(weight, 2)
        layers.append((weight.to(dtype), randn(n_out).to(dtype)))
    settings = dict(way)
    if settings.pop("betas", False):
        n = len(hidden) + settings.get("preactivated", False)
        settings["betas"] = (0.5 + randn(n).abs()).to(dtype)
    return randn(rows, D).to(dtype), layers, settings


def all_signs(x: Tensor) -> Tensor:
    """Every vector of signs, for each row: the mean over them is the expectation over Rademacher noise."""
    D = x.shape[-1]
    signs = torch.tensor([*itertools.product((-1, 1), repeat=D)], dtype=x.dtype)
    return signs.view(-1, *[1] * (x.dim() - 1), D).expand(-1, *x.shape)
