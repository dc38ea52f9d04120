"""Whole models: an nflows neural spline flow as it is, compiled, accelerated; and ours of the same architecture."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.report import memory
from bench.suites import model as models
from bench.suites import peers

pytest.importorskip("nflows", reason="nflows is not installed")

SIZES = ((63, 4096), (6, 512))  # D and batch: a tabular data set, and a small posterior


PARAMS = [
    pytest.param(features, batch, op, name, id=peers.row_id(f"D{features}", op, name))
    for features, batch in SIZES
    for op in models.OPS
    for name in models.NAMES
]


@functools.lru_cache(maxsize=1)
def _data(features: int, batch: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, batch, features, generator=draw)
    return x, z


@functools.lru_cache(maxsize=2)  # nflows' and ours
def _truth(native: bool, features: int, batch: int) -> models.Truth:
    return models.float64_truth("flowkernels NSF" if native else "nflows eager", *_data(features, batch))


@pytest.mark.parametrize(("features", "batch", "op", "name"), PARAMS)
def bench_model(
    features: int,
    batch: int,
    op: str,
    name: str,
    checked: Callable[..., float],
    timed: Callable[..., None],
    quick: bool,
) -> None:
    batch = batch // 32 if quick else batch
    x, z = _data(features, batch)
    model = models.build(name, features)
    truth = _truth(name == "flowkernels NSF", features, batch)
    place = ("model", f"D={features}, batch {batch}", op, name)
    error = functools.partial(models.worst_error, model, op, x, z, truth)
    figures = {"error": checked(error, *place, compiled_peer=model.compiled)}
    if model.compiled and op != "sample":  # whose check compiles the inverse, not the call that is timed
        figures["graph_breaks"] = peers.graph_breaks()
    call = models.bind(model, op, x)
    if op == models.OPS[2]:
        weights = tuple(model.module.parameters())
        figures |= {
            "saved_bytes": memory.saved_bytes(lambda: model.log_prob(x), resident=weights),
            "peak_bytes": memory.peak_bytes(lambda: models.gradients(model, x)),
        }
    timed(call, *place, compiled=model.compiled, **figures)
    assert call().isfinite().all()
