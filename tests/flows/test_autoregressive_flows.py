"""MAF, IAF, NSF(autoregressive=True) and MADE as a density: they integrate to one, and samples follow them."""

from __future__ import annotations

import copy
import functools
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributions as td

from flowkernels import nets
from flowkernels.distributions import DiagonalNormal
from flowkernels.flows import IAF, MADE, MAF, NSF, SOS, Flow, MixtureMADE, RecurrentFlow
from flowkernels.transforms import RQS, Affine, Autoregressive, Inverse, Permutation, Polynomial, Softclip
from tests.flows.test_flows import integral
from tests.transforms.test_transforms import randomise

C = 3
FLOWS = {
    "maf": functools.partial(MAF, transforms=3, hidden=(16, 16)),
    "maf-residual": functools.partial(MAF, transforms=2, hidden=(16, 16), residual=True, order="random", seed=0),
    "maf-spline": functools.partial(MAF, transforms=2, hidden=(16,), univariate=RQS(bins=4, tail_bound=4.0)),
    "maf-exp": functools.partial(MAF, transforms=2, hidden=(16,), univariate=Affine("exp"), activation="tanh"),
    "sos": functools.partial(SOS, transforms=2, hidden=(16,), degree=2, terms=2, bound=4.0),
    "iaf": functools.partial(IAF, transforms=3, hidden=(16, 16)),
    "recurrent": functools.partial(RecurrentFlow, transforms=2, hidden=8),
    "nsf": functools.partial(NSF, transforms=2, bins=4, hidden=(16, 16), autoregressive=True),
    "nsf-mlp": functools.partial(
        NSF, transforms=2, hidden=(16,), autoregressive=True, net="mlp", order="random", seed=1
    ),
    "made": functools.partial(MADE, hidden=(16,)),
    "made-mixture": functools.partial(MADE, components=3, hidden=(16, 16)),
    "made-residual": functools.partial(MADE, components=2, hidden=(16,), residual=True, order="reversed"),
}
EVERY = pytest.mark.parametrize("build", FLOWS.values(), ids=FLOWS)


@pytest.fixture(autouse=True)
def _one_thread(one_thread) -> None:
    """Small tensors: a second thread costs more than it gives."""


def make(build: functools.partial, features: int = 3, context: int = 0, noise: float = 0.5, seed: int = 0) -> Flow:
    """Away from the identity, in evaluation of nothing but its weights."""
    torch.manual_seed(seed)
    flow = build(features, context=context).double()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(noise * torch.randn_like(p) / p.shape[-1] ** 0.5)
    return flow


# ---- the density ----


@EVERY
@pytest.mark.parametrize("context", [0, C])
def test_integrates_to_one(build, context) -> None:
    flow = make(build, 2, context, noise=0.3)
    given = torch.randn(C, dtype=torch.float64) if context else None
    assert abs(integral(flow, 400, 12.0, given) - 1) < 1e-3


@EVERY
def test_log_prob_is_the_change_of_variables(build) -> None:
    flow = make(build)
    x = torch.randn(20, 3, dtype=torch.float64)
    J = torch.autograd.functional.jacobian(lambda v: flow.transform(v)[0].sum(0), x).movedim(1, 0)
    wanted = flow.base.log_prob(flow.transform(x)[0]) + torch.linalg.slogdet(J).logabsdet
    torch.testing.assert_close(flow.log_prob(x), wanted)


@pytest.mark.parametrize("components", [1, 4])
def test_made_is_a_product_of_conditionals(components) -> None:
    """Against torch.distributions, conditional by conditional."""
    flow = make(functools.partial(MADE, components=components, hidden=(16,), order="reversed"))
    x = torch.randn(20, 3, dtype=torch.float64)
    params = flow.net(x).view(20, 3, -1)
    if components == 1:  # z = s x + t is normal
        scale = torch.nn.functional.softplus(params[..., 0]) + 1e-3
        conditional: td.Distribution = td.Normal(-params[..., 1] / scale, 1 / scale)
    else:
        logits, means, scales = params.unflatten(-1, (3, components)).unbind(-2)
        parts = td.Normal(means, torch.nn.functional.softplus(scales) + 1e-3)
        conditional = td.MixtureSameFamily(td.Categorical(logits=logits), parts)
    torch.testing.assert_close(flow.log_prob(x), conditional.log_prob(x).sum(-1))


