"""Triton's kernels of block autoregressive maps: their numbers, tiles and splits, roots, what a bad row may touch."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from flowkernels import BackendUnavailableError, ops
from flowkernels.ops import _triton
from flowkernels.ops.block_made import triton as kernels
from flowkernels.ops.block_made.reference import ACTIVATIONS, RESIDUALS
from tests.device import UNDER_TEST
from tests.numbers import assert_within_rule
from tests.ops.test_block_made_kernel import called, drawn

runs = pytest.mark.skipif(
    UNDER_TEST.type == "cpu" and not _triton.INTERPRETING, reason="Triton's kernels run on a GPU or interpreted"
)
# Rows of a tile that is not full and of several; a feature's units that fill places or not; features of several tiles.
SHAPES = {
    "one row": (1, 4, (3,)), "a few": (4, 5, (8, 8)), "tiles": (270, 6, (5, 3)), "one feature": (50, 1, (4, 2)),
    "no hidden layer": (40, 7, ()), "long sums": (9, 18, (4, 3)), "wide": (9, 3, (16, 9)),
    "widest": (9, 2, (40, 33)),
}  # fmt: skip
# Every residual with every activation, each pair in two of the shapes: the interpreter is slow.
CASES = list(
    itertools.islice(zip(itertools.cycle(SHAPES), itertools.cycle(itertools.product(RESIDUALS, ACTIVATIONS))), 24)
)  # fmt: skip
directions = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


def problem(
    shape: tuple[int, int, tuple[int, ...]], residual: str, inverse: bool, norms: bool, **settings: Any
) -> tuple[list[torch.Tensor], int]:
    """x and the tensors of layers; of an inverse what their map returns."""
    tensors, each = drawn(*shape, norms=norms)
    if inverse:
        tensors[0] = called(tensors, each, residual, torch.float64, "reference", **settings)[0]
    return tensors, each


@runs
@pytest.mark.interpreted
@pytest.mark.parametrize(("shape", "way"), CASES, ids=lambda v: v if isinstance(v, str) else " ".join(v))
@directions
def test_numbers(shape, way, inverse) -> None:
    residual, activation = way
    if inverse and residual == "none":
        return  # its slopes vanish in the tails: below, of what has an inverse to all digits
    settings: dict[str, Any] = {"activation": activation, "eps": 0.01 if shape == "tiles" else 0.0}
    # Of one feature a row is one weight, whose gradient beside a norm is roundings alone, the truth's too.
    norms = len(SHAPES[shape][2]) == 2 and shape != "one feature"
    tensors, each = problem(SHAPES[shape], residual, inverse, norms, **settings)
    settings["inverse"] = inverse
    exact, single, found = (
        called(tensors, each, residual, *how, **settings)
        for how in ((torch.float64, "reference"), (torch.float32, "reference"), (torch.float32, "triton"))
    )
    for i, (mine, theirs, truth) in enumerate(zip(found, single, exact, strict=True)):
        assert_within_rule(mine, theirs, truth, f"result {i}", ulps=16)
    if shape == "widest":  # of which float64 has no kernel
        return
    wide = called(tensors, each, residual, torch.float64, "triton", **settings)
    for mine, truth in zip(wide, exact, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-10 * (1 + truth.abs().max().item()))


@runs
@pytest.mark.interpreted
@directions
def test_a_program_of_several_tiles_and_a_gradient_of_several_splits(inverse, monkeypatch) -> None:
    """The same numbers, and the same bits again."""
    tensors, each = problem((70, 4, (3, 2)), "gated", inverse, True)
    before = called(tensors, each, "gated", torch.float64, "triton", inverse=inverse)
    for name, number in (("_ROWS", 16), ("_PROGRAMS", 2), ("_OF_SPLIT", 32)):
        monkeypatch.setattr(kernels, name, number)
    after, again = (called(tensors, each, "gated", torch.float64, "triton", inverse=inverse) for _ in range(2))
    for a, b, c in zip(before, after, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert torch.equal(b, c)


@runs
@pytest.mark.interpreted
@directions
@pytest.mark.parametrize("activation", ["tanh", "elu"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_a_bad_row_stays_in_its_row(inverse, activation, bad) -> None:
    tensors, each = problem((20, 4, (3, 2)), "sum", inverse, False, activation=activation)
    settings: dict[str, Any] = {"activation": activation, "inverse": inverse}
    right = called(tensors, each, "sum", torch.float32, "triton", **settings)
    tensors[0] = tensors[0].clone()
    tensors[0][7, 1] = bad
    found = called(tensors, each, "sum", torch.float32, "triton", **settings)
    others = torch.arange(20) != 7
    for a, b in zip(found[:3], right[:3], strict=True):  # y, ladj and the gradient of x
        assert torch.equal(a[others], b[others])
    if math.isnan(bad) or inverse:
        assert found[0][7, 1].isnan() and found[1][7].isnan()


@runs
@pytest.mark.interpreted
def test_a_value_outside_of_a_bounded_map_has_no_inverse() -> None:
    tensors, each = drawn(5, 2, (3,), norms=False)
    layers = [tuple(t.to(UNDER_TEST) for t in tensors[at : at + 2]) for at in range(1, len(tensors), each)]
    x = tensors[0].to(UNDER_TEST)
    y = ops.block_made(x, layers, backend="triton")[0]  # type: ignore[arg-type]
    y[1, 0], y[3, 1] = 1e3, -1e3
    back, ladj = ops.block_made(y, layers, inverse=True, backend="triton")  # type: ignore[arg-type]
    assert back[1].isnan().all() and back[3, 1].isnan() and ladj[[1, 3]].isnan().all()
    torch.testing.assert_close(back[[0, 2, 4]], x[[0, 2, 4]], rtol=1e-6, atol=1e-6)


@runs
@pytest.mark.interpreted
@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "elu"])
def test_a_plateau_gives_its_near_end(activation, kind) -> None:
    """Steep units, flat between their steps: a step of Newton's there is any number, 1e9 or more."""
    eps = torch.finfo(kind).eps
    x = torch.arange(-8, 9).to(kind).unsqueeze(1)
    for seed in (4, 9, 22):
        torch.manual_seed(seed)
        layers = [
            tuple((torch.randint(-6, 7, s) / 2 + by).to(UNDER_TEST, kind) for s, by in (((b, a), 0.25), ((b,), 0.0)))
            for a, b in ((1, 3), (3, 1))
        ]
        settings: dict[str, Any] = {"activation": activation, "backend": "triton"}
        y, _ = ops.block_made(x.to(UNDER_TEST), layers, **settings)  # type: ignore[arg-type]
        found, ladj = ops.block_made(y, layers, inverse=True, **settings)  # type: ignore[arg-type]
        again, _ = ops.block_made(found, layers, **settings)  # type: ignore[arg-type]
        is_one = ~found.isnan()
        assert bool(is_one.any()) and bool((is_one.squeeze(1) == ~ladj.isnan()).all())
        assert bool((found.abs() <= 100)[is_one].all())
        assert bool(((again - y).abs() <= 16 * eps * (y.abs() + 10))[is_one].all())


