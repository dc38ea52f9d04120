"""Polynomial maps: those of zuko and Pyro, the inverse to the last ulp, large logits, derivatives, PyTorch's modes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import ops
from flowkernels.flows import SOS as SOSFlow
from flowkernels.ops import Polynomial
from flowkernels.ops.polynomial.quadrature import nodes_and_weights
from tests.device import here
from tests.numbers import assert_within_rule

pytestmark = pytest.mark.usefixtures("one_thread")

SOS = [
    {},
    {"degree": 0, "terms": 1},
    {"degree": 1, "terms": 5, "bound": 20.0, "bounded": True},
    {"degree": 7, "terms": 2, "slope": 0.1},
    {"degree": 3, "squares": "sum", "bound": 1.0, "slope": 1e-8, "shift": False},
]
BERNSTEIN = [
    {"family": "bernstein"},
    {"family": "bernstein", "degree": 1, "bound": 2.0},
    {"family": "bernstein", "degree": 64, "edge": 1e-6},
    {"family": "bernstein", "tails": "linear"},
    {"family": "bernstein", "tails": "linear", "degree": 1, "edge": 1e-6},
]
MACHINE = pytest.mark.usefixtures("machine")  # the CPU, and CUDA's kernels in the emulator
EVERY = pytest.mark.parametrize("settings", [*SOS, *BERNSTEIN], ids=str)


def given(settings: dict[str, Any], rows: int = 40, features: int = 3, size: float = 1.0, seed: int = 0) -> Any:
    """x, also outside of every box, and params, in float64."""
    g = torch.Generator().manual_seed(seed)
    f = Polynomial(**settings)
    x, params = (
        torch.randn(*shape, generator=g, device="cpu") for shape in ((rows, features), (rows, features, f.n_params))
    )
    return f, here(3 * x.double()), here(size * params.double())


@pytest.mark.interpreted
@MACHINE
@pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("backend", ["reference", None], ids=["reference", "fastest"])
def test_far_out(wide, backend) -> None:
    """Where powers leave the type, y and its slope end: what comes behind has no inf - inf."""
    f, _, params = given({}, rows=1, features=8)
    sizes = [1e4, 1e6, 1e20, 1e30 if wide is torch.float32 else 1e290]
    x = torch.tensor([s for size in sizes for s in (-size, size)], dtype=wide)[None]
    y, ladj = f(x, params.to(wide), backend=backend)
    assert y.isfinite().all() and (y.sign() == x.sign()).all() and ladj.isfinite().all()
    assert f(torch.full_like(x, torch.nan), params.to(wide), backend=backend)[0].isnan().all()


@pytest.mark.interpreted
@MACHINE
@pytest.mark.parametrize("transforms", [1, 3])
def test_flows_of_squares_have_no_density_far_out(transforms) -> None:
    torch.manual_seed(0)
    flow = SOSFlow(2, transforms=transforms, hidden=(8,))
    x = torch.tensor([[1e4, -1e4], [1e6, 0.0], [-1e6, 0.3], [1e20, -1e20], [0.0, 1e30]])
    log_prob = flow.log_prob(x)
    assert not log_prob.isnan().any() and (log_prob < -1e7).all()


# ---- against the libraries ----


@pytest.mark.parametrize(("terms", "degree", "slope"), [(3, 4, 1e-3), (1, 0, 0.5), (2, 6, 1e-6)])
def test_is_the_sum_of_squares_of_zuko(terms, degree, slope) -> None:
    transforms = pytest.importorskip("zuko.transforms")
    f, x, params = given({"terms": terms, "degree": degree, "slope": slope})
    theirs = transforms.SOSPolynomialTransform(params[..., :-1].unflatten(-1, (terms, degree + 1)), slope=slope)
    y, slopes = theirs.call_and_ladj(x)
    torch.testing.assert_close(f(x, params), (y + params[..., -1], slopes.sum(-1)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 17, 30])
@pytest.mark.parametrize(
    ("name", "tails"), [("BernsteinTransform", "linear"), ("BoundedBernsteinTransform", "identity")]
)
def test_is_the_bernstein_polynomial_of_zuko(name, tails, n) -> None:
    transforms = pytest.importorskip("zuko.transforms")
    f, x, params = given({"family": "bernstein", "degree": n - 1, "tails": tails, "edge": 1e-6}, size=2.0)
    theirs = getattr(transforms, name)(params)
    y, slopes = theirs.call_and_ladj(x)
    assert (x.abs() > 5).any()
    torch.testing.assert_close(f(x, params), (y, slopes.sum(-1)), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(f(y, params, True)[0], theirs.inv(y), rtol=1e-6, atol=3e-6)  # their bisection's error


def test_is_the_polynomial_of_pyro() -> None:
    T = pytest.importorskip("pyro.distributions.transforms")
    f, x, params = given({"squares": "sum", "bound": 1.0, "slope": 1e-8, "shift": False})

    class Net(torch.nn.Module):
        def forward(self, _: Tensor) -> Tensor:
            return params.mT

    theirs = T.Polynomial(Net(), 3, count_degree=4, count_sum=3).double()
    wanted = theirs(x)
    y, ladj = f(x, params)
    # Their reciprocals are numbers of float32; the 1e-8 of their ladj is the slope here.
    torch.testing.assert_close(y + theirs.c, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ladj, theirs.log_abs_det_jacobian(x, wanted), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n", range(1, 17))
def test_quadrature(n) -> None:
    nodes, weights = nodes_and_weights(n)
    assert list(nodes) == sorted(nodes) and min(weights) > 0 and nodes[0] > 0 and nodes[-1] < 1
    for power in range(2 * n):
        found = math.fsum(w * t**power for t, w in zip(nodes, weights, strict=True))
        assert abs(found - 1 / (power + 1)) < 4e-16


# ---- numbers ----


def results(f: Any, x: Tensor, params: Tensor, weights: Any, backend: str | None = None) -> list[Tensor]:
    """y, ladj and the gradients of x and params, where the outputs have these gradients."""
    x, params = x.detach().requires_grad_(), params.detach().requires_grad_()
    y, ladj = f(x, params, backend=backend)
    grads = torch.autograd.grad((y, ladj), (x, params), [w.to(y.dtype) for w in weights])
    return [t.detach() for t in (y, ladj, *grads)]


def problem(settings: dict[str, Any], inverse: bool, rows: int = 200) -> Any:
    """A map, x and params of float32 in either direction, and gradients of the outputs."""
    f, x, params = given(settings, rows, 3, seed=1)
    x, params = x.float(), params.float()
    if inverse:
        x, f = f(x, params, backend="reference")[0], f.inverted()
    g = torch.Generator().manual_seed(2)
    weights = torch.randn(rows, 3, generator=g, device="cpu"), torch.randn(rows, generator=g, device="cpu")
    return f, x, params, tuple(map(here, weights))


@pytest.mark.interpreted(
    "forward-{}",
    "forward-{'degree': 7, 'terms': 2, 'slope': 0.1}",
    "forward-{'degree': 3, 'squares': 'sum', 'bound': 1.0, 'slope': 1e-08, 'shift': False}",
    "forward-{'family': 'bernstein'}",
    "forward-{'family': 'bernstein', 'degree': 64, 'edge': 1e-06}",
    "forward-{'family': 'bernstein', 'tails': 'linear'}",
    "inverse-{}",
    "inverse-{'degree': 7, 'terms': 2, 'slope': 0.1}",
    "inverse-{'degree': 3, 'squares': 'sum', 'bound': 1.0, 'slope': 1e-08, 'shift': False}",
    "inverse-{'family': 'bernstein'}",
    "inverse-{'family': 'bernstein', 'degree': 64, 'edge': 1e-06}",
    "inverse-{'family': 'bernstein', 'tails': 'linear'}",
)
@MACHINE
@EVERY
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_numbers(settings, inverse, all_isas) -> None:
    f, x, params, weights = problem(settings, inverse)
    g, eps = torch.Generator().manual_seed(3), torch.finfo(torch.float32).eps

    def noisy(t: Tensor) -> Tensor:
        return t * (1 + eps * here(torch.randn(t.shape, generator=g, device="cpu")))

    truth = results(f, x.double(), params.double(), weights, "reference")
    moves, draws = ([torch.zeros_like(t) for t in truth] for _ in range(2))
    for _ in range(4):  # how far rounding the inputs moves the truth, and how far eager is off
        moved = noisy(x), noisy(params)
        eager = results(f, *moved, weights, "reference")
        exact = results(f, *(t.double() for t in moved), weights, "reference")
        for m, d, e, t, t0 in zip(moves, draws, eager, exact, truth, strict=True):
            m += (t - t0).square() / 4
            torch.maximum(d, (e - t).abs(), out=d)
    units = [m.sqrt() for m in moves]
    units[1] += eps  # a log rounds its argument
    units[3] = units[3].amax(-1, keepdim=True).expand_as(units[3])  # they share one sum
    eager = results(f, x, params, weights, "reference")
    for isa in all_isas:
        for i, found in enumerate(results(f, x, params, weights)):
            assert_within_rule(found, eager[i], truth[i], f"{isa}: result {i}", condition=(units[i], draws[i]))


@pytest.mark.interpreted(
    "inverse-{}",
    "inverse-{'family': 'bernstein', 'degree': 64, 'edge': 1e-06}",
    "inverse-{'family': 'bernstein', 'tails': 'linear'}",
)
@MACHINE
@EVERY
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_float64_has_its_digits(settings, inverse, all_isas) -> None:
    f, x, params, weights = problem(settings, inverse)
    x, params = x.double(), params.double()
    wanted = results(f, x, params, weights, "reference")
    for _ in all_isas:
        torch.testing.assert_close(results(f, x, params, weights), wanted, rtol=1e-9, atol=1e-9)


@MACHINE
@EVERY
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_16_bits_are_computed_in_float32(settings, inverse) -> None:
    f, x, params, weights = problem({**settings, "bound": 4.0}, inverse, 40)
    for kind in (torch.bfloat16, torch.float16):
        narrow = (x / 4).clamp(-50, 50).to(kind), params.to(kind)
        found = results(f, *narrow, weights)
        wanted = results(f, *(t.float() for t in narrow), [w.to(kind).float() for w in weights])
        assert found[0].dtype is found[2].dtype is found[3].dtype is kind and found[1].dtype is torch.float32
        for a, b in zip((found[0], found[2], found[3]), (wanted[0], wanted[2], wanted[3]), strict=True):
            torch.testing.assert_close(a, b.to(kind), rtol=torch.finfo(kind).eps, atol=1e-5)
        torch.testing.assert_close(f(*narrow)[1], f(*(t.float() for t in narrow))[1], rtol=0, atol=0)


@MACHINE
@EVERY
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_bits_do_not_depend_on_neighbours(settings, inverse, all_isas) -> None:
    """Lanes stop one by one: a row has its bits in a large batch, alone, and beside a NaN."""
    f, x, params, weights = problem(settings, inverse, 70)
    for _ in all_isas:
        whole = results(f, x, params, weights)
        for rows in (slice(0, 1), slice(3, 9), slice(37, 70)):
            some = results(f, x[rows], params[rows], [w[rows] for w in weights])
            assert all(torch.equal(a, b[rows]) for a, b in zip(some, whole, strict=True))
        broken = x.clone()
        broken[::7, 1] = torch.nan
        for a, b in zip(results(f, broken, params, weights), whole, strict=True):
            assert torch.equal(a[1::7], b[1::7])


@pytest.mark.interpreted(
    "torch.float32-10000.0-{}",
    "torch.float32-10000.0-{'family': 'bernstein'}",
    "torch.float32-10000.0-{'family': 'bernstein', 'tails': 'linear'}",
)
@MACHINE
@EVERY
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
def test_any_finite_logits(settings, size, kind) -> None:
    f, x, params = given(settings, 200, 2, size)
    x, params = x.to(kind).requires_grad_(), params.to(kind).requires_grad_()
    with torch.no_grad():
        y = f(x, params)[0]
    for g, v in ((f, x), (f.inverted(), y.requires_grad_())):
        out, ladj = g(v, params)
        assert out.isfinite().all() and ladj.isfinite().all()
        for grad in torch.autograd.grad(out.sum() + ladj.sum(), (v, params)):
            assert grad.isfinite().all()
    if kind is torch.float64:
        again = f(f(y, params, True)[0], params)[0]
        torch.testing.assert_close(again, y, rtol=1e-12, atol=1e-12)


@MACHINE
@EVERY
def test_inverse_to_the_last_ulp(settings) -> None:
    """In float64 what is found is as near as a spacing of x lets y be."""
    f, x, params = given(settings, 300)
    y, _ = f(x, params)
    back, _ = f(y, params, True)
    slope = f(back.unsqueeze(-1), params.unsqueeze(-2))[1].exp()
    eps = torch.finfo(torch.float64).eps
    size = y.abs() + (params[..., -1].abs() if f.of_squares and f.shift else f.bound + f.degree)
    assert ((back - x).abs() <= 8 * eps * (x.abs() + (f.degree + 2) * size / slope)).all()


@MACHINE
@EVERY
def test_outside_of_a_box(settings) -> None:
    f, _, params = given(settings, 4, 2)
    if f.of_squares:
        return
    x = torch.tensor([-1e3, -f.bound, f.bound, 1e4]).double().unsqueeze(-1).expand(4, 2)
    y, ladj = f(x, params)
    back, negated = f(y, params, True)
    torch.testing.assert_close((back, negated), (x, -ladj), rtol=1e-10, atol=1e-10)
    if f.tails == "identity":
        beyond = 2 * f.bound * f.edge * x.sign()
        assert torch.equal(y, x + beyond) and (ladj == 0).all()
    else:
        near = x.sign() * (f.bound * (1 - 2 * f.edge))
        at, of_end = f(near.unsqueeze(-1), params.unsqueeze(-2))
        line = at.squeeze(-1) + (x - near) * of_end.exp()
        torch.testing.assert_close(y, line, rtol=1e-10, atol=1e-10)


@pytest.mark.interpreted(
    "{}",
    "{'degree': 7, 'terms': 2, 'slope': 0.1}",
    "{'degree': 3, 'squares': 'sum', 'bound': 1.0, 'slope': 1e-08, 'shift': False}",
    "{'family': 'bernstein'}",
    "{'family': 'bernstein', 'degree': 64, 'edge': 1e-06}",
    "{'family': 'bernstein', 'tails': 'linear'}",
)
@MACHINE
@EVERY
def test_bad_values_stay_in_their_row(settings) -> None:
    f, x, params = given(settings)
    clean = f(x, params), f(x, params, True)
    x[3, 1], params[5, 0, 0], params[7, 2, -1] = torch.nan, torch.nan, torch.inf
    rest = [r for r in range(len(x)) if r not in (3, 5, 7)]
    for wanted, found in zip(clean, (f(x, params), f(x, params, True)), strict=True):
        assert torch.equal(found[0][rest], wanted[0][rest]) and torch.equal(found[1][rest], wanted[1][rest])
        assert found[0][3, 1].isnan() and (found[1][3].isnan() or f.degree == 0)


def test_a_bounded_inverse_stops() -> None:
    transforms = pytest.importorskip("zuko.transforms")
    f, x, params = given({"bounded": True, "shift": False}, size=0.1)
    theirs = transforms.SOSPolynomialTransform(params.unflatten(-1, (3, 5)))
    y = 20 * x
    torch.testing.assert_close(f(y, params, True)[0], theirs.inv(y), rtol=0, atol=1e-6)
    assert f(y, params, True)[0].abs().max() == 10


@MACHINE
def test_the_largest() -> None:
    """513 params, of which few rows fit in a GPU's shared memory at a time."""
    for inverse in (False, True):
        f, x, params, weights = problem({"degree": 15, "terms": 32}, inverse, 5)
        x, params = x.double(), params.double()
        wanted = results(f, x, params, weights, "reference")
        torch.testing.assert_close(results(f, x, params, weights), wanted, rtol=1e-9, atol=1e-9)


