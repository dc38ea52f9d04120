"""Options, a row's check and its time as fixtures, and the table at the end of a run."""

from __future__ import annotations

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # before torch: its profiler announces every start and stop

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._logging._internal import set_logs

from bench.report import compare, machine
from bench.suite import Row
from bench.timing import Beside, median_and_iqr, time_rounds

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
    """`checked(error, suite, case, op, row)` → the row's error, or no time for this row.

    A wrong row fails. The one exception is a peer that is right eager and wrong compiled: that is the compiler's and
    nothing here can mend it, so the row is refused, and the table says so where its time would stand.
    """

    def check(error: Callable[[], float], suite: str, case: str, op: str, row: Row) -> float:
        try:
            return error()
        except AssertionError as wrong:
            if not (row.compiled and row.peer):
                raise
            refused = {"suite": suite, "case": case, "op": op, "row": row.name, "reason": str(wrong)}
            request.config.stash[_REFUSED].append(refused)
            pytest.xfail(str(wrong))

    return check


@pytest.fixture
def timed(benchmark: Any, request: pytest.FixtureRequest, quick: bool) -> Callable[..., tuple[Any, ...]]:
    """`timed(call, suite, case, op, row, compiled=..., beside=..., **figures)` times one row of a table, and the row
    `beside` it turn by turn; → their last results."""
    facts, rows = _facts(request.config), request.config.stash[_ROWS]  # before a suite chooses its threads

    def run(
        call: Callable[[], Any],
        suite: str,
        case: str,
        op: str,
        row: str,
        *,
        compiled: bool,
        beside: Beside | None,
        **figures: Any,
    ) -> tuple[Any, ...]:
        found = time_rounds(benchmark, call, beside.call if beside else None, compiled=compiled, quick=quick)
        if benchmark.disabled:
            return found.results
        place = {"suite": suite, "case": case, "op": op}
        stats = benchmark.stats.stats
        info: dict[str, Any] = {**place, "row": row, **figures}
        if "least_bytes" in info:
            info["gbps"] = info["least_bytes"] / stats.median / 1e9
            # Where the data stays in the cache, a share of the memory's bandwidth says nothing.
            if info["least_bytes"] > (facts["last_level_cache_bytes"] or 0):
                info["share_of_read"] = info["gbps"] / facts["read_gbps"]
        benchmark.group = f"{suite}: {case}: {op}"
        benchmark.extra_info.update(info)
        if beside:
            times = {**median_and_iqr(found.others), "rounds": found.rounds, "iterations": 1}
            benchmark.extra_info["beside"] = {**place, "row": beside.row, **beside.figures, **times}
            rows.append(benchmark.extra_info["beside"])
        times = {"median_s": stats.median, "iqr_s": stats.iqr, "rounds": found.rounds, "iterations": found.iterations}
        rows.append({**info, **times})
        return found.results

    return run


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[_ROWS]
    if rows:
        terminalreporter.write_line("")
        terminalreporter.write_line(compare.details(compare.Result(_facts(config), rows, config.stash[_REFUSED])))
