"""Networks of convolutions that users write as `nn.Sequential`: couplings of images call them in every library.

Which library the model is of does not matter, so this is no library of its own and has no page: `accelerate` asks here
last. A Sequential is one op where it is convolutions that keep the size of the image with one activation between them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from flowkernels.nets.conv_reading import is_sequential, read_sequential

from .engine import thresholds
from .engine.patch import FastMethods, or_theirs
from .engine.registry import Library, Target

WHAT = "convolutions as one op: in cache or in place, channels last, large batches in pieces"


def pays(x: Any, width: int) -> bool:
    """Whether x is images on a CPU of which a hidden layer of so many channels is large enough."""
    if not isinstance(x, Tensor) or not x.is_cpu or x.dim() != 4:
        return False
    least = thresholds.CONVOLUTIONS // 2 if thresholds.may_train() else thresholds.CONVOLUTIONS
    return thresholds.is_enough(x.shape[0] * x.shape[2] * x.shape[3] * width, least)


def run_convs(module: Any, x: Any) -> Tensor | None:
    """What a Sequential of convolutions that is called on x returns, its own hooks apart; None where it must be run."""
    if not is_sequential(module):
        return None
    last: Any = next(reversed(module._modules.values()), None)
    width = getattr(last, "in_channels", None)  # before anything is read, which takes small images as long as a layer
    if type(width) is int and not pays(x, width):
        return None
    found = read_sequential(module)
    return found.run(x) if found is not None and pays(x, found.width()) else None


class Convolutions(FastMethods):
    """The methods of an accelerated Sequential."""

    @or_theirs
    def forward(self: Any, input: Tensor) -> Any:
        return run_convs(self, input)


def _refusal(module: Any) -> str | None:
    found = read_sequential(module)
    return "it is no stack of convolutions" if found is None or len(found.layers) < 2 else None


class _Library(Library):
    """Of which most Sequentials are no loss, and appear in no report."""

    def match(self, module: nn.Module) -> Target | str | None:
        found = super().match(module)
        return found if isinstance(found, Target) else None


LIBRARY = _Library(
    "torch",
    {"nn.modules.container.Sequential": Target(Convolutions, frozenset({"forward"}), WHAT, _refusal)},
    base="",
)
