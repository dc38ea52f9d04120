"""What a network of convolutions is, apart from its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class ConvSpec(NamedTuple):
    """Convolutions that keep the size of the image, with an activation between them.

    The tensors of a call are x ``[N, C, H, W]``, then weight ``[out, in, k, k]``, k odd, and bias of each layer.
    """

    n: int  # layers
    activation: str


def weights(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return tensors[1::2]


def layers(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of each layer."""
    return list(zip(tensors[1::2], tensors[2::2], strict=True))


def widest(tensors: Sequence[Tensor]) -> int:
    """Channels of the widest hidden layer."""
    return max(t.shape[0] for t in weights(tensors)[:-1])
