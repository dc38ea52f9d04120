"""`accelerate` on a typical model of each library: before and after, in one process and with the same weights."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.beside import Beside
from bench.report import memory
from bench.suites import dropin, peers
from bench.suites import model as models

PARAMS = [
    pytest.param(name, features, batch, op, id=peers.row_id(name, f"D{features}", f"B{batch}", op))
    for name in dropin.MODELS
    for features, batch in dropin.SIZES
    for op in models.OPS
]


@functools.lru_cache(maxsize=1)
def _data(features: int, batch: int) -> tuple[Tensor, Tensor]:
    x, z = torch.randn(2, batch, features, generator=torch.Generator().manual_seed(0))
    return x, z


@functools.lru_cache(maxsize=1)
def _truth(name: str, features: int, batch: int) -> models.Truth:
    # A float64 inverse of an autoregressive model is D passes of its networks: a few rows judge it.
    x, z = _data(features, batch)
    return dropin.float64_truth(name, x, z[:64])


@pytest.mark.parametrize(("name", "features", "batch", "op"), PARAMS)
def bench_dropin(
    name: str,
    features: int,
    batch: int,
    op: str,
    checked: Callable[..., float],
    timed: Callable[..., None],
    quick: bool,
) -> None:
    pytest.importorskip(dropin.MODELS[name].library)
    batch = batch // 32 if quick else batch
    x, z = _data(features, batch)
    truth, calls, figures, last = _truth(name, features, batch), {}, {}, {}
    place = (f"drop-in {name}", f"D={features}, batch {batch}", op)
    for row in dropin.ROWS:
        model = dropin.build(name, row, features)
        error = functools.partial(models.worst_error, model, op, x, z[:64], truth)
        figures[row] = {"error": checked(error, *place, row, compiled_peer=False)}
        if op == models.OPS[2]:
            figures[row] |= _memory(model, x)
        calls[row] = functools.partial(_keep, last, row, models.bind(model, op, x))
    before, after = dropin.ROWS
    timed(calls[after], *place, after, beside=Beside(before, calls[before], figures[before]), **figures[after])
    assert all(found.isfinite().all() for found in last.values())


def _keep(last: dict[str, Tensor], row: str, call: Callable[[], Tensor]) -> None:
    last[row] = call()


def _memory(model: models.Model, x: Tensor) -> dict[str, int]:
    weights = tuple(model.module.parameters())
    return {
        "saved_bytes": memory.saved_bytes(lambda: model.log_prob(x), resident=weights),
        "peak_bytes": memory.peak_bytes(lambda: models.gradients(model, x)),
    }
