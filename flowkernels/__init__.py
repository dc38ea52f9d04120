"""Fused kernels for normalizing flows in PyTorch."""

from flowkernels import ops
from flowkernels.backends import BackendUnavailableError, SlowPathWarning, use_backend

__version__ = "0.1.0"
__all__ = ["BackendUnavailableError", "SlowPathWarning", "__version__", "ops", "use_backend"]
