"""Differentiable functions: tensors in, (y, ladj) out."""

from .rqs import rqs

__all__ = ["rqs"]
