"""FrEIA's affine couplings of features: network, soft clamp, feature split and log-determinant of a half as one op.

FrEIA's clamps map to `ops.affine`'s bounded scales; constant factors are folded into the network's last layer. (FrEIA
uses 0.636 for 2/pi; we keep its value.)

Under compilers FrEIA's own code runs, which they fuse as it stands.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkernels.compat.engine import thresholds
from flowkernels.compat.engine.patch import FastMethods, original_class
from flowkernels.compat.reading.halves import Half, Layers
from flowkernels.ops import Affine

# ---- soft clamps ----

_ATAN = 0.636  # of FrEIA, where 2/pi is 0.6366
_CLAMPS: dict[str, Callable[[float], float]] = {
    "atan": lambda u: _ATAN * math.atan(u),
    "sigmoid": lambda u: math.tanh(u / 2),
}
_LAMBDA = "_BaseCouplingBlock.__init__.<locals>.<lambda>"
_POINTS = (-9.0, -1.1, -0.2, 0.0, 0.3, 1.0, 4.0, 70.0)
_OF_NUMBERS = types.SimpleNamespace(atan=math.atan, sigmoid=lambda u: 1 / (1 + math.exp(-u)))


@functools.lru_cache(maxsize=64)
def _clamp_of(code: types.CodeType) -> str | None:
    """Which clamp a function of FrEIA's computes; one code serves all blocks. Of numbers, in torch's place."""
    function = types.FunctionType(code, {"torch": _OF_NUMBERS})
    try:
        found = [function(u) for u in _POINTS]
    except Exception:  # it reads what another version's has
        return None
    for name, clamp in _CLAMPS.items():
        if all(math.isclose(f, clamp(u), rel_tol=1e-12, abs_tol=1e-15) for f, u in zip(found, _POINTS, strict=True)):
            return name
    return None


def _clamp_name(function: Any) -> str | None:
    if function is torch.tanh:
        return "tanh"
    if type(function) is types.FunctionType and function.__qualname__ == _LAMBDA:
        return _clamp_of(function.__code__)
    return None


class _Scale(NamedTuple):
    """A clamped scale as the op has it: its name there, its bound, and what stands before s and t."""

    name: str
    bound: float
    before_s: float
    before_t: float = 1.0


def _scale(clamp_name: str | None, clamp: Any) -> _Scale | str:
    """Of ``clamp * f_clamp(s)``; or why the op has no such scale."""
    if clamp_name is None:
        return "its clamp is a function of its own, none of FrEIA's"
    if not isinstance(clamp, (int, float)) or not 0 < clamp < math.inf:
        return f"its clamp is at {clamp}"
    if clamp_name == "atan":  # the op's r atan(u / r), with r = 2 bound / pi
        return _Scale("atan", clamp * _ATAN * math.pi / 2, clamp * _ATAN)
    return _Scale("tanh", float(clamp), clamp / 2 if clamp_name == "sigmoid" else float(clamp))


# ---- steps ----


class _Step(NamedTuple):
    """A network and what it does to the mapped columns: scale and shift, or one of these."""

    net: Any
    scale: _Scale | None
    shifts: bool

    @property
    def scales(self) -> bool:
        return self.scale is not None

    def layers(self, layers: Layers, seen: int, mapped: int) -> Layers | None:
        n_out = mapped * (2 if self.scales and self.shifts else 1)
        if layers[0][0].shape[1] != seen or layers[-1][0].shape[0] != n_out:  # FrEIA says what is wrong
            return None
        return [*layers[:-1], (self._rows(layers[-1][0]), self._rows(layers[-1][1]))]

    def _rows(self, last: Tensor) -> Tensor:
        """The rows of the last layer as the op has them: a feature's logit, its shift, the next feature's."""
        if self.scale is None:
            return last
        if not self.shifts:
            return torch.stack((last * self.scale.before_s, torch.zeros_like(last)), dim=1).flatten(0, 1)
        s, t = last.chunk(2)
        t = t if self.scale.before_t == 1 else t * self.scale.before_t
        return torch.stack((s * self.scale.before_s, t), dim=1).flatten(0, 1)

    def spec(self, inverse: bool) -> Affine:
        if self.scale is None:
            return Affine.kept(scale="additive", inverse=inverse)
        return Affine.kept(scale=self.scale.name, clamp=self.scale.bound, inverse=inverse)


# ---- blocks ----

Halves = Callable[[Any], "list[Half] | str"]


def _halves(block: Any, *steps: tuple[_Step, ...]) -> list[Half]:
    """The half that maps the first columns, then that which maps the others; one alone maps the others."""
    n = block.split_len1
    first, second = range(n), range(n, n + block.split_len2)
    sides = ((second, first), (first, second))
    return [Half(*side, of_side) for side, of_side in zip(sides[-len(steps) :], steps, strict=True)]


def _scaled(block: Any, halves: Callable[[_Scale], list[Half]]) -> list[Half] | str:
    """The halves of a block by its scale; or why the op has no such scale."""
    scale = _scale(_clamp_name(block.f_clamp), block.clamp)
    return scale if isinstance(scale, str) else halves(scale)


def _glow(block: Any) -> list[Half] | str:
    nets = block.subnet2, block.subnet1
    return _scaled(block, lambda scale: _halves(block, *((_Step(net, scale, True),) for net in nets)))


def _rnvp(block: Any) -> list[Half] | str:
    pairs = (block.subnet_s2, block.subnet_t2), (block.subnet_s1, block.subnet_t1)
    return _scaled(
        block, lambda scale: _halves(block, *((_Step(s, scale, False), _Step(t, None, True)) for s, t in pairs))
    )


def _nice(block: Any) -> list[Half] | str:
    return _halves(block, *((_Step(net, None, True),) for net in (block.F, block.G)))


def _one_sided(block: Any) -> list[Half] | str:
    return _scaled(block, lambda scale: _halves(block, (_Step(block.subnet, scale, True),)))


def _conditional(block: Any) -> list[Half] | str:
    every = range(block.channels)
    return _scaled(block, lambda scale: [Half(range(0), every, (_Step(block.subnet, scale, True),))])


def all_in_one(block: Any) -> list[Half] | str:
    """The half of an all-in-one block, whose network predicts ten times s and t."""
    if block.GIN:
        return "it subtracts the mean log-scale (GIN); no kernel implements that"
    scale = _scale("tanh", block.clamp)
    if isinstance(scale, str):
        return scale
    n = block.splits[0]
    scale = scale._replace(before_s=0.1 * scale.before_s, before_t=0.1)
    return [Half(range(n), range(n, n + block.splits[1]), (_Step(block.subnet, scale, True),))]


def refusal_of(find: Halves, block: Any) -> str | None:
    """Why a block's coupling would run as before on every call, or None."""
    if len(block.dims_in[0]) != 1:
        return "its input is an image"
    halves = find(block)
    if isinstance(halves, str):
        return halves
    return next((r for r in (half.refusal(block.conditional) for half in halves) if r is not None), None)


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


