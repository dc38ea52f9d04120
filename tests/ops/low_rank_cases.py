"""What the tests of planar, radial and Sylvester maps run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# The settings that have formulas of their own.
WAYS: dict[str, dict[str, Any]] = {
    "planar": {"kind": "planar"},
    "planar leaky": {"kind": "planar", "activation": "leaky_relu"},
    "radial": {"kind": "radial"},
    "radial abs": {"kind": "radial", "alpha": "abs"},
    "sylvester": {"kind": "sylvester"},
    "sylvester leaky": {"kind": "sylvester", "activation": "leaky_relu", "negative_slope": 0.5},
}


def drawn(
    kind: str, rows: int, D: int, M: int, *, lead: tuple[int, ...] = (), layers: int = 2, scale: float = 0.7
) -> tuple[Tensor, list[Tensor]]:
    """x [rows, D] and parameters, shared or with leading dims, in float64."""
    g = torch.Generator().manual_seed(rows + D)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x, n = randn(rows, D), layers
    if kind == "sylvester":
        shapes: list[tuple[int, ...]] = [(n, D, M), (n, M, M), (n, M, M), (n, M)]
    else:
        shapes = [(n, D), (n, D) if kind == "planar" else (n,), (n,)]
    return x, [scale * randn(*lead, *shape) for shape in shapes]
