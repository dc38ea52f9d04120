"""What was found, as a value that prints as a table and draws itself."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from flowkernels.compat import Report

from .closeness import Check
from .timing import Times

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 100


class Row(NamedTuple):
    """One thing that both models did: seconds of a call."""

    what: str
    before: Times
    after: Times
    rounds: int

    @property
    def speedup(self) -> float:
        """How many times as fast, by the medians."""
        return self.before.median / self.after.median

    @property
    def speedup_of_least(self) -> float:
        """How many times as fast, by the least times, which other programs disturb least."""
        return self.before.least / self.after.least


@dataclass(frozen=True)
class Benchmark:
    """Before and after of a model; see `flowkernels.benchmark`.

    Attributes:
        model: the name of its class.
        shape: of the data.
        machine: what it ran on.
        report: what `flowkernels.accelerate` said.
        checks: how far apart the models are, by quantity.
        rows: the times; empty where the models are not close.
        notes: what could not be done, and why.
    """

    model: str
    shape: tuple[int, ...]
    machine: str
    report: Report
    checks: tuple[Check, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def close(self) -> bool:
        """Whether the accelerated model computes what the original does."""
        return all(check.close for check in self.checks)

    def __str__(self) -> str:
        return "\n".join(line for text in self._lines() for line in _wrapped(text))

    __repr__ = __str__

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Draws the times as one bar chart, into the file ``path`` if one is given (PNG, PDF, ... by its ending).

        Raises:
            ImportError: matplotlib is not installed (``pip install 'flowkernels[plot]'``).

        Example:
            >>> from flowkernels.benchmark.result import Benchmark, Report, Row, Times
            >>> row = Row("log_prob", Times(0.019, 0.020), Times(0.004, 0.005), 100)
            >>> found = Benchmark("Flow", (512, 6), "CPU", Report([]), (), (row,))
            >>> [text.get_text() for text in found.plot().axes[0].texts]
            ['20.0 ms', '5.00 ms, 4.00× as fast']
        """
        from .bars import draw

        return draw(self, path)

    def _lines(self) -> Iterator[str]:
        yield f"flowkernels.benchmark: {self.model}, x {list(self.shape)}; {self.machine}"
        yield str(self.report).splitlines()[0].removeprefix("flowkernels: ")
        yield from _table(self.rows)
        if self.rows:
            yield "turn by turn in one process; least and median of the rounds"
        if self.checks:
            yield "the same numbers, within rounding" if self.close else "NOT the same numbers"
        yield from (f"  {'' if check.close else 'NOT CLOSE: '}{check}" for check in self.checks)
        yield from (f"note: {note}" for note in self.notes)


def _table(rows: tuple[Row, ...]) -> Iterator[str]:
    if not rows:
        return
    cells: list[tuple[Any, ...]] = [("", "original", "accelerated", "times as fast", "rounds")]
    for row in rows:
        before, after = (f"{seconds(t.least)}, {seconds(t.median)}" for t in (row.before, row.after))
        ratios = f"{digits(row.speedup_of_least)}, {digits(row.speedup)}"
        cells.append((row.what, before, after, ratios, str(row.rounds)))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for name, *others in cells:
        yield "  ".join(
            [name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]
        ).rstrip()


def _wrapped(line: str) -> list[str]:
    if len(line) <= _WIDTH:
        return [line]
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(line.strip(), _WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")


def seconds(value: float) -> str:
    """0.00512 → "5.12 ms"."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= 0.9995 * size:
            return f"{digits(value / size)} {unit}"
    return f"{digits(value * 1e9)} ns"


def digits(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
