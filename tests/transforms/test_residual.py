"""Residual layers: the bounds of their weights, their estimates, and what a flow of them learns."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import Tensor

from flowkernels.flows import ResidualFlow
from flowkernels.transforms import Residual
from flowkernels.transforms.residual import SpectralLinear, _drawn


def norms(layer: Residual) -> list[float]:
    parts: list[SpectralLinear] = [*layer.layers]  # type: ignore[assignment]
    return [torch.linalg.matrix_norm(part.bounded()[0], 2).item() for part in parts]


@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
def test_in_evaluation_norms_are_bounded_whatever_the_weights(scale) -> None:
    """Without a call in training, whose buffers would know the weights."""
    layer = Residual(5, (8, 7), lipschitz=0.8, seed=0).double().eval()
    with torch.no_grad():
        for part in layer.layers:
            part.weight.copy_(scale * torch.randn_like(part.weight))  # type: ignore[operator,union-attr]
    bound = 0.8 ** (1 / 3)
    assert all(norm <= bound * (1 + 1e-12) for norm in norms(layer))
    with torch.no_grad():
        assert all(norm <= bound * (1 + 1e-12) for norm in norms(layer))
    if scale == 0.01:  # small weights are left alone
        parts: list[SpectralLinear] = [*layer.layers]  # type: ignore[assignment]
        assert all(torch.equal(part.bounded()[0], part.weight) for part in parts)
    else:
        assert min(norms(layer)) > 0.999 * bound
    x = torch.randn(6, 5, dtype=torch.float64)
    torch.testing.assert_close(layer.inverse(layer(x)[0])[0], x)


def test_what_is_kept_follows_the_weights() -> None:
    """A norm is found once, and again when weights change: in place, by an optimiser, or by another tensor."""
    layer, x = Residual(4, (6,), seed=0).eval(), torch.randn(3, 4)
    with torch.no_grad():
        layer(x)
    first: SpectralLinear = layer.layers[0]  # type: ignore[assignment]
    for change in (
        lambda: first.weight.mul_(30),
        lambda: setattr(first, "weight", torch.nn.Parameter(100 * torch.randn(6, 4))),
        lambda: layer.load_state_dict(Residual(4, (6,), seed=1).state_dict()),
        lambda: layer.double(),
    ):
        with torch.no_grad():
            change()
            found = layer(x.to(first.weight.dtype))
        torch.testing.assert_close(found, copy.deepcopy(layer)(x.to(first.weight.dtype)))
    with torch.inference_mode():
        found = layer(x.double())
    again = layer(x.double().requires_grad_())
    torch.testing.assert_close(found, again)
    again[1].sum().backward()


def test_power_iterations_come_to_the_norm_and_are_saved() -> None:
    layer = Residual(6, (9,), iterations=5, seed=0)
    before = {name: b.clone() for name, b in layer.named_buffers()}
    with torch.no_grad():
        for part in layer.layers:
            part.weight.mul_(20)  # type: ignore[operator,union-attr]
    x = torch.randn(5, 6)
    for _ in range(100):
        layer(x)
    assert all(abs(norm - 0.9**0.5) < 1e-3 for norm in norms(layer))
    assert any(not torch.equal(b, before[name]) for name, b in layer.named_buffers())
    torch.testing.assert_close(copy.deepcopy(layer).eval()(x), layer(x), rtol=1e-3, atol=1e-3)
    other = Residual(6, (9,), iterations=5, seed=1)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(other(x), layer(x))


@pytest.mark.parametrize("training", [True, False])
def test_gradients_go_through_the_norms(training) -> None:
    """Of weights that are bounded: along themselves they have no slope, as their length does not matter."""
    layer, x = Residual(4, (6,), seed=0).double().train(training), torch.randn(5, 4).double()
    first: SpectralLinear = layer.layers[0]  # type: ignore[assignment]
    with torch.no_grad():
        first.weight.mul_(20)
        first._iterate(first.weight, 500)
    y, ladj = layer(x)
    (y.square().sum() + ladj.sum()).backward()
    assert first.weight.grad is not None and first.weight.grad.abs().max() > 1e-4
    assert (first.weight.grad * first.weight).sum().abs() < 1e-9


def test_weights_that_are_no_numbers() -> None:
    layer = Residual(4, (6,), seed=0).eval()
    with torch.no_grad():
        layer.layers[0].weight[0, 0] = float("nan")  # type: ignore[index,operator,union-attr]
        assert layer(torch.randn(3, 4))[1].isnan().all()


@pytest.mark.parametrize("at_most", [False, True])
def test_weights_of_a_roulette_are_one_over_the_probability_of_a_term(at_most) -> None:
    """The mean of a weight, 0 where a term was not drawn, is 1: within five standard errors, of fixed draws."""
    torch.manual_seed(0)
    n, first = 4000, 8
    table = torch.zeros(n, first)
    for row in table:
        weights = _drawn(2, at_most)[:first]
        row[: len(weights)] = weights
    mean, error = table.mean(0), table.std(0) / math.sqrt(n)
    assert ((mean - 1).abs() <= 5 * error + 1e-12).all()
    assert (table[:, :3] == 1).all() and set(table[:, 3].tolist()) == {0.0, 2.0} and error.max() < 0.2


@pytest.mark.parametrize("log_det", ["series", "roulette"])
def test_estimates_are_near_the_exact_one_in_the_mean(log_det) -> None:
    torch.manual_seed(0)
    exact = Residual(4, (8,), lipschitz=0.6, seed=0).eval()
    layer = Residual(
        4, (8,), lipschitz=0.6, log_det=log_det, terms=12 if log_det == "series" else None, samples=50, seed=0
    )
    x = torch.randn(3, 4)
    with torch.no_grad():
        y, right = exact(x)
        found = torch.stack([layer.eval()(x)[1] for _ in range(100)])
        torch.testing.assert_close(layer(x)[0], y)
        error = found.std(0) / 10
        assert ((found.mean(0) - right).abs() < 5 * error + 4 * 0.6**13 / 13 / 0.4).all()
        assert (error > 0).all() and (error < 0.01).all()
        back, negative = layer.inverse(y)
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(negative, -right, rtol=0, atol=0.3)


def test_a_roulette_compiles_without_its_draw() -> None:
    """Every call of one graph draws anew."""
    layer = Residual(3, (5,), log_det="roulette", seed=0).eval()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 3)
    torch.manual_seed(0)
    seen = [compiled(x)[1] for _ in range(3)]
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def two_islands(n: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    side = 2 * torch.randint(0, 2, (n, 1), generator=g) - 1
    return 2 * side * torch.tensor([[1.0, 0.5]]) + 0.5 * torch.randn(n, 2, generator=g)


@pytest.mark.parametrize("log_det", ["exact", "roulette"])
def test_a_flow_learns_and_its_density_is_one(log_det) -> None:
    torch.manual_seed(0)
    x = two_islands(400)
    flow = ResidualFlow(2, transforms=3, hidden=(24,), log_det=log_det, samples=2, seed=0)
    optimiser = torch.optim.Adam(flow.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        loss = -flow.log_prob(x).mean()
        loss.backward()
        optimiser.step()
    flow.eval()
    for layer in flow.transform:  # type: ignore[union-attr]
        if isinstance(layer, Residual):
            layer.log_det = "exact"
    with torch.no_grad():
        normal = torch.distributions.Normal(x.mean(0), x.std(0)).log_prob(x).sum(1).mean()
        assert flow.log_prob(x).mean() > normal + 0.2
        axis = torch.linspace(-6, 6, 161)
        grid = torch.cartesian_prod(axis, axis)
        assert abs(flow.log_prob(grid).exp().sum().item() * (12 / 160) ** 2 - 1) < 0.01
        sample, log_prob = flow.sample_and_log_prob(50)
        torch.testing.assert_close(flow.log_prob(sample), log_prob, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": 0}, "features must be at least 1, got 0"),
        ({"hidden": (3, 0)}, "hidden must be widths from 1 on"),
        ({"activation": "relu"}, 'activation must be "lipswish", "elu" or "tanh", got \'relu\''),
        ({"lipschitz": 1.0}, "lipschitz must be above 0 and below 1, got 1.0"),
        ({"log_det": "trace"}, 'log_det must be "exact", "series" or "roulette", got \'trace\''),
        ({"log_det": "series", "terms": 0}, "terms must be at least 1, got 0"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"preactivated": 1}, "preactivated must be True or False, got 1"),
        ({"iterations": None}, "iterations must be an integer, at least 1, got None"),
    ],
)
def test_errors(change, message) -> None:
    with pytest.raises(ValueError, match=f"^transforms.Residual: {message}"):
        Residual(**{"features": 3, **change})
