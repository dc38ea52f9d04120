"""`python -m flowkernels.compat.engine.table [PAGE.md]`: what of which library is accelerated, printed or filed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from flowkernels import compat

BEGIN, END = "<!-- compat:begin -->", "<!-- compat:end -->"


def rows() -> list[tuple[str, str, str]]:
    """(library, class, what of it is accelerated), as the tables of the libraries have it."""
    names = sorted(compat._LIBRARIES)
    found = [(name, importlib.import_module(f"{compat.__name__}.{name}").LIBRARY) for name in names]
    return [(name, *row) for name, library in found for row in library.rows()]


def markdown() -> str:
    """The table of the site's page of all classes.

    Example:
        >>> print(markdown().splitlines()[0])
        | library | class | what runs fused |
    """
    lines = ["| library | class | what runs fused |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {name} | `{cls}` | {what} |" for name, cls, what in rows())])


def main(arguments: list[str]) -> int:
    if not arguments:
        print(markdown())
        return 0
    page = Path(arguments[0])
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        print(f"compat.table: {page} must have a line {BEGIN} and then a line {END}", file=sys.stderr)
        return 1
    page.write_text(f"{before}{BEGIN}\n{markdown()}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
