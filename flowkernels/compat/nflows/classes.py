"""nflows' networks under all their names: glasflow and normflows carry copies of these classes.

They are told by name, so that none of the libraries has to be installed, or imported, for another's sake.
"""

from __future__ import annotations

import functools
from typing import Any

_MODULES = frozenset({
    "nflows.nn.nets.resnet", "nflows.transforms.made",
    "glasflow.nflows.nn.nets.resnet", "glasflow.nflows.transforms.made",
    "normflows.nets.resnet", "normflows.nets.made",
})  # fmt: skip


@functools.lru_cache(maxsize=512)
def kind(cls: type) -> str:
    """The name of one of nflows' network classes or a copy of it; empty for any other class, their subclasses too."""
    return cls.__name__ if cls.__module__ in _MODULES else ""


def made_class(net: Any) -> type | None:
    """The MADE that a network is an instance of, or None."""
    return next((cls for cls in type(net).__mro__ if kind(cls) == "MADE"), None)
