"""Flows: a density that integrates to one, samples that follow it, contexts of every shape, torch.distributions."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as td

from flowkernels.distributions import DiagonalNormal, StandardNormal, UniformBox
from flowkernels.flows import NSF, Flow, FlowDistribution
from flowkernels.nets import MLP
from flowkernels.transforms import RQS, Composite, Coupling, Permutation
from tests.transforms.test_transforms import randomise

C = 3


@pytest.fixture(autouse=True)
def one_thread(threads) -> None:
    """Small tensors: a second thread costs more than it gives."""
    threads(1)


def make(
    features: int = 3, context: int = 0, seed: int = 0, dtype: torch.dtype = torch.float64, **settings: Any
) -> NSF:
    """A small flow far from the identity."""
    torch.manual_seed(seed)
    flow = NSF(features, context, **{"transforms": 3, "bins": 5, "hidden": (16, 16), "linear": None, **settings})
    randomise(flow, seed)
    return flow.to(dtype)


# ---- the density ----


def mild(features: int, context: int = 0, seed: int = 0, **settings: Any) -> NSF:
    """Away from the identity, but with a density that a grid can follow."""
    torch.manual_seed(seed)
    flow = NSF(features, context, transforms=3, bins=5, hidden=(16, 16), activation=torch.tanh, **settings).double()
    with torch.no_grad():
        for layer in flow.transform:
            for p in layer.conditioner.final_layer.parameters():
                p.add_(0.1 * torch.randn_like(p))
    return flow


def integral(flow: Flow, n: int, bound: float, context: Tensor | None = None) -> float:
    """By the midpoint rule on n x n cells of [-bound, bound]^2."""
    edge = (torch.arange(n, dtype=torch.float64) + 0.5) * (2 * bound / n) - bound
    x = torch.cartesian_prod(edge, edge)
    with torch.no_grad():
        return (flow.log_prob(x, context).exp().sum() * (2 * bound / n) ** 2).item()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("net", ["residual", "mlp"])
def test_integrates_to_one(seed, net) -> None:
    """The tails beyond 6.5 hold less than 2e-10; the knots, where the density has kinks, leave the grid about 1e-4."""
    flow, context = mild(2, C, seed, net=net), torch.randn(C, dtype=torch.float64)
    assert abs(integral(flow, 300, 6.5, context) - 1) < 2e-4
    x = torch.randn(500, 2, dtype=torch.float64)
    assert flow.transform(x, context)[1].std() > 0.3  # it is not the base that was integrated


def test_integrates_to_one_on_a_box() -> None:
    """Splines from the box to itself, without tails, on a uniform base: the density is zero outside."""
    torch.manual_seed(0)
    spline = RQS(bins=5, tails=None, box=(0.0, 1.0, 0.0, 1.0))
    layers = [Coupling(mask, lambda a, b: MLP(a, b, hidden=(16,)), spline) for mask in ([0, 1], [1, 0], [0, 1])]
    flow = Flow(Composite(layers), UniformBox([0.0, 0.0], [1.0, 1.0])).double()
    assert abs(integral(flow, 800, 2.0) - 1) < 2e-4
    assert flow.transform(torch.rand(500, 2).double())[1].std() > 0.3
    assert flow.log_prob(torch.tensor([0.5, 1.5], dtype=torch.float64)) == -math.inf
    assert flow.sample(1000).min() >= 0 and flow.sample(1000).max() <= 1


def test_log_prob_is_the_change_of_variables() -> None:
    base = DiagonalNormal(3, [0.3, -1.0, 2.0], [0.1, 0.2, -0.3])
    flow = Flow(make().transform, base).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    J = torch.autograd.functional.jacobian(lambda v: flow.transform(v)[0].sum(0), x).movedim(1, 0)
    z = flow.transform(x)[0]
    wanted = td.Normal(base.loc, base.log_scale.exp()).log_prob(z).sum(-1) + torch.linalg.slogdet(J).logabsdet
    torch.testing.assert_close(flow.log_prob(x), wanted)
    assert torch.equal(flow(x), flow.log_prob(x))


@pytest.mark.parametrize("context", [0, C])
def test_samples_follow_the_density(context) -> None:
    """Pearson's chi-squared of 40,000 draws in 36 cells, against the integral of the density over each."""
    flow = mild(2, context, seed=1)
    given = torch.randn(C, dtype=torch.float64) if context else None
    torch.manual_seed(0)
    n, cells, per_cell, bound = 40_000, 6, 60, 6.0
    edge = (torch.arange(cells * per_cell, dtype=torch.float64) + 0.5) * (2 * bound / cells / per_cell) - bound
    with torch.no_grad():
        density = flow.log_prob(torch.cartesian_prod(edge, edge), given).exp() * (edge[1] - edge[0]) ** 2
    wanted = n * density.view(cells, per_cell, cells, per_cell).sum((1, 3))
    x = flow.sample(n, given)
    bins = ((x + bound) / (2 * bound / cells)).floor().long().clamp(0, cells - 1)
    found = torch.bincount(bins[:, 0] * cells + bins[:, 1], minlength=cells**2).view(cells, cells)
    counted = wanted > 10
    assert wanted[counted].sum() > 0.99 * n and counted.sum() > 10
    chi2 = ((found - wanted).square() / wanted)[counted].sum()
    assert chi2 < 82  # odds of 1e-5 with 35 degrees of freedom, the most there can be


