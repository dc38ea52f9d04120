"""Every row of every suite: checked against the truth, then timed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench import calls
from bench.report import memory
from bench.suite import Ready, Row, Size, Suite
from bench.suites import (
    affine,
    block,
    dropin,
    glow,
    glue,
    low_rank,
    lu,
    masked,
    mixture,
    model,
    monotone,
    ode_flow,
    polynomial,
    recurrent,
    residual_flow,
    rqs,
    sample,
)
from bench.timing import Beside

# In the order of a run and of its tables.
SUITES: tuple[Suite[Any, Any], ...] = (
    affine.SUITE, *dropin.SUITES, glow.SUITE, glue.SUITE, *lu.SUITES, masked.SUITE, sample.SUITE, model.SUITE,
    rqs.SUITE,
    mixture.SUITE,
    monotone.SUITE,
    polynomial.SUITE,
    block.SUITE,
    low_rank.SUITE,
    ode_flow.SUITE,
    residual_flow.SUITE,
    recurrent.SUITE,
)  # fmt: skip
PARAMS = [pytest.param(suite, *point, id=suite.id(*point)) for suite in SUITES for point in suite.points]


@functools.lru_cache(maxsize=1)
def inputs_of(suite: Suite[Any, Any], size: Size) -> Any:
    return suite.inputs(*size)


@functools.lru_cache(maxsize=2)  # rows of two truths alternate in a group of the table
def truth_of(suite: Suite[Any, Any], size: Size, op: str, which: Any) -> Any:
    return suite.truth(which, inputs_of(suite, size), op)


@pytest.mark.parametrize(("suite", "size", "op", "name"), PARAMS)
def bench_suite(
    suite: Suite[Any, Any],
    size: Size,
    op: str,
    name: str,
    quick: bool,
    checked: Callable[..., float],
    timed: Callable[..., Any],
) -> None:
    size = suite.smaller(*size) if quick else size
    row = suite.rows[name]
    other = suite.rows[suite.beside] if suite.beside else None
    if reason := row.missing() or suite.too_slow(row, *size):
        pytest.skip(reason)
    inputs = inputs_of(suite, size)
    place = (suite.title, suite.label(*size), op)

    def figures(row: Row, ready: Ready) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if ready.error:
            error = functools.partial(ready.error, truth_of(suite, size, op, row.truth))
            found["error"] = checked(error, *place, row)
        if row.compiled and ready.breaks:
            found["graph_breaks"] = calls.graph_breaks()
        if ready.forward:
            found["saved_bytes"] = memory.saved_bytes(ready.forward, resident=ready.weights)
        if ready.backward:
            found["peak_bytes"] = memory.peak_bytes(ready.backward)
        return found

    with suite.around():
        beside = None
        if other:
            ready = suite.ready(other, inputs, op)
            beside = Beside(other.name, ready.call, figures(other, ready))
        ready = suite.ready(row, inputs, op)
        found = figures(row, ready)
        if suite.bytes:
            found["least_bytes"] = suite.bytes(inputs, op)
        with ready.during():
            results = timed(ready.call, *place, name, compiled=row.compiled, beside=beside, **found)
    assert all(_finite(result) for result in results), f"{name}: its last result must be finite, got {results}"


def _finite(result: Any) -> bool:
    if isinstance(result, torch.Tensor):
        return bool(result.isfinite().all())
    return all(map(_finite, result or ()))
