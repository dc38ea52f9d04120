"""What every conditioner needs: the activation as a function, checks of the context, a start near given values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flowkernels._arguments import check_tensor, count
from flowkernels.ops._checks import expands
from flowkernels.ops._routing import in_transform
from flowkernels.ops.net.activations import FUNCTIONS, check_activation

from .reading import hooked

Activation = Callable[[Tensor], Tensor] | type[nn.Module] | str


def channels_last(images: Tensor) -> Tensor:
    """``[N, C, H, W]`` in the order in which convolutions on a CPU run up to twice as fast; elsewhere as it is."""
    if images.device.type != "cpu" or images.dim() != 4 or in_transform((images,)):  # vmap knows no memory formats
        return images
    return images.contiguous(memory_format=torch.channels_last)


def as_function(name: str, activation: Activation) -> Callable[[Tensor], Tensor]:
    """The function of a name, of a module class, or the function or module that it is already."""
    if isinstance(activation, str):
        check_activation(name, activation)
        return FUNCTIONS[activation]
    made = activation() if isinstance(activation, type) and issubclass(activation, nn.Module) else activation
    if isinstance(made, type) or not callable(made):
        raise TypeError(f"{name}: activation must be a function, a module, its class or a name, got {activation!r:.60}")
    return made


def check_sizes(name: str, in_features: int, context: int) -> None:
    for argument, size in (("in_features", in_features), ("context", context)):
        count(f"nets.{name}", argument, size, least=0)
    if in_features + context < 1:
        raise ValueError(
            f"nets.{name}: in_features + context must be at least 1, got {in_features} + {context} (see nets.Constant)"
        )


def check_context(name: str, context: Tensor | None, size: int, lead: Sequence[int]) -> None:
    """A context that is ignored, or a missing one, would be a wrong density without a word."""
    if context is None:
        if size > 0:
            raise ValueError(f"{name}: context must be [..., {size}], got None")
        return
    check_tensor(name, "context", context)
    shape = context.shape
    if size == 0:
        raise ValueError(f"{name}: context must be None where context=0, got {list(shape)}")
    if shape[-1:] != (size,) or not expands(shape[:-1], lead):
        raise ValueError(f"{name}: context must broadcast to {[*lead, size]}, got {list(shape)}")


def check_dtypes(name: str, layer: nn.Module, weight: Tensor | None, x: Tensor | None, context: Tensor | None) -> None:
    """Raises where x or the context cannot meet the weights of a layer: torch would, but names neither.

    ``weight`` is one that is stored, and not worked out by a parametrisation whenever somebody asks for it; None where
    the layer stores none, as one that somebody put in its place may.
    """
    if weight is None:
        return
    for argument, t in (("x", x), ("context", context)):
        if t is None:
            continue
        check_tensor(name, argument, t)
        if t.dtype is weight.dtype and t.device == weight.device:
            continue
        if hooked(layer):  # which may bring the weights to x
            continue
        if t.device != weight.device:
            raise ValueError(
                f"{name}: {argument} must be on the device of the weights, {weight.device}, got {t.device}"
            )
        if torch.is_autocast_enabled(t.device.type) and _autocast(t) and _autocast(weight):
            continue
        ways = f"{argument}.to({weight.dtype})" + (f" or flow.to({t.dtype})" if t.is_floating_point() else "")
        raise TypeError(
            f"{name}: {argument} must be of the dtype of the weights, {weight.dtype}, got {t.dtype} (try {ways})"
        )


def _autocast(t: Tensor) -> bool:
    """Whether autocast brings t to its dtype, as it does all but float64 and what does not float."""
    return t.is_floating_point() and t.dtype is not torch.float64


def join(name: str, x: Tensor, context: Tensor | None, size: int) -> Tensor:
    """``x [..., D]`` with ``context`` behind it, ``[..., D + C]``."""
    lead = x.shape[:-1]
    check_context(name, context, size, lead)
    if context is None:
        return x
    return torch.cat((x, context if context.shape[:-1] == lead else context.expand(*lead, size)), dim=-1)


@torch.no_grad()
def start_at(layer: nn.Linear | nn.Conv2d, values: Tensor) -> None:
    # Small, not zero: with zero weights the layers below would get no gradient in the first step.
    nn.init.uniform_(layer.weight, -1e-3, 1e-3)
    layer.bias.copy_(values)  # type: ignore[union-attr]
