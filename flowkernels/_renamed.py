"""Old spellings of public names: they work for one release, and say what they are called now."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch

_PACKAGE = os.path.dirname(__file__)
_C = TypeVar("_C", bound=type)


def warn_renamed(old: str, new: str) -> None:
    """Warns at the line that called the package. Compilers see nothing of it: they cannot trace frames."""
    if torch.compiler.is_compiling():
        return
    level, frame = 2, sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((_PACKAGE, "<string>")):
        level, frame = level + 1, frame.f_back
    message = f"flowkernels: {old} is called {new} now; the old spelling works for one more release"
    warnings.warn(message, DeprecationWarning, stacklevel=level)


def renamed_property(old: str, new: str) -> Any:
    """A property of that old name, which returns the attribute of the new one."""

    def read(self: Any) -> Any:
        warn_renamed(f"{type(self).__name__}.{old}", new)
        return getattr(self, new)

    return property(read, doc=f"Old spelling of ``{new}``.")


def renamed_arguments(**names: str) -> Callable[[_C], _C]:
    """Decorates a class whose constructor takes keywords by an old name too: ``old="new"``."""

    def decorate(cls: _C) -> _C:
        init = cls.__init__  # type: ignore[misc]

        @functools.wraps(init)
        def __init__(self: Any, *args: Any, **given: Any) -> None:
            for old in names:
                if old in given:
                    warn_renamed(f"{cls.__name__}({old}=)", names[old])
                    given[names[old]] = given.pop(old)
            init(self, *args, **given)

        cls.__init__ = __init__  # type: ignore[misc]
        return cls

    return decorate
