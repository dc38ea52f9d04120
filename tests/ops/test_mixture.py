"""The mixture map's values: tails, extremes, what it is the distribution function of, errors."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import _native, distributions, flows, nets, ops, transforms
from flowkernels.ops import Mixture
from flowkernels.ops.mixture.spec import KERNELS, OUTERS
from tests.device import here
from tests.numbers import assert_within_rule
from tests.ops.gate import assert_refused

MACHINE = pytest.mark.usefixtures("machine")  # the CPU, and CUDA's kernels in the emulator
PAIRS = tuple(itertools.product(KERNELS, OUTERS))
EVERY = pytest.mark.parametrize(("kernel", "outer"), PAIRS)
ZUKOS = {"kernel": "normal", "outer": "probit", "parametrization": "shifts", "shrink": 1e-6}
OTHERS = {  # forms of the map that are no pair alone
    "zuko's": ZUKOS,
    "shifts": {"kernel": "logistic", "parametrization": "shifts"},
    "shifts of normals": {**ZUKOS, "shrink": 0.0},
    "shrunk": {"kernel": "logistic", "outer": "probit", "shrink": 1e-2, "bound": 4.0},
}
WIDE = pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=["f32", "f64"])
BACKENDS = pytest.mark.parametrize("backend", ["reference", None], ids=["reference", "fastest"])


def draw(
    *shape: int, components: int, seed: int = 0, scale: float = 1.0, n_params: int | None = None
) -> tuple[Tensor, Tensor]:
    g, P = torch.Generator().manual_seed(seed), n_params or 3 * components
    x = torch.randn(*shape, generator=g, dtype=torch.float64, device="cpu")
    return here(x), here(scale * torch.randn(*shape, P, generator=g, dtype=torch.float64, device="cpu"))


def values_of(f: Mixture, x: Tensor) -> Tensor:
    """x, or numbers that the inverse of a map onto (0, 1) takes."""
    return torch.sigmoid(x) if f.inverse and f.outer == "unit" else x


@MACHINE
@EVERY
@BACKENDS
@pytest.mark.parametrize("components", [1, 2, 7, 128])
def test_is_the_distribution_function(kernel, outer, components, backend) -> None:
    x, params = draw(27, 1, components=components)
    w, m, s = params.unflatten(-1, (3, components)).unbind(-2)
    parts = torch.distributions.Normal(m, s.exp())
    if kernel == "logistic":
        base = torch.distributions.Uniform(torch.zeros_like(m), torch.ones_like(m))
        steps = [torch.distributions.SigmoidTransform().inv, torch.distributions.AffineTransform(m, s.exp())]
        parts = torch.distributions.TransformedDistribution(base, steps, validate_args=False)
    cdf = (w.softmax(-1) * parts.cdf(x[..., None])).sum(-1)
    log_density = torch.logsumexp(w.log_softmax(-1) + parts.log_prob(x[..., None]), -1)
    y, ladj = ops.mixture(x, params, components=components, kernel=kernel, outer=outer, backend=backend)
    of_outer = {"unit": torch.zeros_like(y), "logit": cdf.log() + (1 - cdf).log()}
    of_outer["probit"] = -0.5 * torch.special.ndtri(cdf).square() - 0.5 * math.log(2 * math.pi)
    wanted = {"unit": cdf, "logit": torch.logit(cdf), "probit": torch.special.ndtri(cdf)}[outer]
    inside = ((cdf > 1e-5) & (cdf < 1 - 1e-5))[:, 0]  # beyond, what is wanted has few digits
    torch.testing.assert_close(y[inside], wanted[inside], rtol=1e-9, atol=1e-9)
    density = (log_density - of_outer[outer]).sum(-1)
    torch.testing.assert_close(ladj[inside], density[inside], rtol=1e-9, atol=1e-9)


@MACHINE
@EVERY
@WIDE
@BACKENDS
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_any_finite_params(kernel, outer, inverse, wide, backend) -> None:
    """Values and gradients are finite for logits, means and log-scales of up to 1e4."""
    f = Mixture(5, kernel, outer, inverse=inverse)
    x, params = draw(300, 2, components=5)
    for scale in (10.0, 1e4):
        p = (scale * params.clamp(-1, 1)).to(wide).requires_grad_()
        v = values_of(f, x).to(wide).requires_grad_()
        y, ladj = f(v, p, backend=backend)
        assert y.isfinite().all() and ladj.isfinite().all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum() + ladj.sum(), (v, p)))


@pytest.mark.interpreted
@MACHINE
@WIDE
@BACKENDS
def test_neither_tail_saturates(wide, backend) -> None:
    x = torch.tensor([[-1e4, -300.0, -40.0, 40.0, 300.0, 1e4]], dtype=wide)
    params = torch.zeros(1, 6, 6, dtype=wide)
    for kernel, outer in (("logistic", "logit"), ("normal", "probit")):
        y, ladj = ops.mixture(x, params, components=2, kernel=kernel, outer=outer, backend=backend)
        torch.testing.assert_close(y, x)
        eps = torch.finfo(wide).eps
        assert ladj.abs().max() <= 16 * eps * (1e8 if outer == "probit" else 1e4)
        back, _ = ops.mixture(x, params, components=2, kernel=kernel, outer=outer, inverse=True, backend=backend)
        torch.testing.assert_close(back, x)


@MACHINE
@EVERY
@WIDE
@BACKENDS
def test_round_trip(kernel, outer, wide, backend) -> None:
    """The error of the inverse is that of rounding y and of the evaluation, over the slope there."""
    f = Mixture(6, kernel, outer)
    x, params = draw(500, 3, components=6, seed=3)
    x, params = x.to(wide), params.to(wide)
    y, _ = f(x, params, backend=backend)
    back, negated = f(y, params, True, backend=backend)
    slope = torch.exp(f(x.double()[..., None], params.double()[:, :, None], backend="reference")[1])
    error, eps = (back - x).double().abs(), torch.finfo(wide).eps
    assert (error <= eps * (8 * (1 + y.abs()) / slope + 4 * x.abs()) + 4 * eps).all()
    torch.testing.assert_close(negated, -f(back, params, backend=backend)[1], rtol=64 * eps, atol=64 * eps)


@pytest.mark.interpreted
@MACHINE
@BACKENDS
@WIDE
@pytest.mark.parametrize(("kernel", "outer"), [("normal", "probit"), ("normal", "logit"), ("logistic", "logit")])
@pytest.mark.parametrize("components", [1, 3])
def test_the_ends_of_the_line(kernel, outer, components, wide, backend) -> None:
    """Infinities are themselves, with a finite ladj: a density there is exactly 0."""
    x = torch.tensor([[-torch.inf, torch.inf]], dtype=wide)
    params = draw(1, 2, components=components)[1].to(wide)
    y, ladj = ops.mixture(x, params, components=components, kernel=kernel, outer=outer, backend=backend)
    assert torch.equal(y, x) and ladj.isfinite().all()
    flow = flows.Gaussianization(2, transforms=2, components=3, kernel=kernel, rotate=False).to(wide)
    assert flow.log_prob(x).tolist() == [-torch.inf] and flow.log_prob(x[:, :1].expand(1, 2)).tolist() == [-torch.inf]


@pytest.mark.interpreted
@MACHINE
@EVERY
def test_gradients_far_out(kernel, outer) -> None:
    """Where a component's z is beyond what plain sums see of it, too."""
    x = torch.tensor([[-40.0, -15.0, 20.0, 90.0]])
    for components in (1, 2):
        params = draw(1, 4, components=components, seed=2)[1].float().clamp(-1, 1)
        grads = []
        for dtype, backend in ((torch.float32, None), (torch.float64, "reference")):
            v, p = x.to(dtype).requires_grad_(), params.to(dtype).requires_grad_()
            y, ladj = ops.mixture(v, p, components=components, kernel=kernel, outer=outer, backend=backend)
            grads.append(torch.autograd.grad(ladj.sum() + y.sum(), (v, p)))
        for found, wanted in zip(*grads, strict=True):
            torch.testing.assert_close(found.double(), wanted, rtol=2e-4, atol=2e-3)