# ---- sampling ----


@pytest.mark.parametrize("context", [None, (C,), (1, C), (4, C), (2, 4, C)])
def test_shapes_with_context(context) -> None:
    flow = make(3, C if context else 0)
    given = None if context is None else torch.randn(context, dtype=torch.float64)
    lead = () if context is None else context[:-1]
    for draw in (flow.sample, flow.rsample):
        assert draw(5, given).shape == (5, *lead, 3)
        assert draw((5, 2), given).shape == (5, 2, *lead, 3)
        assert draw(0, given).shape == (0, *lead, 3)
    x, log_prob = flow.sample_and_log_prob(5, given)
    assert x.shape == (5, *lead, 3) and log_prob.shape == (5, *lead)
    torch.testing.assert_close(flow.log_prob(x, given), log_prob)
    torch.manual_seed(7)
    one = flow.sample(5, given)
    torch.manual_seed(7)
    torch.testing.assert_close(flow.sample_and_log_prob(5, given)[0], one)


@pytest.mark.parametrize("net", ["residual", "mlp"])
@pytest.mark.parametrize(
    ("x", "context", "out"),
    [
        ((6, 3), (C,), (6,)),
        ((6, 3), (1, C), (6,)),
        ((6, 3), (6, C), (6,)),
        ((5, 6, 3), (6, C), (5, 6)),
        ((3,), (C,), ()),
        ((3,), (6, C), (6,)),
        ((1, 3), (6, C), (6,)),
        ((5, 1, 3), (6, C), (5, 6)),
        ((0, 3), (C,), (0,)),
        ((0, 3), (0, C), (0,)),
    ],
)
def test_log_prob_broadcasts_context(net, x, context, out) -> None:
    flow = make(3, C, net=net)
    x, context = torch.randn(x, dtype=torch.float64), torch.randn(context, dtype=torch.float64)
    found = flow.log_prob(x, context)
    rows = flow.log_prob(x.expand(*out, 3).reshape(-1, 3), context.expand(*out, C).reshape(-1, C))
    assert found.shape == out
    torch.testing.assert_close(found, rows.view(out))


def test_rows_use_their_own_context() -> None:
    flow = make(3, C)
    context = torch.randn(4, C, dtype=torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64)
    together = flow.log_prob(x, context)
    for i in range(4):
        torch.testing.assert_close(together[i], flow.log_prob(x[i], context[i]))
    assert (together - flow.log_prob(x, context.flip(0))).abs().min() > 1e-6


