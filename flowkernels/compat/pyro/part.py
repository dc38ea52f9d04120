"""Pyro's couplings and permutations as steps of a run: read once, and run as one op with their neighbours."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowkernels.compat.engine.patch import layer_of
from flowkernels.compat.layer import Layer, in_our_order, native_last
from flowkernels.nets.dense_reading import Dense
from flowkernels.nets.reading import Walk, activation, linear
from flowkernels.ops.flow import Elementwise, Order
from flowkernels.transforms import own_steps
from flowkernels.transforms.own_steps import OwnPart
from flowkernels.transforms.parts import Part, is_taken, part_of
from flowkernels.transforms.runs import Said

from . import describe, layers
from .coupling import AffineCoupling, SplineCoupling

_OF_SPLINE = ("count_bins", "bound", "order", "input_dim")
_PARAMETERS = ("unnormalized_widths", "unnormalized_heights", "unnormalized_derivatives", "unnormalized_lambdas")


class Link(NamedTuple):
    """A transform of a chain; permutations are no modules."""

    transform: Any

    def modules(self) -> Iterable[nn.Module]:
        return self.transform.modules() if isinstance(self.transform, nn.Module) else ()


class _Dense:
    """A coupling's network. Without a context it is the same in every call."""

    def __init__(self, found: Dense) -> None:
        self.found = found

    def as_net(self, x: Tensor, context: Tensor | None) -> None:
        return None


def _coupling(walk: Walk, what: Any, inverse: bool) -> Part | None:
    """The map of a coupling and its network; None where Pyro's own way is called for."""
    if not isinstance(what, Layer) or what.map is None or what.split is None:
        return None
    net = what.net
    if not walk.enter(net, attributes=("f", "param_dims", "output_multiplier")) or not walk.enter(net.layers):
        return None
    pairs, act = [linear(walk, m) for m in net.layers], activation(walk, net, "f")
    if None in pairs or act is None:
        return None
    found = Dense(pairs, False, act)
    univariate: Any = in_our_order(what.map)[0]
    turned = univariate.inverted() if inverse else univariate
    return part_of(turned, _Dense(found), pairs, found.net((), None), what.split, native_last(what))


def _affine(walk: Walk, t: Any, inverse: bool) -> Said:
    if not walk.enter(t, attributes=("split_dim", "dim", "log_scale_min_clip", "log_scale_max_clip")):
        return None
    return _coupling(walk, describe.affine_coupling(t), inverse) if isinstance(t.nn, nn.Module) else None


def _of_features(layer: Any, univariate: Any) -> Elementwise:
    parts = [layer._parameters[name] for name in _PARAMETERS if layer._parameters.get(name) is not None]
    return Elementwise(univariate, torch.cat(parts, dim=-1), tuple(range(layer.input_dim)))


def _spline(walk: Walk, t: Any, inverse: bool) -> Said:
    """A coupling, and what it does to the features that it sees."""
    lower, upper = t.lower_spline, t.upper_spline
    if layer_of(upper) is not layers.ConditionalSpline or not walk.enter(t, attributes=("split_dim", "identity")):
        return None
    if not walk.enter(upper, attributes=_OF_SPLINE):
        return None
    found = _coupling(walk, describe.spline_coupling(t), inverse)
    if found is None or t.identity:
        return found
    univariate: Any = describe.spline(lower)
    univariate = univariate.inverted() if inverse else univariate
    if layer_of(lower) is not layers.Spline or not is_taken(univariate):
        return None
    if not walk.enter(lower, parameters=_PARAMETERS, attributes=_OF_SPLINE):
        return None
    of_seen = own_steps.made(functools.partial(_of_features, lower, univariate), found.split.features)
    if not isinstance(of_seen, OwnPart):
        return None
    return [of_seen, found] if inverse else [found, of_seen]


def _permutation(t: Any, inverse: bool) -> Order | None:
    """Who keeps it asks by `versions` whether it is the same."""
    if t.dim != -1 or not t.permutation.is_cpu or t.permutation.dim() != 1:
        return None
    found = t.permutation.tolist()
    if sorted(found) != list(range(len(found))):
        return None
    return Order(tuple(sorted(range(len(found)), key=found.__getitem__) if inverse else found))


def is_permutation(t: Any) -> bool:
    cls = type(t)
    return f"{cls.__module__}.{cls.__qualname__}" == "pyro.distributions.transforms.permute.Permute"


def read(walk: Walk, link: Link, inverse: bool, has_context: bool) -> Said:
    """The steps of a transform; None where it must be called."""
    t = link.transform
    if is_permutation(t):
        return _permutation(t, inverse)
    methods = layer_of(t)
    if methods is AffineCoupling:
        return _affine(walk, t, inverse)
    return _spline(walk, t, inverse) if methods is SplineCoupling else None
