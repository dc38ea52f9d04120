"""Pixels traded for channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from flowkernels._arguments import check_tensor

from .base import Transform, zero_ladj
from .composite import Inverse


class Squeeze(Transform):
    r"""Every 2 x 2 block of pixels becomes 4 channels: ``[..., C, H, W]`` → ``[..., 4C, H/2, W/2]``.

    :math:`y_{4c + 2i + j,\,h,\,w} = x_{c,\,2h + i,\,2w + j}` for i, j in {0, 1}: the four pixels of a channel stay
    together, row by row. ``x`` of any dtype; ``ladj [...]`` is zero nats. ``context`` is ignored.

    Raises:
        ValueError: ``x`` is not ``[..., C, H, W]`` with even H and W.

    Reference:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, ICLR 2017, arXiv:1605.08803, section 3.6.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import Squeeze
        >>> Squeeze()(torch.arange(16.0).view(1, 4, 4))[0].flatten(-2)
        tensor([[ 0.,  2.,  8., 10.],
                [ 1.,  3.,  9., 11.],
                [ 4.,  6., 12., 14.],
                [ 5.,  7., 13., 15.]])
    """

    rearranges = True

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_tensor("transforms.Squeeze", "x", x)
        shape = self.latent_shape(x.shape[-3:])
        # torch gives an empty batch back as it came.
        y = F.pixel_unshuffle(x, 2) if x.numel() > 0 else x.reshape(*x.shape[:-3], *shape)
        return y, zero_ladj(x, 3)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_tensor("transforms.Squeeze", "y", y)
        shape = self.data_shape(y.shape[-3:])
        x = F.pixel_shuffle(y, 2) if y.numel() > 0 else y.reshape(*y.shape[:-3], *shape)
        return x, zero_ladj(y, 3)

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if len(shape) != 3 or shape[1] % 2 or shape[2] % 2:
            raise ValueError(f"transforms.Squeeze: images must be [C, H, W] with even H and W, got {list(shape)}")
        return shape[0] * 4, shape[1] // 2, shape[2] // 2

    def data_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if len(shape) != 3 or shape[0] % 4:
            raise ValueError(f"transforms.Squeeze: squeezed images must be [4C, H, W], got {list(shape)}")
        return shape[0] // 4, shape[1] * 2, shape[2] * 2


class Unsqueeze(Inverse):
    r"""The inverse of `Squeeze`: ``[..., 4C, H, W]`` → ``[..., C, 2H, 2W]``.

    :math:`y_{c,\,2h + i,\,2w + j} = x_{4c + 2i + j,\,h,\,w}`; ``x`` of any dtype, ``ladj [...]`` is zero nats.

    Raises:
        ValueError: ``x`` is not ``[..., 4C, H, W]``.

    Reference:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, ICLR 2017, arXiv:1605.08803, section 3.6.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import Unsqueeze
        >>> Unsqueeze()(torch.arange(4.0).view(4, 1, 1))[0]
        tensor([[[0., 1.],
                 [2., 3.]]])
    """

    def __init__(self) -> None:
        super().__init__(Squeeze())
