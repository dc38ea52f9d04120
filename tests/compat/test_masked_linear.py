"""MaskedLinear of nflows and its copies where no accelerated MADE runs it."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch

from flowkernels import compat
from flowkernels.compat.engine import patch, thresholds
from flowkernels.compat.nflows import masked_linear as nflows_masked_linear
from tests.compat.nflows_models import assert_numbers
from tests.compat.parity import fuse_small_ones, watch

pytestmark = pytest.mark.usefixtures("one_thread")
PACKAGES = {"nflows": "nflows.transforms", "glasflow": "glasflow.nflows.transforms", "normflows": "normflows.nets"}
# in_degrees, out_features, features, random_mask, is_output, bias
LAYERS = {
    "first": (torch.arange(1, 6), 16, 5, False, False, True),
    "random, no bias": (torch.arange(1, 6), 16, 5, True, False, False),
    "of hidden units in disorder": (torch.tensor([3, 1, 4, 2, 2, 1]), 12, 5, False, False, True),
    "last": (torch.arange(12) % 4 + 1, 15, 5, False, True, True),  # three parameters for each of 5 features
    "of one feature": (torch.tensor([1]), 3, 1, False, True, True),  # which sees nothing
}


def made_of(library):
    return importlib.import_module(f"{PACKAGES[library]}.made")


def layer_of(library, name):
    torch.manual_seed(3)
    *arguments, bias = LAYERS[name]
    return made_of(library).MaskedLinear(*arguments, bias=bias)


def outputs_and_gradients(layer, x, dtype):
    layer, x = copy.deepcopy(layer).to(dtype), x.to(dtype, copy=True).requires_grad_()
    y = layer(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)).sum().backward()
    return {"y": y.detach(), "x": x.grad, **{n: p.grad for n, p in layer.named_parameters()}}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("library", PACKAGES)
def test_numbers(library, name, monkeypatch):
    fuse_small_ones(monkeypatch)
    called = []
    watch(monkeypatch, called, nflows_masked_linear, "masked_linear")
    layer = layer_of(library, name)

    def ours(layer, x, dtype):
        fast = copy.deepcopy(layer)
        assert compat.accelerate(fast).accelerated == [""]
        return outputs_and_gradients(fast, x, dtype)

    assert_numbers(outputs_and_gradients, ours, layer, torch.randn(4, 9, layer.in_features))
    assert called


def test_a_small_call_stays_with_the_library(monkeypatch):
    called = []
    watch(monkeypatch, called, nflows_masked_linear, "masked_linear")
    assert "is as fast" in compat.accelerate(layer_of("nflows", "first")).left_alone[""]
    width = 1 << (thresholds.MASKED_WEIGHT.bit_length() // 2)
    layer = made_of("nflows").MaskedLinear(torch.arange(width) % 4 + 1, width, 5, False, False)
    assert compat.accelerate(layer).accelerated == [""]
    rows = -(-thresholds.MASKED_LINEAR // width**2)
    with torch.no_grad():
        layer(torch.ones(rows - 1, width))
    layer(torch.ones(4 * rows - 1, width))
    assert not called
    with torch.no_grad():
        layer(torch.ones(rows, width))
    layer(torch.ones(4 * rows, width))
    assert len(called) == 2


def test_another_mask(monkeypatch):
    """Written to, replaced, and such as no order has."""
    fuse_small_ones(monkeypatch)
    layer = layer_of("nflows", "first").double()
    fast, x = copy.deepcopy(layer), torch.randn(7, 5, dtype=torch.float64)
    compat.accelerate(fast)
    masks = (layer.mask.flip(1), torch.eye(5)[torch.arange(16) % 5].double())
    for mask in masks:
        for change in (lambda m, mask=mask: m.mask.copy_(mask), lambda m, mask=mask: setattr(m, "mask", 0 + mask)):
            fast(x)
            change(layer)
            change(fast)
            torch.testing.assert_close(fast(x), layer(x))
    compat.restore(fast)
    assert compat.accelerate(fast).left_alone[""] == "its mask is not that of an order"


def test_what_the_op_does_not_do_is_the_librarys(monkeypatch):
    fuse_small_ones(monkeypatch)
    layer = layer_of("nflows", "first")
    fast, x = copy.deepcopy(layer), torch.randn(7, 5)
    compat.accelerate(fast)
    torch.testing.assert_close(torch.func.vmap(fast)(x), layer(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fast(x).dtype is layer(x).dtype is torch.bfloat16
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    torch.compiler.reset()
    for module in (layer, fast):
        torch.nn.utils.parametrizations.weight_norm(module)
    torch.testing.assert_close(fast(x), layer(x))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fast(torch.randn(7, 4))


@pytest.mark.parametrize("settings", [{}, {"use_batch_norm": True}], ids=["run by its MADE", "called"])
def test_of_a_network(settings, monkeypatch):
    """A MADE that one op runs appears alone; the layers of another appear themselves."""
    fuse_small_ones(monkeypatch)
    net = made_of("nflows").MADE(5, 16, use_residual_blocks=False, **settings)
    report = compat.accelerate(net)
    layers = {n for n, m in net.named_modules() if type(m).__name__ == "MaskedLinear"}
    assert set(report.accelerated) == (layers if settings else {""})
    assert all(patch.is_fast(net.get_submodule(n)) for n in layers)
    assert str(compat.accelerate(net)) == str(report)
    compat.restore(net)
    assert not any(map(patch.is_fast, net.modules()))


def test_the_layers_of_a_made_that_has_to_be_called(monkeypatch):
    """Active dropout makes the network be called, its layers with it."""
    fuse_small_ones(monkeypatch)
    called = []
    watch(monkeypatch, called, nflows_masked_linear, "masked_linear")
    net = made_of("nflows").MADE(5, 16, use_residual_blocks=False, dropout_probability=0.5)
    compat.accelerate(net)
    net(torch.randn(7, 5))
    assert len(called) == 4
    net.eval()
    net(torch.randn(7, 5))
    assert len(called) == 4
