"""From the line into an interval."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowkernels._arguments import check_tensor, positive
from flowkernels._arguments import event_dims as event_dims_of

from .base import Transform


class Softclip(Transform):
    r"""Draws the line into (-B, B), near 0 the identity.

    .. math:: y = \frac{x}{1 + |x/B|}, \qquad \mathrm{ladj} = -2 \sum_D \log(1 + |x/B|)

    in nats. Between layers it keeps what the next one sees in a box, as zuko does between sums of squares. ``inverse``
    maps (-B, B) onto the line; outside it has NaN, in that row alone. ``x [..., D]``, or signals or images with 2 or 3
    event dims, of any floating-point dtype; ``ladj [...]``. ``context`` is ignored.

    Args:
        bound: B.
        event_dims: 1 for features, 2 for signals, 3 for images.

    Raises:
        ValueError: ``bound`` is not a finite number above 0; ``event_dims`` is not 1, 2 or 3.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import Softclip
        >>> clip = Softclip(4.0)
        >>> y, ladj = clip(torch.tensor([-4.0, 0.0, 12.0]))
        >>> y, clip.inverse(y)[0]
        (tensor([-2.,  0.,  3.]), tensor([-4.,  0., 12.]))
    """

    def __init__(self, bound: float = 1.0, event_dims: int = 1) -> None:
        super().__init__()
        self.bound = positive("transforms.Softclip", "bound", bound)
        self.event_dims = event_dims_of("transforms.Softclip", "event_dims", event_dims, (1, 2, 3))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        wide = self._wide("x", x)
        size = (wide / self.bound).abs()
        return (wide / (1 + size)).to(x.dtype), self._sum(-2 * torch.log1p(size))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        wide = self._wide("y", y)
        rest = 1 - (wide / self.bound).abs()
        rest = torch.where(rest > 0, rest, math.nan)
        return (wide / rest).to(y.dtype), self._sum(-2 * torch.log(rest))

    def _wide(self, name: str, x: Tensor) -> Tensor:
        check_tensor("transforms.Softclip", name, x)
        if not x.is_floating_point():  # whole numbers would come back rounded
            raise TypeError(f"transforms.Softclip: {name} must be of a floating-point dtype, got {x.dtype}")
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def _sum(self, terms: Tensor) -> Tensor:
        return terms.sum(tuple(range(-self.event_dims, 0)))

    def extra_repr(self) -> str:
        return f"bound={self.bound}, event_dims={self.event_dims}"
