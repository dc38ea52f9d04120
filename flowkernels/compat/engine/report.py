"""What `accelerate` did to a model, module by module, as a value that prints as a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Row(NamedTuple):
    """One module of the model; `reason` is empty where it was accelerated, `found` may say what of it then."""

    path: str
    class_name: str
    reason: str
    found: str = ""

    @property
    def accelerated(self) -> bool:
        return not self.reason


class Report:
    """The modules of a model that a supported library made: accelerated, or left alone and why.

    Example:
        >>> print(Report([Row("0", "Spline", ""), Row("1", "Permutation", "no fused path for this class")]))
        flowkernels: 1 of 2 modules accelerated
        module  class        status
        0       Spline       accelerated
        1       Permutation  left alone: no fused path for this class
    """

    def __init__(self, rows: Iterable[Row], notes: Iterable[str] = ()) -> None:
        self.rows = tuple(rows)
        self.notes = tuple(notes)

    @property
    def accelerated(self) -> list[str]:
        """Paths of the modules that run on the fused path."""
        return [row.path for row in self.rows if row.accelerated]

    @property
    def left_alone(self) -> dict[str, str]:
        """Path → reason for the modules that run as before."""
        return {row.path: row.reason for row in self.rows if not row.accelerated}

    def __str__(self) -> str:
        lines = [f"flowkernels: {len(self.accelerated)} of {len(self.rows)} modules accelerated"]
        if self.rows:
            table = [("module", "class", "status")]
            for row in self.rows:
                status = f"accelerated: {row.found}" if row.found else "accelerated"
                status = status if row.accelerated else f"left alone: {row.reason}"
                table.append((row.path or "(the model)", row.class_name, status))
            first, second = (max(len(line[i]) for line in table) for i in (0, 1))
            lines += [f"{a:<{first}}  {b:<{second}}  {c}" for a, b, c in table]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__
