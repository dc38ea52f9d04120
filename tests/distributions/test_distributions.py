"""Base distributions against torch.distributions, and as modules that move, cast and save."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import distributions as td

from flowkernels.distributions import (
    DiagonalLogistic,
    DiagonalNormal,
    Distribution,
    StandardLogistic,
    StandardNormal,
    UniformBox,
)
from flowkernels.flows import MixtureMADE
from flowkernels.nets import MADE

LOC, LOG_SCALE = [0.3, -1.0, 2.0], [0.0, -0.7, 0.5]
LOW, HIGH = [-1.0, 0.1, 2.0], [1.0, 0.3, 7.0]


def logistic(loc: torch.Tensor, scale: torch.Tensor) -> td.Distribution:
    """torch has none of its own: the logit of a uniform number."""
    sigmoid = td.TransformedDistribution(td.Uniform(torch.zeros(3), torch.ones(3)), [td.SigmoidTransform().inv])
    return td.TransformedDistribution(sigmoid, [td.AffineTransform(loc, scale)])


CASES = {
    "standard": (lambda: StandardNormal(3), lambda: td.Normal(torch.zeros(3), torch.ones(3))),
    "diagonal": (
        lambda: DiagonalNormal(3, LOC, LOG_SCALE),
        lambda: td.Normal(torch.tensor(LOC), torch.tensor(LOG_SCALE).exp()),
    ),
    "diagonal-fixed": (
        lambda: DiagonalNormal(3, LOC, 0.2, learnable=False),
        lambda: td.Normal(torch.tensor(LOC), torch.full((3,), math.exp(0.2))),
    ),
    "logistic": (lambda: StandardLogistic(3), lambda: logistic(torch.zeros(3), torch.ones(3))),
    "logistic-diagonal": (
        lambda: DiagonalLogistic(3, LOC, LOG_SCALE),
        lambda: logistic(torch.tensor(LOC), torch.tensor(LOG_SCALE).exp()),
    ),
    "uniform": (
        lambda: UniformBox(LOW, HIGH),
        lambda: td.Uniform(torch.tensor(LOW), torch.tensor(HIGH), validate_args=False),
    ),
}
EVERY = pytest.mark.parametrize(("build", "peer"), CASES.values(), ids=CASES.keys())


@EVERY
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_log_prob_is_torchs(build, peer, precision) -> None:
    torch.manual_seed(0)
    x = 2 * torch.randn(5, 40, 3, dtype=precision)
    found, wanted = build().log_prob(x), peer().log_prob(x).sum(-1)
    assert found.shape == (5, 40) and found.dtype == precision
    torch.testing.assert_close(found, wanted.to(precision), rtol=1e-6, atol=1e-6)
    samples = peer().sample((50,)).to(precision)
    wanted = peer().log_prob(samples).sum(-1).to(precision)
    torch.testing.assert_close(build().log_prob(samples), wanted, rtol=1e-6, atol=1e-6)
    assert build().log_prob(x[0, 0]).shape == () and build().log_prob(x[:0]).shape == (0, 40)


@EVERY
def test_samples_have_the_marginals(build, peer) -> None:
    """Kolmogorov-Smirnov, 20,000 draws: a distance of 0.0195 has odds of 1e-6 in each of three features."""
    torch.manual_seed(0)
    n = 20_000
    u = peer().cdf(build().sample(n).detach()).sort(0).values
    steps = torch.arange(1, n + 1)[:, None] / n
    assert torch.maximum((u - steps).abs(), (u - steps + 1 / n).abs()).max() < 0.0195
    correlation = torch.corrcoef(build().sample(n).T) - torch.eye(3)
    assert correlation.abs().max() < 5 / n**0.5


@EVERY
def test_shapes(build, peer) -> None:
    base = build()
    for draw in (base.sample, base.rsample):
        assert draw(5).shape == (5, 3)
        assert draw(5, torch.zeros(2)).shape == (5, 3)
        assert draw(5, torch.zeros(4, 2)).shape == (5, 4, 3)
        assert draw((5, 6), torch.zeros(1, 4, 2)).shape == (5, 6, 1, 4, 3)
        assert draw(()).shape == (3,)
        assert draw(0).shape == (0, 3)
    assert base.log_prob(base.sample(5, torch.zeros(4, 2)), torch.zeros(4, 2)).shape == (5, 4)


@EVERY
def test_follows_to(build, peer, dtype, device) -> None:
    base = build().to(device, dtype)
    x = base.sample(4000)
    assert x.dtype == dtype and x.device.type == device.type
    log_prob = base.log_prob(x)
    assert log_prob.dtype == torch.promote_types(dtype, torch.float32)
    exact = copy.deepcopy(base).double().log_prob(x.double())  # 16-bit weights, but sums in float32
    torch.testing.assert_close(log_prob.double(), exact, rtol=1e-5, atol=1e-5)


@EVERY
def test_default_dtype_everywhere(build, peer) -> None:
    """No float64 hides in a buffer where nobody asked for it: MPS has none."""
    assert all(t.dtype == torch.float32 for t in (*build().buffers(), *build().parameters()))
    zero, one = np.zeros(1), np.ones(1)  # float64, as everything in numpy
    assert all(t.dtype == torch.float32 for t in DiagonalNormal(1, zero).state_dict().values())
    assert all(t.dtype == torch.float32 for t in UniformBox(zero, one).state_dict().values())


@EVERY
def test_nan_stays_in_its_row(build, peer) -> None:
    x = build().sample(5).detach()
    clean = build().log_prob(x)
    x[2, 1] = float("nan")
    found = build().log_prob(x)
    assert found[2].isnan()
    assert torch.equal(found[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


@EVERY
def test_copies(build, peer) -> None:
    base = build()
    with torch.no_grad():
        for p in base.parameters():
            p.add_(0.5)
    x = 2 * torch.randn(20, 3)
    fresh = build()
    fresh.load_state_dict(base.state_dict())
    for other in (copy.deepcopy(base), pickle.loads(pickle.dumps(base)), fresh):
        assert torch.equal(other.log_prob(x), base.log_prob(x))
    assert "features=3" in repr(base)


@EVERY
def test_compile_fullgraph(build, peer) -> None:
    torch._dynamo.reset()
    base, x = build(), torch.randn(5, 3)
    found = torch.compile(base.log_prob, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(found, base.log_prob(x))


def test_gradients() -> None:
    base = DiagonalNormal(3, LOC, LOG_SCALE).double()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def f(x: torch.Tensor, loc: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(Call(base), {"base.loc": loc, "base.log_scale": log_scale}, x)

    assert torch.autograd.gradcheck(f, (x, base.loc, base.log_scale))
    base.rsample(10).sum().backward()
    torch.testing.assert_close(base.loc.grad, torch.full((3,), 10.0, dtype=torch.float64))
    assert (base.log_scale.grad != 0).all()
    assert not base.sample(3).requires_grad


class Call(torch.nn.Module):
    def __init__(self, base: Distribution) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base.log_prob(x)


def test_logistic_far_out() -> None:
    """Where exp overflows and where a sigmoid has no digits left, the density still is its asymptote, exactly."""
    x = torch.tensor([[-1e4], [-200.0], [200.0], [1e4]], dtype=torch.float64, requires_grad=True)
    log_prob = StandardLogistic(1).log_prob(x)
    torch.testing.assert_close(log_prob, -x[:, 0].abs(), rtol=0, atol=0)
    log_prob.sum().backward()
    assert x.grad is not None and x.grad[:, 0].tolist() == [1.0, 1.0, -1.0, -1.0]


def test_logistic_draws_are_finite(dtype, monkeypatch) -> None:
    """Even where the uniform number is 0."""
    monkeypatch.setattr(torch, "rand", torch.zeros)
    assert StandardLogistic(3).to(dtype).sample(5).isfinite().all()


@pytest.mark.parametrize("kind", [DiagonalNormal, DiagonalLogistic])
def test_every_class_its_own(kind) -> None:
    """One-hot rows pick a location and a scale; a context between two classes lies between them."""
    base = kind(3, LOC, LOG_SCALE, context=4).double()
    one_hot, x = torch.eye(4, dtype=torch.float64), torch.randn(5, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(base.log_prob(x, one_hot), kind(3, LOC, LOG_SCALE).double().log_prob(x))
    with torch.no_grad():
        base.weight.copy_(torch.randn(4, 6))
    for k in range(4):
        loc, log_scale = base.weight[k].chunk(2)
        alone = kind(3).double()
        with torch.no_grad():
            alone.loc.copy_(base.loc + loc)
            alone.log_scale.copy_(base.log_scale + log_scale)
        torch.testing.assert_close(base.log_prob(x, one_hot)[:, k], alone.log_prob(x[:, k]))
        torch.manual_seed(0)
        found = base.sample(7, one_hot[k])
        torch.manual_seed(0)
        torch.testing.assert_close(found, alone.sample(7))
    assert base.sample((2, 5), one_hot).shape == (2, 5, 4, 3)
    base.log_prob(x, one_hot).sum().backward()
    assert (base.weight.grad != 0).all()


@pytest.mark.parametrize("name", ["standard", "diagonal", "logistic", "logistic-diagonal"])
def test_temperature(name) -> None:
    """Multiplies the deviation from the centre."""
    base = CASES[name][0]().double()
    centre = torch.tensor(LOC).double() if "diagonal" in name else torch.zeros(3).double()
    draws = []
    for temperature in (1.0, 0.5, 0.0):
        torch.manual_seed(0)
        draws.append(base.sample(50, None, temperature))
    torch.testing.assert_close(draws[1], centre + 0.5 * (draws[0] - centre))
    torch.testing.assert_close(draws[2], centre.expand(50, 3))


def test_learnable() -> None:
    assert {n for n, _ in DiagonalNormal(2).named_parameters()} == {"loc", "log_scale"}
    fixed = DiagonalNormal(2, learnable=False)
    assert not list(fixed.parameters()) and set(fixed.state_dict()) == {"loc", "log_scale"}


def test_diagonal_normal_owns_its_values() -> None:
    loc = torch.zeros(3)
    base = DiagonalNormal(3, loc)
    loc.add_(1)
    assert base.loc.tolist() == [0, 0, 0]


def test_uniform_box_edges() -> None:
    base = UniformBox([0.0, 0.0], [1.0, 2.0])
    inside = -math.log(2.0)
    x = torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.5, 2.001], [-1e-7, 1.0], [math.inf, 1.0], [-math.inf, math.inf]])
    torch.testing.assert_close(base.log_prob(x), torch.tensor([inside, inside] + 4 * [-math.inf]))


def test_uniform_box_contains_its_own_samples(dtype) -> None:
    """Rounding takes none past a face: its density would be zero."""
    torch.manual_seed(0)
    base = UniformBox([0.1, -0.3, 1.0, -7.0], [0.3, 0.7, 1.1, 9.3]).to(dtype)
    assert base.log_prob(base.sample(100_000)).isfinite().all()


def test_uniform_box_gradient_is_zero_inside() -> None:
    x = torch.tensor([[0.5, 0.5]], requires_grad=True)
    UniformBox([0.0, 0.0], [1.0, 1.0]).log_prob(x).sum().backward()
    assert x.grad is not None and (x.grad == 0).all()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: StandardNormal(3).log_prob(torch.zeros(4, 2)), ValueError, r"StandardNormal: x must be \[\.\.\., 3\]"),
        (lambda: StandardNormal(3).log_prob(torch.tensor(1.0)), ValueError, r"x must be \[\.\.\., 3\], got \[\]"),
        (lambda: DiagonalNormal(3).log_prob(torch.zeros(1)), ValueError, r"x must be \[\.\.\., 3\], got \[1\]"),
        (lambda: DiagonalNormal(3, loc=[0.0, 1.0]), ValueError, r"DiagonalNormal: loc must be .*, got \[2\]"),
        (lambda: DiagonalNormal(3, 0.0, [[1.0]]), ValueError, r"log_scale must be .* \[3\], got \[1, 1\]"),
        (lambda: DiagonalNormal(3, learnable=False, context=2), ValueError, "learnable must be True beside a context"),
        (lambda: DiagonalNormal(3, context=2).sample(4), ValueError, r"context must be \[\.\.\., 2\], got None"),
        (lambda: DiagonalLogistic(3, context=2).sample(4, torch.zeros(3)), ValueError, r"must be .*2\], got \[3\]"),
        (lambda: UniformBox([0.0], [1.0]).sample(4, None, 0.5), ValueError, "temperature must be 1, got 0.5"),
        (lambda: MixtureMADE(MADE(2, 3)).sample(4, None, 0.5), ValueError, "temperature must be 1, got 0.5"),
        (lambda: UniformBox(0.0, 1.0), ValueError, r"must both be \[D\], got \[\] and \[\]"),
        (lambda: UniformBox([0.0], [1.0, 2.0]), ValueError, r"must both be \[D\], got \[1\] and \[2\]"),
        (lambda: UniformBox([0.0, 3.0], [1.0, 2.0]), ValueError, r"low must be less than high, got \[0.0, 3.0\]"),
        (lambda: UniformBox([math.nan], [1.0]), ValueError, r"low must be less than high, got \[nan\]"),
        (lambda: Distribution().log_prob(torch.zeros(1)), NotImplementedError, "log_prob is not defined"),
        (lambda: Distribution().sample(1), NotImplementedError, "rsample is not defined"),
    ],
)
def test_errors(build, error, message) -> None:
    with pytest.raises(error, match=message):
        build()
