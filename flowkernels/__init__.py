"""Fused kernels for normalizing flows in PyTorch."""

from flowkernels import distributions, flows, nets, ops, training, transforms
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
    "training",
    "transforms",
    "use_backend",
]
