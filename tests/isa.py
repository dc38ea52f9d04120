"""A CPU kernel's instruction set, for the calls inside of a `with` block."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

_C: Any = importlib.import_module("flowkernels._native").C


@contextlib.contextmanager
def running(isa: str | None) -> Iterator[None]:
    """This one; "emulated": CUDA's kernels in the emulator; "default" or None: what runs already."""
    if isa == "emulated":
        from tests import emulator  # which builds it, and fuzzers of CPU kernels do without

        with emulator.running():
            yield
    elif isa in (None, "default"):
        yield
    else:
        before = _C.isa()
        _C.use_isa(isa)
        try:
            yield
        finally:  # of a test that fails too: the next ones would compare other bits
            _C.use_isa(before)
