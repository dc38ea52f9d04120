"""An accelerated module of every class that `accelerate` knows, and what `convert` makes of some."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import flowkernels
from tests.compat import ability_cases

from .case import DTYPES, WIDE, Case, Results, leaf, leaves_of, set_parameters, with_gradients

# Some classes are accelerated from 1024 or 2048 rows on alone; a wide masked layer is large enough with few.
ROWS, MANY = 12, 2100


@functools.lru_cache(maxsize=1)  # the second run of a case, which is profiled, makes nothing
def _accelerated(case: ability_cases.Case, dtype: str) -> Any:
    torch.manual_seed(0)
    np.random.seed(0)  # FrEIA draws its permutations from it
    layer: Any = case.make()
    set_parameters(layer)
    layer = layer.to(DTYPES[dtype])
    flowkernels.accelerate(layer)
    return layer


def _run(case: ability_cases.Case, dtype: str, rows: int, inverse: bool) -> Results:
    layer = _accelerated(case, dtype)
    call = ability_cases.Run(layer, case.call, inverse)
    x = leaf("x", rows, *case.shape, scale=0.8, dtype=DTYPES[dtype])
    with torch.no_grad():
        alone = {f"{i}, no_grad": t for i, t in enumerate(call(x))}
    outputs = {str(i): t for i, t in enumerate(call(x))}
    # A tensor that no gradient reaches is an output like others, a view of x or a constant.
    return with_gradients(outputs, {"x": x} | leaves_of(layer)) | alone


def cases(library: str) -> Iterator[Case]:
    for name, case in ability_cases.of_library(library).items():
        for direction in case.directions:
            for dtype in WIDE if case.dtype == torch.float64 else ("f32",):
                for rows in (ROWS, MANY) if case.shape == (ability_cases.D,) else (ROWS,):
                    run = functools.partial(_run, case, dtype, rows, direction == "inverse")
                    yield Case(f"{name} {direction} {rows} rows {dtype}", run)
