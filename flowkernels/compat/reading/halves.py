"""Halves of an affine coupling on features: networks of plain layers, map, split and log-determinant as ops.

Where one network predicts scale and shift a half is one op. Where each has a network of its own the map is two layers
that see the same features, one that scales and one that shifts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from flowkernels.compat.engine import thresholds
from flowkernels.ops.flow_layer import run_layer, split_of
from flowkernels.ops.net.net import Net, dense_net
from flowkernels.ops.univariate import Map

from .dense import dense, dense_refusal

Layers = list[tuple[Tensor, Tensor]]


class Step(Protocol):
    """A network, an `nn.Sequential`, and what it does to the mapped columns: scale and shift, or one of these."""

    @property
    def net(self) -> Any: ...

    @property
    def scales(self) -> bool: ...

    def layers(self, layers: Layers, seen: int, mapped: int) -> Layers | None:
        """The network's layers as the op has them; None where their sizes are not those of the columns."""
        ...

    def spec(self, inverse: bool) -> Map: ...


class Half(NamedTuple):
    """The columns that are seen, those that are mapped, and the steps from x to y."""

    seen: Sequence[int]
    mapped: Sequence[int]
    steps: tuple[Step, ...]

    def refusal(self, conditional: bool = False) -> str | None:
        """Why it would run as before on every call, or None."""
        if not self.mapped or not (self.seen or conditional):
            return "one of its halves is empty"
        return next((r for r in (dense_refusal(step.net) for step in self.steps) if r is not None), None)

    def pays(self, rows: int) -> bool:
        """Whether so many rows take less time as ops, by the columns that the library writes and reads again."""
        layer = next(iter(self.steps[0].net._modules.values()), None)
        weight = None if layer is None else layer._parameters.get("weight")
        width = 0 if weight is None or weight.dim() == 0 else len(weight)
        return rows * (width + 4 * len(self.mapped)) >= thresholds.COUPLED_ELEMENTS * len(self.steps)

    def run(self, x: Tensor, conditions: Sequence[int], inverse: bool) -> tuple[Tensor, Tensor] | None:
        """y and ladj of the columns of x, some of which are conditions; None where the library's code is called for."""
        seen, ladj = (*self.seen, *conditions), None
        if not seen or not self.mapped:
            return None
        given = [(step, self._network(step, x, len(seen))) for step in self.steps]
        ready = [(step, network) for step, network in given if network is not None]
        if len(ready) < len(given):  # before any is run
            return None
        at = split_of(x.shape[1], seen, tuple(self.mapped))
        for step, network in reversed(ready) if inverse else ready:
            found = run_layer(x, network, step.spec(inverse), at)
            if found is None:
                return None
            x, term = found
            ladj = term if step.scales or ladj is None else ladj
        return None if ladj is None else (x, ladj)

    def _network(self, step: Step, x: Tensor, seen: int) -> Net | None:
        """A step's network as the op has it, or None."""
        found = dense(step.net, x, None)
        layers = None if found is None else step.layers([*found.layers], seen, len(self.mapped))
        if found is None or layers is None:
            return None
        return dense_net(layers, False, found.activation, seen, x.shape[:-1], None)
