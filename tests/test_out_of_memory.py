"""Out of memory is a MemoryError, whichever thread meets it, and no op is the worse for it afterwards."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from flowkernels import _native
from tests import out_of_memory
from tests.emulator import ROOT


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS bounds memory on Linux alone")
@pytest.mark.skipif(_native.C is None, reason="the compiled module is not there")
@pytest.mark.parametrize("threads", [1, 2])
def test_out_of_memory(threads) -> None:
    command = [sys.executable, "-m", "tests.out_of_memory", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr  # SIGABRT: an exception left a parallel region
    found = json.loads(done.stdout)
    assert len(found) == 2 * len(out_of_memory.CASES)
    for name, (came, afterwards) in found.items():
        assert afterwards == "works afterwards", name
        assert came in ("MemoryError", "done", "torch has no memory"), (name, came)
    for net in out_of_memory.NETS:  # whose scratch memory is what there is none of
        assert found[net.__name__][0] == found[f"{net.__name__} backward"][0] == "MemoryError", found
