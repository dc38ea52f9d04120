"""What a flow layer is, apart from its tensors."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from flowkernels.ops._checks import without_flags
from flowkernels.ops.made.plan import MadePlan
from flowkernels.ops.univariate import Map


def _are_distinct(given: object, features: int) -> bool:
    if not isinstance(given, (tuple, list)) or any(isinstance(i, bool) or not isinstance(i, int) for i in given):
        return False
    return 0 < len(given) == len(set(given)) and all(0 <= i < features for i in given)


class Columns:
    """Which features a layer's conditioner sees, and which are mapped. Equal to itself only; see `columns`."""

    def __init__(self, features: int, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        if isinstance(features, bool) or not isinstance(features, int) or features < 1:
            raise ValueError(f"ops.flow_layer: features must be an integer from 1 on, got {features!r:.60}")
        for name, given in (("inputs", inputs), ("outputs", outputs)):
            if not _are_distinct(given, features):
                contract = f"distinct features below {features}, at least one"
                raise ValueError(f"ops.flow_layer: {name} must be {contract}, got {given!r:.60}")
        self.features, self.inputs, self.outputs = features, tuple(inputs), tuple(outputs)


@functools.lru_cache(maxsize=1024, typed=True)  # 3.0 must not pass because 3 has
def _kept(features: int, inputs: Sequence[int], outputs: Sequence[int]) -> Columns:
    return Columns(features, inputs, outputs)  # torch cannot trace a cached class


def columns(features: int, inputs: Sequence[int], outputs: Sequence[int]) -> Columns:
    """The `Columns` of these features; the same one for equal ones, so that what hangs on it is made once."""
    try:
        return _kept(features, *(without_flags(tuple(i) if isinstance(i, list) else i) for i in (inputs, outputs)))
    except TypeError:  # what cannot be hashed is no feature: it says which
        return Columns(features, inputs, outputs)


class FlowLayerSpec(NamedTuple):
    columns: Columns
    univariate: Map
    plan: MadePlan | None  # the masks of an autoregressive layer; None: nothing is masked
    residual: bool
    activation: str
    adds: tuple[bool, ...]  # which layers have a term added
    gates: tuple[bool, ...]  # which have a gate

    @property
    def n_params(self) -> int:
        """P, the parameters of one feature."""
        return self.univariate.n_params
