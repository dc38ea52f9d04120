"""Halves of an affine coupling on features: networks of plain layers, map, split and log-determinant as ops.

Where one network predicts scale and shift a half is one op. Where each has a network of its own the map is two layers
that see the same features, one that scales and one that shifts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowkernels.compat.engine import thresholds
from flowkernels.compat.layer import Layer
from flowkernels.nets.dense_reading import Dense
from flowkernels.nets.reading import Walk
from flowkernels.ops.flow_layer import run_layer, split_of
from flowkernels.ops.net.net import Net, dense_net
from flowkernels.transforms.last_rows import LastRows
from flowkernels.transforms.parts import Part, part_of

from .dense import dense, dense_refusal, read


class Rows(NamedTuple):
    """What stands between a network and the op: a layer's `own`.

    The network returns one group of rows for each factor, one row a feature. Parameters for which there is no group
    are 0.
    """

    factors: tuple[float, ...]  # what stands before each group
    columns: tuple[Tensor, Tensor] | None = None  # of a network of all features: those that enter, those that leave


class Half(NamedTuple):
    """The columns that are seen, those that are mapped, and the layers from x to y: one, or one that scales and one
    that shifts. What either returns comes feature by feature where it has no `Rows`."""

    seen: Sequence[int]
    mapped: Sequence[int]
    layers: tuple[Layer, ...]

    def refusal(self, conditional: bool = False) -> str | None:
        """Why it would run as before on every call, or None."""
        if not self.mapped or not (self.seen or conditional):
            return "one of its halves is empty"
        return next((r for r in (dense_refusal(layer.net) for layer in self.layers) if r is not None), None)

    def pays(self, rows: int) -> bool:
        """Whether so many rows take less time as ops, by the columns that the library writes and reads again."""
        layer = next(iter(self.layers[0].net._modules.values()), None)
        weight = None if layer is None else layer._parameters.get("weight")
        width = 0 if weight is None or weight.dim() == 0 else len(weight)
        return rows * (width + 4 * len(self.mapped)) >= thresholds.COUPLED_ELEMENTS * len(self.layers)

    def run(self, x: Tensor, conditions: Sequence[int], inverse: bool) -> tuple[Tensor, Tensor] | None:
        """y and ladj of the columns of x, some of which are conditions; None where the library's code is called for."""
        seen, ladj = (*self.seen, *conditions), None
        if not seen or not self.mapped:
            return None
        given = [(layer.map, _network(layer, x, len(seen), len(self.mapped))) for layer in self.layers]
        ready = [(m, network) for m, network in given if m is not None and network is not None]
        if len(ready) < len(given):  # before any is run
            return None
        at = split_of(x.shape[1], seen, tuple(self.mapped))
        for univariate, network in reversed(ready) if inverse else ready:
            found = run_layer(x, network, univariate.inverted() if inverse else univariate, at)
            if found is None:
                return None
            x, term = found
            ladj = term if univariate.n_params > 1 or ladj is None else ladj  # that of a shift is 0
        return None if ladj is None else (x, ladj)


def parts_of(
    walk: Walk, half: Half, features: int, inverse: bool, conditions: Sequence[range] | None = ()
) -> list[Part] | None:
    """The layers of a half for a run of layers that keeps them; None where the library's code is called for.

    ``conditions``: the columns of the call's context that the networks see behind features of x; None: not known.
    """
    if conditions is None or not half.seen or not half.mapped or max(*half.seen, *half.mapped) >= features:
        return None
    at, found = split_of(features, tuple(half.seen), tuple(half.mapped)), []
    for layer in reversed(half.layers) if inverse else half.layers:
        net = read(walk, layer.net)
        if net is None or layer.map is None:
            return None
        univariate = layer.map.inverted() if inverse else layer.map
        given = _Dense(layer, net, len(half.seen), len(half.mapped), conditions)
        if not given.fits(univariate.n_params):
            return None
        fixed = None if given.selects or conditions else net.net((), None)
        part = part_of(univariate, given, net.layers, fixed, at, given.last(univariate.n_params))
        if part is None:
            return None
        found.append(part)
    return found


