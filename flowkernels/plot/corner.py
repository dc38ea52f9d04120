"""Corner plots: every pair of features, and each one alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowkernels._arguments import count

from ._style import BLUE, GREY, INK, MUTED, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WHERE = "flowkernels.plot.corner"
_MOST_FEATURES = 16
_SHARES = (0.9, 0.5)  # of the points that lie within the contours
_FEWEST_FOR_CONTOURS = 500


def corner(
    samples: Any,
    data: Any = None,
    names: Sequence[str] | None = None,
    *,
    labels: tuple[str, str] = ("samples", "data"),
    bins: int | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draws samples, in blue, over data, in grey: histograms on the diagonal, every pair of features below it.

    Contours hold 90 % and 50 % of the points (data: filled); where there are fewer than 500, the points themselves are
    drawn. The axes leave out the outermost 0.2 % at each end, so that no outlier squeezes the rest.

    Args:
        samples: ``[N, D]`` with D from 1 to 16, a tensor or an array. Rows that are not finite are left out.
        data: ``[M, D]`` or None.
        names: of the features; by default x0, x1, ...
        labels: of samples and data in the legend.
        bins: of a histogram, along each feature; by default the more, the more points there are, up to 40.
        path: of a file to write (PNG, PDF, ... by its ending).

    Raises:
        ValueError: a shape is none of the above, no row is finite, ``names`` are not D.
        ImportError: matplotlib is not installed (``pip install 'flowkernels[plot]'``).

    Example:
        >>> import torch
        >>> from flowkernels import plot
        >>> figure = plot.corner(torch.randn(1000, 3), torch.randn(1000, 3), names=["mass", "spin", "distance"])
        >>> len(figure.axes), figure.axes[-1].get_xlabel()
        (6, 'distance')
    """
    sets = [(labels[0], _points("samples", samples), BLUE)]
    D = sets[0][1].shape[1]
    if data is not None:
        sets.insert(0, (labels[1], _points("data", data), GREY))
        if sets[0][1].shape[1] != D:
            raise ValueError(f"{_WHERE}: data must have the {D} features of samples, got {sets[0][1].shape[1]}")
    names = [f"x{i}" for i in range(D)] if names is None else [str(name) for name in names]
    if len(names) != D:
        raise ValueError(f"{_WHERE}: names must be {D}, one a feature, got {len(names)}")
    fewest = min(len(points) for _, points, _ in sets)
    bins = min(40, max(8, int(2 * fewest ** (1 / 3)))) if bins is None else count(_WHERE, "bins", bins, least=2)
    limits = [_limits([points[:, i] for _, points, _ in sets]) for i in range(D)]
    size = max(4.6, 0.8 + min(1.9, 14 / D) * D)
    with figure(_WHERE, size, size, path) as fig:
        axes: Any = fig.add_gridspec(D, D)
        first: list[Any] = []
        for i in range(D):
            for j in range(i + 1):
                ax = fig.add_subplot(axes[i, j])
                first.append(ax)
                for _, points, colour in sets:
                    if i == j:
                        _histogram(ax, points[:, i], limits[i], bins, colour)
                    else:
                        _pair(ax, points[:, [j, i]], (limits[j], limits[i]), bins, colour)
                _frame(ax, i, j, D, names, limits)
        from matplotlib.patches import Patch

        handles = [Patch(facecolor=colour, label=label) for label, _, colour in reversed(sets)]
        where = "outside upper right" if D == 1 else "upper right"
        fig.legend(handles=handles, loc=where, fontsize=12 if D > 1 else 10, labelcolor=INK)
    return fig


def _points(name: str, given: Any) -> Tensor:
    try:
        points = torch.as_tensor(given).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{_WHERE}: {name} must be [N, D], numbers, got {type(given).__name__} ({error})") from error
    if points.dim() != 2 or not 1 <= points.shape[1] <= _MOST_FEATURES:
        raise ValueError(f"{_WHERE}: {name} must be [N, D] with D from 1 to {_MOST_FEATURES}, got {list(points.shape)}")
    points = points[points.isfinite().all(1)]
    if not len(points):
        raise ValueError(f"{_WHERE}: {name} must have a row of finite numbers, got none")
    return points


