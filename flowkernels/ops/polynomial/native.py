"""The polynomial on the compiled kernels of a CPU."""

from __future__ import annotations

import functools

from torch import Tensor

from flowkernels._machine import CPU, Cpu, Cuda, backend
from flowkernels.ops import _row_params

from .spec import Polynomial


def why_not(on: Cpu | Cuda, spec: Polynomial, x: Tensor, params: Tensor) -> str | None:
    return _row_params.why_not(on, x, params)


cpu = backend(
    CPU,
    functools.partial(_row_params.fwd, "polynomial_fwd"),
    functools.partial(_row_params.bwd, "polynomial_bwd"),
    why_not,
)
