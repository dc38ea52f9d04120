"""Gaussianization flows: densities, both directions, what they are made of, errors."""

from __future__ import annotations

import pytest
import torch

from flowkernels import backends
from flowkernels.flows import Gaussianization
from flowkernels.transforms import Coupling, LULinear

FLOWS = {
    "rotations": lambda: Gaussianization(3, transforms=3, components=4, seed=0),
    "context": lambda: Gaussianization(3, 2, transforms=2, components=4, hidden=(8,), seed=0),
    "logistic, no rotations": lambda: Gaussianization(3, transforms=2, components=2, kernel="logistic", rotate=False),
    "one feature": lambda: Gaussianization(1, transforms=2, components=3),
}


@pytest.mark.parametrize("name", FLOWS)
def test_both_directions(name) -> None:
    torch.manual_seed(0)
    flow = FLOWS[name]().double()
    for p in flow.parameters():
        p.data += 0.3 * torch.randn_like(p)
    D, context = flow.base.features, torch.randn(20, 2).double() if name == "context" else None
    x = torch.randn(20, D).double()
    z, ladj = flow.transform(x, context)
    back, negated = flow.transform.inverse(z, context)
    torch.testing.assert_close((back, negated), (x, -ladj), rtol=1e-8, atol=1e-8)
    with backends.use_backend("reference"):
        torch.testing.assert_close(flow.transform(x, context), (z, ladj), rtol=1e-10, atol=1e-10)
    row = None if context is None else context[:1]
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.transform(v[None], row)[0][0], x[0])
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], ladj[0], rtol=1e-9, atol=1e-9)
    sample, log_prob = flow.sample_and_log_prob(7, row)
    torch.testing.assert_close(flow.log_prob(sample, row if row is None else row[0]), log_prob, rtol=1e-7, atol=1e-7)


def test_integrates_to_one() -> None:
    flow = Gaussianization(1, transforms=2, components=3).double()
    for p in flow.parameters():
        p.data += 0.4 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).double()
    x = torch.linspace(-40, 40, 20001).double()
    density = flow.log_prob(x[:, None]).exp()
    torch.testing.assert_close(torch.trapezoid(density, x), torch.ones(()).double(), rtol=1e-6, atol=1e-6)


def test_learns_two_modes() -> None:
    """Its components come apart, which equal ones would not."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(512, 1, generator=g) * 0.3 + 2.0 * (torch.rand(512, 1, generator=g) > 0.5) - 1.0
    flow = Gaussianization(1, transforms=1, components=4)
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss = -flow.log_prob(x).mean()
        loss.backward()
        optimizer.step()
    entropy = -torch.logsumexp(-((x - torch.tensor([-1.0, 1.0])) ** 2) / 0.18, -1) + 0.5 * torch.log(
        torch.tensor(8 * torch.pi * 0.09)
    )
    assert loss < entropy.mean() + 0.05


def test_what_it_is_made_of() -> None:
    kinds = [type(layer) for layer in Gaussianization(3, transforms=3).transform]
    assert kinds == [Coupling, LULinear, Coupling, LULinear, Coupling]


def test_errors() -> None:
    for arguments, message in (
        ({"features": 0}, "features must be"),
        ({"features": 2, "components": 0}, "components must be an integer from 1 to 128, got 0"),
        ({"features": 2, "kernel": "t"}, "kernel must be one of logistic, normal, got 't'"),
        ({"features": 2, "rotate": 1}, "rotate must be True or False, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Gaussianization(**arguments)
