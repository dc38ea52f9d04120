"""Two rows of a table that are timed turn by turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Beside(NamedTuple):
    """The row that another is timed against: its name, its call and its other figures."""

    row: str
    call: Callable[[], Any]
    figures: dict[str, Any]
