"""Pyro's neural autoregressive layers, accelerated: the inverse that Pyro has not."""

from __future__ import annotations

import pytest
import torch

from flowkernels import compat
from tests.compat.parity import accelerated_copy

pyro = pytest.importorskip("pyro.distributions.transforms", reason="Pyro is not installed: see requirements/dev.txt")
pytestmark = pytest.mark.usefixtures("one_thread")


def make(activation="sigmoid", context=0):
    torch.manual_seed(0)
    if context:
        return pyro.conditional_neural_autoregressive(5, context, [12], activation, width=6)
    return pyro.neural_autoregressive(5, [12], activation, width=6)


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("context", [0, 3], ids=["", "context"])
@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
@pytest.mark.parametrize("lead", [(), (30,), (3, 2)], ids=str)
def test_inverse(activation, context, lead):
    plain = make(activation, context).double()
    fast, x, c = accelerated_copy(plain), draw(*lead, 5).double(), draw(*lead, 3).double()
    if context:
        plain, fast = plain.condition(c), fast.condition(c)
    y = plain(x)
    ladj = plain.log_abs_det_jacobian(x, y)
    assert torch.equal(fast(x), y) and torch.equal(fast.log_abs_det_jacobian(x, y), ladj)
    z = y.detach().clone()
    with pytest.raises(NotImplementedError):
        plain.inv(z)
    back = fast.inv(z)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fast.log_abs_det_jacobian(back, z), ladj, rtol=1e-9, atol=1e-9)
    assert fast(back) is z  # Pyro's cache of the last pair


def test_gradients():
    fast = accelerated_copy(make()).double()
    y = fast(draw(3, 5).double()).detach()

    def inverse(y, *_):
        x = fast._inverse(y)
        return x, fast.log_abs_det_jacobian(x, y)

    assert torch.autograd.gradcheck(inverse, [y.requires_grad_(), *list(fast.parameters())[:2]])


def test_far_out():
    """Where Pyro's sigmoid has stopped the mixture goes on, for the feature that nothing stands before."""
    fast = accelerated_copy(make()).double()
    first = int(fast.arn.permutation[0])
    y = torch.zeros(4, 5).double()
    y[:, first] = torch.tensor([20.0, -20.0, 60.0, -60.0])
    x = fast.inv(y)[:, first]
    assert x.isfinite().all()
    torch.testing.assert_close(fast(fast.inv(y.clone()).clone())[:2, first], y[:2, first], rtol=1e-6, atol=1e-6)
    assert x[2] > 2 * x[0] > 0 > 2 * x[1] > x[3]


def test_wrong_widths():
    fast = accelerated_copy(make())
    for y in (draw(4, 3), draw(4, 6), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"compat.pyro: y must be \[\.\.\., 5\], got"):
            fast._inverse(y)


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("activation", ["ELU", "LeakyReLU"])
def test_left_alone_and_named(activation, context):
    (why,) = compat.accelerate(make(activation, context)).left_alone.values()
    assert why.startswith(f"no kernel inverts sums of its {activation}")


def test_too_wide_for_the_kernel():
    layer = pyro.neural_autoregressive(2, [8], width=129)
    (why,) = compat.accelerate(layer).left_alone.values()
    assert "components must be an integer from 1 to 128" in why
