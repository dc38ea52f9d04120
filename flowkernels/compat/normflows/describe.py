"""What normflows' affine couplings, scales per channel and 1 × 1 convolutions are, and why some have no kernel."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowkernels.compat.engine.reads import CachedRead
from flowkernels.compat.layer import Layer
from flowkernels.compat.reading.halves import Half, Rows
from flowkernels.compat.reading.masks import SOFT, is_hard, read_order
from flowkernels.nets.reading import is_bare
from flowkernels.ops import Affine

# ---- couplings ----

_SCALES = {"exp": "exp", "sigmoid": "reciprocal_sigmoid", "sigmoid_inv": "sigmoid"}  # of `ops.affine`


def layers_of(net: Any) -> Any:
    """What normflows' MLP calls, where calling it does nothing more; otherwise a network that no op knows."""
    cls = type(net)
    if (cls.__module__, cls.__name__) == ("normflows.nets.mlp", "MLP") and is_bare(net):
        return net._modules.get("net", net)
    return net


def coupling(layer: Any) -> Layer | str:
    """An AffineCoupling, whose network's shifts and logits alternate."""
    if not layer.scale:
        return "without a scale it is one addition"
    if layer.scale_map not in _SCALES:
        return f"its scale map is {layer.scale_map!r}, none of {', '.join(_SCALES)}"
    return Layer(Affine.kept(scale=_SCALES[layer.scale_map], min_scale=0.0, shift_first=True), layer.param_map)


def block_refusal(layer: Any) -> str | None:
    """Why an AffineCouplingBlock would run as before on every call, or None."""
    names = [type(flow).__name__ for flow in layer.flows]
    if names != ["Split", "AffineCoupling", "Merge"]:
        return f"its parts are {', '.join(names)}"
    split, inner, _ = layer.flows
    if split.mode not in ("channel", "channel_inv"):
        return f"its split is a {split.mode}, not one of channels"
    what = coupling(inner)
    return f"its AffineCoupling is left alone: {what}" if isinstance(what, str) else None


def sides(split: Any, channels: int) -> tuple[slice, slice]:
    """The channels that the network of a block sees, and those that are mapped."""
    middle = (channels + 1) // 2
    first, others = slice(0, middle), slice(middle, channels)
    return (first, others) if split.mode == "channel" else (others, first)


def half(layer: Layer, seen: slice, mapped: slice) -> Half:
    """A described coupling of features."""
    columns = range(seen.start, seen.stop), range(mapped.start, mapped.stop)
    return Half(*columns, (layer._replace(net=layers_of(layer.net)),))


class Mask(NamedTuple):
    """What a mask of 0 and 1 maps, as `ops.affine` takes it; of features also the columns that it keeps and maps."""

    maps: Tensor
    columns: tuple[Tensor, Tensor] | None
    numbers: tuple[tuple[int, ...], tuple[int, ...]]


def _read_mask(mask: Tensor) -> Mask | str:
    if not is_hard(mask):
        return SOFT
    maps = (mask == 0)[0]
    if maps.dim() != 1:
        return Mask(maps, None, ((), ()))
    kept, mapped = (~maps).nonzero()[:, 0], maps.nonzero()[:, 0]
    return Mask(maps, (kept, mapped), (tuple(kept.tolist()), tuple(mapped.tolist())))


_mask_of = CachedRead[Mask | str](_read_mask)


def mask_of(layer: Any) -> Mask | str | None:
    """The mask of a MaskedAffineFlow; why no op has it; or None where its values cannot be read now."""
    return _mask_of(layer, [layer.b])


def masked(layer: Any, mask: Mask) -> Half | None:
    """A MaskedAffineFlow of features with a network each for scale and shift, if any; None of anything else."""
    layers = tuple(
        Layer(Affine.kept(scale=scale), layers_of(net), own=Rows((1.0,), mask.columns))
        for net, scale in ((layer.s, "exp"), (layer.t, "additive"))
        if isinstance(net, nn.Module)
    )
    given = all(isinstance(net, nn.Module) or net is torch.zeros_like for net in (layer.s, layer.t))
    return Half(*mask.numbers, layers) if layers and given and mask.columns is not None else None


# ---- one scale, and one matrix ----


def norm_refusal(layer: Any) -> str | None:
    s, t = layer.s, layer.t
    per_channel = s.dim() >= 2 and s.shape == t.shape and s.numel() == s.shape[1]
    return None if per_channel else f"its scale is {list(s.shape)}, not one number per channel"


def _read_factors(permutation: Tensor, signs: Tensor) -> Tensor | str:
    return read_order(permutation) if bool((signs.abs() == 1).all()) else "its signs are not 1 and -1"


_order_of = CachedRead[Tensor | str](_read_factors)


def order_of(layer: Any) -> Tensor | str | None:
    """The permutation of an Invertible1x1Conv; why no op has its matrix; or None where it cannot be read now."""
    if not layer.use_lu:
        return "its matrix is dense; with use_lu=True it would be accelerated"
    return _order_of(layer, (layer.P, layer.sign_S))
