"""Neural posterior estimation: a flow of a simulator's parameters, given its data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flowkernels.distributions.base import Size
from flowkernels.flows import NSF, Flow
from flowkernels.training import Fit

from .simulations import MakeFlow, Simulator, drawn, fitted, inside, prior_of, to_the_line


@dataclass(frozen=True)
class NeuralPosterior:
    """What `npe` returns: parameters given data, for any data, in one pass.

    Attributes:
        flow: of theta, in its units, given x; it can be saved like any flow, and be the proposal of every sampler here.
        training: what `flowkernels.training.fit` did; its losses are of standardised parameters.
    """

    flow: Flow
    training: Fit

    def sample(self, n: Size, x: Tensor) -> Tensor:
        """Draws theta ``[*n, D]`` for one observation ``x [C]``, or ``[*n, B, D]`` for ``[B, C]``."""
        return self.flow.sample(n, x)

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """Of ``theta [..., D]`` given ``x [..., C]``, whose leading dims broadcast, → ``[...]`` in nats."""
        return self.flow.log_prob(theta, x)


def npe(
    prior: Any,
    simulator: Simulator | tuple[Tensor, Tensor],
    simulations: int = 10_000,
    *,
    flow: MakeFlow = NSF,
    **settings: Any,
) -> NeuralPosterior:
    r"""Fits a flow to the posterior of a simulator's parameters, for all data at once.

    .. math:: \max_\phi\; \mathbb{E}_{\theta \sim p(\theta),\, x \sim p(x \mid \theta)} \log q_\phi(\theta \mid x)

    in nats, whose maximum is :math:`q_\phi(\theta \mid x) = p(\theta \mid x)`; no likelihood is needed. The density is
    of theta as it is, and inside of the prior's support alone: a box is brought onto the line by a logit first. Draws
    of prior and simulator are of torch's global generator. `flowkernels.sbi` is the way into the toolbox sbi, with its
    sequential methods and checks.

    Args:
        prior: a distribution of torch, or of `flowkernels.distributions`, over ``[D]``: on all real numbers, or a box.
        simulator: function of ``theta [n, D]`` → ``x [n, C]``, or a pair ``(theta, x)`` that is there already, of
            parameters of the prior.
        simulations: n, their number, if there is a function.
        flow: function ``(D, C) -> Flow``, e.g. ``functools.partial(flows.MAF, hidden=(50, 50))``.
        settings: of `flowkernels.training.fit`, e.g. ``epochs=50, seed=1, progress=True``.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: theta or x is of another shape, or not finite; the prior has another support.

    Reference:
        Papamakarios, Murray: Fast ε-free Inference of Simulation Models with Bayesian Conditional Density Estimation,
        NeurIPS 2016, arXiv:1605.06376.

    Example:
        >>> import functools, torch
        >>> from flowkernels import flows, inference
        >>> prior = torch.distributions.Uniform(-torch.ones(2), torch.ones(2))
        >>> small = functools.partial(flows.NSF, transforms=2, hidden=(16,), bins=4)
        >>> found = inference.npe(
        ...     prior, lambda theta: theta + 0.1 * torch.randn_like(theta), 500, flow=small, epochs=5
        ... )
        >>> theta = found.sample(100, torch.tensor([0.5, -0.5]))
        >>> theta.shape, bool((theta.abs() <= 1).all())
        (torch.Size([100, 2]), True)
    """
    where = "inference.npe"
    wanted = prior_of(where, prior)
    theta, x = drawn(where, wanted, simulator, simulations)
    first = to_the_line(where, wanted, theta)
    return NeuralPosterior(*fitted(where, flow, inside(where, wanted, theta), x, first, settings))
