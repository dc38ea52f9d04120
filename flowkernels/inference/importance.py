"""Importance sampling with a flow as the proposal."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flowkernels._arguments import check_tensor, count, generator
from flowkernels.flows import Flow
from flowkernels.objectives.draws import LogDensity, draw
from flowkernels.objectives.estimate import Estimate, log_of_mean


class Weighted(NamedTuple):
    """Samples ``x [n, ..., D]`` and the logarithms of their weights p / q, ``[n, ...]``, in nats."""

    x: Tensor
    log_weights: Tensor

    @property
    def log_evidence(self) -> Estimate:
        """log of the mean weight: log Z of a target p̃ = Z p, in nats, with its error to the first order."""
        return log_of_mean(self.log_weights)

    @property
    def ess(self) -> Tensor:
        r"""The effective sample size :math:`(\sum w)^2 / \sum w^2`, from 1 to n."""
        log_w = self.log_weights
        return torch.exp(2 * torch.logsumexp(log_w, 0) - torch.logsumexp(2 * log_w, 0))

    @property
    def weights(self) -> Tensor:
        """The weights divided by their sum, ``[n, ...]``."""
        return torch.softmax(self.log_weights, 0)

    def expectation(self, of: Callable[[Tensor], Tensor]) -> Estimate:
        r"""Estimates :math:`\mathbb{E}_p f(x)`, with weights divided by their sum; the error is of the first order.

        Args:
            of: function of ``x [n, ..., D]`` → ``[n, ...]`` or ``[n, ..., K]``.

        Raises:
            TypeError: the function returns no tensor.
            ValueError: what it returns does not begin with the dims of the weights.

        Example:
            >>> import torch
            >>> from flowkernels import flows, inference
            >>> flow = flows.RealNVP(2)
            >>> found = inference.importance_sampling(flow, lambda x: -0.5 * x.square().sum(-1), 1000)
            >>> found.expectation(lambda x: x).value.shape
            torch.Size([2])
        """
        where, lead = "Weighted.expectation", self.log_weights.shape
        values = of(self.x)
        check_tensor(where, "what the function returns", values)
        if values.shape[: len(lead)] != lead or values.dim() > len(lead) + 1:
            raise ValueError(f"{where}: the function must return {[*lead]} or {[*lead, 'K']}, got {list(values.shape)}")
        w = self.weights.reshape(*lead, *[1] * (values.dim() - len(lead)))
        # What a weight of 0 stands at does not count, were it infinite.
        counted = torch.where(w > 0, values, 0.0)
        mean = (w * counted).sum(0)
        return Estimate(mean, (w * (counted - mean)).detach().square().sum(0).sqrt())

    def resample(self, n: int, seed: int | torch.Generator | None = None) -> Tensor:
        """Draws ``[n, D]`` of the samples in proportion to their weights, with replacement.

        Raises:
            ValueError: n is less than 1; the samples are of several contexts, or no weight is above 0.
        """
        where = "Weighted.resample"
        n = count(where, "n", n)
        if self.log_weights.dim() != 1:
            raise ValueError(f"{where}: samples must be of one context, got weights {list(self.log_weights.shape)}")
        if not bool(self.weights.isfinite().all()):
            raise ValueError(
                f"{where}: a weight must be a number above 0, got log-weights up to {self.log_weights.max()}"
            )
        drawn = torch.multinomial(self.weights.cpu(), n, replacement=True, generator=generator(where, seed))
        return self.x[drawn.to(self.x.device)]


def importance_sampling(flow: Flow, log_target: LogDensity, n: int, context: Tensor | None = None) -> Weighted:
    r"""Draws samples of a flow with their weights for a target, of which a constant factor need not be known.

    .. math:: w_i = \frac{\tilde p(x_i)}{q(x_i)}, \qquad Z \approx \frac1n \sum_i w_i, \qquad
        \mathbb{E}_p f \approx \frac{\sum_i w_i f(x_i)}{\sum_i w_i}

    Without gradients. A proposal fitted by ``objectives.f_divergence(kind="chi2")`` has the smallest variance of the
    weights, one fitted by a reverse KL may leave parts of the target without samples.

    Args:
        flow: q.
        log_target: function of ``x [n, ..., D]`` → ``[n, ...]``, log of p or of a multiple of it, in nats.
        n: number of samples (for each context).
        context: as for `Flow.sample`.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: n is less than 1; what ``log_target`` returns has another shape.

    Reference:
        Müller et al.: Neural Importance Sampling, ACM TOG 2019, arXiv:1808.03856.

    Example:
        >>> import torch
        >>> from flowkernels import flows, inference
        >>> flow = flows.RealNVP(2)
        >>> found = inference.importance_sampling(flow, lambda x: -0.5 * (x / 0.9).square().sum(-1), 4000)
        >>> print(abs(found.log_evidence.value - torch.tensor(2 * torch.pi * 0.81).log()) < 0.1, found.ess > 2000)
        tensor(True) tensor(True)
    """
    with torch.no_grad():
        x, log_q, log_p = draw("inference.importance_sampling", flow, log_target, n, context, False, "log_target")
    return Weighted(x, log_p - log_q)
