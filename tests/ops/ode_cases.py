"""Vector fields for the tests of continuous maps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Layers = list[tuple[Tensor, Tensor]]

OF_TIME = {"none": 0, "concat": 1, "sinusoidal": 6}
# Names of settings: hidden widths, and the rest.
FIELDS: dict[str, tuple[Sequence[int], dict[str, Any]]] = {
    "linear": ((), {}),
    "one layer": ((8,), {"activation": "softplus", "time": "sinusoidal"}),
    "two layers": ((8, 7), {"activation": "gelu", "time": "none"}),
    "two layers, time": ((6, 9), {"activation": "tanh", "time": "sinusoidal"}),
    "three layers": ((6, 5, 7), {"activation": "silu", "time": "concat"}),
    "hutchinson": ((8, 7), {"activation": "tanh", "time": "concat", "trace": "hutchinson"}),
}


def drawn(
    rows: int,
    features: int,
    hidden: Sequence[int],
    *,
    time: str = "concat",
    context: int = 0,
    scale: float = 1.0,
    seed: int = 0,
    **_: Any,
) -> tuple[Tensor, Layers, Tensor | None]:
    """x, layers and a context in float64."""
    draws = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    widths = [features + OF_TIME[time] + context, *hidden, features]
    layers = [(scale * normal(b, a) / math.sqrt(a), 0.3 * normal(b)) for a, b in itertools.pairwise(widths)]
    return normal(rows, features), layers, normal(rows, context) if context else None


def signs(x: Tensor, settings: dict[str, Any]) -> dict[str, Any]:
    """The noise of Hutchinson's, where settings ask for it."""
    if settings.get("trace") != "hutchinson":
        return {}
    draws = torch.Generator().manual_seed(1)
    return {"noise": 2 * torch.randint(2, x.shape, generator=draws).to(x) - 1}
