"""A suite of the benchmark as one value: what goes in, which rows compute it, what is right, how many bytes it is."""

from __future__ import annotations

import importlib.util
import itertools
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor

FORWARD, INVERSE, BACKWARD = "forward", "inverse", "forward + backward"
LOG_PROB, SAMPLE, STEP = "log_prob", "sample", "training step"

Tensors = tuple[Tensor, ...]
Size = tuple[Any, ...]
I = TypeVar("I")  # noqa: E741
T = TypeVar("T")


class Row(NamedTuple):
    """One line of a table. Rows of the same `truth` are held against the same float64 numbers."""

    name: str
    of: Any = None  # what the suite makes the row's call from
    package: str | None = None
    truth: Any = None

    @property
    def compiled(self) -> bool:
        return self.name.endswith("compiled")

    @property
    def peer(self) -> bool:
        return not self.name.startswith(("plain torch", "flowkernels"))

    def missing(self) -> str | None:
        """Why the row cannot run, or None."""
        if self.package is None or importlib.util.find_spec(self.package):
            return None
        return f"{self.package} is not installed"


class Ready(NamedTuple):
    """A row on its inputs: the call to time, and what is measured once beside it."""

    call: Callable[[], Any]
    error: Callable[[Any], float] | None = None  # given the truth; raises AssertionError where the row is wrong
    forward: Callable[[], Any] | None = None  # leaves a graph, whose bytes are counted
    backward: Callable[[], Any] | None = None  # its peak is counted
    weights: Tensors = ()  # which are there anyway
    breaks: bool = True  # whether `error` compiles what is timed, so that its graph breaks are the row's
    during: Callable[[], AbstractContextManager[Any]] = nullcontext  # while it is timed


class Point(NamedTuple):
    """What one test times: a row of the group of a table."""

    size: Size
    op: str
    row: str


def points(sizes: Iterable[Size], ops: Iterable[str], rows: Iterable[str]) -> list[Point]:
    return [Point(*point) for point in itertools.product(sizes, ops, rows)]


@dataclass(frozen=True, eq=False)
class Suite(Generic[I, T]):
    """A table. Its functions take a size piece by piece, and the inputs that `inputs` makes of it."""

    title: str
    points: list[Point]
    label: Callable[..., str]  # of a size
    smaller: Callable[..., Size]  # the size of a quick run
    inputs: Callable[..., I]
    rows: dict[str, Row]
    ready: Callable[[Row, I, str], Ready]
    truth: Callable[[Any, I, str], T]  # of `Row.truth`, inputs and op
    bytes: Callable[[I, str], int] | None = None  # that any implementation must move
    too_slow: Callable[..., str | None] = lambda row, *size: None  # why a row is not timed at this size
    beside: str | None = None  # the row with which every other one is called turn by turn
    around: Callable[[], AbstractContextManager[Any]] = nullcontext

    def id(self, size: Size, op: str, row: str) -> str:
        """A test's name of letters, digits and underscores only, so that `-k` can select any part of it."""
        words = " ".join((self.title, self.label(*size), op, row))
        return re.sub(r"[^A-Za-z0-9]+", "_", re.sub("[-=]", "", words))


def named(*rows: Row) -> dict[str, Row]:
    return {row.name: row for row in rows}
