"""Convolutions read off their modules: those that keep the size of the image, with one activation between them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowkernels.ops.conv_net import run_conv_net
from flowkernels.ops.conv_net.fused_torch import pieces
from flowkernels.ops.net.activations import TABLE, name_of

from .reading import Kept, Walk, may_compute

_SETTINGS = ("stride", "padding", "dilation", "groups", "padding_mode", "transposed")
_OF_ACTIVATION = ("inplace", "negative_slope", "alpha", "approximate")


class Convs(NamedTuple):
    """(weight, bias) of each convolution, and the activation between them."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    activation: str

    def width(self) -> int:
        """Channels of what the last convolution reads."""
        return self.layers[-1][0].shape[1]

    def run(self, x: Tensor) -> Tensor | None:
        """The output for images ``[N, C, H, W]``; None where the modules are to be called."""
        weight = self.layers[0][0]
        if not x.is_cpu or x.dim() != 4 or x.shape[1] != weight.shape[1] or not may_compute(weight, x):
            return None
        return run_conv_net(x, self.layers, self.activation)


def enter_conv(walk: Walk, m: Any) -> bool:
    """Looks at a module; whether it is a convolution with a weight of its own that keeps the size of the image."""
    if type(m) is not nn.Conv2d or not walk.enter(m, parameters=("weight", "bias"), attributes=_SETTINGS):
        return False
    weight = m._parameters.get("weight")
    if weight is None or weight.dim() != 4 or weight.shape[2] != weight.shape[3] or weight.shape[2] % 2 == 0:
        return False
    same = m.padding == (weight.shape[2] // 2,) * 2 or m.padding == "same"
    return same and m.stride == m.dilation == (1, 1) and m.groups == 1 and m.padding_mode == "zeros"


def conv(walk: Walk, m: Any) -> tuple[Tensor, Tensor] | None:
    """(weight, bias) of such a convolution; None where it is another, or has no bias."""
    return (m.weight, m.bias) if enter_conv(walk, m) and m._parameters.get("bias") is not None else None


def activation_of(walk: Walk, given: Any) -> str | None:
    """The name of what stands between convolutions; it may work in place, for nobody else has what they return."""
    if not isinstance(given, nn.Module):
        return name_of(given)
    if not walk.enter(given, attributes=_OF_ACTIVATION):
        return None
    if type(given) in (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU) and given.inplace:
        given = _out_of_place(given)
    return name_of(given)


def _out_of_place(m: Any) -> nn.Module:
    settings = {s: getattr(m, s) for s in TABLE[_NAMES[type(m)]].settings if s != "inplace"}
    return type(m)(**settings)


_NAMES = {a.module: name for name, a in TABLE.items()}


def is_sequential(module: nn.Module) -> bool:
    """Whether a module is a Sequential and no class of a user's own; an accelerated one is."""
    cls = type(module)
    return cls is nn.Sequential or (hasattr(cls, "_flowkernels_layer") and cls.__bases__ == (nn.Sequential,))


def _flat(walk: Walk, module: nn.Module, is_called: bool = False) -> Iterable[nn.Module] | None:
    """The modules of a Sequential, and of those inside; None where one of them is to be called."""
    if not is_sequential(module):
        return [module]
    if not walk.enter(module, is_called=is_called):
        return None
    parts: list[nn.Module] = []
    for child in module._modules.values():
        found = None if child is None else _flat(walk, child)
        if found is None:
            return None
        parts += found
    return parts


def _sequential(walk: Walk, module: nn.Module) -> Convs | None:
    parts = list(_flat(walk, module, is_called=True) or ())
    if len(parts) % 2 == 0:
        return None
    return stack(walk, parts[::2], parts[1::2])


def stack(walk: Walk, convs: Sequence[Any], activations: Sequence[Any]) -> Convs | None:
    """Convolutions with activations between them; None where they must be called, or do not fit each other."""
    names = {activation_of(walk, a) for a in activations}
    layers = [conv(walk, m) for m in convs]
    if None in layers or None in names or len(names) > 1:
        return None
    found: Any = layers
    if any(a[0].shape[0] != b[0].shape[1] for a, b in itertools.pairwise(found)):
        return None  # called, torch says so
    return Convs(tuple(found), names.pop() if names else "identity")  # type: ignore[arg-type]


read_sequential = Kept[Convs](_sequential)


def in_pieces(run: Callable[..., Tensor], width: int, images: Tensor, *others: Tensor | None) -> Tensor:
    """run(images, *others), a piece of the batch at a time where that spares memory that nobody has touched before.

    Where no graph is recorded. ``width``: channels of a hidden layer. The result's channels come first.
    """
    n = len(images)
    if not torch.is_grad_enabled():
        n = pieces(n, width * images.shape[-2] * images.shape[-1] * images.element_size())
    if n >= len(images):
        return run(images, *others).contiguous()
    y = None
    for i in range(0, len(images), n):
        part = run(images[i : i + n], *[None if t is None else t[i : i + n] for t in others])
        y = images.new_empty((len(images), *part.shape[1:])) if y is None else y
        y[i : i + n] = part
    assert y is not None
    return y
