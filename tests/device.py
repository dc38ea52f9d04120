"""Where the tensors under test lie: what `--device` says, from before tests are collected."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

UNDER_TEST = torch.device("cpu")  # tests/conftest.py writes it


def here(t: Tensor) -> Tensor:
    """A tensor drawn on the CPU, the same numbers everywhere, on the device of the test that runs."""
    return t.to(torch.get_default_device())


@functools.cache
def _multiplies_what_is_next_to_a_row() -> bool:
    """Whether torch's product of bfloat16 on this CPU reads 0 times what lies behind a row, as it does with AMX."""
    wide = torch.full((144, 6), float("nan"), dtype=torch.bfloat16, device="cpu")
    wide[:, :5] = 1.0
    return bool((wide[:, :5] @ torch.ones(5, 24, dtype=torch.bfloat16, device="cpu")).isnan().any())


@contextlib.contextmanager
def products_of_rows_alone() -> Iterator[None]:
    """Where a kernel of CUDA's runs in the emulator its products are torch's, of buffers whose ends nobody has
    written: without oneDNN, where that would read them."""
    C: Any = torch._C
    before = C._get_mkldnn_enabled()
    C._set_mkldnn_enabled(before and not _multiplies_what_is_next_to_a_row())
    try:
        yield
    finally:
        C._set_mkldnn_enabled(before)
