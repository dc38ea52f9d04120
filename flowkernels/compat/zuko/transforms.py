"""The transforms that zuko's lazy ones return, on the fused kernels.

They are subclasses of zuko's, so that flows, compositions and inverses are put together as before. `call_and_ladj` is
one op where the network is one that kernels can run, and otherwise the network around the fused map; so is that of the
inverse, which zuko computes by a pass of the network for every feature and one more for the log-determinant.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform, _InverseTransform
from zuko import transforms
from zuko.flows.gaussianization import ElementWiseTransform
from zuko.utils import broadcast

from flowkernels.compat.reading.operands import mixed
from flowkernels.ops.autoregressive_inverse import run_inverse
from flowkernels.ops.net import MadePlan, Net, run_made
from flowkernels.ops.univariate import Map
from flowkernels.transforms.parts import run_alone

from . import part
from .describe import mask_of, masked_net, own_params, univariate_of
from .monotone import MonotoneMap, by_levels, is_network


class Inverse(_InverseTransform):
    """The inverse of one of the transforms here."""

    def call_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        transform: Any = self._inv
        return transform.run(y, True)


def _params(layer: Any, x: Tensor, context: Tensor | None) -> Tensor:
    """The output of the layer's network, ``[..., D, P]``."""
    given = x if context is None else torch.cat((x, context), dim=-1)
    params = layer.hyper(given)
    return params.unflatten(-1, (params.shape[-1] // layer.total, layer.total))


def expanded(x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if context is None or x.shape[:-1] == context.shape[:-1]:
        return x, context
    x, context = broadcast(x, context, ignore=1)
    return x, context


def _map_of(layer: Any, x: Tensor) -> Any:
    """The layer's map; None where it is a network that zuko is to run now."""
    found = univariate_of(layer)
    if is_network(layer.univariate):
        return found if isinstance(found, MonotoneMap) and found.takes(x) else None
    if isinstance(found, str):
        raise RuntimeError(f"compat.zuko: the layer must have the univariate it was accelerated with, but {found}")
    return found


class _Fused(Transform):
    """What the transforms here share; `run` is theirs."""

    def run(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """y and the log-determinant, of either direction."""
        raise NotImplementedError

    def _call(self, x: Tensor) -> Tensor:
        return self.run(x, False)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.run(y, True)[0]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.run(x, False)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.run(x, False)[1]

    def theirs(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """The same by zuko's own code."""
        plain: Any = type(self).__bases__[1]
        if not inverse:
            return plain.call_and_ladj(self, x)
        x = plain._inverse(self, x)
        return x, -plain.call_and_ladj(self, x)[1]

    @property
    def inv(self) -> Transform:
        return Inverse(self)


def _levels(network: Net) -> Sequence[Sequence[int]]:
    """The features that the passes of the inverse of a masked network find, one after another."""
    assert isinstance(network.spec.plan, MadePlan)
    return network.spec.plan.groups


class AutoregressiveTransform(_Fused, transforms.AutoregressiveTransform):
    """`zuko.transforms.AutoregressiveTransform` of a layer and a context."""

    def __init__(self, layer: Any, context: Tensor | None) -> None:
        super().__init__(functools.partial(layer.meta, context), layer.passes)
        self.layer, self.context = layer, context

    def _network(self, x: Tensor, context: Tensor | None) -> Net | None:
        features = self.layer.hyper.out_features // self.layer.total
        return masked_net(self.layer.hyper, features, x, context)

    def run(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        x, context = expanded(x, self.context)
        alone = None if inverse else run_alone(self.layer, x, context, False, part.autoregressive)
        if alone is not None:
            return alone
        univariate, network = _map_of(self.layer, x), self._network(x, context)
        if univariate is None:
            return self.theirs(x, inverse)
        if inverse and network is not None and self.passes >= len(_levels(network)):
            if isinstance(univariate, MonotoneMap):
                return by_levels(x, _levels(network), univariate, lambda x: self._params(x, context, network))
            return run_inverse(x, network, univariate)  # type: ignore[return-value]
        seen, ladj = torch.zeros_like(x) if inverse else x, x.new_zeros(x.shape[:-1])
        for _ in range(self.passes if inverse else 1):
            params = self._params(seen, context, network)
            if mixed(x, params):
                return self.theirs(x, inverse)
            seen, ladj = univariate(x, params, inverse)
        return seen, ladj

    def _params(self, x: Tensor, context: Tensor | None, network: Net | None) -> Tensor:
        if network is None:
            return _params(self.layer, x, context)
        return run_made(x, network).unflatten(-1, (x.shape[-1], self.layer.total))


# ---- coupling ----


class CouplingTransform(_Fused, transforms.CouplingTransform):
    """`zuko.transforms.CouplingTransform` of a layer and a context."""

    def __init__(self, layer: Any, context: Tensor | None) -> None:
        mask = mask_of(layer, (layer.mask,))
        meta = functools.partial(layer.meta, context)
        if mask is None:  # the mask cannot be read now, or zuko's way of reading it is the one that can be traced
            super().__init__(meta, layer.mask)
            self.its_mask = None
        else:
            Transform.__init__(self)
            self.meta = meta
            self.idx_a, self.idx_b, self.its_mask = mask.kept, mask.mapped, mask
        self.layer, self.context = layer, context

    def _has_its_mask(self) -> bool:
        """Whether the layer's mask is the one that this was made with, which zuko goes on to use."""
        return self.its_mask is not None and mask_of(self.layer, (self.layer.mask,)) is self.its_mask

    def run(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        features = self.layer.mask.shape[0]
        if x.dim() == 0 or x.shape[-1] != features:  # zuko would leave what its mask does not name unwritten
            raise ValueError(f"compat.zuko: x must be [..., {features}], got {list(x.shape)}")
        x, context = expanded(x, self.context)
        if self._has_its_mask():
            alone = run_alone(self.layer, x, context, inverse, part.coupling)
            if alone is not None:
                return alone
        kept, mapped = self.split(x)
        univariate = _map_of(self.layer, mapped)
        params = _params(self.layer, kept, context)
        if torch.compiler.is_compiling():  # which cannot read off the mask how many features it maps
            torch._check(mapped.shape[-1] == params.shape[-2])
        if univariate is None or mixed(mapped, params):
            return self.theirs(x, inverse)
        mapped, ladj = univariate(mapped, params, inverse)
        return self.merge(kept, mapped, x.shape), ladj


# ---- element by element ----


class DependentTransform(_Fused, transforms.DependentTransform):
    """`zuko.transforms.DependentTransform` of the univariate map of an elementwise layer and a context."""

    def __init__(self, layer: Any, context: Tensor | None) -> None:
        Transform.__init__(self)
        self.layer, self.context, self.reinterpreted = layer, context, 1

    @functools.cached_property
    def base(self) -> Transform:
        plain: Any = ElementWiseTransform.forward(self.layer, self.context)
        return plain.base

    @property
    def domain(self) -> constraints.Constraint:
        """zuko asks in every call, and to make the base takes a pass of the network."""
        return constraints.real_vector if isinstance(univariate_of(self.layer), Map) else super().domain

    @property
    def codomain(self) -> constraints.Constraint:
        return constraints.real_vector if isinstance(univariate_of(self.layer), Map) else super().codomain

    def run(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        alone = run_alone(self.layer, *expanded(x, self.context), inverse, part.elementwise)
        if alone is not None:
            return alone
        layer, P, univariate = self.layer, self.layer.total, _map_of(self.layer, x)
        if univariate is None:
            return self.theirs(x, inverse)
        if self.context is None:
            params = own_params(layer)
        else:
            params = layer.hyper(self.context)
            params = params.unflatten(-1, (params.shape[-1] // P, P))
        if x.shape[-1] != params.shape[-2] or mixed(x, params):
            plain: Any = ElementWiseTransform.forward(layer, self.context)
            return (plain.inv if inverse else plain).call_and_ladj(x)
        lead = torch.broadcast_shapes(x.shape[:-1], params.shape[:-2])
        x, params = x.expand(*lead, x.shape[-1]), params.expand(*lead, *params.shape[-2:])
        return univariate(x, params, inverse)
