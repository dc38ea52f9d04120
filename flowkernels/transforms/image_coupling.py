"""Coupling on images and signals: part of the channels, or of the pixels, chooses the map of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels._arguments import count
from flowkernels._arguments import event_dims as event_dims_of
from flowkernels.nets.common import channels_last
from flowkernels.ops.univariate import Univariate, n_params_of

from .base import Transform, check_images
from .coupling import as_conditioner
from .split import FeatureSplit, as_flags
from .univariate import check_univariate


def checkerboard(channels: int, height: int, width: int, phase: int = 0) -> Tensor:
    """The mask ``[C, H, W]`` that is True where row + column + ``phase`` is odd, in every channel.

    Example:
        >>> from flowkernels.transforms import checkerboard
        >>> checkerboard(1, 2, 4).int()
        tensor([[[0, 1, 0, 1],
                 [1, 0, 1, 0]]], dtype=torch.int32)
    """
    for name, value in (("channels", channels), ("height", height), ("width", width)):
        count("transforms.checkerboard", name, value)
    odd = (torch.arange(height)[:, None] + torch.arange(width) + phase) % 2 == 1
    return odd.expand(channels, height, width)


class ImageCoupling(Transform):
    r"""Transforms some channels or pixels one by one, with parameters that a network computes from the others.

    A mask of channels splits ``x [..., C, H, W]`` as `Coupling` splits features: with :math:`a` the channels where it
    is 0 and :math:`b` those where it is 1,

    .. math:: y_a = x_a, \qquad y_b = f(x_b; \mathrm{conditioner}(x_a, \mathrm{context}))

    A mask m of pixels (`checkerboard`) keeps the image together:

    .. math:: y = (1 - m)\,x + m\,f(x; \mathrm{conditioner}((1 - m)\,x, \mathrm{context}))

    and ``ladj`` is the sum of :math:`\log|f'|` over what is transformed, in nats. Both directions cost one pass of the
    conditioner. With 2 event dims the same of signals ``[..., C, L]``, whose pixels are samples. ``x`` in the dtype of
    the conditioner's weights, or under autocast; ``y`` the same, ``ladj [...]``.

    Args:
        mask: C flags, True or 1 where the channel is transformed; or ``[C, H, W]`` (``[C, L]``), where the pixel is.
            Halves of the channels are the cheap ones.
        conditioner: a module, called as ``conditioner(images, context)``, that returns ``[..., P * n, H, W]`` for n
            transformed channels (C for a mask of pixels): the first parameter of all of them, then the second, and so
            on; or a function ``(in_channels, out_channels) -> module``.
        univariate: the map of one element and its P parameters, e.g. `Affine`.
        event_dims: 2 for signals, 3 for images.

    Raises:
        ValueError: ``mask`` is neither ``[C]`` nor ``[C, H, W]`` (``[C, L]``) of 0 and 1 with at least one 1; ``x`` is
            not of that shape; the conditioner returns another number of channels; ``event_dims`` is neither 2 nor 3.
        TypeError: ``conditioner`` is neither a module nor a function that returns one.

    Reference:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, ICLR 2017, arXiv:1605.08803, sections 3.4, 3.5.

    Example:
        >>> import torch
        >>> from flowkernels.nets import ConvNet
        >>> from flowkernels.transforms import Affine, ImageCoupling, checkerboard
        >>> halves = ImageCoupling([0, 0, 1, 1], ConvNet, Affine("tanh"))
        >>> pixels = ImageCoupling(checkerboard(4, 8, 8), ConvNet, Affine("tanh"))
        >>> x = torch.randn(5, 4, 8, 8)
        >>> y, ladj = pixels(halves(x)[0])
        >>> y.shape, ladj.shape
        (torch.Size([5, 4, 8, 8]), torch.Size([5]))
    """

    mask: Tensor

    def __init__(
        self,
        mask: Sequence[bool] | Sequence[int] | Tensor,
        conditioner: nn.Module | Callable[[int, int], nn.Module],
        univariate: Univariate,
        event_dims: int = 3,
    ) -> None:
        super().__init__()
        self.event_dims = event_dims_of("transforms.ImageCoupling", "event_dims", event_dims, (2, 3))
        flags = as_flags("ImageCoupling", mask)
        # A tensor on meta has no values to check.
        is_mask = flags.is_meta or (bool(((flags == 0) | (flags == 1)).all()) and bool(flags.any()))
        if flags.dim() not in (1, self.event_dims) or not is_mask:
            given = f"{list(flags.shape)} with {flags.unique().tolist()}"
            raise ValueError(
                f"transforms.ImageCoupling: mask must be [C] or [C, {SIDES[self.event_dims]}] of 0 and 1, with at "
                f"least one 1, got {given}"
            )
        check_univariate("transforms.ImageCoupling", univariate)
        self.univariate = univariate
        self.channels = flags.shape[0]
        if flags.dim() == 1:
            self.split = FeatureSplit(flags, event_dims=self.event_dims, name="ImageCoupling")
            n_in, self.n_transformed = self.split.n_identity, self.split.n_transformed
        else:
            self.split = None
            # Stored with the weights: the same weights under another mask are another density, silently.
            self.register_buffer("mask", torch.as_tensor(mask).bool().contiguous())
            n_in = self.n_transformed = self.channels
        n_params = self.n_transformed * n_params_of(univariate)
        self.conditioner = as_conditioner("transforms.ImageCoupling", conditioner, n_in, n_params)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(x, context, inverse=False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(y, context, inverse=True)

    def _couple(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        dims = self.event_dims
        check_images("transforms.ImageCoupling", x, self.channels, dims)
        if self.split is not None:
            identity, transformed = self.split.split(x)
            params, part = self._params(identity, context), self.split.part
            univariate: Any = self.univariate
            if part is not None and getattr(univariate, "takes_part", False):  # the whole image in the same pass
                return univariate(x, params, inverse, dims, part=part)
            transformed, ladj = self.univariate(transformed, params, inverse, dims)
            return self.split.merge(identity, transformed), ladj
        if x.shape[-dims:] != self.mask.shape:
            raise ValueError(
                f"transforms.ImageCoupling: x must be [..., {str(list(self.mask.shape))[1:]}, got {list(x.shape)}"
            )
        return self.univariate(x, self._params(x.masked_fill(self.mask, 0), context), inverse, dims, self.mask)

    def _params(self, images: Tensor, context: Tensor | None) -> Tensor:
        params = self.conditioner(channels_last(images) if self.event_dims == 3 else images, context).contiguous()
        n_params = n_params_of(self.univariate)
        return by_element("transforms.ImageCoupling", params, self.n_transformed, n_params, self.event_dims)

    def extra_repr(self) -> str:
        mask = "" if self.split is not None else f"mask={tuple(self.mask.shape)}"
        univariate = "" if isinstance(self.univariate, nn.Module) else f"univariate={self.univariate}"
        return ", ".join(part for part in (mask, univariate, f"event_dims={self.event_dims}") if part)


SIDES = {2: "L", 3: "H, W"}


def by_element(name: str, params: Tensor, channels: int, n_params: int, event_dims: int) -> Tensor:
    """A conditioner's output ``[..., P * n, H, W]`` (``[..., P * n, L]``) as ``[..., n, H, W, P]``: a view of it."""
    if params.dim() < event_dims or params.shape[-event_dims] != channels * n_params:
        expected, given = f"[..., {channels * n_params}, {SIDES[event_dims]}]", list(params.shape)
        raise ValueError(f"{name}: conditioner must return {expected}, got {given}")
    return params.unflatten(-event_dims, (n_params, channels)).movedim(-event_dims - 1, -1)
