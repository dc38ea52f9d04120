"""A mask that is edited to other entries than 0 and 1 multiplies weights: no op does, so the library's own way runs."""

from __future__ import annotations

import pytest
import torch

from flowkernels import compat
from tests.compat.parity import fuse_small_ones

pytest.importorskip("FrEIA", reason="FrEIA is not installed: see requirements/dev.txt")
pytest.importorskip("pyro", reason="Pyro is not installed: see requirements/dev.txt")
from tests.compat.every_class import EVERY, assert_same, data, make, values_and_gradients

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]


def masks(layer):
    """The masks of networks and of normflows' affine layers; a coupling of zuko's takes flags and nothing else."""
    modules = [m for m in layer.modules() if type(m).__name__ != "GeneralCouplingTransform"]
    return [(m, n) for m in modules for n in ("mask", "b") if n in m._buffers]


CASES = [(name, d) for name, d in EVERY if masks(make(name))]


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    fuse_small_ones(monkeypatch)


def soften(layer, which, how):
    module, name = masks(layer)[which]
    mask = module._buffers[name]
    soft = torch.where(mask.bool(), 0.7, 0.0).to(next(layer.parameters()).dtype)
    if how == "replaced" or not mask.is_floating_point():
        module._buffers[name] = soft
    else:
        mask.copy_(soft)


def test_every_library_with_masks_is_here():
    assert {name.partition(",")[0] for name, _ in CASES} == {"nflows", "glasflow", "normflows", "zuko", "pyro"}


@pytest.mark.thinned(2)
@pytest.mark.parametrize("which", [0, -1], ids=["first", "last"])  # a soft one among hard ones
@pytest.mark.parametrize("how", ["before", "written to", "replaced"])
@pytest.mark.parametrize(("name", "direction"), CASES)
def test_as_the_library(name, direction, how, which):
    plain, fast, x = make(name), make(name), data(name)
    hard = values_and_gradients(name, plain, x, direction)
    if how == "before":
        soften(fast, which, how)
        compat.accelerate(fast)
    else:
        assert compat.accelerate(fast).accelerated
        values_and_gradients(name, fast, x, direction)
        soften(fast, which, how)
    soften(plain, which, how)
    wanted = values_and_gradients(name, plain, x, direction)
    assert not torch.allclose(wanted[0], hard[0], atol=1e-4)
    assert_same(values_and_gradients(name, fast, x, direction), wanted)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("buffer", ["P", "sign_S"])
def test_factors_of_a_convolution(buffer, direction):
    name = "normflows, flows.mixing.Invertible1x1Conv"
    plain, fast, x = make(name), make(name), data(name)
    compat.accelerate(fast)
    values_and_gradients(name, fast, x, direction)
    for layer in (plain, fast):
        getattr(layer, buffer).mul_(0.7)
    found, wanted = (values_and_gradients(name, layer, x, direction) for layer in (fast, plain))
    assert_same(found, wanted)
