"""Flow++: both directions, what it is made of, its bound for whole numbers, training, errors."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from flowkernels.flows import FlowPP, bits_per_dim
from flowkernels.transforms import ActNorm, Coupling, Dequantize, ImageCoupling, Logit, LUConv1x1, MultiScale, Squeeze
from flowkernels.transforms import VariationalDequantize as Variational

SMALL: dict[str, Any] = {"hidden": 4, "blocks": 1, "components": 3}
IMAGE: dict[str, Any] = {**SMALL, "transforms": (1, 1, 1)}
FLOWS = {
    "features": lambda: FlowPP(3, transforms=2, **SMALL),
    "context": lambda: FlowPP(3, 2, transforms=2, **SMALL),
    "one feature": lambda: FlowPP(1, transforms=2, **SMALL),
    "images": lambda: FlowPP((1, 4, 2), **IMAGE, seed=0),
    "images, attention, context": lambda: FlowPP((2, 4, 2), 2, **IMAGE, attention=2, seed=0),
}


def far_from_the_identity(flow: FlowPP) -> FlowPP:
    torch.manual_seed(0)
    for p in flow.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return flow.double().eval()


@pytest.mark.parametrize("name", FLOWS)
def test_both_directions(name) -> None:
    flow = far_from_the_identity(FLOWS[name]())
    x = torch.randn(3, *flow.event_shape).double()
    context = torch.randn(3, 2).double() if "context" in name else None
    z, ladj = flow.transform(x, context)
    back, negated = flow.transform.inverse(z, context)
    torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(negated, -ladj, rtol=1e-8, atol=1e-8)
    for i in range(3):
        c = None if context is None else context[i]
        J = torch.autograd.functional.jacobian(lambda v, c=c: flow.encode(v, c), x[i]).reshape(len(z[i]), -1)
        torch.testing.assert_close(torch.linalg.slogdet(J)[1], ladj[i], rtol=1e-8, atol=1e-8)


def test_starts_near_the_identity() -> None:
    x = torch.randn(50, 3)
    torch.testing.assert_close(FlowPP(3, transforms=2, hidden=8).encode(x), x, rtol=0.02, atol=0.05)


def test_what_it_is_made_of() -> None:
    assert [type(layer) for layer in FlowPP(3, transforms=2, **SMALL).transform] == [Coupling, Coupling]
    first, second, levels = FlowPP((1, 4, 4), **SMALL, levels=4, noise_transforms=3).transform
    assert type(first) is Variational and type(second) is Logit and type(levels) is MultiScale
    assert len(first.noise.transform) == 3
    (layers,) = levels.levels
    step = [ActNorm, LUConv1x1, ImageCoupling]
    assert [type(layer) for layer in layers] == [*step * 4, Squeeze, *step * 5]
    assert type(FlowPP(3, transforms=2, **SMALL, levels=4, dequantization="uniform").transform[0]) is Dequantize


def share_of_the_box(flow: FlowPP) -> float:
    """How much of what the flow has lies where noise can bring whole numbers."""
    y = torch.randn(20000, 2).double()
    with torch.no_grad():
        for layer in reversed(list(flow.transform)[1:]):
            y, _ = layer.inverse(y)
    return ((y > 0) & (y < 1)).all(-1).double().mean().item()


@pytest.mark.parametrize("dequantization", ["variational", "uniform"])
def test_the_bound(dequantization) -> None:
    """exp(log_prob), averaged over noise, is a probability: those of all whole numbers sum to one."""
    flow = far_from_the_identity(FlowPP(2, transforms=2, **SMALL, levels=3, dequantization=dequantization))
    every = torch.tensor(list(itertools.product(range(3), repeat=2))).double()
    with torch.no_grad():
        draws = flow.log_prob(every.expand(20000, *every.shape))
    estimate = draws.logsumexp(0) - math.log(len(draws))
    # But for what the flow has outside of the box, which samples put on the nearest number.
    error = 4 * (draws.exp().std(0) / len(draws) ** 0.5).norm()
    assert abs(estimate.exp().sum() - share_of_the_box(flow)) < error + 0.01
    assert (draws.mean(0) < estimate).all()  # the bound is below


def test_trains_on_images_of_whole_numbers() -> None:
    """Two patterns, of 1 bit together: pixels by themselves would have 1 bit each."""
    draws = torch.Generator().manual_seed(0)
    patterns = torch.tensor([[[3, 0], [0, 3]], [[0, 3], [3, 0]]])[:, None]
    x = patterns[torch.randint(2, (64,), generator=draws)].float()
    torch.manual_seed(0)
    flow = FlowPP((1, 2, 2), transforms=(1, 1, 0), hidden=8, blocks=1, components=4, levels=4, seed=0)
    flow.log_prob(x)  # sets the actnorms
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    bits = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = -flow.log_prob(x).mean()
        loss.backward()
        optimizer.step()
        bits.append(bits_per_dim(-loss.detach(), 4, 1).item())
    assert bits[0] > 1.5 and 0.25 < sum(bits[-10:]) / 10 < 0.7
    draw = flow.eval().sample(200)
    hits = (draw[:, None] == patterns).flatten(2).all(-1).any(-1)
    assert hits.float().mean() > 0.6  # of 256 images, 2 are right


def test_errors() -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"features": 0}, "features must be"),
        ({"features": 3, "components": 0}, "components must be an integer from 1 to 128, got 0"),
        ({"features": 3, "levels": 1}, "levels must be 0 or at least 2, got 1"),
        ({"features": 3, "attention": 2}, "attention must be 0 on features, got 2"),
        ({"features": 3, "dequantization": "none"}, 'dequantization must be "variational" or "uniform", got \'none\''),
        ({"features": (1, 3, 4)}, r"features must have even H and W, got \[1, 3, 4\]"),
        ({"features": (1, 4, 4), "transforms": 3}, "transforms must be three numbers on images, got 3"),
        ({"features": (1, 4, 4), "attention": 3, "hidden": 4}, "attention must divide hidden = 4, got 3"),
    )
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            FlowPP(**arguments)
