"""One look for every picture: light background, readable text, colours that no colour blindness confuses."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue and vermilion of Okabe and Ito, which differ in lightness too.
INK, MUTED, GRID, GREY = "#1f2933", "#52606d", "#e4e7eb", "#9aa5b1"
BLUE, VERMILION = "#0072b2", "#d55e00"

_RC = {
    "font.size": 11, "axes.titlesize": 12, "axes.labelsize": 11, "xtick.labelsize": 10, "ytick.labelsize": 10,
    "legend.fontsize": 10, "axes.edgecolor": GREY, "axes.labelcolor": INK, "text.color": INK, "xtick.color": MUTED,
    "ytick.color": MUTED, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white", "legend.frameon": False,
    "axes.unicode_minus": True, "grid.color": GRID, "lines.linewidth": 2.0,
}  # fmt: skip


def matplotlib_of(where: str) -> Any:
    """Matplotlib, which only pictures need.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ImportError(
            f"{where}: matplotlib must be installed, got {error} (pip install 'flowkernels[plot]', or matplotlib alone)"
        ) from error
    return matplotlib


@contextlib.contextmanager
def figure(where: str, width: float, height: float, path: str | os.PathLike[str] | None) -> Iterator[Figure]:
    """A figure to draw on, in inches, written to ``path`` at the end. Not pyplot's: nobody has to close it."""
    matplotlib = matplotlib_of(where)
    with matplotlib.rc_context(_RC):
        fig = matplotlib.figure.Figure(figsize=(width, height), dpi=150, layout="constrained")
        yield fig
        if path is not None:
            fig.savefig(path)


def grid(ax: Axes, axis: Any = "both") -> None:
    ax.grid(axis=axis, linewidth=0.8)
    ax.tick_params(length=0)
