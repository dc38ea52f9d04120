"""normflows' autoregressive splines whose features have tails and bounds of their own, as ops of one kind of tails.

Whatever differs from feature to feature moves into the network, whose weights are small beside a batch: tails are
slope logits at the ends of the box (rows of the last layer), a bound is a scale (x over its bound lies in the box of 1,
and the network sees it multiplied). What normflows puts in front of the network, a sin(s x) + b cos(s x) in place of
circular features, is computed first where x is known, and in the sweep, feature by feature, where it is not.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels.compat.engine.reads import CachedRead
from flowkernels.nets.reading import is_bare
from flowkernels.ops._kept import kept
from flowkernels.ops.autoregressive_inverse import run_inverse
from flowkernels.ops.flow_layer import run_autoregressive_layer
from flowkernels.ops.net import Net
from flowkernels.ops.rqs.spec import RQS

from .made import preprocessing_of
from .spline import is_listed, shared_settings


def forward(layer: Any, x: Tensor, found: Net, logit_scale: float) -> tuple[Tensor, Tensor] | None:
    """y and ladj by the network `found`, as one op; None where that has no kernel."""
    before, bound = preprocessing_of(layer.autoregressive_net), layer.tail_bound
    seen = x if before is None else before(x)
    given = x / bound if isinstance(bound, Tensor) else x
    net = _with_tails(layer, found)
    fused = run_autoregressive_layer(given, net, _map(layer, logit_scale), None if seen is given else seen)
    if fused is None:
        return None
    y, ladj = fused
    y = y * bound if isinstance(bound, Tensor) else y
    return torch.where(x.abs() > bound, 0, y) if is_listed(layer) else y, ladj


def inverse(layer: Any, z: Tensor, found: Net, logit_scale: float) -> tuple[Tensor, Tensor] | None:
    """x and ladj in one sweep; None where that has no kernel, or knows not what is before the network."""
    periodic, bound = None, layer.tail_bound
    before = preprocessing_of(layer.autoregressive_net)
    if before is not None:
        periodic = _periodic_features(before, z)
        if periodic is None:
            return None
    net = _with_tails(layer, found)
    if isinstance(bound, Tensor):
        # The sweep knows x over its bound: so the network's first layer, or what comes before it, is stretched.
        z = z / bound
        if periodic is None:
            (weight, bias), *rest = net.layers()
            net = net.with_layers([(weight * bound, bias), *rest])
        else:
            one = torch.ones_like(bound)
            periodic = periodic * torch.stack((bound, one, one, bound, one), -1)
    fused = run_inverse(z, net.with_periodic(periodic), _map(layer, logit_scale, is_listed(layer)), or_none=True)
    if fused is None:
        return None
    x, ladj = fused
    return x * bound if isinstance(bound, Tensor) else x, ladj


def _map(layer: Any, logit_scale: float, zero_outside: bool = False) -> RQS:
    return RQS.kept(**shared_settings(layer, layer.num_bins), logit_scale=logit_scale, zero_outside=zero_outside)


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


def _with_tails(layer: Any, net: Net) -> Net:
    if not is_listed(layer):
        return net
    weight, bias = net.layers()[-1]
    rows, ends = _rows(tuple(layer.tails), layer.num_bins, weight.device)
    one = math.log(math.expm1(1 - layer.min_derivative))
    weight = weight.index_select(0, rows).masked_fill(ends[:, None], 0)
    return net.with_last(weight, bias.index_select(0, rows).masked_fill(ends, one))


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
