"""How launches are run: the order of threads, what PTX leaves free, a mutation, whether accesses are counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.ptx.machine import Settings
from tests.ptx.scheduler import Order


def _unchanged(text: str) -> str:
    return text


def _untraced() -> object:
    return None


@dataclass(frozen=True)
class How:
    settings: Settings = field(default_factory=Settings)
    order: Order = field(default_factory=Order)
    mutate: Callable[[str], str] = _unchanged  # of a module's text
    tracer: Callable[[], object] = _untraced  # a new one for each launch