@EVERY
@pytest.mark.parametrize("context", [0, C])
def test_samples_follow_the_density(build, context) -> None:
    """Pearson's chi-squared of 20,000 draws in 36 cells, against the integral of the density over each."""
    flow = make(build, 2, context, noise=0.3, seed=1)
    given = torch.randn(C, dtype=torch.float64) if context else None
    torch.manual_seed(0)
    n, cells, per_cell, bound = 20_000, 6, 50, 6.0
    edge = (torch.arange(cells * per_cell, dtype=torch.float64) + 0.5) * (2 * bound / cells / per_cell) - bound
    with torch.no_grad():
        density = flow.log_prob(torch.cartesian_prod(edge, edge), given).exp() * (edge[1] - edge[0]) ** 2
    wanted = n * density.view(cells, per_cell, cells, per_cell).sum((1, 3))
    x = flow.sample(n, given)
    bins = ((x + bound) / (2 * bound / cells)).floor().long()
    inside = ((bins >= 0) & (bins < cells)).all(-1)
    found = torch.bincount(bins[inside] @ torch.tensor([cells, 1]), minlength=cells**2).view(cells, cells)
    counted = wanted > 10
    assert wanted[counted].sum() > 0.95 * n and counted.sum() > 4
    assert ((found - wanted).square() / wanted)[counted].sum() < 90  # odds below 1e-5 for 36 cells


# ---- sampling ----


@EVERY
@pytest.mark.parametrize("context", [None, (C,), (4, C)])
def test_shapes_and_agreement(build, context) -> None:
    flow = make(build, 3, C if context else 0)
    given = None if context is None else torch.randn(context, dtype=torch.float64)
    lead = () if context is None else context[:-1]
    for draw in (flow.sample, flow.rsample):
        assert draw((5, 2), given).shape == (5, 2, *lead, 3)
        assert draw(0, given).shape == (0, *lead, 3)
    x, log_prob = flow.sample_and_log_prob(5, given)
    assert x.shape == (5, *lead, 3) and log_prob.shape == (5, *lead)
    torch.testing.assert_close(flow.log_prob(x, given), log_prob, rtol=1e-6, atol=1e-7)
    torch.manual_seed(7)
    one = flow.sample(5, given)
    torch.manual_seed(7)
    torch.testing.assert_close(flow.rsample(5, given), one)
    assert not one.requires_grad


@pytest.mark.parametrize("features", [1, 2, 20])
@EVERY
def test_any_number_of_features(build, features) -> None:
    """One; and more than the hidden layers have units."""
    flow = make(build, features, C, noise=0.2)
    x, context = torch.randn(6, features, dtype=torch.float64), torch.randn(6, C, dtype=torch.float64)
    z, ladj = flow.transform(x, context)
    back, ladj_back = flow.transform.inverse(z, context)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-6)
    torch.testing.assert_close(ladj_back, -ladj, rtol=0, atol=1e-6)
    assert flow.log_prob(x, context).shape == (6,) and flow.sample(2, context).shape == (2, 6, features)
    assert flow.log_prob(x[:0], context[:0]).shape == (0,)


