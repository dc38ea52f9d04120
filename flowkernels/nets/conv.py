"""Convolutional conditioners: networks that turn images and the context into images of parameters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels._arguments import count, event_dims, flag, widths

from .common import Activation, as_function, channels_last, check_context, check_dtypes, start_at


class _Images(nn.Module):
    """Any leading dims before ``[C, H, W]``, and the part of the first layer that reads the context."""

    def __init__(self, in_channels: int, out_channels: int, width: int, context: int, context_dims: int) -> None:
        super().__init__()
        name = type(self).__name__
        for argument, value in (("in_channels", in_channels), ("out_channels", out_channels), ("hidden", width)):
            count(f"nets.{name}", argument, value)
        count(f"nets.{name}", "context", context, least=0)
        event_dims(f"nets.{name}", "context_dims", context_dims)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.context_features, self.context_dims = context, context_dims
        # A convolution of [x, c] is one of x and one of c: nothing to concatenate, and features c need no pixels.
        self.context_layer: nn.Module | None = None
        if context and context_dims == 1:
            self.context_layer = nn.Linear(context, width, bias=False)
        elif context:
            self.context_layer = nn.Conv2d(context, width, 3, padding=1, bias=False)

    def _first(self, layer: Callable[[Tensor], Tensor], x: Tensor, context: Tensor | None) -> Tensor:
        """``layer`` of ``x [..., C, H, W]``, with the context's part, as ``[N, width, H, W]``."""
        name = type(self).__name__
        check_dtypes(f"nets.{name}", self.final_layer, self.final_layer._parameters.get("bias"), x, context)  # type: ignore[union-attr]
        if x.dim() < 3 or x.shape[-3] != self.in_channels:
            raise ValueError(f"nets.{name}: x must be [..., {self.in_channels}, H, W], got {list(x.shape)}")
        lead = x.shape[:-3]
        if self.context_dims == 1 or context is None:
            check_context(f"nets.{name}", context, self.context_features, lead)
        elif context.shape != (*lead, self.context_features, *x.shape[-2:]):
            expected, given = [*lead, self.context_features, *x.shape[-2:]], list(context.shape)
            raise ValueError(f"nets.{name}: context must be {expected}, got {given}")
        h = layer(channels_last(x.reshape(-1, *x.shape[-3:])))
        if context is None or self.context_layer is None:
            return h
        if self.context_dims == 3:
            return h + self.context_layer(channels_last(context.reshape(-1, *context.shape[-3:])))
        by_image = self.context_layer(context)  # one row per context, however many images share it
        return h + by_image.expand(*lead, by_image.shape[-1]).reshape(-1, by_image.shape[-1], 1, 1)


