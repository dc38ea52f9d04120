"""A few numbers tests on the emulated processor as a whole, in its own Python and torch; `__main__.py` starts it."""

from __future__ import annotations

import contextlib
import sys

import pytest

from flowkernels import _native
from tests import emulator


def main() -> int:
    assert _native.C is not None and _native.C.isas() == ["neon"], _native.why_missing
    with open("/proc/self/maps") as maps:
        pools = {line.split()[-1] for line in maps if "libgomp" in line}
    assert len(pools) == 1 and "torch.libs" in pools.pop(), "the module and torch have one OpenMP"
    # The emulator of CUDA would have to be compiled there, and needs no ARM.
    emulator.available = emulator.running = contextlib.nullcontext
    options = ["-q", "-p", "no:cacheprovider", "-k", "numbers and not emulated and not triton"]
    return int(pytest.main([*options, "tests/ops/test_actnorm.py"]))


if __name__ == "__main__":
    sys.exit(main())
