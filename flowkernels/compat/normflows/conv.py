"""normflows' ConvNet2d, the network of its Glow, as one op on its own weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flowkernels.compat.convolutions import run_convs
from flowkernels.compat.engine.patch import FastMethods, or_theirs
from flowkernels.nets.conv_reading import read_sequential


class ConvNet(FastMethods):
    """The methods of an accelerated ConvNet2d."""

    runs_its_parts = True  # the Sequential inside

    @or_theirs
    def forward(self: Any, x: Tensor) -> Any:
        return run_convs(self.net, x)


def conv_refusal(net: Any) -> str | None:
    """Why a network would run as before on every call, or None. Hooks may come and go."""
    return None if read_sequential(net.net) is not None else "it has more than convolutions of one activation"