@pytest.mark.interpreted
@MACHINE
def test_far_from_narrow_components() -> None:
    """Where squares of z have no digits after the point, the slope has all of them."""
    params = torch.tensor([0.1, -0.3, 0.2, -0.5, 0.1, 0.4, -7, -7, -7]).expand(3, 1, 9)
    f, x = Mixture(3, "normal", "probit"), torch.tensor([[-30.0], [3.0], [30.0]])
    (y, ladj), (exact, of_exact) = f(x, params), f(x.double(), params.double(), backend="reference")
    torch.testing.assert_close(y.double(), exact, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(ladj.double(), of_exact, rtol=1e-6, atol=0.0)


@pytest.mark.interpreted
@MACHINE
@BACKENDS
def test_a_gap_between_components(backend) -> None:
    """Where the density underflows, the logarithm of it does not."""
    params = torch.tensor([[[0.0, 1.0, -100.0, 100.0, -2.0, -2.0]]])
    y, ladj = ops.mixture(torch.zeros(1, 1), params, components=2, backend=backend)
    exact, of_exact = ops.mixture(torch.zeros(1, 1).double(), params.double(), components=2, backend="reference")
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ladj.double(), of_exact, rtol=1e-6, atol=0.0)
    assert of_exact < -700


@pytest.mark.interpreted
@MACHINE
@BACKENDS
def test_what_the_unit_interval_ends_with(backend) -> None:
    f, params = Mixture(3, "normal", "unit", inverse=True), draw(1, 5, components=3)[1]
    x, _ = f(torch.tensor([[0.0, 1.0, 1.5, -0.1, torch.nan]]).double(), params, backend=backend)
    assert x[0, 0] == -torch.inf and x[0, 1] == torch.inf and x[0, 2:].isnan().all()


