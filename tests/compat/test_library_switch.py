"""One line accelerates every model of a library that is made from then on, and nothing of it is left when it ends."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import subprocess
import sys
import threading
import types

import pytest
import torch
from nflows import transforms
from nflows.transforms import MaskedAffineAutoregressiveTransform as Layer
from torch import nn

import flowkernels
from flowkernels import compat
from flowkernels.compat.engine import made, patch, switch
from tests.compat import nflows_models as models
from tests.compat import whole_models

pytestmark = pytest.mark.usefixtures("one_thread")

LIBRARY_OF = {name: name.split()[0] for name in whole_models.MODELS}


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    assert not made._hooks and not any(switch._holders.values())


def layer() -> nn.Module:
    return Layer(features=4, hidden_features=8)


def is_on() -> bool:
    return patch.is_fast(layer())


def members(library: str) -> dict[type, dict[str, object]]:
    """What the hooked classes and those between them and their library's base have of their own."""
    found = {cls for root in switch._classes_of(library) for cls in (root, *made._subclasses(root))}
    return {cls: dict(vars(cls)) for cls in found if "_flowkernels_class" not in vars(cls)}


# ---- every library ----


@pytest.mark.parametrize("name", whole_models.MODELS)
def test_models_are_made_as_accelerate_would_make_them(name):
    by_hand = whole_models.build(name)
    report = compat.accelerate(by_hand)
    before = members(LIBRARY_OF[name].lower())
    with flowkernels.accelerate_library(LIBRARY_OF[name]):
        model = whole_models.build(name)
    assert members(LIBRARY_OF[name].lower()) == before
    assert [type(m) for m in model.modules()] == [type(m) for m in by_hand.modules()]
    assert report.accelerated
    again, swapped = compat._accelerate(model)
    assert not swapped
    assert again.rows == report.rows and str(again) == str(report)
    x = whole_models.data()
    assert torch.equal(model(x), by_hand(x))
    assert not any(map(patch.is_fast, whole_models.build(name).modules()))


def assert_twins(twins: list, density: whole_models.Density) -> None:
    x = whole_models.data()
    for twin in twins:
        assert [type(m) for m in twin.modules()] == [type(m) for m in density.model.modules()]
        assert torch.equal(density.log_prob(twin, x), density(x))


@pytest.mark.parametrize("name", whole_models.MODELS)
def test_copies_of_plain_models_are_accelerated(name):
    plain = whole_models.build(name)
    with flowkernels.accelerate_library(LIBRARY_OF[name]):
        model = whole_models.build(name)
        assert_twins([copy.deepcopy(model.model), copy.deepcopy(plain.model)], model)
    assert not any(map(patch.is_fast, plain.modules()))


# FrEIA's coupling blocks hold functions that pickle refuses.
@pytest.mark.parametrize("name", [name for name in whole_models.MODELS if name != "FrEIA"])
def test_unpickling_accelerates_again(name):
    plain = whole_models.build(name)
    with flowkernels.accelerate_library(LIBRARY_OF[name]):
        model = whole_models.build(name)
        state, buffer = pickle.dumps(model.model), io.BytesIO()
        torch.save(model.model, buffer)
        assert_twins([pickle.loads(state), torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)], model)
    assert b"flowkernels" not in state
    assert [type(m) for m in pickle.loads(state).modules()] == [type(m) for m in plain.model.modules()]


def test_a_shallow_copy_leaves_the_parts_of_the_original_alone():
    plain = layer()
    with flowkernels.accelerate_library("nflows"):
        twin = copy.copy(plain)
    assert patch.is_fast(twin)
    assert not any(map(patch.is_fast, plain.modules()))


# ---- on and off ----


def test_off_puts_back_what_the_classes_had():
    before, signature = members("nflows"), inspect.signature(Layer)
    own = flowkernels.accelerate_library("nflows")
    assert members("nflows") != before
    assert inspect.signature(Layer) == signature
    assert Layer.__init__.__qualname__ == f"{Layer.__name__}.__init__"
    own.restore()
    assert members("nflows") == before
    assert not is_on()


def test_a_model_stays_as_it_was_made():
    before = layer()
    with flowkernels.accelerate_library("nflows"):
        inside = layer()
        assert not patch.is_fast(before)
    assert patch.is_fast(inside)
    compat.restore(inside)
    assert type(inside) is type(before)


def test_twice_is_as_once():
    first, second = (flowkernels.accelerate_library("nflows") for _ in range(2))
    assert is_on() and first.on and repr(first) == "accelerate_library('nflows'): on"
    second.restore()
    assert not is_on() and not first.on and repr(first) == "accelerate_library('nflows'): off"
    first.restore()
    second.restore()
    assert not is_on()


def test_blocks_nest():
    with flowkernels.accelerate_library("nflows"):
        with flowkernels.accelerate_library("NFlows") as inner:
            assert is_on()
        assert is_on() and inner.on
        inner.restore()
        assert is_on()
    assert not is_on()
    with flowkernels.accelerate_library("nflows") as block:
        for_good = flowkernels.accelerate_library("nflows")
        block.restore()
        assert is_on()
    assert is_on()
    with flowkernels.accelerate_library("nflows"):
        pass
    assert is_on()
    with flowkernels.accelerate_library("nflows"):
        for_good.restore()
        assert is_on()
    assert not is_on()


def test_blocks_end_in_any_order():
    first, second = flowkernels.accelerate_library("nflows"), flowkernels.accelerate_library("zuko")
    first.__enter__()
    second.__enter__()
    third = flowkernels.accelerate_library("nflows").__enter__()
    first.__exit__()
    assert is_on()
    second.__exit__()
    assert is_on()
    third.__exit__()
    assert not is_on()