def _limits(columns: list[Tensor]) -> tuple[float, float]:
    ends = []
    for column in columns:
        n, ordered = len(column), column.sort().values
        skip = int(0.002 * n)
        ends += [ordered[skip].item(), ordered[n - 1 - skip].item()]
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or max(0.5, 0.01 * abs(low))  # of a constant
    return low - margin, high + margin


def _histogram(ax: Axes, values: Tensor, limits: tuple[float, float], bins: int, colour: str) -> None:
    edges = torch.linspace(*limits, bins + 1, dtype=torch.float64)
    inside = values[(values >= limits[0]) & (values <= limits[1])]
    counts = torch.histogram(inside, edges).hist
    density = (counts / (len(values) * (edges[1] - edges[0]))).tolist()
    if colour == GREY:
        ax.stairs(density, edges.tolist(), color=GREY, fill=True, alpha=0.55)
    else:
        ax.stairs(density, edges.tolist(), color=colour, linewidth=1.6)


def _pair(ax: Axes, points: Tensor, limits: tuple[tuple[float, float], ...], bins: int, colour: str) -> None:
    if len(points) < _FEWEST_FOR_CONTOURS:
        shade = MUTED if colour == GREY else colour
        x, y = points.T.tolist()
        ax.plot(x, y, "s" if colour == GREY else "o", color=shade, markersize=3, alpha=0.6, markeredgewidth=0)
        return
    density, centres = _density(points, limits, bins)
    levels = levels_of(density, _SHARES)
    if len(levels) < len(_SHARES):
        return
    x, y, z = *(c.tolist() for c in centres), density.T.tolist()
    if colour == GREY:
        ax.contourf(x, y, z, levels=[*levels, density.max().item() * 1.01], colors=["#d5dbe1", GREY])
    else:
        ax.contour(x, y, z, levels=levels, colors=[colour], linewidths=[1.2, 1.8])


def _density(points: Tensor, limits: tuple[tuple[float, float], ...], bins: int) -> tuple[Tensor, list[Tensor]]:
    """A smoothed histogram ``[bins, bins]`` in a frame of empty bins, in which contours close, and its centres."""
    edges = [torch.linspace(*ends, bins + 1, dtype=torch.float64) for ends in limits]
    inside = torch.stack([(p >= a) & (p <= b) for p, (a, b) in zip(points.T, limits, strict=True)]).all(0)
    counts = torch.histogramdd(points[inside], edges).hist
    width = max(0.8, 0.11 * bins * (len(points) / 1000) ** (-1 / 6) / 2)  # of bins; less where there is more to see
    reach = int(3 * width) + 1
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / width) ** 2)
    kernel /= kernel.sum()
    padded = torch.nn.functional.pad(counts, (reach,) * 4)[None, None]
    smooth = torch.nn.functional.conv2d(padded, kernel.view(1, 1, -1, 1))
    smooth = torch.nn.functional.conv2d(smooth, kernel.view(1, 1, 1, -1))[0, 0]
    centres = [torch.cat([e[:1] - (e[1] - e[0]) / 2, (e[1:] + e[:-1]) / 2, e[-1:] + (e[1] - e[0]) / 2]) for e in edges]
    return torch.nn.functional.pad(smooth, (1,) * 4), centres


def levels_of(density: Tensor, shares: Sequence[float]) -> list[float]:
    """The densities above which these shares of the whole lie, ascending, without equal ones.

    Example:
        >>> levels_of(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), (0.9, 0.5))
        [2.0, 3.0]
    """
    ordered = density.flatten().sort(descending=True).values
    held = ordered.cumsum(0) / ordered.sum()
    found = [ordered[min(int((held < share).sum()), len(ordered) - 1)].item() for share in shares]
    return sorted({level for level in found if level > 0})


def _frame(ax: Axes, i: int, j: int, D: int, names: Sequence[str], limits: Sequence[tuple[float, float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_xlim(*limits[j])
    if i == j:
        ax.set_yticks([])
        ax.set_ylim(0, 1.03 * ax.get_ylim()[1])
        ax.spines["left"].set_visible(False)
    else:
        ax.set_ylim(*limits[i])
        ax.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    ax.tick_params(length=3, color=MUTED)
    if i == D - 1:
        ax.set_xlabel(names[j])
        ax.tick_params(axis="x", labelrotation=0 if D < 9 else 45)
    else:
        ax.tick_params(labelbottom=False)
    if j == 0 and i > 0:
        ax.set_ylabel(names[i])
    elif i != j:
        ax.tick_params(labelleft=False)
