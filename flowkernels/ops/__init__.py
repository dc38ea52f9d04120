"""Differentiable functions: tensors in, (y, ladj) out."""

from .residual_net import residual_net
from .rqs import rqs

__all__ = ["residual_net", "rqs"]
