"""Pyro's block autoregressive layers, accelerated: the same numbers, and the inverse that Pyro has not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flowkernels
from flowkernels import compat
from tests.compat.parity import B, accelerated_copy, assert_parity

pyro = pytest.importorskip("pyro.distributions.transforms", reason="Pyro is not installed: see requirements/dev.txt")
pytestmark = pytest.mark.usefixtures("one_thread")

ACTIVATIONS, RESIDUALS = ("tanh", "sigmoid", "ELU", "LeakyReLU"), (None, "normal", "gated")
EVERY = [
    pytest.mark.parametrize("activation", ACTIVATIONS),
    pytest.mark.parametrize("residual", RESIDUALS, ids=str),
]


def make(activation="tanh", residual="gated", hidden=(4, 3)):
    torch.manual_seed(0)
    layer = pyro.BlockAutoregressive(5, [*hidden], activation, residual)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return layer


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def run(layer, x):
    y = layer(x)
    found = y, layer.log_abs_det_jacobian(x, y)
    layer._cached_x_y = None, None
    return found


def every(test):
    for mark in EVERY:
        test = mark(test)
    return test


@every
def test_parity(activation, residual):
    assert_parity(run, make(activation, residual), draw(B, 5), accelerated=1)


@every
def test_float64(activation, residual):
    """With the 1e-8 that Pyro adds to norms and to its gate, of any leading dims."""
    plain = make(activation, residual).double()
    fast = accelerated_copy(plain)
    for lead in ((), (3, 2), (40,)):
        x = draw(*lead, 5).double()
        torch.testing.assert_close(run(fast, x), run(plain, x), rtol=1e-11, atol=1e-11)


@every
def test_inverse(activation, residual):
    plain = make(activation, residual).double()
    fast, x = accelerated_copy(plain), draw(30, 5).double()
    y, ladj = run(fast, x)
    with pytest.raises(KeyError):
        plain.inv(y.clone())
    z = y.detach().clone()
    back = fast.inv(z)
    torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(fast.log_abs_det_jacobian(back, z), ladj, rtol=1e-8, atol=1e-8)
    assert fast(back) is z  # the cache of the last pair
    again = run(plain, back.detach().clone())  # Pyro's own layer agrees where it can be asked
    torch.testing.assert_close(again, (z, ladj), rtol=1e-9, atol=1e-9)


def test_a_flow_samples_and_scores_what_it_is_given():
    """As an encoder Pyro can draw from it; as a density of given points it needs the inverse."""
    from pyro import distributions as dist

    base = dist.Normal(torch.zeros(5), torch.ones(5)).to_event(1)
    layers = nn.ModuleList([make(residual="normal"), make("ELU", "gated")])
    flowkernels.accelerate(layers)
    flow = dist.TransformedDistribution(base, [*layers])
    drawn = flow.sample((20,))
    wanted = flow.log_prob(drawn)  # from the caches
    flow.clear_cache()
    torch.testing.assert_close(flow.log_prob(drawn.clone()), wanted, rtol=1e-4, atol=1e-4)
    loss = -flow.log_prob(drawn.clone()).mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layers.parameters())


def test_gradients_of_the_inverse():
    fast = accelerated_copy(make()).double()
    z = run(fast, draw(3, 5).double())[0].detach().requires_grad_()

    def inverse(z):
        x = fast._inverse(z)
        return x, fast._cached_logDetJ

    assert torch.autograd.gradcheck(inverse, z)


def test_wrong_inputs():
    plain = make()
    fast = accelerated_copy(plain)
    for x in (draw(4, 3), draw(4, 6), draw(4, 5).double()):
        with pytest.raises(RuntimeError):
            plain(x)
        with pytest.raises(RuntimeError):
            fast(x)
    with pytest.raises(ValueError, match=r"compat.pyro: y must be \[\.\.\., 5\], got \[4, 3\]"):
        fast.inv(draw(4, 3))


def test_what_is_left_alone():
    layer = make()
    layer.layers[1] = type("Own", (type(layer.layers[1]),), {})(20, 15, 5)
    (why,) = compat.accelerate(layer).left_alone.values()
    assert why == "its layers are not Pyro's own"
    layer = make()
    layer.T = torch.distributions.transforms.ExpTransform()
    (why,) = compat.accelerate(layer).left_alone.values()
    assert why == "its activation is a ExpTransform"


@pytest.mark.parametrize("way", ["mask", "hook", "weight norm"])
def test_where_layers_must_be_called_pyro_calls_them(way):
    plain, x = make(), draw(7, 5)
    fast = accelerated_copy(plain)
    for layer in (plain.layers[0], fast.layers[0]):
        if way == "mask":
            layer.mask_o[6, 0] = 0.5
        elif way == "hook":
            layer.register_forward_hook(lambda m, given, found: (2 * found[0], found[1]))
        else:
            torch.nn.utils.parametrizations.weight_norm(layer, "_weight")
    assert all(torch.equal(a, b) for a, b in zip(run(fast, x), run(plain, x), strict=True))
    with pytest.raises(KeyError):
        fast.inv(draw(7, 5))
