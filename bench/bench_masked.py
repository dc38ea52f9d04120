"""Masked layers against a product with masked weights, and samples of autoregressive flows against D passes."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.report import memory
from bench.suites import masked, peers
from bench.suites import sample as sampling

# ---- one layer ----

WIDTHS = ((256, 256), (512, 512), (1024, 1024), (64, 512), (512, 128))
BATCHES = (512, 4096)
LAYERS = [
    pytest.param(n_in, n_out, rows, op, name, id=peers.row_id(f"{rows}x{n_in} to {n_out}", op, name))
    for n_in, n_out in WIDTHS
    for rows in BATCHES
    for op in masked.OPS
    for name in masked.ROWS
]


@functools.lru_cache(maxsize=1)
def _inputs(rows: int, n_in: int, n_out: int) -> masked.Inputs:
    return masked.Inputs.make(rows, n_in, n_out)


@functools.lru_cache(maxsize=1)
def _truth(op: str, *size: int) -> tuple[Tensor, ...]:
    return masked.float64_truth(_inputs(*size), op)


@pytest.mark.parametrize(("n_in", "n_out", "rows", "op", "name"), LAYERS)
def bench_masked_linear(
    n_in: int,
    n_out: int,
    rows: int,
    op: str,
    name: str,
    checked: Callable[..., float],
    timed: Callable[..., None],
    quick: bool,
) -> None:
    rows = rows // 128 if quick else rows
    inputs = _inputs(rows, n_in, n_out)
    call = masked.bind(name, inputs, op)
    place = ("masked layer", f"{rows}x{n_in} to {n_out}", op, name)
    compiled = name.endswith("compiled")

    def error() -> float:
        return masked.worst_error(name, inputs, call(), _truth(op, rows, n_in, n_out))

    figures = {"error": checked(error, *place, compiled_peer=compiled)}
    if op == masked.OPS[1]:
        figures["peak_bytes"] = memory.peak_bytes(call)
    timed(call, *place, compiled=compiled, **figures)


# ---- samples ----

HIDDEN = {8: 512, 64: 512, 784: 1024}
SAMPLES = [
    pytest.param(kind, features, batch, name, id=peers.row_id(f"{kind} D{features} batch{batch} sample", name))
    for kind in sampling.KINDS
    for features in HIDDEN
    for batch in (1, 64, 1024)
    for name in sampling.NAMES
]


@functools.lru_cache(maxsize=len(sampling.NAMES))  # a row's model serves all batches
def _sampler(name: str, kind: str, features: int, hidden: int) -> sampling.Sampler:
    return sampling.build(name, kind, features, hidden)


@pytest.mark.parametrize(("kind", "features", "batch", "name"), SAMPLES)
def bench_sample(
    kind: str,
    features: int,
    batch: int,
    name: str,
    checked: Callable[..., float],
    timed: Callable[..., None],
    quick: bool,
) -> None:
    package = "zuko" if name.startswith("zuko") else "nflows"  # whose weights ours are
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    hidden = HIDDEN[features]
    if quick:
        features, hidden, batch = min(features, 16), 32, min(batch, 8)
    if reason := sampling.too_slow(name, kind, features, hidden, batch):
        pytest.skip(reason)
    sampler = _sampler(name, kind, features, hidden)
    z = torch.randn(batch, features, generator=torch.Generator().manual_seed(0))
    place = ("one layer", f"{kind}, D={features}, batch {batch}", "sample", name)
    error = functools.partial(sampling.worst_error, name, sampler, z)
    timed(sampling.bind(name, sampler, z), *place, error=checked(error, *place, compiled_peer=False))
