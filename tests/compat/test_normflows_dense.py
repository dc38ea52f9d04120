"""normflows' affine couplings as ops with their networks: when they are, and what they compute then."""

from __future__ import annotations

import copy
import math

import normflows as nf
import pytest
import torch
from torch import nn

from flowkernels.compat.engine import thresholds
from flowkernels.compat.reading import halves
from tests.compat.normflows_models import mlp
from tests.compat.parity import accelerated_copy, fuse_small_ones, watch

F = nf.flows
MASK = torch.tensor([1.0, 0, 0, 1, 1])


def block(net=None):
    return F.AffineCouplingBlock(mlp(3, 4) if net is None else net)


def masked(net=None):
    return F.MaskedAffineFlow(MASK, mlp(5, 5), mlp(5, 5) if net is None else net)


@pytest.fixture
def ops(monkeypatch):
    """The ops that were called, by name."""
    fuse_small_ones(monkeypatch)
    names = []
    watch(monkeypatch, names, halves, "try_flow_layer")
    return names


def both_ways(layer, x):
    y, ladj = layer(x)
    back, of_back = layer.inverse(x)
    return y, ladj, back, of_back


def assert_as_normflows(layer, x):
    torch.manual_seed(0)  # of dropout
    found = both_ways(accelerated_copy(layer), x)
    torch.manual_seed(0)
    torch.testing.assert_close(found, both_ways(layer, x))


def draw(n=9, features=5):
    return torch.randn(n, features, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("make", "n"),
    [
        (block, 1),
        (lambda: block(mlp(3, 4, leaky=0.01)), 1),
        (masked, 2),
        (lambda: F.MaskedAffineFlow(MASK, None, mlp(5, 5)), 1),
        (lambda: F.MaskedAffineFlow(MASK, mlp(5, 5)), 1),
        (lambda: F.AffineCouplingBlock(mlp(2, 6), split_mode="channel_inv"), 1),
    ],
    ids=["block", "leaky", "masked", "no shift", "no scale", "inverted"],
)
def test_one_op_a_network(make, n, ops):
    torch.manual_seed(2)
    layer = make().double()
    assert_as_normflows(layer, draw())
    assert len(ops) == 2 * n


class Own(nn.Sequential):
    """A network of another class."""


@pytest.mark.parametrize(
    "make",
    [
        lambda i, o: mlp(i, o, output_fn="sigmoid"),
        lambda i, o: mlp(i, o, leaky=0.3),
        lambda i, o: mlp(i, o, dropout=0.5),
        lambda i, o: Own(nn.Linear(i, 8), nn.ReLU(), nn.Linear(8, o)),
        lambda i, o: nn.Sequential(nn.Linear(i, 8), nn.ReLU(), nn.Linear(8, o), nn.Tanh()),
        lambda i, o: nn.Sequential(nn.Linear(i, 600), nn.ReLU(), nn.Linear(600, o)),
    ],
    ids=["output function", "slope", "dropout", "subclass", "activation at the end", "wide"],
)
def test_other_networks_are_called(make, ops):
    torch.manual_seed(2)
    assert_as_normflows(block(make(3, 4)).double(), draw())
    assert_as_normflows(masked(make(5, 5)).double(), draw())
    assert not ops


def test_plain_sequences_are_taken(ops):
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
    assert_as_normflows(block(net).double(), draw())
    assert len(ops) == 2


@pytest.mark.parametrize("edit", ["hook", "hook of the sequence", "forward", "mask", "autocast", "another layer"])
def test_edited_couplings_compute_what_normflows_would(edit, ops):
    torch.manual_seed(2)
    plain = masked().double()
    fast = accelerated_copy(plain)
    both_ways(fast, draw())  # what is read once has been read
    for layer in (plain, fast):
        if edit == "hook":
            layer.s.register_forward_hook(lambda m, args, out: out + 1)
        elif edit == "hook of the sequence":
            layer.t.net.register_forward_pre_hook(lambda m, args: (args[0] + 1,))
        elif edit == "forward":
            layer.s.forward = lambda x: 0.1 * x
        elif edit == "mask":
            with torch.no_grad():
                layer.b.copy_(1 - layer.b)
        elif edit == "another layer":
            layer.s.net[2] = nn.Linear(16, 5, bias=False, dtype=torch.float64)
            nn.init.constant_(layer.s.net[2].weight, 0.02)
    with torch.autocast("cpu", enabled=edit == "autocast"):
        torch.testing.assert_close(both_ways(fast, draw()), both_ways(plain, draw()))


@pytest.mark.parametrize("make", [block, masked])
def test_small_batches_stay_with_normflows(make, monkeypatch):
    names = []
    watch(monkeypatch, names, halves, "try_flow_layer")
    steps = 1 if make is block else 2
    fast = accelerated_copy(make())
    x = draw(8).float()
    for rows, elements, fused in ((9, 0, 0), (8, 8 * (16 + 4 * 2) + 1, 0), (8, 8 * (16 + 4 * 2), steps)):
        monkeypatch.setattr(thresholds, "COUPLED_ROWS", rows)
        monkeypatch.setattr(thresholds, "COUPLED_ELEMENTS", math.ceil(elements / steps))
        names.clear()
        fast(x)
        assert len(names) == fused


def test_a_bad_row_stays_alone(ops):
    torch.manual_seed(2)
    for make in (block, masked):
        fast, x = accelerated_copy(make()), draw().float()
        good = copy.deepcopy(fast)(x)[0]
        x[3, 0] = float("nan")
        bad = fast(x)[0]
        keep = torch.arange(len(x)) != 3
        torch.testing.assert_close(bad[keep], good[keep])
        assert bad[3].isnan().any()
