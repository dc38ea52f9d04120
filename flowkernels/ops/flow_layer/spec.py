"""What a flow layer is, apart from its tensors."""

from __future__ import annotations

import functools
from typing import NamedTuple

from flowkernels.ops.affine.spec import AffineSpec
from flowkernels.ops.made.plan import MadePlan
from flowkernels.ops.rqs.spec import RqsSpec


class Columns:
    """Which features a layer's conditioner sees, and which are mapped. Equal to itself only; see `columns`."""

    def __init__(self, features: int, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        for name, given in (("inputs", inputs), ("outputs", outputs)):
            if not given or len(set(given)) != len(given) or not all(0 <= i < features for i in given):
                contract = f"distinct features below {features}, at least one"
                raise ValueError(f"ops.flow_layer: {name} must be {contract}, got {given}")
        self.features, self.inputs, self.outputs = features, inputs, outputs


@functools.lru_cache(maxsize=1024)
def columns(features: int, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Columns:
    """The `Columns` of these features; the same one for equal ones, so that what hangs on it is made once."""
    return Columns(features, inputs, outputs)


class FlowLayerSpec(NamedTuple):
    columns: Columns
    univariate: RqsSpec | AffineSpec
    plan: MadePlan | None  # the masks of an autoregressive layer; None: nothing is masked
    residual: bool
    activation: str
    adds: tuple[bool, ...]  # which layers have a term added
    gates: tuple[bool, ...]  # which have a gate

    @property
    def n_params(self) -> int:
        """P, the parameters of one feature."""
        return self.univariate.n_params
