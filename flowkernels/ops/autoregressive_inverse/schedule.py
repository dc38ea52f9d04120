"""What a sweep does when: which units of which layer, as the features that they see become known.

It follows from the masks alone. The CPU's kernels find it as they go; a GPU's are told.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from flowkernels.ops._kept import kept
from flowkernels.ops.net.plan import MadePlan

_UNITS = 32  # kSweepUnits of csrc/autoregressive_inverse/autoregressive_inverse.h


def steps(plan: MadePlan, units: int = _UNITS) -> list[tuple[int, int, int, int]]:
    """The steps of a sweep, in order; units, inputs and features stand in degree order.

    ``(layer, first, count, inputs)``: the units ``first`` to ``first + count`` of that layer, at most ``units``, from
    its first ``inputs`` inputs, which are all that they see. ``(number of layers, i, column, 0)``: feature i, which is
    this column of x, by the parameters that the last layer has just returned.

    Example:
        >>> from flowkernels.ops import MadePlan
        >>> plan = MadePlan([[2, 1], [1, 1], [2, 2, 1, 1]])
        >>> for step in steps(plan):
        ...     print(step)
        (1, 0, 2, 0)
        (2, 0, 1, 0)
        (0, 0, 2, 1)
        (1, 2, 2, 2)
        (2, 1, 0, 0)
    """
    n, P, order = len(plan.layers), plan.params_per_feature, plan.order.tolist()
    limits = [layer.limit.tolist() for layer in plan.layers]
    front = [0] * n
    found: list[tuple[int, int, int, int]] = []

    def compute(layer: int, inputs: int, end: int) -> None:
        """The units before `end` that see no more than this many inputs."""
        limit = limits[layer]
        while front[layer] < end and limit[front[layer]] <= inputs:
            first = last = front[layer]
            while last < min(end, first + units) and limit[last] == limit[first]:
                last += 1
            found.append((layer, first, last - first, limit[first]))
            front[layer] = last

    for known in range(plan.features):
        for i in range(n - 1):
            # A layer that closes a residual block adds to units that must be there.
            closes = plan.residual and i > 0 and i % 2 == 0
            compute(i, known if i == 0 else front[i - 1], front[i - 2] if closes else len(limits[i]))
        compute(n - 1, front[n - 2] if n > 1 else known, (known + 1) * P)
        found.append((n, known, order[known], 0))
    return found


@functools.lru_cache(maxsize=256)
def computes_all(plan: MadePlan) -> tuple[bool, ...]:
    """Whether the steps compute every unit, layer by layer: one that sees all features is seen by none."""
    counts = [0] * (len(plan.layers) + 1)
    for layer, _, count, _ in steps(plan):
        counts[layer] += count
    return tuple(counts[i] == layer.n_out for i, layer in enumerate(plan.layers))


@kept(maxsize=256)
def handle(plan: MadePlan, module: Any, device: torch.device) -> Any:
    """The steps as this compiled module takes them, int32 ``[steps, 4]`` on this device: one copy for all calls."""
    found = steps(plan)
    there = torch.tensor(found, dtype=torch.int32, device="cpu").to(device)
    return module.SweepSteps([layer.handle(module, device) for layer in plan.layers], found, there)
