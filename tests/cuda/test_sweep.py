"""The autoregressive inverse in one launch: its steps, its numbers, rows that stay alone, what it does not do yet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from flowkernels import ops
from flowkernels.backends import BackendUnavailableError
from flowkernels.ops import MadePlan
from flowkernels.ops.autoregressive_inverse.schedule import steps
from tests import emulator
from tests.emulator import Emulated
from tests.ops.masked import ACTIVATIONS, SHAPES, Shape, assert_numbers, draw
from tests.ops.test_autoregressive_inverse import UNIVARIATES, make, solve

pytestmark = pytest.mark.usefixtures("poison", "one_thread")
MORE = {
    "no hidden layer": Shape((40,), 5, (), 2, order="random"),
    "more rows than blocks take at once": Shape((600,), 3, (5,), 2, adds="all"),
    "more than 32 units of a degree": Shape((33,), 3, (150, 70), 2, degrees="random"),
}


@pytest.fixture(autouse=True)
def cuda(cuda_on_cpu: Emulated) -> Iterator[Emulated]:
    with torch.no_grad():
        yield cuda_on_cpu


@pytest.mark.parametrize("shape", [*SHAPES.values(), *MORE.values()], ids=[*SHAPES, *MORE])
def test_steps_compute_each_unit_once_when_its_inputs_are_there(shape) -> None:
    plan = draw(shape).plan
    n, P = len(plan.layers), plan.params_per_feature
    known = [0] * (n + 1)  # features, then units of each layer
    for layer, first, count, inputs in steps(plan):
        if layer == n:
            assert first == known[0] and count == plan.order[first] and known[n] >= (first + 1) * P
            known[0] += 1
            continue
        assert first == known[layer + 1] and 1 <= count <= 32 and inputs <= known[layer]
        assert (plan.layers[layer].limit[first : first + count] == inputs).all()
        if plan.residual and layer % 2 == 0 and 0 < layer < n - 1:
            assert first + count <= known[layer - 1]
        if layer == n - 1:  # parameters of one feature wait at a time
            assert known[0] * P <= first and first + count <= (known[0] + 1) * P
        known[layer + 1] += count
    assert known == [plan.features, *(layer.n_out for layer in plan.layers)]


def assert_values(shape: Shape, name: str, precision: torch.dtype, activation: str = "tanh") -> None:
    """The numbers rule for values alone."""
    univariate = UNIVARIATES[name]
    problem = make(shape, univariate)

    def values(backend: str, tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return solve(problem, univariate, backend, tensors, activation)

    assert_numbers(values, problem.tensors, "autoregressive_inverse", precision, ["default"], only="cuda")


# Every shape with one map, every map with two shapes.
EVERY = {**SHAPES, **MORE}
NUMBERS = [(s, m) for s in EVERY for m in UNIVARIATES if m == "softplus" or s in ("three features", "residual")]


@pytest.mark.parametrize(("shape", "name"), NUMBERS)
def test_numbers(shape, name) -> None:
    assert_values(EVERY[shape], name, torch.float32)
    if EVERY[shape].D < 10:
        assert_values(EVERY[shape], name, torch.float64)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True])
def test_numbers_of_every_activation(activation, residual) -> None:
    shape = Shape((33,), 7, (23, 23), 2, residual, "random", "random", "first")
    for precision in (torch.float32, torch.float64):
        assert_values(shape, "softplus", precision, activation)


@pytest.mark.parametrize("shape", ["three features", "residual", "one row", "two leading dims"])
def test_same_bits_in_any_order_of_threads_and_two_launches(shape, cuda: Emulated) -> None:
    """One puts the weights in order, one sweeps."""
    univariate = UNIVARIATES["softplus" if shape != "residual" else "spline"]
    problem = make(SHAPES[shape], univariate)
    tensors, found = [t.float() for t in problem.tensors], []
    for order in emulator.ORDERS:
        before = cuda.launches
        with cuda.order(order):
            found.append(solve(problem, univariate, "cuda", tensors))
        assert cuda.launches == before + 2
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_stays_in_its_row_and_in_the_features_after_it(bad) -> None:
    univariate = UNIVARIATES["softplus"]
    problem = make(SHAPES["three features"], univariate)
    tensors, order = [t.float() for t in problem.tensors], problem.plan.order.tolist()
    clean = solve(problem, univariate, "cuda", tensors)
    tensors[0] = tensors[0].clone()
    tensors[0][4, order[1]] = bad
    x, ladj = solve(problem, univariate, "cuda", tensors)
    others = [i for i in range(130) if i != 4]
    assert torch.equal(x[others], clean[0][others]) and torch.equal(ladj[others], clean[1][others])
    assert x[4, order[0]] == clean[0][4, order[0]] and not x[4, order[1]].isfinite()


@pytest.mark.parametrize("shape", ["three features", "residual"])
def test_masked_weights_have_no_effect(shape) -> None:
    univariate = UNIVARIATES["spline"]
    problem = make(SHAPES[shape], univariate)
    changed = list(problem.tensors)
    for i, layer in enumerate(problem.plan.layers):
        hidden = layer.mask(problem.tensors[0]) == 0
        assert hidden.any()
        changed[1 + 2 * i] = torch.where(hidden, float("nan"), changed[1 + 2 * i])
    for a, b in zip(*(solve(problem, univariate, "cuda", t) for t in (problem.tensors, changed)), strict=True):
        assert torch.equal(a, b)


def test_every_dtype_is_rounded_once(dtype) -> None:
    univariate = UNIVARIATES["softplus"]
    problem = make(SHAPES["residual"], univariate)
    tensors = [t.to(dtype) for t in problem.tensors]
    x, ladj = solve(problem, univariate, "cuda", tensors)
    wide = solve(problem, univariate, "cuda", [t.to(torch.promote_types(dtype, torch.float32)) for t in tensors])
    assert x.dtype is dtype and torch.equal(x, wide[0].to(dtype)) and torch.equal(ladj, wide[1])


def test_groups_of_equal_degree_and_strided_rows() -> None:
    plan = MadePlan([[1, 2, 1, 2], [1, 1, 1], [d for d in (1, 2, 1, 2) for _ in range(2)]])
    torch.manual_seed(0)
    layers = [(torch.randn(p.n_out, p.n_in).mT.contiguous().mT, torch.randn(p.n_out)) for p in plan.layers]
    z, spec = torch.randn(5, 9)[:, 2:6], UNIVARIATES["exp"].spec
    found, wanted = (ops.autoregressive_inverse(z, layers, plan, spec, backend=b) for b in ("cuda", "reference"))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("shape", "name", "grad", "reason"),
    [
        (SHAPES["residual"], "exp", True, "its sweep back has no CUDA kernel yet"),
        (Shape((2,), 3, (5,) * 16), "exp", False, "the net has more than 16 layers"),
        (Shape((2,), 3, (900, 900)), "exp", False, "the hidden units of 32 rows do not fit"),
    ],
)
def test_why_not(shape, name, grad, reason) -> None:
    problem = make(shape, UNIVARIATES[name])
    with torch.set_grad_enabled(grad), pytest.raises(BackendUnavailableError, match=reason):
        solve(problem, UNIVARIATES[name], "cuda", [t.requires_grad_(grad) for t in problem.tensors])