@runs
@pytest.mark.interpreted
@pytest.mark.parametrize("gate", [0.0, 2.0, -3.0])
def test_a_gated_slope_near_1_keeps_its_digits(gate) -> None:
    """log(s + (1 - s) e^l) is small beside log s where l is small."""
    share = torch.tensor(gate).double().sigmoid()
    for log in torch.tensor([1e-3, -1e-4, 1e-6, -2.0, 5.0]):
        layers = [(log.view(1, 1).to(UNDER_TEST), torch.zeros(1, device=UNDER_TEST))]
        given = torch.tensor(gate, device=UNDER_TEST)
        _, ladj = ops.block_made(torch.ones(1, 1, device=UNDER_TEST), layers, residual=given, backend="triton")
        exact = torch.log1p((1 - share) * torch.expm1(log.double()))
        torch.testing.assert_close(ladj.cpu().double(), exact.view(1), rtol=1e-6, atol=0)


@runs
@pytest.mark.interpreted
@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
def test_slopes_whose_terms_are_far_apart(kind) -> None:
    """Logarithms of weights and of slopes that differ by more than a number's exponent holds; units of no slope."""
    far = 150.0 if kind is torch.float32 else 900.0
    first = torch.tensor([[0.0], [0.0]]), torch.tensor([0.0, far / 2])
    last = torch.tensor([[-far, -3.0]]), torch.tensor([0.1])
    tensors = [t.double() for t in (torch.tensor([[0.3], [-0.2], [1.0]]), *first, *last)]
    exact = called(tensors, 2, "none", torch.float64, "reference")
    found = called(tensors, 2, "none", kind, "triton")
    for mine, truth in zip(found, exact, strict=True):
        torch.testing.assert_close(mine.double(), truth, rtol=1e-5, atol=1e-5)
    none = [(torch.tensor([[-math.inf], [0.0]]), torch.zeros(2)), (torch.tensor([[0.0, -math.inf]]), torch.zeros(1))]
    layers = [tuple(t.to(UNDER_TEST, kind) for t in layer) for layer in none]
    y, ladj = ops.block_made(torch.tensor([[0.5]]).to(UNDER_TEST, kind), layers, backend="triton")  # type: ignore[arg-type]
    assert y.item() == 0 and ladj.item() == -math.inf


