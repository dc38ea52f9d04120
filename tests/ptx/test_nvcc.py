"""The CUDA kernels as nvcc compiled them, launched by their own host code on the CPU: right by the numbers rule."""

from __future__ import annotations

import functools

import pytest
import torch

from tests.ops.channels import cast
from tests.ptx import of_nvcc
from tests.ptx.calls import CALLS, CHAINS, OF_TRITON, Tensors, assert_by_draws, assert_numbers, call, results
from tests.ptx.machine import Settings
from tests.ptx.running import How
from tests.ptx.scheduler import Order

pytestmark = pytest.mark.usefixtures("poison", "one_thread")
EXACT = Settings(errs=False)
NAMES = [name for name in CALLS if name not in OF_TRITON]
CHOSEN = {
    ("rqs K=8", torch.float32), ("rqs circular", torch.float32), ("affine sigmoid vectors", torch.float32),
    ("actnorm planes", torch.float64), ("lu_linear inverse", torch.float32), ("sweep softplus", torch.float32),
    ("masked_linear gelu", torch.float32), ("mixture", torch.float32), ("polynomial Bernstein", torch.float32),
    ("monotone_net positive", torch.float32), ("rqs K=8", torch.bfloat16),
}  # fmt: skip
STORED_IN_HALF = ("rqs K=8", "rqs K=5", "affine sigmoid", "actnorm rows", "lu_linear", "mixture")


def _cases() -> list:
    cases = [(name, dtype) for name in NAMES for dtype in (torch.float32, torch.float64)]
    cases += [(name, dtype) for name in STORED_IN_HALF for dtype in (torch.bfloat16, torch.float16)]
    marks = [() if c in CHOSEN else pytest.mark.slow for c in cases]
    return [pytest.param(*c, marks=m, id=f"{c[0]}, {str(c[1])[6:]}") for c, m in zip(cases, marks, strict=True)]


@pytest.fixture(autouse=True)
def _blocks(narrow_blocks) -> None:
    """Masked layers have more than one block."""


@functools.cache
def found(name: str, dtype: torch.dtype, how: How) -> Tensors:
    with of_nvcc.running(how) as launches:
        values = results(call(name), "cuda", cast(call(name).tensors(), dtype))
    assert launches, "nothing was launched"
    return values


@pytest.mark.parametrize(("name", "precision"), _cases())
def test_numbers(name, precision) -> None:
    if name in CHAINS:
        with of_nvcc.running(How(EXACT)):
            assert_by_draws(name, precision, "cuda")
    else:
        assert_numbers(name, precision, found(name, precision, How(EXACT)))


RACED = [
    pytest.param(name, seed, marks=() if (name, seed) in (("rqs K=8", 3), ("lu_linear", 0)) else pytest.mark.slow)
    for name in NAMES
    for seed in range(4)
]


@pytest.mark.parametrize(("name", "seed"), RACED)
def test_the_order_of_warps_does_not_matter(name, seed) -> None:
    """The same bits as in lockstep: of a race some order tells."""
    first, other = found(name, torch.float32, How(EXACT)), found(name, torch.float32, How(EXACT, Order(seed)))
    assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_copies_may_land_at_once(name) -> None:
    early = found(name, torch.float32, How(Settings(errs=False, copies="early")))
    assert all(torch.equal(a, b) for a, b in zip(found(name, torch.float32, How(EXACT)), early, strict=True))
