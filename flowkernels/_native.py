"""Loads the compiled modules, or remembers why it cannot."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

import torch

C = None
why_missing: str | None = None

try:
    from flowkernels import _C as C  # type: ignore[no-redef,attr-defined]
except ImportError as error:
    why_missing = f"flowkernels._C did not load ({error}); build it with `pip install .`"

_cuda = None
why_cuda_missing: str | None = None

try:
    from flowkernels import _cuda  # type: ignore[no-redef,attr-defined]
except ImportError as error:
    why_cuda_missing = f"flowkernels._cuda did not load ({error}); FLOWKERNELS_CUDA=ON builds it, with nvcc"

CUDA = _cuda

_asked = os.environ.get("FLOWKERNELS_ISA")
if C is not None and _asked and _asked not in C.isas():
    warnings.warn(
        f"flowkernels: FLOWKERNELS_ISA must be one of {', '.join(C.isas())}, got {_asked!r}; {C.isa()} runs",
        stacklevel=2,
    )

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def why_not(tensors: Sequence[torch.Tensor | None]) -> str | None:
    """Why these tensors cannot run on the compiled kernels, whatever their dtypes, or None."""
    if C is None:
        return why_missing
    for t in tensors:
        if t is not None and not t.is_cpu:
            return f"a tensor is on {t.device}"
    return None


def common_types(x: torch.Tensor, params: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Casts to a pair the kernels have: equal types, or float32 with 16-bit params (autocast)."""
    out = torch.promote_types(x.dtype, params.dtype)
    if out == torch.float64:
        params = params.double()
    return x.to(out), params if out == torch.float32 else params.to(out)