def test_the_conditional_distribution_function_of_a_mixture_of_gaussians() -> None:
    """R064: MADE + mixture on the unit box is the autoregressive mixture density; samples come in one sweep."""
    torch.manual_seed(0)
    K, D = 5, 3
    net = nets.MADE(D, 3 * K, hidden=(16,), seed=0)
    layer = transforms.Autoregressive(net, Mixture(K, "normal", "unit"))
    flow = flows.Flow(layer, distributions.UniformBox([0.0] * D, [1.0] * D)).double()
    for p in flow.parameters():
        torch.nn.init.normal_(p, std=0.5)
    x = torch.randn(50, D).double()
    w, m, s = net(x).view(50, D, 3, K).unbind(-2)
    parts = torch.distributions.Normal(m, s.exp())
    density = (
        torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=w), parts).log_prob(x).sum(-1)
    )
    torch.testing.assert_close(flow.log_prob(x), density, rtol=1e-12, atol=1e-12)
    sample, log_prob = flow.sample_and_log_prob(200)
    torch.testing.assert_close(flow.log_prob(sample), log_prob, rtol=1e-9, atol=1e-9)


@pytest.mark.interpreted
@MACHINE
@EVERY
def test_a_bad_element_stays_alone(kernel, outer) -> None:
    for f in (Mixture(3, kernel, outer), Mixture(3, kernel, outer, inverse=True)):
        x, params = draw(20, 4, components=3)
        x = values_of(f, x)
        y, ladj = f(x, params)
        for place in (0, 4, 8):
            broken = params.clone()
            broken[7, 2, place] = torch.nan
            found, part = f(x, broken)
            assert found[7, 2].isnan() and part[7].isnan()
            found[7, 2], part[7] = y[7, 2], ladj[7]
            assert torch.equal(found, y) and torch.equal(part, ladj)


@pytest.mark.parametrize(
    ("settings", "message"),
    {
        "components": ({"components": 0}, "components must be an integer from 1 to 128, got 0"),
        "too many": ({"components": 129}, "components must be an integer from 1 to 128, got 129"),
        "kernel": ({"kernel": "cauchy"}, "kernel must be one of logistic, normal, got 'cauchy'"),
        "outer": ({"outer": "none"}, "outer must be one of logit, probit, unit, got 'none'"),
        "low": ({"min_log_scale": -21}, "min_log_scale must be a number from -20 to 20, got -21"),
        "order": ({"min_log_scale": 7.0}, r"min_log_scale must be below max_log_scale = 7.0, got 7.0"),
        "nan": ({"max_log_scale": math.nan}, "max_log_scale must be a number from -20 to 20, got nan"),
        "form": ({"parametrization": "means"}, "parametrization must be one of weights, shifts, got 'means'"),
        "shrink": ({"outer": "probit", "shrink": 0.6}, "shrink must be 0 or a number from 1e-12 to 0.5, got 0.6"),
        "of probits": ({"shrink": 0.1}, "shrink must be 0 where outer is 'logit', got 0.1"),
        "bound": ({"bound": -1.0}, r"bound must be a number from 1e-30 to 1e\+30, got -1.0"),
    }.values(),
)
def test_settings(settings, message) -> None:
    with pytest.raises(ValueError, match=f"^ops.mixture: {message}$"):
        Mixture(**settings)
    with pytest.raises(ValueError, match=f"^ops.mixture: {message}$"):
        ops.mixture(torch.zeros(1, 1), torch.zeros(1, 1, 24), **{"components": 8, **settings})


