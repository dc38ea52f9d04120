"""The CPU's kernel of block autoregressive maps: its numbers, its tiles, what it keeps, and the gate in front of it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import _native, ops
from flowkernels.ops.block_made.reference import ACTIVATIONS, RESIDUALS
from tests.numbers import assert_within_rule
from tests.ops.gate import assert_refused, told

pytestmark = pytest.mark.skipif(_native.C is None, reason="the compiled module is missing")
# Rows of a few, of half a block, of a block and of several tiles; units that fill panels and that do not.
SHAPES = {
    "one row": (1, 4, (3,)), "a few": (4, 5, (8, 8)), "half a block": (7, 3, (2,)), "a block": (32, 6, (5, 3)),
    "tiles": (333, 6, (8, 8)), "one feature": (50, 1, (4, 2)), "no hidden layer": (40, 7, ()),
    "long sums": (70, 40, (8, 4)),
}  # fmt: skip


def drawn(rows: int, D: int, units: tuple[int, ...], norms: bool) -> tuple[list[Tensor], int]:
    """x and the tensors of the layers behind it, in float64; how many belong to a layer."""
    g = torch.Generator().manual_seed(rows + D)
    tensors = [torch.randn(rows, D, generator=g, dtype=torch.float64)]
    for a, b in itertools.pairwise((1, *units, 1)):
        tensors.append(0.5 * torch.randn(D * b, D * a, generator=g, dtype=torch.float64))
        tensors += [0.5 * torch.randn(D * b, generator=g, dtype=torch.float64) for _ in range(1 + norms)]
    return tensors, 2 + norms


def called(
    tensors: list[Tensor], each: int, residual: str, dtype: torch.dtype, backend: str | None, **settings: Any
) -> list[Tensor]:
    """y, ladj and every gradient, in a dtype."""
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    gate = torch.tensor(0.4, dtype=dtype, requires_grad=True)
    layers = [tuple(leaves[at : at + 2]) for at in range(1, len(leaves), each)]
    given: Any = {"none": False, "sum": True, "gated": gate}[residual]
    norms = leaves[3::3] if each == 3 else None
    y, ladj = ops.block_made(leaves[0], layers, log_norms=norms, residual=given, backend=backend, **settings)  # type: ignore[arg-type]
    wanted = [*leaves, gate] if residual == "gated" else leaves
    weights = (torch.linspace(-1, 1.5, t.numel(), dtype=torch.float64).view_as(t).cos().to(t.dtype) for t in (y, ladj))
    return [y.detach(), ladj.detach(), *torch.autograd.grad([y, ladj], wanted, [*weights])]


@pytest.mark.thinned(3)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_numbers(shape, residual, activation, inverse, isa) -> None:
    rows, D, units = SHAPES[shape]
    tensors, each = drawn(rows, D, units, norms=len(units) == 2)
    if inverse and residual == "none":
        return  # its slopes vanish in the tails: below, of what has an inverse to all digits
    settings: dict[str, Any] = {"activation": activation, "eps": 0.01 if shape == "tiles" else 0.0}
    if inverse:
        tensors[0] = called(tensors, each, residual, torch.float64, "reference", **settings)[0]
    settings["inverse"] = inverse
    exact, single, found = (
        called(tensors, each, residual, *how, **settings)
        for how in ((torch.float64, "reference"), (torch.float32, "reference"), (torch.float32, "cpu"))
    )
    for i, (mine, theirs, truth) in enumerate(zip(found, single, exact, strict=True)):
        assert_within_rule(mine, theirs, truth, f"result {i}", ulps=16)
    wide = called(tensors, each, residual, torch.float64, "cpu", **settings)
    for mine, truth in zip(wide, exact, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-10 * (1 + truth.abs().max().item()))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("norms", [False, True])
def test_second_gradients_agree_with_the_first(inverse, norms) -> None:
    """The kernel's gradients, and those of the reference that `create_graph` asks for, are of the same function."""
    tensors, each = drawn(3, 3, (2,), norms)

    def call(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        layers = [leaves[at : at + 2] for at in range(1, len(leaves), each)]
        given = leaves[3::3] if norms else None
        return ops.block_made(leaves[0], layers, log_norms=given, residual=True, inverse=inverse)  # type: ignore[arg-type]

    leaves = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves, atol=1e-4)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
