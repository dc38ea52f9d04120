"""PixelCNN, MaCow and MintNet: both directions, what they are made of, training, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flowkernels.flows import Flow, MaCow, MintNet, PixelCNN, bits_per_dim
from flowkernels.transforms import (
    ActNorm,
    ImageCoupling,
    LUConv1x1,
    Mint,
    PixelAutoregressive,
    RowAutoregressive,
    Squeeze,
)

FLOWS = {
    "PixelCNN": lambda: PixelCNN((2, 3, 2), hidden=6, blocks=1, components=3, first_kernel_size=3),
    "PixelCNN, context": lambda: PixelCNN((1, 3, 2), 2, 6, 1, 2, block="gated"),
    "MaCow": lambda: MaCow((1, 4, 4), levels=2, steps=1, units=1, row_hidden=4, hidden=4, seed=0),
    "MaCow, context": lambda: MaCow((1, 2, 4), 2, levels=1, steps=1, units=2, row_hidden=4, hidden=4, seed=0),
    "MintNet": lambda: MintNet((1, 4, 2), transforms=1, latents=3, levels=2),
}


@pytest.fixture(autouse=True)
def one_thread(threads) -> None:
    """Small tensors: a second thread costs more than it gives. And the same numbers every time."""
    threads(1)
    torch.manual_seed(0)


def loose(flow: Flow) -> Flow:
    torch.manual_seed(0)
    for p in flow.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return flow.double().eval()


@pytest.mark.parametrize("name", FLOWS)
def test_both_directions(name) -> None:
    flow = loose(FLOWS[name]())
    x = torch.randn(3, *flow.event_shape).double()
    context = torch.randn(3, 2).double() if "context" in name else None
    z, ladj = flow.transform(x, context)
    torch.testing.assert_close(flow.transform.inverse(z, context), (x, -ladj), rtol=1e-8, atol=1e-8)
    for i in range(2):
        c = None if context is None else context[i]
        J = torch.autograd.functional.jacobian(lambda v, c=c: flow.encode(v, c), x[i]).reshape(len(z[i]), -1)
        torch.testing.assert_close(torch.linalg.slogdet(J)[1], ladj[i], rtol=1e-8, atol=1e-8)
    row = None if context is None else context[0]
    sample, log_prob = flow.sample_and_log_prob(4, row)
    torch.testing.assert_close(flow.log_prob(sample, row), log_prob, rtol=1e-7, atol=1e-7)


def test_a_pixel_cnn_is_a_product_of_conditionals() -> None:
    """Of mixtures of logistics, by torch.distributions."""
    flow = loose(FLOWS["PixelCNN"]())
    x = torch.randn(5, 2, 3, 2).double()
    (layer,) = flow.transform[0].levels[0]
    logits, means, log_scales = layer._params(x, None).unflatten(-1, (3, 3)).unbind(-2)
    z = (x[..., None] - means) / log_scales.exp()
    logistic = torch.nn.functional.logsigmoid(z) + torch.nn.functional.logsigmoid(-z) - log_scales
    wanted = torch.logsumexp(logits.log_softmax(-1) + logistic, -1).sum((1, 2, 3))
    torch.testing.assert_close(flow.log_prob(x), wanted)


def test_what_they_are_made_of() -> None:
    first, second = MaCow((1, 4, 4), levels=2, steps=1, units=1, row_hidden=4, hidden=4).transform[0].levels
    unit = [ActNorm, RowAutoregressive, RowAutoregressive, ActNorm, RowAutoregressive, RowAutoregressive]
    step = [*unit, ActNorm, LUConv1x1, ImageCoupling]
    assert [type(t) for t in first] == [Squeeze, *step, ImageCoupling]
    assert [type(t) for t in second] == [Squeeze, *step]
    assert [t.direction for t in second if isinstance(t, RowAutoregressive)] == ["down", "up", "right", "left"]
    (layers,) = MintNet((1, 4, 4), transforms=2, latents=2, levels=2).transform[0].levels
    assert [type(t) for t in layers] == [*[Mint] * 4, Squeeze, *[Mint] * 4]
    assert [t.reverse for t in layers if isinstance(t, Mint)] == [False, True] * 4
    assert layers[-1].shape == (4, 2, 2)
    (layers,) = PixelCNN((1, 4, 4), hidden=4, blocks=1, levels=8).transform[0].levels
    assert [type(t) for t in layers] == [PixelAutoregressive]


def test_untrained_models_are_mild() -> None:
    x = torch.rand(6, 1, 4, 4)
    torch.testing.assert_close(MintNet((1, 4, 4), transforms=1, levels=1).encode(x), x.flatten(1), rtol=0.1, atol=0.1)
    flow = PixelCNN((1, 4, 4), hidden=8, blocks=1)
    torch.testing.assert_close(flow.encode(x), x.flatten(1), rtol=0.05, atol=0.05)
    bits = bits_per_dim(PixelCNN((1, 4, 4), hidden=8, blocks=1, levels=16).log_prob((16 * x).floor()), 16, 1)
    assert (bits < 6).all()


@pytest.mark.parametrize("name", ["PixelCNN", "MaCow", "MintNet"])
def test_learns_two_patterns(name) -> None:
    """Which have one bit together, and pixels by themselves one each."""
    draws = torch.Generator().manual_seed(0)
    patterns = torch.tensor([[[3, 0], [0, 3]], [[0, 3], [3, 0]]])[:, None]
    x = patterns[torch.randint(2, (64,), generator=draws)].float()
    torch.manual_seed(0)
    makers: dict[str, Any] = {
        "PixelCNN": lambda: PixelCNN((1, 2, 2), hidden=8, blocks=1, components=2, levels=4, first_kernel_size=3),
        "MaCow": lambda: MaCow((1, 2, 2), levels=1, steps=1, units=1, row_hidden=8, hidden=8, seed=0),
        "MintNet": lambda: MintNet((1, 2, 2), transforms=2, latents=8, levels=1),
    }
    flow = makers[name]()
    data = x if name == "PixelCNN" else (x - 1.5) / 1.5 + 0.1 * torch.randn(x.shape, generator=draws)
    flow.log_prob(data)  # sets the actnorms
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = -flow.log_prob(data).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if name == "PixelCNN":
        assert losses[-1] < 1.5 * 0.694 < losses[0]  # log 2 nats
        found = flow.eval().sample(100)
        assert (found[:, None] == patterns).flatten(2).all(-1).any(-1).float().mean() > 0.8
    else:
        assert losses[-1] < 4 * 1.42 - 2  # a normal of each pixel by itself has 1.42 nats


def test_a_nan_stays_in_its_row() -> None:
    for name in FLOWS:
        if "context" in name:
            continue
        flow = loose(FLOWS[name]())
        x = torch.randn(3, *flow.event_shape).double()
        right = flow.log_prob(x)
        x[1, 0, 0, 0] = torch.nan
        found = flow.log_prob(x)
        assert found[1].isnan() and torch.equal(found[[0, 2]], right[[0, 2]])


def test_errors() -> None:
    cases: tuple[tuple[Any, str], ...] = (
        (lambda: PixelCNN((1, 4)), r"flows.PixelCNN: shape must be \(C, H, W\), got \(1, 4\)"),
        (lambda: PixelCNN((1, 4, 4), levels=1), "levels must be 0 or at least 2, got 1"),
        (lambda: PixelCNN((1, 4, 4), components=0), "components must be an integer from 1 to 128, got 0"),
        (lambda: MaCow((1, 4, 4), units=0), "flows.MaCow: units must be at least 1, got 0"),
        (lambda: MaCow((1, 6, 4), levels=2), r"must be \[C, H, W\] with even H and W, got \[2, 3, 2\]"),
        (lambda: MintNet((1, 4, 4), transforms=0), "flows.MintNet: transforms must be at least 1, got 0"),
        (lambda: MintNet((1, 4, 4), latents=0), "flows.MintNet: latents must be at least 1, got 0"),
        (lambda: MintNet((1, 4, 4)).log_prob(torch.zeros(1, 4, 4), torch.zeros(2)), "flows.MintNet"),
    )
    for build, message in cases:
        with pytest.raises(ValueError, match=message):
            build()
