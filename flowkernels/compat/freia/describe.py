"""What the halves of FrEIA's coupling blocks are, as maps, nets and columns.

FrEIA's clamps map to `ops.affine`'s bounded scales; constant factors are folded into the network's last layer. (FrEIA
uses 0.636 for 2/pi; we keep its value.)
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable
from typing import Any

import torch

from flowkernels.compat.layer import Layer
from flowkernels.compat.reading.halves import Half, Rows
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


def clamp_name(function: Any) -> str | None:
    if function is torch.tanh:
        return "tanh"
    if type(function) is types.FunctionType and function.__qualname__ == _LAMBDA:
        return _clamp_of(function.__code__)
    return None


def _scale(clamp_name: str | None, clamp: Any) -> tuple[Affine, float] | str:
    """The map of ``clamp * f_clamp(s)``, and what stands before s there; or why the op has no such scale."""
    if clamp_name is None:
        return "its clamp is a function of its own, none of FrEIA's"
    if not isinstance(clamp, (int, float)) or not 0 < clamp < math.inf:
        return f"its clamp is at {clamp}"
    if clamp_name == "atan":  # the op's r atan(u / r), with r = 2 bound / pi
        return Affine.kept(scale="atan", clamp=clamp * _ATAN * math.pi / 2), clamp * _ATAN
    return Affine.kept(scale="tanh", clamp=float(clamp)), clamp / 2 if clamp_name == "sigmoid" else float(clamp)


# ---- blocks ----

Describe = Callable[[Any], "list[Half] | str"]


def _layers(scale: tuple[Affine, float] | None, nets: list[Any], before: float = 1.0) -> tuple[Layer, ...]:
    """What a half's networks do: scale and shift, or one of these. ``before``: what stands before both."""
    if scale is None:
        return (_shift(nets[0]),)
    univariate, before_s = scale
    if len(nets) == 1:
        return (Layer(univariate, nets[0], own=Rows((before * before_s, before))),)
    return Layer(univariate, nets[0], own=Rows((before_s,))), _shift(nets[1])


def _shift(net: Any) -> Layer:
    return Layer(Affine.kept(scale="additive"), net)


def _sides(block: Any) -> list[tuple[range, range]]:
    """What the half sees that maps the first columns, and what it maps; then of the half that maps the others."""
    first, second = range(block.split_len1), range(block.split_len1, block.split_len1 + block.split_len2)
    return [(second, first), (first, second)]


def _every(block: Any) -> list[tuple[range, range]]:
    return [(range(0), range(block.channels))]


def halves_by(*nets: str, scaled: bool = True, sides: Callable[[Any], list[tuple[range, range]]] = _sides) -> Describe:
    """How to describe blocks whose halves have networks of these names; one half alone maps the last columns."""

    def describe(block: Any) -> list[Half] | str:
        scale = _scale(clamp_name(block.f_clamp), block.clamp) if scaled else None
        if isinstance(scale, str):
            return scale
        return [
            Half(*side, _layers(scale, [getattr(block, name) for name in names.split()]))
            for side, names in zip(sides(block)[-len(nets) :], nets, strict=True)
        ]

    return describe


glow = halves_by("subnet2", "subnet1")
rnvp = halves_by("subnet_s2 subnet_t2", "subnet_s1 subnet_t1")
nice = halves_by("F", "G", scaled=False)
one_sided = halves_by("subnet")
conditional = halves_by("subnet", sides=_every)


def all_in_one(block: Any) -> list[Half] | str:
    """The half of an all-in-one block, whose network predicts ten times s and t."""
    if block.GIN:
        return "it subtracts the mean log-scale (GIN); no kernel implements that"
    scale = _scale("tanh", block.clamp)
    if isinstance(scale, str):
        return scale
    n = block.splits[0]
    return [Half(range(n), range(n, n + block.splits[1]), _layers(scale, [block.subnet], 0.1))]


def refusal_of(describe: Describe, block: Any) -> str | None:
    """Why a block's coupling would run as before on every call, or None."""
    if len(block.dims_in[0]) != 1:
        return "its input is an image"
    halves = describe(block)
    if isinstance(halves, str):
        return halves
    return next((r for r in (half.refusal(block.conditional) for half in halves) if r is not None), None)
