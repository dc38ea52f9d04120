"""A scale of its own for every feature."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowkernels import ops
from flowkernels._arguments import check_tensor, widths

from .base import Transform


class DiagonalScale(Transform):
    r"""Multiplies every feature by a learned positive number, as the last layer of NICE does.

    .. math:: y_d = e^{s_d}\,x_d, \qquad \mathrm{ladj} = \sum_D s_d

    in nats; it says how much a volume-preserving flow cares for each latent feature. ``x [..., *shape]`` of any
    floating-point dtype, ``y`` in the promoted dtype of ``x`` and the weights, ``ladj [...]``. ``context`` is ignored.

    Args:
        shape: D, or the shape of one x, e.g. ``(C, H, W)``. The logarithms start at zero: the identity.

    Raises:
        ValueError: ``x`` is not ``[..., *shape]``.

    Reference:
        Dinh, Krueger, Bengio: NICE: Non-linear Independent Components Estimation, ICLR workshop 2015,
        arXiv:1410.8516, section 3.3.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import DiagonalScale
        >>> DiagonalScale(2)(torch.tensor([3.0, 4.0]))[0].tolist()
        [3.0, 4.0]
    """

    def __init__(self, shape: int | Sequence[int]) -> None:
        super().__init__()
        shape = widths("transforms.DiagonalScale", "shape", shape, layers=1)
        self.log_scale = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check(x)
        return self._of_features(x, False) or (x * torch.exp(self.log_scale), self._ladj(x))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check(y)
        return self._of_features(y, True) or (y * torch.exp(-self.log_scale), -self._ladj(y))

    def _of_features(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
        """By the op that flows of features run whole, so that a layer alone has the same bits."""
        if self.log_scale.dim() != 1 or not x.is_floating_point():
            return None
        return ops.actnorm(x, self.log_scale, torch.zeros_like(self.log_scale), inverse=inverse)

    def _ladj(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(torch.promote_types(x.dtype, self.log_scale.dtype), torch.float32)
        return self.log_scale.sum(dtype=dtype).expand(x.shape[: x.dim() - self.log_scale.dim()])

    def _check(self, x: Tensor) -> None:
        check_tensor("transforms.DiagonalScale", "x", x)
        shape = self.log_scale.shape
        if x.dim() < len(shape) or x.shape[x.dim() - len(shape) :] != shape:
            expected = ", ".join(str(n) for n in shape)
            raise ValueError(f"transforms.DiagonalScale: x must be [..., {expected}], got {list(x.shape)}")

    def extra_repr(self) -> str:
        return f"shape={tuple(self.log_scale.shape)}"