def test_slopes_whose_terms_are_far_apart(kind, isa) -> None:
    """Logarithms of weights and of slopes that differ by more than a number's exponent holds: pair by pair."""
    far = 150.0 if kind is torch.float32 else 900.0
    # Of two units one has a slope that vanishes beside the other's, and a weight that makes up for it.
    first = torch.tensor([[0.0], [0.0]]), torch.tensor([0.0, far / 2])
    last = torch.tensor([[-far, -3.0]]), torch.tensor([0.1])
    tensors = [torch.tensor([[0.3], [-0.2], [1.0]]), *first, *last]
    exact = called([t.double() for t in tensors], 2, "none", torch.float64, "reference")
    found = called([t.double() for t in tensors], 2, "none", kind, "cpu")
    assert exact[1].abs().min() > far / 2
    for i, (mine, truth) in enumerate(zip(found, exact, strict=True)):
        torch.testing.assert_close(mine.double(), truth, rtol=1e-5, atol=1e-5, msg=lambda m, i=i: f"result {i}: {m}")


@pytest.mark.parametrize("gate", [0.0, 2.0, -3.0])
def test_a_gated_slope_near_1_keeps_its_digits(gate, isa) -> None:
    """log(s + (1 - s) e^l) is small beside log s where l is small."""
    logs = torch.tensor([1e-3, -1e-4, 1e-6, -2.0, 5.0])
    share = torch.tensor(gate).double().sigmoid()
    for log in logs:
        _, ladj = ops.block_made(
            torch.ones(1, 1), [(log.view(1, 1), torch.zeros(1))], residual=torch.tensor(gate), backend="cpu"
        )
        exact = torch.log1p((1 - share) * torch.expm1(log.double()))
        torch.testing.assert_close(ladj.double(), exact.view(1), rtol=1e-6, atol=0)


def test_a_row_of_zero_weights_has_a_slope_of_zero() -> None:
    """exp(-inf) on a block: the logarithm of a slope that is none."""
    layers = [
        (torch.tensor([[-torch.inf], [0.0]]), torch.zeros(2)),
        (torch.tensor([[0.0, -torch.inf]]), torch.zeros(1)),
    ]
    y, ladj = ops.block_made(torch.tensor([[0.5]]), layers, backend="cpu")
    assert y.item() == 0 and ladj.item() == -torch.inf


@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "elu"])
def test_a_plateau_gives_its_near_end(activation, kind, isa) -> None:
    """Steep units, flat between their steps: a step of Newton's there is any number, 1e9 or more."""
    eps = torch.finfo(kind).eps
    x = torch.arange(-8, 9).to(kind).unsqueeze(1)
    for seed in (4, 5, 9, 15, 22):
        torch.manual_seed(seed)
        layers = [
            ((torch.randint(-6, 6, (b, a)) / 2 + 0.25).to(kind), (torch.randint(-6, 7, (b,)) / 2).to(kind))
            for a, b in ((1, 3), (3, 1))
        ]
        settings: dict[str, Any] = {"activation": activation}
        on, _ = ops.block_made(x, layers, backend="cpu", **settings)
        for y in (on, on * (1 + 4 * eps), on * (1 - 4 * eps)):
            found, ladj = ops.block_made(y, layers, inverse=True, backend="cpu", **settings)
            plain, _ = ops.block_made(y, layers, inverse=True, backend="reference", **settings)
            again, _ = ops.block_made(found, layers, backend="cpu", **settings)
            is_one = ~found.isnan()
            assert bool((is_one | plain.isnan()).all()) and bool((is_one.squeeze(1) == ~ladj.isnan()).all())
            assert bool((found.abs() <= 2 * plain.abs() + 1)[~plain.isnan()].all())
            assert bool((found.abs() <= 100)[is_one].all())
            assert bool(((again - y).abs() <= 16 * eps * (y.abs() + 10))[is_one].all())


@pytest.mark.parametrize("inverse", [False, True])
def test_bits_do_not_depend_on_threads_or_neighbours(inverse) -> None:
    tensors, each = drawn(500, 6, (8, 8), True)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(called(tensors, each, "sum", torch.float32, "cpu", inverse=inverse)[:3])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    some = [tensors[0][37:170], *tensors[1:]]
    found = called(some, each, "sum", torch.float32, "cpu", inverse=inverse)
    assert torch.equal(found[0], results[0][0][37:170]) and torch.equal(found[1], results[0][1][37:170])


