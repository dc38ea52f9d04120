"""What flows on signals share: their shape, and a context that is a vector or a sequence of frames."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from flowkernels._arguments import count
from flowkernels.nets import Upsampler, WaveNet

from .coupling import Net
from .images import check_shape


def check_signal(flow: str, shape: Sequence[int], **at_least_one: int) -> tuple[int, int]:
    """``shape`` as (C, L); raises unless it is one, and the other settings are at least 1."""
    channels, length = check_shape(flow, shape, ("C", "L"), **at_least_one)
    return channels, length


class Condition(NamedTuple):
    """A context of vectors, or of frames of ``hop`` samples that reach the layers as rows, sample after sample."""

    flow: str
    channels: int
    hop: int

    @classmethod
    def checked(cls, flow: str, context: int, hop: int, length: int) -> Condition:
        count(f"flows.{flow}", "context", context, least=0)
        if count(f"flows.{flow}", "hop", hop, least=0) and not context:
            raise ValueError(f"flows.{flow}: hop must be 0 where context is 0, got {hop}")
        if hop and length % hop:
            raise ValueError(f"flows.{flow}: hop must divide the length {length}, got {hop}")
        return cls(flow, context, hop)

    def embedding(self, given: nn.Module | None) -> nn.Module | None:
        """What is done to a context before the layers see it, behind what a user gave."""
        if not self.hop:
            return given
        if not isinstance(given, (nn.Module, type(None))):
            raise TypeError(f"flows.{self.flow}: embedding must be a module or None, got {given!r:.60}")
        upsampler = Upsampler(self.channels, self.hop)
        return upsampler if given is None else nn.Sequential(given, upsampler)

    def net(self, squeezed: int, **settings: Any) -> Net:
        """A `WaveNet` for signals of which so many samples were made one."""
        channels, dims = (self.channels * squeezed, 2) if self.hop else (self.channels, 1)
        return functools.partial(WaveNet, context=channels, context_dims=dims, **settings)
