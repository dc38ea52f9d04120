"""The spline alone: every row on the same tensors, checked against float64, then timed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import pytest
from torch import Tensor

from bench.report import memory
from bench.suites import peers
from bench.suites import rqs as problem


class Case(NamedTuple):
    rows: int
    features: int
    bins: int
    names: tuple[str, ...]
    ops: tuple[str, ...] = problem.OPS

    def __str__(self) -> str:
        return f"{self.rows}x{self.features} K={self.bins}"


SHORT = ("nflows eager", "plain torch compiled", "flowkernels")
CASES = (
    Case(8192, 64, 8, tuple(peers.ROWS)),
    # The compiler takes minutes on the peers' graphs: at K = 32 only where it makes one graph.
    Case(8192, 64, 32, (*list(peers.ROWS)[:3], "zuko compiled", "plain torch compiled", "flowkernels")),
    Case(4096, 63, 8, SHORT),  # odd rows: no vector ends where a row ends
    Case(512, 6, 8, SHORT),  # a layer of a small model
    Case(64, 8, 8, SHORT, ops=("forward",)),  # what one call costs before it does anything
)


PARAMS = [
    pytest.param(case, op, peers.ROWS[name], id=peers.row_id(str(case), op, name))
    for case in CASES
    for op in case.ops
    for name in case.names
]


@functools.lru_cache(maxsize=1)
def _inputs(rows: int, features: int, bins: int) -> problem.Inputs:
    return problem.Inputs.make(rows, features, bins)


@functools.lru_cache(maxsize=2)  # one per parametrisation
def _truth(spline: problem.Spline, op: str, *size: int) -> tuple[Tensor, ...]:
    return problem.float64_truth(spline, _inputs(*size), op)


@pytest.mark.parametrize(("case", "op", "row"), PARAMS)
def bench_rqs(
    case: Case, op: str, row: peers.Row, checked: Callable[..., float], timed: Callable[..., None], quick: bool
) -> None:
    if reason := row.missing():
        pytest.skip(reason)
    size = (max(1, case.rows // 128) if quick else case.rows, case.features, case.bins)
    inputs = _inputs(*size)
    spline = row.ready()
    call = problem.bind(spline, inputs, op)
    place = ("spline", str(case._replace(rows=size[0])), op, row.name)

    def error() -> float:
        return problem.worst_error(row.name, call(), _truth(row.truth, op, *size), case.bins)

    figures = {"error": checked(error, *place, compiled_peer=row.compiled and row.package is not None)}
    if row.compiled:
        figures["graph_breaks"] = peers.graph_breaks()
    if op == problem.OPS[2]:
        forward, _ = problem.bind_graph(spline, inputs)
        figures |= {"saved_bytes": memory.saved_bytes(forward), "peak_bytes": memory.peak_bytes(call)}
    timed(call, *place, compiled=row.compiled, least_bytes=inputs.least_bytes(op), **figures)
