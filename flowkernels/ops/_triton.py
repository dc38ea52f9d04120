"""What every Triton backend asks before and at a launch. Triton itself is imported with the first kernel."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels.ops._checks import DTYPES

_GPUS = ("cuda", "xpu")  # AMD's are "cuda" too

_INSTALLED = importlib.util.find_spec("triton") is not None
# Kernels run as numpy on the host: Triton reads this when a kernel is defined.
INTERPRETING = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def why_not(tensors: Sequence[Tensor | None]) -> str | None:
    """Why these tensors cannot run on Triton's kernels, or None."""
    if not _INSTALLED:
        return "triton is not installed"
    for t in tensors:
        if t is None:
            continue
        if t.is_floating_point() and t.dtype not in DTYPES:
            return f"no kernel for {t.dtype}"
        if t.device.type not in _GPUS and not (t.is_cpu and INTERPRETING):
            return (
                f"a tensor is on {t.device}, and Triton's kernels run on a GPU (TRITON_INTERPRET=1 tries them without)"
            )
        if not t.is_cpu and (why := _why_not_there(t.device, t.dtype)):
            return why
    return None


@functools.cache
def _why_not_there(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a GPU cannot run kernels of this dtype, though Triton may compile them, or None."""
    if device.type == "xpu":
        # Terms of both signs are summed in float64 whatever the dtype.
        has_double = getattr(torch.xpu.get_device_properties(device), "has_fp64", True)
        return None if has_double else f"{device} has no float64, in which log-determinants are summed"
    if dtype is torch.bfloat16 and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:  # conversions by hand, and kilobytes of registers in memory
            return f"bfloat16 needs a GPU of sm_80 or newer, and {device} is sm_{major}{minor}"
    return None


@functools.cache
def version() -> tuple[int, int]:
    """Of the Triton that is installed."""
    import triton

    major, minor = triton.__version__.split(".")[:2]
    return int(major), int(minor)


def why_no_product(tensors: Sequence[Tensor | None]) -> str | None:
    """Why an op that multiplies matrices of these tensors cannot run on Triton's kernels, or None."""
    reason = why_not(tensors)
    if reason is None and any(t is not None and t.dtype is torch.float64 for t in tensors) and version() < (3, 5):
        return f"products of float64 need Triton 3.5 or newer, and this is {'.'.join(map(str, version()))}"
    return reason


def launch(kernel: Any, programs: int | Callable[[dict[str, Any]], int], *arguments: Any, **constants: Any) -> None:
    """Runs the kernel on the device of the first argument, where Triton by itself takes the current one.

    ``programs``: how many, or a function of the constants, where tuning decides some of them.
    """
    t = arguments[0]
    grid = (lambda given: (programs(given),)) if callable(programs) else (programs,)
    with contextlib.nullcontext() if t.is_cpu else getattr(torch, t.device.type).device(t.device):
        # Products and sums in one rounding, as the formulas count on; the default changes with the version of Triton.
        kernel[grid](*arguments, **constants, enable_fp_fusion=True)


def warp_size() -> int:
    return 64 if torch.version.hip else 32


def large(threads: int) -> dict[str, int]:
    """Options of a launch of programs of so many threads that may take all registers there are: ptxas by itself may
    rather spill a few, for one more program at a time."""
    size = warp_size()
    has_ptxas = size == 32 and not getattr(torch.version, "xpu", None)
    return {"num_warps": threads // size} | ({"maxnreg": 255} if has_ptxas else {})


def power_of_2(n: int) -> int:
    """The smallest power of 2 from n on; 1 for 0."""
    return 1 << max(0, n - 1).bit_length()


def precision(dtype: torch.dtype) -> str:
    """`input_precision` of a product: what torch.set_float32_matmul_precision asks for, where the GPU has it."""
    if dtype is torch.float32 and torch.get_float32_matmul_precision() != "highest" and torch.version.hip is None:
        return "tf32"
    return "ieee"


def language_dtype(dtype: torch.dtype) -> Any:
    """Triton's name of what kernels compute in."""
    import triton.language as tl

    return tl.float64 if dtype is torch.float64 else tl.float32


def tuned(configs: Sequence[Any], key: Sequence[str], **options: Any) -> Any:
    """`triton.autotune` with its results on disk where this Triton can keep them (from 3.4 on).

    The interpreter, which has no clock worth reading, takes the first config.
    """
    import triton

    if INTERPRETING:
        configs = configs[:1]
    if "cache_results" in inspect.signature(triton.autotune).parameters:
        options["cache_results"] = True
    return triton.autotune(configs=list(configs), key=list(key), **options)


def bucket(n: int) -> int:
    """A size as autotuning sees it, so that a new batch size is no new problem: powers of 4 from 256 to 65,536."""
    return min(65536, 4 ** -(-max(8, (n - 1).bit_length()) // 2))
