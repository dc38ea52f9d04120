"""Samplers of a target by a flow against moments that are known, within five of their errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from flowkernels import flows, inference

LOG_Z = 2.5


def proposal() -> flows.Flow:
    """A flow that is no identity, near N(0, 1)."""
    torch.manual_seed(0)
    flow = flows.RealNVP(2, transforms=2, hidden=(8,)).double()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return flow


def log_target(x: Tensor) -> Tensor:
    """N((0.3, -0.2), 0.8²), times e^LOG_Z."""
    mean = torch.tensor([0.3, -0.2], dtype=x.dtype)
    return Normal(mean, torch.full_like(mean, 0.8)).log_prob(x).sum(-1) + LOG_Z


def assert_moments(x: Tensor, ess: float) -> None:
    mean = torch.tensor([0.3, -0.2], dtype=x.dtype)
    assert ((x.mean(0) - mean).abs() < 5 * 0.8 / ess**0.5).all()
    assert ((x.var(0) - 0.64).abs() < 5 * 0.64 * (2 / ess) ** 0.5).all()


def test_importance_sampling() -> None:
    flow = proposal()
    found = inference.importance_sampling(flow, log_target, 20_000)
    assert found.x.shape == (20_000, 2) and not found.x.requires_grad
    assert abs(found.log_evidence.value - LOG_Z) < 5 * found.log_evidence.error < 0.1
    assert 10_000 < found.ess < 20_000
    for f, right in ((lambda x: x[..., 0], 0.3), (lambda x: (x[..., 1] + 0.2).square(), 0.64)):
        estimate = found.expectation(f)
        assert abs(estimate.value - right) < 5 * estimate.error < 0.1
    assert_moments(found.resample(5000, seed=0), 4000)
    assert torch.equal(found.resample(5, seed=0), found.resample(5, seed=0))


def test_the_error_of_a_weighted_mean_is_its_deviation() -> None:
    flow = proposal()
    runs = [inference.importance_sampling(flow, log_target, 500) for _ in range(200)]
    means = torch.stack([r.expectation(lambda x: x).value for r in runs])
    errors = torch.stack([r.expectation(lambda x: x).error for r in runs])
    torch.testing.assert_close(means.std(0), errors.mean(0), rtol=0.25, atol=0)


def test_weights_of_a_flow_as_its_own_target_are_1() -> None:
    flow = proposal()
    found = inference.importance_sampling(flow, flow.log_prob, 100)
    torch.testing.assert_close(found.log_weights, torch.zeros(100).double(), atol=1e-10, rtol=0)
    torch.testing.assert_close(found.ess, torch.tensor(100.0).double())


def test_what_has_no_weight_does_not_count() -> None:
    found = inference.importance_sampling(
        proposal(), lambda x: torch.where(x[..., 0] > 0, log_target(x), -math.inf), 2000
    )
    estimate = found.expectation(lambda x: torch.where(x[..., 0] > 0, x[..., 0], math.inf))
    assert estimate.value.isfinite() and estimate.value > 0.3


def test_importance_weights_of_each_context() -> None:
    flow, context = flows.RealNVP(2, context=3), torch.randn(4, 3)
    found = inference.importance_sampling(flow, lambda x: -x.square().sum(-1), 50, context)
    assert found.x.shape == (50, 4, 2)
    assert found.ess.shape == found.log_evidence.value.shape == (4,)
    assert found.expectation(lambda x: x).value.shape == (4, 2)
    with pytest.raises(ValueError, match=r"samples must be of one context, got weights \[50, 4\]"):
        found.resample(3)


@pytest.mark.parametrize("log_bound", [None, LOG_Z + 2.0])
def test_rejection_sampling(log_bound) -> None:
    flow = proposal()
    torch.manual_seed(1)
    found = inference.rejection_sampling(flow, log_target, 8000, log_bound=log_bound)
    assert found.x.shape == (8000, 2)
    assert_moments(found.x, 8000)
    # The share that is accepted is Z / M.
    assert found.rate == pytest.approx(math.exp(LOG_Z - found.log_bound), rel=0.1)
    if log_bound is not None:
        assert found.log_bound == log_bound


def test_a_bound_that_grows_thins_what_was_accepted() -> None:
    """Many small batches, whose first bounds are too low: all samples are as if the last one had been known."""
    flow = proposal()
    torch.manual_seed(2)
    xs = [inference.rejection_sampling(flow, log_target, 3) for _ in range(3)]
    assert all(f.x.shape == (3, 2) for f in xs)
    found = inference.rejection_sampling(flow, log_target, 5000)
    ratio = log_target(found.x) - flow.log_prob(found.x)
    assert (ratio <= found.log_bound).all()


def test_rejection_sampling_gives_up_or_says_that_the_bound_is_wrong() -> None:
    flow = proposal()
    with pytest.raises(RuntimeError, match="2000 proposals gave 0 of 10 samples, at a bound of"):
        inference.rejection_sampling(flow, log_target, 10, log_bound=100.0, most=2000)
    with pytest.raises(ValueError, match=r"log_bound must be at least every log p/q, got 0\.0 and"):
        inference.rejection_sampling(flow, log_target, 10, log_bound=0.0)
    with pytest.raises(ValueError, match="log_bound must be a finite number or None, got nan"):
        inference.rejection_sampling(flow, log_target, 10, log_bound=math.nan)
    with pytest.raises(ValueError, match="log_target must be finite or -inf, got inf"):
        inference.rejection_sampling(flow, lambda x: x[..., 0] + math.inf, 10)


def test_independence_metropolis() -> None:
    torch.manual_seed(3)
    found = inference.independence_metropolis(proposal(), log_target, 1000, chains=8, warmup=20)
    assert found.x.shape == (1000, 8, 2) and found.log_target.shape == (1000, 8)
    torch.testing.assert_close(log_target(found.x), found.log_target)
    assert (found.rhat < 1.02).all() and found.divergences == 0 and math.isnan(found.step_size)
    assert_moments(found.x.flatten(0, 1), float(found.ess.min()))
    moved = (found.x[1:] != found.x[:-1]).any(-1).double().mean().item()
    assert found.rate == pytest.approx(moved, abs=0.01) and 0.5 < moved < 1


def test_independence_metropolis_in_pieces_scans_all(monkeypatch) -> None:
    monkeypatch.setattr("flowkernels.inference.metropolis._AT_ONCE", 64)
    torch.manual_seed(3)
    found = inference.independence_metropolis(proposal(), log_target, 100, chains=8, warmup=3)
    assert found.x.shape == (100, 8, 2)
    torch.testing.assert_close(log_target(found.x), found.log_target)


def test_chains_leave_where_the_target_is_0_and_pass_nan_by() -> None:
    def half(x: Tensor) -> Tensor:
        return torch.where(x[..., 0] > 0, log_target(x), torch.where(x[..., 1] > 0, -math.inf, math.nan))

    torch.manual_seed(0)
    found = inference.independence_metropolis(proposal(), half, 300, chains=8, warmup=50)
    assert (found.x[..., 0] > 0).all() and found.divergences > 0


def test_latent_hmc() -> None:
    torch.manual_seed(4)
    found = inference.latent_hmc(proposal(), log_target, 400, chains=16)
    assert found.x.shape == (400, 16, 2) and found.log_target.shape == (400, 16)
    torch.testing.assert_close(log_target(found.x), found.log_target)
    assert (found.rhat < 1.03).all() and found.divergences == 0
    assert 0.6 < found.rate < 0.95 and 0.1 < found.step_size < 3
    assert_moments(found.x.flatten(0, 1), float(found.ess.min()))


def test_latent_hmc_keeps_its_step_without_a_warmup_and_takes_one_context() -> None:
    flow = flows.RealNVP(2, context=3)
    found = inference.latent_hmc(
        flow, lambda x: -x.square().sum(-1), 5, chains=4, warmup=0, step_size=0.3, context=torch.zeros(3)
    )
    assert found.step_size == 0.3 and found.x.shape == (5, 4, 2)
    assert all(p.grad is None for p in flow.parameters())


FAR = torch.tensor([2.0, -1.5], dtype=torch.float64)


def far(x: Tensor) -> Tensor:
    """N(FAR, 0.4²), times e^LOG_Z: where the flow has next to no samples."""
    return Normal(FAR, torch.full_like(FAR, 0.4)).log_prob(x).sum(-1) + LOG_Z


@pytest.mark.parametrize(
    "settings", [{"leapfrog": 3, "pilot": 16}, {"leapfrog": 1, "target_rate": 0.57, "steps": 3}], ids=str
)
def test_annealed_importance_sampling(settings) -> None:
    """Evidence and moments within five of their errors, with an effective size that plain weights do not come near."""
    torch.manual_seed(0)
    flow = proposal()
    plain = inference.importance_sampling(flow, far, 1000)
    found = inference.annealed_importance_sampling(flow, far, 800, temperatures=10, **settings)
    assert found.x.shape == (800, 2) and not found.x.requires_grad
    assert found.ess > 100 > 2 * plain.ess
    assert abs(found.log_evidence.value - LOG_Z) < 5 * found.log_evidence.error < 0.5
    for f, right in ((lambda x: x, FAR), (lambda x: (x - FAR).square(), torch.full_like(FAR, 0.16))):
        estimate = found.expectation(f)
        assert ((estimate.value - right).abs() < 5 * estimate.error).all() and (estimate.error < 0.1).all()
    assert all(p.grad is None for p in flow.parameters())


def test_the_error_of_an_annealed_evidence_is_its_deviation() -> None:
    torch.manual_seed(1)
    flow = proposal()
    runs = [
        inference.annealed_importance_sampling(
            flow, log_target, 100, temperatures=3, leapfrog=2, pilot=0, step_size=0.7
        ).log_evidence
        for _ in range(40)
    ]
    values, errors = (torch.stack(t) for t in zip(*runs, strict=True))
    torch.testing.assert_close(values.std(), errors.mean(), rtol=0.35, atol=0)
    assert abs(values.exp().mean() - math.exp(LOG_Z)) < 5 * values.exp().std() / 40**0.5


def test_annealing_at_once_is_importance_sampling() -> None:
    flow = proposal()
    torch.manual_seed(2)
    found = inference.annealed_importance_sampling(flow, log_target, 50, temperatures=1)
    torch.testing.assert_close(found.log_weights, log_target(found.x) - flow.log_prob(found.x))


def test_temperatures_of_ones_own_a_context_and_where_the_target_is_no_number() -> None:
    flow = flows.RealNVP(2, context=3)
    torch.manual_seed(3)

    def half(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 0, -x.square().sum(-1), torch.where(x[:, 1] > 0, math.nan, -math.inf))

    found = inference.annealed_importance_sampling(
        flow, half, 400, temperatures=[0.1, 0.5, 1.0], leapfrog=2, pilot=8, context=torch.zeros(3)
    )
    assert not found.log_weights.isnan().any() and (found.log_weights == -math.inf).any()
    assert (found.x[found.weights > 0, 0] > 0).all()
    assert abs(found.log_evidence.value - math.log(math.pi / 2)) < 5 * found.log_evidence.error < 0.5


def test_an_energy_that_is_no_number_is_refused() -> None:
    torch.manual_seed(5)
    found = inference.latent_hmc(
        proposal(), lambda x: torch.where(x[..., 0] > 1, math.nan, log_target(x)), 100, chains=8, warmup=20
    )
    assert found.divergences > 0 and (found.x[-1, :, 0] <= 1).sum() >= 6


def numbers(n: int, m: int, phi: float, seed: int, tied: bool) -> Tensor:
    """Autoregressive chains of a generator that every library can repeat."""
    x = torch.zeros(n, m, 1, dtype=torch.float64)
    for j in range(m):
        v = 0.0
        for i in range(n):
            seed = (1103515245 * seed + 12345) % (1 << 31)
            v = phi * v + ((seed + 0.5) / (1 << 31) - 0.5)
            x[i, j, 0] = v
    return (10 * x).round() / 10 if tied else x


@pytest.mark.parametrize(
    ("chains", "rhat", "ess"),
    [
        ((200, 4, 0.0, 1, False), 1.004025164835, 671.544538441),
        ((201, 3, 0.7, 2, False), 1.021451507806, 134.643162781),
        ((400, 4, -0.4, 3, False), 1.002080139499, 3994.131148588),
        ((100, 2, 0.95, 4, False), 1.224109423876, 7.638810194),
        ((300, 4, 0.5, 5, True), 1.019465274943, 403.625768258),
    ],
)
def test_diagnostics_are_those_of_arviz(chains, rhat, ess) -> None:
    """Of ArviZ 0.21: `rhat(method="rank")`, `ess(method="bulk")`."""
    x = numbers(*chains)
    both = torch.cat([x, -2 * x], -1)
    for found, right in ((inference.rhat(both), rhat), (inference.ess(both), ess)):
        assert found.tolist() == pytest.approx([right, right], rel=1e-9)


def of_three(flow: flows.Flow) -> inference.Weighted:
    return inference.importance_sampling(flow, log_target, 3)


metropolis, hmc = inference.independence_metropolis, inference.latent_hmc
THREE = torch.zeros(1, 3)
annealed = inference.annealed_importance_sampling


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: inference.importance_sampling(f, log_target, 0), ValueError, "n must be at least 1, got 0"),
        (lambda f: inference.importance_sampling(f, abs, 3), ValueError, r"log_target must return \[3\] for x"),
        (lambda f: of_three(f).expectation(lambda x: x[:2]), ValueError, r"must return \[3\] or"),
        (lambda f: inference.rejection_sampling(f, log_target, 1, most=0), ValueError, "most must be at least 1"),
        (lambda f: metropolis(f, log_target, 3, chains=0), ValueError, "chains must be at least 1"),
        (lambda f: metropolis(f, log_target, 3, warmup=-1), ValueError, "warmup must be at least 0"),
        (lambda f: hmc(f, abs, 3), ValueError, r"log_target must return \[16\] for x \[16, 2\]"),
        (lambda f: hmc(f, 3, 3), TypeError, "log_target must be a function of x"),  # type: ignore[arg-type]
        (lambda f: hmc(abs, log_target, 3), TypeError, "flow must be a flowkernels"),  # type: ignore[arg-type]
        (lambda f: hmc(f, log_target, 3, step_size=0), ValueError, "step_size must be a finite number above 0"),
        (lambda f: hmc(f, log_target, 3, target_rate=1.0), ValueError, "target_rate must be above 0 and below 1"),
        (lambda f: annealed(f, abs, 3), ValueError, r"log_target must return \[64\] for x \[64, 2\]"),
        (lambda f: annealed(f, log_target, 0), ValueError, "n must be at least 1, got 0"),
        (lambda f: annealed(f, log_target, 3, temperatures=0), ValueError, "temperatures must be at least 1, got 0"),
        (lambda f: annealed(f, log_target, 3, temperatures=[0.5]), ValueError, "numbers that rise from above 0 to 1"),
        (lambda f: annealed(f, log_target, 3, temperatures=[0.0, 1.0]), ValueError, "numbers that rise from above 0"),
        (lambda f: annealed(f, log_target, 3, target_rate=0), ValueError, "target_rate must be above 0 and below 1"),
        (lambda f: annealed(f, log_target, 3, pilot=-1), ValueError, "pilot must be at least 0, got -1"),
        (lambda f: annealed(f, log_target, 3, context=THREE), ValueError, r"context must be \[C\], got \[1, 3\]"),
        (lambda f: inference.rhat(torch.zeros(3, 2, 1)), ValueError, r"at least 4 steps, got \[3, 2, 1\]"),
    ],
)
def test_errors(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call(proposal())
