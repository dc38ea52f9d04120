"""Convolutional conditioners: networks that turn images and the context into images of parameters."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels._arguments import count, event_dims, flag, widths
from flowkernels.ops.conv_net import run_conv_net
from flowkernels.ops.conv_net.fused_torch import overwrite

from .common import Activation, as_function, channels_last, check_context, check_dtypes, start_at
from .conv_reading import activation_of, enter_conv, in_pieces
from .reading import Kept, Walk, may_compute

Function = Callable[[Tensor], Tensor]


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

    def _images(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x as ``[N, C, H, W]``, and what each image has of the context: numbers for the first layer, or images."""
        name = type(self).__name__
        check_dtypes(f"nets.{name}", self.final_layer, self.final_layer._parameters.get("bias"), x, context)  # type: ignore[union-attr]
        if x.dim() < 3 or x.shape[-3] != self.in_channels or 0 in x.shape[-2:]:
            raise ValueError(f"nets.{name}: x must be [..., {self.in_channels}, H, W] with pixels, got {list(x.shape)}")
        lead = x.shape[:-3]
        if self.context_dims == 1 or context is None:
            check_context(f"nets.{name}", context, self.context_features, lead)
        elif context.shape != (*lead, self.context_features, *x.shape[-2:]):
            expected, given = [*lead, self.context_features, *x.shape[-2:]], list(context.shape)
            raise ValueError(f"nets.{name}: context must be {expected}, got {given}")
        images = x.reshape(-1, *x.shape[-3:])
        if context is None or self.context_layer is None:
            return images, None
        if self.context_dims == 3:
            return images, context.reshape(-1, *context.shape[-3:])
        by_image = self.context_layer(context)  # one row per context, however many images share it
        return images, by_image.expand(*lead, by_image.shape[-1]).reshape(-1, by_image.shape[-1], 1, 1)

    def _first(self, layer: Callable[[Tensor], Tensor], images: Tensor, context: Tensor | None, own: bool) -> Tensor:
        """``layer`` of images with the context's part; ``own``: nobody else has what the layer returns."""
        h = layer(channels_last(images))
        if context is None:
            return h
        more = self.context_layer(channels_last(context)) if self.context_dims == 3 else context  # type: ignore[misc]
        return h.add_(more) if own else h + more

    def _width(self) -> int:
        """Channels of what the last layer reads."""
        return self.final_layer.weight.shape[1]  # type: ignore[union-attr,index]

    def _known(self, x: Tensor, context: Tensor | None) -> str | None:
        """The activation where modules do nothing now but their arithmetic, on a CPU; None where they are called."""
        found = _plain(self) if x.is_cpu else None
        return found[1] if found is not None and may_compute(found[0], x, context) else None


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
        images, given = self._images(x, context)
        act = self._known(x, context)
        if act is not None and given is None:
            hidden: Any = [(m.weight, m.bias) for m in self.hidden_layers]
            y = run_conv_net(images, [*hidden, self._scaled()], act)
        elif act is not None:
            run = functools.partial(self._run, functools.partial(overwrite, act))
            y = in_pieces(run, self._width(), images, given)
        else:
            y = self._run(None, images, given).contiguous()
        return y.view(*x.shape[:-3], *y.shape[1:])

    def _run(self, in_place: Function | None, images: Tensor, context: Tensor | None) -> Tensor:
        """``in_place``: the activation of what nobody else has, where that is known."""
        first, *others = [*self.hidden_layers, self._final]
        h, act = self._first(first, images, context, in_place is not None), in_place or self.activation
        for layer in others:
            h = layer(act(h))
        return h

    def _scaled(self) -> tuple[Tensor, Tensor]:
        """The last layer's weight and bias: its scale goes into them, who are fewer than the pixels."""
        scale = torch.exp(3 * self.log_scale)
        return self.final_layer.weight * scale.view(-1, 1, 1, 1), self.final_layer.bias * scale  # type: ignore

    def _final(self, h: Tensor) -> Tensor:
        return F.conv2d(h, *self._scaled(), padding=1)

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

    def forward(self, x: Tensor, in_place: Function | None = None) -> Tensor:
        h, own = x, False
        for i, layer in enumerate(self.conv_layers):
            if self.batch_norm_layers is not None:
                h, own = self.batch_norm_layers[i](h), True
            h, own = layer((in_place if own and in_place else self.activation)(h)), True
        return h.add_(x) if in_place else x + h


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
        images, given = self._images(x, context)
        act = self._known(x, context)
        normed = self.training and any(block.batch_norm_layers is not None for block in self.blocks)
        if act is None or normed:  # then images depend on each other
            y = self._run(functools.partial(overwrite, act) if act else None, images, given).contiguous()
        else:
            run = functools.partial(self._run, functools.partial(overwrite, act))
            y = in_pieces(run, self._width(), images, given)
        return y.view(*x.shape[:-3], *y.shape[1:])

    def _run(self, in_place: Function | None, images: Tensor, context: Tensor | None) -> Tensor:
        h = self._first(self.initial_layer, images, context, in_place is not None)
        total = self.skip_layers[0](h)
        for block, skip in zip(self.blocks, list(self.skip_layers)[1:], strict=True):
            h = block(h) if in_place is None else block(h, in_place)
            total = total.add_(skip(h)) if in_place else total + skip(h)
        return self.final_layer((in_place or self.activation)(total))

    def start_at(self, values: Tensor) -> None:
        """Makes the untrained net return almost ``values [out_channels]`` at every pixel."""
        start_at(self.final_layer, values)


# ---- what may be done without calling modules ----

_PLAIN = (nn.ModuleList, _ConvBlock, nn.Linear, nn.BatchNorm2d)


def _read(walk: Walk, net: Any) -> tuple[Tensor, str] | None:
    """A weight and the activation of a network all of whose modules do nothing but their arithmetic."""
    activations = [m.activation for m in net.modules() if isinstance(m, (_Images, _ConvBlock))]
    names = {activation_of(walk, a) for a in activations}
    if type(net) not in (ConvNet, ConvResNet) or None in names or len(names) != 1:
        return None
    for m in net.modules():
        if any(m is a for a in activations):
            continue
        if type(m) is nn.Conv2d:
            if not enter_conv(walk, m):
                return None
        elif not (m is net or type(m) in _PLAIN) or not walk.enter(
            m, parameters=("weight",), attributes=("activation",), is_called=m is net
        ):
            return None
    if type(net) is ConvNet and any(m._parameters.get("bias") is None for m in (*net.hidden_layers, net.final_layer)):
        return None
    return net.final_layer.weight, names.pop()  # type: ignore[return-value]


_plain = Kept[tuple[Tensor, str]](_read)
