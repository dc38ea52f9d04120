"""Where the tensors under test lie: what `--device` says, from before tests are collected."""

from __future__ import annotations

import torch
from torch import Tensor

UNDER_TEST = torch.device("cpu")  # tests/conftest.py writes it


def here(t: Tensor) -> Tensor:
    """A tensor drawn on the CPU, the same numbers everywhere, on the device of the test that runs."""
    return t.to(torch.get_default_device())
