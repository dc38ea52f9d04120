"""The spline on the compiled kernels of a CPU or a GPU."""

from __future__ import annotations

import functools

from torch import Tensor

from flowkernels._machine import CPU, CUDA, Cpu, Cuda, backend
from flowkernels._native import DTYPES
from flowkernels.ops import _row_params

from .spec import NO_LINEAR, RQS


def why_not(on: Cpu | Cuda, spec: RQS, x: Tensor, params: Tensor) -> str | None:
    # Not by way of _row_params.why_not: a call more is a tenth of what a small call's Python costs.
    if x.dtype not in DTYPES or params.dtype not in DTYPES:
        return f"no kernel for {x.dtype} with {params.dtype}"
    if isinstance(on, Cuda) and spec.is_linear:
        return NO_LINEAR
    return on.why_not((x, params))


fwd, bwd = functools.partial(_row_params.fwd, "rqs_fwd"), functools.partial(_row_params.bwd, "rqs_bwd")
cpu, cuda = (backend(machine, fwd, bwd, why_not) for machine in (CPU, CUDA))
