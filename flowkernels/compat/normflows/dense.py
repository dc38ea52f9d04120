"""normflows' affine couplings of features as ops with their networks, its MLP."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowkernels.compat.engine import thresholds
from flowkernels.compat.engine.reads import CachedRead
from flowkernels.compat.reading.halves import Half, Layers, Step
from flowkernels.compat.reading.masks import SOFT, is_hard
from flowkernels.nets.reading import is_bare
from flowkernels.ops import Affine


def _layers_of(net: Any) -> Any:
    """What normflows' MLP calls, where calling it does nothing more; otherwise a network that no op knows."""
    cls = type(net)
    if (cls.__module__, cls.__name__) == ("normflows.nets.mlp", "MLP") and is_bare(net):
        return net._modules.get("net", net)
    return net


class _Alternating(NamedTuple):
    """A network of which shift and scale logit alternate."""

    net: Any
    scale: str
    scales: bool = True

    def layers(self, layers: Layers, seen: int, mapped: int) -> Layers | None:
        fits = layers[0][0].shape[1] == seen and layers[-1][0].shape[0] == 2 * mapped
        return layers if fits else None

    def spec(self, inverse: bool) -> Affine:
        return Affine.kept(scale=self.scale, min_scale=0.0, shift_first=True, inverse=inverse)


class _Masked(NamedTuple):
    """A network of all columns, of which the seen ones enter and the mapped ones leave: one that scales or shifts."""

    net: Any
    scales: bool
    seen: Tensor
    mapped: Tensor

    def layers(self, layers: Layers, seen: int, mapped: int) -> Layers | None:
        features = len(self.seen) + len(self.mapped)
        if layers[0][0].shape[1] != features or layers[-1][0].shape[0] != features or len(layers) < 2:
            return None
        (first, first_bias), *hidden, (last, last_bias) = layers
        rows = self._rows(last), self._rows(last_bias)
        return [(first.index_select(1, self.seen), first_bias), *hidden, rows]

    def _rows(self, last: Tensor) -> Tensor:
        last = last.index_select(0, self.mapped)
        return torch.stack((last, torch.zeros_like(last)), dim=1).flatten(0, 1) if self.scales else last

    def spec(self, inverse: bool) -> Affine:
        return Affine.kept(scale="exp" if self.scales else "additive", inverse=inverse)


def may_pay(z: Tensor) -> bool:
    """Whether these are rows enough; the first question, since asking any other takes time from small batches."""
    return z.dim() == 2 and thresholds.is_enough(z.shape[0], thresholds.COUPLED_ROWS)


def _run(half: Half, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
    if torch.compiler.is_compiling() or not z.is_cpu:
        return None
    return half.run(z, (), inverse) if half.pays(len(z)) else None


def coupled(net: Any, scale: str, z: Tensor, seen: range, mapped: range, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """A coupling whose network of the seen columns returns shifts and logits; None where it is to be called."""
    return _run(Half(seen, mapped, (_Alternating(_layers_of(net), scale),)), z, inverse)


# ---- with a mask ----


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
    """The layer's mask; why no op has it; or None where its values cannot be read now."""
    return _mask_of(layer, [layer.b])


def masked(layer: Any, mask: Mask, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """A coupling with a mask and a network each for scale and shift, if any; None where they are to be called."""
    if mask.columns is None or z.shape[1] != len(mask.maps):
        return None
    nets = [(net, net is layer.s) for net in (layer.s, layer.t) if isinstance(net, nn.Module)]
    steps: tuple[Step, ...] = tuple(_Masked(_layers_of(net), scales, *mask.columns) for net, scales in nets)
    given = all(isinstance(net, nn.Module) or net is torch.zeros_like for net in (layer.s, layer.t))
    return _run(Half(*mask.numbers, steps), z, inverse) if steps and given else None
