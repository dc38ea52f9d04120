"""Distances between samples, which need no density: integral probability metrics and their kin."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowkernels._arguments import check_tensor, choice, count, generator, positive

from .estimate import Estimate, mean_of

KERNELS = ("rbf", "imq")


def mmd(x: Tensor, y: Tensor, *, kernel: str = "rbf", bandwidth: float | None = None) -> Estimate:
    r"""Estimates the squared maximum mean discrepancy of two samples, without bias.

    .. math:: \mathrm{MMD}^2 = \mathbb{E}\,k(x, x') + \mathbb{E}\,k(y, y') - 2\,\mathbb{E}\,k(x, y)

    with :math:`k = \exp(-r^2 / 2h^2)` (``"rbf"``) or :math:`h^2 / (h^2 + r^2)` (``"imq"``), r the distance. Around 0,
    and below it half of the time, where both come from one distribution. The error is of the first order (each sample's
    influence), too small where the two agree. Memory and time grow with n m; gradients flow to both samples.

    Args:
        x: ``[n, D]``, n at least 2.
        y: ``[m, D]``, m at least 2.
        kernel: ``"rbf"`` or ``"imq"``, which looks farther.
        bandwidth: h; None: the median distance of all samples, as a constant.

    Raises:
        TypeError: x or y is no tensor.
        ValueError: a shape or a setting breaks its contract.

    Reference:
        Gretton et al.: A Kernel Two-Sample Test, JMLR 2012.

    Example:
        >>> import torch
        >>> from flowkernels import flows, objectives
        >>> flow, data = flows.RealNVP(2), torch.randn(200, 2)
        >>> objectives.mmd(flow.rsample(200), data).value.backward()
    """
    where = "objectives.mmd"
    _check(where, x, y, 2)
    choice(where, "kernel", kernel, KERNELS)
    square = [_squares(a, b) for a, b in ((x, x), (y, y), (x, y))]
    if bandwidth is None:
        h2 = _median_square(*square)
    else:
        h2 = torch.as_tensor(positive(where, "bandwidth", bandwidth) ** 2, dtype=x.dtype, device=x.device)
    xx, yy, xy = (torch.exp(-0.5 * s / h2) if kernel == "rbf" else h2 / (h2 + s) for s in square)
    n, m = x.shape[0], y.shape[0]
    # A row's mean over all others; the diagonal, of a sample with itself, is 1.
    of_x, of_y = (xx.sum(1) - 1) / (n - 1), (yy.sum(1) - 1) / (m - 1)
    value = of_x.mean() + of_y.mean() - 2 * xy.mean()
    influences = (2 * (of_x - xy.mean(1)), 2 * (of_y - xy.mean(0)))
    error = sum(mean_of(i.detach()).error.square() for i in influences)
    return Estimate(value, torch.as_tensor(error).sqrt())


def sliced_wasserstein(
    x: Tensor, y: Tensor, *, projections: int = 128, order: float = 2.0, seed: int | torch.Generator | None = None
) -> Estimate:
    r"""Estimates the sliced Wasserstein distance of two samples, to its power.

    .. math:: \mathrm{SW}_p^p = \mathbb{E}_{\theta}\left[\frac1n \sum_i
        \bigl|(\theta^\top x)_{(i)} - (\theta^\top y)_{(i)}\bigr|^p\right]

    over directions :math:`\theta` on the sphere, where a transport in one dimension is a sort. The error is that of the
    directions; two samples of one distribution are apart by the order of 1/n. Gradients flow to both samples.

    Args:
        x: ``[n, D]``.
        y: ``[n, D]``, as many.
        projections: number of directions.
        order: p, from 1 on.
        seed: of the directions, a number or a generator on the CPU.

    Raises:
        TypeError: x or y is no tensor.
        ValueError: a shape or a setting breaks its contract.

    Reference:
        Bonneel, Rabin, Peyré, Pfister: Sliced and Radon Wasserstein Barycenters of Measures, JMIV 2015.

    Example:
        >>> import torch
        >>> from flowkernels import flows, objectives
        >>> flow, data = flows.RealNVP(2), torch.randn(200, 2)
        >>> objectives.sliced_wasserstein(flow.rsample(200), data, seed=0).value.backward()
    """
    where = "objectives.sliced_wasserstein"
    _check(where, x, y, 1)
    if x.shape != y.shape:
        raise ValueError(f"{where}: y must be [n, D] = {list(x.shape)}, got {list(y.shape)}")
    projections, order = count(where, "projections", projections), positive(where, "order", order)
    if order < 1:
        raise ValueError(f"{where}: order must be a finite number from 1 on, got {order!r}")
    drawn = torch.randn(projections, x.shape[1], generator=generator(where, seed), dtype=torch.float64)
    directions = (drawn / drawn.norm(dim=1, keepdim=True)).to(x)
    a, b = ((t @ directions.T).sort(0).values for t in (x, y))
    return mean_of((a - b).abs().pow(order).mean(0))


def _check(where: str, x: Tensor, y: Tensor, least: int) -> None:
    for name, t in (("x", x), ("y", y)):
        check_tensor(where, name, t)
        if t.dim() != 2 or t.shape[0] < least or not t.is_floating_point():
            given = f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}"
            raise ValueError(f"{where}: {name} must be [n, D] of floats with n at least {least}, got {given}")
    if x.shape[1] != y.shape[1] or x.dtype != y.dtype:
        given = f"{str(y.dtype).removeprefix('torch.')} {list(y.shape)}"
        raise ValueError(f"{where}: y must have the {x.shape[1]} features and the dtype of x, got {given}")


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances ``[n, m]``, from differences: of what is close together |x|² + |y|² − 2xy leaves nothing."""
    return (x.unsqueeze(1) - y).square().sum(-1)


def _median_square(xx: Tensor, yy: Tensor, xy: Tensor) -> Tensor:
    """The median squared distance of all pairs, as a constant; 1 where most samples are one."""
    above = [s.detach()[torch.triu(torch.ones_like(s, dtype=torch.bool), 1)] for s in (xx, yy)]
    median = torch.cat([*above, xy.detach().flatten()]).median()
    return torch.where(median > 0, median, math.nan).nan_to_num(1.0)
