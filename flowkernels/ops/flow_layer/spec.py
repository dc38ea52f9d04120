"""What a flow layer is, apart from its tensors."""

from __future__ import annotations

from typing import NamedTuple

from flowkernels.ops.net.spec import NetSpec
from flowkernels.ops.split import Split
from flowkernels.ops.univariate import Map


class FlowLayerSpec(NamedTuple):
    """A map of some features, whose parameters a net makes from others, under a split that says which."""

    split: Split
    univariate: Map
    net: NetSpec

    @property
    def n_params(self) -> int:
        """P, the parameters of one feature."""
        return self.univariate.n_params
