"""A pytest plugin: every module of the classes named in FLOWKERNELS_ACCELERATE is accelerated as soon as it is made.

It is what runs a library's own tests with acceleration switched on, without a change to them.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections import Counter
from typing import Any

import pytest

from flowkernels import compat

_made: Counter[str] = Counter()


def _accelerate_when_made(cls: Any) -> None:
    plain = cls.__init__

    @functools.wraps(plain)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        if type(self) is cls:  # a subclass is not ready yet
            _made[cls.__name__] += len(compat.accelerate(self).accelerated)

    cls.__init__ = init


def pytest_configure(config: pytest.Config) -> None:
    for name in os.environ["FLOWKERNELS_ACCELERATE"].split(","):
        module, _, qualname = name.partition(":")
        _accelerate_when_made(getattr(importlib.import_module(module), qualname))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"accelerated when made: {dict(_made)}")
