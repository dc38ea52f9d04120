"""normflows' affine couplings of features as ops with their networks, its MLP."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowkernels.ops.affine.spec import AffineSpec, cached_spec

from . import pays
from .buffers import Reading
from .dense_couplings import Half, Layers, Step
from .reading import is_bare


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

    def spec(self, inverse: bool) -> AffineSpec:
        return cached_spec(self.scale, 0.0, inverse, None, 1, True)


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

    def spec(self, inverse: bool) -> AffineSpec:
        return cached_spec("exp" if self.scales else "additive", 0.0, inverse)


def may_pay(z: Tensor) -> bool:
    """Whether these are rows enough; the first question, since asking any other takes time from small batches."""
    return z.dim() == 2 and len(z) >= pays.COUPLED_ROWS


def _run(half: Half, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
    if torch.compiler.is_compiling() or not z.is_cpu:
        return None
    return half.run(z, (), inverse) if half.pays(len(z)) else None


def coupled(net: Any, scale: str, z: Tensor, seen: range, mapped: range, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """A coupling whose network of the seen columns returns shifts and logits; None where it is to be called."""
    return _run(Half(seen, mapped, (_Alternating(_layers_of(net), scale),)), z, inverse)


# ---- with a mask ----


class _Columns(NamedTuple):
    """The columns that a mask keeps and those that it maps."""

    kept: Tensor
    mapped: Tensor
    numbers: tuple[tuple[int, ...], tuple[int, ...]]


def _read_columns(mask: Tensor) -> _Columns | None:
    if mask.dim() != 2:
        return None
    kept, mapped = mask[0].nonzero()[:, 0], (mask[0] == 0).nonzero()[:, 0]
    return _Columns(kept, mapped, (tuple(kept.tolist()), tuple(mapped.tolist())))


_columns_of = Reading[_Columns | None](_read_columns)


def masked(layer: Any, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """A coupling with a mask and a network each for scale and shift, if any; None where they are to be called."""
    at = _columns_of(layer, [layer.b])
    if at is None or z.shape[1] != layer.b.shape[1]:
        return None
    nets = [(net, net is layer.s) for net in (layer.s, layer.t) if isinstance(net, nn.Module)]
    steps: tuple[Step, ...] = tuple(_Masked(_layers_of(net), scales, at.kept, at.mapped) for net, scales in nets)
    given = all(isinstance(net, nn.Module) or net is torch.zeros_like for net in (layer.s, layer.t))
    return _run(Half(*at.numbers, steps), z, inverse) if steps and given else None