# ---- shifts, and what is drawn towards 1/2 ----


@MACHINE
@BACKENDS
@pytest.mark.parametrize("components", [1, 3])
def test_shifts_are_means_by_other_parameters(components, backend) -> None:
    """Of equal weights, m = -b e^-a and s = -a; gradients by the same rule, and none beyond where scales stop."""
    given = {
        "kernel": "normal",
        "outer": "probit",
        "min_log_scale": -1.0,
        "max_log_scale": 2.0,
        "components": components,
    }
    x, drawn = draw(30, 2, components=components, n_params=2 * components)
    for inverse in (False, True):
        found = []
        for form in ("shifts", "weights"):
            v, p = x.clone().requires_grad_(), drawn.clone().requires_grad_()
            b, a = p.split(components, -1)
            s = (-a).clamp(-1.0, 2.0)
            parts = p if form == "shifts" else torch.cat((torch.zeros_like(b), -b * s.exp(), -a), -1)
            outputs = ops.mixture(v, parts, **given, parametrization=form, inverse=inverse, backend=backend)
            found.append([*outputs, *torch.autograd.grad(outputs[0].sum() + outputs[1].square().sum(), (v, p))])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@MACHINE
@BACKENDS
@WIDE
def test_beyond_what_a_shrunk_sum_reaches(wide, backend) -> None:
    """There the inverse ends at the bound, without a gradient, and with the ladj of forward there."""
    f = Mixture(3, **ZUKOS, bound=7.0)
    params = draw(1, 4, components=3, n_params=6)[1].to(wide).requires_grad_()
    y = torch.tensor([[-6.0, 5.5, 0.3, -torch.inf]], dtype=wide).requires_grad_()
    x, ladj = f.inverted()(y, params, backend=backend)
    assert x[0, [0, 1, 3]].tolist() == [-7.0, 7.0, -7.0] and ladj.isfinite().all() and x.abs().max() <= 7
    torch.testing.assert_close(ladj, -f(x.detach(), params, backend="reference")[1], rtol=1e-4, atol=1e-4)
    of_y, of_params = torch.autograd.grad(x[0, :3].sum(), (y, params))
    assert of_y[0, :2].tolist() == [0.0, 0.0] and of_y[0, 2] > 0
    assert (of_params[0, :2] == 0).all() and of_params[0, 2].any()
    assert f.inverted()(torch.full_like(y, torch.nan), params, backend=backend)[0].isnan().all()


