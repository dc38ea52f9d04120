"""A flow as a torch.distributions.Distribution."""

from __future__ import annotations

import functools
import math
import sys
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

if TYPE_CHECKING:
    from .flow import Flow


class FlowDistribution(Distribution):
    """What `Flow.as_distribution` returns; the context is embedded anew at every call, as the weights may have moved.

    Made after Pyro was imported it is one of Pyro's distributions too, for ``pyro.sample`` in models and guides.

    ``sample``, ``rsample`` → ``sample_shape + batch_shape + event_shape``; ``log_prob`` broadcasts over
    ``batch_shape``, in nats. With ``validate_args`` a NaN in the value raises, as everywhere in `torch.distributions`.

    Example:
        >>> from flowkernels.flows import NSF
        >>> NSF(2).as_distribution().expand((3,)).sample((5,)).shape
        torch.Size([5, 3, 2])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  (the base class declares it so)
    has_rsample = True

    def __init__(self, flow: Flow, context: Tensor | None = None, validate_args: bool | None = None) -> None:
        self.flow = flow
        self.context = context
        with torch.no_grad():  # only an embedding knows which of the context's dims are leading ones
            embedded = flow.embed(context)
        batch_shape = torch.Size() if embedded is None else embedded.shape[:-1]
        super().__init__(batch_shape, flow.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        """Where the density is not zero: what the transform takes and the base, behind it, can be.

        A constraint of `torch.distributions` where one says it: every real vector or image, or what a first layer such
        as `flowkernels.transforms.Logit` takes. Elsewhere (a base on a box, say) its ``check`` runs the flow once.
        """
        domain, dims = self.flow.transform.domain, len(self.event_shape)
        if self.flow.base.support is not constraints.real or domain is None:
            return _Support(self)
        if domain is constraints.real and dims == 1:
            return constraints.real_vector
        return constraints.independent(domain, dims)

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> FlowDistribution:
        """The same distribution, with its batch dims broadcast to ``batch_shape``."""
        shape = torch.Size(batch_shape)
        if torch.broadcast_shapes(self.batch_shape, shape) != shape:
            raise ValueError(
                f"flows.FlowDistribution: batch_shape must extend {list(self.batch_shape)}, got {list(shape)}"
            )
        new = type(self).__new__(type(self))
        new.flow, new.context = self.flow, self.context
        Distribution.__init__(new, shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # type: ignore[override]
        embedded = self._embedded()
        shape = torch.Size(sample_shape)
        return self.flow._rsample(shape + self.batch_shape if embedded is None else shape, embedded)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # type: ignore[override]
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        out = self.flow._log_prob(value, self._embedded())
        return out.expand(torch.broadcast_shapes(out.shape, self.batch_shape))

    def __reduce__(self) -> Any:
        return _blank, (), self.__dict__  # by no class's name: the one with Pyro's methods has none to be found by

    def _inside(self, value: Tensor) -> Tensor:
        """Whether the flow takes each value, and its base what becomes of it."""
        with torch.no_grad():
            embedded = self._embedded()
            z, ladj = self.flow._encode(self.flow._per_context(value, embedded), embedded)
            return self.flow.base.support.check(z).all(-1) & (ladj > -math.inf)  # a NaN is neither

    def _embedded(self) -> Tensor | None:
        embedded = self.flow.embed(self.context)
        return None if embedded is None else embedded.expand(*self.batch_shape, embedded.shape[-1])


def distribution_class() -> type[FlowDistribution]:
    """`FlowDistribution`, with the methods that Pyro asks of a distribution where Pyro is in use."""
    module = sys.modules.get("pyro.distributions.torch_distribution")
    return FlowDistribution if module is None else _with(module.TorchDistributionMixin)


@functools.cache
def _with(mixin: type) -> Any:
    body = {"__module__": FlowDistribution.__module__, "__doc__": FlowDistribution.__doc__}
    return types.new_class("FlowDistribution", (FlowDistribution, mixin), exec_body=lambda space: space.update(body))


def _blank() -> FlowDistribution:
    cls = distribution_class()
    return cls.__new__(cls)


class _Support(constraints.Constraint):
    """What a flow takes and its base, behind it, can be; known by trying."""

    def __init__(self, distribution: FlowDistribution) -> None:
        self.event_dim = len(distribution.event_shape)  # type: ignore[assignment]
        self._distribution = distribution

    def check(self, value: Tensor) -> Tensor:
        return self._distribution._inside(value)
