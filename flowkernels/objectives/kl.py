"""The two Kullback-Leibler divergences: from data, and from a target's density."""

from __future__ import annotations

from torch import Tensor

from flowkernels._arguments import check_tensor
from flowkernels.flows import Flow

from .draws import LogDensity, draw
from .estimate import Estimate, mean_of, mean_of_draws


def forward_kl(flow: Flow, x: Tensor, context: Tensor | None = None, *, log_p: Tensor | None = None) -> Estimate:
    r"""Estimates the divergence of a flow from where data come from; its gradient is that of maximum likelihood.

    .. math:: \mathrm{KL}(p\,\|\,q) = \mathbb{E}_{p}[\log p(x) - \log q(x)]

    in nats; without ``log_p`` less the entropy of p, which no one knows and no gradient sees: the mean of −log q.

    Args:
        flow: q.
        x: samples of p, ``[n, ..., D]``; every dtype that the flow takes.
        context: as for `Flow.log_prob`.
        log_p: ``[n, ...]``, their log-densities under p.

    Raises:
        TypeError: x is no tensor.
        ValueError: there is no sample; log_p has another shape than the samples.

    Reference:
        Papamakarios et al.: Normalizing Flows for Probabilistic Modeling and Inference, JMLR 2021, section 2.3.1.

    Example:
        >>> import torch
        >>> from flowkernels import flows, objectives
        >>> flow = flows.NSF(2, seed=0)
        >>> objectives.forward_kl(flow, torch.randn(100, 2)).value.backward()
    """
    where = "objectives.forward_kl"
    check_tensor(where, "x", x)
    terms = -flow.log_prob(x, context)
    if terms.dim() == 0 or terms.numel() == 0:
        raise ValueError(f"{where}: x must be [n, ..., D] with n at least 1, got {list(x.shape)}")
    if log_p is not None:
        check_tensor(where, "log_p", log_p)
        if log_p.shape != terms.shape:
            raise ValueError(f"{where}: log_p must be {list(terms.shape)}, got {list(log_p.shape)}")
        terms = terms + log_p
    return mean_of(terms.flatten())


def reverse_kl(
    flow: Flow, log_target: LogDensity, n: int, context: Tensor | None = None, *, path_gradient: bool = False
) -> Estimate:
    r"""Estimates the divergence of a target from a flow, by the flow's own samples: variational inference.

    .. math:: \mathrm{KL}(q\,\|\,p) = \mathbb{E}_{q}[\log q(x) - \log p(x)]

    in nats. A target that is not normalised, :math:`p = \tilde p / Z`, is enough: the estimate is then
    :math:`\mathrm{KL} - \log Z`, of the same gradient. It wants one mode: where p is small q must be too.

    Args:
        flow: q, whose samples are reparameterised; Planar, RealNVP, IAF and NSF sample in one pass.
        log_target: function of ``x [n, ..., D]`` → ``[n, ...]``, log of p or of a multiple of it.
        n: number of samples (for each context).
        context: ``[B, C]``; the mean over contexts is returned, and its error that of the samples for these.
        path_gradient: leave out the part of the gradient whose mean is 0, that of log q at a point that does not move
            ("sticking the landing"): no variance is left where q is p. Costs a pass of `Flow.log_prob`.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: n is less than 1; what ``log_target`` returns has another shape.

    Reference:
        Roeder, Wu, Duvenaud: Sticking the Landing, NeurIPS 2017, arXiv:1703.09194.

    Example:
        >>> import torch
        >>> from flowkernels import flows, objectives
        >>> flow = flows.RealNVP(2)
        >>> loss = objectives.reverse_kl(flow, lambda x: -0.5 * (x - 1).square().sum(-1), 64, path_gradient=True)
        >>> loss.value.backward()
    """
    _, log_q, log_p = draw("objectives.reverse_kl", flow, log_target, n, context, path_gradient, "log_target")
    return mean_of_draws(log_q - log_p)
