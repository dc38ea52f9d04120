"""What a call returned may be written to before backward wherever the library's own may: draws are often rescaled."""

from __future__ import annotations

import pytest
import torch

from flowkernels import compat
from tests.compat import ability_cases
from tests.compat.parity import fuse_small_ones

pytest.importorskip("FrEIA", reason="FrEIA is not installed: see requirements/dev.txt")
pytest.importorskip("pyro", reason="Pyro is not installed: see requirements/dev.txt")
from tests.compat.every_class import CASES, EVERY, assert_same, data, make

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    fuse_small_ones(monkeypatch)


def rescaled(name, layer, direction):
    """The gradients of a call whose first result is rescaled in place; of another shape its second is not touched."""
    x = data(name).requires_grad_()
    y, *rest = ability_cases.Run(layer, CASES[name].call, direction == "inverse")(x)
    y.mul_(3).add_(1)
    total = y.square().sum() + sum(t.sum() for t in rest)
    return list(torch.autograd.grad(total, [x, *(p for p in layer.parameters() if p.requires_grad)], allow_unused=True))


@pytest.mark.parametrize(("name", "direction"), EVERY)
def test_writing_to_what_was_returned(name, direction):
    fast = make(name)
    assert compat.accelerate(fast).accelerated
    try:
        wanted = rescaled(name, make(name), direction)
    except RuntimeError as error:
        assert "inplace operation" in str(error) or "view" in str(error), error
        return
    assert_same(rescaled(name, fast, direction), wanted)
