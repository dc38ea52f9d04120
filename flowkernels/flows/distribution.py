"""A flow as a torch.distributions.Distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

if TYPE_CHECKING:
    from .flow import Flow


class FlowDistribution(Distribution):
    """What `Flow.as_distribution` returns; the context is embedded anew at every call, as the weights may have moved.

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
        """Every real vector, or image."""
        dims = len(self.event_shape)
        return constraints.real_vector if dims == 1 else constraints.independent(constraints.real, dims)

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> FlowDistribution:
        """The same distribution, with its batch dims broadcast to ``batch_shape``."""
        shape = torch.Size(batch_shape)
        if torch.broadcast_shapes(self.batch_shape, shape) != shape:
            raise ValueError(
                f"flows.FlowDistribution: batch_shape must extend {list(self.batch_shape)}, got {list(shape)}"
            )
        new = FlowDistribution.__new__(FlowDistribution)
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

    def _embedded(self) -> Tensor | None:
        embedded = self.flow.embed(self.context)
        return None if embedded is None else embedded.expand(*self.batch_shape, embedded.shape[-1])