def _network(layer: Layer, x: Tensor, seen: int, mapped: int) -> Net | None:
    """A layer's network as the op has it; None where it must be called, or its sizes are not those of the columns."""
    found = dense(layer.net, x, None)
    return None if found is None else _fitted(layer, found, x.shape[:-1], seen, mapped)


class _Dense:
    """A layer's network, as a run of layers asks for it in every call."""

    def __init__(self, layer: Layer, found: Dense, seen: int, mapped: int, conditions: Sequence[range]) -> None:
        self.layer, self.found, self.sizes, self.conditions = layer, found, (seen, mapped), conditions
        self.selects = layer.own is not None and layer.own.columns is not None

    def fits(self, n_params: int) -> bool:
        """Whether the network's sizes are those of its columns; where they are not, the library says what is wrong."""
        if self.selects:
            return not self.conditions
        seen, mapped = self.sizes
        (first, _), (last, _) = self.found.layers[0], self.found.layers[-1]
        n_out = mapped * (n_params if self.layer.own is None else len(self.layer.own.factors))
        return (first.shape[1], len(last)) == (seen + sum(map(len, self.conditions)), n_out)

    def last(self, n_params: int) -> LastRows | None:
        """How the rows of its last layer are turned, where `as_net` does not."""
        own, mapped = self.layer.own, self.sizes[1]
        if own is None or self.selects or n_params == 1:
            return None
        groups, each = len(own.factors), range(n_params)
        rows = [p * mapped + i if p < groups else -1 for i in range(mapped) for p in each]
        factors = [own.factors[p] if p < groups else 1.0 for _ in range(mapped) for p in each]
        return LastRows(tuple(rows), tuple(factors), mapped * groups)

    def as_net(self, x: Tensor, context: Tensor | None) -> Net | None:
        lead = x.shape[:-1]
        if not self.selects:
            seen = self._seen_of(context) if self.conditions and context is not None else None
            return None if seen is None or seen.shape[:-1] != lead else self.found.net(lead, seen)
        if thresholds.may_train() and thresholds.is_few(math.prod(lead), thresholds.COLUMNS_ROWS):
            return None
        return _fitted(self.layer, self.found, lead, *self.sizes)

    def _seen_of(self, context: Tensor) -> Tensor:
        parts = [context.narrow(-1, c.start, len(c)) for c in self.conditions]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _fitted(layer: Layer, found: Dense, lead: Sequence[int], seen: int, mapped: int) -> Net | None:
    own = layer.own
    if layer.map is None:
        return None
    layers, P = [*found.layers], layer.map.n_params
    n_in, n_out = seen, mapped * (P if own is None else len(own.factors))
    if own is not None and own.columns is not None:
        n_in = n_out = seen + mapped
    if layers[0][0].shape[1] != n_in or layers[-1][0].shape[0] != n_out:  # the library says what is wrong
        return None
    if own is not None and own.columns is not None:
        enter, leave = own.columns
        if len(layers) < 2:
            return None
        layers[0] = layers[0][0].index_select(1, enter), layers[0][1]
        layers[-1] = layers[-1][0].index_select(0, leave), layers[-1][1].index_select(0, leave)
    if own is not None:
        layers[-1] = _by_feature(layers[-1][0], own, P), _by_feature(layers[-1][1], own, P)
    return dense_net(layers, False, found.activation, seen, lead, None)


def _by_feature(rows: Tensor, own: Rows, n_params: int) -> Tensor:
    """The rows of a last layer as the op has them: a feature's parameters, the next feature's."""
    if n_params == 1:
        return rows
    pairs = zip(rows.chunk(len(own.factors)), own.factors, strict=True)
    groups = [group if factor == 1 else group * factor for group, factor in pairs]
    groups += [torch.zeros_like(groups[0])] * (n_params - len(groups))
    return torch.stack(groups, dim=1).flatten(0, 1)
