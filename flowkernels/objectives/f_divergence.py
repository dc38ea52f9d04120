"""Divergences that are a mean of a function of the ratio of two densities."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkernels._arguments import choice, flag, is_number
from flowkernels.flows import Flow

from .draws import LogDensity, draw
from .estimate import Estimate, log_mean_exp, mean_of_draws

# f(w) of a = log w, w = p / q: convex, and 0 at 1. Where p is 0, w times a logarithm of w is 0.
_NONE = -1e4
_OF_LOG_RATIO: dict[str, Callable[[Tensor], Tensor]] = {
    "kl": lambda a: a.exp() * a.clamp(min=_NONE),
    "reverse": lambda a: -a,
    # w log(2w / (1 + w)) + log(2 / (1 + w)), halved; log(1 + w) is softplus(a), log((1 + w) / w) softplus(-a)
    "js": lambda a: 0.5 * (a.exp() * (math.log(2) - F.softplus(-a.clamp(min=_NONE))) + math.log(2) - F.softplus(a)),
    "hellinger": lambda a: -torch.expm1(0.5 * a),
    "chi2": lambda a: torch.expm1(a).square(),
}
KINDS = (*_OF_LOG_RATIO, "alpha")


def f_divergence(
    flow: Flow,
    log_target: LogDensity,
    n: int,
    context: Tensor | None = None,
    *,
    kind: str,
    alpha: float = 0.5,
    normalized: bool = True,
) -> Estimate:
    r"""Estimates an f-divergence between a target p and a flow q, by the flow's samples.

    .. math:: D_f(p\,\|\,q) = \mathbb{E}_{q}\left[f\!\left(\frac{p(x)}{q(x)}\right)\right]

    | kind | f(w) | |
    |---|---|---|
    | ``"kl"`` | w log w | KL(p ‖ q), in nats, without samples of p |
    | ``"reverse"`` | −log w | KL(q ‖ p), in nats |
    | ``"js"`` | ½ (w log(2w/(1+w)) + log(2/(1+w))) | Jensen–Shannon, from 0 to log 2 nats |
    | ``"hellinger"`` | 1 − √w | squared Hellinger distance, from 0 to 1 |
    | ``"chi2"`` | (w − 1)² | Pearson's χ² of p from q: the relative variance of importance sampling with q |
    | ``"alpha"`` | (w^α − 1) / (α (α − 1)) | towards ``"kl"`` as α → 1, ``"reverse"`` as α → 0 |

    Those that weigh large w ("kl", "chi2", α > 1) make q cover p; their estimates are as good as the largest w is rare.

    Args:
        flow: q, whose samples are reparameterised.
        log_target: function of ``x [n, ..., D]`` → ``[n, ...]``, log of p or of a multiple of it.
        n: number of samples (for each context).
        context: ``[B, C]``; the mean over contexts is returned.
        kind: which f, of the table.
        alpha: of ``"alpha"``, any number but 0 and 1.
        normalized: False: log p lacks a constant, and the weights of a context's samples are divided by their mean; the
            estimate is then biased by the order of 1/n.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: a setting breaks its contract; what ``log_target`` returns has another shape.

    Reference:
        Nowozin, Cseke, Tomioka: f-GAN, NeurIPS 2016, arXiv:1606.00709, table 1.

    Example:
        >>> import torch
        >>> from flowkernels import flows, objectives
        >>> flow = flows.RealNVP(2)
        >>> target = torch.distributions.Independent(torch.distributions.Normal(torch.ones(2), 1.0), 1)
        >>> objectives.f_divergence(flow, target.log_prob, 64, kind="hellinger").value.backward()
    """
    where = "objectives.f_divergence"
    choice(where, "kind", kind, KINDS)
    if kind == "alpha" and (not is_number(alpha) or not math.isfinite(alpha) or alpha in (0, 1)):
        raise ValueError(f"{where}: alpha must be a finite number other than 0 and 1, got {alpha!r:.60}")
    _, log_q, log_p = draw(where, flow, log_target, n, context, False, "log_target")
    log_ratio = log_p - log_q
    if not flag(where, "normalized", normalized):
        log_ratio = log_ratio - log_mean_exp(log_ratio)
    if kind == "alpha":
        terms = torch.expm1(alpha * log_ratio) / (alpha * (alpha - 1))
    else:
        terms = _OF_LOG_RATIO[kind](log_ratio)
    return mean_of_draws(terms)
