"""FrEIA's affine couplings of features: network, soft clamp, feature split and log-determinant of a half as one op.

Under compilers FrEIA's own code runs, which they fuse as it stands.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkernels.compat.engine import thresholds
from flowkernels.compat.engine.patch import FastMethods, or_theirs
from flowkernels.compat.reading.halves import Half

from .describe import Describe


class Call(NamedTuple):
    """A block's halves and the conditions of a call."""

    halves: list[Half]
    conditions: tuple[Tensor, ...]

    def run(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
        """y and ladj; None where FrEIA's own code is called for after all."""
        features, ladj = x.shape[1], None
        y = torch.cat((x, *self.conditions), 1) if self.conditions else x  # once for all halves: nothing maps them
        conditions = range(features, y.shape[1])
        for half in reversed(self.halves) if inverse else self.halves:
            found = half.run(y, conditions, inverse)
            if found is None:
                return None
            y, term = found
            ladj = term if ladj is None else ladj + term
        return None if ladj is None else (y[:, :features].contiguous() if self.conditions else y, ladj)


def call_of(describe: Describe, block: Any, x: Any, c: Any) -> Call | None:
    """A call with FrEIA's arguments; None where the ops do not take them, or have less rows than pay."""
    first = x[0] if isinstance(x, (tuple, list)) and len(x) == 1 else None
    if (
        not isinstance(first, Tensor)
        or first.dim() != 2
        or not thresholds.is_enough(first.shape[0], thresholds.COUPLED_ROWS)
    ):
        return None
    if not first.is_cpu or first.shape[1] != block.dims_in[0][0]:
        return None  # on a GPU there is no such op, and what goes before it would be launched for nothing
    conditions = tuple(c) if block.conditional and isinstance(c, (tuple, list)) else ()
    halves = describe(block)
    if isinstance(halves, str) or not halves[0].pays(len(first)):
        return None
    return Call(halves, conditions) if all(is_table(t, first) for t in conditions) else None


def is_table(t: Any, x: Any) -> bool:
    """Whether t is features of as many rows as x, and like it."""
    return isinstance(t, Tensor) and t.dim() == 2 and (len(t), t.dtype, t.device) == (len(x), x.dtype, x.device)


class Coupling(FastMethods):
    """The methods of accelerated coupling blocks, each described in its own way."""

    describe: Describe  # static

    @or_theirs
    def forward(self: Any, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> Any:
        call = call_of(self._flowkernels_layer.describe, self, x, c)
        found = None if call is None else call.run(x[0], rev)
        return None if found is None else ((found[0],), found[1])


class AdditiveCoupling(Coupling):
    """Those of blocks whose log-determinant is the number 0."""

    def forward(self: Any, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> tuple[tuple[Tensor], float]:
        return Coupling.forward(self, x, c, rev, jac)[0], 0.0