@MACHINE
@BACKENDS
@WIDE
@pytest.mark.parametrize("form", ["zuko's", "shrunk"])
def test_a_shrunk_sum_ends(form, wide, backend) -> None:
    """y ends at the quantiles of half of what is drawn, with a finite ladj however far out."""
    f = Mixture(2, **OTHERS[form])
    x = torch.tensor([[-1e4, -60.0, 60.0, 1e4, torch.inf]], dtype=wide)
    params = draw(1, 5, components=2, n_params=f.n_params)[1].to(wide).clamp(-1, 1).requires_grad_()
    y, ladj = f(x, params, backend=backend)
    end = torch.special.ndtri(torch.tensor(0.5 * f.shrink, dtype=torch.float64)).to(wide)
    torch.testing.assert_close(y[0, :2], end.expand(2), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(y[0, 2:], -end.expand(3), rtol=1e-6, atol=0.0)
    assert ladj.isfinite().all()
    (grad,) = torch.autograd.grad(y[0, :4].sum(), params)
    assert grad[0, :4].abs().max() < 1e-6


# ---- the gate of the compiled module ----


def _calls(P: int = 12) -> tuple[dict[str, Any], dict[str, Any]]:
    spec = _native.C.MixtureSpec(4, 0, 0, -7.0, 7.0, False, 0.0, 10.0, False)
    x, params, rows = torch.zeros(5, 3), torch.zeros(5, 3, P), torch.zeros(5)
    fwd = {"spec": spec, "x": x, "params": params, "y": x.clone(), "ladj": rows, "threads": 1}
    bwd = {
        "spec": spec, "x": x, "params": params, "grad_y": x.clone(), "grad_ladj": rows, "grad_x": x.clone(),
        "grad_params": params.clone(), "threads": 1,
    }  # fmt: skip
    return fwd, bwd


COMPILED = pytest.mark.skipif(_native.C is None, reason="no compiled module")


@COMPILED
@pytest.mark.parametrize(
    ("broken", "message"),
    {
        "x": ({"x": torch.zeros(5, 3, dtype=torch.int16)}, "mixture: x must be"),
        "scalar": ({"x": torch.zeros(())}, "mixture: x must be [..., D], got a scalar"),
        "params": ({"params": torch.zeros(5, 3, 11)}, "mixture: params must be [5, 3, 12], got [5, 3, 11]"),
        "type": ({"params": torch.zeros(5, 3, 12).double()}, "mixture: params must be of the type of x"),
        "dense": ({"params": torch.zeros(5, 3, 24)[..., ::2]}, "mixture: params must be dense in their last dim"),
        "y": ({"y": torch.zeros(5, 4)}, "mixture: y must be [5, 3], got [5, 4]"),
        "ladj": ({"ladj": torch.zeros(4)}, "mixture: ladj must be [5], got [4]"),
    }.values(),
)
def test_the_gate_of_forward(broken, message) -> None:
    assert_refused(_native.C.mixture_fwd, _calls()[0], broken, message)


@COMPILED
@pytest.mark.parametrize(
    ("broken", "message"),
    {
        "grad_y": ({"grad_y": torch.zeros(5, 4)}, "mixture: grad_y must be [5, 3], got [5, 4]"),
        "grad_ladj": ({"grad_ladj": torch.zeros(5).double()}, "mixture: grad_ladj must be float32, got float64"),
        "grad_x": ({"grad_x": torch.zeros(3, 5).T}, "mixture: grad_x must be contiguous, got strides [1, 5]"),
        "grad_params": ({"grad_params": torch.zeros(5, 3, 11)}, "grad_params must be [5, 3, 12], got [5, 3, 11]"),
    }.values(),
)
def test_the_gate_of_backward(broken, message) -> None:
    assert_refused(_native.C.mixture_bwd, _calls()[1], broken, message)


@COMPILED
def test_the_gate_of_settings() -> None:
    names = {
        "components": 4, "kernel": 0, "outer": 0, "low": -7.0, "high": 7.0, "shifts": False, "shrink": 0.0,
        "bound": 10.0, "inverse": False,
    }  # fmt: skip
    for broken, message in (
        ({"components": 0}, "MixtureSpec: components must be from 1 to 128, got 0"),
        ({"components": 129}, "MixtureSpec: components must be from 1 to 128, got 129"),
        ({"kernel": 2}, "MixtureSpec: kernel must be from 0 to 1, got 2"),
        ({"outer": 3}, "MixtureSpec: outer must be from 0 to 2, got 3"),
    ):
        assert_refused(_native.C.MixtureSpec, names, broken, message)


# ---- the numbers rule ----


@pytest.mark.thinned(2)
@pytest.mark.interpreted(
    "1-forward-normal-logit",
    "1-forward-normal-unit",
    "1-inverse-normal-logit",
    "1-inverse-normal-probit",
    "1-inverse-normal-unit",
    "8-forward-logistic-logit",
    "8-forward-logistic-probit",
    "8-forward-logistic-unit",
    "8-forward-normal-logit",
    "8-forward-normal-probit",
    "8-forward-normal-unit",
    "8-inverse-logistic-logit",
    "8-inverse-logistic-probit",
    "8-inverse-logistic-unit",
    "8-inverse-normal-logit",
    "8-inverse-normal-probit",
    "8-inverse-normal-unit",
)
@MACHINE
@EVERY
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("components", [1, 8, pytest.param(33, marks=pytest.mark.slow)])
def test_numbers(all_isas, kernel, outer, inverse, components) -> None:
    """Values and gradients in float32, on every instruction set, beside the eager reference's."""
    assert_numbers(Mixture(components, kernel, outer, inverse=inverse), all_isas)


@pytest.mark.thinned(2)
@MACHINE
@pytest.mark.parametrize("form", OTHERS)
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("components", [1, 8, pytest.param(33, marks=pytest.mark.slow)])
def test_numbers_of_other_forms(all_isas, form, inverse, components) -> None:
    assert_numbers(Mixture(components, **OTHERS[form], inverse=inverse), all_isas)


def assert_numbers(f: Mixture, all_isas: Any) -> None:
    x, params = draw(400, 3, components=f.components, seed=5, scale=0.7, n_params=f.n_params)
    v = values_of(f, x).float()
    drawn = [torch.randn(t.shape, generator=torch.Generator().manual_seed(9), device="cpu") for t in (v, v[:, 0])]
    weights = [here(t.double()) for t in drawn]
    eps = torch.finfo(torch.float32).eps

    def run(a: Tensor, p: Tensor, dtype: torch.dtype, backend: str | None = "reference") -> list[Tensor]:
        a, p = a.to(dtype).requires_grad_(), p.to(dtype).requires_grad_()
        y, ladj = f(a, p, backend=backend)
        grads = torch.autograd.grad([y, ladj], [a, p], [w.to(dtype) for w in weights])
        return [t.detach().double() for t in (y, ladj, *grads)]

    params = params.float()
    truth, eager = run(v, params, torch.float64), run(v, params, torch.float32)
    moves = [torch.zeros_like(t) for t in truth]
    draws = [(e - t).abs() for e, t in zip(eager, truth, strict=True)]
    for seed in range(3):  # inputs rounded once more, either way, and eager's error there
        g = torch.Generator().manual_seed(seed)
        signs = [here(torch.randn(t.shape, generator=g, device="cpu").sign()) for t in (v, params)]
        near = [t.double() * (1 + eps / 2 * s) for t, s in zip((v, params), signs, strict=True)]
        moves = [
            torch.maximum(m, (a - b).abs()) for m, a, b in zip(moves, run(*near, torch.float64), truth, strict=True)
        ]
        near = [t.float() for t in near]
        pairs = zip(run(*near, torch.float32), run(*near, torch.float64), strict=True)
        draws = [torch.maximum(d, (a - b).abs()) for d, (a, b) in zip(draws, pairs, strict=True)]
    for isa in all_isas:
        found = run(v, params, torch.float32, None)
        for i, name in enumerate(("y", "ladj", "grad x", "grad params")):
            assert_within_rule(
                found[i], eager[i], truth[i], f"{isa}: {name}", condition=(moves[i], draws[i]), dtype=torch.float32
            )


@MACHINE
@BACKENDS
@WIDE
@pytest.mark.parametrize("scale", [-3.0, -4.0, -6.5])
@pytest.mark.parametrize(("kernel", "outer"), [("normal", "probit"), ("normal", "logit"), ("logistic", "logit")])
def test_a_plateau_between_two_modes(kernel, outer, scale, wide, backend) -> None:
    """Halfway between narrow modes the slope is next to nothing, or 0: every x there is a root, the modes are none."""
    params = torch.tensor([0, 0, -1.0, 1, scale, scale], dtype=wide).view(1, 1, 6)
    f = Mixture(2, kernel, outer)
    y = torch.zeros(1, 1, dtype=wide)
    x, ladj = f.inverted()(y, params, backend=backend)
    assert x.abs() < 0.9 and ladj > 10
    assert f(x, params)[0].abs() < 1e-6


@MACHINE
@BACKENDS
@WIDE
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "outer"), [("normal", "probit"), ("normal", "logit"), ("logistic", "logit")])
def test_what_was_found_is_a_root(kernel, outer, size, wide, backend) -> None:
    """Where several scales lie far apart, too: not near some x, of which there may be many, but of this y."""
    x, params = (t.to(wide) for t in draw(4000, 1, components=3, scale=size))
    f = Mixture(3, kernel, outer)
    y, _ = f(3 * x, params)
    back, ladj = f.inverted()(y, params, backend=backend)
    again, _ = f(back, params)
    assert ladj.isfinite().all() and ((again - y).abs() <= 1e-4 * (1 + y.abs())).all()


def test_triton_has_the_numbers_of_the_normal_tail() -> None:
    """Stated twice, as a kernel of Triton reads them from memory."""
    from flowkernels.ops.mixture.triton import ERFC

    header = Path(__file__).parents[2] / "csrc/common/normal_tail.h"
    text = header.read_text().partition("#define FK_ERFC")[2].partition("namespace")[0]
    assert tuple(map(float, re.findall(r"-?\d\.\d+(?:e-?\d+)?", text))) == ERFC
