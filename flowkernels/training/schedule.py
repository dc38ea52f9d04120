"""Learning rates: a factor for each share of the training, so that a checkpoint need not hold them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

Schedule = Callable[[float], float]


def cosine(done: float) -> float:
    """From 1 to 0 along half a period.

    Reference:
        Loshchilov, Hutter: SGDR: Stochastic Gradient Descent with Warm Restarts, ICLR 2017, arXiv:1608.03983.
    """
    return 0.5 * (1 + math.cos(math.pi * done))


def constant(done: float) -> float:
    return 1.0


def schedule_of(where: str, schedule: object) -> Schedule:
    if schedule is None:
        return constant
    if schedule == "cosine":
        return cosine
    if callable(schedule):
        return cast(Schedule, schedule)
    raise ValueError(
        f'{where}: schedule must be "cosine", None or a function of the share of training that is done, got '
        f"{schedule!r:.60}"
    )
