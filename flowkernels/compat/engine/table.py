"""`python -m flowkernels.compat.engine.table [README.md]`: what of which library is accelerated, printed or filed."""

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
    """The table of README.

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
    readme = Path(arguments[0])
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        print(f"compat.table: {readme} must have a line {BEGIN} and then a line {END}", file=sys.stderr)
        return 1
    readme.write_text(f"{before}{BEGIN}\n{markdown()}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
