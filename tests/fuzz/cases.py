"""Calls that were wrong once, as the fuzzer found them, and why they are listed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkernels.ops import Affine, MadePlan
from flowkernels.ops.flow_layer import split_of

from .calls import Call, Recipe


class Case(NamedTuple):
    """A call, and whether it must be refused."""

    why: str
    op: str
    arguments: Callable[[], dict[str, Any]]
    refused: bool = False


def _numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _layers(*shapes: tuple[int, ...], bias: tuple[int, ...] | None = None) -> list[tuple[Tensor, Tensor]]:
    """Layers of these weights; the first one's bias may have another shape."""
    layers = [(_numbers(*s), _numbers(s[0])) for s in shapes]
    return layers if bias is None else [(layers[0][0], _numbers(*bias)), *layers[1:]]


def _residual(
    x: int, *shapes: tuple[int, ...], bias: tuple[int, ...] | None = None, sparse: bool = False, **settings: Any
) -> Callable[[], dict[str, Any]]:
    layers = _layers(*shapes, bias=bias)
    if sparse:
        layers = [(weight.to_sparse(), b) for weight, b in layers]
    return lambda: {"x": _numbers(5, x), "layers": layers, "blocks": (len(shapes) - 2) // 2, **settings}


def _part(n: int, part: slice, **settings: Any) -> Callable[[], dict[str, Any]]:
    mapped = len(range(n)[part])
    return lambda: {"x": _numbers(5, n), "params": _numbers(5, mapped, 2), "part": part, **settings}


def _one_affine(x: float, u: float, **settings: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"x": torch.tensor([[x]]), "params": torch.tensor([[[u, 0.0]]]), **settings}


def _one_unit(x: float) -> dict[str, Any]:
    ones = torch.ones(1, 1)
    degrees = {"degrees_in": [0], "degrees_out": [0], "strict": False}
    return {"x": x * ones, "weight": ones.clone(), "bias": torch.zeros(1), **degrees}


def _affine(**settings: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"x": _numbers(5, 4), "params": _numbers(5, 4, 2), **settings}


def _actnorm(**settings: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"x": _numbers(5, 4), "log_scale": _numbers(4), "shift": _numbers(4), **settings}


def _lu(rows: int, permutation: list[int]) -> Callable[[], dict[str, Any]]:
    C = len(permutation)
    return lambda: {
        "x": _numbers(rows, C), "lower": _numbers(C, C), "upper": _numbers(C, C), "log_s": torch.zeros(C),
        "sign_s": torch.ones(C), "permutation": torch.tensor(permutation),
    }  # fmt: skip


def _sweep(**settings: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "z": _numbers(5, 2), "layers": _layers((3, 2), (4, 3)),
        "plan": Recipe(MadePlan, {"degrees": [[1, 2], [1, 1, 2], [1, 1, 2, 2]]}),
        "univariate": Affine("exp"), **settings,
    }  # fmt: skip


def _flow_layer(**settings: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "x": _numbers(5, 4), "layers": _layers((8, 2), (8, 8), (8, 8), (4, 8)), "split": split_of(4, (0, 2), (1, 3)),
        "univariate": Affine("exp"), **settings,
    }  # fmt: skip


_SLOPE_22 = torch.tensor([[0.0, 0.0, 0.0, 0.0, 22.45]]).double()
_FLAGS = Recipe(split_of, {"features": 4, "inputs": (0, 2), "outputs": (True, 3)})
_BLOCK = ((16, 16), (16, 16), (4, 16))
_LESS, _MORE = ((16, 3), (16, 16), (8, 16), (4, 16)), ((16, 3), (16, 16), (32, 16), (4, 16))
_MORE_OF_8 = _layers((8, 2), (8, 8), (16, 8), (4, 8))
_ONE_ROW = _layers((8, 2), (8, 8), (8, 8), (4, 8), bias=(1, 8))
CASES = (
    # Widths that nothing compared: kernels read and wrote past the end.
    Case("x is narrower than the first weight", "residual_net", _residual(3, (16, 64), *_BLOCK), True),
    Case("x is wider than the first weight", "residual_net", _residual(64, (16, 3), *_BLOCK), True),
    Case("a block returns less than the stream", "residual_net", _residual(3, *_LESS), True),
    Case("a block returns more than the stream", "residual_net", _residual(3, *_MORE), True),
    Case("a bias for each row", "residual_net", _residual(3, (16, 3), *_BLOCK, bias=(5, 16)), True),
    Case("a bias of no rows", "residual_net", _residual(3, (16, 3), *_BLOCK, bias=(0, 16)), True),
    Case("a weight of three dims", "residual_net", _residual(3, (16, 3, 2), *_BLOCK), True),
    Case("a block returns more than the stream", "flow_layer", _flow_layer(layers=_MORE_OF_8), True),
    Case("a bias of one row", "flow_layer", _flow_layer(layers=_ONE_ROW), True),
    # A part in steps of two that ends before the last feature but one: what passes was not written.
    Case("two features after the part", "affine", _part(4, slice(1, 3, 2))),
    Case("two features after the part, from the first on", "affine", _part(3, slice(0, 2, 2))),
    Case("two features after a longer part", "affine", _part(9, slice(0, 8, 2), inverse=True)),
    # inf * 0 in a gradient where the scale has stopped.
    *(
        Case(f"the inverse overflows, {scale}", "affine", _one_affine(10.0, -100.0, scale=scale, inverse=True))
        for scale in ("exp", "softplus", "sigmoid")
    ),
    # The reference itself: log s of a logit that swallows its bound; a softplus that stops at 20, in float64.
    Case("a logit far beyond log_bounds", "affine", _one_affine(1.0, -1e30, scale="clip")),
    Case("a slope logit above 20", "rqs", lambda: {"x": torch.tensor([0.3]).double(), "params": _SLOPE_22, "bins": 2}),
    # The reference again: 1 - sigmoid(22) of a sigmoid that is rounded.
    Case("a sigmoid of nearly 1", "affine", _one_affine(1.0, 20.0, scale="reciprocal_sigmoid", inverse=True)),
    # Judged by a rounding of the slope alone, which kernels, as torch in place, take from elu's value.
    Case("elu of -13", "masked_linear", lambda: _one_unit(-13.25) | {"activation": "elu"}),
    # Checked by one backend, or where there are rows, alone.
    Case("a permutation repeats an entry", "lu_linear", _lu(5, [0, 0, 1]), True),
    Case("a permutation repeats an entry, no rows", "lu_linear", _lu(0, [0, 0, 1]), True),
    Case("a permutation has an entry too large, no rows", "lu_linear", _lu(0, [0, 1, 2**40]), True),
    # Taken by their truth value, or met by an error of Python's own.
    *(Case(f"inverse is {v!r}", "affine", _affine(inverse=v), True) for v in ("yes", 2, float("nan"))),
    Case("inverse is a tensor", "actnorm", _actnorm(inverse=torch.ones(2)), True),
    Case("scale is a list", "affine", _affine(scale=["exp"]), True),
    Case("log_bounds is one number", "affine", _affine(scale="clip", log_bounds=(0,)), True),
    Case("a part in steps of 0", "affine", _affine(part=slice(0, 2, 0)), True),
    Case("a complex mask", "affine", _affine(mask=torch.ones(4, dtype=torch.complex64)), True),
    Case("a sparse mask", "affine", _affine(mask=torch.ones(4).to_sparse()), True),
    Case("a part between features", "affine", _affine(part=slice(0.5, 2)), True),
    Case("a sparse parameter", "actnorm", _actnorm(shift=torch.ones(4).to_sparse()), True),
    Case("backend has no name", "affine", _affine(backend=""), True),
    Case("a number of blocks that is none", "residual_net", _residual(3, (16, 3), *_BLOCK, blocks=None), True),
    Case("sparse weights", "residual_net", _residual(3, (16, 3), *_BLOCK, sparse=True), True),
    Case("features that are flags", "flow_layer", _flow_layer(split=_FLAGS), True),
    Case("no plan", "autoregressive_inverse", _sweep(plan=Recipe(MadePlan, {"degrees": None})), True),
    Case("no layers", "autoregressive_inverse", _sweep(layers=None), True),
    # A map of something else than every feature, which was mapped whole.
)


def call_of(case: Case) -> Call:
    return Call(case.op, case.arguments())
