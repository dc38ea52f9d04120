"""Degrees of a MADE's units: who may see whom."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels._arguments import permutation

Seed = int | torch.Generator | None


Order = str | Sequence[int] | Sequence[Sequence[int]] | Tensor


def input_degrees(order: Order, D: int, generator: torch.Generator | None) -> list[int]:
    """The rank of every feature in the order, from 1 on; that of its group, where the order is one of groups."""
    if is_grouped(order):
        groups = parts("nets.MADE", "order", order, D)
        ranks = {d: 1 + rank for rank, group in enumerate(groups) for d in group}
        return [ranks[d] for d in range(D)]
    indices = ordered("nets.MADE", order, D, generator)
    return [1 + rank for rank in sorted(range(D), key=indices.__getitem__)]


def ordered(where: str, order: Order, D: int, generator: torch.Generator | None) -> list[int]:
    """The features of an order, first that which sees none."""
    if not isinstance(order, str):
        return permutation(where, "order", order, D)
    if order == "random":
        return torch.randperm(D, generator=generator, device="cpu").tolist()
    if order in ("natural", "reversed"):
        return list(range(D))[:: 1 if order == "natural" else -1]
    raise ValueError(f'{where}: order must be "natural", "reversed", "random" or D indices, got {order!r}')


def is_grouped(order: object) -> bool:
    """Whether an order is one of groups of features, such as ``[[0, 1], [2, 3]]``."""
    if isinstance(order, (str, bytes, Tensor)) or not isinstance(order, Sequence):
        return False
    return any(isinstance(group, Iterable) and not isinstance(group, str) for group in order)


def parts(where: str, name: str, groups: Any, D: int) -> list[list[int]]:
    """Groups that hold each of 0 to D-1 once, none of them empty."""
    listed = [list(g) if isinstance(g, Iterable) and not isinstance(g, str) else [] for g in groups]
    if not all(listed):
        raise ValueError(f"{where}: {name} must be groups of features, none empty, got {groups!r:.60}")
    permutation(where, name, [d for group in listed for d in group], D)
    return [[int(d) for d in group] for group in listed]


def output_degrees(inputs: Sequence[int], params_per_feature: int) -> list[int]:
    """The degree of each feature, once per parameter."""
    return [d for d in inputs for _ in range(params_per_feature)]


def hidden_degrees(
    kind: str, inputs: Sequence[int], widths: Sequence[int], residual: bool, generator: torch.Generator | None
) -> list[list[int]]:
    """The degrees of each hidden layer's units, from 1 (0 where there is one feature) to D - 1; D counts groups."""
    D = max(inputs)
    levels, lowest = max(1, D - 1), min(1, D - 1)
    if kind == "sequential":
        return [[k % levels + lowest for k in range(n)] for n in widths]
    if kind == "even":
        return [[k * levels // n + lowest for k in range(n)] for n in widths]
    if kind != "random":
        raise ValueError(f'nets.MADE: degrees must be "sequential", "even" or "random", got {kind!r}')
    rows: list[list[int]] = []
    for i, n in enumerate(widths):
        if residual and i > 0 and i % 2 == 0:
            rows.append(rows[0])  # a block adds to units, which keep their degrees
        else:
            low = min(*(rows[-1] if rows else inputs), D - 1)  # so that no unit sees nothing
            rows.append(torch.randint(low, D, (n,), generator=generator, device="cpu").tolist())
    return rows
