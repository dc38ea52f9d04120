"""The transforms that accelerated ConditionalPlanar and ConditionalRadial of Pyro return."""

from __future__ import annotations

from typing import Any

from pyro.distributions.transforms.planar import ConditionedPlanar
from pyro.distributions.transforms.radial import ConditionedRadial
from torch import Tensor

from .low_rank import keep, run


class _OfContext:
    """One of Pyro's transforms of a context, evaluated by the kernel."""

    kind: str

    def _call(self: Any, x: Tensor) -> Tensor:
        found = run(self.kind, _params(self), x, False)
        return super()._call(x) if found is None else keep(self, found, False)  # type: ignore[misc]

    def _inverse(self: Any, y: Tensor) -> Tensor:
        found = run(self.kind, _params(self), y, True)
        return super()._inverse(y) if found is None else keep(self, found, True)  # type: ignore[misc]


class Planar(_OfContext, ConditionedPlanar):
    """Pyro's planar transform of a context."""

    kind = "planar"


class Radial(_OfContext, ConditionedRadial):
    """Pyro's radial transform of a context."""

    kind = "radial"


def _params(transform: Any) -> Any:
    return transform._params() if callable(transform._params) else transform._params
