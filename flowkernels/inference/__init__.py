"""Sampling of a target by a flow: importance weights, rejection, and chains of points or of latents."""

from .chains import Chains
from .diagnostics import ess, rhat
from .importance import Weighted, importance_sampling
from .latent_hmc import latent_hmc
from .metropolis import independence_metropolis
from .rejection import Accepted, rejection_sampling

__all__ = [
    "Accepted",
    "Chains",
    "Weighted",
    "ess",
    "importance_sampling",
    "independence_metropolis",
    "latent_hmc",
    "rejection_sampling",
    "rhat",
]