@runs
@pytest.mark.interpreted
def test_strides_16_bits_and_only_what_is_wanted() -> None:
    tensors, each = drawn(12, 3, (2, 2), norms=True)
    for kind in (torch.float32, torch.float16):
        x, *rest = (t.to(UNDER_TEST, kind) for t in tensors)
        gate = torch.tensor(0.4, dtype=kind, device=UNDER_TEST)

        def call(x: torch.Tensor, rest: list[torch.Tensor], backend: str, gate: Any = gate) -> tuple[torch.Tensor, ...]:
            layers = [tuple(rest[at : at + 2]) for at in range(0, len(rest), each)]
            return ops.block_made(x, layers, log_norms=rest[2::3], residual=gate, backend=backend)  # type: ignore[arg-type]

        y, ladj = call(x, rest, "triton")
        turned = call(x.t().contiguous().t(), [t.t().contiguous().t() for t in rest], "triton")
        assert torch.equal(turned[0], y) and torch.equal(turned[1], ladj)
        right = call(x, rest, "reference")
        assert y.dtype is kind and ladj.dtype is torch.float32
        torch.testing.assert_close((y, ladj), right, rtol=2e-3, atol=2e-3 if kind is torch.float16 else 1e-5)
    for inverse in (False, True):
        leaves = [t.to(UNDER_TEST).requires_grad_() for t in tensors]

        def both(leaves: list[torch.Tensor], inverse: bool = inverse) -> tuple[torch.Tensor, ...]:
            layers = [tuple(leaves[at : at + 2]) for at in range(1, len(leaves), each)]
            settings: Any = {"residual": True, "inverse": inverse, "backend": "triton"}
            return ops.block_made(leaves[0], layers, log_norms=leaves[3::3], **settings)  # type: ignore[arg-type]

        y, ladj = both(leaves)
        together = torch.autograd.grad([y.sum(), ladj.sum()], leaves, retain_graph=True)
        of_y, of_ladj = (torch.autograd.grad(t.sum(), leaves, retain_graph=True) for t in (y, ladj))
        for a, b, c in zip(of_y, of_ladj, together, strict=True):
            torch.testing.assert_close(a + b, c, rtol=1e-10, atol=1e-10)
        for i in (0, 1, 3):  # x, a weight, a norm
            y, ladj = both([t if j == i else t.detach() for j, t in enumerate(leaves)])
            assert torch.equal(torch.autograd.grad([y.sum(), ladj.sum()], leaves[i])[0], together[i])
        empty = [leaves[0][:0], *leaves[1:]]
        y, ladj = both(empty)
        assert y.shape == (0, 3) and ladj.shape == (0,)
        assert not any(g.any() for g in torch.autograd.grad([y.sum(), ladj.sum()], leaves[1:]))


@pytest.mark.parametrize(
    ("D", "units", "kind", "reason"),
    [
        (2, (65,), torch.float32, "more than 64 units a feature"),
        (2, (17,), torch.float64, "more than 16 units a feature"),
        (200, (41,), torch.float32, "more than 8192 units"),
        (1, (1,) * 16, torch.float32, "more than 16 layers"),
    ],
)
def test_what_has_no_kernel_is_said(D, units, kind, reason) -> None:
    tensors, each = drawn(1, D, units, norms=False)
    x, *rest = (t.to(kind) for t in tensors)
    layers = [tuple(rest[at : at + 2]) for at in range(0, len(rest), each)]
    with pytest.raises(BackendUnavailableError, match=reason):
        ops.block_made(x, layers, backend="triton")  # type: ignore[arg-type]
