"""A pytest plugin: modules of the library named in FLOWKERNELS_ACCELERATE are accelerated as soon as they are made.

It is what runs a library's own tests with acceleration switched on, without a change to them. Small inputs run fused
too.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from flowkernels import compat
from flowkernels.compat.engine import patch, thresholds

_made: Counter[str] = Counter()


def _accelerate_when_made(cls: Any) -> None:
    plain = cls.__init__

    @functools.wraps(plain)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        if type(self) is cls:  # a subclass is not ready yet
            compat.accelerate(self)
            _made[cls.__name__] += patch.is_fast(self)

    cls.__init__ = init


def pytest_configure(config: pytest.Config) -> None:
    # Their tests may be a package called `tests`, as ours are; flowkernels is loaded, and finds its own modules anyway.
    sys.path.remove(str(Path(__file__).parents[2]))
    torch.set_num_threads(1)
    for size in filter(str.isupper, vars(thresholds)):
        setattr(thresholds, size, 0)
    library = importlib.import_module(f"flowkernels.compat.{os.environ['FLOWKERNELS_ACCELERATE']}").LIBRARY
    for name in library.targets:
        module, _, cls = f"{library.root}.{name}".rpartition(".")
        _accelerate_when_made(getattr(importlib.import_module(module), cls))


def pytest_runtest_setup(item: pytest.Item) -> None:
    torch.manual_seed(0)  # they draw their inputs, and a test must not depend on those before it


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"accelerated when made: {', '.join(sorted(+_made))}")
