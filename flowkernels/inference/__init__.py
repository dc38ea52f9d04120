"""Sampling of a target by a flow (importance weights, annealed ones, rejection, chains), and of a simulator's
parameters, whose posterior or likelihood a flow is fitted to."""

from .annealed import annealed_importance_sampling
from .chains import Chains
from .diagnostics import ess, rhat
from .importance import Weighted, importance_sampling
from .latent_hmc import latent_hmc
from .metropolis import independence_metropolis
from .nle import NeuralLikelihood, nle
from .npe import NeuralPosterior, npe
from .rejection import Accepted, rejection_sampling

__all__ = [
    "Accepted",
    "Chains",
    "NeuralLikelihood",
    "NeuralPosterior",
    "Weighted",
    "annealed_importance_sampling",
    "ess",
    "importance_sampling",
    "independence_metropolis",
    "latent_hmc",
    "nle",
    "npe",
    "rejection_sampling",
    "rhat",
]