class ConvNet(_Images):
    r"""Glow's conditioner: convolutions of 3 x 3, then 1 x 1, and a last one of 3 x 3 that starts at zero.

    .. math:: h_0 = x, \quad h_i = \mathrm{act}(W_i * h_{i-1} + b_i), \quad
        \mathrm{out} = e^{3 \ell} \odot (W * h_L + b)

    with a learned :math:`\ell` per output channel; W, b and :math:`\ell` start at zero, so the untrained net returns
    zero whatever its input. The context is read by the first layer, as if its channels stood beside those of x.
    ``forward(x, context=None)``: ``x [..., in_channels, H, W]`` → ``[..., out_channels, H, W]``, in the dtype of the
    weights. ``context [..., C]`` broadcasts to the leading dims of x; with ``context_dims=3`` it is images
    ``[..., C, H, W]`` beside x.

    Args:
        in_channels, out_channels: of x and of the output.
        hidden: channels of the hidden layers: 3 x 3 the first, 1 x 1 the others; may be empty; a number is one.
        context: C, channels of the context, 0 for none.
        context_dims: 1 for features, 3 for images.
        activation: a function of a tensor, a module, a module class, or a name that `nets.MADE` knows.

    Raises:
        ValueError: ``x`` does not have ``in_channels``; the context is missing, not wanted, or of another shape; a
            setting is none of these.
        TypeError: ``x`` or the context is not in the dtype of the weights, outside of autocast; ``activation`` is
            nothing that can be called.

    Reference:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1x1 Convolutions, NeurIPS 2018, arXiv:1807.03039.

    Example:
        >>> import torch
        >>> from flowkernels.nets import ConvNet
        >>> net = ConvNet(3, 6, hidden=(16, 16), context=2)
        >>> net(torch.randn(5, 3, 8, 8), torch.randn(5, 2)).abs().max().item()
        0.0
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int | Sequence[int] = (128, 128),
        context: int = 0,
        context_dims: int = 1,
        activation: Activation = F.relu,
    ) -> None:
        hidden = widths("nets.ConvNet", "hidden", hidden)
        super().__init__(in_channels, out_channels, hidden[0] if hidden else out_channels, context, context_dims)
        self.activation = as_function("nets.ConvNet", activation)
        sizes = [in_channels, *hidden]
        self.hidden_layers = nn.ModuleList(
            [
                nn.Conv2d(a, b, 1 if i else 3, padding=0 if i else 1)
                for i, (a, b) in enumerate(itertools.pairwise(sizes))
            ]
        )
        self.final_layer = nn.Conv2d(sizes[-1], out_channels, 3, padding=1)
        self.log_scale = nn.Parameter(torch.zeros(out_channels))
        nn.init.zeros_(self.final_layer.weight)
        nn.init.zeros_(self.final_layer.bias)  # type: ignore[arg-type]
        if self.context_layer is not None and not hidden:
            nn.init.zeros_(self.context_layer.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        first, *others = [*self.hidden_layers, self._scaled]
        h = self._first(first, x, context)
        for layer in others:
            h = layer(self.activation(h))
        return h.contiguous().view(*x.shape[:-3], *h.shape[1:])

    def _scaled(self, h: Tensor) -> Tensor:
        """The last layer: its scale goes into the weights, which are fewer than the pixels."""
        scale = torch.exp(3 * self.log_scale)
        layer = self.final_layer
        return F.conv2d(h, layer.weight * scale.view(-1, 1, 1, 1), layer.bias * scale, padding=1)  # type: ignore

    @torch.no_grad()
    def start_at(self, values: Tensor) -> None:
        """Makes the untrained net return ``values [out_channels]`` at every pixel."""
        self.final_layer.bias.copy_(values)  # type: ignore[union-attr]


class _ConvBlock(nn.Module):
    def __init__(self, width: int, activation: Callable[[Tensor], Tensor], batch_norm: bool) -> None:
        super().__init__()
        self.activation = activation
        self.batch_norm_layers = nn.ModuleList([nn.BatchNorm2d(width) for _ in range(2)]) if batch_norm else None
        self.conv_layers = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for i, layer in enumerate(self.conv_layers):
            h = h if self.batch_norm_layers is None else self.batch_norm_layers[i](h)
            h = layer(self.activation(h))
        return x + h


class ConvResNet(_Images):
    r"""Real NVP's conditioner: a residual network of 3 x 3 convolutions, with a skip from every block to the output.

    .. math:: h_0 = W_0 * [x, c], \quad h_i = h_{i-1} + V_i * \mathrm{act}(W_i * \mathrm{act}(h_{i-1})), \quad
        \mathrm{out} = U * \mathrm{act}\Big(\sum_{i=0}^{n} S_i * h_i\Big)

    with biases, :math:`S_i` and U of 1 x 1, and batch norm before each activation of a block if asked for.
    ``forward(x, context=None)``: shapes and the context as in `ConvNet`.

    Args:
        in_channels, out_channels: of x and of the output.
        hidden: channels of the blocks.
        blocks: n, their number.
        context, context_dims, activation: as in `ConvNet`.
        batch_norm: batch norm in every block. In training mode images then depend on each other.

    Raises:
        ValueError: ``x`` does not have ``in_channels``; the context is missing, not wanted, or of another shape; a
            setting is none of these.
        TypeError: ``x`` or the context is not in the dtype of the weights, outside of autocast; ``activation`` is
            nothing that can be called.

    Reference:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, ICLR 2017, arXiv:1605.08803, section 4.1;
        blocks as in He, Zhang, Ren, Sun: Identity Mappings in Deep Residual Networks, ECCV 2016, arXiv:1603.05027.

    Example:
        >>> import torch
        >>> from flowkernels.nets import ConvResNet
        >>> ConvResNet(3, 6, hidden=16, blocks=2)(torch.randn(5, 3, 8, 8)).shape
        torch.Size([5, 6, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int = 64,
        blocks: int = 4,
        context: int = 0,
        context_dims: int = 1,
        activation: Activation = F.relu,
        batch_norm: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, hidden, context, context_dims)
        count("nets.ConvResNet", "blocks", blocks, least=0)
        flag("nets.ConvResNet", "batch_norm", batch_norm)
        self.activation = as_function("nets.ConvResNet", activation)
        self.initial_layer = nn.Conv2d(in_channels, hidden, 3, padding=1)
        self.blocks = nn.ModuleList([_ConvBlock(hidden, self.activation, batch_norm) for _ in range(blocks)])
        self.skip_layers = nn.ModuleList([nn.Conv2d(hidden, hidden, 1, bias=not i) for i in range(blocks + 1)])
        self.final_layer = nn.Conv2d(hidden, out_channels, 1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self._first(self.initial_layer, x, context)
        total = self.skip_layers[0](h)
        for block, skip in zip(self.blocks, list(self.skip_layers)[1:], strict=True):
            h = block(h)
            total = total + skip(h)
        h = self.final_layer(self.activation(total))
        return h.contiguous().view(*x.shape[:-3], *h.shape[1:])

    def start_at(self, values: Tensor) -> None:
        """Makes the untrained net return almost ``values [out_channels]`` at every pixel."""
        start_at(self.final_layer, values)
