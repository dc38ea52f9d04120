"""NICE, RealNVP and Glow: what their papers say of them, training on digits, and what is done with their latents."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from flowkernels.distributions import DiagonalNormal, StandardLogistic, StandardNormal
from flowkernels.flows import NICE, NSF, Flow
from flowkernels.transforms import Coupling, DiagonalScale
from tests.test_transforms import jacobian, randomise

C = 3


@pytest.fixture(autouse=True)
def one_thread(threads) -> None:
    """Small tensors: a second thread costs more than it gives."""
    threads(1)


@functools.cache
def digits() -> Tensor:
    """scikit-learn's digits in (0, 1), with the noise that makes them continuous: [1797, 64]."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    pixels = torch.from_numpy(datasets.load_digits().data).float()
    return (pixels + torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0))) / 17


def nats_gained(flow: Flow, x: Tensor, steps: int, learning_rate: float, context: Tensor | None = None) -> float:
    """Per dimension, by training on `x`; the flow must still be invertible there and in its samples."""
    torch.manual_seed(0)
    with torch.no_grad():
        before = flow.log_prob(x, context).mean()
    optimizer = torch.optim.Adam(flow.parameters(), lr=learning_rate)
    for i in range(steps):
        optimizer.zero_grad()
        loss = -flow(x[i % 7 :: 7], None if context is None else context[i % 7 :: 7]).mean()
        loss.backward()
        optimizer.step()
    flow.eval()
    with torch.no_grad():
        gained = flow.log_prob(x, context).mean() - before
        given = None if context is None else context[:20]
        z, ladj = flow.transform(x[:20], None if flow.context_to_base else given)
        back, ladj_back = flow.transform.inverse(z, None if flow.context_to_base else given)
        torch.testing.assert_close(back, x[:20], rtol=0, atol=1e-3)
        torch.testing.assert_close(ladj_back, -ladj, rtol=1e-3, atol=0.05)
        draws = flow.sample(20) if context is None else flow.sample((), given)
        assert draws.shape == x[:20].shape and draws.isfinite().all()
    return gained.item() / x[0].numel()


def loose(flow: Flow) -> Flow:
    """Far from the identity."""
    torch.manual_seed(0)
    randomise(flow)
    return flow.double()


# ---- NICE ----


def test_nice_is_the_papers() -> None:
    flow = NICE(784)
    *layers, scale = flow.transform
    assert len(layers) == 4 and isinstance(scale, DiagonalScale) and isinstance(flow.base, StandardLogistic)
    for i, layer in enumerate(layers):
        assert isinstance(layer, Coupling) and layer.univariate.scale == "additive"
        assert layer.split.mask.tolist() == [(i + j) % 2 == 1 for j in range(784)]
        widths = [(m.in_features, m.out_features) for m in layer.conditioner.modules() if isinstance(m, nn.Linear)]
        assert widths == [(392, 1000), *[(1000, 1000)] * 4, (1000, 392)]


def test_nice_by_hand() -> None:
    """Two layers and the scale written out, under the logistic density."""
    flow = loose(NICE(4, transforms=2, hidden=(8,)))
    first, second, scale = flow.transform
    x = torch.randn(6, 4, dtype=torch.float64)
    h = x.clone()
    h[:, 1::2] += first.conditioner(x[:, ::2])
    z = h.clone()
    z[:, ::2] += second.conditioner(h[:, 1::2])
    z = z * scale.log_scale.exp()
    wanted = (-z - 2 * (1 + (-z).exp()).log() + scale.log_scale).sum(-1)
    torch.testing.assert_close(flow.log_prob(x), wanted)
    torch.testing.assert_close(flow.encode(x), z)
    torch.testing.assert_close(flow.decode(z), x)


def test_nice_keeps_volume_up_to_its_scale() -> None:
    flow = loose(NICE(5, C, hidden=(8,)))
    x, context = torch.randn(7, 5).double(), torch.randn(7, C).double()
    J = jacobian(lambda v: flow.transform(v, context)[0], x)
    scale = flow.transform[4].log_scale
    assert scale.abs().sum() > 1
    torch.testing.assert_close(torch.linalg.slogdet(J).logabsdet, scale.sum().expand(7))
    torch.testing.assert_close(flow.transform(x, context)[1], scale.sum().expand(7))


