"""Fused kernels for normalizing flows in PyTorch."""

import importlib
from typing import TYPE_CHECKING, Any

from flowkernels import distributions, flows, inference, nets, objectives, ops, training, transforms
from flowkernels._memory import keep_memory
from flowkernels.backends import BackendUnavailableError, SlowPathWarning, use_backend
from flowkernels.benchmark import benchmark
from flowkernels.compat import accelerate, accelerate_library, accelerated, restore
from flowkernels.compat.convert import convert, to_nflows, to_zuko
from flowkernels.saving import load
from flowkernels.training.graphed import graphed
from flowkernels.training.warming import warm_up

if TYPE_CHECKING:
    from flowkernels import plot

__version__ = "0.1.0"
__all__ = [
    "BackendUnavailableError",
    "SlowPathWarning",
    "__version__",
    "accelerate",
    "accelerate_library",
    "accelerated",
    "benchmark",
    "convert",
    "distributions",
    "flows",
    "graphed",
    "inference",
    "keep_memory",
    "load",
    "nets",
    "objectives",
    "ops",
    "plot",
    "restore",
    "to_nflows",
    "to_zuko",
    "training",
    "transforms",
    "use_backend",
    "warm_up",
]


def __getattr__(name: str) -> Any:
    """Imports these when they are first asked for: few need them, and two need packages that may not be there."""
    if name in ("distributed", "plot", "sbi"):
        return importlib.import_module(f"flowkernels.{name}")
    raise AttributeError(f"module 'flowkernels' has no attribute {name!r}")