@pytest.mark.parametrize("inverse", [False, True])
def test_what_is_kept_for_backward(inverse) -> None:
    """The inputs; of an inverse a copy of x too."""
    tensors, each = drawn(64, 5, (8, 8), True)
    leaves = [t.requires_grad_() for t in tensors]
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layers = [tuple(leaves[at : at + 2]) for at in range(1, len(leaves), each)]
        ops.block_made(leaves[0], layers, log_norms=leaves[3::3], residual=True, inverse=inverse)  # type: ignore[arg-type]
    given = {t.data_ptr() for t in leaves}
    assert [t.shape for t in kept if t.data_ptr() not in given] == [leaves[0].shape] * inverse


def test_only_what_is_wanted() -> None:
    """Each gradient by itself is what it is among all."""
    tensors, each = drawn(40, 4, (3, 2), True)
    leaves = [t.requires_grad_() for t in tensors]
    for inverse in (False, True):
        layers = [tuple(leaves[at : at + 2]) for at in range(1, len(leaves), each)]
        y, ladj = ops.block_made(leaves[0], layers, log_norms=leaves[3::3], residual=True, inverse=inverse)  # type: ignore[arg-type]
        both = torch.autograd.grad([y.sum(), ladj.sum()], leaves)
        for i, right in enumerate(both):
            alone = [t if j == i else t.detach() for j, t in enumerate(leaves)]
            layers = [tuple(alone[at : at + 2]) for at in range(1, len(alone), each)]
            y, ladj = ops.block_made(alone[0], layers, log_norms=alone[3::3], residual=True, inverse=inverse)  # type: ignore[arg-type]
            (found,) = torch.autograd.grad([y.sum(), ladj.sum()], [leaves[i]])
            torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
        of_y, of_ladj = (
            torch.autograd.grad(
                ops.block_made(leaves[0], [tuple(leaves[at : at + 2]) for at in range(1, len(leaves), each)],  # type: ignore[arg-type]
                               log_norms=leaves[3::3], residual=True, inverse=inverse)[which].sum(), leaves)
            for which in (0, 1)
        )  # fmt: skip
        for a, b, c in zip(of_y, of_ladj, both, strict=True):
            torch.testing.assert_close(a + b, c, rtol=1e-10, atol=1e-10)


# ---- the gate in C++ ----

R = torch.zeros
NET: dict[str, Any] = {
    "rows": 5, "features": 3, "activation": 0, "residual": 0, "inverse": False, "eps": 0.0,
    "norms": True,
    "tensors": [R(6, 3), R(6), R(6), R(3, 6), R(3), R(3)], "grads": [R(6, 3), R(6), R(6), R(3, 6), R(3), R(3)],
}  # fmt: skip


def replaced(i: int, t: Any, name: str = "tensors") -> dict[str, Any]:
    found = list(NET[name])
    found[i] = t
    return {name: found}


def huge(*shape: int) -> Any:
    return told(R(1, 1), shape=shape, stride=(0, 1)[2 - len(shape) :])


