"""Triton's kernels of residual maps: their numbers, many tiles, pivots, what a bad row may touch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from flowkernels import BackendUnavailableError, ops
from flowkernels.ops import _triton
from flowkernels.ops.residual_flow import triton as kernels
from tests.device import UNDER_TEST
from tests.numbers import assert_within_rule, worst_of
from tests.ops.residual_cases import HOW, WAYS, called, drawn, estimate

runs = pytest.mark.skipif(
    UNDER_TEST.type == "cpu" and not _triton.INTERPRETING, reason="Triton's kernels run on a GPU or interpreted"
)
INVERSE = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
# Rows of less than a tile and of several; features and units that fill a power of two or not; layers.
SHAPES: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "one row": (1, 4, (3,)), "one feature": (20, 1, (4, 2)), "a few": (5, 5, (8, 16)), "tiles": (75, 6, (20, 13)),
    "no hidden layer": (40, 7, ()), "deep": (20, 3, (4, 6, 5, 4)), "wide": (9, 21, (60,)),
}  # fmt: skip
WIDE_BY = 1e-10  # of a float64 result, and less of the largest


def on_device(*drawn: Any) -> Any:
    """What was drawn, where the kernels run: tensors, pairs of them, settings."""
    moved = [
        t.to(UNDER_TEST) if isinstance(t, torch.Tensor)
        else {k: v.to(UNDER_TEST) if isinstance(v, torch.Tensor) else v for k, v in t.items()} if isinstance(t, dict)
        else [(w.to(UNDER_TEST), b.to(UNDER_TEST)) for w, b in t]
        for t in drawn
    ]  # fmt: skip
    return moved


def assert_right(x: torch.Tensor, layers: Any, settings: dict[str, Any], more: dict[str, Any]) -> None:
    """By the numbers rule in float32, in float64 to almost all of its digits."""
    x, layers, settings, more = on_device(x, layers, settings, more)
    exact, single, found, wide = (
        called({}, x, layers, settings, *how, **more)
        for how in (
            ("reference", torch.float64), ("reference", torch.float32), ("triton", torch.float32),
            ("triton", torch.float64),
        )
    )  # fmt: skip
    for i, (mine, theirs, truth) in enumerate(zip(found, single, exact, strict=True)):
        assert_within_rule(mine, theirs, truth, f"result {i}", ulps=16)
    for mine, truth in zip(wide, exact, strict=True):
        size = truth.abs().max().item() if truth.numel() else 0.0
        torch.testing.assert_close(mine, truth, rtol=WIDE_BY, atol=WIDE_BY / 10 * (1 + size))


@runs
@pytest.mark.interpreted
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@INVERSE
def test_numbers(shape, way, inverse) -> None:
    rows, D, hidden = SHAPES[shape]
    x, layers, settings = drawn(way, rows, D, *hidden)
    assert_right(x, layers, settings, {"inverse": inverse, "lipschitz": 0.9 ** len(layers)})


@runs
@pytest.mark.interpreted
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("draws", [1, 5])
@INVERSE
def test_numbers_of_estimates(shape, draws, inverse) -> None:
    """Of one draw, and of more than go through the layers at a time."""
    rows, D, hidden = SHAPES[shape]
    x, layers, settings = drawn(WAYS["preactivated"], rows, D, *hidden)
    assert_right(x, layers, settings, {"inverse": inverse, "lipschitz": 0.9 ** len(layers), **estimate(x, draws)})


@runs
@pytest.mark.interpreted
@HOW
@INVERSE
@pytest.mark.parametrize(("rows", "D"), [(36, 3), (5, 18)], ids=["many rows", "many directions"])
def test_programs_of_several_tiles(how, inverse, rows, D, monkeypatch) -> None:
    """Fewer rows, directions and draws at a time, and one program for many tiles: the sums of all, twice the same."""
    x, layers, settings = drawn(WAYS["betas"], rows, D, 18)
    more = {"inverse": inverse, "lipschitz": 0.82, **(estimate(x, 3) if how(x) else {})}
    x, layers, settings, more = on_device(x, layers, settings, more)
    before = called({}, x, layers, settings, "triton", torch.float64, **more)
    for name, value in (("_PROGRAMS", 2), ("_ROWS", 16), ("_LANES", 16), ("_LANES_BACK", 16), ("_DRAWS", 1)):
        monkeypatch.setattr(kernels, name, value)
    kernels._constants.cache_clear()
    after, again = (called({}, x, layers, settings, "triton", torch.float64, **more) for _ in range(2))
    kernels._constants.cache_clear()
    for a, b, c in zip(before, after, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert torch.equal(b, c)


@runs
@pytest.mark.interpreted
@pytest.mark.parametrize("D", [2, 3, 8, 20])
def test_a_determinant_of_any_matrix(D) -> None:
    """Of weights that nobody has bounded: pivots of 0 and small ones, other ones in every row; and its gradients."""
    g = torch.Generator().manual_seed(D)
    layers = [
        (3 * torch.randn(n, m, generator=g, dtype=torch.float64), torch.zeros(n).double()) for n, m in ((7, D), (D, 7))
    ]
    if D == 2:  # I + J = [[0, 1], [1, 0]]
        layers = [(torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).double(), torch.zeros(2).double())]
    x = torch.randn(20, D, generator=g, dtype=torch.float64)
    x, layers = on_device(x, layers)
    right, found = (called({}, x, layers, {"activation": "tanh"}, b, torch.float64) for b in ("reference", "triton"))
    for mine, truth in zip(found, right, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-8, atol=1e-9 * float(truth.abs().max()))


@runs
@pytest.mark.interpreted
@pytest.mark.parametrize("scale", [1e-30, 1e3, 1e30])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@INVERSE
def test_values_far_out(way, scale, inverse) -> None:
    """Of weights that differ a little, eager errs by as much as it may: where x is next to nothing all rows are one
    draw of its roundings."""
    x, layers, settings = drawn(way, 20, 4, 6)
    x, layers, settings = on_device(scale * x, layers, settings)
    kinds, more = (torch.float32, torch.float64), {"inverse": inverse, "lipschitz": 0.82}
    draws = []
    for by in (1, 0.998, 0.996, 0.994, 0.992):
        near = [(by * w, b) for w, b in layers]
        draws.append([called({}, x, near, settings, "reference", kind, **more) for kind in kinds])
    found = called({}, x, layers, settings, "triton", torch.float32, **more)
    for i, (mine, truth) in enumerate(zip(found, draws[0][1], strict=True)):
        theirs = worst_of(truth, [(single[i], exact[i]) for single, exact in draws])
        assert_within_rule(mine, theirs, truth, f"result {i}", ulps=16)


@runs
@pytest.mark.interpreted
@HOW
@INVERSE
@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
def test_a_bad_row_stays_in_its_row(how, inverse, bad) -> None:
    x, layers, settings = drawn(WAYS["tanh"], 20, 5, 7)
    x, layers, more = on_device(x, layers, {"inverse": inverse, "lipschitz": 0.82, **how(x)})
    worse = x.clone()
    worse[3, 2] = bad
    right, found = (called({}, v, layers, settings, "triton", torch.float64, **more)[:3] for v in (x, worse))
    rest = torch.arange(20) != 3
    assert all(torch.equal(a[rest], b[rest]) for a, b in zip(found, right, strict=True))
    assert not (found[0][3].isfinite().all() and found[1][3].isfinite())


@runs
@pytest.mark.interpreted
def test_strides_16_bits_and_only_what_is_wanted() -> None:
    x, layers, settings = drawn(WAYS["betas"], 6, 4, 5, dtype=torch.float32)
    x, layers, settings = on_device(x, layers, settings)
    expected = ops.residual_flow(x, layers, backend="triton", **settings)
    turned = [(w.T.contiguous().T, torch.stack([b, b], -1)[:, 0]) for w, b in layers]
    found = ops.residual_flow(torch.stack([x, x], -1)[..., 1].view(2, 3, 4), turned, backend="triton", **settings)
    assert torch.equal(found[0].view(6, 4), expected[0]) and torch.equal(found[1].view(6), expected[1])
    halves = [(w.half(), b.half()) for w, b in layers]
    settings["betas"] = settings["betas"].half()
    short, right = (
        ops.residual_flow(x.half(), halves, backend=backend, **settings) for backend in ("triton", "reference")
    )
    assert short[0].dtype == torch.float16 and short[1].dtype == torch.float32
    torch.testing.assert_close(short[0], right[0], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(short[1], right[1], rtol=1e-5, atol=1e-5)
    for inverse in (False, True):
        more: dict[str, Any] = {"inverse": inverse, "lipschitz": 0.82, "backend": "triton", "activation": "elu"}
        leaves = [t.double().requires_grad_() for t in (x, *(t for layer in layers for t in layer))]

        def call(leaves: list[torch.Tensor], more: dict[str, Any] = more) -> torch.Tensor:
            y, ladj = ops.residual_flow(leaves[0], list(zip(leaves[1::2], leaves[2::2], strict=True)), **more)
            return y.cos().sum() + ladj.sum()

        both = torch.autograd.grad(call(leaves), leaves)
        for i, right in enumerate(both):
            alone = [t if j == i else t.detach() for j, t in enumerate(leaves)]
            torch.testing.assert_close(torch.autograd.grad(call(alone), leaves[i])[0], right, rtol=1e-12, atol=1e-12)


def test_what_has_no_kernel_is_said() -> None:
    wide, layers, _ = drawn(WAYS["elu"], 2, 129, dtype=torch.float32)
    with pytest.raises(BackendUnavailableError, match="more than 128 numbers a row"):
        ops.residual_flow(wide, layers, backend="triton")
    x, layers, _ = drawn(WAYS["elu"], 2, 4, 65)
    with pytest.raises(BackendUnavailableError, match="more than 64 numbers a row"):
        ops.residual_flow(x, layers, backend="triton")
    x, layers, _ = drawn(WAYS["elu"], 2, 4, 8)
    with pytest.raises(BackendUnavailableError, match="no kernel has an estimate's own gradient"):
        ops.residual_flow(x, layers, neumann=False, backend="triton", **estimate(x))
