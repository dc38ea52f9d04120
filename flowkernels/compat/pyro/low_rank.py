"""Pyro's planar and radial transforms on `flowkernels.ops.low_rank`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkernels import ops
from flowkernels.compat.engine.patch import FastMethods, or_theirs, original_class
from flowkernels.compat.reading.operands import mixed
from flowkernels.ops._checks import in_autocast

Result = tuple[Tensor, Tensor] | None


def run(kind: str, params: Any, x: Tensor, inverse: bool) -> Result:
    """y and ladj of one layer by the tensors of its own order; None where Pyro's own code is called for."""
    if kind == "planar":
        b, u, w = params
        vectors, numbers = [u, w], [b]
    else:
        center, *numbers = params
        vectors = [center]
    tensors = [*vectors, *numbers]
    if x.dim() == 0 or in_autocast(x) or any(t.dim() == 0 or t.device != x.device or mixed(x, t) for t in tensors):
        return None
    if any(t.shape[-1] != x.shape[-1] for t in vectors) or any(t.shape[-1] != 1 for t in numbers):
        return None
    try:
        lead = torch.broadcast_shapes(x.shape[:-1], *(t.shape[:-1] for t in tensors))
    except RuntimeError:
        return None
    x = x.expand(*lead, x.shape[-1])
    return ops.low_rank(x, [*(t.unsqueeze(-2) for t in vectors), *numbers], kind=kind, inverse=inverse)


def keep(transform: Any, found: tuple[Tensor, Tensor], inverse: bool) -> Tensor:
    """y, or x, and what log_abs_det_jacobian will ask for."""
    transform._cached_logDetJ = -found[1] if inverse else found[1]
    return found[0]


class _Layer(FastMethods):
    """The methods of an accelerated layer that has its own parameters."""

    @or_theirs
    def _call(self: Any, x: Tensor) -> Any:
        found = run(self._flowkernels_layer.kind, self._params(), x, False)
        return None if found is None else keep(self, found, False)

    def _inverse(self: Any, y: Tensor) -> Tensor:
        """What Pyro refuses; where the op does not run it still does."""
        if y.dim() == 0 or y.shape[-1] != self.input_dim:
            raise ValueError(f"compat.pyro: y must be [..., {self.input_dim}], got {list(y.shape)}")
        found = run(self._flowkernels_layer.kind, self._params(), y, True)
        return original_class(self)._inverse(self, y) if found is None else keep(self, found, True)


class Planar(_Layer):
    """The methods of an accelerated Planar."""

    kind = "planar"


class Radial(_Layer):
    """The methods of an accelerated Radial."""

    kind = "radial"


class ConditionalPlanar(FastMethods):
    """The methods of an accelerated ConditionalPlanar."""

    def condition(self: Any, context: Tensor) -> Any:
        from .low_rank_transforms import Planar

        return Planar(original_class(self).condition(self, context)._params)


class ConditionalRadial(FastMethods):
    """The methods of an accelerated ConditionalRadial."""

    def condition(self: Any, context: Tensor) -> Any:
        from .low_rank_transforms import Radial

        return Radial(original_class(self).condition(self, context)._params)
