"""Objectives against closed forms for Gaussians: values and gradients within five of their own errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from flowkernels import flows, objectives
from flowkernels.distributions import DiagonalNormal
from flowkernels.objectives.f_divergence import KINDS
from flowkernels.transforms import Permutation

N = 20_000


class Gaussian(flows.Flow):
    """q = N(mean, scale²) of two features: a base that trains, behind a transform that does nothing."""

    def __init__(self, mean: float, scale: float) -> None:
        base = DiagonalNormal(2).double()
        super().__init__(Permutation([0, 1]), base)
        with torch.no_grad():
            base.loc.fill_(mean)
            base.log_scale.fill_(math.log(scale))


def normal(mean: float, scale: float) -> Independent:
    loc, deviation = (torch.tensor([v, v], dtype=torch.float64) for v in (mean, scale))
    return Independent(Normal(loc, deviation), 1)


def of(flow: Gaussian) -> tuple[Tensor, Tensor]:
    base: Any = flow.base
    return base.loc, base.log_scale


def close(estimate: objectives.Estimate, right: float | Tensor) -> None:
    assert estimate.error.item() < 0.1
    assert abs(estimate.value.item() - float(right)) < 5 * estimate.error.item() + 1e-12


def kl(a: Normal, b: Normal) -> Tensor:
    return torch.distributions.kl_divergence(a, b)


def exact(kind: str, q: Independent, p: Independent) -> Tensor:
    """Each a product over features of what an integral over a fine grid says."""
    x = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    log_p, log_q = (Normal(d.base_dist.loc[0], d.base_dist.scale[0]).log_prob(x) for d in (p, q))  # type: ignore[attr-defined]

    def integral(of: Tensor) -> Tensor:
        return torch.trapezoid(of, x)

    if kind == "kl":
        return 2 * integral(log_p.exp() * (log_p - log_q))
    if kind == "reverse":
        return 2 * integral(log_q.exp() * (log_q - log_p))
    if kind == "hellinger":
        return 1 - integral((0.5 * (log_p + log_q)).exp()) ** 2
    if kind == "chi2":
        return integral((2 * log_p - log_q).exp()) ** 2 - 1
    assert kind == "alpha"
    return (integral((0.3 * log_p + 0.7 * log_q).exp()) ** 2 - 1) / (0.3 * (0.3 - 1))


def test_forward_kl_and_its_gradient_are_those_of_gaussians() -> None:
    torch.manual_seed(0)
    flow, p = Gaussian(0.3, 1.2), normal(0.0, 1.0)
    x = p.sample((N,))
    found = objectives.forward_kl(flow, x, log_p=p.log_prob(x))
    loc, log_scale = of(flow)
    right = kl(p.base_dist, Normal(loc, log_scale.exp())).sum()  # type: ignore[attr-defined]
    close(found, right.detach())
    entropy = objectives.forward_kl(flow, x)
    close(entropy, (right + p.entropy()).detach())
    for mine, truth in zip(*(torch.autograd.grad(v, of(flow)) for v in (found.value, right)), strict=True):
        torch.testing.assert_close(mine, truth, rtol=0, atol=5 / N**0.5)


@pytest.mark.parametrize("path_gradient", [False, True])
def test_reverse_kl_and_its_gradient_are_those_of_gaussians(path_gradient) -> None:
    torch.manual_seed(0)
    flow, p = Gaussian(0.3, 1.2), normal(0.0, 1.0)
    found = objectives.reverse_kl(flow, lambda x: p.log_prob(x) + 7, N, path_gradient=path_gradient)
    loc, log_scale = of(flow)
    right = kl(Normal(loc, log_scale.exp()), p.base_dist).sum()  # type: ignore[attr-defined]
    close(found, (right - 7).detach())
    for mine, truth in zip(*(torch.autograd.grad(v, of(flow)) for v in (found.value, right)), strict=True):
        torch.testing.assert_close(mine, truth, rtol=0, atol=10 / N**0.5)


@pytest.mark.parametrize("model", [flows.RealNVP, flows.IAF, flows.NSF])
def test_a_path_gradient_has_no_variance_where_q_is_p(model) -> None:
    """Each sample's gradient is 0, not only their mean; the plain gradient of a few samples is not."""
    torch.manual_seed(0)
    flow, target = (model(3, transforms=2, hidden=(8,)).double() for _ in range(2))
    for p in flow.parameters():
        torch.nn.init.normal_(p, std=0.1)
    target.load_state_dict(flow.state_dict())
    target.requires_grad_(False)
    torch.manual_seed(1)
    for path_gradient in (True, False):
        loss = objectives.reverse_kl(flow, target.log_prob, 4, path_gradient=path_gradient).value
        grads = torch.autograd.grad(loss, list(flow.parameters()), allow_unused=True)
        largest = max(g.abs().max().item() for g in grads if g is not None)
        assert largest < 1e-9 if path_gradient else largest > 1e-3
    assert all(p.requires_grad for p in flow.parameters())