def test_many_contexts_are_one_pass() -> None:
    """Not one pass of the networks per row, and one embedding per call."""
    flow = make(3, C, embedding=nn.Linear(2, C))
    calls: list[str] = []
    for name, module in flow.named_modules():
        if name == "embedding" or name.endswith("conditioner"):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    context = torch.randn(50, 2, dtype=torch.float64)
    for run in (
        lambda: flow.sample(10, context),
        lambda: flow.sample_and_log_prob(10, context),
        lambda: flow.log_prob(torch.randn(50, 3).double(), context),
    ):
        calls.clear()
        run()
        assert sorted(calls) == sorted(set(calls)) and len(calls) == 1 + 3


def test_embedding_is_applied() -> None:
    embedding = nn.Sequential(nn.Flatten(-2), nn.Linear(4, C))  # a context of [B, 2, 2]: its leading dims are B
    flow = make(3, C, embedding=embedding)
    plain = Flow(flow.transform, flow.base)
    context, x = torch.randn(6, 2, 2).double(), torch.randn(6, 3).double()
    assert torch.equal(flow.log_prob(x, context), plain.log_prob(x, embedding(context)))
    assert flow.sample(5, context).shape == (5, 6, 3)
    assert flow.as_distribution(context).batch_shape == (6,)


def test_gradients_of_samples() -> None:
    flow = make(3, C, base=DiagonalNormal(3), embedding=nn.Linear(2, C))
    context = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert not flow.sample(5, context).requires_grad

    def check(out: Tensor) -> None:
        flow.zero_grad()
        context.grad = None
        out.backward()
        assert context.grad is not None and (context.grad != 0).all()
        for name, p in flow.named_parameters():
            assert p.grad is not None and (p.grad != 0).any(), name

    check(flow.rsample(5, context).sin().sum())
    check(flow.sample_and_log_prob(5, context)[0].sin().sum())
    check(flow.sample_and_log_prob(5, context)[1].sum())


def test_gradient_of_rsample_is_right() -> None:
    """Against finite differences, under common random numbers; and so is that of log q along the path."""
    flow = make(2, 0, base=DiagonalNormal(2), hidden=(8,), transforms=2)
    weight = flow.transform[0].conditioner.final_layer.weight

    def f(w: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        values = {"transform.transforms.0.conditioner.final_layer.weight": w}
        return torch.func.functional_call(Sampler(flow), {f"flow.{k}": v for k, v in values.items()}, 7)

    assert torch.autograd.gradcheck(f, (weight,), fast_mode=True)


class Sampler(nn.Module):
    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, n: int) -> tuple[Tensor, Tensor]:
        return self.flow.sample_and_log_prob(n)


# ---- the ready model ----


@pytest.mark.parametrize("net", ["residual", "mlp"])
@pytest.mark.parametrize("features", [1, 2, 3, 6])
@pytest.mark.parametrize("context", [0, C])
def test_nsf_starts_near_the_identity_and_alive(features, context, net) -> None:
    torch.manual_seed(0)
    flow = NSF(features, context, net=net)
    x = torch.randn(200, features)
    given = torch.randn(200, C) if context else None
    z, ladj = flow.transform(x, given)
    assert (z - x).abs().max() < 0.1 and ladj.abs().max() < 0.1 * features
    if features > 1 or context:
        assert (z != x).any()
    (flow.log_prob(x, given).mean() - flow.rsample(3, given).sin().mean()).backward()
    for name, p in flow.named_parameters():
        assert p.grad is not None and (p.grad != 0).any(), name
    flow.double()
    back, ladj_back = flow.transform.inverse(*(t if t is None else t.double() for t in (z, given)))
    torch.testing.assert_close(back, x.double(), rtol=0, atol=1e-5)
    assert ladj_back.shape == ladj.shape


def test_nsf_transforms_every_feature() -> None:
    for features in (1, 2, 3, 4, 5):
        flow = make(features, transforms=2)
        x = torch.randn(50, features, dtype=torch.float64)
        assert ((flow.transform(x)[0] - x).abs().amax(0) > 1e-3).all()


