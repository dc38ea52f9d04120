"""`accelerate` on a typical model of each library: before and after, in one process and with the same weights."""

from __future__ import annotations

import functools
from collections.abc import Callable

import dropin
import memory
import models
import peers
import pytest
import torch
from torch import Tensor

PARAMS = [
    pytest.param(name, features, batch, op, row, id=peers.row_id(name, f"D{features}", f"B{batch}", op, row))
    for name in dropin.MODELS
    for features, batch in dropin.SIZES
    for op in models.OPS
    for row in dropin.ROWS
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


@pytest.mark.parametrize(("name", "features", "batch", "op", "row"), PARAMS)
def bench_dropin(
    name: str,
    features: int,
    batch: int,
    op: str,
    row: str,
    checked: Callable[..., float],
    timed: Callable[..., None],
    quick: bool,
) -> None:
    pytest.importorskip(dropin.MODELS[name].library)
    batch = batch // 32 if quick else batch
    x, z = _data(features, batch)
    model, truth = dropin.build(name, row, features), _truth(name, features, batch)
    place = (f"drop-in {name}", f"D={features}, batch {batch}", op, row)
    error = functools.partial(models.worst_error, model, op, x, z[:64], truth)
    figures = {"error": checked(error, *place, compiled_peer=False)}
    if op == models.OPS[2]:
        weights = tuple(model.module.parameters())
        figures |= {
            "saved_bytes": memory.saved_bytes(lambda: model.log_prob(x), resident=weights),
            "peak_bytes": memory.peak_bytes(lambda: models.gradients(model, x)),
        }
    call = models.bind(model, op, x)
    timed(call, *place, compiled=False, **figures)
    assert call().isfinite().all()
