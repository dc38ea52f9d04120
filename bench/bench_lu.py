"""LU 1×1 convolutions and actnorm on images, against the layers of nflows and normflows."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from bench.report import memory
from bench.suites import lu as channels
from bench.suites import peers

BATCH, SIZE = 64, 16
CASES = [
    pytest.param(suite, n, op, row, id=peers.row_id(f"{suite} {BATCH}x{n}x{SIZE}x{SIZE}", op, row))
    for suite in channels.SUITES
    for n in (12, 48, 96)
    for op in channels.OPS
    for row in channels.ROWS
]


@functools.lru_cache(maxsize=1)
def _inputs(batch: int, n: int, size: int) -> channels.Inputs:
    return channels.Inputs.make(batch, n, size)


@pytest.mark.parametrize(("suite", "n", "op", "row"), CASES)
def bench_channels(
    suite: str, n: int, op: str, row: str, checked: Callable[..., float], timed: Callable[..., None], quick: bool
) -> None:
    if reason := channels.missing(row):
        pytest.skip(reason)
    inputs = _inputs(2 if quick else BATCH, n, SIZE)
    compiled = row.endswith("compiled")
    call = channels.bind(channels.build(suite, row, n), inputs, op, compiled)
    place = (suite, f"{inputs.x.shape[0]}x{n}x{SIZE}x{SIZE}", op, row)

    def error() -> float:
        return channels.worst_error(row, call(), channels.float64_truth(suite, row, inputs, op))

    figures = {"error": checked(error, *place, compiled_peer=compiled)}
    if compiled:
        figures["graph_breaks"] = peers.graph_breaks()
    if op == channels.OPS[1]:
        figures["peak_bytes"] = memory.peak_bytes(call)
    timed(call, *place, compiled=compiled, least_bytes=inputs.least_bytes(op), **figures)
