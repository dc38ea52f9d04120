"""Planar and radial layers of Pyro and normflows: the same numbers, and the inverse that the libraries lack."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import compat
from flowkernels.compat.engine.patch import original_class

nf = pytest.importorskip("normflows", reason="normflows is not installed: see requirements/dev.txt")
pyro = pytest.importorskip("pyro.distributions.transforms", reason="Pyro is not installed: see requirements/dev.txt")
pytestmark = pytest.mark.filterwarnings("ignore")
D, C = 4, 3

NORMFLOWS: dict[str, Any] = {
    "planar": lambda: nf.flows.Planar((D,)),
    "planar, leaky_relu": lambda: nf.flows.Planar((D,), act="leaky_relu"),
    "radial": lambda: nf.flows.Radial((D,)),
}
PYRO: dict[str, Any] = {"planar": lambda: pyro.Planar(D), "radial": lambda: pyro.Radial(D)}
CONDITIONAL: dict[str, Any] = {
    "planar": lambda: pyro.conditional_planar(D, C, [8]), "radial": lambda: pyro.conditional_radial(D, C, [8]),
}  # fmt: skip


def spread(layer: Any) -> Any:
    """Parameters far from those at first."""
    torch.manual_seed(0)
    layer = layer.double()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn_like(p))
    return layer


def gradients(outputs: Any, leaves: list[Tensor]) -> list[Tensor]:
    return [*torch.autograd.grad([t.cos().sum() for t in outputs], leaves)]


def close(found: Any, expected: Any, single: bool = False) -> None:
    """``single``: normflows computes slopes of leaky_relu in float32, and what comes of them."""
    for a, b in zip(found, expected, strict=True):
        assert a.dtype is b.dtype
        torch.testing.assert_close(a, b, rtol=1e-5 if single else 1e-10, atol=1e-5 if single else 1e-10)


@pytest.mark.parametrize("name", NORMFLOWS)
@pytest.mark.parametrize("shape", [(D,), (2, 2)], ids=["vectors", "matrices"])
def test_normflows(name, shape) -> None:
    layer = spread(NORMFLOWS[name]())
    for key, p in layer.named_parameters():
        if p.shape == (1, D):
            setattr(layer, key, torch.nn.Parameter(p.detach().view(1, *shape)))
    z = torch.randn(20, *shape, dtype=torch.float64, requires_grad=True)
    leaves = [z, *layer.parameters()]
    expected = layer(z)
    wanted = gradients(expected, leaves)
    assert compat.accelerate(layer).accelerated == [""]
    found = layer(z)
    single = "leaky" in name
    close(found, expected, single)
    close(gradients(found, leaves), wanted, single)
    back, negative = layer.inverse(found[0])
    torch.testing.assert_close(back, z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(negative, -found[1].double(), rtol=1e-6, atol=1e-6)


def test_normflows_inverse_of_its_own() -> None:
    layer = spread(NORMFLOWS["planar, leaky_relu"]())
    z = torch.randn(20, D, dtype=torch.float64)
    expected = layer.inverse(z)
    compat.accelerate(layer)
    close(layer.inverse(z), expected, single=True)


def test_normflows_activation_of_somebodys_own_is_left_alone() -> None:
    layer = nf.flows.Planar((D,))
    layer.h = torch.sigmoid
    assert "no kernel for its activation, 'tanh'" in compat.accelerate(layer).left_alone[""]


def test_normflows_slopes_that_the_op_has_not_are_theirs() -> None:
    layer = spread(NORMFLOWS["planar, leaky_relu"]())
    z = torch.randn(20, D, dtype=torch.float64)
    compat.accelerate(layer)
    for slope in (0.5, 0.0, -0.1, 1.5):
        layer.h.negative_slope = slope
        close(layer(z), original_class(layer).forward(layer, z), single=True)


def test_normflows_hooks_of_an_activation_are_called() -> None:
    layer = spread(NORMFLOWS["planar, leaky_relu"]())
    z = torch.randn(20, D, dtype=torch.float64)
    compat.accelerate(layer)
    before = layer(z)
    handle = layer.h.register_forward_hook(lambda module, args, output: 2 * output)
    found = layer(z)
    close(found, original_class(layer).forward(layer, z))
    assert not torch.equal(found[0], before[0])
    handle.remove()
    close(layer(z), before)


@pytest.mark.parametrize("name", PYRO)
def test_pyro(name) -> None:
    layer = spread(PYRO[name]())
    x = torch.randn(20, D, dtype=torch.float64, requires_grad=True)
    leaves = [x, *layer.parameters()]

    def call() -> list[Tensor]:
        y = layer(x.view_as(x))
        return [y, layer.log_abs_det_jacobian(layer._cached_x_y[0], y)]

    expected = call()
    wanted = gradients(expected, leaves)
    with pytest.raises(KeyError):
        layer._inverse(torch.randn(20, D, dtype=torch.float64))
    assert compat.accelerate(layer).accelerated == [""]
    found = call()
    close(found, expected)
    close(gradients(found, leaves), wanted)
    y = found[0].detach().clone()
    back = layer.inv(y)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.log_abs_det_jacobian(back, y), found[1], rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match=rf"y must be \[\.\.\., {D}\], got \[20, 3\]"):
        layer._inverse(y[:, :3])
    compat.restore(layer)
    with pytest.raises(KeyError):
        layer._inverse(y)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_pyro_of_a_context(name) -> None:
    layer = spread(CONDITIONAL[name]())
    context = torch.randn(20, C, dtype=torch.float64)
    for lead in ((20,), (6, 20)):  # samples of each row's posterior
        x = torch.randn(*lead, D, dtype=torch.float64, requires_grad=True)
        leaves = [x, *layer.parameters()]

        def call(x: Tensor = x) -> list[Tensor]:
            transform = layer.condition(context)
            y = transform(x)
            return [y, transform.log_abs_det_jacobian(x, y)]

        expected = call()
        wanted = gradients(expected, leaves)
        assert compat.accelerate(layer).accelerated[:1] == [""]
        found = call()
        close(found, expected)
        close(gradients(found, leaves), wanted)
        transform, y = layer.condition(context), found[0].detach().clone()
        back = transform.inv(y)
        torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(transform.log_abs_det_jacobian(back, y), found[1], rtol=1e-9, atol=1e-9)
        compat.restore(layer)


def test_a_batch_of_parameters_and_one_row() -> None:
    layer = spread(CONDITIONAL["planar"]())
    context, x = torch.randn(5, C, dtype=torch.float64), torch.randn(D, dtype=torch.float64)
    expected = layer.condition(context)(x)
    compat.accelerate(layer)
    torch.testing.assert_close(layer.condition(context)(x), expected)


def test_pyros_sylvester_is_left_alone_as_its_log_determinant_is_another() -> None:
    """Why: were it ever mended, this fails."""
    layer = spread(pyro.Sylvester(D, 2))
    x = torch.randn(D, dtype=torch.float64)
    J = torch.autograd.functional.jacobian(lambda v: layer._call(v[None])[0], x)
    claimed = layer.log_abs_det_jacobian(x[None], layer(x[None]))
    assert (torch.linalg.slogdet(J)[1] - claimed).abs().max() > 0.1
    assert "flows.Sylvester" in compat.accelerate(layer).left_alone[""]
