"""Loss curves."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ._style import BLUE, MUTED, VERMILION, figure, grid, matplotlib_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WHERE = "flowkernels.plot.losses"


def losses(fit: Any, validation: Iterable[Any] | None = None, *, path: str | os.PathLike[str] | None = None) -> Figure:
    """Draws the training and the validation loss of each epoch; a dot marks the least validation loss.

    Args:
        fit: what has lists ``train`` and ``validation``, as a fit has; or the list of training losses, or a pair
            ``(train, validation)`` of lists.
        validation: the list of validation losses, beside a list of training losses.
        path: of a file to write (PNG, PDF, ... by its ending).

    Raises:
        ValueError: there is no loss, or what is given are no numbers.
        ImportError: matplotlib is not installed (``pip install 'flowkernels[plot]'``).

    Example:
        >>> from flowkernels import plot
        >>> figure = plot.losses([3.0, 2.5, 2.2, 2.0], [3.1, 2.6, 2.4, 2.5])
        >>> [line.get_label() for line in figure.axes[0].lines]
        ['training', 'validation', 'best: 2.4 in epoch 3']
    """
    curves = _curves(fit, validation)
    matplotlib_of(_WHERE)
    from matplotlib.ticker import MaxNLocator

    with figure(_WHERE, 7, 4.2, path) as fig:
        ax = fig.subplots()
        for (name, values), colour in zip(curves.items(), (BLUE, VERMILION), strict=False):
            epochs = range(1, len(values) + 1)
            ax.plot(epochs, values, color=colour, label=name, marker="o" if len(values) == 1 else None)
        finite = [(v, i) for i, v in enumerate(curves.get("validation", []), 1) if math.isfinite(v)]
        if finite:
            best, epoch = min(finite)
            ax.plot(
                [epoch], [best], "o", color=VERMILION, markeredgecolor="white", markersize=8, clip_on=False,
                label=f"best: {best:.4g} in epoch {epoch}", zorder=3,
            )  # fmt: skip
        ax.set_xlabel("epoch")
        ax.set_ylabel("loss")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        last = max(map(len, curves.values()))
        ax.set_xlim(1 - 0.02 * last, last + 0.02 * last)
        ax.set_ylim(*_limits([v for values in curves.values() for v in values]))
        ax.legend(loc="upper right", labelcolor=MUTED)
        grid(ax)
    return fig


def _curves(fit: Any, validation: Iterable[Any] | None) -> dict[str, list[float]]:
    train = fit
    if hasattr(fit, "train") and hasattr(fit, "validation"):
        train, validation = fit.train, fit.validation
    elif validation is None and isinstance(fit, (tuple, list)) and len(fit) == 2 and _is_list(fit[0]):
        train, validation = fit
    found = {"training": train, "validation": [] if validation is None else validation}
    curves = {name: _numbers(name, values) for name, values in found.items()}
    if not curves["training"]:
        raise ValueError(f"{_WHERE}: fit must hold the training loss of an epoch at least, got none")
    return {name: values for name, values in curves.items() if values}


def _is_list(value: object) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, (str, bytes)) and getattr(value, "ndim", 1) > 0


def _numbers(name: str, values: Any) -> list[float]:
    try:
        return [float(v) for v in values]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{_WHERE}: fit must have lists of numbers train and validation, or be two lists, got "
            f"{type(values).__name__} for {name} ({error})"
        ) from error


def _limits(values: list[float]) -> tuple[float | None, float | None]:
    """From the least to the largest finite loss; one steep start, or a spike, does not flatten all that comes after."""
    finite = sorted(v for v in values if math.isfinite(v))
    if len(finite) < 2 or finite[0] == finite[-1]:
        return None, None
    low, high, most = finite[0], finite[-1], finite[int(0.95 * (len(finite) - 1))]
    if len(finite) >= 20 and high - low > 4 * (most - low) > 0:
        high = low + 1.5 * (most - low)
    margin = 0.05 * (high - low)
    return low - margin, high + margin
