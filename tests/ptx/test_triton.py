"""Triton's kernels as compiled for GPUs that are not here: run on the CPU, and right by the numbers rule."""

from __future__ import annotations

import functools

import pytest
import torch

from flowkernels.ops import _triton
from tests.ptx.calls import CALLS, CHAINS, Tensors, assert_by_draws, assert_numbers, call, results

if _triton.INTERPRETING:
    pytest.skip("what the interpreter has defined cannot be compiled", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from tests.ops.channels import cast
from tests.ptx import of_triton
from tests.ptx.machine import Settings
from tests.ptx.running import How
from tests.ptx.scheduler import Order

pytestmark = pytest.mark.usefixtures("poison", "one_thread")
# Instructions that err at random do so beyond the rule, which is of formulas and roundings.
EXACT = Settings(errs=False)
WIDE, HALF = (torch.float32, torch.float64), (torch.bfloat16, torch.float16)
# Compiling one takes a second or two: these alone in every run.
CHOSEN = {
    ("rqs K=8 odd rows", torch.float32), ("affine sigmoid", torch.float32), ("actnorm rows", torch.float32),
    ("lu_linear", torch.float32), ("masked_linear relu", torch.bfloat16), ("sweep softplus", torch.float32),
    ("monotone_net positive inverse", torch.float32), ("flow_layer spline", torch.float32),
    ("block_made inverse", torch.float32),
    ("residual_flow", torch.float32),
}  # fmt: skip
STORED_IN_HALF = (
    "rqs K=8", "affine sigmoid", "actnorm rows", "lu_linear", "masked_linear", "masked_linear relu",
    "flow_layer affine inverse",
)  # fmt: skip


def _cases() -> list:
    """Every call in float32 and float64, those of whom 16 bits ask other code in them, too."""
    cases = [(name, dtype) for name in CALLS for dtype in WIDE if "tf32" not in name or dtype is torch.float32]
    cases += [(name, dtype) for name in STORED_IN_HALF for dtype in HALF]
    marks = [() if c in CHOSEN else pytest.mark.slow for c in cases]
    return [pytest.param(*c, marks=m, id=f"{c[0]}, {str(c[1])[6:]}") for c, m in zip(cases, marks, strict=True)]


@functools.cache
def found(name: str, dtype: torch.dtype, target: str, how: How) -> Tensors:
    with of_triton.running(target, how) as launches:
        values = results(call(name), "triton", cast(call(name).tensors(), dtype))
    assert launches, "nothing was launched"
    return values


@pytest.mark.parametrize(("name", "precision"), _cases())
def test_numbers(name, precision) -> None:
    if name in CHAINS:
        with of_triton.running("sm_80", How(EXACT)):
            assert_by_draws(name, precision, "triton")
    else:
        assert_numbers(name, precision, found(name, precision, "sm_80", How(EXACT)))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CALLS if "tf32" not in name and name not in CHAINS])
def test_numbers_on_sm_90(name) -> None:
    """16-bit and tf32 products are wgmma there, which is outside of the subset."""
    assert_numbers(name, torch.float32, found(name, torch.float32, "sm_90", How(EXACT)))


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("config", [1, 2])
def test_other_configs_of_tuned_kernels(name, config) -> None:
    if not name.startswith("masked"):
        pytest.skip("no tuned kernel")
    with of_triton.running("sm_80", How(EXACT), config=config):
        assert_numbers(name, torch.float32, results(call(name), "triton", cast(call(name).tensors(), torch.float32)))


RACED_ALWAYS = (
    ("lu_linear", 0), ("actnorm rows", 3), ("mixture", 1), ("low_rank planar", 3), ("flow_layer spline", 3),
    ("block_made", 3),
    ("residual_flow inverse", 2),
)  # fmt: skip
RACED = [
    pytest.param(name, seed, marks=() if (name, seed) in RACED_ALWAYS else pytest.mark.slow)
    for name in CALLS
    for seed in range(4)
]


@pytest.mark.parametrize(("name", "seed"), RACED)
def test_the_order_of_warps_does_not_matter(name, seed) -> None:
    """The same bits as in lockstep: of a race some order tells."""
    first = found(name, torch.float32, "sm_80", How(EXACT))
    other = found(name, torch.float32, "sm_80", How(EXACT, Order(seed)))
    assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_approximate_instructions_at_their_worst(name) -> None:
    """Within what relative errors of 2^-22 of exponentials move: far from what an instruction too few would."""
    exact, off = (found(name, torch.float32, "sm_80", How(Settings(errs=errs))) for errs in (False, True))
    for a, b in zip(exact, off, strict=True):
        scale = a.abs().max().clamp_min(1)
        assert (a - b).abs().max() <= 1e-3 * scale
