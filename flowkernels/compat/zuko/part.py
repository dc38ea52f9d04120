"""A layer of zuko as a part: read once, and run as one op by itself or with its neighbours (`transforms.parts`)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from zuko.nn import MLP, Linear
from zuko.transforms import RotationTransform

from flowkernels.compat.engine.runs import or_called
from flowkernels.compat.reading import dense
from flowkernels.nets.dense_reading import Dense
from flowkernels.nets.reading import Walk
from flowkernels.ops import Affine
from flowkernels.ops._kept import made_to_stay
from flowkernels.ops.flow_layer import every
from flowkernels.ops.net import Net
from flowkernels.ops.net.net import dense_net
from flowkernels.transforms import own_steps
from flowkernels.transforms.own_steps import OwnPart
from flowkernels.transforms.parts import Part, is_taken, part_of

from . import describe

_SETTINGS = ("univariate", "shapes", "total", "passes")  # what `describe` reads of a layer


class _Masked:
    """A masked network of features and a context, as a run asks for it in every call."""

    def __init__(self, found: Net, features: int) -> None:
        self.found, self.features = found, features

    def as_net(self, x: Tensor, context: Tensor | None) -> Net | None:
        return describe.of_call(self.found, self.features, context)


class _Dense:
    """A dense one."""

    def __init__(self, found: Dense) -> None:
        self.found = found

    def as_net(self, x: Tensor, context: Tensor | None) -> Net | None:
        return self.found.net(x.shape[:-1], context)


@or_called
def autoregressive(walk: Walk, layer: Any, inverse: bool, has_context: bool) -> Part | None:
    """An autoregressive layer as one op with its network, from latents to data a sweep."""
    net = layer._modules.get("hyper")
    if net is None or not walk.enter(layer, attributes=_SETTINGS) or not walk.enter(net, attributes=("out_features",)):
        return None
    what, features = describe.describe(layer), net.out_features // layer.total
    found = None if isinstance(what, str) else describe.read_net(walk, net, features)
    if found is None:
        return None
    plan: Any = found.spec.plan
    if inverse and layer.passes < len(plan.groups):  # which is not the inverse
        return None
    fixed = None if has_context else describe.of_call(found, features, None)
    if fixed is None and not has_context:
        return None
    given = _Masked(found, features), found.layers(), fixed, every(features)
    return part_of(what.map, *given, sweeps=inverse)  # type: ignore[union-attr]


@or_called
def coupling(walk: Walk, layer: Any, inverse: bool, has_context: bool) -> Part | None:
    """A coupling as one op with its network."""
    net = layer._modules.get("hyper")
    if net is None or not walk.enter(layer, attributes=_SETTINGS, buffers=("mask",)):
        return None
    mask = describe.mask_of(layer, (layer.mask,))
    what = None if mask is None else describe.describe(layer, mask.split)
    if mask is None or what is None or isinstance(what, str):
        return None
    found = dense.read(walk, net, MLP, Linear)
    if found is None:
        return None
    univariate: Any = what.map
    fixed = None if has_context else found.net((), None)
    turned = univariate.inverted() if inverse else univariate
    return part_of(turned, _Dense(found), found.layers, fixed, mask.split)


@or_called
def elementwise(walk: Walk, layer: Any, inverse: bool, has_context: bool) -> OwnPart | None:
    """A map of each feature by parameters of its own. A network of nothing but a context is no layer of an op."""
    phi = layer._modules.get("phi")
    if phi is None or has_context or not walk.enter(layer, attributes=_SETTINGS):
        return None
    if not walk.enter(phi, parameters=[*phi._parameters]):
        return None
    what, params = describe.describe(layer), functools.partial(describe.joined, [*phi._parameters.values()])
    univariate: Any = None if isinstance(what, str) else what.map
    if univariate is None or not is_taken(univariate):
        return None
    turned, (D, P) = univariate.inverted() if inverse else univariate, params().shape
    return own_steps.elementwise(turned, params, D, tuple(range(D))) if turned.n_params == P else None


class _Rotation:
    """x → R x as a layer that adds (R - I) x, R = exp(A - A^T), or its transpose."""

    def __init__(self, A: Tensor, inverse: bool) -> None:
        self.A, self.inverse = A, inverse
        self._kept: tuple[Tensor, Net] | None = None  # of these numbers

    def as_net(self, x: Tensor, context: Tensor | None) -> Net | None:
        A = self.A
        if A.is_inference() or (torch.is_grad_enabled() and A.requires_grad):
            return self._made(A)
        # By its numbers: a fused optimizer and what is written through `.data` count no version.
        if self._kept is None or not torch.equal(self._kept[0], A):
            self._kept = made_to_stay(lambda: (A.detach().clone(), self._made(A.detach())))
        return self._kept[1]

    def _made(self, A: Tensor) -> Net:
        skew = A - A.mT
        R = torch.linalg.matrix_exp(-skew if self.inverse else skew)
        weight = R - torch.eye(len(A), dtype=A.dtype, device=A.device)
        return dense_net([(weight, A.new_zeros(len(A)))], False, "identity", len(A), (), None)


def rotation(walk: Walk, layer: Any, inverse: bool) -> Part | None:
    """A rotation of all features, whose matrix exponential is made anew where it gets a gradient, and else kept."""
    A = layer._parameters.get("A")
    if A is None or not walk.enter(layer, parameters=("A",), attributes=("f", "_nargs", "_keys")):
        return None
    if A.dim() != 2 or A.shape[0] != A.shape[1] or not A.is_cpu or layer.f is not RotationTransform:
        return None
    D = len(A)
    found = part_of(Affine("additive"), _Rotation(A, inverse), [], None, every(D))
    return None if found is None else found._replace(weights=A.numel(), sizes=(D, D))
