"""What `accelerate` did to a model, module by module, as a value that prints as a table of kinds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .design import is_by_design

_LINES = 14  # of kinds, so that it fits one screen whatever the model is
_PATH = 48  # characters of a path


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

    It prints one line a kind (a class and what became of it), so that a deep model fits one screen as a shallow one
    does; `rows` has every module. Those left alone by design (a permutation, a standardising layer) are counted apart:
    nothing could be gained on them.

    Args:
        rows: the modules, in the order of the model.
        notes: sentences for the end of the table.
        gained: path → what of the module at it runs on the kernels.

    Example:
        >>> rows = [Row("0", "Spline", ""), Row("1", "Spline", ""), Row("2", "Cubic", "no fused path for this class")]
        >>> print(Report(rows, gained={"0": "spline and network as one op", "1": "spline and network as one op"}))
        flowkernels: 2 of 3 modules accelerated
        accelerated
          2 × Spline  spline and network as one op
        not accelerated
          1 × Cubic   no fused path for this class (at 2)
    """

    def __init__(self, rows: Iterable[Row], notes: Iterable[str] = (), gained: Mapping[str, str] | None = None) -> None:
        self.rows = tuple(rows)
        self.notes = tuple(notes)
        self.gained = dict(gained or {})

    @property
    def accelerated(self) -> list[str]:
        """Paths of the modules that run on the fused path."""
        return [row.path for row in self.rows if row.accelerated]

    @property
    def left_alone(self) -> dict[str, str]:
        """Path → reason for the modules that run as before."""
        return {row.path: row.reason for row in self.rows if not row.accelerated}

    def __str__(self) -> str:
        by_design = [row for row in self.rows if is_by_design(row.reason)]
        lines = [f"flowkernels: {len(self.accelerated)} of {len(self.rows) - len(by_design)} modules accelerated"]
        if by_design:
            lines[0] += f", {len(by_design)} left alone by design"
        lines += _table(
            {
                "accelerated": _kinds((r, r.found or self.gained.get(r.path, "")) for r in self.rows if r.accelerated),
                "not accelerated": _kinds((r, r.reason) for r in self.rows if r.reason and not is_by_design(r.reason)),
                "left alone by design": _kinds((r, r.reason) for r in by_design),
            }
        )
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__


_Kinds = dict[tuple[str, str], list[str]]  # (class, what became of it) → paths


def _kinds(rows: Iterable[tuple[Row, str]]) -> _Kinds:
    kinds: _Kinds = {}
    for row, text in rows:
        kinds.setdefault((row.class_name, text), []).append(row.path)
    return kinds


def _table(sections: Mapping[str, _Kinds]) -> Iterable[str]:
    every = [(cls, paths) for kinds in sections.values() for (cls, _), paths in kinds.items()]
    count = max((len(str(len(paths))) for _, paths in every), default=0)
    width = max((len(cls) for cls, _ in every), default=0)
    room = _LINES
    for title, kinds in sections.items():
        if kinds:
            yield title
        for (cls, text), paths in list(kinds.items())[:room]:
            where = f" (at {_where(paths)})" if title == "not accelerated" else ""
            yield f"  {len(paths):>{count}} × {cls:<{width}}  {text}{where}".rstrip()
        if len(kinds) > room:
            yield f"  and {len(kinds) - room} more kinds, which the report's `rows` have"
        room = max(room - len(kinds), 1)


def _where(paths: list[str]) -> str:
    first = paths[0] or "the model"
    first = first if len(first) <= _PATH else "…" + first[1 - _PATH :]
    return first if len(paths) == 1 else f"{first} and {len(paths) - 1} more"