@pytest.mark.parametrize("name", ["maf", "iaf", "nsf", "made-mixture"])
def test_gradients_of_samples_are_right(name) -> None:
    """Against finite differences under common random numbers; for a mixture the component drawn must not move."""
    flow = make(FLOWS[name], 2, 0, noise=0.2)
    owner = flow.base if isinstance(flow.base, MixtureMADE) else flow.transform
    weights = [p for n, p in owner.named_parameters() if n.endswith("final_layer.bias")]
    if name == "made-mixture":
        # A draw x moves such that its rank F(x) stays: the derivative of a quantile, by finite differences of F.
        (bias,) = weights
        torch.manual_seed(0)
        x = flow.rsample(50)
        (found,) = torch.autograd.grad(x[:, 0].sum(), bias)
        cdf = lambda b: mixture_cdf(x.detach()[:, 0], b[:9].view(3, 3))  # noqa: E731
        density = mixture_cdf(x.detach()[:, 0] + 1e-6, bias[:9].view(3, 3)) - mixture_cdf(
            x.detach()[:, 0] - 1e-6, bias[:9].view(3, 3)
        )
        J = torch.autograd.functional.jacobian(cdf, bias.detach())
        torch.testing.assert_close(found, -(J / (density.detach()[:, None] / 2e-6)).sum(0), rtol=1e-5, atol=1e-6)
        return

    def f(*_: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        return flow.sample_and_log_prob(5)

    assert torch.autograd.gradcheck(f, weights, fast_mode=True)


def mixture_cdf(x: Tensor, params: Tensor) -> Tensor:
    logits, means, scales = params
    ranks = td.Normal(means, torch.nn.functional.softplus(scales) + 1e-3).cdf(x[:, None])
    return (logits.softmax(-1) * ranks).sum(-1)


def test_iaf_samples_in_one_pass() -> None:
    """And MAF evaluates in one: the network of each layer runs once, not once per feature."""
    for build, call in ((IAF, lambda f: f.sample(5)), (MAF, lambda f: f.log_prob(torch.randn(5, 6)))):
        flow, calls = build(6, transforms=3, hidden=(8,)), []
        for module in flow.modules():
            if isinstance(module, nets.MADE):
                module.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        call(flow)
        assert len(calls) == 3


# ---- the ready models ----


@EVERY
@pytest.mark.parametrize("features", [1, 2, 6])
@pytest.mark.parametrize("context", [0, C])
def test_starts_near_the_identity_and_alive(build, features, context) -> None:
    torch.manual_seed(0)
    flow = build(features, context=context)
    x, given = torch.randn(200, features), torch.randn(200, C) if context else None
    z, ladj = flow.transform(x, given)
    assert (z - x).abs().max() < 0.1 and ladj.abs().max() < 0.1 * features
    (flow.log_prob(x, given).mean() - flow.rsample(3, given).sin().mean()).backward()
    if features > 2:
        for name, p in flow.named_parameters():
            assert p.grad is not None and (p.grad != 0).any(), name


def test_orders() -> None:
    orders = [t.conditioner.order.tolist() for t in MAF(4, transforms=3).transform]
    assert orders == [[0, 1, 2, 3], [3, 2, 1, 0], [0, 1, 2, 3]]
    one, two = ([t.conditioner.order.tolist() for t in MAF(9, transforms=3, order="random", seed=s).transform]
                for s in (5, 5))  # fmt: skip
    assert one == two and one[0] != one[1] != one[2]


def test_a_recurrent_flow_has_as_many_weights_for_any_features() -> None:
    few, many = (RecurrentFlow(D, transforms=3, hidden=4, univariate=RQS(bins=3)) for D in (2, 9))
    assert sum(p.numel() for p in few.parameters()) == sum(p.numel() for p in many.parameters())
    assert [layer.conditioner.steps[0] for layer in many.transform] == [0, 8, 0]
    turned = RecurrentFlow(3, transforms=2, linear="reverse").transform
    assert [type(layer) for layer in turned] == [Permutation, Autoregressive] * 2 + [Permutation]
    assert [turned[i].conditioner.steps for i in (1, 3)] == [[2, 1, 0]] * 2
    for wrong, message in (({"hidden": (4, 4)}, "hidden must be an integer"), ({"order": "up"}, "order must be")):
        with pytest.raises(ValueError, match=f"flows.RecurrentFlow: {message}"):
            RecurrentFlow(3, **wrong)


def test_groups() -> None:
    given = [[0, 3], [1, 2, 4]]
    flow = MAF(5, groups=given, transforms=3, hidden=(16,))
    found = [layer.conditioner.plan.groups for layer in flow.transform]
    assert found == [((0, 3), (1, 2, 4)), ((1, 2, 4), (0, 3)), ((0, 3), (1, 2, 4))]
    randomise(flow.double())
    x = torch.randn(9, 5).double()
    z, ladj = flow.transform(x)
    torch.testing.assert_close(flow.transform.inverse(z), (x, -ladj))
    layer = flow.transform[0]
    (moved,) = torch.autograd.functional.jacobian(lambda v: (layer(v)[0].sum(0),), x)
    assert [d for d in range(5) if moved[d, :, 3].abs().sum() > 0] == [1, 2, 3, 4]  # itself, and the next group
    assert [layer.conditioner.plan.groups for layer in MAF(7, groups=3, transforms=1).transform] == [
        ((0, 1), (2, 3), (4, 5, 6))
    ]
    several = [MAF(6, groups=3, order="random", transforms=1, seed=i).transform[0] for i in range(9)]
    drawn = {layer.conditioner.plan.groups for layer in several}
    assert len(drawn) > 1 and all(sorted(groups) == [(0, 1), (2, 3), (4, 5)] for groups in drawn)
    for wrong, message in ((0, "from 1 to 6"), (7, "from 1 to 6"), ([0, 1], "a number or lists"), ([[0], [9]], "once")):
        with pytest.raises(ValueError, match=f"flows.MAF: groups must .*{message}"):
            MAF(6, groups=wrong)


def test_sos_is_a_maf_of_polynomials() -> None:
    flow = SOS(3, transforms=2, hidden=8, degree=1, terms=2, order="random", seed=0)
    assert {layer.univariate for layer in flow.transform} == {Polynomial(degree=1, terms=2)}
    with pytest.raises(TypeError, match=r"flows\.SOS: univariate must not be given"):
        SOS(3, univariate=Affine())


@pytest.mark.parametrize("linear", [None, "lu"])
def test_sums_of_squares_of_an_outlier(linear) -> None:
    """Degree 9 five times over leaves the numbers of float32; behind soft clips it does not, and has an inverse."""
    torch.manual_seed(0)
    x = 30 * torch.ones(1, 4)
    for softclip, is_finite in ((None, False), (11.0, True)):
        flow = SOS(4, transforms=5, hidden=16, softclip=softclip, linear=linear)
        for p in flow.parameters():
            p.data += 0.3 * torch.randn_like(p)
        assert flow.log_prob(x).isfinite().all() == is_finite
    clips = [isinstance(layer, Softclip) for layer in flow.transform]
    assert sum(clips) == 4 and not clips[0] and not clips[-1]
    x = torch.randn(64, 4, dtype=torch.float64)
    torch.testing.assert_close(flow.double().decode(flow.encode(x)), x, rtol=0, atol=1e-6)


def test_settings_arrive() -> None:
    flow = MAF(
        4, 2, transforms=2, hidden=(8, 8), univariate=Affine("exp"), residual=True, activation="silu", dropout=0.1,
        base=DiagonalNormal(4),
    )  # fmt: skip
    assert isinstance(flow.base, DiagonalNormal) and len(flow.transform) == 2
    for layer in flow.transform:
        net = layer.conditioner
        assert isinstance(layer, Autoregressive) and layer.univariate == Affine("exp")
        assert net.residual and len(net.blocks) == 2 and net.activation == "silu" and net.blocks[0].dropout.p == 0.1
    assert all(isinstance(t, Inverse) for t in IAF(3).transform)
    spline = NSF(4, 2, bins=5, tail_bound=2.0, autoregressive=True, linear=None, hidden=(8,)).transform[0]
    assert spline.univariate == RQS(bins=5, tail_bound=2.0) and spline.conditioner.residual
    assert not NSF(4, autoregressive=True, net="mlp", linear=None).transform[0].conditioner.residual
    assert MAF(50, hidden=(8,)).transform[0].conditioner.initial_layer.degrees.max() > 8


def test_a_maf_on_a_mixture() -> None:
    flow = MAF(3, transforms=2, hidden=(8,), base=MixtureMADE(nets.MADE(3, 12, (8,))))
    x, log_prob = flow.sample_and_log_prob(7)
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("components", [1, 3])
def test_order_agnostic_training(components) -> None:
    """The masks are redrawn before every step, and the density is one under each of them."""
    torch.manual_seed(0)
    flow = MADE(2, components, hidden=(16,))
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    x = torch.randn(200, 2) * 0.5 + 1
    first = None
    for i in range(30):
        flow.net.shuffle_order(i)
        flow.net.resample_masks(i)
        optimizer.zero_grad()
        loss = -flow(x).mean()
        first = first or loss.item()
        loss.backward()
        optimizer.step()
    for seed in range(3):
        flow.net.shuffle_order(seed)
        assert -flow(x).mean() < first - 0.3
        assert abs(integral(flow.double(), 300, 10.0) - 1) < 1e-3
        flow.float()


@EVERY
def test_dtypes_and_copies(build, dtype) -> None:
    flow = build(3, context=C).to(dtype)
    context = torch.randn(4, C).to(dtype)
    x, log_prob = flow.sample_and_log_prob(5, context)
    assert x.dtype == dtype and log_prob.dtype == torch.promote_types(dtype, torch.float32)
    assert x.isfinite().all() and log_prob.isfinite().all()
    wanted = flow.log_prob(x, context)
    fresh = build(3, context=C).to(dtype)
    fresh.load_state_dict(flow.state_dict())
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow)), fresh):
        assert torch.equal(other.log_prob(x, context), wanted)


