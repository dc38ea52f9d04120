"""Rejection sampling with a flow as the proposal: independent samples of the target itself."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flowkernels._arguments import count, is_number
from flowkernels.flows import Flow
from flowkernels.objectives.draws import LogDensity, draw


class Accepted(NamedTuple):
    """Samples ``x [n, D]``, the share of the proposals that was accepted, and the bound of log p/q that was used."""

    x: Tensor
    rate: float
    log_bound: float


def rejection_sampling(
    flow: Flow, log_target: LogDensity, n: int, *, log_bound: float | None = None, most: int = 10_000_000
) -> Accepted:
    r"""Draws independent samples of a target: one of the flow is accepted with probability

    .. math:: \frac{p(x)}{M\,q(x)}, \qquad M \ge \sup_x \frac{p(x)}{q(x)}

    of p or a multiple of it. Without ``log_bound`` M is the largest ratio seen; where a larger one comes, what had been
    accepted is thinned to it, so that all samples are accepted by one bound. It is exact up to ratios never seen.
    Without gradients.

    Args:
        flow: q, without a context.
        log_target: function of ``x [n, D]`` → ``[n]``, log of p or of a multiple of it, in nats.
        n: number of samples.
        log_bound: log M, if it is known.
        most: number of proposals after which to give up.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: n or most is less than 1; a ratio is above ``log_bound``; what ``log_target`` returns has another
            shape.
        RuntimeError: ``most`` proposals did not give n samples.

    Reference:
        Caffo, Booth, Davis: Empirical Supremum Rejection Sampling, Biometrika 2002.

    Example:
        >>> import torch
        >>> from flowkernels import flows, inference
        >>> flow = flows.RealNVP(2)
        >>> found = inference.rejection_sampling(flow, lambda x: -0.5 * (x / 0.8).square().sum(-1), 1000)
        >>> found.x.shape
        torch.Size([1000, 2])
    """
    where = "inference.rejection_sampling"
    n, most = count(where, "n", n), count(where, "most", most)
    if log_bound is not None and (not is_number(log_bound) or not math.isfinite(log_bound)):
        raise ValueError(f"{where}: log_bound must be a finite number or None, got {log_bound!r:.60}")
    bound, found, drawn = -math.inf if log_bound is None else float(log_bound), [], 0
    with torch.no_grad():
        while sum(x.shape[0] for x, _ in found) < n:
            if drawn >= most:
                have = sum(x.shape[0] for x, _ in found)
                raise RuntimeError(
                    f"{where}: {most} proposals gave {have} of {n} samples, at a bound of {bound:.4g} nats"
                )
            size = min(max(n, 1024), 1 << 16, most - drawn)
            x, log_q, log_p = draw(where, flow, log_target, size, None, False, "log_target")
            drawn += size
            ratio = log_p - log_q
            ratio = torch.where(ratio.isnan(), -math.inf, ratio)
            highest = float(ratio.max())
            if highest > bound:
                if log_bound is not None:
                    raise ValueError(
                        f"{where}: log_bound must be at least every log p/q, got {bound!r} and {highest!r}"
                    )
                if highest == math.inf:
                    raise ValueError(f"{where}: log_target must be finite or -inf, got {highest!r}")
                bound = highest
            # Accepted where log u <= ratio - bound: what is kept beside x decides it for every bound.
            margin = ratio - torch.rand_like(ratio).log()
            found = [(x[m >= bound], m[m >= bound]) for x, m in (*found, (x, margin))]
    x = torch.cat([x for x, _ in found])
    return Accepted(x[:n], x.shape[0] / drawn, bound)
