"""An expectation, as a mean of samples says it."""

from __future__ import annotations

from typing import NamedTuple

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
