"""Lower bounds of a log-evidence, with a flow as the posterior."""

from __future__ import annotations

from torch import Tensor

from flowkernels.flows import Flow

from .draws import LogDensity, draw
from .estimate import Estimate, log_of_mean, mean_of


def elbo(
    posterior: Flow,
    log_joint: LogDensity,
    samples: int = 1,
    context: Tensor | None = None,
    *,
    path_gradient: bool = False,
) -> Estimate:
    r"""Estimates the evidence lower bound of each observation.

    .. math:: \log p(y) \ge \mathbb{E}_{q(z \mid y)}[\log p(y, z) - \log q(z \mid y)]

    in nats, by ``samples`` of z; what lacks to equality is KL(q ‖ posterior). Maximise it: minimise
    ``-elbo(...).value.mean()``.

    Args:
        posterior: q, of a context that stands for y (an amortised posterior), or of none.
        log_joint: function of ``z [samples, ..., D]`` → ``[samples, ...]``, log p(y, z); y is the caller's.
        samples: of z for each observation.
        context: ``[B, C]``: value and error are ``[B]``; None: they are scalars.
        path_gradient: as in `reverse_kl`.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: samples is less than 1; what ``log_joint`` returns has another shape.

    Reference:
        Rezende, Mohamed: Variational Inference with Normalizing Flows, ICML 2015, arXiv:1505.05770.

    Example:
        >>> import torch
        >>> from flowkernels import flows, objectives
        >>> posterior, y = flows.IAF(2, context=3, seed=0), torch.randn(5, 3)
        >>> bound = objectives.elbo(posterior, lambda z: -0.5 * z.square().sum(-1), samples=4, context=y)
        >>> bound.value.shape
        torch.Size([5])
    """
    _, log_q, log_p = draw("objectives.elbo", posterior, log_joint, samples, context, path_gradient, "log_joint")
    return mean_of(log_p - log_q)


def iwae(posterior: Flow, log_joint: LogDensity, particles: int, context: Tensor | None = None) -> Estimate:
    r"""Estimates the importance-weighted bound of each observation, which grows with the particles to log p(y).

    .. math:: \log p(y) \ge \mathbb{E}\left[\log \frac1K \sum_{k=1}^{K} \frac{p(y, z_k)}{q(z_k \mid y)}\right]

    in nats, by one draw of K particles. The error is that of the logarithm of a mean, sd(w) / (mean(w) √K), to the
    first order.

    Args:
        posterior: q, of a context that stands for y, or of none.
        log_joint: function of ``z [K, ..., D]`` → ``[K, ...]``, log p(y, z).
        particles: K; of one it is `elbo`.
        context: ``[B, C]``: value and error are ``[B]``; None: they are scalars.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: particles is less than 1; what ``log_joint`` returns has another shape.

    Reference:
        Burda, Grosse, Salakhutdinov: Importance Weighted Autoencoders, ICLR 2016, arXiv:1509.00519.

    Example:
        >>> import torch
        >>> from flowkernels import flows, objectives
        >>> posterior = flows.IAF(2, seed=0)
        >>> bound = objectives.iwae(posterior, lambda z: -0.5 * z.square().sum(-1), particles=64)
        >>> (-bound.value).backward()
    """
    _, log_q, log_p = draw("objectives.iwae", posterior, log_joint, particles, context, False, "log_joint")
    return log_of_mean(log_p - log_q)