def test_nsf_settings_arrive() -> None:
    flow = NSF(
        4, 2, transforms=6, bins=10, hidden=(32, 32, 32), tail_bound=5.0, min_bin_width=1e-2, min_bin_height=2e-2,
        min_derivative=3e-2, parametrization="softmax", dropout=0.1, batch_norm=True, base=DiagonalNormal(4),
        linear=None,
    )  # fmt: skip
    layers = list(flow.transform)
    assert len(layers) == 6
    for i, layer in enumerate(layers):
        wanted = RQS(bins=10, tail_bound=5.0, min_bin_width=1e-2, min_bin_height=2e-2, min_derivative=3e-2)
        assert layer.univariate == wanted
        assert layer.split.mask.tolist() == [(i + j) % 2 == 1 for j in range(4)]
        assert len(layer.conditioner.blocks) == 3 and layer.conditioner.initial_layer.in_features == 4
        assert layer.conditioner.blocks[0].dropout.p == 0.1 and layer.conditioner.blocks[0].batch_norm_layers
    assert isinstance(flow.base, DiagonalNormal)
    assert NSF(4, linear=None, parametrization="soft_clip").transform[0].univariate.parametrization == "soft_clip"
    mlp = NSF(4, linear=None, net="mlp", hidden=(8, 9), activation=torch.tanh).transform[0].conditioner
    assert [layer.out_features for layer in mlp.hidden_layers] == [8, 9] and mlp.activation is torch.tanh


@pytest.mark.parametrize(("features", "n"), [(1, 2), (2, 2), (3, 5), (128, 5), (129, 2)])
def test_linear_layers_of_nsf(features, n) -> None:
    """By default where there are as many features as tables have; they leave an untrained model nearly the identity."""
    flow = NSF(features, transforms=2, hidden=8)
    assert len(flow.transform) == n
    x = torch.randn(5, features)
    assert (flow.encode(x) - x).abs().max() < 0.1
    assert len(NSF(features, transforms=2, hidden=8, linear=None).transform) == 2


def test_nsf_with_a_net_of_your_own() -> None:
    class Own(nn.Module):
        def __init__(self, a: int, b: int) -> None:
            super().__init__()
            self.layer = nn.Linear(a, b)

        def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
            return self.layer(x)

    flow = NSF(4, net=Own, linear=None)
    assert isinstance(flow.transform[0].conditioner, Own)
    assert flow.log_prob(torch.randn(5, 4)).shape == (5,)


def test_nsf_learns() -> None:
    """A ring, in bits a Gaussian cannot say: its best fit stays above 2.8 nats, the flow must go well below."""
    torch.manual_seed(0)
    angle = 2 * math.pi * torch.rand(2000)
    x = torch.stack((angle.cos(), angle.sin()), -1) * 1.5 + 0.1 * torch.randn(2000, 2)
    gaussian = td.MultivariateNormal(x.mean(0), torch.cov(x.T))
    flow = NSF(2, transforms=3, hidden=(32,))
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for i in range(80):
        optimizer.zero_grad()
        loss = -flow(x[i % 4 :: 4]).mean()
        loss.backward()
        optimizer.step()
    assert -gaussian.log_prob(x).mean() > 2.8
    assert -flow.log_prob(x).mean() < 2.0
    radius = flow.sample(2000).norm(dim=-1)
    assert 1.4 < radius.mean() < 1.6


def test_dtypes(dtype, device) -> None:
    flow = make(3, C, dtype=dtype).to(device)
    context = torch.randn(4, C).to(device, dtype)
    x, log_prob = flow.sample_and_log_prob(5, context)
    assert x.dtype == dtype and x.device.type == device.type
    assert log_prob.dtype == flow.log_prob(x, context).dtype == torch.promote_types(dtype, torch.float32)
    assert x.isfinite().all() and log_prob.isfinite().all()


def test_no_float64_by_default() -> None:
    """MPS has none."""
    flow = NSF(3, 2)
    assert {t.dtype for t in flow.state_dict().values()} <= {torch.float32, torch.bool, torch.int64}


