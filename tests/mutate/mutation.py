"""A mutation: a part of a text that a file holds once, and what takes its place."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SWITCH = "fk_mutant"


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    text: str  # «what changes» within enough of its line to be found once
    new: str
    why: str  # what goes wrong
    tests: tuple[str, ...]  # arguments of pytest, what kills soonest first
    equivalent: str = ""  # why no test can tell it from the original

    @property
    def old(self) -> str:
        return self.text[self.text.index("«") + 1 : self.text.index("»")]

    @property
    def files(self) -> tuple[str, ...]:
        """Those of its tests."""
        return self.tests[: self.tests.index("-k")] if "-k" in self.tests else self.tests

    @property
    def compiled(self) -> bool:
        return not self.file.endswith(".py")

    def span(self, source: str) -> tuple[int, int]:
        """Where the part is in the file's text."""
        plain = self.text.replace("«", "").replace("»", "")
        found = source.count(plain)
        if found != 1:
            raise ValueError(f"{self.name}: {self.file} must hold {plain!r} once, got {found} times")
        start = source.index(plain) + self.text.index("«")
        return start, start + len(self.old)

    def apply(self, source: str) -> str:
        start, end = self.span(source)
        return source[:start] + self.new + source[end:]


@dataclass(frozen=True)
class Of:
    """Makes the mutations of one op, which share their tests."""

    op: str
    tests: str

    def __call__(
        self, name: str, file: str, text: str, new: str, why: str, tests: str = "", equivalent: str = ""
    ) -> Mutation:
        return Mutation(f"{self.op}: {name}", file, text, new, why, _arguments(tests or self.tests), equivalent)


def _arguments(tests: str) -> tuple[str, ...]:
    """Split at spaces, but for those of an expression behind -k, which comes last."""
    files, _, chosen = tests.partition(" -k ")
    return (*files.split(), *(("-k", chosen) if chosen else ()))


def switched(source: str, mutations: Iterable[tuple[int, Mutation]]) -> str:
    """A C++ file in which each numbered mutation is behind its switch. Those of one part are tried in turn."""
    parts: dict[tuple[int, int], list[tuple[int, str]]] = {}
    for number, m in mutations:
        parts.setdefault(m.span(source), []).append((number, m.new))
    spans = sorted(parts)
    for before, after in itertools.pairwise(spans):
        if after[0] < before[1]:
            raise ValueError(f"two mutations overlap in {source[before[0] : after[1]]!r}")
    for start, end in reversed(spans):
        source = source[:start] + _choice(source[start:end], parts[start, end]) + source[end:]
    return source


def _choice(old: str, news: list[tuple[int, str]]) -> str:
    if old.endswith(";"):  # a statement
        return "{" + "".join(f"if ({SWITCH}({n})) {{{new}}} else " for n, new in news) + f"{{{old}}}" + "}"
    return "(" + "".join(f"{SWITCH}({n}) ? ({new}) : " for n, new in news) + f"({old}))"