@pytest.mark.parametrize("features", [1, 2, 5])
@pytest.mark.parametrize("context", [0, C])
def test_nice_starts_near_the_identity_and_alive(features, context) -> None:
    torch.manual_seed(0)
    flow = NICE(features, context, hidden=(16, 16))
    x, given = torch.randn(50, features), torch.randn(50, C) if context else None
    z, ladj = flow.transform(x, given)
    assert (z - x).abs().max() < 0.1 and (ladj == 0).all()
    flow.log_prob(x, given).mean().backward()
    for name, p in flow.named_parameters():
        assert p.grad is not None and (p.grad != 0).any(), name


def test_nice_learns() -> None:
    """A logistic of its own scale per pixel fits the digits somewhat; the couplings must add to that."""
    torch.manual_seed(0)
    x = digits()
    alone = DiagonalScale(64)
    assert nats_gained(Flow(alone, StandardLogistic(64)), x, 60, 0.1) > 1
    flow = NICE(64, hidden=(64, 64))
    flow.transform[4].load_state_dict(alone.state_dict())
    assert nats_gained(flow, x, 100, 3e-3) > 0.3


# ---- latents ----


def test_temperature_of_a_flow_that_keeps_volume() -> None:
    """With a normal base and additive layers the draws at T follow p^(1/T^2): NICE's latent at T is T times the one."""
    flow = loose(NICE(3, hidden=(8,), base=StandardNormal(3)))
    torch.manual_seed(1)
    warm = flow.encode(flow.sample(9))
    torch.manual_seed(1)
    cold = flow.encode(flow.sample(9, temperature=0.5))
    torch.testing.assert_close(cold, 0.5 * warm)
    torch.testing.assert_close(flow.sample(4, temperature=0.0), flow.decode(torch.zeros(4, 3).double()))
    x = torch.randn(5, 3).double()
    ratio = flow.log_prob(x) / 0.25 - StandardNormal(3).log_prob(flow.encode(x) / 0.5)
    torch.testing.assert_close(ratio, ratio[:1].expand(5))  # the normaliser


def test_encode_decode_and_interpolate() -> None:
    flow = loose(NSF(3, C, transforms=2, hidden=(8,)))
    x0, x1, context = torch.randn(4, 3).double(), torch.randn(4, 3).double(), torch.randn(4, C).double()
    torch.testing.assert_close(flow.decode(flow.encode(x0, context), context), x0)
    path = flow.interpolate(x0, x1, 5, context)
    assert path.shape == (5, 4, 3) and not path.requires_grad
    torch.testing.assert_close(path[0], x0)
    torch.testing.assert_close(path[4], x1)
    middle = (flow.encode(x0, context) + flow.encode(x1, context)) / 2
    torch.testing.assert_close(path[2], flow.decode(middle, context))
    assert (path[2] - (x0 + x1) / 2).abs().max() > 1e-3  # the line is straight in the latent only


def test_context_to_the_base_only() -> None:
    """Layers without a context under a base with one: sampling, densities, distributions, expanded contexts."""
    base = DiagonalNormal(3, context=10)
    with torch.no_grad():
        base.weight.normal_()
    flow = Flow(NSF(3, hidden=(8,)).transform, base, context_to_base=True).double()
    one_hot, x = torch.eye(10).double(), torch.randn(10, 3).double()
    found = flow.log_prob(x, one_hot)
    z, ladj = flow.transform(x)
    torch.testing.assert_close(found, base.log_prob(z, one_hot) + ladj)
    assert flow.log_prob(x[0], one_hot).shape == (10,)
    assert flow.sample(5, one_hot).shape == (5, 10, 3)
    draws, log_prob = flow.sample_and_log_prob(5, one_hot)
    torch.testing.assert_close(flow.log_prob(draws, one_hot), log_prob)
    dist = flow.as_distribution(one_hot)
    assert dist.batch_shape == (10,) and dist.event_shape == (3,)
    torch.testing.assert_close(dist.log_prob(draws), log_prob)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: NICE(0), ValueError, "flows.NICE: features must be at least 1, got 0"),
        (lambda: NICE(2, transforms=0), ValueError, "flows.NICE: transforms must be at least 1, got 0"),
        (lambda: NSF(2).interpolate(torch.zeros(2), torch.zeros(2), 1), ValueError, "steps must be at least 2, got 1"),
    ],
)
def test_errors(build, error, message) -> None:
    with pytest.raises(error, match=message):
        build()
