"""NICE, RealNVP and Glow: what their papers say of them, training on digits, and what is done with their latents."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from flowkernels.distributions import DiagonalNormal, StandardLogistic, StandardNormal
from flowkernels.flows import NICE, NSF, Flow, Glow, RealNVP, attribute_vector, inpaint
from flowkernels.transforms import (
    RQS,
    ActNorm,
    Affine,
    Coupling,
    Dequantize,
    DiagonalScale,
    ImageCoupling,
    Logit,
    LUConv1x1,
    LULinear,
    MultiScale,
    Permutation,
    Squeeze,
    checkerboard,
)
from tests.transforms.test_transforms import jacobian, randomise

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


def loose(flow: Flow, size: float = 1.0) -> Flow:
    """Far from the identity; less so with parameters of a smaller ``size``."""
    torch.manual_seed(0)
    randomise(flow)
    with torch.no_grad():
        for p in flow.parameters():
            p.mul_(size)
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


# ---- Real NVP ----


def parts(flow: Flow, level: int) -> list[nn.Module]:
    """The layers of a level of an image flow."""
    scales = flow.transform[len(flow.transform) - 1]
    assert isinstance(scales, MultiScale)
    return list(scales.levels[level])


def names(layers: list[nn.Module]) -> list[str]:
    return [type(layer).__name__ for layer in layers]


def test_real_nvp_on_features() -> None:
    flow = RealNVP(5, C, transforms=4, hidden=(8,), batch_norm=True)
    assert names(list(flow.transform)) == ["Coupling", "BatchNorm"] * 4
    assert [layer.split.mask.tolist() for layer in flow.transform if isinstance(layer, Coupling)] == [
        [(i + j) % 2 == 1 for j in range(5)] for i in range(4)
    ]
    assert len(RealNVP(5).transform) == 6 and RealNVP(5).transform[0].univariate == Affine("tanh")
    flow = RealNVP(2, preprocessing=[Dequantize(4), Logit()], univariate=RQS(bins=4))
    assert names(list(flow.transform))[:3] == ["Dequantize", "Logit", "Coupling"]
    assert flow.log_prob(torch.tensor([[0, 3]], dtype=torch.uint8)).shape == (1,)
    assert RealNVP(1).log_prob(torch.zeros(3, 1)).shape == (3,)


def test_real_nvp_on_images_is_the_papers() -> None:
    """Checkerboards, squeeze, halves of channels; one more board in the last level; what is mapped alternates."""
    flow = RealNVP((1, 16, 16), levels=3, hidden=(8, 8), batch_norm=True)
    for level, (channels, side) in enumerate(((1, 16), (2, 8), (4, 4))):
        layers = parts(flow, level)
        couplings = [layer for layer in layers if isinstance(layer, ImageCoupling)]
        boards = [checkerboard(channels, side, side, i) for i in range(4 if level == 2 else 3)]
        for layer, board in zip(couplings, boards, strict=False):
            assert torch.equal(layer.mask, board) and len(layer.conditioner.blocks) == 2
        if level == 2:
            assert names(layers) == ["ImageCoupling", "BatchNorm"] * 4
            continue
        assert names(layers) == ["ImageCoupling", "BatchNorm"] * 3 + ["Squeeze"] + ["ImageCoupling", "BatchNorm"] * 3
        wide = 4 * channels
        flags = [[(j >= wide // 2) == (i % 2 == 0) for j in range(wide)] for i in range(3)]
        assert [layer.split.mask.tolist() for layer in couplings[3:]] == flags
    assert flow.event_shape == (1, 16, 16) and flow.base.features == 256


# ---- Glow ----


@pytest.mark.parametrize("permutation", ["lu", "shuffle", "reverse"])
def test_glow_is_the_papers(permutation) -> None:
    flow = Glow((3, 8, 8), levels=2, steps=2, hidden=(8, 8), permutation=permutation, seed=0)
    mixing = {"lu": LUConv1x1, "shuffle": Permutation, "reverse": Permutation}[permutation]
    for level, channels in enumerate((12, 24)):
        layers = parts(flow, level)
        step = [ActNorm, mixing, ImageCoupling]
        assert [type(layer) for layer in layers] == [Squeeze, *step, *step, *([ImageCoupling] if level == 0 else [])]
        for layer in layers:
            if isinstance(layer, ImageCoupling):
                assert layer.split.mask.tolist() == [j >= channels // 2 for j in range(channels)]
            if permutation == "reverse" and isinstance(layer, Permutation):
                assert layer.order.tolist() == list(range(channels))[::-1]
    if permutation == "shuffle":
        first, second = (layer.order for layer in parts(flow, 0) if isinstance(layer, Permutation))
        assert not torch.equal(first, second)
    other = Glow((3, 8, 8), levels=2, steps=2, hidden=(8, 8), permutation=permutation, seed=0)
    for (name, a), b in zip(flow.state_dict().items(), other.state_dict().values(), strict=True):
        assert "conditioner" in name or torch.equal(a, b)


@pytest.mark.parametrize("univariate", [Affine("tanh"), Affine("additive"), Affine("exp")])
def test_untrained_couplings_are_the_identity(univariate) -> None:
    """Bit for bit: the last convolution is zero. A rotation keeps length and volume, a permutation every number."""
    x = torch.randn(6, 2, 4, 4)
    for permutation in ("lu", "reverse"):
        flow = Glow((2, 4, 4), levels=2, steps=3, hidden=(8,), univariate=univariate, permutation=permutation).eval()
        for level in (0, 1):
            for layer in parts(flow, level):
                if isinstance(layer, ImageCoupling):
                    h = torch.randn(3, layer.channels, 2, 2)
                    y, ladj = layer(h)
                    assert torch.equal(y, h) and (ladj == 0).all()
        z, ladj = flow.transform(x)
        torch.testing.assert_close(z.norm(dim=1), x.flatten(1).norm(dim=1))
        torch.testing.assert_close(ladj, torch.zeros(6), rtol=0, atol=1e-4)
        if permutation == "reverse":
            assert torch.equal(z.sort().values, x.flatten(1).sort().values)


@pytest.mark.parametrize("univariate", [RQS(bins=4), Affine("softplus")])
def test_untrained_couplings_are_near_the_identity(univariate) -> None:
    """Whose parameters there are not zero: every one of them must reach its block of channels."""
    for flow in (
        Glow((2, 4, 4), levels=1, steps=1, hidden=(8,), univariate=univariate),
        RealNVP((2, 4, 4), levels=1, transforms=1, hidden=(8,), univariate=univariate),
    ):
        for layer in flow.modules():
            if isinstance(layer, ImageCoupling):
                side = 2 if isinstance(flow, Glow) else 4
                h = torch.randn(50, layer.channels, side, side)
                y, ladj = layer(h)
                assert (y - h).abs().max() < 0.1 and ladj.abs().max() < 0.2


def test_glow_starts_normalised() -> None:
    """The first training batch sets every actnorm: what reaches the couplings has zero mean and unit variance."""
    torch.manual_seed(0)
    flow = Glow((1, 8, 8), levels=2, steps=2, hidden=(8,), univariate=Affine("tanh"), permutation="reverse")
    z = flow.encode(5 + 3 * torch.randn(500, 1, 8, 8))
    assert z.mean().abs() < 1e-3 and abs(z.std() - 1) < 1e-2
    assert all(m.initialised for m in flow.modules() if isinstance(m, ActNorm))


def test_glow_by_class() -> None:
    """The base alone sees the class, unless the layers are told its size too."""
    one_hot = torch.eye(4)
    flow = Glow((1, 4, 4), levels=1, steps=1, hidden=(8,), classes=4).eval()
    randomise(flow)
    x = torch.randn(5, 4, 1, 4, 4)
    log_prob = flow.log_prob(x, one_hot)
    z, ladj = flow.transform(x)
    torch.testing.assert_close(log_prob, flow.base.log_prob(z, one_hot) + ladj)
    assert (log_prob - flow.log_prob(x, one_hot.flip(0))).abs().min() > 1e-4
    both = Glow((1, 4, 4), context=4, levels=1, steps=1, hidden=(8,), classes=4).eval()
    randomise(both)
    z = both.encode(x, one_hot)
    assert (z - both.encode(x, one_hot.flip(0))).abs().max() > 1e-4
    torch.testing.assert_close(both.decode(z, one_hot), x, rtol=0, atol=1e-3)


# ---- flows on images do all that flows do ----

IMAGE_FLOWS = {
    "glow": lambda context: Glow((1, 4, 4), context, levels=2, steps=1, hidden=(8,), seed=0),
    "glow-class": lambda context: Glow((1, 4, 4), levels=2, steps=1, hidden=(8,), classes=context),
    "real-nvp": lambda context: RealNVP((1, 4, 4), context, 1, (8,), batch_norm=True),
}


@pytest.mark.parametrize("name", IMAGE_FLOWS)
@pytest.mark.parametrize("context", [None, (C,), (4, C), (1, C), (2, 4, C)])
def test_image_flows(name, context) -> None:
    flow = loose(IMAGE_FLOWS[name](C if context else 0), 0.5).eval()
    given = None if context is None else torch.randn(context, dtype=torch.float64)
    lead = () if context is None else context[:-1]
    for draw in (flow.sample, flow.rsample):
        assert draw(5, given).shape == (5, *lead, 1, 4, 4) and draw((5, 0), given).shape == (5, 0, *lead, 1, 4, 4)
    x, log_prob = flow.sample_and_log_prob(5, given)
    assert log_prob.shape == (5, *lead)
    torch.testing.assert_close(flow.log_prob(x, given), log_prob, rtol=1e-5, atol=1e-5)
    one = x[(0,) * (1 + len(lead))]
    assert flow.log_prob(one, given).shape == lead
    torch.testing.assert_close(flow.decode(flow.encode(x, given), given), x, rtol=0, atol=1e-6)
    dist = flow.as_distribution(given)
    assert dist.batch_shape == lead and dist.event_shape == (1, 4, 4) and dist.support.event_dim == 3
    assert dist.sample((3,)).shape == (3, *lead, 1, 4, 4)
    torch.testing.assert_close(dist.log_prob(x), log_prob, rtol=1e-5, atol=1e-5)
    if context is None:
        assert flow.interpolate(x[0], x[1], 4).shape == (4, 1, 4, 4)
        assert dist.expand((2,)).sample().shape == (2, 1, 4, 4)
    (log_prob.sum() + x.sin().sum()).backward()
    for key, p in flow.named_parameters():
        assert p.grad is not None and (p.grad != 0).any(), key


@pytest.mark.parametrize("name", ["glow", "real-nvp"])
def test_image_flow_compiles_whole(name) -> None:
    flow, x = loose(IMAGE_FLOWS[name](C)).eval(), torch.randn(5, 1, 4, 4, dtype=torch.float64)
    context = torch.randn(C, dtype=torch.float64)
    torch._dynamo.reset()
    found = torch.compile(flow, backend="aot_eager", fullgraph=True)(x, context)
    torch.testing.assert_close(found, flow(x, context))


# ---- training ----


def on_unit(images: Tensor) -> Tensor:
    return images.view(-1, 1, 8, 8)


LEARNERS = {
    "real-nvp": (lambda: RealNVP(64, transforms=4, hidden=(64,), preprocessing=[Logit()]), 0.5),
    "real-nvp-normed": (lambda: RealNVP(64, transforms=4, hidden=(64,), preprocessing=[Logit()], batch_norm=True), 0.2),
    "real-nvp-images": (
        lambda: RealNVP((1, 8, 8), transforms=2, hidden=(16,), preprocessing=[Logit(event_dims=3)]),
        0.5,
    ),
    "glow": (
        lambda: Glow((1, 8, 8), levels=2, steps=2, hidden=(32, 32), seed=0, preprocessing=[Logit(event_dims=3)]),
        0.1,
    ),
    "glow-additive": (
        lambda: Glow(
            (1, 8, 8), levels=2, steps=2, hidden=(32, 32), permutation="shuffle", univariate=Affine("additive"), seed=0
        ),
        0.1,
    ),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_learns_the_digits(name) -> None:
    """Nats per pixel gained in a few dozen steps, and a round trip of data and of samples after them.

    The first batch sets Glow's actnorms, and a batch norm is normalised from the start, before anything is counted.
    """
    build, gain = LEARNERS[name]
    torch.manual_seed(0)
    flow, x = build(), digits()
    x = x if len(flow.event_shape) == 1 else on_unit(x)
    with torch.no_grad():
        flow(x[:256])
    assert nats_gained(flow, x, 40, 5e-3) > gain


def test_classes_are_learned() -> None:
    """The base by class explains the digits better than the same base for all."""
    torch.manual_seed(0)
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    labels = torch.nn.functional.one_hot(torch.from_numpy(datasets.load_digits().target), 10).float()
    x = on_unit(digits())
    flow = Glow((1, 8, 8), levels=1, steps=1, hidden=(16,), classes=10, seed=0, preprocessing=[Logit(event_dims=3)])
    with torch.no_grad():
        flow(x[:256], labels[:256])
    assert nats_gained(flow, x, 60, 1e-2, labels) > 0.1
    with torch.no_grad():
        scores = torch.stack([flow.log_prob(x, row) for row in torch.eye(10)], -1)
    assert (scores.argmax(-1) == labels.argmax(-1)).float().mean() > 0.5


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


def test_attribute_vector() -> None:
    """The difference of the mean latents, and adding it moves data that lacks the attribute to where it has it."""
    flow = loose(NSF(3, C, transforms=2, hidden=(8,)))
    having, lacking = torch.randn(4, 5, 3).double() + 1, torch.randn(30, 3).double()
    context = torch.randn(C).double()
    vector = attribute_vector(flow, having, lacking, context)
    wanted = flow.encode(having.flatten(0, 1), context).mean(0) - flow.encode(lacking, context).mean(0)
    torch.testing.assert_close(vector, wanted)
    moved = flow.encode(flow.decode(flow.encode(lacking, context) + vector, context), context)
    torch.testing.assert_close(moved.mean(0), flow.encode(having.flatten(0, 1), context).mean(0))
    assert not vector.requires_grad and attribute_vector(flow, having[0, 0], lacking[0], context).shape == (3,)


def test_inpaint_finds_the_conditional_mean() -> None:
    """Of a normal distribution, whose most likely completion is known in closed form; by its gradient alone."""
    torch.manual_seed(0)
    layer = LULinear(4, seed=0)
    with torch.no_grad():
        layer.upper.add_(0.3 * torch.randn(4, 4))
    flow = Flow(layer, DiagonalNormal(4, 0.3)).double()
    W = flow.transform(torch.eye(4).double())[0] - flow.transform(torch.zeros(4).double())[0]
    precision = W @ W.T
    mean = flow.decode(flow.base.loc)
    x = torch.rand(6, 4, dtype=torch.float64)
    known = torch.tensor([True, False, True, False])
    given = x[:, known] - mean[known]
    cross, own = precision[~known][:, known], precision[~known][:, ~known]
    wanted = mean[~known] - given @ torch.linalg.solve(own, cross).T
    found = inpaint(flow, x, known, 800, noise=0.0, low=-9.0, high=9.0, step_size=lambda i: 0.1)
    assert torch.equal(found[:, known], x[:, known])
    torch.testing.assert_close(found[:, ~known], wanted.detach(), rtol=0, atol=1e-6)
    boxed = inpaint(flow, x, known, 800, noise=0.0, low=0.4, high=0.6, step_size=lambda i: 0.1)
    assert torch.equal(boxed[:, known], x[:, known])  # what is known may lie outside of the box
    assert boxed[:, ~known].min() >= 0.4 and boxed[:, ~known].max() <= 0.6
    assert all(p.grad is None for p in flow.parameters()) and not found.requires_grad


def test_inpaint_steps_as_the_paper() -> None:
    """Two steps by hand: 10/(100 + i) times the gradient and the noise, on the box, the unknown only."""
    flow = loose(RealNVP((1, 4, 4), C, 1, (8,)))
    x, context = torch.rand(3, 1, 4, 4).double(), torch.randn(C).double()
    known = torch.zeros(4, 4, dtype=torch.bool)
    known[:2] = True
    torch.manual_seed(5)
    with torch.no_grad():  # it is no matter
        found = inpaint(flow, x, known, 2, context=context)
    torch.manual_seed(5)
    at = x
    for size in (10 / 100, 10 / 101):
        at = at.detach().requires_grad_()
        (slope,) = torch.autograd.grad(flow.log_prob(at, context).sum(), at)
        at = torch.where(known, x, (at + size * (slope + torch.randn_like(x))).clamp(0, 1))
    torch.testing.assert_close(found, at.detach())
    assert (found != x).any()


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
        (lambda: RealNVP(0), ValueError, "flows.RealNVP: features must be at least 1, got 0"),
        (lambda: RealNVP((1, 4, 4), levels=0), ValueError, "flows.RealNVP: levels must be at least 1, got 0"),
        (lambda: RealNVP((1, 4, 4), transforms=0), ValueError, "flows.RealNVP: transforms must be at least 1, got 0"),
        (lambda: RealNVP((1, 4, 4), hidden=(8, 9)), ValueError, r"equal numbers of channels, got \(8, 9\)"),
        (lambda: RealNVP((4, 4)), ValueError, r"flows.RealNVP: shape must be \(C, H, W\), got \(4, 4\)"),
        (lambda: RealNVP((1, 6, 6), levels=3), ValueError, r"even H and W, got \[2, 3, 3\]"),
        (lambda: Glow((1, 4, 4), levels=3), ValueError, r"even H and W, got \[4, 1, 1\]"),
        (lambda: Glow((1, 4, 4), steps=0), ValueError, "flows.Glow: steps must be at least 1, got 0"),
        (lambda: Glow((1, 4, 4), permutation="qr"), ValueError, "flows.Glow: permutation must be .*, got 'qr'"),
        (lambda: Glow((1, 4, 4), context=3, classes=4), ValueError, "context must be 0 or classes .*, got 3 and None"),
        (lambda: RealNVP((1, 4, 4)).log_prob(torch.zeros(5, 16)), ValueError, r"must be \[\.\.\., 1, 4, 4\], got"),
        (
            lambda: inpaint(NICE(2), torch.zeros(2), torch.ones(2)),
            TypeError,
            "known must be a bool tensor, got torch.f",
        ),
        (lambda: inpaint(NICE(2), torch.zeros(2), True), TypeError, "known must be a bool tensor, got bool"),
        (
            lambda: inpaint(NICE(2), torch.zeros(2), torch.ones(3, 2).bool()),
            ValueError,
            r"flows.inpaint: known must broadcast to \[2\], got \[3, 2\]",
        ),
        (lambda: NSF(2).interpolate(torch.zeros(2), torch.zeros(2), 1), ValueError, "steps must be at least 2, got 1"),
    ],
)
def test_errors(build, error, message) -> None:
    with pytest.raises(error, match=message):
        build()
