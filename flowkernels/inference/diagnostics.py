"""Whether chains have mixed: the rank-normalized split R̂ and the bulk effective sample size, as ArviZ has them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowkernels._arguments import check_tensor


def rhat(x: Tensor) -> Tensor:
    r"""Computes the rank-normalized split :math:`\hat R` of each feature: the larger one of the bulk's and the tails'.

    .. math:: \hat R = \sqrt{\frac{\frac{n-1}{n} W + \frac1n B}{W}}

    W and B the variances within and between halves of chains of normal scores of ranks. Near 1 (below 1.01) where the
    chains agree.

    Args:
        x: ``[steps, chains, D]``, at least 4 steps.

    Raises:
        TypeError: x is no tensor.
        ValueError: x has another shape.

    Reference:
        Vehtari, Gelman, Simpson, Carpenter, Bürkner: Rank-Normalization, Folding, and Localization, Bayesian Analysis
        2021, arXiv:1903.08008.

    Example:
        >>> import torch
        >>> from flowkernels import inference
        >>> x = torch.randn(1000, 4, 2, generator=torch.Generator().manual_seed(0))
        >>> inference.rhat(x) < 1.01
        tensor([True, True])
    """
    split = _split("inference.rhat", x)
    folded = (split - split.flatten(0, 1).quantile(0.5, 0)).abs()
    return torch.maximum(_of_scores(_scores(split)), _of_scores(_scores(folded))).to(x.dtype)


def ess(x: Tensor) -> Tensor:
    r"""Computes the bulk effective sample size of each feature, from the autocorrelations of chains' halves.

    .. math:: \frac{mn}{-1 + 2 \sum_t \hat\rho_t}

    of normal scores of ranks, summed as long as pairs of autocorrelations are positive, made monotone.

    Args:
        x: ``[steps, chains, D]``, at least 4 steps.

    Raises:
        TypeError: x is no tensor.
        ValueError: x has another shape.

    Reference:
        Vehtari, Gelman, Simpson, Carpenter, Bürkner: Rank-Normalization, Folding, and Localization, Bayesian Analysis
        2021, arXiv:1903.08008.

    Example:
        >>> import torch
        >>> from flowkernels import inference
        >>> x = torch.randn(1000, 4, 1, generator=torch.Generator().manual_seed(0))
        >>> 3000 < float(inference.ess(x)) < 5000
        True
    """
    scores = _scores(_split("inference.ess", x))
    return torch.stack([_ess_of(scores[..., d]) for d in range(scores.shape[-1])]).to(x.dtype)


def _split(where: str, x: Tensor) -> Tensor:
    """Halves of chains as chains, in float64; of an odd number of steps the middle one is left out."""
    check_tensor(where, "x", x)
    if x.dim() != 3 or x.shape[0] < 4 or 0 in x.shape:
        raise ValueError(f"{where}: x must be [steps, chains, D] of at least 4 steps, got {list(x.shape)}")
    half = x.shape[0] // 2
    return torch.cat([x[:half], x[-half:]], 1).detach().double()


def _scores(x: Tensor) -> Tensor:
    """Normal scores of the ranks of each feature among all chains; those that are alike share the mean of theirs."""
    columns = x.reshape(-1, x.shape[-1])
    scores = []
    for column in columns.unbind(-1):
        _, place, counts = column.unique(return_inverse=True, return_counts=True)
        last = counts.cumsum(0).double()
        rank = (last - (counts.double() - 1) / 2)[place]
        scores.append(torch.special.ndtri((rank - 0.375) / (column.numel() + 0.25)))
    return torch.stack(scores, -1).reshape(x.shape)


def _of_scores(x: Tensor) -> Tensor:
    n = x.shape[0]
    within, between = x.var(0).mean(0), n * x.mean(0).var(0)
    return ((between / within + n - 1) / n).sqrt()


def _ess_of(x: Tensor) -> Tensor:
    """Of one feature's ``[n, m]``: Geyer's initial monotone sequence."""
    n, m = x.shape
    covariance = _autocovariance(x).mean(1)
    within = covariance[0] * n / (n - 1)
    total = within * (n - 1) / n + (x.mean(0).var() if m > 1 else 0.0)
    correlation = (1 - (within - covariance) / total).tolist()
    correlation[0] = 1.0
    kept, even, odd, t, ended = [1.0, correlation[1]], 1.0, correlation[1], 1, False
    while t < n - 3 and even + odd > 0:
        even, odd, t = correlation[t + 1], correlation[t + 2], t + 2
        ended = even + odd < 0
        kept += [] if ended else [even, odd]
    # Of the last pair, whether it ended the sequence or the chain did, the first one counts once.
    last, kept = (max(even, 0.0), kept) if ended else (even, kept[:-2])
    for i in range(2, len(kept) - 1, 2):
        if kept[i] + kept[i + 1] > kept[i - 2] + kept[i - 1]:
            kept[i] = kept[i + 1] = (kept[i - 2] + kept[i - 1]) / 2
    time = -1 + 2 * sum(kept) + last
    return torch.tensor(n * m / max(time, 1 / math.log10(n * m)), dtype=torch.float64)


def _autocovariance(x: Tensor) -> Tensor:
    """Of each chain at every lag, divided by n."""
    n = x.shape[0]
    size = 1 << (2 * n - 1).bit_length()
    spectrum = torch.fft.rfft(x - x.mean(0), size, dim=0)
    return torch.fft.irfft(spectrum.abs().square(), size, dim=0)[:n] / n