@EVERY
def test_autocast(build) -> None:
    flow, x, context = build(3, context=C), torch.randn(6, 3), torch.randn(6, C)
    with torch.autocast("cpu", torch.bfloat16):
        log_prob, samples = flow.log_prob(x, context), flow.sample(5, context)
    assert log_prob.dtype == samples.dtype == torch.float32
    assert log_prob.isfinite().all() and samples.isfinite().all()
    log_prob.sum().backward()


@EVERY
def test_bad_row_stays_in_its_row(build) -> None:
    flow, x = make(build), torch.randn(6, 3).double()
    clean = flow.log_prob(x)
    x[2, 0] = math.nan
    found = flow.log_prob(x)
    assert found[2].isnan() and torch.equal(found[[0, 1, 3, 4, 5]], clean[[0, 1, 3, 4, 5]])


@pytest.mark.parametrize("name", ["maf", "iaf", "made-mixture"])
def test_compile_fullgraph(name) -> None:
    flow, x, context = make(FLOWS[name], 3, C), torch.randn(6, 3).double(), torch.randn(C).double()
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(flow, backend="aot_eager", fullgraph=True)(x, context), flow(x, context))


def test_as_distribution() -> None:
    for name in ("maf", "made-mixture"):
        flow = make(FLOWS[name], 3, C)
        dist = flow.as_distribution(torch.randn(4, C).double())
        x = dist.rsample((5,))
        assert dist.batch_shape == (4,) and x.shape == (5, 4, 3) and dist.log_prob(x).shape == (5, 4)


