"""Posteriors of a simulator that is linear and normal, whose posterior and evidence have closed forms."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, LogNormal, MultivariateNormal, Normal, Uniform

import flowkernels
from flowkernels import flows, inference
from flowkernels.distributions import UniformBox
from flowkernels.inference import simulations

NOISE, SEEN = 0.5, torch.tensor([0.6, -0.9])
A = torch.tensor([[1.0, 0.0], [0.5, 1.0]])
PRIOR = Normal(torch.zeros(2), 1.0)
SMALL = functools.partial(flows.MAF, transforms=2, hidden=(16,), linear="lu", seed=0)


@pytest.fixture(autouse=True)
def _one_thread(one_thread) -> None:
    """Small tensors."""


def simulator(theta: Tensor) -> Tensor:
    return theta @ A.T + NOISE * torch.randn_like(theta)


def right(observations: int = 1) -> MultivariateNormal:
    """The posterior given so many observations that are all `SEEN`."""
    precision = torch.eye(2) + observations * A.T @ A / NOISE**2
    mean = torch.linalg.solve(precision, observations * A.T @ SEEN / NOISE**2)
    return MultivariateNormal(mean, precision_matrix=precision)


@pytest.fixture(scope="module")
def posterior() -> inference.NeuralPosterior:
    torch.manual_seed(0)
    return inference.npe(PRIOR, simulator, 4000, flow=SMALL, epochs=25, lr=1e-2, batch_size=500)


@pytest.fixture(scope="module")
def likelihood() -> inference.NeuralLikelihood:
    torch.manual_seed(0)
    return inference.nle(PRIOR, simulator, 4000, flow=SMALL, epochs=25, lr=1e-2, batch_size=500)


def test_a_posterior_is_the_closed_form(posterior) -> None:
    """Its density beside the right one, as a Kullback-Leibler divergence: of weights of 1, and 0."""
    torch.manual_seed(1)
    theta = posterior.sample(2000, SEEN)
    log_q = posterior.log_prob(theta, SEEN)
    assert theta.shape == (2000, 2) and log_q.shape == (2000,)
    assert -0.001 < (log_q - right().log_prob(theta)).mean() < 0.03
    deviation = right().variance.sqrt()
    assert ((theta.mean(0) - right().mean) / deviation).abs().max() < 0.15
    assert (theta.std(0) / deviation - 1).abs().max() < 0.1


def test_many_observations_at_once(posterior) -> None:
    x = torch.stack((SEEN, -SEEN, 0 * SEEN))
    torch.manual_seed(1)
    assert posterior.sample(500, x).mean(0)[:, 1].diff().sign().tolist() == [1, -1]
    torch.testing.assert_close(posterior.log_prob(SEEN.expand(3, 2), x)[0], posterior.log_prob(SEEN, SEEN))


def test_what_is_left_wrong_weights_correct(posterior) -> None:
    """The fitted posterior as the proposal of the right one: evidence and mean, within five of their errors."""
    torch.manual_seed(2)

    def joint(theta: Tensor) -> Tensor:
        likelihood = Independent(Normal(theta @ A.T, NOISE), 1).log_prob(SEEN)
        return Independent(PRIOR, 1).log_prob(theta) + likelihood

    found = inference.importance_sampling(posterior.flow, lambda t: joint(t[:, 0])[:, None], 2000, SEEN[None])
    evidence = MultivariateNormal(torch.zeros(2), A @ A.T + NOISE**2 * torch.eye(2)).log_prob(SEEN)
    assert abs(found.log_evidence.value - evidence) < 5 * found.log_evidence.error < 0.05
    mean = found.expectation(lambda theta: theta)
    assert ((mean.value[0] - right().mean).abs() < 5 * mean.error[0]).all() and found.ess > 1500


def test_a_likelihood_is_the_simulators(likelihood) -> None:
    torch.manual_seed(3)
    theta = torch.tensor([[0.5, -0.5], [-1.0, 0.3]])
    x = likelihood.sample(2000, theta)
    assert x.shape == (2000, 2, 2)
    wanted = Independent(Normal(theta @ A.T, NOISE), 1)
    assert ((likelihood.log_prob(x, theta) - wanted.log_prob(x)).mean(0) < 0.04).all()
    assert (x.mean(0) - theta @ A.T).abs().max() < 0.1


def test_chains_of_a_likelihood(likelihood) -> None:
    """Of several observations, whose likelihoods multiply, where the flow was trained on one."""
    torch.manual_seed(4)
    found = likelihood.posterior(SEEN.expand(3, 2), 20, chains=64, warmup=20, leapfrog=3)
    theta, deviation = found.x.flatten(0, 1), right(3).variance.sqrt()
    assert ((theta.mean(0) - right(3).mean) / deviation).abs().max() < 0.3
    assert (theta.std(0) / deviation - 1).abs().max() < 0.2


def test_the_evidence_of_a_likelihood(likelihood) -> None:
    torch.manual_seed(5)
    found = inference.annealed_importance_sampling(
        likelihood.proposal, likelihood.log_posterior(SEEN), 1000, temperatures=5, leapfrog=3, pilot=0, step_size=0.4
    )
    evidence = MultivariateNormal(torch.zeros(2), A @ A.T + NOISE**2 * torch.eye(2)).log_prob(SEEN)
    assert found.log_evidence.error < 0.05
    assert abs(found.log_evidence.value - evidence) < 5 * found.log_evidence.error + 0.05  # 0.05: of the likelihood


# ---- supports ----

LOW, HIGH = torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 3.0])


@pytest.mark.parametrize("prior", [Uniform(LOW, HIGH), UniformBox(LOW, HIGH)], ids=["torch", "ours"])
def test_in_a_box(prior, tmp_path: Path) -> None:
    """Its corners too, which the line does not have; nothing leaks, densities integrate to 1, and it can be saved."""
    torch.manual_seed(6)
    theta = UniformBox(LOW, HIGH).sample(600)
    theta[0], theta[1] = LOW, HIGH
    found = inference.npe(prior, (theta, theta + 0.5 * torch.randn_like(theta)), flow=SMALL, epochs=2)
    x = torch.tensor([0.9, 2.9])
    drawn = found.sample(3000, x)
    assert ((drawn >= LOW) & (drawn <= HIGH)).all()
    sides = [torch.linspace(float(a), float(b), 402)[1:-1] + 0.0 for a, b in zip(LOW, HIGH, strict=True)]
    grid = torch.cartesian_prod(*sides)
    mass = found.log_prob(grid, x).exp().mean() * (HIGH - LOW).prod() * (400 / 401) ** 2
    assert abs(mass - 1) < 0.02
    assert found.log_prob(HIGH + 0.1, x) == -math.inf
    found.flow.save(tmp_path / "flow")
    torch.testing.assert_close(
        flowkernels.load(tmp_path / "flow").log_prob(grid[:5], x), found.flow.log_prob(grid[:5], x)
    )


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_faces_of_a_box_go_far_out(shift) -> None:
    """To the right side, in few digits too: not to the logit's answer to what is outside."""
    prior = UniformBox(LOW + shift, HIGH + shift)
    u = simulations.inside("", prior, torch.stack((LOW, (LOW + HIGH) / 2, HIGH)) + shift)
    for layer in simulations.to_the_line("", prior, u):
        u, ladj = layer(u)
        assert ladj.isfinite().all()
    assert (u[0] < -5).all() and (u[1].abs() < 1e-3).all() and (u[2] > 5).all()


