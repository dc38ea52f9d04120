"""Networks of features in float64 with weights of their own, and what they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

C = 3  # features of a context
Net = TypeVar("Net", bound=nn.Module)


def make(build: Callable[[], Net], seed: int = 0) -> Net:
    torch.manual_seed(seed)
    net = build().double()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(0, 0.7)
    return net


def inputs(net: Any, *rows: int) -> tuple[Tensor, Tensor | None]:
    torch.manual_seed(1)
    context = torch.randn(*rows, C, dtype=torch.float64) if net.context_features else None
    return torch.randn(*rows, net.features, dtype=torch.float64), context
