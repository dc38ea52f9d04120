"""From the unit interval to the line."""

from __future__ import annotations

import math
import numbers

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from flowkernels._arguments import check_tensor
from flowkernels._arguments import event_dims as event_dims_of

from .base import Transform


class Logit(Transform):
    r"""The logit of numbers in [0, 1], which are first drawn in from its ends.

    .. math:: s = \alpha + (\beta - \alpha)\,x, \qquad y = \log\frac{s}{1 - s}, \qquad
        \mathrm{ladj} = \sum_D \left[\log(\beta - \alpha) - \log s - \log(1 - s)\right]

    in nats. At x with :math:`s \le 0` or :math:`s \ge 1`, outside of the `domain`, ladj is ``-inf``, and so is the
    log_prob of a flow; y is 0 there, so that no gradient becomes NaN. As the first layer of a flow on pixels scaled to
    [0, 1] it makes them unbounded, and its ladj makes the flow's log_prob a density of those pixels. ``inverse`` maps
    the whole line, onto :math:`(-\alpha, 1 - \alpha)/(\beta - \alpha)`: samples may lie a little outside [0, 1].
    ``x [..., D]``, or signals or images with 2 or 3 event dims, of any floating-point dtype; ``ladj [...]``.
    ``context`` is ignored.

    Args:
        alpha: what 0 becomes.
        upper: :math:`\beta`, what 1 becomes: 1 - alpha by default; 1 is the formula of the paper, which is infinite at
            x = 1.
        event_dims: 1 for features, 2 for signals, 3 for images.

    Raises:
        ValueError: 0 <= alpha < upper <= 1 does not hold; ``event_dims`` is not 1, 2 or 3.

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
        ends = (alpha, 1 - alpha if upper is None and isinstance(alpha, numbers.Real) else upper)
        if not all(isinstance(end, numbers.Real) for end in ends) or not 0 <= ends[0] < ends[1] <= 1:  # type: ignore[operator]
            given = f"{ends[0]!r:.60} and {ends[1]!r:.60}"
            raise ValueError(f"transforms.Logit: alpha and upper must be 0 <= alpha < upper <= 1, got {given}")
        self.alpha, self.upper = (float(end) for end in ends)  # type: ignore[arg-type]
        self.event_dims = event_dims_of("transforms.Logit", "event_dims", event_dims, (1, 2, 3))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _check_floating("x", x)
        s = self.alpha + (self.upper - self.alpha) * x.to(torch.promote_types(x.dtype, torch.float32))
        outside = (s <= 0) | (s >= 1)  # NaN is neither, and stays
        y = torch.logit(s.masked_fill(outside, 0.5))
        return y.to(x.dtype), self._ladj(y).masked_fill(outside.flatten(-self.event_dims).any(-1), -math.inf)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _check_floating("y", y)
        wide = y.to(torch.promote_types(y.dtype, torch.float32))
        x = (torch.sigmoid(wide) - self.alpha) / (self.upper - self.alpha)
        return x.to(y.dtype), -self._ladj(wide)

    def _ladj(self, y: Tensor) -> Tensor:
        # log s + log(1 - s) of s = sigmoid(y), from y: nothing cancels where s is near 0 or 1.
        slopes = math.log(self.upper - self.alpha) - F.logsigmoid(y) - F.logsigmoid(-y)
        return slopes.sum(tuple(range(-self.event_dims, 0)))

    @property
    def domain(self) -> constraints.Constraint:
        size = self.upper - self.alpha
        return constraints.interval(-self.alpha / size, (1 - self.alpha) / size)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, upper={self.upper}, event_dims={self.event_dims}"


def _check_floating(name: str, x: Tensor) -> None:
    """Whole numbers would come back rounded."""
    check_tensor("transforms.Logit", name, x)
    if not x.is_floating_point():
        raise TypeError(f"transforms.Logit: {name} must be of a floating-point dtype, got {x.dtype}")
