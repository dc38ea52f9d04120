"""The polynomial on the compiled kernels of a CPU or a GPU."""

from __future__ import annotations

import functools

from torch import Tensor

from flowkernels._machine import CPU, CUDA, Cpu, Cuda, backend
from flowkernels.ops import _row_params

from .spec import Polynomial


def why_not(on: Cpu | Cuda, spec: Polynomial, x: Tensor, params: Tensor) -> str | None:
    return _row_params.why_not(on, x, params)


fwd = functools.partial(_row_params.fwd, "polynomial_fwd")
bwd = functools.partial(_row_params.bwd, "polynomial_bwd")
cpu, cuda = (backend(machine, fwd, bwd, why_not) for machine in (CPU, CUDA))
