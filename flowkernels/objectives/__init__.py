"""Objectives for flows: divergences from a target, bounds of an evidence, distances of samples, each with its error."""

from .bounds import elbo, iwae
from .distances import mmd, sliced_wasserstein
from .estimate import Estimate
from .f_divergence import f_divergence
from .kl import forward_kl, reverse_kl

__all__ = [
    "Estimate",
    "elbo",
    "f_divergence",
    "forward_kl",
    "iwae",
    "mmd",
    "reverse_kl",
    "sliced_wasserstein",
]
