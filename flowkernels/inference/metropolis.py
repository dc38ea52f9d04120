"""Independence Metropolis-Hastings: proposals of a flow, whose acceptance corrects what the flow lacks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowkernels._arguments import count
from flowkernels.flows import Flow
from flowkernels.objectives.draws import LogDensity, draw

from .chains import Chains

_AT_ONCE = 1 << 16  # proposals of one call


def independence_metropolis(
    flow: Flow, log_target: LogDensity, steps: int, *, chains: int = 16, warmup: int = 0
) -> Chains:
    r"""Runs chains that propose samples of a flow, whatever their state, and accept them with probability

    .. math:: \min\left(1, \frac{w(x')}{w(x)}\right), \qquad w = \frac{p}{q}

    of p or a multiple of it. Proposals do not depend on states: they are drawn many at once, and a chain is a scan of
    their weights. Chains begin at samples of the flow. Without gradients.

    Args:
        flow: q, without a context.
        log_target: function of ``x [n, D]`` → ``[n]``, log of p or of a multiple of it, in nats.
        steps: number of states of each chain that are returned.
        chains: number of chains.
        warmup: number of states before them.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a number breaks its contract; what ``log_target`` returns has another shape.

    Reference:
        Tierney: Markov Chains for Exploring Posterior Distributions, Annals of Statistics 1994.

    Example:
        >>> import torch
        >>> from flowkernels import flows, inference
        >>> flow = flows.RealNVP(2)
        >>> found = inference.independence_metropolis(flow, lambda x: -0.5 * (x / 0.8).square().sum(-1), 200)
        >>> found.x.shape
        torch.Size([200, 16, 2])
    """
    where = "inference.independence_metropolis"
    steps, chains, warmup = (
        count(where, "steps", steps),
        count(where, "chains", chains),
        count(where, "warmup", warmup, 0),
    )
    total, each = warmup + steps, max(1, _AT_ONCE // chains)
    states, targets, accepted, divergences = [], [], 0, 0
    x = weight = target = None
    with torch.no_grad():
        for first in range(-1, total, each):  # one more, where the chains begin
            now = min(each, total - first)
            proposals, log_q, log_p = draw(where, flow, log_target, now * chains, None, False, "log_target")
            weights = (log_p - log_q).reshape(now, chains)
            divergences += int(weights.isnan().sum())
            weights = torch.where(weights.isnan(), -math.inf, weights)
            threshold = torch.rand_like(weights).log()
            shape = (now, chains, *proposals.shape[1:])
            for i, (new, w, p, u) in enumerate(
                zip(proposals.reshape(shape), weights, log_p.reshape(now, chains), threshold, strict=True)
            ):
                if x is None or weight is None or target is None:
                    x, weight, target = new, w, p
                    continue
                # From where the target is 0 everything is accepted.
                takes = (u <= w - weight) | (weight == -math.inf)
                x, weight, target = (
                    torch.where(_wide(takes, t), t, old) for t, old in ((new, x), (w, weight), (p, target))
                )
                if first + i >= warmup:
                    accepted += int(takes.sum())
                    states.append(x)
                    targets.append(target)
    return Chains(torch.stack(states), torch.stack(targets), accepted / (steps * chains), math.nan, divergences)


def _wide(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *[1] * (like.dim() - mask.dim()))
