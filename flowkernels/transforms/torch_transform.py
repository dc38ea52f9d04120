"""A transform as a torch.distributions.Transform."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import Transform as Base

from flowkernels._arguments import check_tensor

if TYPE_CHECKING:
    from .base import Transform


class TorchTransform(Base):
    """What `Transform.as_torch` returns, where it is documented: data → latent, ``inv`` the other way.

    ``log_abs_det_jacobian(x, y)`` of the last x and y, in either direction, is what that call found; of others the
    transform runs once. Weights may move between calls.

    Example:
        >>> import torch
        >>> from flowkernels.flows import NSF
        >>> t = NSF(2).transform.as_torch()
        >>> x = torch.randn(3, 2)
        >>> t.log_abs_det_jacobian(x, t(x)).shape, t.inv(t(x)).shape
        (torch.Size([3]), torch.Size([3, 2]))
    """

    bijective = True

    def __init__(
        self, transform: Transform, context: Tensor | None, shape: Sequence[int] | None, cache_size: int
    ) -> None:
        super().__init__(cache_size=cache_size)
        self.transform, self.context, self.shape = transform, context, None if shape is None else tuple(shape)
        self._dims = (1, 1) if shape is None else (len(shape), len(transform.latent_shape(shape)))
        self._last: tuple[Any, Any, Tensor] | None = None

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:  # type: ignore[override]
        return _whole(self.transform.domain, self._dims[0], self._ladj)

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        return _whole(self.transform.codomain, self._dims[1], self._ladj_back)

    def with_cache(self, cache_size: int = 1) -> TorchTransform:
        if cache_size == self._cache_size:
            return self
        return TorchTransform(self.transform, self.context, self.shape, cache_size)

    def _call(self, x: Tensor) -> Tensor:
        y, ladj = self.transform(self._per_context(x, self._dims[0]), self.context)
        self._keep(x, y, ladj)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, ladj = self.transform.inverse(self._per_context(y, self._dims[1]), self.context)
        self._keep(x, y, -ladj)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        if self._last is not None and self._last[0]() is x and self._last[1]() is y:
            return self._last[2]
        return self._ladj(x)

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        return self._moved(shape, self._dims[0], self.transform.latent_shape)

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        return self._moved(shape, self._dims[1], self.transform.data_shape)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_last": None}

    def __repr__(self) -> str:
        return f"TorchTransform({type(self.transform).__name__})"

    def _moved(self, shape: Sequence[int], dims: int, of_event: Any) -> torch.Size:
        if len(shape) < dims:
            raise ValueError(f"transforms.TorchTransform: shape must have at least {dims} dims, got {list(shape)}")
        cut = len(shape) - dims
        lead = () if self.context is None else self.context.shape[:-1]
        return torch.broadcast_shapes(tuple(shape[:cut]), lead) + tuple(of_event(tuple(shape[cut:])))

    def _per_context(self, x: Tensor, dims: int) -> Tensor:
        """``x``, repeated where the context has more rows: layers broadcast the context to x, not x to the context."""
        check_tensor("transforms.TorchTransform", "x", x)
        if self.context is None or x.dim() < dims:
            return x
        cut = x.dim() - dims
        return x.expand(torch.broadcast_shapes(x.shape[:cut], self.context.shape[:-1]) + x.shape[cut:])

    def _ladj(self, x: Tensor) -> Tensor:
        return self.transform(self._per_context(x, self._dims[0]), self.context)[1]

    def _ladj_back(self, y: Tensor) -> Tensor:
        return self.transform.inverse(self._per_context(y, self._dims[1]), self.context)[1]

    def _keep(self, x: Tensor, y: Tensor, ladj: Tensor) -> None:
        """The ladj of this x and y, as long as both live: a graph is not held longer than its caller holds it."""
        self._last = weakref.ref(x, self._forget), weakref.ref(y, self._forget), ladj

    def _forget(self, dead: Any) -> None:
        if self._last is not None and (self._last[0] is dead or self._last[1] is dead):
            self._last = None


class _Tried(constraints.Constraint):
    """What a direction takes, known by trying: elsewhere its ladj is -inf, or NaN."""

    def __init__(self, event_dim: int, ladj: Any) -> None:
        self.event_dim = event_dim  # type: ignore[assignment]
        self._ladj = ladj

    def check(self, value: Tensor) -> Tensor:
        with torch.no_grad():
            return self._ladj(value) > -torch.inf


def _whole(each: constraints.Constraint | None, dims: int, ladj: Any) -> constraints.Constraint:
    """A constraint of whole x, of what holds for each number of them."""
    if each is None:
        return _Tried(dims, ladj)
    return constraints.real_vector if each is constraints.real and dims == 1 else constraints.independent(each, dims)
