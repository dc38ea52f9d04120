"""Modules that are accelerated already when something accelerates them: their constructors do, or Pyro's makers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from nflows.transforms import MaskedAffineAutoregressiveTransform
from torch.nn.utils import parametrize

from flowkernels import compat
from flowkernels.compat.engine import patch
from flowkernels.compat.nflows.autoregressive import AffineAutoregressive, SplineAutoregressive

pytestmark = pytest.mark.usefixtures("one_thread")


class Own(MaskedAffineAutoregressiveTransform):
    """Accelerates itself, and goes on setting attributes, as subclasses do after their parents' constructors."""

    def __init__(self) -> None:
        super().__init__(4, 8)
        compat.accelerate(self)
        self.note = "made"


class Derived(Own):
    def __init__(self) -> None:
        super().__init__()
        self.more = torch.nn.Linear(2, 2)


def assert_works(layer):
    layer.note = "changed"
    assert layer.note == "changed"
    assert layer(torch.randn(3, 4))[0].shape == (3, 4)


@pytest.mark.parametrize("cls", [Own, Derived])
def test_a_class_that_accelerates_itself(cls):
    layer = cls()
    fast = type(layer)
    assert patch.is_fast(layer) and patch.original_class(layer) is cls
    assert compat.accelerate(layer).accelerated
    with compat.accelerated(layer):
        assert type(layer) is fast
    assert type(layer) is fast
    assert_works(layer)
    assert_works(copy.deepcopy(layer))
    assert type(pickle.loads(pickle.dumps(layer))) is cls
    assert_works(type(layer)())  # as a library does that makes another one like it
    compat.restore(layer)
    assert type(layer) is cls and not any(map(patch.is_fast, layer.modules()))
    assert_works(layer)


def test_the_same_layer_again_changes_nothing():
    layer = Own()
    fast = type(layer)
    patch.swap(layer, AffineAutoregressive)
    assert type(layer) is fast
    assert_works(layer)


def test_another_layer_takes_the_place_of_the_first():
    layer = MaskedAffineAutoregressiveTransform(4, 8)
    patch.swap(layer, SplineAutoregressive)
    patch.swap(layer, AffineAutoregressive)
    assert patch.original_class(layer) is MaskedAffineAutoregressiveTransform
    assert patch.layer_of(layer) is AffineAutoregressive
    assert_works(layer)
    compat.restore(layer)
    assert type(layer) is MaskedAffineAutoregressiveTransform


def test_a_class_derived_from_a_fast_one_keeps_its_layer():
    layer = MaskedAffineAutoregressiveTransform(4, 8)
    layer.scale = torch.nn.Parameter(torch.ones(2))
    compat.accelerate(layer)
    parametrize.register_parametrization(layer, "scale", torch.nn.Identity())
    patch.swap(layer, SplineAutoregressive)
    assert patch.layer_of(layer) is AffineAutoregressive
    assert_works(layer)
    parametrize.remove_parametrizations(layer, "scale")
    compat.restore(layer)
    assert type(layer) is MaskedAffineAutoregressiveTransform


def test_what_pyro_makes_is_accelerated_when_it_is_made(monkeypatch):
    """`condition()` accelerates what it returns, which a switch for the whole library has done before it."""
    transforms = pytest.importorskip(
        "pyro.distributions.transforms", reason="Pyro is not installed: requirements/dev.txt"
    )
    makers = {
        "AffineCoupling": lambda: transforms.conditional_affine_coupling(4, 3, [8]),
        "AffineAutoregressive": lambda: transforms.conditional_affine_autoregressive(4, 3, [8]),
        "SplineAutoregressive": lambda: transforms.conditional_spline_autoregressive(4, 3, [8]),
    }
    x, context = torch.randn(5, 4), torch.randn(5, 3)
    for name, make in makers.items():
        cls = getattr(transforms, name)
        plain = make()
        wanted = plain.condition(context)(x)
        own = cls.__init__

        def made(self, *args, own=own, **kwargs):
            own(self, *args, **kwargs)
            compat.accelerate(self)

        monkeypatch.setattr(cls, "__init__", made)
        compat.accelerate(plain)
        transform = plain.condition(context)
        assert patch.original_class(transform) is cls
        transform.note = "set"
        torch.testing.assert_close(transform(x), wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(transform.inv(wanted), x, rtol=1e-3, atol=1e-3)