N = 3 * 2**29  # units
NETS = {
    "no rows": ({"rows": 0}, "rows must be from 1"),
    "too many rows": ({"rows": 2**60}, "must be a product of sizes below 2**63"),
    "no features": ({"features": 0}, "features must be from 1"),
    "an activation": ({"activation": 4}, "activation must be from 0 to 3, got 4"),
    "a residual": ({"residual": 3}, "residual must be from 0 to 2, got 3"),
    "no layers": ({"tensors": [], "grads": []}, "the number of layers must be from 1 to 64, got 0"),
    "65 layers": ({"tensors": NET["tensors"][3:] * 65, "grads": []}, "the number of layers must be from 1 to 64"),
    "half a layer": ({"tensors": NET["tensors"][:-1]}, "tensors must be 3 entries, got 5"),
    "a gate too many": ({"tensors": [*NET["tensors"], R(1)], "grads": []}, "tensors must be 6 entries, got 7"),
    "few gradients": ({"grads": NET["grads"][1:]}, "grads must be 6 entries, got 5"),
    "no weight": (replaced(0, None), "weight must be a tensor, got None"),
    "a vector": (replaced(0, R(6)), "weight must be [out, in], got [6]"),
    "no outputs": (replaced(0, R(0, 3)), "rows of weight must be from 1"),
    "no groups": (replaced(0, R(7, 3)), "rows of weight must be a multiple of 3, got 7"),
    "a wide weight": (replaced(0, R(6, 6)), "weight must be [6, 3], got [6, 6]"),
    "layers that do not meet": (replaced(3, R(3, 9)), "weight must be [3, 6], got [3, 9]"),
    "too many weights": (
        {"tensors": [huge(N, 3), huge(N), huge(N), huge(N, N), huge(N), huge(N)], "grads": []},
        "the number of weights must be from 1",
    ),
    "16 bits": (replaced(0, R(6, 3).half()), "weight must be float32, got float16"),
    "two dtypes": (replaced(3, R(3, 6).double()), "weight must be float32, got float64"),
    "a turned weight": (replaced(3, R(6, 3).t()), "weight must be of rows without gaps"),
    "a wide end": (
        {"tensors": [*NET["tensors"][:3], R(6, 6), R(6), R(6)], "grads": []},
        "rows of the last weight must be 3, got 6",
    ),
    "a short bias": (replaced(1, R(5)), "bias must be [6], got [5]"),
    "a bias of doubles": (replaced(4, R(3).double()), "bias must be float32, got float64"),
    "a short norm": (replaced(2, R(5)), "log_norm must be [6], got [5]"),
    "a short gradient of weight": (replaced(0, R(6, 2), "grads"), "grad_weight must be [6, 3], got [6, 2]"),
    "a long gradient of bias": (replaced(1, R(7), "grads"), "grad_bias must be [6], got [7]"),
    "a short gradient of a norm": (replaced(2, R(5), "grads"), "grad_log_norm must be [6], got [5]"),
    "a norm's gradient alone": (replaced(0, None, "grads"), "grad_weight, beside grad_log_norm, must be a tensor"),
    "no gate": ({"residual": 2}, "tensors must be 7 entries, got 6"),
    "a gate that is none": (
        {"residual": 2, "tensors": [*NET["tensors"], None], "grads": []}, "gate must be given where"
    ),
    "a long gate": ({"residual": 2, "tensors": [*NET["tensors"], R(2)], "grads": []}, "gate must be of 1 elements"),
    "a long gradient of the gate": (
        {"residual": 2, "tensors": [*NET["tensors"], R(1)], "grads": [*NET["grads"], R(2)]},
        "grad_gate must be of 1 elements",
    ),
}  # fmt: skip


def net(**more: Any) -> Any:
    return _native.C.BlockLayers(*{**NET, **more}.values())


@pytest.mark.parametrize("case", NETS)
def test_the_gate_of_layers(case) -> None:
    net()
    assert_refused(_native.C.BlockLayers, NET, *NETS[case])


FORWARD: dict[str, Any] = {"x": R(5, 3), "y": R(5, 3), "ladj": R(5)}
BACKWARD: dict[str, Any] = {"x": R(5, 3), "y": R(5, 3), "grad_y": R(5, 3), "grad_ladj": R(5), "grad_x": R(5, 3)}
CALLS = {
    "a short x": ({"x": R(4, 3)}, "x must be [5, 3], got [4, 3]"),
    "a wide x": ({"x": R(5, 4)}, "x must be [5, 3], got [5, 4]"),
    "columns of x": ({"x": R(3, 5).t()}, "x must be of rows without gaps"),
    "an x of doubles": ({"x": R(5, 3).double()}, "x must be float32, got float64"),
    "no y": ({"y": None}, "y must be a tensor, got None"),
    "a short y": ({"y": R(4, 3)}, "y must be of 15 elements, got [4, 3]"),
    "no thread": ({"threads": 0}, "threads must be from 1 to"),
}
FORWARDS = CALLS | {"a short ladj": ({"ladj": R(4)}, "ladj must be of 5 elements, got [4]")}
BACKWARDS = CALLS | {
    "a short gradient of y": ({"grad_y": R(4, 3)}, "grad_y must be of 15 elements"),
    "a long gradient of ladj": ({"grad_ladj": R(6)}, "grad_ladj must be of 5 elements"),
    "a gradient of x with gaps": ({"grad_x": R(5, 6)[:, :3]}, "grad_x must be contiguous"),
}


@pytest.mark.parametrize("case", FORWARDS)
def test_the_gate_of_a_call(case) -> None:
    given = {"net": net(), **FORWARD, "threads": 1}
    _native.C.block_made_fwd(*given.values())
    assert_refused(_native.C.block_made_fwd, given, *FORWARDS[case])


@pytest.mark.parametrize("case", BACKWARDS)
def test_the_gate_of_a_backward_pass(case) -> None:
    given = {"net": net(inverse=True), **BACKWARD, "threads": 1}
    _native.C.block_made_bwd(*given.values())
    assert_refused(_native.C.block_made_bwd, given, *BACKWARDS[case])
