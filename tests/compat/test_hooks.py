"""Weights that something computes before each call, by a hook or a parametrization: the network is called, not read."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from flowkernels import compat
from tests.compat.parity import fuse_small_ones

pytest.importorskip("FrEIA", reason="FrEIA is not installed: see requirements/dev.txt")
pytest.importorskip("pyro", reason="Pyro is not installed: see requirements/dev.txt")
from tests.compat.every_class import EVERY, assert_same, data, make, values_and_gradients

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
# name → which layer of the network, and what is done to it
HOOKS = {
    "weight norm": (0, nn.utils.weight_norm),
    "spectral norm": (0, nn.utils.spectral_norm),
    "pruned": (-1, lambda layer: prune.l1_unstructured(layer, "weight", 0.4)),
    "pruned bias": (0, lambda layer: prune.l1_unstructured(layer, "bias", 0.4)),
    "parametrized": (-1, parametrizations.weight_norm),
    "a hook": (-1, lambda layer: layer.register_forward_hook(lambda module, given, y: 0.9 * y)),
}


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    fuse_small_ones(monkeypatch)


def linears(layer):
    return [m for m in layer.modules() if isinstance(m, nn.Linear)]


# Statistics of batch norm in training are others after every call.
CASES = [(name, way) for name, way in EVERY if linears(make(name)) and not name.endswith("in training")]


def hooked(layer, how):
    which, hook = HOOKS[how]
    torch.manual_seed(0)  # spectral norm draws its first vectors
    hook(linears(layer)[which])
    return layer.eval()  # in which spectral norm takes no step more


def test_every_library_with_networks_is_here():
    libraries = {name.partition(",")[0] for name, _ in CASES}
    assert libraries >= {"nflows", "glasflow", "normflows", "zuko", "freia", "pyro"}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("how", HOOKS)
@pytest.mark.parametrize(("name", "direction"), CASES)
def test_after_accelerate(name, direction, how):
    fast, x = make(name), data(name)
    compat.accelerate(fast)
    values_and_gradients(name, fast, x, direction)
    found = values_and_gradients(name, hooked(fast, how), x, direction)
    assert_same(found, values_and_gradients(name, hooked(make(name), how), x, direction))
