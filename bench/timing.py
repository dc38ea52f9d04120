"""The one way to time a row on a CPU: rounds of calls, alone or turn by turn with another row."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

# Time spent on one row: slow peers get few rounds, and the whole suite stays short on any machine.
SECONDS_PER_ROW = 1.0
ROUNDS = (5, 200)
SLOW = 2.0  # seconds of a call from which one round is enough: samples that take D passes
SECONDS_PER_ROUND = 1e-3  # short calls are repeated within a round, far above the timer's resolution


class Beside(NamedTuple):
    """The row that another is timed against: its name, its call and its other figures."""

    row: str
    call: Callable[[], Any]
    figures: dict[str, Any]


class Timed(NamedTuple):
    """What `time_rounds` found: its plan, the seconds of the calls beside, and the last results."""

    rounds: int
    iterations: int
    others: list[float]
    results: tuple[Any, ...]


def settle(call: Callable[[], Any], compiled: bool) -> float:
    """Calls until caches are warm and nothing is left to compile; → seconds of the fastest of the last two calls."""
    seconds = []
    # A compiled peer whose masks change size compiles once more, for any size, on the second or third call.
    for _ in range(6 if compiled else 2):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
        if seconds[-1] >= SLOW and not compiled:
            break  # it is warm after one
    return min(seconds[-2:])


def time_rounds(
    benchmark: Any, call: Callable[[], Any], beside: Callable[[], Any] | None, *, compiled: bool, quick: bool
) -> Timed:
    """Times `call` by pytest-benchmark. With `beside` the two are called turn by turn: what the machine does to one in
    that second it does to the other."""
    seconds = settle(call, compiled)
    iterations = 1 if beside else max(1, math.ceil(SECONDS_PER_ROUND / seconds))
    budget = 0.01 if quick else SECONDS_PER_ROW
    if beside:
        seconds, budget = seconds + settle(beside, False), 2 * budget
    least = ROUNDS[0] if seconds < SLOW else 1
    rounds = min(max(int(budget / (seconds * iterations)), least), ROUNDS[1])
    others: list[float] = []
    last: list[Any] = [None]

    def other() -> None:
        if beside:
            start = time.perf_counter()
            last[0] = beside()
            others.append(time.perf_counter() - start)

    result = benchmark.pedantic(call, setup=other if beside else None, rounds=rounds, iterations=iterations)
    return Timed(rounds, iterations, others, (result, last[0]))


def median_and_iqr(seconds: list[float]) -> dict[str, float]:
    quartiles = torch.tensor((0.25, 0.5, 0.75), dtype=torch.float64)
    low, middle, high = torch.tensor(seconds, dtype=torch.float64).quantile(quartiles).tolist()
    return {"median_s": middle, "iqr_s": high - low}
