"""What holds for the tables of zuko, FrEIA and Pyro: names that exist, subclasses left alone."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from flowkernels import compat

LIBRARIES = {"zuko": "zuko", "freia": "FrEIA", "pyro": "pyro"}
# In FrEIA's repository, in no release.
UNRELEASED = {f"modules.splines.rational_quadratic.{name}RationalQuadraticSpline" for name in ("", "Elementwise")}


def library(name):
    pytest.importorskip(LIBRARIES[name], reason=f"{LIBRARIES[name]} is not installed: see requirements/dev.txt")
    return importlib.import_module(f"flowkernels.compat.{name}").LIBRARY


def resolve(found, name):
    module, _, cls = f"{found.root}.{name}".rpartition(".")
    return getattr(importlib.import_module(module), cls)


def instances() -> dict[str, nn.Module]:
    """A module of each class that is accelerated, by the class's name."""
    import zuko
    from FrEIA import modules as freia
    from normflows import flows as normflows
    from normflows.nets import LipschitzMLP
    from pyro.distributions import transforms as pyro
    from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN, DenseNN
    from zuko.transforms import MonotonicRQSTransform

    def dense(n_in, n_out):
        return nn.Sequential(nn.Linear(n_in, n_out))

    sizes = {"param_dims": [4, 4, 3]}
    found = [
        zuko.flows.MaskedAutoregressiveTransform(3),
        zuko.flows.GeneralCouplingTransform(3),
        zuko.flows.gaussianization.ElementWiseTransform(3, univariate=MonotonicRQSTransform, shapes=[(4,), (4,), (3,)]),
        zuko.flows.continuous.FFJTransform(3),
        freia.PermuteRandom([(3,)]),
        freia.IResNetLayer([(3,)]),
        normflows.Residual(LipschitzMLP([3, 8, 3])),
        freia.AllInOneBlock([(4, 2, 2)], subnet_constructor=lambda a, b: nn.Conv2d(a, b, 1)),
        freia.GLOWCouplingBlock([(3,)], subnet_constructor=dense),
        freia.RNVPCouplingBlock([(3,)], subnet_constructor=dense),
        freia.AffineCouplingOneSided([(3,)], subnet_constructor=dense),
        freia.NICECouplingBlock([(3,)], subnet_constructor=dense),
        freia.ConditionalAffineTransform([(3,)], [(2,)], subnet_constructor=dense),
        pyro.Spline(3, 4, order="quadratic"),
        pyro.ConditionalSpline(DenseNN(2, [8], [12, 12, 9]), 3, 4, order="quadratic"),
        pyro.SplineAutoregressive(3, AutoRegressiveNN(3, [8], **sizes), 4, order="quadratic"),
        pyro.ConditionalSplineAutoregressive(
            3, ConditionalAutoRegressiveNN(3, 2, [8], **sizes), count_bins=4, order="quadratic"
        ),
        pyro.SplineCoupling(3, 1, DenseNN(1, [8], [8, 8, 6]), 4, order="quadratic"),
        pyro.affine_autoregressive(3),
        pyro.affine_coupling(3),
        pyro.conditional_affine_autoregressive(3, 2),
        pyro.conditional_affine_coupling(3, 2),
        pyro.polynomial(3, [8]),
        pyro.neural_autoregressive(3, [8], width=4),
        pyro.conditional_neural_autoregressive(3, 2, [8], width=4),
        pyro.block_autoregressive(3, hidden_factors=[2]),
        pyro.planar(3),
        pyro.conditional_planar(3, 2, [8]),
        pyro.radial(3),
        pyro.conditional_radial(3, 2, [8]),
    ]
    # Of names that two libraries have.
    own = {f"normflows {type(module).__name__}": module for module in (normflows.Planar((3,)), normflows.Radial((3,)))}
    return {type(module).__name__: module for module in found} | own


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_name_is_one_of_the_library(name):
    found = library(name)
    for cls in {*found.targets, *found.left_alone, *found.containers, found.base} - UNRELEASED:
        assert issubclass(resolve(found, cls), nn.Module)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_subclass_that_overrides_what_would_be_bypassed(name):
    torch.manual_seed(0)
    found = library(name)
    for path, entry in found.targets.items():
        cls = resolve(found, path)
        every = instances()
        module = every.get(f"{name} {cls.__name__}") or every[cls.__name__]
        assert compat.accelerate(module).accelerated[:1] == [""]
        compat.restore(module)
        for method in entry.bypassed:
            module.__class__ = type("Mine", (cls,), {method: getattr(cls, method)})
            assert compat.accelerate(module).left_alone[""] == f"Mine defines its own {method}"
            compat.restore(module)
        module.__class__ = type("Mine", (cls,), {"helper": lambda self: 1})
        assert compat.accelerate(module).accelerated[:1] == [""]
