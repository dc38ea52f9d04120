"""Triton's kernels of low-rank maps: their numbers, sums over many tiles, what a bad row may touch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from flowkernels import BackendUnavailableError, ops
from flowkernels.ops import _triton
from flowkernels.ops.low_rank import triton as kernels
from tests.device import UNDER_TEST
from tests.numbers import assert_within_rule
from tests.ops.low_rank_cases import WAYS, drawn
from tests.ops.test_low_rank_kernel import called, orthonormal

runs = pytest.mark.skipif(
    UNDER_TEST.type == "cpu" and not _triton.INTERPRETING, reason="Triton's kernels run on a GPU or interpreted"
)
# Rows of less than a tile and of several; features that fill a power of two or not; Sylvester's columns; layers.
SHAPES = {
    "one row": (1, 4, 2, 3), "one feature": (40, 1, 1, 3), "a few": (5, 5, 4, 3), "tiles": (75, 7, 3, 2),
    "wide": (9, 130, 5, 1),
}  # fmt: skip
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
by_rows = pytest.mark.parametrize("by_row", [False, True], ids=["shared", "by row"])
directions = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


def problem(
    way: dict[str, Any], rows: int, D: int, M: int, n: int, by_row: bool, inverse: bool
) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Tensors and settings: Q itself, so that what is compared is the kernel and no QR."""
    x, params = drawn(way["kind"], rows, D, M, lead=(rows,) * by_row, layers=n, scale=0.5)
    params, settings = orthonormal(way["kind"], params, way)
    x = ops.low_rank(x, params, backend="reference", **settings)[0] if inverse else x
    return [t.to(UNDER_TEST) for t in (x, *params)], {**settings, "inverse": inverse}


@runs
@pytest.mark.interpreted
@pytest.mark.parametrize("shape", SHAPES)
@ways
@by_rows
@directions
def test_numbers(shape, way, by_row, inverse) -> None:
    tensors, settings = problem(way, *SHAPES[shape], by_row, inverse)
    exact, single, found, wide = (
        called(tensors, *how, **settings)
        for how in (
            (torch.float64, "reference"), (torch.float32, "reference"), (torch.float32, "triton"),
            (torch.float64, "triton"),
        )
    )  # fmt: skip
    for i, (mine, theirs, truth) in enumerate(zip(found, single, exact, strict=True)):
        assert_within_rule(mine, theirs, truth, f"result {i}", ulps=16)
    for mine, truth in zip(wide, exact, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-12 * (1 + truth.abs().max().item()))


@runs
@pytest.mark.interpreted
@pytest.mark.parametrize("kind", ["planar", "radial", "sylvester"])
@by_rows
def test_a_program_of_several_tiles(kind, by_row, monkeypatch) -> None:
    """Has the sums of all of them, and the same bits again."""
    tensors, settings = problem({"kind": kind}, 70, 3, 2, 2, by_row, False)
    before = called(tensors, torch.float64, "triton", **settings)
    monkeypatch.setattr(kernels, "_PROGRAMS", 2)
    after, again = (called(tensors, torch.float64, "triton", **settings) for _ in range(2))
    for a, b, c in zip(before, after, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
        assert torch.equal(b, c)


@runs
@pytest.mark.interpreted
@ways
@directions
@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
def test_a_bad_row_stays_in_its_row(way, inverse, bad) -> None:
    tensors, settings = problem(way, 20, 4, 2, 2, True, inverse)
    tensors = [t.float() for t in tensors]
    right = called(tensors, torch.float32, "triton", **settings)
    for i in range(len(tensors)):
        spoiled = [t.clone(memory_format=torch.contiguous_format) for t in tensors]
        spoiled[i][7].view(-1)[0] = bad
        found = called(spoiled, torch.float32, "triton", **settings)
        others = torch.arange(20) != 7
        assert all(torch.equal(a[others], b[others]) for a, b in zip(found, right, strict=True)), i
        if math.isnan(bad):
            assert found[0][7].isnan().any(), i


@runs
@pytest.mark.interpreted
def test_strides_16_bits_and_only_what_is_wanted() -> None:
    x, u, w, b = (t.float() for t in problem({"kind": "planar"}, 30, 6, 1, 2, True, False)[0])
    y, ladj = ops.low_rank(x, (u, w, b), kind="planar", backend="triton")
    turned = x.t().contiguous().t(), u.permute(2, 1, 0).contiguous().permute(2, 1, 0), w[:, :1].expand_as(w)
    found = ops.low_rank(turned[0], (turned[1], w, b), kind="planar", backend="triton")
    assert torch.equal(found[0], y) and torch.equal(found[1], ladj)
    short = ops.low_rank(x.half(), (u.half(), turned[2].half(), b.half()), kind="planar", backend="triton")
    right = ops.low_rank(x.half(), (u.half(), turned[2].half(), b.half()), kind="planar", backend="reference")
    assert short[0].dtype == torch.float16 and short[1].dtype == torch.float32
    torch.testing.assert_close(short[0], right[0], rtol=2e-3, atol=2e-3)
    tensors, _ = problem({"kind": "planar"}, 30, 6, 1, 2, False, False)
    together = called(tensors, torch.float64, "triton", kind="planar")[2:]
    for i, truth in enumerate(together):
        assert torch.equal(called(tensors, torch.float64, "triton", [i], kind="planar")[2], truth)


def test_what_has_no_kernel_is_said() -> None:
    x, params = drawn("sylvester", 4, 40, 33)
    with pytest.raises(BackendUnavailableError, match="more than 32 columns"):
        ops.low_rank(x, params, kind="sylvester", backend="triton")
    x, params = drawn("radial", 1, 2049, 1)
    with pytest.raises(BackendUnavailableError, match="more than 2048 features"):
        ops.low_rank(x, params, kind="radial", backend="triton")
