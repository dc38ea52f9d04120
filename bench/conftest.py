"""Options, the one way to time a call, and the table at the end of a run."""

from __future__ import annotations

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # before torch: its profiler announces every start and stop

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._logging._internal import set_logs

from bench.beside import Beside
from bench.report import compare, machine

# Time spent on one row: slow peers get few rounds, and the whole suite stays short on any machine.
SECONDS_PER_ROW = 1.0
ROUNDS = (5, 200)
SLOW = 2.0  # seconds of a call from which one round is enough: samples that take D passes
SECONDS_PER_ROUND = 1e-3  # short calls are repeated within a round, far above the timer's resolution

_MACHINE = pytest.StashKey[dict[str, Any]]()
_ROWS = pytest.StashKey[list[dict[str, Any]]]()
_REFUSED = pytest.StashKey[list[dict[str, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", type=int, default=2, help="torch.set_num_threads; default 2")
    parser.addoption(
        "--quick", action="store_true", help="tiny shapes, few rounds, no compiled rows: does it still run?"
    )


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(config.option.threads)
    # Peers break the graph dozens of times and inductor says so at length each time; rows record the count.
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    set_logs(all=logging.CRITICAL)
    config.stash[_ROWS], config.stash[_REFUSED] = [], []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.quick:
        compiled = [item for item in items if "compiled" in item.name]
        config.hook.pytest_deselected(items=compiled)
        items[:] = [item for item in items if item not in compiled]


def _facts(config: pytest.Config) -> dict[str, Any]:
    if _MACHINE not in config.stash:
        config.stash[_MACHINE] = {**machine.describe(), **_bandwidth(config)}
    return config.stash[_MACHINE]


def _bandwidth(config: pytest.Config) -> dict[str, float]:
    return machine.bandwidth((1 << 20) if config.option.quick else machine.BUFFER_BYTES)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.clear()  # pytest-benchmark's own has the name of the host
    machine_info.update(_facts(config))
    # Measured again at the end: two figures far apart say that something else was running.
    machine_info["read_gbps_at_end"] = _bandwidth(config)["read_gbps"]


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    output_json["refused"] = config.stash[_REFUSED]


@pytest.fixture
def quick(request: pytest.FixtureRequest) -> bool:
    return request.config.option.quick


@pytest.fixture
def checked(request: pytest.FixtureRequest) -> Callable[..., float]:
    """`checked(error, suite, case, op, row, compiled_peer=...)` → the row's error, or no time for this row.

    A wrong row fails. The one exception is a peer that is right eager and wrong compiled: that is the compiler's and
    nothing here can mend it, so the row is refused, and the table says so where its time would stand.
    """

    def check(error: Callable[[], float], suite: str, case: str, op: str, row: str, *, compiled_peer: bool) -> float:
        try:
            return error()
        except AssertionError as wrong:
            if not compiled_peer:
                raise
            refused = {"suite": suite, "case": case, "op": op, "row": row, "reason": str(wrong)}
            request.config.stash[_REFUSED].append(refused)
            pytest.xfail(str(wrong))

    return check


def _settle(call: Callable[[], Any], compiled: bool) -> float:
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


@pytest.fixture
def timed(benchmark: Any, request: pytest.FixtureRequest, quick: bool) -> Callable[..., None]:
    """`timed(call, suite, case, op, row, compiled=..., least_bytes=..., **figures)` times one row of a table.

    With `beside`, a row with a call of its own, the two are called turn by turn: what the machine does to one in that
    second it does to the other.
    """

    def run(
        call: Callable[[], Any],
        suite: str,
        case: str,
        op: str,
        row: str,
        *,
        compiled: bool = False,
        least_bytes: int | None = None,
        beside: Beside | None = None,
        **figures: Any,
    ) -> None:
        facts = _facts(request.config)
        seconds = _settle(call, compiled)
        others: list[float] = []
        iterations = 1 if beside else max(1, math.ceil(SECONDS_PER_ROUND / seconds))
        budget = 0.01 if quick else SECONDS_PER_ROW
        if beside:
            seconds, budget = seconds + _settle(beside.call, False), 2 * budget
        least = ROUNDS[0] if seconds < SLOW else 1
        rounds = min(max(int(budget / (seconds * iterations)), least), ROUNDS[1])

        def other() -> None:
            if beside:
                start = time.perf_counter()
                beside.call()
                others.append(time.perf_counter() - start)

        benchmark.pedantic(call, setup=other if beside else None, rounds=rounds, iterations=iterations)
        place = {"suite": suite, "case": case, "op": op}
        info: dict[str, Any] = {**place, "row": row, **figures}
        if least_bytes is not None:
            info["least_bytes"] = least_bytes
            info["gbps"] = least_bytes / benchmark.stats.stats.median / 1e9
            # Where the data stays in the cache, a share of the memory's bandwidth says nothing.
            if least_bytes > (facts["last_level_cache_bytes"] or 0):
                info["share_of_read"] = info["gbps"] / facts["read_gbps"]
        benchmark.group = f"{suite}: {case}: {op}"
        benchmark.extra_info.update(info)
        if beside:
            quartiles = torch.tensor((0.25, 0.5, 0.75), dtype=torch.float64)
            low, middle, high = torch.tensor(others, dtype=torch.float64).quantile(quartiles).tolist()
            theirs = {
                **place, "row": beside.row, **beside.figures,
                "median_s": middle, "iqr_s": high - low, "rounds": rounds, "iterations": 1,
            }  # fmt: skip
            benchmark.extra_info["beside"] = theirs
            request.config.stash[_ROWS].append(theirs)
        stats = benchmark.stats.stats
        request.config.stash[_ROWS].append(
            {**info, "median_s": stats.median, "iqr_s": stats.iqr, "rounds": rounds, "iterations": iterations}
        )

    return run


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[_ROWS]
    if rows:
        terminalreporter.write_line("")
        terminalreporter.write_line(compare.details(compare.Result(_facts(config), rows, config.stash[_REFUSED])))
