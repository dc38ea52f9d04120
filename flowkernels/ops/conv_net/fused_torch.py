"""torch's convolutions where they touch the least memory that nobody has touched before.

On a CPU that is what they take: a hidden layer of 128 channels on 64 images of 32 x 32 is 33 MB, glibc gives back to
the kernel what is that large, and the next call meets 8,000 pages that must be made and cleared first. So channels lie
last, activations overwrite what a convolution has returned, and without a graph a large batch goes through in pieces
whose memory the allocator keeps. Numbers are those of the plain layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkernels.ops._checks import why_not_multiplied
from flowkernels.ops.net.activations import FUNCTIONS

from .spec import ConvSpec, layers, weights, widest

# Bytes of a hidden layer from which the batch goes through in pieces, and those of a piece: measured in the README.
_WHOLE, _PIECE = 8 << 20, 4 << 20

# In place of what a convolution has returned: their slopes are known from what they return, and nobody else has it.
# (So are elu's, but to a rounding of 1 only; torch's elu out of place has them from its input.)
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "leaky_relu": lambda h: F.leaky_relu(h, inplace=True),
    "tanh": torch.tanh_,
}


def why_not(spec: ConvSpec, *tensors: Tensor) -> str | None:
    if not tensors[0].is_cpu:
        return "memory is kept by torch's own allocator there"
    return why_not_multiplied(tensors)


def overwrite(activation: str, h: Tensor) -> Tensor:
    """The activation of a tensor that nobody else needs, on its own memory where its gradient allows that."""
    return _IN_PLACE.get(activation, FUNCTIONS[activation])(h)


def pieces(n: int, bytes_of_one: int) -> int:
    """How many of n images go through at once where nothing is recorded, of so many bytes of a hidden layer each."""
    return n if n * bytes_of_one <= _WHOLE else max(1, _PIECE // max(bytes_of_one, 1))


def _run(spec: ConvSpec, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    h = x.contiguous(memory_format=torch.channels_last)
    for i, (weight, bias) in enumerate(layers(tensors)):
        h = overwrite(spec.activation, h) if i else h
        h = F.conv2d(h, weight.contiguous(), bias, padding=weight.shape[-1] // 2)
    return h


def fwd(spec: ConvSpec, *tensors: Tensor) -> tuple[Tensor]:
    x = tensors[0]
    at_once = len(x)
    if spec.n > 1 and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        at_once = pieces(len(x), widest(tensors) * x.shape[-2] * x.shape[-1] * x.element_size())
    if at_once >= len(x):
        return (_run(spec, x, tensors).contiguous(),)
    y = x.new_empty((len(x), weights(tensors)[-1].shape[0], *x.shape[-2:]))
    for i in range(0, len(x), at_once):
        y[i : i + at_once] = _run(spec, x[i : i + at_once], tensors)
    return (y,)