def test_randomised_weights_stay_invertible() -> None:
    flow = MAF(3, transforms=2, hidden=(16,)).double()
    randomise(flow)
    x = torch.randn(50, 3).double()
    torch.testing.assert_close(flow.transform.inverse(flow.transform(x)[0])[0], x, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MAF(0), "flows.MAF: features must be at least 1, got 0"),
        (lambda: IAF(2, transforms=0), "flows.IAF: transforms must be at least 1, got 0"),
        (lambda: MAF(2, order="natural"), 'flows.MAF: order must be "reversed" or "random", got \'natural\''),
        (lambda: MAF(2, hidden=()), "nets.MADE: hidden must be at least one width"),
        (lambda: NSF(2, autoregressive=True, order="no"), 'flows.NSF: order must be "reversed" or "random"'),
        (lambda: NSF(2, autoregressive=True, net="conv"), 'an autoregressive net must be "residual" or "mlp"'),
        (lambda: NSF(2, autoregressive=True, batch_norm=True), "no batch_norm, got 'residual', batch_norm=True"),
        (lambda: NSF(2, autoregressive=True, hidden=(8, 9)), "hidden must be equal widths"),
        (lambda: MADE(2, components=0), "flows.MADE: components must be at least 1, got 0"),
        (lambda: MixtureMADE(nets.MADE(2, 4)), r"net must have 3 \* components parameters per feature, got 4"),
        (lambda: MADE(2, 3).log_prob(torch.zeros(4, 3)), r"x must be \[\.\.\., 2\], got \[4, 3\]"),
        (lambda: MADE(2, 3, context=2).sample(4), "context must be .*, got None"),
        (lambda: MAF(2, 2).sample(4, torch.zeros(5, 3)), r"context must broadcast to \[4, 5, 2\], got \[5, 3\]"),
    ],
)
def test_errors(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
