"""Loads the compiled modules, or remembers why it cannot."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def _load(name: str, build: str) -> tuple[Any, str | None]:
    """A compiled module and None, or None and why it is not there."""
    try:
        return importlib.import_module(f"flowkernels.{name}"), None
    except ImportError as error:
        return None, f"flowkernels.{name} did not load ({error}); {build}"


def share_threads(package: Path) -> list[Path]:
    """Puts torch's OpenMP where the modules look first, and returns where it was.

    Wheels for ARM bring a libgomp under a name of their own, so that the modules would load the system's beside it: a
    second pool of threads, which waits for the cores of the first.
    """
    found = [p for folder in (package / "lib", package.with_name("torch.libs")) for p in folder.glob("libgomp-*.so*")]
    for path in found:
        with contextlib.suppress(OSError):
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    return found


if sys.platform == "linux":
    share_threads(Path(torch.__file__).parent)
C, why_missing = _load("_C", "build it with `pip install .`")
CUDA, why_cuda_missing = _load("_cuda", "FLOWKERNELS_CUDA=ON builds it, with nvcc")

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
