"""Calibration: how often the truth lies in the regions that a flow says it lies in."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowkernels import _calls
from flowkernels._arguments import check_tensor, count, generator, is_number

from ._style import BLUE, GREY, INK, MUTED, figure, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WHERE = "flowkernels.plot.coverage"
_LEVELS = 99
_ROWS = 2**15  # of draws at a time


@dataclass(frozen=True)
class Coverage:
    """What `coverage` found.

    Attributes:
        figure: the picture.
        levels: 0.01, 0.02, ..., 0.99: what the regions should hold.
        observed: the share of ``x`` in the highest-density regions of these levels.
        low: the lower edge of the band in which an exact flow's ``observed`` lies, level by level.
        high: the upper edge.
        ranks: ``[B]``, uniform on 0 to 1 for an exact flow: the level of the smallest region with the row of ``x``.
    """

    figure: Figure = field(repr=False)
    levels: Tensor = field(repr=False)
    observed: Tensor = field(repr=False)
    low: Tensor = field(repr=False)
    high: Tensor = field(repr=False)
    ranks: Tensor = field(repr=False)

    @property
    def error(self) -> float:
        """The largest ``|observed - level|``."""
        return (self.observed - self.levels).abs().max().item()

    @property
    def inside(self) -> float:
        """The share of levels at which ``observed`` lies in the band."""
        return ((self.low <= self.observed) & (self.observed <= self.high)).double().mean().item()

    def __str__(self) -> str:
        n, mean = self.ranks.numel(), (self.observed - self.levels).mean().item()
        word = "too narrow" if mean < 0 else "too wide"
        return f"coverage of {n} rows: largest error {self.error:.3f}, {self.inside:.0%} of levels in the band" + (
            "" if self.inside > 0.5 else f"; the flow is {word}"
        )


def coverage(
    flow: Any,
    x: Tensor,
    context: Tensor | None = None,
    *,
    draws: int = 200,
    confidence: float = 0.95,
    seed: int | None = 0,
    path: str | os.PathLike[str] | None = None,
) -> Coverage:
    r"""Expected coverage: how often ``x`` lies in the region that a flow gives a probability of :math:`\alpha`.

    The region is the one of highest density. For each row, fresh draws :math:`x_1, \dots, x_L` of the flow at its
    context, and

    .. math:: \mathrm{rank} = \frac{\#\{l : p(x_l) > p(x)\} + u}{L + 1}, \qquad u \sim U(0, 1)

    which is uniform if ``x`` comes from the flow (among equal densities its place is drawn). The share of ranks up to
    :math:`\alpha` is drawn against :math:`\alpha`: below the diagonal the flow is too narrow (overconfident), above it
    too wide, on it calibrated. In the grey band an exact flow's share lies with probability ``confidence`` at each
    level, by the binomial distribution; so a few levels of a hundred may lie outside. A flow that ignores its context
    and gives the prior is calibrated, too.

    Args:
        flow: a flow of flowkernels, or a model of nflows, glasflow, normflows, zuko or Pyro.
        x: ``[B, D]``, data that the flow was not trained on.
        context: ``[B, C]``, the context of each row; or None.
        draws: L, for each row.
        confidence: of the band.
        seed: of the draws; torch's own random numbers go on as if nothing had been drawn. None: they are used.
        path: of a file to write (PNG, PDF, ... by its ending).

    Returns:
        The figure with the numbers behind it.

    Raises:
        ValueError: ``x`` has no rows, or ``context`` others; ``draws`` or ``confidence`` is none of the above.
        TypeError: a tensor is none; the flow has no ``log_prob`` or draws nothing.
        ImportError: matplotlib is not installed (``pip install 'flowkernels[plot]'``).

    Reference:
        Hermans et al.: A Crisis in Simulation-Based Inference? Beware, Your Posterior Approximations Can Be
        Unfaithful, TMLR 2022, arXiv:2110.06581. Talts et al.: Validating Bayesian Inference Algorithms with
        Simulation-Based Calibration, arXiv:1804.06788.

    Example:
        >>> import torch
        >>> from flowkernels import flows, plot
        >>> flow, context = flows.NSF(2, context=1, transforms=2, hidden=(16,)), torch.randn(200, 1)
        >>> found = plot.coverage(flow, flow.sample((), context), context, draws=20)
        >>> found.observed.shape, found.error < 0.15
        (torch.Size([99]), True)
    """
    _check(x, context)
    draws = count(_WHERE, "draws", draws)
    if not is_number(confidence) or not 0 < confidence < 1:
        raise ValueError(f"{_WHERE}: confidence must be a number between 0 and 1, got {confidence!r:.60}")
    rng = generator(_WHERE, seed)
    with torch.random.fork_rng([x.device] if x.is_cuda else [], enabled=rng is not None), torch.no_grad():
        if rng is not None:
            torch.manual_seed(rng.initial_seed())
        ranks = _ranks(flow, x, context, draws)
    levels = torch.arange(1, _LEVELS + 1, dtype=torch.float64) / (_LEVELS + 1)
    observed = torch.searchsorted(ranks.sort().values, levels, right=True) / len(ranks)
    low, high = binomial_band(len(ranks), levels, confidence)
    fig = _draw(levels, observed.double(), low, high, len(ranks), confidence, path)
    return Coverage(fig, levels, observed.double(), low, high, ranks)


def _check(x: Tensor, context: Tensor | None) -> None:
    for name, value in (("x", x), ("context", context)):
        if name == "x" or value is not None:
            check_tensor(_WHERE, name, value)
    if x.dim() < 2 or x.shape[0] == 0:
        raise ValueError(f"{_WHERE}: x must be [B, D] with a row at least, got {list(x.shape)}")
    if context is not None and (context.dim() == 0 or context.shape[0] != x.shape[0]):
        raise ValueError(f"{_WHERE}: context must have a row for each of x, {x.shape[0]}, got {list(context.shape)}")


def _ranks(flow: Any, x: Tensor, context: Tensor | None, draws: int) -> Tensor:
    """``[B]`` in float64, on the CPU."""
    found = []
    rows = max(1, _ROWS // draws)
    contexts = [None] * len(x) if context is None else context.split(rows)
    for some, given in zip(x.split(rows), contexts, strict=False):
        own = _calls.log_prob(flow, some, given).reshape(-1, 1)
        many = None if given is None else given.repeat_interleave(draws, 0)
        drawn = _calls.sample(flow, some.repeat_interleave(draws, 0), many).reshape(-1, *x.shape[1:])
        others = _calls.log_prob(flow, drawn, many).reshape(len(some), draws)
        higher, equal = (others > own).sum(1), (others == own).sum(1)
        place = torch.rand(len(some), dtype=torch.float64) * (equal.cpu() + 1)
        found.append((higher.cpu() + place) / (draws + 1))
    return torch.cat(found)


def binomial_band(n: int, levels: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
    """Shares of n between which a binomial's lies with a probability of at least ``confidence``, for each level.

    Example:
        >>> low, high = binomial_band(100, torch.tensor([0.5], dtype=torch.float64), 0.95)
        >>> low.item(), high.item()
        (0.4, 0.6)
    """
    tail, k = (1 - confidence) / 2, torch.arange(n + 1, dtype=torch.float64)
    choose = torch.lgamma(k.new_tensor(n + 1.0)) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    low, high = torch.empty_like(levels), torch.empty_like(levels)
    for i, p in enumerate(levels.tolist()):  # a level at a time: n may be large
        below = (choose + k * levels[i].log() + (n - k) * (-levels[i]).log1p()).exp().cumsum(0)
        low[i] = torch.searchsorted(below, tail).item() / n
        high[i] = min(torch.searchsorted(below, 1 - tail).item(), n) / n
        assert low[i] <= p + 1 / n and high[i] >= p - 1 / n
    return low, high


def _draw(
    levels: Tensor, observed: Tensor, low: Tensor, high: Tensor, n: int, confidence: float,
    path: str | os.PathLike[str] | None,
) -> Figure:  # fmt: skip
    # From (0, 0) to (1, 1), where all curves meet.
    at, share, below, above = ([0.0, *t.tolist(), 1.0] for t in (levels, observed, low, high))
    band = f"{100 * confidence:g} % of exact flows"
    with figure(_WHERE, 5.4, 5.4, path) as fig:
        ax = fig.subplots()
        ax.fill_between(at, below, above, color=GREY, alpha=0.35, linewidth=0, label=band)
        ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--")
        ax.plot(at, share, color=BLUE, label=f"observed, {n} rows")
        for place, text in (((0.03, 0.72), "too wide"), ((0.97, 0.3), "too narrow")):
            ax.annotate(text, place, ha="left" if place[0] < 0.5 else "right", color=MUTED, fontsize=10, style="italic")
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1)
        ax.set_aspect("equal")
        ax.set_xlabel("level of the region")
        ax.set_ylabel("share of data in it")
        ax.set_title("Coverage of highest-density regions", loc="left", fontweight="bold", color=INK)
        ax.legend(loc="upper left", labelcolor=MUTED)
        grid(ax)
    return fig
