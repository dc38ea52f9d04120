"""Pyro's block autoregressive layers on `flowkernels.ops.block_made`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flowkernels import ops
from flowkernels.compat.engine.patch import FastMethods, or_theirs, original_class

from . import describe


def _run(layer: Any, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """y and ladj of the layer as one op, or x in one sweep; None where Pyro's own code is called for."""
    tensors = describe.block_tensors(layer, x)
    if tensors is None:
        return None
    layers, norms = tensors
    given: Any = {None: False, "normal": True}.get(layer.residual, layer._parameters.get("gate"))
    activation = describe.INCREASING[type(layer.T).__name__]
    settings: Any = {"activation": activation, "residual": given, "eps": describe.EPS, "inverse": inverse}
    return ops.block_made(x, layers, log_norms=norms, **settings)


class BlockAutoregressive(FastMethods):
    """The methods of an accelerated BlockAutoregressive; its log-slopes are kept summed, as one number a row."""

    @or_theirs
    def _call(self: Any, x: Tensor) -> Any:
        found = _run(self, x, False)
        if found is None:
            return None
        self._cached_logDetJ = found[1].unsqueeze(-1)
        return found[0]

    def _inverse(self: Any, y: Tensor) -> Tensor:
        """What Pyro refuses; where the layer may not be read it still does."""
        if y.dim() > 0 and y.shape[-1] != self.input_dim:
            raise ValueError(f"compat.pyro: y must be [..., {self.input_dim}], got {list(y.shape)}")
        found = _run(self, y, True)
        if found is None:
            return original_class(self)._inverse(self, y)
        self._cached_logDetJ = -found[1].unsqueeze(-1)
        return found[0]
