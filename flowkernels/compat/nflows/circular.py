"""normflows' autoregressive splines whose features have tails and bounds of their own, as ops of one kind of tails.

Whatever differs from feature to feature moves into the network, whose weights are small beside a batch: tails are
slope logits at the ends of the box (rows of the last layer), a bound is a scale (x over its bound lies in the box of 1,
and the network sees it multiplied). What normflows puts in front of the network, a sin(s x) + b cos(s x) in place of
circular features, is computed first where x is known, and in the sweep, feature by feature, where it is not.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels.compat.engine.reads import CachedRead
from flowkernels.compat.layer import Layer
from flowkernels.nets.reading import is_bare
from flowkernels.ops._kept import kept
from flowkernels.ops.autoregressive_inverse import run_inverse
from flowkernels.ops.flow_layer import run_autoregressive_layer
from flowkernels.ops.net import Net

from .made import preprocessing_of
from .spline import logit_of_one


def run(layer: Layer, x: Tensor, found: Net, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """y and ladj by the network `found`, as one op or in one sweep; None where that has no kernel."""
    return (_inverse if inverse else _forward)(layer, x, found)


def _forward(layer: Layer, x: Tensor, found: Net) -> tuple[Tensor, Tensor] | None:
    before, own, univariate = preprocessing_of(layer.net), layer.own, layer.map
    assert univariate is not None
    seen = x if before is None else before(x)
    given = x / own.bound if own.is_scaled else x
    fused = run_autoregressive_layer(given, _with_tails(layer, found), univariate, None if seen is given else seen)
    if fused is None:
        return None
    y, ladj = fused
    y = y * own.bound if own.is_scaled else y
    return y if own.tails is None else torch.where(x.abs() > own.bound, 0, y), ladj


def _inverse(layer: Layer, z: Tensor, found: Net) -> tuple[Tensor, Tensor] | None:
    """None too where it is not known what is before the network."""
    periodic, own, univariate = None, layer.own, layer.map
    assert univariate is not None
    before = preprocessing_of(layer.net)
    if before is not None:
        periodic = _periodic_features(before, z)
        if periodic is None:
            return None
    net = _with_tails(layer, found)
    if own.is_scaled:
        # The sweep knows x over its bound: so the network's first layer, or what comes before it, is stretched.
        z = z / own.bound
        if periodic is None:
            (weight, bias), *rest = net.layers()
            net = net.with_layers([(weight * own.bound, bias), *rest])
        else:
            one = torch.ones_like(own.bound)
            periodic = periodic * torch.stack((own.bound, one, one, own.bound, one), -1)
    univariate = univariate if own.tails is None else _zero_outside(univariate)
    fused = run_inverse(z, net.with_periodic(periodic), univariate, or_none=True)
    if fused is None:
        return None
    x, ladj = fused
    return x * own.bound if own.is_scaled else x, ladj


@functools.lru_cache(maxsize=256)
def _zero_outside(univariate: Any) -> Any:
    return dataclasses.replace(univariate, zero_outside=True)


# ---- tails, by the last layer ----


@kept(maxsize=256)
def _rows(tails: tuple[str, ...], bins: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which row of the last layer gives each parameter, and which are the slopes of 1 at the ends of linear tails."""
    P = 3 * bins + 1
    rows, ends = list(range(len(tails) * P)), [False] * (len(tails) * P)
    for i, tail in enumerate(tails):
        first, last = i * P + 2 * bins, i * P + P - 1
        if tail == "linear":
            ends[first] = ends[last] = True
        else:
            rows[last] = first
    return torch.tensor(rows, device=device), torch.tensor(ends, device=device)


def _with_tails(layer: Layer, net: Net) -> Net:
    if layer.own.tails is None or layer.map is None:
        return net
    weight, bias = net.layers()[-1]
    rows, ends = _rows(layer.own.tails, layer.map.bins, weight.device)
    weight = weight.index_select(0, rows).masked_fill(ends[:, None], 0)
    return net.with_last(weight, bias.index_select(0, rows).masked_fill(ends, logit_of_one(layer.map)))


# ---- what comes before the network ----


_columns = CachedRead[list[int]](Tensor.tolist)


def _periodic_features(before: nn.Module, x: Tensor) -> Tensor | None:
    """normflows' periodic features as `ops.autoregressive_inverse` takes them; None where it is anything else."""
    if (type(before).__module__, type(before).__name__) != ("normflows.utils.nn", "PeriodicFeaturesElementwise"):
        return None
    activation: Any = before.activation
    if not is_bare(before) or type(activation) is not nn.Identity or not is_bare(activation):
        return None
    columns = _columns(before, [before._buffers["ind"]])  # type: ignore[list-item]
    weights: Any = before.weights
    features = x.shape[-1]
    if columns is None or weights.dtype is not x.dtype:
        return None
    if len(set(columns)) != len(columns) or not all(0 <= c < features for c in columns):
        return None
    table = x.new_zeros(features, 5)
    table[:, 0] = 1
    if not columns:
        return table
    scale: Any = before.scale
    scale = scale.to(x.dtype).expand(len(columns)) if isinstance(scale, Tensor) else x.new_full((len(columns),), scale)
    zero = x.new_zeros(len(columns))
    offset: Any = before.bias if before.apply_bias else zero
    rows = torch.stack((zero, weights[:, 0], weights[:, 1], scale, offset), -1)
    return table.index_copy(0, before._buffers["ind"], rows)  # type: ignore[arg-type]
