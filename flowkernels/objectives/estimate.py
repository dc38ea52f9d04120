"""An expectation, as a mean of samples says it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Estimate(NamedTuple):
    """A Monte Carlo estimate: its value, which gradients flow through, and its standard error, which they do not.

    Example:
        >>> import torch
        >>> from flowkernels.objectives import Estimate
        >>> print(Estimate(torch.tensor(0.5), torch.tensor(0.01)))
        0.5 ± 0.01
    """

    value: Tensor
    error: Tensor

    def __str__(self) -> str:
        if self.value.dim() > 0:
            return f"{self.value.tolist()} ± {self.error.tolist()}"
        return f"{self.value.item():.4g} ± {self.error.item():.2g}"


def mean_of(terms: Tensor) -> Estimate:
    """The mean over the first dim, and sd / sqrt(n); of one term the error is NaN: nobody knows."""
    n = terms.shape[0]
    error = terms.detach().std(0, correction=1) if n > 1 else terms.detach()[0] * float("nan")
    return Estimate(terms.mean(0), error / n**0.5)


def mean_of_draws(terms: Tensor) -> Estimate:
    """The mean over draws and contexts, with the error of the draws: the contexts are given."""
    return mean_of(terms.flatten(1).mean(1) if terms.dim() > 1 else terms)


def log_mean_exp(t: Tensor) -> Tensor:
    """log of the mean over the first dim."""
    return torch.logsumexp(t, 0) - math.log(t.shape[0])


def log_of_mean(log_terms: Tensor) -> Estimate:
    """log of the mean of terms of known logarithms; to the first order its error is the mean's relative one."""
    value = log_mean_exp(log_terms)
    return Estimate(value, mean_of(torch.exp(log_terms.detach() - value.detach())).error)