# ---- derivatives ----


@pytest.mark.thinned(4)
@MACHINE
@EVERY
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_derivatives(settings, inverse) -> None:
    if settings.get("degree", 0) > 16 or settings.get("slope", 1) < 1e-6:
        settings = {**settings, "degree": 5, "slope": 1e-2}
    f, x, params = given(settings, 3, 1, 0.5, seed=3)
    f = f.inverted() if inverse else f
    x, params = (x / 3).requires_grad_(), params.requires_grad_()
    assert torch.autograd.gradcheck(f, (x, params), check_forward_ad=True)
    reference = f.reference
    assert torch.autograd.gradgradcheck(reference, (x, params), atol=1e-4, fast_mode=inverse)


@MACHINE
def test_gradients_of_the_inverse_are_those_of_the_inverse_function() -> None:
    f, x, params = given({}, 20, 1)
    y, _ = f(x, params)
    y.requires_grad_(), params.requires_grad_()
    back, _ = f(y, params, True)
    found = torch.autograd.grad(back.sum(), (y, params))
    at = back.detach().requires_grad_()
    again, _ = f(at, params)
    (slope,) = torch.autograd.grad(again.sum(), at, retain_graph=True)
    (of_params,) = torch.autograd.grad(again.sum(), params)
    torch.testing.assert_close(found, (1 / slope, -of_params / slope.unsqueeze(-1)), rtol=1e-10, atol=1e-12)


