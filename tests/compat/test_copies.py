"""Copies of the spline function are known by what they take and return, and only they are replaced."""

from __future__ import annotations

import copy
import importlib
import random
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from nflows.transforms import splines
from torch import nn

from flowkernels import compat
from flowkernels.compat.copies import behaviour, library, references
from flowkernels.compat.copies.call import Way
from flowkernels.compat.reading import spline_of_parts
from tests.compat import copied_splines
from tests.compat.parity import B, accelerated_copy, assert_parity, watch

pytestmark = pytest.mark.usefixtures("one_thread")
K = 5
_called: Any = None  # by methods of classes below; each test puts its function here


def _x(shape=(B, 4)):
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


class ByModule(copied_splines.Coupling):
    """By the name of a module, of which it reads something else too."""

    def map(self, x, W, H, D, reverse):
        least = copied_splines.LEAST
        return copied_splines.unconstrained_RQS(x, W, H, D, reverse, self.bound, min_derivative=least)


class ByPackage(copied_splines.Coupling):
    """nflows' own function, by the name of the module that it is in."""

    def map(self, x, W, H, D, reverse):
        found = [f(x, W, H, D, reverse, tail_bound=self.bound) for f in [lambda *a, **k: _nflows(*a, **k)]]
        return found[0]


def _nflows(*args, **kwargs):
    return splines.unconstrained_rational_quadratic_spline(*args, **kwargs)


CASES = {
    "unconstrained_RQS": copied_splines.ByName,
    "RQS": lambda: copied_splines.InUnitBox(more=1),
    "transform": copied_splines.ByKeywords,
    "spline_between": copied_splines.ByHelper,
    "spline_between, hidden": copied_splines.ByHiddenHelper,
    "rqs_with_loose_ends": copied_splines.ByLambda,
    "rqs_padded_with_zeros": copied_splines.PaddedWithZeros,
    "flat_spline": copied_splines.Flattened,
    "unconstrained_RQS, of a module": ByModule,
    "unconstrained_rational_quadratic_spline": ByPackage,
}


def make(name):
    torch.manual_seed(0)
    return CASES[name]()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "inverse"])
def test_parity(name, reverse, monkeypatch):
    x = _x()
    if name == "RQS":
        x = x.clamp(-3.9, 3.9)
    assert_parity(lambda m, x: m(x, reverse), make(name), x, accelerated=1)
    called: list[str] = []
    layer = accelerated_copy(make(name))
    watch(monkeypatch, called, spline_of_parts, "rqs")
    layer(x, reverse)
    assert called == ["rqs"]


@pytest.mark.parametrize("name", CASES)
def test_the_report_says_what_was_found_and_restore_undoes_it(name):
    layer = make(name)
    cls, expected = type(layer), layer(x := _x().clamp(-3.9, 3.9))
    report = compat.accelerate(layer)
    found = name.partition(",")[0]
    assert f"its spline {found}" in str(report).partition("\naccelerated\n")[2]
    assert report.rows[0].found.endswith(f" {found}")
    assert type(layer) is not cls
    assert type(copy.deepcopy(layer)) is type(layer)
    compat.restore(layer)
    assert type(layer) is cls
    assert all(torch.equal(a, b) for a, b in zip(layer(x), expected, strict=True))


def test_compiled_without_a_graph_break():
    for name in ("unconstrained_RQS", "transform", "spline_between", "unconstrained_RQS, of a module"):
        layer = accelerated_copy(make(name)).double()
        x = _x().double()
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for a, b in zip(compiled(x), layer(x), strict=True):
            torch.testing.assert_close(a, b)
        torch.compiler.reset()


# ---- which settings reproduce a copy ----


def test_a_copy_that_is_right_for_vectors_only():
    """Other inputs are its own, whatever it makes of them."""
    fused, arguments = behaviour.copy_of(copied_splines.flat_spline), _arguments()
    assert [means.flat for means in _means(copied_splines.flat_spline).values()] == [True]
    for a, b in zip(fused(*arguments), copied_splines.flat_spline(*arguments), strict=True):
        assert torch.equal(a, b)
    assert [means.flat for means in _means(copied_splines.transform).values()] == [False]


