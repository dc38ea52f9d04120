"""results.md: what became of every mutation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .mutation import Mutation
from .workshop import Outcome

FILE = Path(__file__).with_name("results.md")
_TITLE = """# What became of the mutations

Written by `python -m tests.mutate`; the list is in `listed/`. On the baseline instruction set, tests of the op alone.
"""
_HEAD = "| mutation | file | before | after | what goes wrong | outcome |\n|---|---|---|---|---|---|\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else "nothing"


def _start(m: Mutation) -> str:
    cells = [m.name, f"`{m.file}`", _code(m.text.replace("«", "").replace("»", "")), _code(m.new), m.why]
    return "| " + " | ".join(_cell(c) if i in (0, 4) else c for i, c in enumerate(cells)) + " | "


def _words(m: Mutation, o: Outcome) -> str:
    if o.kind == "killed":
        return f"killed: {'crash in ' * o.crashed}`{_cell(o.test)}`"
    return f"**{o.kind}**" + (f": equivalent: {_cell(m.equivalent)}" if m.equivalent else "")


def read() -> dict[str, str]:
    """The start of each row, up to its outcome, and the outcome."""
    lines = FILE.read_text().splitlines() if FILE.exists() else []
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| mutation ")]
    return {row[: cut + 3]: row[cut + 3 : -2] for row in rows if (cut := row[:-2].rindex(" | "))}


def killer(m: Mutation) -> str:
    """The test that killed it before, or nothing."""
    found = re.match(r"killed: (?:crash in )?`(.*)`$", read().get(_start(m), ""))
    return found[1].replace("\\|", "|") if found else ""


def rows(mutations: Sequence[Mutation]) -> list[str]:
    """What the rows of these mutations begin with."""
    return [_start(m) for m in mutations]


def write(mutations: Sequence[Mutation], outcomes: Mapping[str, Outcome]) -> str:
    """Rewrites the rows that have an outcome, keeps those of mutations as they were; returns the summary."""
    before = read()
    body, counts = "", dict.fromkeys(("killed", "survived", "undecided", "not run"), 0)
    for m in mutations:
        start = _start(m)
        words = _words(m, outcomes[m.name]) if m.name in outcomes else before.get(start, "not run")
        kind = next(k for k in counts if words.strip("*").startswith(k))
        counts[kind] += 1
        body += start + words + " |\n"
    summary = f"{len(mutations)} mutations: " + ", ".join(f"{n} {kind}" for kind, n in counts.items() if n) + "."
    FILE.write_text(f"{_TITLE}\n{summary}\n\n{_HEAD}{body}")
    return summary
