"""Rows of an image, each mapped given the rows before it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowkernels._arguments import check_tensor, choice, count
from flowkernels.nets import RowConvNet
from flowkernels.ops.univariate import Univariate, n_params_of

from .base import Transform, check_images
from .coupling import as_conditioner
from .univariate import check_univariate

_NAME = "transforms.RowAutoregressive"
DIRECTIONS = ("down", "up", "right", "left")


class RowAutoregressive(Transform):
    r"""Maps every pixel, with parameters that a network computes from a few rows above it (a masked convolution).

    .. math:: y_i = f(x_i; \mathrm{conditioner}(x_{i-k}, \dots, x_{i-1}, \mathrm{context}))

    for row i of ``x [..., C, H, W]``, and ``ladj`` is the sum of :math:`\log|f'|` over all pixels, in nats. ``forward``
    (data → latent) is one pass. ``inverse`` goes row by row: H steps, each of which computes one row from k rows.
    With another ``direction`` the image is turned before and behind: ``"up"`` begins at the last row, ``"right"`` at
    the first column and ``"left"`` at the last one. ``x`` in the dtype of the conditioner's weights, or under autocast;
    ``y`` the same, ``ladj [...]``.

    Args:
        channels: C.
        conditioner: a `flowkernels.nets.RowConvNet` that returns P C channels, the first parameter of all channels,
            then the second, and so on; or a function ``(in_channels, out_channels) -> module`` that makes one.
        univariate: the map of one number and its P parameters, e.g. `Affine`.
        direction: ``"down"``, ``"up"``, ``"right"`` or ``"left"``: the way that rows, or columns, are gone through.

    Raises:
        ValueError: an argument breaks its contract; the conditioner has other channels; ``x`` does not have C.
        TypeError: ``conditioner`` is no `flowkernels.nets.RowConvNet`, nor a function to one.

    Reference:
        Ma, Kong, Zhang, Hovy: MaCow: Masked Convolutional Generative Flow, NeurIPS 2019, arXiv:1902.04208, section 3.1.

    Example:
        >>> import torch
        >>> from flowkernels.nets import RowConvNet
        >>> from flowkernels.transforms import Affine, RowAutoregressive
        >>> layer, x = RowAutoregressive(3, RowConvNet, Affine("sigmoid"), "left"), torch.randn(5, 3, 8, 8)
        >>> y, ladj = layer(x)
        >>> torch.allclose(layer.inverse(y)[0], x, atol=1e-5), ladj.shape
        (True, torch.Size([5]))
    """

    def __init__(
        self,
        channels: int,
        conditioner: nn.Module | Callable[[int, int], nn.Module],
        univariate: Univariate,
        direction: str = "down",
    ) -> None:
        super().__init__()
        self.channels = count(_NAME, "channels", channels)
        check_univariate(_NAME, univariate)
        self.univariate = univariate
        self.direction = choice(_NAME, "direction", direction, DIRECTIONS)
        n_params = channels * n_params_of(univariate)
        net = as_conditioner(_NAME, conditioner, channels, n_params)
        if not isinstance(net, RowConvNet):
            raise TypeError(f"{_NAME}: conditioner must be a flowkernels.nets.RowConvNet, got {type(net).__name__}")
        if (net.in_channels, net.out_channels) != (channels, n_params):
            given = f"{net.in_channels} to {net.out_channels}"
            raise ValueError(f"{_NAME}: conditioner must be of {channels} to {n_params} channels, got {given}")
        self.conditioner = net

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_images(_NAME, x, self.channels)
        return self.univariate(x, self._params(x, context), False, 3)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_images(_NAME, y, self.channels)
        net, turned = self.conditioner, self._turned(y)
        turned_context = self._given(y, context)
        images, given = net._images(turned, turned_context)
        more, can_step = net.of_context(given), net.can_step
        found, ladj = images[:, :, :0], images.new_zeros(len(images), dtype=torch.promote_types(y.dtype, torch.float32))
        rows: list[Tensor] = []
        for i in range(images.shape[2]):
            of_row = more if more is None or more.shape[2] == 1 else more[:, :, i : i + 1]
            if can_step:
                params = self._by_number(net.row(found, of_row))
            else:  # whatever asks to be called is, in as many passes as there are rows
                x = torch.cat([*rows, torch.zeros_like(images[:, :, i:])], 2).to(y.dtype)
                params = self._by_number(
                    net(x.reshape(turned.shape), turned_context).reshape(len(images), -1, *images.shape[2:])
                )[:, :, i : i + 1]
            row, part = self.univariate(images[:, :, i : i + 1], params, True, 3)
            rows.append(row)
            found, ladj = torch.cat(rows[-net.rows :], 2).to(y.dtype), ladj + part
        x = torch.cat(rows, 2) if rows else images
        return self._back(x.reshape(turned.shape)), ladj.reshape(y.shape[:-3])

    def _params(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self._by_number(self._back(self.conditioner(self._turned(x), self._given(x, context))))

    def _by_number(self, params: Tensor) -> Tensor:
        """The conditioner's output as ``[..., C, H, W, P]``: a view of it."""
        return params.unflatten(-3, (n_params_of(self.univariate), self.channels)).movedim(-4, -1)

    def _given(self, x: Tensor, context: Tensor | None) -> Tensor | None:
        if context is None or self.conditioner.context_dims == 1:
            return context
        check_tensor(_NAME, "context", context)
        expected = [*x.shape[:-3], self.conditioner.context_features, *x.shape[-2:]]
        if list(context.shape) != expected:
            raise ValueError(f"{_NAME}: context must be {expected}, got {list(context.shape)}")
        return self._turned(context)

    def _turned(self, x: Tensor) -> Tensor:
        """The image such that its first row is the first that is found."""
        x = x.mT if self.direction in ("right", "left") else x
        return x.flip(-2) if self.direction in ("up", "left") else x

    def _back(self, x: Tensor) -> Tensor:
        x = x.flip(-2) if self.direction in ("up", "left") else x
        return x.mT if self.direction in ("right", "left") else x

    def extra_repr(self) -> str:
        univariate = "" if isinstance(self.univariate, nn.Module) else f", univariate={self.univariate}"
        return f"{self.channels}, direction={self.direction!r}{univariate}"