def _means(function):
    found = behaviour.copy_of(function)
    assert callable(found), found
    return next(c.cell_contents for c in found.__closure__ if isinstance(c.cell_contents, dict))


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        ("RQS", {Way(None, 1, "sides"): (0, (1e-3, 1e-3, 1e-3))}),
        ("unconstrained_RQS", {Way(None, -1, "number"): (0, (1e-3, 1e-3, 1e-3))}),
        ("transform", {Way(None, -1, "number"): (0, (1e-3, 1e-3, 1e-3))}),
        ("spline_between", {Way(None, -1, "pair"): (0, (1e-3, 1e-3, 1e-3))}),
        ("rqs_with_loose_ends", {Way(None, -1, "number"): (1, (0.0, 0.0, 1e-3))}),
        ("rqs_padded_with_zeros", {Way(None, -1, "number"): (2, (1e-3, 1e-3, 1e-3))}),
        ("unit_spline", {Way(None, 1, "none"): (0, (1e-3, 1e-3, 1e-3))}),
    ],
)
def test_what_a_copy_is_called_with_and_means(name, ways):
    assert {way: means[:2] for way, means in _means(getattr(copied_splines, name)).items()} == ways


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("spline_of_absolute_slopes", "has other values than nflows' spline"),
        ("spline_that_cuts_off", "has other values than nflows' spline"),
        ("spline_without_gradients", "has other gradients than nflows' spline"),
        ("spline_that_writes", "writes to its arguments in place"),
        ("spline_with_other_inverse", "has other log-determinants than nflows' spline"),
        ("spline_that_raises", "raises KeyError: 'no\\nsuch thing'"),
        ("spline_of_outputs_only", "does not return outputs and log-determinants of every element"),
        ("spline_with_more", "has the parameter lambdas, which nflows' spline has not"),
    ],
)
def test_what_looks_like_a_spline_and_is_none_is_left_alone(name, reason, monkeypatch):
    function = getattr(copied_splines, name)

    class Layer(nn.Module):
        def forward(self, x):
            return _called(x, x, x, x)

    monkeypatch.setitem(globals(), "_called", function)
    layer = Layer()
    report = compat.accelerate(layer)
    assert report.left_alone == {"": f"its {name} {reason}"}
    assert type(layer) is Layer


@pytest.mark.parametrize("function", [copied_splines.resize, torch.nn.functional.softplus, compat.accelerate])
def test_what_looks_like_no_spline_is_in_no_report(function, monkeypatch):
    class Layer(nn.Module):
        def forward(self, x):
            return _called(x, x, x, x)

    monkeypatch.setitem(globals(), "_called", function)
    assert not compat.accelerate(Layer()).rows


# ---- looking changes nothing ----


def test_looking_leaves_modes_and_generators_alone():
    behaviour.copy_of.cache_clear()
    states = [torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()]
    with torch.no_grad():
        assert "raises KeyError" in behaviour.copy_of(copied_splines.spline_that_raises)
        assert callable(behaviour.copy_of(copied_splines.RQS))
        assert not torch.is_grad_enabled()
    with torch.inference_mode(), torch.device("meta"):
        assert callable(behaviour.copy_of(copied_splines.unconstrained_RQS))
        assert torch.is_inference_mode_enabled()
        assert torch.empty(1).is_meta
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]


def test_a_function_is_looked_at_once(monkeypatch):
    calls = []

    def RQS(inputs, W, H, D, inverse=False, tail_bound=1.0):
        calls.append(1)
        return copied_splines.transform(x=inputs, W=W, H=H, D=D, reverse=inverse, bound=tail_bound)

    monkeypatch.setitem(globals(), "_called", RQS)
    layers = []
    for _ in range(2):

        class Layer(copied_splines.Coupling):
            def map(self, x, W, H, D, reverse):
                return _called(x, W, H, D, reverse, self.bound)

        layers.append(Layer())
        compat.accelerate(layers[-1])
        if len(layers) == 1:
            before = len(calls)
    assert before
    assert len(calls) == before
    layers[0](_x())
    assert len(calls) == before


def test_a_function_that_is_another_one_later(monkeypatch):
    """As when a cell of a notebook runs again."""

    class Layer(copied_splines.Coupling):
        def map(self, x, W, H, D, reverse):
            return _called(inputs=x, widths=W, heights=H, derivatives=D, inverse=reverse)

    monkeypatch.setitem(globals(), "_called", copied_splines.rqs_with_loose_ends)
    layer = Layer()
    assert compat.accelerate(layer).rows[0].found.endswith("rqs_with_loose_ends")
    compat.restore(layer)
    monkeypatch.setitem(globals(), "_called", copied_splines.rqs_padded_with_zeros)
    expected = layer(_x())
    assert compat.accelerate(layer).rows[0].found.endswith("rqs_padded_with_zeros")
    for a, b in zip(layer(_x()), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def _by_helper(*args):
    return _called(*args)


def test_a_helper_whose_function_is_another_one_later(monkeypatch):
    class Layer(copied_splines.Coupling):
        def map(self, x, W, H, D, reverse):
            return _by_helper(x, W, H, D, reverse)

    for name in ("rqs_with_loose_ends", "rqs_padded_with_zeros"):
        monkeypatch.setitem(globals(), "_called", getattr(copied_splines, name))
        layer = Layer()
        assert compat.accelerate(layer).rows[0].found == f"its spline {name}"
        compat.restore(layer)


# ---- calls that are the copy's own ----


def _arguments(shape=(6, 2), K=K):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=g) for s in (shape, (*shape, K), (*shape, K), (*shape, K - 1))]


