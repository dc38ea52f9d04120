"""What the tests of residual maps run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import ops

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


def estimate(x: Tensor, draws: int = 1, weights: Sequence[float] = (1.0, 1.0, 2.0, 4.0)) -> dict[str, Any]:
    """The settings of a roulette with so many vectors of normal noise."""
    noise = torch.randn(draws, *x.shape, generator=torch.Generator().manual_seed(draws), dtype=torch.float64)
    return {"log_det": "roulette", "noise": noise.to(x.dtype), "weights": torch.tensor([*weights], dtype=x.dtype)}


# Determinants as calls are told to find them.
HOW = pytest.mark.parametrize("how", [lambda x: {}, estimate], ids=["exact", "estimate"])


def called(
    way: dict[str, Any], x: Tensor, layers: Any, settings: dict[str, Any], backend: str | None, dtype: torch.dtype,
    **more: Any,
) -> list[Tensor]:  # fmt: skip
    """y, ladj and every gradient, in a dtype."""
    more = {name: v.to(dtype) if isinstance(v, Tensor) else v for name, v in more.items()}
    leaves = [t.detach().to(dtype).requires_grad_() for t in (x, *(t for layer in layers for t in layer))]
    given = list(zip(leaves[1::2], leaves[2::2], strict=True))
    settings = dict(settings)
    if "betas" in settings:
        settings["betas"] = settings["betas"].detach().to(dtype).requires_grad_()
        leaves.append(settings["betas"])
    y, ladj = ops.residual_flow(leaves[0], given, backend=backend, **settings, **more)
    weights = (torch.linspace(-1, 1.5, t.numel(), dtype=torch.float64).view_as(t).cos().to(t.dtype) for t in (y, ladj))
    grads = torch.autograd.grad([y, ladj], leaves, [*weights], materialize_grads=True)
    return [y.detach(), ladj.detach(), *grads]
