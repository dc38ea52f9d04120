"""Neural likelihood estimation: a flow of a simulator's data, given its parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowkernels._arguments import check_tensor
from flowkernels.distributions import Distribution
from flowkernels.distributions.base import Size
from flowkernels.flows import NSF, Flow
from flowkernels.training import Fit

from .chains import Chains
from .latent_hmc import latent_hmc
from .simulations import MakeFlow, Simulator, drawn, fitted, flow_of_prior, prior_of


@dataclass(frozen=True)
class NeuralLikelihood:
    """What `nle` returns: data given parameters, and posteriors of them under the prior.

    Attributes:
        flow: of x, in its units, given theta; it can be saved like any flow.
        training: what `flowkernels.training.fit` did; its losses are of standardised data.
        prior: as a `flowkernels.distributions.Distribution`.
        proposal: a flow of theta about as wide as the prior, without a context, for the samplers of this package.
    """

    flow: Flow
    training: Fit
    prior: Distribution
    proposal: Flow

    def sample(self, n: Size, theta: Tensor) -> Tensor:
        """Draws x ``[*n, C]`` for ``theta [D]``, or ``[*n, B, C]`` for ``[B, D]``: the simulator's stand-in."""
        return self.flow.sample(n, theta)

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor:
        """Of ``x [..., C]`` given ``theta [..., D]``, whose leading dims broadcast, → ``[...]`` in nats."""
        return self.flow.log_prob(x, theta)

    def log_posterior(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        r"""The logarithm of the posterior but for the evidence, a function of ``theta [..., D]`` → ``[...]``.

        :math:`\log p(\theta) + \sum_k \log q(x_k \mid \theta)` in nats, -inf outside of the prior's support, for every
        sampler of this package:

        >>> import functools, torch
        >>> from flowkernels import flows, inference
        >>> small = functools.partial(flows.MAF, transforms=1, hidden=(8,))
        >>> theta = torch.randn(300, 1)
        >>> prior = torch.distributions.Normal(torch.zeros(1), 1.0)
        >>> found = inference.nle(prior, (theta, theta + torch.randn(300, 1)), flow=small, epochs=2)
        >>> target = found.log_posterior(torch.tensor([0.5]))
        >>> weighted = inference.annealed_importance_sampling(found.proposal, target, 100)
        >>> weighted.log_evidence.value.shape, weighted.expectation(lambda theta: theta).value.shape
        (torch.Size([]), torch.Size([1]))

        Args:
            x: one observation ``[C]``, or K independent ones of the same theta ``[K, C]``.

        Raises:
            TypeError: ``x`` is no tensor.
            ValueError: it has another shape.
        """
        where = "NeuralLikelihood.log_posterior"
        check_tensor(where, "x", x)
        C = self.flow.event_shape[0]
        if x.dim() not in (1, 2) or x.shape[-1] != C:
            raise ValueError(f"{where}: x must be [{C}] or [K, {C}], got {list(x.shape)}")
        rows = x.detach().reshape(-1, C)

        def log_posterior(theta: Tensor) -> Tensor:
            K, lead = len(rows), theta.shape[:-1]
            both = rows.reshape(K, *[1] * len(lead), C).expand(K, *lead, C)
            return self.prior.log_prob(theta) + self.flow.log_prob(both, theta.expand(K, *theta.shape)).sum(0)

        return log_posterior

    def posterior(self, x: Tensor, steps: int, **settings: Any) -> Chains:
        """Runs chains of `latent_hmc` on the posterior of theta given ``x [C]`` or K of them ``[K, C]``.

        Chains begin at draws of about the prior's width. Of a posterior with several modes weights may say more:
        `annealed_importance_sampling` of ``log_posterior``.

        Args:
            x: as of `log_posterior`.
            steps: number of states of each chain.
            settings: of `latent_hmc`, e.g. ``chains=32, warmup=200``.

        Raises:
            ValueError: as `log_posterior` and `latent_hmc`.
        """
        return latent_hmc(self.proposal, self.log_posterior(x), steps, **settings)


def nle(
    prior: Any,
    simulator: Simulator | tuple[Tensor, Tensor],
    simulations: int = 10_000,
    *,
    flow: MakeFlow = NSF,
    **settings: Any,
) -> NeuralLikelihood:
    r"""Fits a flow to the likelihood of a simulator, as a function of its parameters.

    .. math:: \max_\phi\; \mathbb{E}_{\theta,\, x \sim p(x \mid \theta)} \log q_\phi(x \mid \theta)

    in nats, whose maximum is :math:`q_\phi(x \mid \theta) = p(x \mid \theta)`, whatever theta is drawn from. The
    posterior is then a sampler's, for any number of independent observations and with its evidence. Draws of prior and
    simulator are of torch's global generator.

    Args:
        prior: a distribution of torch, or of `flowkernels.distributions`, over ``[D]``: on all real numbers, or a box.
        simulator: function of ``theta [n, D]`` → ``x [n, C]``, continuous, or a pair ``(theta, x)`` that is there
            already; the parameters may be of another distribution than the prior.
        simulations: n, their number, if there is a function.
        flow: function ``(C, D) -> Flow``, e.g. ``functools.partial(flows.MAF, hidden=(50, 50))``.
        settings: of `flowkernels.training.fit`, e.g. ``epochs=50, seed=1, progress=True``.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: theta or x is of another shape, or not finite; the prior has another support.

    Reference:
        Papamakarios, Sterratt, Murray: Sequential Neural Likelihood: Fast Likelihood-free Inference with Autoregressive
        Flows, AISTATS 2019, arXiv:1805.07226 (without its rounds).

    Example:
        >>> import functools, torch
        >>> from flowkernels import flows, inference
        >>> prior = torch.distributions.Normal(torch.zeros(1), 1.0)
        >>> small = functools.partial(flows.MAF, transforms=1, hidden=(8,))
        >>> found = inference.nle(prior, lambda theta: theta + torch.randn_like(theta), 500, flow=small, epochs=5)
        >>> found.posterior(torch.tensor([[0.5], [0.7]]), 50, chains=4).x.shape
        torch.Size([50, 4, 1])
    """
    where = "inference.nle"
    wanted = prior_of(where, prior)
    theta, x = drawn(where, wanted, simulator, simulations)
    with torch.no_grad():
        proposal = flow_of_prior(where, wanted, theta)
    found, training = fitted(where, flow, x, theta, [], settings)
    return NeuralLikelihood(found, training, wanted, proposal)