@pytest.mark.parametrize(
    "call",
    [
        lambda f, a: f(*a, tail_bound=torch.tensor(1.0)),
        lambda f, a: f(*a, False, 1.0, torch.tensor(1e-3)),
        lambda f, a: f(*a, tail_bound=-1.0),  # nothing is inside
        lambda f, a: f(a[0][:1], *a[1:]),
        lambda f, a: f(*a, 0),  # no flag
    ],
)
def test_a_call_that_the_kernels_do_not_take(call, monkeypatch):
    called: list[str] = []
    theirs = copied_splines.unconstrained_RQS
    fused = behaviour.copy_of(theirs)
    watch(monkeypatch, called, spline_of_parts, "rqs")

    def outcome(f):
        try:
            return call(f, _arguments())
        except Exception as error:
            return type(error), str(error)

    for a, b in zip(outcome(fused), outcome(theirs), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert not called


@pytest.mark.parametrize(
    "call",
    [
        lambda f, x, *rest: f(x, *rest, no_such=1),
        lambda f, x, *rest: f(x, *rest, inputs=x),
        lambda f, x, *rest: f(x, *rest[:2]),
        lambda f, *a: f(*a, *range(9)),
    ],
)
def test_calls_that_raise(call):
    errors = []
    for f in (behaviour.copy_of(copied_splines.unconstrained_RQS), copied_splines.unconstrained_RQS):
        with pytest.raises(TypeError) as raised:
            call(f, *_arguments())
        errors.append(str(raised.value))
    assert errors[0] == errors[1]


def test_a_parameter_without_a_role_is_the_copys_own_business():
    def spline(inputs, widths, heights, derivatives, inverse=False, tail_bound=1.0, log_det=True):
        y, ladj = copied_splines.transform(x=inputs, W=widths, H=heights, D=derivatives, bound=tail_bound,
                                           reverse=inverse)  # fmt: skip
        return (y, ladj) if log_det else y

    fused = behaviour.copy_of(spline)
    arguments = _arguments()
    assert torch.equal(fused(*arguments, log_det=False), spline(*arguments, log_det=False))
    for a, b in zip(fused(*arguments, log_det=True), spline(*arguments), strict=True):
        torch.testing.assert_close(a, b)


# ---- names ----


def test_a_name_that_means_something_else_too(monkeypatch):
    monkeypatch.setitem(globals(), "RQS", copied_splines.unconstrained_RQS)

    class Layer(nn.Module):
        def forward(self, x):
            return RQS(x, x, x, x) if self.RQS else x  # noqa: F821

    (reason,) = compat.accelerate(Layer()).left_alone.values()
    assert reason == "a method uses the name of its spline function for something else too"

    class Other(nn.Module):
        def forward(self, x):
            return copied_splines.unconstrained_RQS(x, x, x, x), copied_splines

    (reason,) = compat.accelerate(Other()).left_alone.values()
    assert reason == "a method does something else with the module of its spline function"


def test_two_methods_that_read_one_module():
    """What stands in for the module has the functions of both."""

    class Both(copied_splines.Coupling):
        def map(self, x, W, H, D, reverse):
            return copied_splines.unconstrained_RQS(x, W, H, D, reverse, self.bound)

        def other(self, x, W, H, D):
            return copied_splines.rqs_with_loose_ends(x, W, H, D, tail_bound=self.bound)

    layer = accelerated_copy(Both())
    stand_in = globals()[references.PREFIX + "copied_splines"]
    for name in ("unconstrained_RQS", "rqs_with_loose_ends"):
        assert vars(stand_in)[name] is behaviour.copy_of(getattr(copied_splines, name))
    assert stand_in.LEAST == copied_splines.LEAST
    _, moved, logits = layer.split(_x())
    torch.testing.assert_close(
        layer.other(moved, *logits), copied_splines.rqs_with_loose_ends(moved, *logits, tail_bound=3.0),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip


def test_constructors_are_not_read():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.spline = copied_splines.unconstrained_RQS

    assert not compat.accelerate(Layer()).rows


# ---- the old name ----


def test_the_old_name_warns():
    sys.modules.pop("flowkernels.compat.vits", None)
    with pytest.warns(DeprecationWarning, match=r"compat.vits is called compat.copies now"):
        old = importlib.import_module("flowkernels.compat.vits")
    new = importlib.import_module("flowkernels.compat.copies")
    assert isinstance(old, types.ModuleType)
    assert old.LIBRARY is new.LIBRARY
    assert isinstance(new.LIBRARY, library.Copies)
    assert old.piecewise_rational_quadratic_transform is new.piecewise_rational_quadratic_transform
    assert old.unconstrained_rational_quadratic_spline is new.unconstrained_rational_quadratic_spline
