"""Fused kernels for normalizing flows in PyTorch."""

import importlib
from typing import Any

from flowkernels import distributions, flows, nets, ops, transforms
from flowkernels.backends import BackendUnavailableError, SlowPathWarning, use_backend
from flowkernels.compat import accelerate, accelerate_library, accelerated, restore
from flowkernels.compat.convert import convert, to_nflows, to_zuko
from flowkernels.saving import load

__version__ = "0.1.0"
__all__ = [
    "BackendUnavailableError",
    "SlowPathWarning",
    "__version__",
    "accelerate",
    "accelerate_library",
    "accelerated",
    "convert",
    "distributions",
    "flows",
    "load",
    "nets",
    "ops",
    "restore",
    "to_nflows",
    "to_zuko",
    "transforms",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name in ("distributed", "sbi"):  # imported when they are asked for: one of them needs the package sbi
        return importlib.import_module(f"flowkernels.{name}")
    raise AttributeError(f"module 'flowkernels' has no attribute {name!r}")
