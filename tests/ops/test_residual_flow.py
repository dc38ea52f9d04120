"""Residual maps: their Jacobian, the estimates of its determinant, their inverse, their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import ops
from flowkernels.ops.residual_flow import reference
from tests.ops.residual_cases import WAYS, Layers, all_signs, drawn

WAY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
INVERSE = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
NEUMANN = pytest.mark.parametrize("neumann", [False, True], ids=["own gradient", "neumann"])
HIDDEN = pytest.mark.parametrize("hidden", [(), (5,), (6, 3)], ids=str)


def flattened(x: Tensor, layers: Layers, settings: dict[str, Any]) -> tuple[list[Tensor], Callable[..., Any]]:
    """All tensors as leaves, and the map as a function of them."""
    betas = [settings["betas"]] if "betas" in settings else []
    leaves = [t.detach().clone().requires_grad_() for t in (x, *(t for layer in layers for t in layer), *betas)]
    rest = {name: value for name, value in settings.items() if name != "betas"}

    def call(x: Tensor, *tensors: Tensor, **more: Any) -> tuple[Tensor, Tensor]:
        given = list(tensors)
        own = {"betas": given.pop()} if betas else {}
        return ops.residual_flow(x, list(zip(given[::2], given[1::2], strict=True)), **rest, **own, **more)

    return leaves, call


def grad(of: Tensor | tuple[Tensor, ...], leaves: list[Tensor], **more: Any) -> tuple[Tensor, ...]:
    """Gradients; of the last bias, which no determinant depends on, 0."""
    return torch.autograd.grad(of, leaves, materialize_grads=True, **more)


def g_of(way: dict[str, Any], layers: Layers, x: Tensor, betas: Tensor | None = None) -> Tensor:
    """The network as modules would have it."""
    for k, (weight, bias) in enumerate(layers):
        if k > 0 or way.get("preactivated"):
            if way["activation"] == "lipswish":
                beta = 1 if betas is None else betas[k if way.get("preactivated") else k - 1]
                x = x * torch.sigmoid(beta * x) / 1.1
            else:
                x = {"elu": torch.nn.functional.elu, "tanh": torch.tanh}[way["activation"]](x)
        x = x @ weight.T + bias
    return x


@WAY
@HIDDEN
def test_values_and_log_det_are_those_of_the_jacobian(way, hidden) -> None:
    x, layers, settings = drawn(way, 6, 4, *hidden)
    y, ladj = ops.residual_flow(x, layers, **settings)
    torch.testing.assert_close(y, x + g_of(way, layers, x, settings.get("betas")))
    one = lambda v: v + g_of(way, layers, v, settings.get("betas"))  # noqa: E731
    J = torch.func.vmap(torch.func.jacrev(one))(x)
    sign, right = torch.linalg.slogdet(J)
    assert (sign > 0).all()
    torch.testing.assert_close(ladj, right, rtol=1e-12, atol=1e-12)


@WAY
@HIDDEN
def test_the_inverse_is_exact(way, hidden) -> None:
    x, layers, settings = drawn(way, 6, 4, *hidden)
    y, ladj = ops.residual_flow(x, layers, **settings)
    back, negative = ops.residual_flow(y, layers, lipschitz=0.9 ** len(layers), inverse=True, **settings)
    torch.testing.assert_close(back, x, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(negative, -ladj, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lipschitz", [1e-3, 0.5, 0.99])
def test_the_iteration_ends_where_the_bound_says(lipschitz) -> None:
    """A g that uses all of its slope: x + L x, and the worst, x - L x."""
    y = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for sign in (1, -1):
        layers = [(sign * lipschitz * torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))]
        x, ladj = ops.residual_flow(y, layers, lipschitz=lipschitz, inverse=True)
        right = y / (1 + sign * lipschitz)
        # What roundings of x and y are after all steps.
        assert ((x - right).abs() <= 8 * 2.3e-16 * (right.abs() + y.abs()).amax(1, True) / (1 - lipschitz)).all()
        torch.testing.assert_close(ladj, y.new_full((7,), -3 * math.log1p(sign * lipschitz)))


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_a_tolerance_is_kept_and_saves_steps(tolerance, monkeypatch) -> None:
    x, layers, settings = drawn(WAYS["elu"], 20, 4, 6)
    y = ops.residual_flow(x, layers, **settings)[0]
    taken = []
    run = reference.run
    monkeypatch.setattr(reference, "run", lambda *given: (taken.append(1), run(*given))[1])

    def found(tolerance: float, backend: str | None = "reference") -> tuple[Tensor, int]:
        taken.clear()
        back, _ = ops.residual_flow(
            y, layers, lipschitz=0.81, tolerance=tolerance, inverse=True, backend=backend, **settings
        )
        return back, len(taken)

    near, few = found(tolerance)
    _, many = found(0.0)
    assert (near - x).abs().max() <= tolerance and few < many
    assert many <= reference.n_steps(0.81, x.dtype) + 1  # and the pass for the determinant
    kernel, _ = found(tolerance, None)  # a tolerance's own error: nothing to the last digits
    torch.testing.assert_close(kernel, near, rtol=1e-12, atol=1e-12)
    assert (kernel - x).abs().max() > 1e-9


def test_rows_rest_alone() -> None:
    """A row has the same bits whatever stands beside it, e.g. one that takes more steps."""
    x, layers, settings = drawn(WAYS["elu"], 8, 3, 5)
    x[1:4] *= 1e4
    y = ops.residual_flow(x, layers, **settings)[0]
    call = lambda y: ops.residual_flow(y, layers, lipschitz=0.81, tolerance=1e-3, inverse=True, **settings)[0]  # noqa: E731
    other = y.clone()
    other[1:4] = y[4:7]
    assert torch.equal(call(y)[4:], call(other)[4:])


@WAY
@INVERSE
def test_gradients(way, inverse) -> None:
    x, layers, settings = drawn(way, 2, 2, 3)
    leaves, call = flattened(x, layers, settings)
    more = {"inverse": inverse, "lipschitz": 0.81}
    assert torch.autograd.gradcheck(lambda *t: call(*t, **more), leaves)
    assert torch.autograd.gradgradcheck(lambda *t: call(*t, **more), leaves, atol=1e-4)


@INVERSE
@pytest.mark.parametrize("hidden", [(), (3, 2)], ids=str)
def test_gradients_of_other_depths(inverse, hidden) -> None:
    x, layers, settings = drawn(WAYS["preactivated"], 2, 2, *hidden)
    leaves, call = flattened(x, layers, settings)
    more = {"inverse": inverse, "lipschitz": 0.9}
    assert torch.autograd.gradcheck(lambda *t: call(*t, **more), leaves)
    assert torch.autograd.gradgradcheck(lambda *t: call(*t, **more), leaves, atol=1e-4)


# ---- estimates ----


@WAY
def test_a_series_is_that_of_the_powers(way) -> None:
    """In the mean over all signs: the traces of J, of its square, and so on; and its terms are bounded as is said."""
    x, layers, settings = drawn(way, 5, 3, 4, 6)
    exact = ops.residual_flow(x, layers, **settings)[1]
    J = torch.func.vmap(torch.func.jacrev(lambda v: g_of(way, layers, v, settings.get("betas"))))(x)
    for terms in (1, 2, 7, 40):
        right = sum(
            (-1) ** (k + 1) / k * torch.linalg.matrix_power(J, k).diagonal(dim1=1, dim2=2).sum(1)
            for k in range(1, terms + 1)
        )
        for neumann in (False, True):
            _, ladj = ops.residual_flow(
                x, layers, log_det="series", terms=terms, noise=all_signs(x), neumann=neumann, **settings
            )
            torch.testing.assert_close(ladj, right, rtol=1e-11, atol=1e-11)
        L = 0.9 ** len(layers)
        assert ((ladj - exact).abs() <= 3 * L ** (terms + 1) / ((terms + 1) * (1 - L))).all()


@NEUMANN
def test_a_series_has_its_own_gradients(neumann) -> None:
    """Of one draw, not of the mean: by differences where it is the value's gradient, else as it is defined."""
    x, layers, settings = drawn(WAYS["betas"], 3, 3, 4)
    leaves, call = flattened(x, layers, settings)
    noise = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    more = {"log_det": "series", "terms": 4, "noise": noise, "neumann": neumann}
    if not neumann:
        assert torch.autograd.gradcheck(lambda *t: call(*t, **more), leaves)
        assert torch.autograd.gradgradcheck(lambda *t: call(*t, **more), leaves, atol=1e-4)
        return
    found = grad(call(*leaves, **more)[1].sum(), leaves)

    def g(v: Tensor, *rest: Tensor) -> Tensor:
        return call(v, *rest, log_det="exact")[0] - v

    J = torch.func.vmap(torch.func.jacrev(lambda v: g(v, *leaves[1:])))(leaves[0]).detach()
    inner = sum((-1) ** k * torch.linalg.matrix_power(J, k) for k in range(4))
    total = leaves[0].new_zeros(())
    for v in noise:
        left = (v.unsqueeze(-2) @ inner).squeeze(-2)
        moved = torch.func.jvp(lambda x: g(x, *leaves[1:]), (leaves[0],), (v,))[1]
        total = total + (left * moved).sum() / 2
    torch.testing.assert_close(found, grad(total, leaves), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("weighted", [False, True], ids=["series", "roulette"])
def test_neumanns_gradient_is_that_of_the_value_in_the_mean(weighted) -> None:
    """First and second derivatives, exactly, as the mean is over all signs."""
    x, layers, settings = drawn(WAYS["preactivated"], 2, 3, 4)
    leaves, call = flattened(x, layers, settings)
    more: dict[str, Any] = {"log_det": "series", "terms": 6, "noise": all_signs(x)}
    if weighted:
        weights = torch.tensor([1.0, 1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
        more = {"log_det": "roulette", "weights": weights, "noise": all_signs(x)}
    seen = []
    for neumann in (False, True):
        ladj = call(*leaves, neumann=neumann, **more)[1]
        first = grad((ladj * torch.tensor([1.0, -2.0]).double()).sum(), leaves, create_graph=True)
        mixed = torch.cat([((i + 1) * f.sin()).flatten() for i, f in enumerate(first)]).sum()
        seen.append((ladj.detach(), first, grad(mixed, leaves)))
    for right, found in zip(*seen, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-10)


def test_neumanns_gradient_of_many_terms_is_the_exact_one() -> None:
    x, layers, settings = drawn(WAYS["elu"], 4, 3, 5, norm=0.7)
    leaves, call = flattened(x, layers, settings)
    found, right = (
        grad(call(*leaves, **more)[1].sum(), leaves)
        for more in ({"log_det": "series", "terms": 60, "noise": all_signs(x)}, {"log_det": "exact"})
    )
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-10)


@NEUMANN
def test_a_roulette_has_no_bias(neumann) -> None:
    """Its mean over all signs and over every number of terms with its probability, of values and of gradients."""
    x, layers, settings = drawn(WAYS["lipswish"], 3, 3, 4, norm=0.8)
    leaves, call = flattened(x, layers, settings)
    sure, p, most = 2, 0.5, 60
    survival = torch.tensor([1.0 if k <= sure else (1 - p) ** (k - sure - 1) for k in range(1, most + 1)]).double()
    mean: list[Any] = [0.0] * (1 + len(leaves))
    for n in range(sure + 1, most + 1):
        probability = survival[n - 1] - (survival[n] if n < most else 0)
        more = {"log_det": "roulette", "weights": 1 / survival[:n], "noise": all_signs(x), "neumann": neumann}
        ladj = call(*leaves, **more)[1]
        parts = [ladj.detach(), *grad(ladj.sum(), leaves)]
        mean = [m + probability * part for m, part in zip(mean, parts, strict=True)]
    ladj = call(*leaves)[1]
    right = [ladj.detach(), *grad(ladj.sum(), leaves)]
    torch.testing.assert_close(mean, right, rtol=1e-9, atol=1e-9)


def test_a_roulette_of_many_draws() -> None:
    """Within five standard errors of the exact one; the draws are always the same."""
    x, layers, settings = drawn(WAYS["lipswish"], 1, 4, 8)
    exact = ops.residual_flow(x, layers, **settings)[1]
    g = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(400):
        n = 2 + int(torch.empty(()).geometric_(0.5, generator=g))
        weights = torch.tensor([max(1.0, 2.0 ** (k - 3)) for k in range(1, n + 1)]).double()
        noise = torch.randn(20, 1, 4, generator=g, dtype=torch.float64)
        seen.append(ops.residual_flow(x, layers, log_det="roulette", weights=weights, noise=noise, **settings)[1])
    found = torch.stack(seen)
    assert (found.mean(0) - exact).abs() < 5 * found.std(0) / math.sqrt(len(seen))
    assert found.std() / math.sqrt(len(seen)) < 0.02  # or the line above would say little


def test_noise_and_weights_are_constants() -> None:
    x, layers, settings = drawn(WAYS["elu"], 2, 3, 4)
    noise, weights = (t.double().requires_grad_() for t in (torch.randn(1, 2, 3), torch.ones(3)))
    x.requires_grad_()
    for neumann in (False, True):
        _, ladj = ops.residual_flow(
            x, layers, log_det="roulette", noise=noise, weights=weights, neumann=neumann, **settings
        )
        grads = torch.autograd.grad(ladj.sum(), (x, noise, weights), allow_unused=True)
        assert grads[0].abs().max() > 0 and all(g is None or (g == 0).all() for g in grads[1:])


def test_estimates_of_an_inverse() -> None:
    x, layers, settings = drawn(WAYS["elu"], 4, 3, 5)
    y, exact = ops.residual_flow(x, layers, **settings)
    more = {"log_det": "series", "terms": 150, "noise": all_signs(x)}
    leaves, call = flattened(y, layers, settings)
    found = call(*leaves, inverse=True, lipschitz=0.81, **more)
    torch.testing.assert_close(found, (x, -exact), rtol=1e-10, atol=1e-10)
    right = call(*leaves, inverse=True, lipschitz=0.81)
    grads, wanted = (torch.autograd.grad(y.square().sum() + ladj.sum(), leaves) for y, ladj in (found, right))
    torch.testing.assert_close(grads, wanted, rtol=1e-9, atol=1e-9)


# ---- the contract of an op ----


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@WAY
@INVERSE
def test_other_dtypes(kind, way, inverse) -> None:
    dtype: torch.dtype = kind
    x, layers, settings = drawn(way, 6, 4, 7, dtype=dtype)
    more = {"inverse": inverse, "lipschitz": 0.82}
    y, ladj = ops.residual_flow(x, layers, **settings, **more)
    wide = {name: v.double() if isinstance(v, Tensor) else v for name, v in settings.items()}
    exact, exact_ladj = ops.residual_flow(x.double(), [(w.double(), b.double()) for w, b in layers], **wide, **more)
    assert y.dtype is dtype and ladj.dtype is torch.float32
    torch.testing.assert_close(y.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=2e-6)
    torch.testing.assert_close(ladj.double(), exact_ladj, rtol=1e-5, atol=1e-5)


@WAY
@INVERSE
@pytest.mark.parametrize("log_det", ["exact", "series"])
def test_a_bad_value_stays_in_its_row(way, inverse, log_det) -> None:
    x, layers, settings = drawn(way, 6, 3, 4)
    settings |= {"inverse": inverse, "lipschitz": 0.81}
    if log_det == "series":
        settings |= {"log_det": "series", "terms": 3, "noise": torch.ones(1, 6, 3, dtype=x.dtype)}
    leaf = x.clone().requires_grad_()
    clean = ops.residual_flow(leaf, layers, **settings)
    (wanted,) = torch.autograd.grad(clean[0].sum() + clean[1].sum(), leaf)
    x[2, 0], x[4, 1] = float("nan"), float("inf")
    leaf = x.clone().requires_grad_()
    seen = ops.residual_flow(leaf, layers, **settings)
    rest = [0, 1, 3, 5]
    for a, b in zip(seen, clean, strict=True):
        assert torch.equal(a[rest], b[rest])
    assert seen[0][2].isnan().any() and seen[1][2].isnan()
    (found,) = torch.autograd.grad(seen[0].sum() + seen[1].sum(), leaf)
    assert torch.equal(found[rest], wanted[rest])


@WAY
@INVERSE
def test_large_values_give_numbers(way, inverse) -> None:
    for scale in (1e-30, 1e3, 1e10, 1e30):
        x, layers, settings = drawn(way, 20, 4, 6, dtype=torch.float32)
        leaf = (scale * x).requires_grad_()
        y, ladj = ops.residual_flow(leaf, layers, inverse=inverse, lipschitz=0.82, **settings)
        assert y.isfinite().all() and ladj.isfinite().all(), scale
        assert torch.autograd.grad(y.sum() + ladj.sum(), leaf)[0].isfinite().all(), scale


def test_leading_dims_and_strides() -> None:
    x, layers, settings = drawn(WAYS["betas"], 6, 4, 5)
    expected = ops.residual_flow(x, layers, **settings)
    many = ops.residual_flow(x.view(2, 3, 4), layers, **settings)
    torch.testing.assert_close([m.flatten(0, 1) for m in many], [*expected])
    strided = torch.stack([x, x], -1)[..., 1]
    layers = [(w.T.contiguous().T, torch.stack([b, b], -1)[:, 0]) for w, b in layers]
    torch.testing.assert_close(ops.residual_flow(strided, layers, **settings), expected)
    one = ops.residual_flow(x[0], layers, **settings)
    torch.testing.assert_close(one, (expected[0][0], expected[1][0]))


@INVERSE
@pytest.mark.parametrize("log_det", ["exact", "series"])
def test_no_rows(inverse, log_det) -> None:
    _, layers, settings = drawn(WAYS["betas"], 1, 4, 5)
    leaves, call = flattened(torch.zeros(0, 4).double(), layers, settings)
    more = {"log_det": "series", "terms": 2, "noise": torch.zeros(1, 0, 4).double()} if log_det == "series" else {}
    y, ladj = call(*leaves, inverse=inverse, lipschitz=0.81, **more)
    assert y.shape == (0, 4) and ladj.shape == (0,)
    grads = torch.autograd.grad(y.sum() + ladj.sum(), leaves)
    assert all((g == 0).all() for g in grads)


@INVERSE
@pytest.mark.parametrize("log_det", ["exact", "series"])
def test_autocast_leaves_it_alone(inverse, log_det) -> None:
    x, layers, settings = drawn(WAYS["betas"], 5, 4, 6, dtype=torch.float32)
    settings |= {"inverse": inverse, "lipschitz": 0.81}
    if log_det == "series":
        settings |= {"log_det": "series", "terms": 3, "noise": torch.ones(1, 5, 4)}
    expected = ops.residual_flow(x, layers, **settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ops.residual_flow(x, layers, **settings)
        short = ops.residual_flow(x, [(w.bfloat16(), b) for w, b in layers], **settings)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    right = ops.residual_flow(x, [(w.bfloat16().float(), b) for w, b in layers], **settings)
    torch.testing.assert_close(short, right, rtol=1e-5, atol=1e-5)


@pytest.mark.thinned(2)
@WAY
@pytest.mark.parametrize("log_det", ["exact", "series"])
def test_transforms_and_compilers(way, log_det) -> None:
    x, layers, settings = drawn(way, 5, 3, 4)
    leaves, call = flattened(x, layers, settings)
    noise = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for inverse in (False, True):
        more: dict[str, Any] = {"inverse": inverse, "lipschitz": 0.81}
        if log_det == "series":
            more |= {"log_det": "series", "terms": 3}

        def run(v: Tensor, noise: Tensor, *rest: Tensor, more: dict[str, Any] = more) -> tuple[Tensor, Tensor]:
            given = {"noise": noise} if log_det == "series" else {}
            return call(v, *rest, **more, **given)

        expected = run(x, noise, *leaves[1:])
        dims = (0, 1, *[None] * (len(leaves) - 1))
        torch.testing.assert_close(torch.func.vmap(run, in_dims=dims)(x, noise, *leaves[1:]), expected)
        forward = torch.func.jacfwd(lambda v, run=run: run(v, noise[:, 0], *leaves[1:])[0])(x[0])
        backward = torch.func.jacrev(lambda v, run=run: run(v, noise[:, 0], *leaves[1:])[0])(x[0])
        torch.testing.assert_close(forward, backward)
        if log_det == "exact":
            torch.testing.assert_close(torch.linalg.slogdet(forward)[1], expected[1][0])
        torch._dynamo.reset()
        compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, noise, *leaves[1:]), expected)
        found, right = (
            torch.autograd.grad([t.sum() for t in f(leaves[0], noise, *leaves[1:])], leaves) for f in (compiled, run)
        )
        torch.testing.assert_close(found, right)


@INVERSE
def test_export(inverse) -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return ops.residual_flow(x, [(w, b)], lipschitz=0.9, inverse=inverse)

    x, layers, _ = drawn(WAYS["elu"], 5, 3)
    program = torch.export.export(Module(), (x, *layers[0]))
    torch.testing.assert_close(program.module()(x, *layers[0]), Module()(x, *layers[0]))


# ---- errors ----

PAIR = (torch.zeros(3, 3), torch.zeros(3))
NOISE = {"noise": torch.zeros(1, 2, 3)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": 3}, TypeError, "x must be a tensor"),
        ({"x": torch.zeros(2, 0)}, ValueError, "features of x must be at least one, got 0"),
        ({"layers": []}, ValueError, "layers must be one at least, got none"),
        ({"layers": 3}, TypeError, r"layers must be a list of \(weight, bias\) pairs, got int 3"),
        ({"layers": [(torch.zeros(4, 2), torch.zeros(4))]}, ValueError, r"layers\[0\] weight must be \[out, 3\]"),
        ({"layers": [(torch.zeros(4, 3), torch.zeros(4))]}, ValueError,
         r"layers\[0\] weight must be \[3, in\], got \[4, 3\]"),
        ({"layers": [(PAIR[0].double(), PAIR[1])]}, TypeError, r"layers\[0\] weight must be of the dtype of x"),
        ({"activation": "relu"}, ValueError, 'activation must be "lipswish", "elu" or "tanh", got \'relu\''),
        ({"log_det": "trace"}, ValueError, 'log_det must be "exact", "series" or "roulette", got \'trace\''),
        ({"betas": torch.ones(1)}, ValueError, r"betas must be \[0\], got \[1\]"),
        ({"betas": torch.ones(0), "activation": "elu"}, ValueError, "betas must be None but of a lipswish"),
        ({"betas": [1.0], "preactivated": True}, TypeError, "betas must be a tensor, got list"),
        ({"preactivated": 1}, ValueError, "preactivated must be True or False, got 1"),
        ({"neumann": None}, ValueError, "neumann must be True or False, got None"),
        ({"inverse": 0}, ValueError, "inverse must be True or False, got 0"),
        ({"inverse": True}, ValueError, "lipschitz must be given for an inverse, got None"),
        ({"lipschitz": 1}, ValueError, "lipschitz must be above 0 and below 1, got 1"),
        ({"lipschitz": "a"}, ValueError, "lipschitz must be above 0 and below 1, got 'a'"),
        ({"tolerance": -1}, ValueError, "tolerance must be a number from 0 on, got -1"),
        ({"terms": 3}, ValueError, 'terms must be None where log_det is "exact", got int'),
        ({"noise": torch.zeros(1, 2, 3)}, ValueError, 'noise must be None where log_det is "exact", got Tensor'),
        ({"log_det": "series", "terms": 3}, ValueError, 'noise must be given where log_det is "series", got None'),
        ({"log_det": "series", **NOISE}, ValueError, 'terms must be given where log_det is "series", got None'),
        ({"log_det": "series", "terms": 0, **NOISE}, ValueError, "terms must be a whole number from 1 on, got 0"),
        ({"log_det": "roulette", **NOISE}, ValueError, 'weights must be given where log_det is "roulette", got None'),
        ({"log_det": "roulette", "weights": torch.ones(0), **NOISE}, ValueError,
         r"weights must be \[terms\], at least one, got \[0\]"),
        ({"log_det": "series", "terms": 1, "noise": torch.zeros(2, 3)}, ValueError,
         r"noise must be \[S, 2, 3\], got \[2, 3\]"),
        ({"log_det": "series", "terms": 1, "noise": torch.zeros(1, 2, 3).double()}, TypeError,
         "noise must be of the dtype of x"),
    ],
)  # fmt: skip
def test_errors(change, error, message) -> None:
    with pytest.raises(error, match=rf"^ops\.residual_flow: .*{message}"):
        ops.residual_flow(**{"x": torch.zeros(2, 3), "layers": [PAIR], **change})
