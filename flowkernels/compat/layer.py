"""What a layer of another library is, as a value: which map of which features, by the parameters of which network.

A library's `describe` reads one off a module, or says why there is none. A call, an inverse in one sweep, the reasons
of a report and `convert` all start from it, so that each of the library's settings is read in one place.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from flowkernels.ops.autoregressive_inverse import run_inverse
from flowkernels.ops.flow_layer import run_autoregressive_layer, run_layer
from flowkernels.ops.net import Net
from flowkernels.ops.split import Split
from flowkernels.ops.univariate import Map
from flowkernels.transforms.last_rows import LastRows

T = TypeVar("T")
FEATURE_BY_FEATURE = ()


class Layer(NamedTuple):
    """A coupling where it has a split; else every feature is mapped, by a masked network or by none."""

    map: Map | None  # from data to latents, a feature's parameters in the library's order; None: no kernel has it
    net: Any = None  # the module that returns the parameters
    split: Split | None = None  # None too where the features cannot be read now
    groups: Sequence[int] = FEATURE_BY_FEATURE  # or group by group, see `by_feature`
    own: Any = None  # what no map or order says: tails of each feature's own (nflows), factors before rows (`halves`)

    def run(self, x: Tensor, net: Net, inverse: bool, or_none: bool = False) -> tuple[Tensor, Tensor] | None:
        """y and ladj as one op, its network described by `net`; None where no kernel runs it.

        ``or_none``: of an inverse that the library's own passes compute sooner than the reference.
        """
        univariate = self.map
        if univariate is None:
            return None
        if self.split is None:
            return run_inverse(x, net, univariate, or_none) if inverse else run_autoregressive_layer(x, net, univariate)
        univariate, net = self.by_feature(net)
        return run_layer(x, net, univariate.inverted() if inverse else univariate, self.split)

    def by_feature(self, net: Net) -> tuple[Any, Net]:
        """The map with its parameters in the order of native layers, and the network with such a last layer."""
        if not self.groups:
            return self.map, net
        assert self.map is not None
        univariate, turned = in_our_order(self.map)
        weight, bias = net.layers()[-1]
        where = len(weight) // sum(self.groups), self.groups, turned
        return univariate, net.with_last(by_feature(weight, *where), by_feature(bias, *where))


def by_feature(rows: Tensor, features: int, groups: Sequence[int], turned: bool = False) -> Tensor:
    """The rows of a last layer feature by feature, as the ops have them.

    In the library they come group by group, each of so many parameters a feature, of all features. ``turned``: the last
    group comes first.

    >>> by_feature(torch.arange(6), 2, (2, 1))
    tensor([0, 1, 4, 2, 3, 5])
    """
    if max(groups) == 1:
        parted = rows.view(len(groups), features, *rows.shape[1:])
        return (parted.flip(0) if turned else parted).transpose(0, 1).flatten(0, 1)
    parts = rows.split([features * n for n in groups])
    parts = [p.unflatten(0, (features, n)) for p, n in zip(parts, groups, strict=True)]
    return torch.cat(parts[::-1] if turned else parts, dim=1).flatten(0, 1)


@functools.lru_cache(maxsize=256)
def in_our_order(univariate: Map) -> tuple[Map, bool]:
    """A map with its parameters in the order of native layers, and whether the library has the opposite one."""
    turned = getattr(univariate, "shift_first", False)
    return (dataclasses.replace(univariate, shift_first=False) if turned else univariate), turned  # type: ignore[type-var]


def native_rows(univariate: Map, features: int, groups: Sequence[int] = FEATURE_BY_FEATURE) -> Tensor:
    """Which rows of the library's last layer a native one has."""
    turned, P = in_our_order(univariate)[1], univariate.n_params
    rows = torch.arange(features * P)
    if groups:
        return by_feature(rows, features, groups, turned)
    return (rows.view(features, P).flip(1) if turned else rows).flatten()


def native_last(layer: Layer) -> LastRows | None:
    """How the rows of a coupling's last layer are turned for native ones; None: they come feature by feature."""
    if not layer.groups:
        return None
    assert layer.map is not None and layer.split is not None
    rows = native_rows(layer.map, len(layer.split.outputs), layer.groups).tolist()
    return LastRows(tuple(rows), (1.0,) * len(rows), len(rows))


def has_settings(univariate: Any, **settings: Any) -> bool:
    """Whether a map from data to latents has these settings, its scale first; of another kind none has."""
    wanted = {"inverse": False, **settings}
    turned = getattr(univariate, "shift_first", False)
    return not turned and all(getattr(univariate, name, ...) == value for name, value in wanted.items())


def or_reason(make: Callable[..., T], *args: Any, **kwargs: Any) -> T | str:
    """What a function makes of settings, or, as its error says, why they make nothing.

    Whatever is wrong with them, the library is the one to say so when it is called.
    """
    try:
        return make(*args, **kwargs)
    except Exception as error:
        return str(error)
