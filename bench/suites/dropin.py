"""`accelerate` on a typical model of each library: before and after, in one process and with the same weights."""

from __future__ import annotations

import copy
import functools

from torch import Tensor

from bench.suite import Ready, Row, Suite, named, points
from bench.suites.dropin_models import AFTER, BEFORE, MODELS, build, wrap
from bench.suites.model import OPS, Inputs, ready_to_time, truth_of

SIZES = ((21, 512), (21, 4096), (63, 512), (63, 4096))  # D and batch
ROWS = (BEFORE, AFTER)


def inputs_of(features: int, batch: int) -> Inputs:
    x, z = Inputs.make(features, batch)
    # A float64 inverse of an autoregressive model is D passes of its networks: a few rows judge it.
    return Inputs(x, z[:64])


def float64_truth(name: str, inputs: Inputs, op: str, hidden: int = 128, layers: int = 4) -> Tensor:
    """What the library itself computes in float64."""
    before = build(name, BEFORE, inputs.x.shape[1], hidden, layers)
    return truth_of(wrap(name, "float64", copy.deepcopy(before.module).double()), inputs, op)


def ready(name: str, row: Row, inputs: Inputs, op: str) -> Ready:
    return ready_to_time(build(name, row.name, inputs.x.shape[1]), inputs, op)


def _suite(name: str) -> Suite[Inputs, Tensor]:
    return Suite(
        title=f"drop-in {name}",
        points=points(SIZES, OPS, [AFTER]),
        label=lambda features, batch: f"D={features}, batch {batch}",
        smaller=lambda features, batch: (features, batch // 32),
        inputs=inputs_of,
        rows=named(*(Row(row, None, MODELS[name].library, name) for row in ROWS)),
        ready=functools.partial(ready, name),
        truth=float64_truth,
        beside=BEFORE,
    )


SUITES = tuple(map(_suite, MODELS))