def call_of(find: Halves, block: Any, x: Any, c: Any) -> Call | None:
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
    halves = find(block)
    if isinstance(halves, str) or not halves[0].pays(len(first)):
        return None
    return Call(halves, conditions) if all(_is_table(t, first) for t in conditions) else None


def _is_table(t: Any, x: Any) -> bool:
    """Whether t is features of as many rows as x, and like it."""
    return isinstance(t, Tensor) and t.dim() == 2 and (len(t), t.dtype, t.device) == (len(x), x.dtype, x.device)


class Coupling(FastMethods):
    """What the methods of accelerated coupling blocks share."""

    find: Halves  # static

    def forward(self: Any, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> tuple[tuple[Tensor], Any]:
        call = call_of(self._flowkernels_layer.find, self, x, c)
        found = None if call is None else call.run(x[0], rev)
        return original_class(self).forward(self, x, c, rev, jac) if found is None else ((found[0],), found[1])


class GLOWCoupling(Coupling):
    """The methods of an accelerated GLOWCouplingBlock."""

    find = staticmethod(_glow)


class RNVPCoupling(Coupling):
    """The methods of an accelerated RNVPCouplingBlock."""

    find = staticmethod(_rnvp)


class NICECoupling(FastMethods):
    """The methods of an accelerated NICECouplingBlock."""

    find = staticmethod(_nice)

    def forward(self: Any, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> tuple[tuple[Tensor], float]:
        return Coupling.forward(self, x, c, rev, jac)[0], 0.0


class OneSidedCoupling(Coupling):
    """The methods of an accelerated AffineCouplingOneSided."""

    find = staticmethod(_one_sided)


class ConditionalAffine(Coupling):
    """The methods of an accelerated ConditionalAffineTransform."""

    find = staticmethod(_conditional)
