"""From the unit interval to the line."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Transform, check_event_dims


class Logit(Transform):
    r"""The logit of numbers in [0, 1], which are first drawn in from its ends.

    .. math:: s = \alpha + (\beta - \alpha)\,x, \qquad y = \log\frac{s}{1 - s}, \qquad
        \mathrm{ladj} = \sum_D \left[\log(\beta - \alpha) - \log s - \log(1 - s)\right]

    in nats. As the first layer of a flow on pixels scaled to [0, 1] it makes them unbounded, and its ladj makes the
    flow's log_prob a density of those pixels. ``inverse`` maps the whole line, onto
    :math:`(-\alpha, 1 - \alpha)/(\beta - \alpha)`: samples may lie a little outside [0, 1].
    ``x [..., D]``, or images with 3 event dims, of any floating-point dtype; ``ladj [...]``. ``context`` is ignored.

    Args:
        alpha: what 0 becomes.
        upper: :math:`\beta`, what 1 becomes: 1 - alpha by default; 1 is the formula of the paper, which is infinite at
            x = 1.
        event_dims: 1 for features, 3 for images.

    Raises:
        ValueError: 0 <= alpha < upper <= 1 does not hold; ``event_dims`` is neither 1 nor 3.

    Reference:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, ICLR 2017, arXiv:1605.08803, section 4.1.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import Logit
        >>> y, ladj = Logit(0.05)(torch.tensor([0.0, 0.5, 1.0]))
        >>> y
        tensor([-2.9444,  0.0000,  2.9444])
    """

    def __init__(self, alpha: float = 0.05, upper: float | None = None, event_dims: int = 1) -> None:
        super().__init__()
        self.alpha, self.upper = alpha, 1 - alpha if upper is None else upper
        if not 0 <= self.alpha < self.upper <= 1:
            given = f"{self.alpha} and {self.upper}"
            raise ValueError(f"transforms.Logit: alpha and upper must be 0 <= alpha < upper <= 1, got {given}")
        self.event_dims = check_event_dims("transforms.Logit", event_dims)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        y = torch.logit(self.alpha + (self.upper - self.alpha) * wide)
        return y.to(x.dtype), self._ladj(y)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        wide = y.to(torch.promote_types(y.dtype, torch.float32))
        x = (torch.sigmoid(wide) - self.alpha) / (self.upper - self.alpha)
        return x.to(y.dtype), -self._ladj(wide)

    def _ladj(self, y: Tensor) -> Tensor:
        # log s + log(1 - s) of s = sigmoid(y), from y: nothing cancels where s is near 0 or 1.
        return (math.log(self.upper - self.alpha) + y - 2 * F.logsigmoid(y)).sum(tuple(range(-self.event_dims, 0)))

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, upper={self.upper}, event_dims={self.event_dims}"