# ---- PyTorch's modes ----


@pytest.mark.parametrize("settings", [SOS[2], BERNSTEIN[1]], ids=str)
def test_modes(settings) -> None:
    f, x, params = given(settings, 4, 2)
    for g in (f, f.inverted()):
        wanted = g(x, params)
        torch.testing.assert_close(torch.func.vmap(g)(x, params), wanted)
        torch._dynamo.reset()
        compiled = torch.compile(lambda x, p, g=g: g(x, p), backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, params), wanted)

        class Module(torch.nn.Module):
            def forward(self, x: Tensor, params: Tensor, g: Any = g) -> Any:
                return g(x, params)

        exported = torch.export.export(Module(), (x, params))
        torch.testing.assert_close(exported.module()(x, params), wanted)


@EVERY
def test_the_library_op(settings) -> None:
    f, x, params = given(settings, 3, 2)
    found = torch.ops.flowkernels.polynomial(x, params, *f.packed(), "auto")
    torch.testing.assert_close(found, f(x, params))
    assert Polynomial.from_packed(*f.packed()) == f


@pytest.mark.interpreted
@MACHINE
def test_strides_and_leading_dims() -> None:
    f, x, params = given({}, 24, 3)
    wanted = f(x, params)
    shaped = f(x.view(2, 3, 4, 3).transpose(0, 1), params.view(2, 3, 4, 3, -1).transpose(0, 1))
    torch.testing.assert_close(shaped[0].transpose(0, 1).reshape(24, 3), wanted[0])
    torch.testing.assert_close(f(x.mT.contiguous().mT, params.mT.contiguous().mT), wanted)
    assert f(x.float(), params.bfloat16())[0].dtype is torch.float32


