"""The autoregressive inverse in one launch, and its way back in another: steps, numbers where shapes are odd, bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import ops
from flowkernels.backends import BackendUnavailableError
from flowkernels.ops import MadePlan
from flowkernels.ops.autoregressive_inverse.schedule import computes_all, steps
from flowkernels.transforms import RQS, Affine
from tests.emulator import ORDERS, Emulated
from tests.ops.masked import SHAPES, Shape, assert_numbers, draw, values_and_gradients
from tests.ops.test_autoregressive_inverse import UNIVARIATES, make, solve

pytestmark = pytest.mark.usefixtures("one_thread")
MORE = {
    "no hidden layer": Shape((40,), 5, (), 2, order="random"),
    "more rows than blocks take at once": Shape((600,), 3, (5,), 2, adds="all"),
    "more than 32 units of a degree": Shape((33,), 3, (150, 70), 2, degrees="random"),
}


@pytest.fixture(autouse=True)
def cuda(cuda_on_cpu: Emulated) -> Emulated:
    return cuda_on_cpu


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


def assert_sweeps(shape: Shape, univariate: Any, precision: torch.dtype, activation: str = "tanh") -> None:
    """The numbers rule for values and gradients."""
    problem = make(shape, univariate)

    def run(backend: str, tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
        return solve(problem, univariate, backend, tensors, activation)

    assert_numbers(run, problem.tensors, "autoregressive_inverse", precision, ["default"], only=["cuda"])


@pytest.mark.parametrize("shape", MORE)
def test_numbers(shape) -> None:
    for precision in (torch.float32, torch.float64):
        assert_sweeps(MORE[shape], UNIVARIATES["softplus"], precision)


@pytest.mark.parametrize("shape", ["many features", "blocks"])
def test_values_where_gradients_would_take_long(shape) -> None:
    with torch.no_grad():
        assert_sweeps(SHAPES[shape], UNIVARIATES["softplus"], torch.float32)


MAPS = {
    "more parameters than a step has units": RQS(bins=13),
    "more bins than that": RQS(bins=37, parametrization="soft_clip"),
    "the shift first": Affine("softplus", shift_first=True),
}


@pytest.mark.parametrize("univariate", MAPS.values(), ids=MAPS)
def test_numbers_of_maps(univariate) -> None:
    for precision in (torch.float32, torch.float64):
        assert_sweeps(Shape((35,), 3, (8,), order="random"), univariate, precision)


def test_a_unit_that_no_feature_sees_has_no_gradient() -> None:
    """No step computes it: nobody writes its place either."""
    plan = MadePlan([[1, 2], [1, 2, 9], [1, 2, 1], [1, 1, 2, 2]])
    assert computes_all(plan) == (False, False, True)
    torch.manual_seed(0)
    layers = [(torch.randn(p.n_out, p.n_in), torch.randn(p.n_out)) for p in plan.layers]
    tensors, spec = [torch.randn(5, 2), *(t for layer in layers for t in layer)], UNIVARIATES["exp"]

    def run(backend: str) -> list[Tensor]:
        def of(t: list[Tensor]) -> tuple[Tensor, Tensor]:
            pairs = list(zip(t[1::2], t[2::2], strict=True))
            return ops.autoregressive_inverse(t[0], pairs, plan, spec, backend=backend)

        return values_and_gradients(of, tensors)

    torch.testing.assert_close(run("cuda"), run("reference"))


@pytest.mark.parametrize("shape", ["three features", "residual", "one row", "two leading dims"])
def test_same_bits_in_any_order_of_threads_and_two_launches(shape, cuda: Emulated) -> None:
    """One puts the weights in order, one sweeps; the same again for the way back."""
    univariate = UNIVARIATES["softplus" if shape != "residual" else "spline"]
    problem = make(SHAPES[shape], univariate)
    leaves, found = [t.float().requires_grad_() for t in problem.tensors], []
    for order in ORDERS:
        before = cuda.launches
        with cuda.order(order):
            outputs = solve(problem, univariate, "cuda", leaves)
            assert cuda.launches == before + 2
            grads = torch.autograd.grad(outputs, leaves, [torch.ones_like(t) for t in outputs])
            assert cuda.launches == before + 4
        found.append([*outputs, *grads])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_a_bad_row_keeps_its_gradients_to_itself() -> None:
    univariate = UNIVARIATES["softplus"]
    problem = make(SHAPES["three features"], univariate)
    tensors, broken = problem.tensors, problem.tensors[0].clone()
    broken[4, problem.plan.order[1]] = float("nan")

    def of_z(z: Tensor) -> Tensor:
        z = z.detach().requires_grad_()
        x, ladj = solve(problem, univariate, "cuda", [z, *tensors[1:]])
        return torch.autograd.grad([x, ladj], z, [torch.ones_like(x), torch.ones_like(ladj)])[0]

    clean, found = of_z(tensors[0]), of_z(broken)
    others = [i for i in range(130) if i != 4]
    assert torch.equal(found[others], clean[others]) and not found[4].isfinite().all()


def test_backward_under_autocast() -> None:
    """What was computed in float32 is differentiated in it, wherever backward is called."""
    univariate = UNIVARIATES["softplus"]
    problem = make(SHAPES["two leading dims"], univariate)
    found = []
    for enabled in (False, True):
        leaves = [t.float().requires_grad_() for t in problem.tensors]
        outputs = solve(problem, univariate, "cuda", leaves)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(torch.autograd.grad(outputs, leaves, [torch.ones_like(t) for t in outputs]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_every_dtype_is_rounded_once(dtype) -> None:
    univariate = UNIVARIATES["softplus"]
    problem = make(SHAPES["two leading dims"], univariate)
    tensors = [t.to(dtype) for t in problem.tensors]

    def run(tensors: list[Tensor]) -> list[Tensor]:
        def weighed(t: list[Tensor]) -> Tensor:  # in float32, so that the gradients that come are alike
            x, ladj = solve(problem, univariate, "cuda", t)
            return (x.to(ladj.dtype).sum(-1) + 0.3 * ladj).sum()

        with torch.no_grad():
            values = solve(problem, univariate, "cuda", tensors)
        return [*values, *values_and_gradients(weighed, tensors)[1:]]

    narrow, wide = run(tensors), run([t.to(torch.promote_types(dtype, torch.float32)) for t in tensors])
    assert narrow[1].dtype is wide[1].dtype and all(t.dtype is dtype for t in [narrow[0], *narrow[2:]])
    for mine, exact in zip(narrow, wide, strict=True):
        assert torch.equal(mine, exact.to(mine.dtype))


def test_groups_of_equal_degree_and_strided_rows() -> None:
    plan = MadePlan([[1, 2, 1, 2], [1, 1, 1], [d for d in (1, 2, 1, 2) for _ in range(2)]])
    torch.manual_seed(0)
    layers = [(torch.randn(p.n_out, p.n_in), torch.randn(p.n_out)) for p in plan.layers]
    tensors, spec = [torch.randn(5, 9), *(t for layer in layers for t in layer)], UNIVARIATES["exp"]

    def run(backend: str) -> list[Tensor]:
        def of(t: list[Tensor]) -> tuple[Tensor, Tensor]:
            pairs = [(w.mT.contiguous().mT, b) for w, b in zip(t[1::2], t[2::2], strict=True)]
            return ops.autoregressive_inverse(t[0][:, 2:6], pairs, plan, spec, backend=backend)

        return values_and_gradients(of, tensors)

    torch.testing.assert_close(run("cuda"), run("reference"))


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (Shape((2,), 3, (5,) * 16), "the net has more than 16 layers"),
        (Shape((2,), 3, (900, 900)), "the hidden units of 32 rows do not fit"),
    ],
)
def test_why_not(shape, reason) -> None:
    univariate = UNIVARIATES["exp"]
    problem = make(shape, univariate)
    with pytest.raises(BackendUnavailableError, match=reason):
        solve(problem, univariate, "cuda", problem.tensors)
