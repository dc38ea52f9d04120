"""Time of the Python around a kernel: a warm layer whose compiled entry does nothing, beside nflows' own layer.

A round is 10 calls, for caches are as warm then as in a loop of small batches: 660 µs are 66 µs per layer.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.beside import Beside
from bench.suites import glue, peers
from flowkernels import _native

ROWS = ("glue", "flowkernels")  # with an entry that does nothing; as it is
CASES = [
    pytest.param(suite, batch, row, id=peers.row_id(suite, str(batch), row))
    for suite in glue.CALLS
    for batch in (1, 64)
    for row in ROWS
]


@pytest.mark.parametrize(("suite", "batch", "row"), CASES)
def bench_glue(
    suite: str,
    batch: int,
    row: str,
    monkeypatch: pytest.MonkeyPatch,
    timed: Callable[..., None],
    request: pytest.FixtureRequest,
) -> None:
    if importlib.util.find_spec("nflows") is None:
        pytest.skip("nflows is not installed")
    torch.set_num_threads(1)
    request.addfinalizer(lambda: torch.set_num_threads(request.config.option.threads))
    ours, theirs = glue.CALLS[suite](batch)
    with torch.no_grad():
        glue.assert_close(ours(), theirs())
        calls = 0
        if row == "glue":
            entries = [name for name in dir(_native.C) if name.endswith("_fwd")]

            def nothing(*_: Any) -> None:  # the caller has allocated what an entry fills
                nonlocal calls
                calls += 1

            for name in entries:
                monkeypatch.setattr(_native.C, name, nothing)
            ours()
            assert calls == 1, f"one entry must be called, not a kernel past it; got {calls} calls of {entries}"
        place = (f"{suite}, {batch} rows", f"{glue.CALLS_IN_A_ROW} calls, forward, no grad, 1 thread")
        beside = Beside("nflows eager", glue.in_a_row(theirs), {})
        timed(glue.in_a_row(ours), "glue", *place, row, beside=beside)