def test_a_likelihood_under_a_box() -> None:
    torch.manual_seed(7)
    found = inference.nle(Uniform(LOW, HIGH), lambda t: t + 0.1 * torch.randn_like(t), 500, flow=SMALL, epochs=2)
    target = found.log_posterior(torch.tensor([0.0, 2.5]))
    assert target(HIGH + 1) == -math.inf and target(torch.tensor([0.0, 2.5])) > -20
    chains = found.posterior(torch.tensor([0.0, 2.5]), 10, chains=8, warmup=10, leapfrog=2)
    assert ((chains.x >= LOW) & (chains.x <= HIGH)).all() and chains.log_target.isfinite().all()
    prior = found.proposal.sample(4000)
    assert ((prior.mean(0) - (LOW + HIGH) / 2) / (HIGH - LOW)).abs().max() < 0.05


def test_settings_reach_the_training_and_the_flow() -> None:
    said: list[Any] = []
    theta = torch.randn(200, 2).double()
    found = inference.npe(
        PRIOR, (theta, theta.float()), flow=SMALL, epochs=2,
        validation=None, progress=said.append,
    )  # fmt: skip
    assert len(said) == 2 and len(found.training.train) == 2 and found.training.validation == ()
    assert found.sample(3, torch.zeros(2).double()).dtype == torch.float64


THETA = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("fit", [inference.npe, inference.nle])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((PRIOR, 3), TypeError, r"simulator must be a function or a pair \(theta, x\), got 3"),
        ((abs, simulator), TypeError, "prior must be a distribution of torch or flowkernels"),
        ((LogNormal(torch.zeros(2), 1.0), simulator), ValueError, "prior must be on all real numbers or on a box, got"),
        ((PRIOR, simulator, 0), ValueError, "simulations must be at least 1, got 0"),
        ((PRIOR, lambda t: t[:, 0]), ValueError, r"x must be \[n, C\] of a floating-point dtype, got \[10000\]"),
        ((PRIOR, (THETA, THETA[:9])), ValueError, r"as many rows, of the 2 parameters of the prior, got \[50, 2\] and"),
        ((PRIOR, (THETA[:, :1], THETA)), ValueError, r"of the 2 parameters of the prior, got \[50, 1\]"),
        ((PRIOR, (THETA, THETA / 0 * THETA[:, :1])), ValueError, "x must be finite, got 50 of 50 rows"),
    ],
)
def test_errors(fit, arguments, error, message) -> None:
    with pytest.raises(error, match=f"inference.{fit.__name__}: .*{message}"):
        fit(*arguments)


def test_more_errors() -> None:
    with pytest.raises(ValueError, match=r"theta must lie in the prior's support, got \d+ of 50 rows outside"):
        inference.npe(Uniform(LOW, HIGH), (THETA, THETA))
    with pytest.raises(TypeError, match="flow must make a flowkernels"):
        inference.npe(PRIOR, (THETA, THETA), flow=torch.nn.Linear)  # type: ignore[arg-type]
    found = inference.nle(PRIOR, (THETA, THETA), flow=SMALL, epochs=1)
    with pytest.raises(ValueError, match=r"log_posterior: x must be \[2\] or \[K, 2\], got \[3\]"):
        found.log_posterior(torch.zeros(3))
