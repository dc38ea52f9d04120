"""Where a library refuses what it is given, its accelerated layer raises too and returns no numbers."""

from __future__ import annotations

import pytest
import torch

from flowkernels import compat
from tests.compat.parity import fuse_small_ones

pytest.importorskip("FrEIA", reason="FrEIA is not installed: see requirements/dev.txt")
pytest.importorskip("pyro", reason="Pyro is not installed: see requirements/dev.txt")
from tests.compat.every_class import CASES, EVERY, data, make

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
OTHER = {torch.float32: torch.float64, torch.float64: torch.float32}
WRONG = {
    "another dtype": lambda x: x.to(OTHER[x.dtype]),
    "half": lambda x: x.half(),
    "one column more": lambda x: torch.cat((x, x[:, :1]), 1),
    "twice the columns": lambda x: torch.cat((x, x), 1),
    "one column less": lambda x: x[:, :-1],
    "one column": lambda x: x[:, :1],
    "no columns": lambda x: x[:, :0],
    "a dim more": lambda x: x[..., None],
    "a batch more": lambda x: x[None],
    "one row": lambda x: x[0],
    "transposed": lambda x: x.transpose(0, 1),
}
# By design, see `flowkernels.compat.nflows`: another dtype than that of the weights gives the wider of the two.
PROMOTED = ("LULinear", "OneByOneConvolution", "Invertible1x1Conv")


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    fuse_small_ones(monkeypatch)


def outcome(name, layer, x, direction):
    """What a call returns, or what it raises."""
    try:
        return [t for t in CASES[name].call(layer, x, direction == "inverse") if isinstance(t, torch.Tensor)]
    except Exception as error:
        return error


@pytest.mark.thinned(2)
@pytest.mark.parametrize(("name", "direction"), EVERY)
@pytest.mark.parametrize("graph", [False, True], ids=["", "graph"])
def test_inputs(name, direction, graph):
    plain, fast = make(name), make(name)
    compat.accelerate(fast)
    for what, wrong in WRONG.items():
        if what in ("another dtype", "half") and any(part in name for part in PROMOTED):
            continue
        x = wrong(data(name))
        with torch.set_grad_enabled(graph):
            theirs, ours = (outcome(name, layer, x, direction) for layer in (plain, fast))
        if isinstance(theirs, Exception):
            assert isinstance(ours, Exception), f"{what}: {theirs}, but {[list(t.shape) for t in ours]} is returned"
        elif not isinstance(ours, Exception) and "GeneralCoupling" not in name:  # of which zuko leaves some unwritten
            assert ours[0].shape == theirs[0].shape, what


def of_nflows(layer, x, context, inverse):
    run = layer.inverse if inverse else layer
    return run(x) if context is None else run(x, context)


def of_zuko(layer, x, context, inverse):
    transform = layer(context)
    return (transform.inv if inverse else transform).call_and_ladj(x)


def of_freia(layer, x, context, inverse):
    return layer([x], [] if context is None else [context], rev=inverse)[0]


def of_pyro(layer, x, context, inverse):
    transform = layer if context is None else layer.condition(context)
    return [transform._inverse(x) if inverse else transform._call(x)]


CALLS = {
    "nflows": of_nflows, "glasflow": of_nflows, "normflows": of_nflows, "zuko": of_zuko, "freia": of_freia,
    "pyro": of_pyro,
}  # fmt: skip
CONTEXTS = {
    "none": lambda c: None,
    "as expected somewhere": lambda c: c,
    "a column more": lambda c: torch.cat((c, c[:, :1]), 1),
    "a column less": lambda c: c[:, :1],
    "no columns": lambda c: c[:, :0],
    "a row less": lambda c: c[1:],
    "one row": lambda c: c[:1],
    "a vector": lambda c: c[0],
    "a number": lambda c: c[0, 0],
    "another dtype": lambda c: c.to(OTHER[c.dtype]),
    "integers": lambda c: c.long(),
}


@pytest.mark.parametrize(("name", "direction"), [(n, d) for n, d in EVERY if n.partition(",")[0] in CALLS])
def test_contexts(name, direction):
    """Missing, given where none is expected, or not of the rows and columns it should have."""
    call, plain, fast, x = CALLS[name.partition(",")[0]], make(name), make(name), data(name)
    compat.accelerate(fast)
    for what, wrong in CONTEXTS.items():
        context, found = wrong(x.flatten(1)[:, :2].cos()), []
        for layer in (plain, fast):
            try:
                found.append(call(layer, x, context, direction == "inverse")[0].shape)
            except Exception as error:
                found.append(error)
        theirs, ours = found
        if isinstance(theirs, Exception):
            assert isinstance(ours, Exception), f"{what}: {theirs}, but {list(ours)} is returned"
        elif not isinstance(ours, Exception):
            assert ours == theirs, what
