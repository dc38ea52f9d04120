"""What every test of the CUDA kernels runs under."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _poisoned(poison) -> None:
    """An output that a kernel did not write whole shows, in whatever test."""
