"""Pyro's rational splines, of either order, and affine autoregressive layers on the fused kernels."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from flowkernels.compat.engine.patch import FastMethods, or_theirs, original_class, swap
from flowkernels.compat.layer import Layer
from flowkernels.compat.reading.operands import mixed
from flowkernels.ops._checks import expands
from flowkernels.ops.univariate import Map

from . import describe


def _elementwise(layer: Any, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """x ``[..., D]``, params ``[..., D, P]`` → y and log-slopes, both like x."""
    params = params.expand(*x.shape, params.shape[-1])
    y, ladj = describe.spline(layer)(x.unsqueeze(-1), params.unsqueeze(-2), inverse)
    return y.squeeze(-1), ladj


def _fits(x: Tensor, params: Tensor) -> bool:
    """Whether x has an element for each spline, of their dtype; otherwise Pyro says what is wrong with it."""
    return expands(params.shape[:-1], x.shape) and not mixed(x, params)


# ---- splines alone and of a context ----


class Spline(FastMethods):
    """The methods of an accelerated Spline."""

    @or_theirs
    def spline_op(self: Any, x: Tensor, inverse: bool = False) -> Any:
        parts = [self.unnormalized_widths, self.unnormalized_heights, self.unnormalized_derivatives]
        if self.order == "linear":
            parts.append(self.unnormalized_lambdas)
        params = torch.cat(parts, dim=-1)
        return _elementwise(self, x, params, inverse) if _fits(x, params) else None


class ConditionalSpline(FastMethods):
    """The methods of an accelerated ConditionalSpline; `Conditioned` is a transform that holds on to it."""

    def condition(self, context: Tensor) -> Any:
        from .transforms import Conditioned

        return Conditioned(self, context)


def conditioned(layer: Any, context: Tensor, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """The spline of a ConditionalSpline at x."""
    params = _params(layer, layer.nn(context))
    if not _fits(x, params):
        return original_class(layer).condition(layer, context).spline_op(x, inverse=inverse)
    return _elementwise(layer, x, params, inverse)


def _params(layer: Any, parts: tuple[Tensor, ...]) -> Tensor:
    """What a network returns as one tensor ``[..., D, P]``: parts of autoregressive ones are ``[..., K, D]``."""
    if parts[0].shape[-1] == layer.input_dim:
        return torch.cat(parts, dim=-2).mT
    return torch.cat([p.unflatten(-1, (layer.input_dim, p.shape[-1] // layer.input_dim)) for p in parts], dim=-1)


class Conditional(FastMethods):
    """The methods of accelerated conditional layers: what they return is accelerated."""

    parts: ClassVar[dict[str, type[FastMethods]]]  # static

    def condition(self: Any, context: Tensor) -> Any:
        transform = original_class(self).condition(self, context)
        if not getattr(transform, "stable", False):  # of an affine layer, for whose map there is no kernel
            for path, layer in self._flowkernels_layer.parts.items():
                swap(transform.get_submodule(path), layer)
        return transform


# ---- autoregressive ----


def _fused(net: Any, univariate: Map, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """y of an autoregressive layer as one op, or x in one sweep, and ladj; None where its parts are called."""
    found = describe.masked_net(net, x, univariate)
    return None if found is None else Layer(univariate, net).run(x, found, inverse)


class SplineAutoregressive(FastMethods):
    """The methods of an accelerated SplineAutoregressive; its log-slopes are kept summed, as one number a row."""

    def _call(self: Any, x: Tensor) -> Tensor:
        fused = _fused(self.arn, describe.spline(self.spline), x, False)
        y, slopes = conditioned(self.spline, x, x, False) if fused is None else (fused[0], fused[1].unsqueeze(-1))
        self._cache_log_detJ = slopes
        return y

    def _inverse(self: Any, y: Tensor) -> Tensor:
        fused = _fused(self.arn, describe.spline(self.spline), y, True)
        if fused is not None:
            self._cache_log_detJ = -fused[1].unsqueeze(-1)
            return fused[0]
        if y.dim() == 0 or y.shape[-1] != self.spline.input_dim:  # no pass of the network would say so
            raise ValueError(f"compat.pyro: y must be [..., {self.spline.input_dim}], got {list(y.shape)}")
        x = slopes = torch.zeros_like(y)
        for _ in range(y.shape[-1]):
            x, slopes = conditioned(self.spline, x, y, True)
        self._cache_log_detJ = -slopes
        return x


class ConditionalSplineAutoregressive(Conditional):
    """Those of an accelerated ConditionalSplineAutoregressive."""

    parts: ClassVar = {"spline": ConditionalSpline, "": SplineAutoregressive}


class AffineAutoregressive(FastMethods):
    """The methods of an accelerated AffineAutoregressive; of an inverse, log-scales are kept summed, one number a row.

    Forward is Pyro's: on small batches the layer as one op took a quarter longer, on large ones a tenth less.
    """

    @or_theirs
    def _inverse(self: Any, y: Tensor) -> Any:
        solved = _fused(self.arn, describe.affine(self), y, True)
        if solved is None:
            return None
        self._cached_log_scale = -solved[1].unsqueeze(-1)
        return solved[0]


class ConditionalAffineAutoregressive(Conditional):
    """Those of an accelerated ConditionalAffineAutoregressive."""

    parts: ClassVar = {"": AffineAutoregressive}


# ---- polynomials ----


def _polynomial(layer: Any, x: Tensor, seen: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """The polynomials of x by the parameters that the network returns of what is seen; None where Pyro is to say no."""
    univariate = describe.polynomial(layer)
    params = layer.arn(seen).view(*x.shape[:-1], univariate.n_params, layer.input_dim).mT
    return None if mixed(x, params) else univariate(x, params, inverse)


class Polynomial(FastMethods):
    """The methods of an accelerated Polynomial."""

    @or_theirs
    def _call(self: Any, x: Tensor) -> Any:
        if x.dim() == 0 or x.shape[-1] != self.input_dim or x.dtype is not self.c.dtype:
            return None
        if not describe.has_its_powers(self):
            return None
        fused = _fused(self.arn, describe.polynomial(self), x, False)
        if fused is None:
            fused = _polynomial(self, x, x, False)
        if fused is None:
            return None
        self._cached_logDetJ = fused[1]
        return fused[0] - describe.SLOPE * x + self.c

    def _inverse(self: Any, y: Tensor) -> Tensor:
        if y.dim() == 0 or y.shape[-1] != self.input_dim:  # no pass of the network would say so
            raise ValueError(f"compat.pyro: y must be [..., {self.input_dim}], got {list(y.shape)}")
        if not describe.has_its_powers(self):
            return original_class(self)._inverse(self, y)
        y = y - self.c
        x, ladj = _inverted(self, y)
        if x.dtype is torch.float64:  # which alone can tell
            x, ladj = _inverted(self, y + describe.SLOPE * x)
        self._cached_logDetJ = -ladj
        return x


def _inverted(layer: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    """x of polynomials that have the slope that Pyro's log-determinant counts and its y lacks; and ladj."""
    solved = _fused(layer.arn, describe.polynomial(layer), y, True)
    if solved is not None:
        return solved
    x = ladj = torch.zeros_like(y)
    for _ in range(layer.input_dim):
        found = _polynomial(layer, y, x, True)
        if found is None:
            raise TypeError(f"compat.pyro: y must be in the dtype of the network, got {y.dtype}")
        x, ladj = found
    return x, ladj
