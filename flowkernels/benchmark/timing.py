"""Two calls timed turn by turn: what the machine does to one in that second it does to the other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

ROUNDS = (3, 1000)
SECONDS_PER_ROUND = 1e-3  # short calls are repeated within a round, far above the timer's resolution


class Times(NamedTuple):
    """Seconds of one call: the least and the median of the rounds."""

    least: float
    median: float


def turn_by_turn(
    before: Callable[[], object], after: Callable[[], object], seconds: float, wait: Callable[[], object]
) -> tuple[Times, Times, int]:
    """The times of both calls, and the number of rounds, which take about ``seconds`` together (three rounds at least).

    ``wait`` returns when all that a call started is done, as it must on a GPU.
    """
    calls = (before, after)

    def lap(call: Callable[[], object], repeats: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        wait()
        return (time.perf_counter() - start) / repeats

    for call in calls:  # so that caches are warm
        lap(call, 1)
    once = [lap(call, 1) for call in calls]
    repeats = [max(1, round(SECONDS_PER_ROUND / t)) for t in once]
    round_takes = sum(t * r for t, r in zip(once, repeats, strict=True))
    rounds = min(max(int(seconds / round_takes), ROUNDS[0]), ROUNDS[1])
    laps: list[list[float]] = [[], []]
    for _ in range(rounds):
        for call, n, found in zip(calls, repeats, laps, strict=True):
            found.append(lap(call, n))
    first, second = (Times(min(found), statistics.median(found)) for found in laps)
    return first, second, rounds