# ---- arguments ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"family": "cubic"}, 'family must be "sos" or "bernstein", got \'cubic\''),
        ({"degree": 16}, 'degree must be an integer from 0 to 15 where family is "sos", got 16'),
        ({"family": "bernstein", "degree": 0}, 'degree must be an integer from 1 to 64 where family is "bernstein"'),
        ({"degree": 2.0}, "degree must be an integer"),
        ({"terms": 0}, "terms must be an integer from 1 to 32, got 0"),
        ({"bound": -1.0}, "bound must be a number from 1e-15 to 1e\\+15, got -1.0"),
        ({"bound": [1.0]}, "bound must be a number"),
        ({"slope": 0.0}, "slope must be a number from 1e-15 to 1e\\+15, got 0.0"),
        ({"squares": "product"}, 'squares must be "mean" or "sum"'),
        ({"bounded": "no"}, "bounded must be True or False, got 'no'"),
        ({"shift": 1}, "shift must be True or False, got 1"),
        ({"tails": None}, 'tails must be "identity" or "linear", got None'),
        ({"edge": math.nan}, "edge must be a number from 0 to 0.1, got nan"),
    ],
)
def test_settings_that_break_the_contract(settings, message) -> None:
    x, params = torch.zeros(2, 1), torch.zeros(2, 1, 16)
    for call in (lambda: Polynomial(**settings), lambda: ops.polynomial(x, params, **settings)):
        with pytest.raises(ValueError, match="^ops.polynomial: " + message):
            call()


