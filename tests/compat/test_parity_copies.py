"""Modules that carry a copy of VITS' spline function run on the fused one; copies of other names: `test_copies`."""

from __future__ import annotations

import inspect
import math
import sys
import types

import pytest
import torch
from nflows.transforms.splines import rational_quadratic
from torch import nn

from flowkernels import compat
from flowkernels.compat import copies
from flowkernels.compat.reading import spline_of_parts
from tests.compat.parity import B, accelerated_copy, assert_parity, assert_same_training

pytestmark = pytest.mark.usefixtures("one_thread")


def piecewise_rational_quadratic_transform(
    inputs,
    unnormalized_widths,
    unnormalized_heights,
    unnormalized_derivatives,
    inverse=False,
    tails=None,
    tail_bound=1.0,
    min_bin_width=1e-3,
    min_bin_height=1e-3,
    min_derivative=1e-3,
):
    """The function of a speech model: nflows', which it is a copy of."""
    arguments = (inputs, unnormalized_widths, unnormalized_heights, unnormalized_derivatives, inverse)
    least = {"min_bin_width": min_bin_width, "min_bin_height": min_bin_height, "min_derivative": min_derivative}
    if tails is None:
        return rational_quadratic.rational_quadratic_spline(*arguments, **least)
    return rational_quadratic.unconstrained_rational_quadratic_spline(*arguments, tails, tail_bound, **least)


class ConvFlow(nn.Module):
    """A coupling layer of a duration predictor: half of the channels choose the spline of the others, per frame."""

    def __init__(self, channels=4, hidden=8, bins=6, tails="linear"):
        super().__init__()
        self.half, self.hidden, self.bins, self.tails = channels // 2, hidden, bins, tails
        self.net = nn.Conv1d(self.half, self.half * (3 * bins + (-1 if tails else 1)), 3, padding=1)

    def forward(self, x, mask, reverse=False):
        kept, moved = x.split([self.half, self.half], 1)
        h = self.net(kept).unflatten(1, (self.half, -1)).movedim(2, -1)
        widths, heights = h[..., : self.bins] / math.sqrt(self.hidden), h[..., self.bins : 2 * self.bins]
        moved, logabsdet = piecewise_rational_quadratic_transform(
            moved, widths, heights, h[..., 2 * self.bins :], inverse=reverse, tails=self.tails, tail_bound=5.0
        )
        return torch.cat([kept, moved], 1) * mask, (logabsdet * mask).sum((1, 2))


def frames(shape=(B, 4, 5)):
    g = torch.Generator().manual_seed(0)
    return 2 * torch.randn(shape, generator=g), (torch.rand(shape[0], 1, shape[2], generator=g) < 0.8).float()


@pytest.mark.parametrize("tails", ["linear", None])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "inverse"])
def test_parity(reverse, tails):
    torch.manual_seed(0)
    x, mask = frames()
    x = x if tails else x.sigmoid()
    assert_parity(lambda m, x, mask: m(x, mask, reverse), ConvFlow(tails=tails), x, mask, accelerated=1)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("tails", ["linear", None])
def test_the_bits_are_those_of_the_fused_function(tails, reverse, monkeypatch):
    torch.manual_seed(0)
    x, mask = frames()
    layer = ConvFlow(tails=tails)
    found = accelerated_copy(layer)(x, mask, reverse)
    name = piecewise_rational_quadratic_transform.__name__
    monkeypatch.setitem(globals(), name, copies.piecewise_rational_quadratic_transform)
    for a, b in zip(found, layer(x, mask, reverse), strict=True):
        assert torch.equal(a, b)


def test_training():
    torch.manual_seed(0)

    def log_prob(layer, x):
        y, ladj = layer(x.unflatten(1, (3, 2)).mT.reshape(-1, 2, 3).double(), torch.ones(1, dtype=torch.float64))
        return ladj - 0.5 * y.square().sum((1, 2))

    assert_same_training(log_prob, ConvFlow(channels=2), steps=30)


class Quiet(ConvFlow):
    pass


class Own(ConvFlow):
    def forward(self, x, mask, reverse=False):
        return super().forward(x, mask, reverse)


def test_state_restore_and_subclasses():
    model = nn.Sequential(ConvFlow(), Quiet(), Own())
    report = compat.accelerate(model)
    assert report.accelerated == ["0", "1"]
    assert report.left_alone == {"2": "Own defines its own forward"}
    x, mask = (t.double() for t in frames())
    for layer in model.double():
        torch.testing.assert_close(layer(x, mask), ConvFlow.forward(layer, x, mask))
    compat.restore(model)
    assert [type(m) for m in model] == [ConvFlow, Quiet, Own]


def test_the_fused_function_is_reached(monkeypatch):
    calls = []
    monkeypatch.setattr(spline_of_parts, "rqs", lambda *a, **k: calls.append(1) or (a[0], a[0].squeeze(-1)))
    layer = accelerated_copy(ConvFlow())
    layer(*frames())
    assert calls == [1]


def test_globals_that_change_are_seen(monkeypatch):
    layer = ConvFlow()
    fast, before = accelerated_copy(layer), layer(*frames())[0]
    monkeypatch.setattr(sys.modules[__name__], "math", types.SimpleNamespace(sqrt=lambda n: 0.1))
    assert not torch.allclose(layer(*frames())[0], before)
    torch.testing.assert_close(fast(*frames())[0], layer(*frames())[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", ["parameters", "values"])
def test_another_function_of_the_name_is_left_alone(change, monkeypatch):
    plain = piecewise_rational_quadratic_transform
    parameters = [*inspect.signature(plain).parameters.values()]

    def other(*arguments, **settings):
        outputs, logabsdet = plain(*arguments, **settings)
        return 2 * outputs, logabsdet

    more = inspect.Parameter("order", inspect.Parameter.KEYWORD_ONLY)
    signature = inspect.Signature(parameters if change == "values" else [*parameters, more])
    other.__signature__ = signature  # type: ignore[attr-defined]
    other.__name__ = plain.__name__
    monkeypatch.setitem(globals(), plain.__name__, other)

    class Layer(nn.Module):
        def forward(self, x):
            return piecewise_rational_quadratic_transform(x, x, x, x)

    (reason,) = compat.accelerate(Layer()).left_alone.values()
    assert ("has the parameter order, which" if change == "parameters" else "has other values than nflows'") in reason


def test_what_differs_by_design():
    """Outside the box without tails, the copied function raises."""
    layer = ConvFlow(tails=None)
    x, mask = frames()
    with pytest.raises(Exception):  # noqa: B017  (nflows raises its own, copies a ValueError)
        layer(x, mask)
    y, _ = accelerated_copy(layer)(x, torch.ones_like(mask))
    outside = (x[:, 2:] < 0) | (x[:, 2:] > 1)
    assert torch.equal(y[:, 2:][outside], x[:, 2:][outside])
    with pytest.raises(RuntimeError, match="cubic tails are not implemented"):
        copies.piecewise_rational_quadratic_transform(x, x, x, x, tails="cubic")
    with pytest.raises(RuntimeError, match="None tails are not implemented"):
        copies.unconstrained_rational_quadratic_spline(x, x, x, x, tails=None)