def test_a_path_gradient_reaches_the_context() -> None:
    flow, context = flows.RealNVP(2, context=3), torch.randn(5, 3, requires_grad=True)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1 * torch.randn_like(p))
    loss = objectives.reverse_kl(flow, lambda x: -x.square().sum(-1), 4, context, path_gradient=True)
    assert torch.autograd.grad(loss.value, context)[0].abs().max() > 0
    assert loss.value.shape == ()


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "js"])
@pytest.mark.parametrize("normalized", [True, False])
def test_f_divergences_are_those_of_gaussians(kind, normalized) -> None:
    torch.manual_seed(0)
    q, p, flow = normal(0.3, 1.2), normal(0.0, 1.0), Gaussian(0.3, 1.2)
    constant = 0.0 if normalized else 3.0
    found = objectives.f_divergence(
        flow, lambda x: p.log_prob(x) + constant, N, kind=kind, alpha=0.3, normalized=normalized
    )
    close(found, exact(kind, q, p))


def test_jensen_shannon_is_the_mean_of_two_divergences_from_the_mixture() -> None:
    torch.manual_seed(0)
    q, p, flow = normal(0.3, 1.2), normal(0.0, 1.0), Gaussian(0.3, 1.2)

    def from_mixture(d: Independent) -> float:
        x = d.sample((N,))
        log_m = torch.logaddexp(p.log_prob(x), q.log_prob(x)) - math.log(2)
        return (d.log_prob(x) - log_m).mean().item()

    found = objectives.f_divergence(flow, p.log_prob, N, kind="js")
    assert found.value.item() == pytest.approx((from_mixture(p) + from_mixture(q)) / 2, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_f_divergences_of_a_flow_from_itself_are_0_with_the_gradient_that_has_that_mean(kind) -> None:
    flow = Gaussian(0.3, 1.2)
    found = objectives.f_divergence(flow, normal(0.3, 1.2).log_prob, 100, kind=kind)
    torch.testing.assert_close(found.value, torch.zeros(()).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["kl", "js", "hellinger", "chi2", "alpha"])
def test_where_the_target_is_0_divergences_are_numbers(kind) -> None:
    flow = Gaussian(0.0, 1.0)
    torch.manual_seed(0)
    found = objectives.f_divergence(
        flow,
        lambda x: torch.where(x[..., 0] > 0, normal(0.0, 1.0).log_prob(x) + math.log(2), -math.inf),
        100,
        kind=kind,
    )
    assert found.value.isfinite() and found.value > 0
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(found.value, of(flow)))


def test_bounds_are_those_of_a_gaussian_model() -> None:
    """z ~ N(0, 1), y | z ~ N(z, 1): log p(y) = log N(y; 0, 2) a feature, the posterior N(y / 2, 1/2)."""
    torch.manual_seed(0)
    y = torch.tensor(0.8, dtype=torch.float64)
    evidence = normal(0.0, 2**0.5).log_prob(y.expand(2))

    def log_joint(z: Tensor) -> Tensor:
        return normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(y).sum(-1)

    exact_posterior = Gaussian(0.4, 0.5**0.5)
    for found in (objectives.elbo(exact_posterior, log_joint, 3), objectives.iwae(exact_posterior, log_joint, 3)):
        torch.testing.assert_close(found.value, evidence, atol=1e-9, rtol=0)
    q = Gaussian(0.3, 1.0)
    gap = 2 * kl(Normal(0.3, 1.0), Normal(0.4, 0.5**0.5))
    close(objectives.elbo(q, log_joint, N), evidence - gap)
    close(objectives.iwae(q, log_joint, N), evidence)
    few = torch.stack([objectives.iwae(q, log_joint, 5).value for _ in range(400)]).mean()
    assert evidence - gap < few < evidence