def test_autocast() -> None:
    flow = make(3, C, dtype=torch.float32)
    x, context = torch.randn(6, 3), torch.randn(6, C)
    with torch.autocast("cpu", torch.bfloat16):
        log_prob = flow.log_prob(x, context)
        samples = flow.sample(5, context)
    assert log_prob.dtype == samples.dtype == torch.float32
    assert log_prob.isfinite().all() and samples.isfinite().all()
    log_prob.sum().backward()


def test_copies() -> None:
    flow, x, context = make(3, C), torch.randn(6, 3).double(), torch.randn(6, C).double()
    wanted = flow.log_prob(x, context)
    fresh = make(3, C, seed=1)
    fresh.load_state_dict(flow.state_dict())
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow)), fresh):
        assert torch.equal(other.log_prob(x, context), wanted)
    assert "NSF" in repr(flow) and "mask=010" in repr(flow) and "StandardNormal" in repr(flow)


def test_bad_row_stays_in_its_row() -> None:
    flow, x = make(3), torch.randn(6, 3).double()
    clean = flow.log_prob(x)
    x[2, 0] = math.nan
    found = flow.log_prob(x)
    assert found[2].isnan() and torch.equal(found[[0, 1, 3, 4, 5]], clean[[0, 1, 3, 4, 5]])


def test_compile_fullgraph() -> None:
    flow, x, context = make(3, C, embedding=nn.Linear(2, C)), torch.randn(6, 3).double(), torch.randn(2).double()
    torch._dynamo.reset()
    compiled = torch.compile(flow, backend="aot_eager", fullgraph=True)
    for f in (flow, compiled):
        flow.zero_grad()
        log_prob = f(x, context)
        log_prob.sum().backward()
        grads = [p.grad.clone() for p in flow.parameters()]
        if f is flow:
            wanted = (log_prob, grads)
    torch.testing.assert_close((log_prob, grads), wanted)


# ---- torch.distributions ----


@pytest.mark.parametrize("context", [None, (C,), (4, C)])
def test_as_distribution(context) -> None:
    flow = make(3, C if context else 0)
    given = None if context is None else torch.randn(context, dtype=torch.float64)
    dist = flow.as_distribution(given)
    batch = () if context is None else context[:-1]
    assert isinstance(dist, td.Distribution) and isinstance(dist, FlowDistribution)
    assert dist.batch_shape == batch and dist.event_shape == (3,)
    assert dist.has_rsample and dist.support is td.constraints.real_vector
    assert dist.sample().shape == (*batch, 3) and dist.sample((5, 2)).shape == (5, 2, *batch, 3)
    assert dist.rsample((5,)).requires_grad and not dist.sample((5,)).requires_grad
    x = dist.sample((5,))
    assert torch.equal(dist.log_prob(x), flow.log_prob(x, given))
    assert dist.log_prob(x[(0,) * (1 + len(batch))]).shape == batch
    assert "FlowDistribution" in repr(dist)


def test_as_distribution_validates() -> None:
    dist = make(3).as_distribution(validate_args=True)  # torch.compile turns the default off in its process
    x = torch.zeros(4, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="within the support"):
        dist.log_prob(torch.where(torch.arange(3) == 1, math.nan, x))
    with pytest.raises(ValueError, match="event_shape"):
        dist.log_prob(x[:, :2])
    with pytest.raises(ValueError, match="not broadcastable"):
        make(3, C).as_distribution(torch.zeros(5, C).double(), validate_args=True).log_prob(x)
    free = make(3).as_distribution(validate_args=False)
    assert free.log_prob(x * math.nan).isnan().all()


