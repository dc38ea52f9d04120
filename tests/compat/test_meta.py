"""Accelerated layers on the meta device, which has shapes and no values, and back from there."""

from __future__ import annotations

import pytest
import torch

from flowkernels import compat
from tests.compat.parity import fuse_small_ones

pytest.importorskip("FrEIA", reason="FrEIA is not installed: see requirements/dev.txt")
pytest.importorskip("pyro", reason="Pyro is not installed: see requirements/dev.txt")
from tests.compat.every_class import EVERY, assert_same, data, make, values_and_gradients

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
META = torch.device("meta")
# Whose code, the library's, reads values of a mask, a permutation or a flag to know what there is to compute.
# Or which keeps a permutation where no `to` reaches it.
READS_VALUES = (
    "ActNorm", ": between", "zuko, flows.coupling", "zuko, lazy.LazyComposed", "affine_autoregressive",
    "pyro, distributions.torch_transform", "transforms.block_autoregressive",
)  # fmt: skip
# Whose code, the library's, makes zeros on the default device, for x wherever it is.
MAKES_ZEROS = ("GraphINN",)


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    fuse_small_ones(monkeypatch)


@pytest.mark.thinned(2)
@pytest.mark.parametrize(("name", "direction"), EVERY)
def test_shapes_and_back_from_there(name, direction):
    plain, x = make(name), data(name)
    wanted = values_and_gradients(name, plain, x, direction)
    fast = make(name).to(META)
    compat.accelerate(fast)
    if not any(part in name for part in READS_VALUES):
        found = values_and_gradients(name, fast, x.to(META), direction)
        assert [None if t is None else t.dtype for t in found] == [None if t is None else t.dtype for t in wanted]
        assert all(t is None or (t.is_meta and t.shape[:1] == w.shape[:1]) for t, w in zip(found, wanted, strict=True))
    fast.to_empty(device="cpu")
    values = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
    with torch.no_grad():
        for n, t in (*fast.named_parameters(), *fast.named_buffers()):
            t.copy_(values[n])
    assert_same(values_and_gradients(name, fast, x, direction), wanted)


@pytest.mark.parametrize(("name", "direction"), [c for c in EVERY if not c[0].endswith(MAKES_ZEROS)])
def test_calls_where_meta_is_the_default_device(name, direction):
    """What is read of a layer on its first call is read where the layer is, and stays there."""
    plain, fast, x = make(name), make(name), data(name)
    wanted = values_and_gradients(name, plain, x, direction)
    with META:
        compat.accelerate(fast)
        found = values_and_gradients(name, fast, x, direction)
    assert_same(found, wanted)
    assert_same(values_and_gradients(name, fast, x, direction), wanted)
