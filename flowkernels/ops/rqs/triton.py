"""The spline on Triton."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from flowkernels.ops import _row_params_triton, _triton

from .spec import NO_LINEAR, RQS

# Of a program, one per thread. The interpreter's time goes by programs, not by their sizes.
_ELEMENTS = 1024 if _triton.INTERPRETING else 128


def why_not(spec: RQS, x: Tensor, params: Tensor) -> str | None:
    return NO_LINEAR if spec.is_linear else _triton.why_not((x, params))


def _described(spec: RQS, wide: bool, device: torch.device) -> _row_params_triton.Kernels:
    from .triton_kernels import rqs_bwd, rqs_fwd

    return _row_params_triton.Kernels(rqs_fwd, rqs_bwd, (spec.bins,), spec.numbers(wide), _ELEMENTS)


fwd = functools.partial(_row_params_triton.fwd, _described)
bwd = functools.partial(_row_params_triton.bwd, _described)
