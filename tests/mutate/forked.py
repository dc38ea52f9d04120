"""pytest in a fork of this process, which has imported torch once for all of them."""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import hypothesis.extra.numpy  # noqa: F401  (what follows is imported for the children)
import numpy  # noqa: F401
import pytest as of_pytest
import torch._dynamo  # noqa: F401

from .mutation import ROOT

_OURS = ("tests", "flowkernels")  # each child imports those of its folder, and the compiled module with them
_SLOW = 40  # wall seconds a CPU second may take on a busy machine, before a child that waits is given up


def pytest(
    folder: Path, arguments: Sequence[str], environment: Mapping[str, str], seconds: float | None = None
) -> tuple[int | None, str]:
    """The exit code, below 0 for a signal and None where it took more CPU seconds than that, and what was said."""
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            _run(folder, arguments, environment, seconds, said.fileno())
        code = _wait(child, seconds)
        said.seek(0)
        return code, said.read()


def _run(
    folder: Path, arguments: Sequence[str], environment: Mapping[str, str], seconds: float | None, said: int
) -> None:
    """Does not return."""
    code = 70
    try:
        os.setsid()
        os.dup2(said, 1)
        os.dup2(said, 2)
        if seconds is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(folder)
        os.environ.update(environment)
        sys.dont_write_bytecode = True  # of a mutation
        sys.path[:] = [str(folder), *(p for p in sys.path if p not in ("", str(ROOT)))]
        for name in [n for n in sys.modules if n.split(".")[0] in _OURS]:
            del sys.modules[name]
        code = of_pytest.main(["-v", "--tb=line", "-p", "no:cacheprovider", *arguments])
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code))


def _wait(child: int, seconds: float | None) -> int | None:
    end = None if seconds is None else time.monotonic() + _SLOW * seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if end is not None and time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.05)
    code = os.waitstatus_to_exitcode(status)
    return None if code in (-signal.SIGXCPU, -signal.SIGKILL) else code