def test_bounds_are_of_each_observation() -> None:
    posterior, y = flows.IAF(2, context=3, seed=0), torch.randn(5, 3)
    for bound in (
        objectives.elbo(posterior, lambda z: -z.square().sum(-1), 4, y),
        objectives.iwae(posterior, lambda z: -z.square().sum(-1), 4, y),
    ):
        assert bound.value.shape == bound.error.shape == (5,)
        assert bound.error.isfinite().all() and not bound.error.requires_grad
        assert str(bound).startswith("[")


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_mmd(kernel) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(400, 2, dtype=torch.float64), torch.randn(300, 2, dtype=torch.float64)
    same = objectives.mmd(x, y, kernel=kernel)
    apart = objectives.mmd(x, y + 1, kernel=kernel)
    assert abs(same.value) < 0.01 < 0.1 < apart.value < 1
    assert apart.value > 5 * apart.error > 0
    # Of rbf and Gaussians: E k = (1 + 2 / h²)^(-1) exp(-d² / (2 (h² + 2))) in two dimensions
    if kernel == "rbf":
        found = objectives.mmd(x, y + 1, bandwidth=1.5)
        h2 = 1.5**2
        close(found, 2 * (h2 / (h2 + 2)) * (1 - math.exp(-2 / (2 * (h2 + 2)))))
    moved = y.clone().requires_grad_()
    assert torch.autograd.grad(objectives.mmd(x, moved + 1, kernel=kernel).value, moved)[0].mean() > 0
    once = torch.zeros(3, 2)
    assert objectives.mmd(once, once, kernel=kernel).value == 0


def test_sliced_wasserstein() -> None:
    """Of a shift by v, E |θ·v|² = |v|² / D exactly, as sorting moves with it."""
    torch.manual_seed(0)
    x = torch.randn(100, 3, dtype=torch.float64)
    v = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    found = objectives.sliced_wasserstein(x, x[torch.randperm(100)] + v, projections=4000, seed=0)
    close(found, v.square().sum() / 3)
    again = objectives.sliced_wasserstein(x, x + v, projections=4000, seed=0)
    torch.testing.assert_close(again.value, found.value)
    first = objectives.sliced_wasserstein(x, x + v, projections=4000, order=1, seed=1)
    close(first, v.norm() / 2)  # E |cos| on the sphere in 3 dims
    y = x.clone().requires_grad_()
    assert torch.autograd.grad(objectives.sliced_wasserstein(x, y + v, seed=0).value, y)[0].isfinite().all()


def test_one_sample_has_no_error() -> None:
    found = objectives.reverse_kl(Gaussian(0.0, 1.0), normal(0.0, 1.0).log_prob, 1)
    assert found.value.isfinite() and found.error.isnan()


_FLOW, _X = Gaussian(0.0, 1.0), torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: objectives.forward_kl(_FLOW, [1.0]), TypeError, "x must be a torch.Tensor"),  # type: ignore[arg-type]
        (lambda: objectives.forward_kl(_FLOW, _X[:0].double()), ValueError, r"n at least 1, got \[0, 2\]"),
        (lambda: objectives.forward_kl(_FLOW, _X.double(), log_p=_X), ValueError, r"log_p must be \[3\], got \[3, 2\]"),
        (lambda: objectives.reverse_kl(_FLOW, 3, 5), TypeError, "log_target must be a function of x, got int"),  # type: ignore[arg-type]
        (lambda: objectives.reverse_kl(_FLOW, lambda x: x, 5), ValueError, r"must return \[5\] for x \[5, 2\], got"),
        (lambda: objectives.reverse_kl(_FLOW, lambda x: x.sum(-1), 0), ValueError, "n must be at least 1, got 0"),
        (
            lambda: objectives.reverse_kl(_FLOW, lambda x: x.sum(-1), 2, path_gradient=1),  # type: ignore[arg-type]
            ValueError,
            "path_gradient must be True or False",
        ),
        (lambda: objectives.reverse_kl(torch.nn.ReLU(), abs, 2), TypeError, "flow must be a flowkernels.flows.Flow"),  # type: ignore[arg-type]
        (lambda: objectives.f_divergence(_FLOW, abs, 2, kind="tv"), ValueError, 'kind must be "kl", "reverse"'),  # type: ignore[arg-type]
        (
            lambda: objectives.f_divergence(_FLOW, abs, 2, kind="alpha", alpha=1),  # type: ignore[arg-type]
            ValueError,
            "alpha must be a finite number other than 0 and 1, got 1",
        ),
        (lambda: objectives.elbo(_FLOW, lambda z: z, 2), ValueError, "log_joint must return"),
        (lambda: objectives.mmd(_X, _X[:, :1]), ValueError, "y must have the 2 features"),
        (lambda: objectives.mmd(_X[:1], _X), ValueError, "with n at least 2"),
        (lambda: objectives.mmd(_X, _X, kernel="linear"), ValueError, 'kernel must be "rbf" or "imq"'),
        (lambda: objectives.mmd(_X, _X, bandwidth=0), ValueError, "bandwidth must be a finite number above 0"),
        (lambda: objectives.sliced_wasserstein(_X, _X[:2]), ValueError, r"y must be \[n, D\] = \[3, 2\], got \[2, 2\]"),
        (lambda: objectives.sliced_wasserstein(_X, _X, order=0.5), ValueError, "order must be a finite number from 1"),
    ],
)
def test_errors(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