@pytest.mark.parametrize("context", [None, (C,), (4, C), (1, C)])
def test_as_distribution_expands(context) -> None:
    flow = make(3, C if context else 0)
    given = None if context is None else torch.randn(context, dtype=torch.float64)
    dist = flow.as_distribution(given)
    wide = dist.expand((6, 4))
    assert wide.batch_shape == (6, 4) and wide.event_shape == (3,)
    x = wide.sample((2,))
    assert x.shape == (2, 6, 4, 3)
    torch.testing.assert_close(wide.log_prob(x), flow.log_prob(x, given))
    torch.testing.assert_close(wide.log_prob(x[0, 0, 0]), dist.log_prob(x[0, 0, 0]).expand(6, 4))
    assert (wide.sample().flatten(0, 1)[0] != wide.sample().flatten(0, 1)[1]).all()
    with pytest.raises((ValueError, RuntimeError)):
        wide.expand((6, 1))


def test_as_distribution_composes() -> None:
    """With a transform of torch's, as a reparameterised part of something else."""
    flow = make(2)
    scale = torch.tensor([2.0, 0.5], dtype=torch.float64)
    shift = td.AffineTransform(torch.ones(2, dtype=torch.float64), scale, event_dim=1)
    dist = td.TransformedDistribution(flow.as_distribution(), shift)
    x = dist.rsample((7,))
    wanted = flow.log_prob((x - 1) / scale) - scale.log().sum()
    torch.testing.assert_close(dist.log_prob(x), wanted)
    assert td.Independent(flow.as_distribution().expand((5,)), 1).log_prob(torch.zeros(5, 2).double()).shape == ()


def test_as_distribution_follows_training() -> None:
    """It holds the flow and embeds anew: no stale context, and backward works more than once."""
    flow = make(3, C, embedding=nn.Linear(2, C))
    dist = flow.as_distribution(torch.randn(4, 2).double())
    x = torch.randn(4, 3).double()
    before = dist.log_prob(x)
    before.sum().backward()
    with torch.no_grad():
        flow.embedding.weight.add_(0.5)
    after = dist.log_prob(x)
    after.sum().backward()
    assert (before != after).all()


def test_base_may_be_anything_of_ours() -> None:
    for base in (StandardNormal(3), DiagonalNormal(3), UniformBox([-9.0] * 3, [9.0] * 3)):
        flow = Flow(Permutation.random(3), base)
        x, log_prob = flow.sample_and_log_prob(5)
        torch.testing.assert_close(flow.log_prob(x), log_prob)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: NSF(0), ValueError, "flows.NSF: features must be at least 1, got 0"),
        (lambda: NSF(2, transforms=0), ValueError, "flows.NSF: transforms must be at least 1, got 0"),
        (lambda: NSF(2, net="resnet"), ValueError, "flows.NSF: net must be .*, got 'resnet'"),
        (lambda: NSF(2, hidden=(8, 9)), ValueError, r"hidden must be equal widths .*, got \(8, 9\)"),
        (lambda: NSF(2, hidden=()), ValueError, r"hidden must be equal widths .*, got \(\)"),
        (lambda: NSF(2, bins=0), ValueError, "bins must be an integer from 1 to 128, got 0"),
        (lambda: NSF(2).log_prob(torch.zeros(4, 3)), ValueError, r"x must be \[\.\.\., 2\], got \[4, 3\]"),
        (lambda: NSF(2, 3).log_prob(torch.zeros(4, 2)), ValueError, r"context must be \[\.\.\., 3\], got None"),
        (lambda: NSF(2).log_prob(torch.zeros(4, 2), torch.zeros(3)), ValueError, "context must be None"),
        (lambda: NSF(1).sample(4, torch.zeros(3)), ValueError, "context must be None"),
        (lambda: NSF(2, 3).sample(4, torch.zeros(5, 2)), ValueError, r"must broadcast to \[4, 5, 3\], got \[5, 2\]"),
        (lambda: Flow(nn.Identity(), StandardNormal(2)), TypeError, "transform must be a Transform, got Identity"),
        (lambda: Flow(Permutation([0]), nn.Identity()), TypeError, r"base must be .*, got torch\..*Identity"),
        (lambda: Flow(Permutation([0]), td.Normal(0, 1)), ValueError, r"one over \[D\], .*, got batch_shape \[\] and"),
    ],
)
def test_errors(build, error, message) -> None:
    with pytest.raises(error, match=message):
        build()
