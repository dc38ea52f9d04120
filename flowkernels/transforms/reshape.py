"""Pixels, or samples of a signal, traded for channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from flowkernels._arguments import check_tensor, count
from flowkernels._arguments import event_dims as event_dims_of

from .base import Transform, zero_ladj
from .composite import Inverse

_WORDS = {2: ("signals", "L"), 3: ("images", "H, W")}


class Squeeze(Transform):
    r"""Blocks of pixels, or of samples, become channels: ``[..., C, H, W]`` → ``[..., 4C, H/2, W/2]``.

    :math:`y_{4c + 2i + j,\,h,\,w} = x_{c,\,2h + i,\,2w + j}` for i, j in {0, 1}: the four pixels of a channel stay
    together, row by row; of another factor f its f² pixels. Signals, with 2 event dims, go from ``[..., C, L]`` to
    ``[..., fC, L/f]``: :math:`y_{fc + i,\,l} = x_{c,\,fl + i}`. ``x`` of any dtype; ``ladj [...]`` is zero nats.
    ``context`` is ignored.

    Args:
        factor: f, the side of a block.
        event_dims: 2 for signals, 3 for images.

    Raises:
        ValueError: ``x`` is not ``[..., C, H, W]``, or ``[..., C, L]``, with sides that are multiples of ``factor``; a
            setting is none of these.

    Reference:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, ICLR 2017, arXiv:1605.08803, section 3.6; of
        signals: Prenger, Valle, Catanzaro: WaveGlow, ICASSP 2019, arXiv:1811.00002.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import Squeeze
        >>> Squeeze()(torch.arange(16.0).view(1, 4, 4))[0].flatten(-2)
        tensor([[ 0.,  2.,  8., 10.],
                [ 1.,  3.,  9., 11.],
                [ 4.,  6., 12., 14.],
                [ 5.,  7., 13., 15.]])
        >>> Squeeze(event_dims=2)(torch.arange(6.0).view(1, 6))[0]
        tensor([[0., 2., 4.],
                [1., 3., 5.]])
    """

    rearranges = True

    def __init__(self, factor: int = 2, event_dims: int = 3) -> None:
        super().__init__()
        self.factor = count("transforms.Squeeze", "factor", factor)
        self.event_dims = event_dims_of("transforms.Squeeze", "event_dims", event_dims, (2, 3))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_tensor("transforms.Squeeze", "x", x)
        f, given = self.factor, x.shape[-self.event_dims :]
        shape, lead = self.latent_shape(given), x.shape[: -self.event_dims]
        if self.event_dims == 2:
            y = x.reshape(*lead, given[0], shape[1], f).transpose(-1, -2).reshape(*lead, *shape)
        else:  # torch gives an empty batch back as it came
            y = F.pixel_unshuffle(x, f) if x.numel() > 0 else x.reshape(*lead, *shape)
        return y, zero_ladj(x, self.event_dims)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_tensor("transforms.Squeeze", "y", y)
        f, given = self.factor, y.shape[-self.event_dims :]
        shape, lead = self.data_shape(given), y.shape[: -self.event_dims]
        if self.event_dims == 2:
            x = y.reshape(*lead, shape[0], f, given[1]).transpose(-1, -2).reshape(*lead, *shape)
        else:
            x = F.pixel_shuffle(y, f) if y.numel() > 0 else y.reshape(*lead, *shape)
        return x, zero_ladj(y, self.event_dims)

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        f = self.factor
        if len(shape) != self.event_dims or any(side % f for side in shape[1:]):
            what, names = _WORDS[self.event_dims]
            sides = names.replace(",", " and")
            kind = f"even {sides}" if f == 2 else f"{sides} divisible by {f}"
            raise ValueError(f"transforms.Squeeze: {what} must be [C, {names}] with {kind}, got {list(shape)}")
        return (shape[0] * self._gain, *(side // f for side in shape[1:]))

    def data_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if len(shape) != self.event_dims or shape[0] % self._gain:
            what, names = _WORDS[self.event_dims]
            raise ValueError(f"transforms.Squeeze: squeezed {what} must be [{self._gain}C, {names}], got {list(shape)}")
        return (shape[0] // self._gain, *(side * self.factor for side in shape[1:]))

    @property
    def _gain(self) -> int:
        """How many channels become of one."""
        return self.factor ** (self.event_dims - 1)

    def extra_repr(self) -> str:
        return f"factor={self.factor}, event_dims={self.event_dims}"


class Unsqueeze(Inverse):
    r"""The inverse of `Squeeze`: ``[..., 4C, H, W]`` → ``[..., C, 2H, 2W]``.

    :math:`y_{c,\,2h + i,\,2w + j} = x_{4c + 2i + j,\,h,\,w}`; ``x`` of any dtype, ``ladj [...]`` is zero nats.

    Args:
        factor, event_dims: as of `Squeeze`.

    Raises:
        ValueError: ``x`` is not ``[..., 4C, H, W]``, or as the arguments say.

    Reference:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, ICLR 2017, arXiv:1605.08803, section 3.6.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import Unsqueeze
        >>> Unsqueeze()(torch.arange(4.0).view(4, 1, 1))[0]
        tensor([[[0., 1.],
                 [2., 3.]]])
    """

    def __init__(self, factor: int = 2, event_dims: int = 3) -> None:
        super().__init__(Squeeze(factor, event_dims))