def test_settings_of_numpy() -> None:
    numpy = pytest.importorskip("numpy")
    assert Polynomial(degree=numpy.int64(4), bound=numpy.float32(10), shift=numpy.bool_(True)) == Polynomial()


@MACHINE
@pytest.mark.parametrize("backend", ["reference", None])
@pytest.mark.parametrize("settings", [s for s in (*SOS, *BERNSTEIN) if s.get("degree") != 0], ids=str)
def test_parameters_that_are_no_numbers_have_no_inverse(settings, backend) -> None:
    f, y, params = given(settings)
    clean, _ = f.inverted()(y, params, backend=backend)
    params[3, 1] = float("nan")
    x, ladj = f.inverted()(y, params, backend=backend)
    assert x[3, 1].isnan() and ladj[3].isnan()
    rest = torch.ones_like(x, dtype=torch.bool)
    rest[3, 1] = False
    assert torch.equal(x[rest], clean[rest])


@pytest.mark.parametrize("settings", [*SOS, {"terms": 1}, {"terms": 1, "shift": False}], ids=str)
def test_the_identity_has_as_many_numbers_as_there_are_parameters(settings) -> None:
    f = Polynomial(**settings)
    assert len(f.identity) == f.n_params
    x = torch.linspace(-2, 2, 9).double().unsqueeze(-1)
    y, ladj = f(x, torch.tensor(f.identity).double().expand(9, 1, -1))
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(ladj, torch.zeros(9).double(), rtol=0, atol=1e-6)