def test_a_switch_opens_as_many_blocks_as_one_likes():
    own = flowkernels.accelerate_library("nflows")
    with own, own:
        assert is_on()
    assert not is_on()
    with own:
        assert is_on()
    assert not is_on()


def test_a_block_that_raises_is_left():
    with pytest.raises(KeyError), flowkernels.accelerate_library("nflows"):
        raise KeyError
    assert not is_on()


def test_another_library_stays_on():
    import zuko

    nflows = flowkernels.accelerate_library("nflows")
    with flowkernels.accelerate_library("zuko"):
        nflows.restore()
        assert not is_on()
        assert any(map(patch.is_fast, zuko.flows.MAF(3, transforms=1).modules()))


def test_threads():
    """Constructors run at the same time; an object under construction in one is none of the other's."""
    fast: list[bool] = []
    with flowkernels.accelerate_library("nflows"):
        threads = [threading.Thread(target=lambda: fast.extend(is_on() for _ in range(20))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert fast == [True] * 80


# ---- classes of the user's ----


class Before(Layer):
    """Defined before the library is switched on, with a constructor of its own."""

    def __init__(self, features: int) -> None:
        super().__init__(features, hidden_features=8)
        self.was_fast = patch.is_fast(self)
        self.extra = nn.Parameter(torch.zeros(features))

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.was_fast = patch.is_fast(self)


def test_a_subclass_is_accelerated_when_its_own_constructor_ends():
    own = vars(Before)["__init__"], vars(Before)["__setstate__"]
    with flowkernels.accelerate_library("nflows"):

        class Later(Before):
            def __init__(self) -> None:
                super().__init__(3)
                self.later = patch.is_fast(self)

        one, two = Before(3), Later()
        loaded = pickle.loads(pickle.dumps(one))
    for model in (one, two, loaded):
        assert patch.is_fast(model) and not model.was_fast
    assert not two.later
    assert (vars(Before)["__init__"], vars(Before)["__setstate__"]) == own
    assert not patch.is_fast(Before(3)) and not patch.is_fast(Later())


def test_a_subclass_that_overrides_what_would_be_bypassed_stays():
    with flowkernels.accelerate_library("nflows"):

        class Mine(Layer):
            def _elementwise_forward(self, inputs, params):
                return super()._elementwise_forward(2 * inputs, params)

        mine = Mine(4, hidden_features=8)
    assert not patch.is_fast(mine)
    assert "defines its own _elementwise_forward" in compat.accelerate(mine).left_alone[""]


def test_a_constructor_that_raises():
    with flowkernels.accelerate_library("nflows"):
        with pytest.raises(TypeError, match="unexpected"):
            Layer(features=4, hidden_features=8, unexpected=1)  # type: ignore[call-arg]
        assert is_on()
        assert not made._running.ids


def test_what_a_subclass_is_told_when_it_is_derived():
    told = []

    class Root(Layer):
        def __init_subclass__(cls, flag=None, **kwargs):
            super().__init_subclass__(**kwargs)
            told.append((cls.__name__, flag))

    with flowkernels.accelerate_library("nflows"):

        class Derived(Root, flag=3):
            pass

        assert patch.is_fast(Derived(3, hidden_features=8))
    assert ("Derived", 3) in told


def test_a_method_that_somebody_else_has_put_on_top_stays_and_no_longer_accelerates():
    plain, own = vars(Layer)["__init__"], flowkernels.accelerate_library("nflows")
    ours, calls = Layer.__init__, []

    def theirs(self, *args, **kwargs):
        calls.append(args)
        ours(self, *args, **kwargs)

    try:
        setattr(Layer, "__init__", theirs)  # noqa: B010  # to which type checkers object otherwise
        assert is_on()
        own.restore()
        assert Layer.__init__ is theirs and not is_on()
        with own:
            assert is_on()
        assert Layer.__init__ is theirs and len(calls) == 3
    finally:
        own.restore()
        setattr(Layer, "__init__", plain)  # noqa: B010


# ---- arguments ----


def test_arguments():
    with pytest.raises(TypeError, match=r"accelerate_library: library must be 'FrEIA', .* or 'zuko', got Flow"):
        flowkernels.accelerate_library(models.flow(layers=1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"accelerate_library: library must be 'FrEIA', .* or 'zuko', got 'copies'"):
        flowkernels.accelerate_library("copies")


def test_a_library_that_is_not_installed():
    code = (
        "import sys; sys.modules['zuko'] = None\n"
        "import flowkernels\n"
        "try: flowkernels.accelerate_library('zuko')\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "accelerate_library: zuko must be installed to be accelerated, got no module of that name\n"


def test_a_version_without_the_classes(monkeypatch):
    old = types.ModuleType("sbi")
    old.__path__ = []
    for name in [name for name in sys.modules if name.partition(".")[0] == "sbi"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sbi", old)
    monkeypatch.setattr(switch, "_classes", {})
    with pytest.raises(ImportError, match=r"accelerate_library: sbi must be a version that has one of .*NFlowsFlow"):
        flowkernels.accelerate_library("sbi")


def test_layers_work_as_any_accelerated_one():
    x = torch.randn(5, 4)
    plain = transforms.CompositeTransform([layer(), transforms.RandomPermutation(4), layer()])
    with flowkernels.accelerate_library("nflows"):
        fast = transforms.CompositeTransform([layer(), transforms.RandomPermutation(4), layer()])
    assert fast.load_state_dict(plain.state_dict())
    for a, b in zip(fast(x), plain(x), strict=True):
        torch.testing.assert_close(a, b)
    fast(x)[0].sum().backward()
    assert all(p.grad is not None for p in fast.parameters())
