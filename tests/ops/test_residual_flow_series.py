"""The CPU's kernel of estimated determinants: its numbers, its draws, its terms."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flowkernels import _native, ops
from tests.numbers import assert_within_rule
from tests.ops.residual_cases import WAYS, called, drawn, estimate

pytestmark = pytest.mark.skipif(_native.C is None, reason="the compiled module is missing")
WAY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
INVERSE = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
# Rows, features, hidden layers; draws of noise, four of which go through the layers at a time; weights of terms.
SHAPES: dict[str, tuple[int, int, tuple[int, ...], int, tuple[float, ...]]] = {
    "one row": (1, 4, (3,), 1, (1.0, 1.0, 2.0)), "a few": (5, 5, (8, 8), 4, (1.0, 1.0, 2.0, 4.0, 8.0)),
    "blocks": (133, 9, (20, 13), 5, (1.0, 1.0)), "one feature": (50, 1, (4, 2), 2, (1.0,)),
    "no hidden layer": (40, 7, (), 3, (1.0, 1.0, 2.0)), "deep": (20, 3, (4, 6, 5, 4), 1, (1.0, 1.0, 2.0, 4.0)),
    "long sums": (70, 21, (160,), 1, (1.0,) * 10),
}  # fmt: skip


@pytest.mark.thinned(2)
@pytest.mark.parametrize("shape", SHAPES)
@WAY
@INVERSE
def test_numbers(shape, way, inverse, all_isas) -> None:
    rows, D, hidden, draws, weights = SHAPES[shape]
    x, layers, settings = drawn(way, rows, D, *hidden)
    more = {"inverse": inverse, "lipschitz": 0.9 ** len(layers), **estimate(x, draws, weights)}
    exact, single = (called(way, x, layers, settings, "reference", d, **more) for d in (torch.float64, torch.float32))
    for isa in all_isas:
        found = called(way, x, layers, settings, "cpu", torch.float32, **more)
        for i, (mine, theirs, truth) in enumerate(zip(found, single, exact, strict=True)):
            assert_within_rule(mine, theirs, truth, f"{isa}: result {i}", ulps=16)
        wide = called(way, x, layers, settings, "cpu", torch.float64, **more)
        for mine, truth in zip(wide, exact, strict=True):
            size = truth.abs().max().item() if truth.numel() else 0.0
            torch.testing.assert_close(mine, truth, rtol=1e-11, atol=1e-11 * (1 + size))


def test_more_features_than_a_matrix_may_have(isa) -> None:
    x, layers, settings = drawn(WAYS["betas"], 40, 150, 30)
    more = estimate(x, 2)
    exact, single, found = (
        called({}, x, layers, settings, *how, **more)
        for how in (("reference", torch.float64), ("reference", torch.float32), ("cpu", torch.float32))
    )
    for i, (mine, theirs, truth) in enumerate(zip(found, single, exact, strict=True)):
        assert_within_rule(mine, theirs, truth, f"result {i}", ulps=16)


@INVERSE
def test_terms_of_no_weight_are_as_if_they_were_not(inverse) -> None:
    """A graph has all terms that might be drawn; 0 in between stays a term."""
    x, layers, settings = drawn(WAYS["betas"], 40, 5, 7)
    more: dict[str, Any] = {"inverse": inverse, "lipschitz": 0.82}
    right, longer = (
        called({}, x, layers, settings, "cpu", torch.float64, **more, **estimate(x, 1, weights))
        for weights in ((1.0, 0.0, 2.0), (1.0, 0.0, 2.0, 0.0, 0.0))
    )
    assert all(torch.equal(a, b) for a, b in zip(right, longer, strict=True))
    plain = called({}, x, layers, settings, "reference", torch.float64, **more, **estimate(x, 1, (1.0, 0.0, 2.0)))
    torch.testing.assert_close(right, plain, rtol=1e-11, atol=1e-11)


@INVERSE
def test_noise_of_any_shape_and_strides(inverse) -> None:
    x, layers, settings = drawn(WAYS["betas"], 6, 4, 5)
    more: dict[str, Any] = {"inverse": inverse, "lipschitz": 0.82, "backend": "cpu", **settings, **estimate(x, 3)}
    noise = more.pop("noise")
    expected = ops.residual_flow(x, layers, noise=noise, **more)
    for other in (noise.transpose(1, 2).contiguous().transpose(1, 2), torch.stack([noise, noise], -1)[..., 1]):
        assert all(map(torch.equal, ops.residual_flow(x, layers, noise=other, **more), expected))
    assert all(map(torch.equal, ops.residual_flow(x, layers, noise=torch._neg_view(-noise), **more), expected))
    many = ops.residual_flow(x.view(2, 3, 4), layers, noise=noise.view(3, 2, 3, 4), **more)
    assert torch.equal(many[0].view(6, 4), expected[0]) and torch.equal(many[1].view(6), expected[1])
    one = ops.residual_flow(x[2], layers, noise=noise[:, 2], **more)
    assert torch.equal(one[0], expected[0][2]) and torch.equal(one[1], expected[1][2])
    alike = noise[:1, :1].expand(3, 6, 4)
    right = ops.residual_flow(x, layers, noise=alike.contiguous(), **more)
    assert all(map(torch.equal, ops.residual_flow(x, layers, noise=alike, **more), right))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@WAY
@INVERSE
def test_bits_are_those_without_a_gradient(kind, way, inverse) -> None:
    dtype: torch.dtype = kind
    x, layers, settings = drawn(way, 40, 4, 7, dtype=dtype)
    more = {"inverse": inverse, "lipschitz": 0.82, **settings, **estimate(x, 2)}
    plain = ops.residual_flow(x, layers, backend="cpu", **more)
    kept = ops.residual_flow(x.requires_grad_(), layers, backend="cpu", **more)
    assert all(a.dtype is b.dtype and torch.equal(a, b) for a, b in zip(plain, kept, strict=True))
    found, right = (
        torch.autograd.grad([t.float().sum() for t in ops.residual_flow(x, layers, backend=b, **more)], x)[0]
        for b in ("cpu", "reference")
    )
    assert found.dtype is dtype
    torch.testing.assert_close(found.float(), right.float(), rtol=4 * torch.finfo(dtype).eps, atol=2e-5)


@INVERSE
def test_a_library_op_finds_the_sums_again(inverse) -> None:
    """Of a graph nothing is kept but the inputs."""
    x, layers, settings = drawn(WAYS["betas"], 40, 4, 7)
    more = {"inverse": inverse, "lipschitz": 0.82, **settings, **estimate(x, 2)}
    x.requires_grad_()
    right = torch.autograd.grad([t.sum() for t in ops.residual_flow(x, layers, backend="cpu", **more)], x)
    compiled = torch.compile(ops.residual_flow, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad([t.sum() for t in compiled(x, layers, backend="cpu", **more)], x)
    torch.testing.assert_close(found, right, rtol=0, atol=0)
