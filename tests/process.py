"""Scripts that run in a Python of their own, which finds the package that is tested here."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import flowkernels


def python(
    code: str, file: Path | None = None, timeout: float = 120, environment: Mapping[str, str] = os.environ, **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script; from a ``file``, where processes that it spawns must find it."""
    code = textwrap.dedent(code)
    if file is not None:
        file.write_text(code)
    root = os.path.dirname(os.path.dirname(flowkernels.__file__))
    path = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *(["-c", code] if file is None else [str(file)])], capture_output=True, text=True,
        timeout=timeout, env={**environment, "PYTHONPATH": path, **env},
    )  # fmt: skip
