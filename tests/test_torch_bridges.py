"""Flows and torch.distributions: transforms, bases, entropies and divergences of the one in the other."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref

import pytest
import torch
import torch.distributions as td
from torch import Tensor, nn

import flowkernels
from flowkernels.distributions import DiagonalNormal, FromTorch, UniformBox
from flowkernels.flows import IAF, MAF, NSF, Flow, Glow
from flowkernels.transforms import Composite, Dequantize, Inverse, Logit, TorchTransform

pytestmark = pytest.mark.usefixtures("one_thread")


def nsf(context: int = 0, **settings) -> Flow:
    torch.manual_seed(0)
    flow = NSF(3, context, transforms=2, hidden=(8, 8), bins=4, **settings).double()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return flow


def normal() -> td.Distribution:
    return td.Normal(torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))


def x_of(*lead: int) -> Tensor:
    return torch.randn(*lead, 3, dtype=torch.float64)


# ---- as_torch ----


@pytest.mark.parametrize("cache_size", [0, 1])
def test_a_transformed_distribution_is_the_flow(cache_size) -> None:
    flow = nsf()
    dist = td.TransformedDistribution(normal(), flow.transform.as_torch(cache_size=cache_size).inv)
    x = x_of(5, 2)
    torch.testing.assert_close(dist.log_prob(x), flow.log_prob(x))
    torch.manual_seed(3)
    draws = dist.rsample((4,))
    torch.manual_seed(3)
    assert torch.equal(draws, flow.sample(4))
    torch.testing.assert_close(dist.log_prob(draws), flow.log_prob(draws))
    assert dist.support is not None and dist.support.check(draws).all()
    (-dist.log_prob(x).mean()).backward()
    assert all(p.grad is not None for p in flow.parameters())


def test_a_context_is_bound_and_its_leading_dims_are_the_batch() -> None:
    flow, context = nsf(2), torch.randn(4, 2, dtype=torch.float64)
    t = flow.transform.as_torch(context)
    dist = td.TransformedDistribution(normal(), t.inv)
    assert (dist.batch_shape, dist.event_shape) == ((4,), (3,)) and dist.sample((5,)).shape == (5, 4, 3)
    for x in (x_of(), x_of(4), x_of(5, 4), x_of(5, 1)):
        torch.testing.assert_close(dist.log_prob(x), flow.log_prob(x.expand(*x.shape[:-2], 4, 3), context))
    assert t.forward_shape((5, 1, 3)) == t.inverse_shape((5, 1, 3)) == (5, 4, 3)


def test_ladj_of_the_last_call_is_kept_and_of_another_is_right(monkeypatch) -> None:
    flow, calls = nsf(), []
    for name in ("forward", "inverse"):
        original = getattr(Composite, name)
        monkeypatch.setattr(
            Composite, name, lambda self, *a, original=original, name=name: (calls.append(name), original(self, *a))[1]
        )
    t, x = flow.transform.as_torch(), x_of(4)
    y = t(x)
    expected = flow.transform(x)[1]
    calls.clear()
    assert torch.equal(t.log_abs_det_jacobian(x, y), expected) and calls == []
    back = t.inv(y)
    assert calls == ["inverse"]
    torch.testing.assert_close(t.inv.log_abs_det_jacobian(y, back), -expected)
    assert calls == ["inverse"]
    other = x + 1
    torch.testing.assert_close(t.log_abs_det_jacobian(other, t(x)), flow.transform(other)[1])


def test_new_weights_are_seen_and_a_graph_is_not_held() -> None:
    flow, x = nsf(), x_of(4)
    t = flow.transform.as_torch()
    before = t(x)
    t.log_abs_det_jacobian(x, before).sum().backward()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1)
    after = t(x)
    assert not torch.equal(after, before)
    t.log_abs_det_jacobian(x, after).sum().backward()  # a new graph
    ladj = weakref.ref(t._last[2])
    del after
    gc.collect()
    assert t._last is None and ladj() is None


def test_a_cache_gives_back_what_it_was_given() -> None:
    t = nsf().transform.as_torch().with_cache()
    z = x_of(2)
    x = t.inv(z)
    assert t(x) is z and t.with_cache(1) is t and t.with_cache(0)._cache_size == 0 and t.inv.inv is t


def test_images() -> None:
    flow = Glow((2, 4, 4), levels=2, steps=1, hidden=(4, 4)).eval()
    t = flow.transform.as_torch(shape=(2, 4, 4))
    assert (t.domain.event_dim, t.codomain.event_dim) == (3, 1)
    assert t.forward_shape((5, 2, 4, 4)) == (5, 32) and t.inverse_shape((5, 32)) == (5, 2, 4, 4)
    dist = td.TransformedDistribution(td.Independent(td.Normal(torch.zeros(32), torch.ones(32)), 1), t.inv)
    x = torch.randn(5, 2, 4, 4)
    assert dist.event_shape == (2, 4, 4) and dist.sample((3,)).shape == (3, 2, 4, 4)
    normal = Flow(flow.transform, DiagonalNormal(32)).eval()
    torch.testing.assert_close(dist.log_prob(x), normal.log_prob(x))


def test_domains() -> None:
    t = Composite([Logit(), Inverse(Logit())]).as_torch()
    assert t.domain.check(torch.tensor([[0.5, 0.5], [0.5, 1.5]])).tolist() == [True, False]
    assert t.codomain.check(torch.tensor([[0.5, 0.5], [0.5, 1.5]])).tolist() == [True, False]
    assert nsf().transform.as_torch().domain is td.constraints.real_vector
    tried = Composite([Logit(), nsf().transform.float(), Logit()]).as_torch().domain
    assert tried.check(torch.tensor([[0.5] * 3, [1.5] * 3, [math.nan] * 3])).tolist()[1:] == [False, False]


def test_copies_of_a_torch_transform() -> None:
    t, x = nsf().transform.as_torch(), x_of(3)
    y = t(x)
    for twin in (copy.deepcopy(t), pickle.loads(pickle.dumps(t))):
        assert torch.equal(twin(x), y)


def test_pyro_samples_through_it() -> None:
    pyro = pytest.importorskip("pyro")
    flow = nsf()
    base = pyro.distributions.Normal(torch.zeros(3).double(), torch.ones(3).double())
    dist = pyro.distributions.TransformedDistribution(base, [flow.transform.as_torch().inv])
    trace = pyro.poutine.trace(lambda: pyro.sample("x", dist)).get_trace()
    x = trace.nodes["x"]["value"]
    torch.testing.assert_close(trace.log_prob_sum(), flow.log_prob(x))


# ---- base= ----

BASES = {
    "independent": lambda: td.Independent(td.Normal(torch.zeros(3), torch.ones(3)), 1),
    "scalars": lambda: td.StudentT(torch.full((3,), 4.0), torch.zeros(3), torch.ones(3)),
    "multivariate": lambda: td.MultivariateNormal(torch.ones(3), torch.eye(3) + 0.2),
    "low rank": lambda: td.LowRankMultivariateNormal(torch.zeros(3), torch.ones(3, 1), torch.ones(3)),
    "uniform": lambda: td.Uniform(-2 * torch.ones(3), 2 * torch.ones(3)),
    "gamma": lambda: td.Gamma(torch.full((3,), 2.0), torch.ones(3)),
    "mixture": lambda: td.MixtureSameFamily(
        td.Categorical(torch.tensor([0.3, 0.7])),
        td.Independent(td.Normal(torch.tensor([[-1.0] * 3, [1.0] * 3]), torch.ones(2, 3)), 1),
    ),
    "transformed": lambda: td.LogNormal(torch.zeros(3), torch.ones(3)),
}


@pytest.mark.parametrize("name", BASES)
def test_bases_of_torch(name) -> None:
    dist = BASES[name]()
    whole = dist if dist.event_shape else td.Independent(dist, 1)
    flow = NSF(3, 2, transforms=2, hidden=(8, 8), base=dist)
    assert isinstance(flow.base, FromTorch) and flow.base.features == 3
    torch.manual_seed(0)
    expected = whole.sample((4, 2))
    torch.manual_seed(0)
    z = flow.base.sample((4, 2))
    torch.testing.assert_close(z, expected, rtol=0, atol=0)
    torch.testing.assert_close(flow.base.log_prob(z), whole.log_prob(z))
    assert flow.base.support.check(z).all()
    context = torch.randn(5, 2)
    x = flow.sample(6, context)
    assert x.shape == (6, 5, 3) and flow.log_prob(x, context).isfinite().all()
    if dist.has_rsample:
        draws, log_prob = flow.sample_and_log_prob(6, context)
        torch.testing.assert_close(flow.log_prob(draws, context), log_prob, rtol=1e-3, atol=1e-3)
        assert flow.rsample(6, context).requires_grad
    flow.double()
    assert {b.dtype for b in flow.base.buffers() if b.is_floating_point()} == {torch.float64}
    assert flow.sample(2, context.double()).dtype is torch.float64
    assert flow.log_prob(flow.sample(2, context.double()), context.double()).dtype is torch.float64
    twin = pickle.loads(pickle.dumps(copy.deepcopy(flow)))
    assert torch.equal(twin.log_prob(x.double(), context.double()), flow.log_prob(x.double(), context.double()))
    flow.load_state_dict(twin.state_dict())
    assert all(t.is_meta for t in flow.to("meta").base.buffers())


def test_a_multivariate_normal_is_the_native_one() -> None:
    flow = nsf(base=td.MultivariateNormal(torch.ones(3), 4 * torch.eye(3)))
    native = nsf(base=DiagonalNormal(3, 1.0, math.log(2)))
    native.load_state_dict({**native.state_dict(), **{k: v for k, v in flow.state_dict().items() if "base" not in k}})
    with torch.no_grad():
        native.base.loc.fill_(1.0)
        native.base.log_scale.fill_(math.log(2))
    x = x_of(7)
    torch.testing.assert_close(flow.log_prob(x), native.log_prob(x))


def test_outside_of_the_support_is_minus_infinity_and_a_nan_stays_in_its_row() -> None:
    base = FromTorch(td.Gamma(torch.full((2,), 2.0), torch.ones(2)))
    out = base.log_prob(torch.tensor([[1.0, 1.0], [1.0, -1.0], [math.nan, 1.0]]))
    assert out[0].isfinite() and out[1] == -math.inf and out[2].isnan()
    flow = Flow(Composite([]), td.Uniform(torch.zeros(2), torch.ones(2)))
    box = Flow(Composite([]), UniformBox([0.0, 0.0], [1.0, 1.0]))
    x = torch.tensor([[0.5, 0.5], [0.5, 1.5]])
    assert torch.equal(flow.log_prob(x), box.log_prob(x))
    assert torch.equal(flow.as_distribution().support.check(x), torch.tensor([True, False]))


def test_weights_of_such_a_flow_are_saved(tmp_path) -> None:
    flow, other = (nsf(base=td.MultivariateNormal(m * torch.ones(3), torch.eye(3))) for m in (1.0, 2.0))
    with pytest.raises(TypeError, match="FromTorch"):
        flow.save(tmp_path / "f")
    flow.save(tmp_path / "f", config=False)
    x = x_of(3)
    assert torch.equal(flowkernels.load(tmp_path / "f", flow=other).log_prob(x), flow.log_prob(x))


# ---- entropy and divergence ----


def test_entropy_within_its_error() -> None:
    torch.manual_seed(0)
    flow = Flow(Composite([]), DiagonalNormal(2, log_scale=1.0))
    exact = 1 + math.log(2 * math.pi) + 2.0
    n = 4000
    estimate = flow.as_distribution().entropy(n)
    assert abs(estimate - exact) < 4 * math.sqrt(2 / (2 * n))
    estimate.backward()
    torch.testing.assert_close(flow.base.log_scale.grad, torch.ones(2), rtol=0, atol=0.1)


@pytest.mark.parametrize("which", ["flow and torch", "torch and flow", "flow and flow"])
def test_divergence_within_its_error(which) -> None:
    torch.manual_seed(0)
    flow, other = Flow(Composite([]), DiagonalNormal(2, loc=0.5)), td.MultivariateNormal(torch.zeros(2), torch.eye(2))
    p, q = flow.as_distribution(), other
    if which == "torch and flow":
        p, q = q, p
    elif which == "flow and flow":
        q = Flow(Composite([]), DiagonalNormal(2)).as_distribution()
    estimate = td.kl_divergence(p, q)  # log p - log q has deviation |mean|
    assert abs(estimate - 0.25) < 4 * math.sqrt(0.5) / math.sqrt(1000)
    estimate.backward()
    assert flow.base.loc.grad.abs().sum() > 0


def test_batches_of_both_broadcast() -> None:
    q = nsf(2).as_distribution(torch.randn(4, 2, dtype=torch.float64))
    p = td.Independent(td.Normal(torch.zeros(5, 1, 3).double(), torch.ones(5, 1, 3).double()), 1)
    assert td.kl_divergence(q, p).shape == td.kl_divergence(p, q).shape == (5, 4)
    assert nsf().as_distribution().expand((4,)).entropy(10).shape == q.entropy(10).shape == (4,)


def test_a_base_without_rsample_gives_numbers_and_no_gradients() -> None:
    mixture = BASES["mixture"]()
    flow = NSF(3, transforms=1, hidden=(4, 4), base=mixture)
    dist = flow.as_distribution()
    assert not dist.has_rsample and MAF(2).as_distribution().has_rsample
    assert not dist.entropy(20).requires_grad and not td.kl_divergence(dist, NSF(3).as_distribution()).requires_grad
    with pytest.raises(ValueError, match=r"^distributions\.FromTorch: rsample must be of .*, got MixtureSameFamily"):
        flow.rsample(3)


def test_variational_inference_by_the_divergence() -> None:
    torch.manual_seed(0)
    q = IAF(2, transforms=1, hidden=(8,))
    target = td.MultivariateNormal(torch.tensor([1.0, -1.0]), torch.eye(2))
    optimizer = torch.optim.Adam(q.parameters(), 0.05)
    first = q.as_distribution().kl_divergence(target, 200).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = q.as_distribution().kl_divergence(target, 64)
        loss.backward()
        optimizer.step()
    assert q.as_distribution().kl_divergence(target, 500) < first / 5


# ---- errors ----


class Odd(td.Normal):
    def __init__(self) -> None:
        super().__init__(torch.zeros(2), torch.ones(2))
        self.module = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: FromTorch(nn.Identity()), TypeError, r"FromTorch: distribution must be a torch\..*, got Identity$"),
        (lambda: FromTorch(td.Normal(0, 1)), ValueError, r"FromTorch: .*, got batch_shape \[\] and event_shape \[\]$"),
        (
            lambda: FromTorch(td.MultivariateNormal(torch.zeros(4, 2), torch.eye(2))),
            ValueError, r"FromTorch: .* one over \[D\], .*, got batch_shape \[4\] and event_shape \[2\]$",
        ),
        (lambda: FromTorch(td.Poisson(torch.ones(2))), ValueError, r"FromTorch: .* must be continuous, got Ind"),
        (lambda: FromTorch(Odd()), TypeError, r"FromTorch: .* can be moved, got Linear at base_dist\.module$"),
        (
            lambda: FromTorch(td.Normal(torch.zeros(2, requires_grad=True), 1.0)),
            TypeError, r"FromTorch: .* no tensor that requires a gradient, got base_dist\.loc \(.*learns\)$",
        ),
        (lambda: NSF(3, base=td.Gamma(torch.ones(3), 1)).sample(2, None, 2), ValueError, r"must be 1, got 2"),
        (lambda: Composite([Dequantize(4)]).as_torch(), ValueError, r"as_torch: .* a bijection, got one with a Dequ"),
        (lambda: Composite([]).as_torch([1.0]), TypeError, r"as_torch: context must be a torch\.Tensor, got list"),
        (lambda: Composite([]).as_torch(torch.ones(())), ValueError, r"as_torch: context must be .*, got a scalar$"),
        (lambda: Composite([]).as_torch(cache_size=2), ValueError, r"as_torch: cache_size must be 0 or 1, got 2$"),
        (lambda: Composite([]).as_torch()([1.0]), TypeError, r"TorchTransform: x must be a torch\.Tensor, got list"),
        (lambda: NSF(2).as_distribution().entropy(0), ValueError, r"entropy: n must be at least 1, got 0$"),
        (lambda: NSF(2).as_distribution().kl_divergence(1), TypeError, r"kl_divergence: other must be .*, got int$"),
        (
            lambda: NSF(2).as_distribution().kl_divergence(NSF(3).as_distribution()),
            ValueError, r"kl_divergence: other must be of event_shape \[2\], got \[3\]$",
        ),
    ],
)  # fmt: skip
def test_errors(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


def test_it_is_a_transform_of_torch() -> None:
    t = nsf().transform.as_torch()
    assert isinstance(t, td.Transform) and isinstance(t, TorchTransform) and t.bijective and t.event_dim == 1
    assert repr(t) == "TorchTransform(Composite)"
