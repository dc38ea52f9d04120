"""The polynomial maps on Triton."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from flowkernels.ops import _row_params_triton, _triton
from flowkernels.ops._kept import kept

from .quadrature import RULES
from .spec import Polynomial


def why_not(spec: Polynomial, x: Tensor, params: Tensor) -> str | None:
    return _triton.why_not((x, params))


@kept(256)
def _table(of_squares: bool, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Of n coefficients of a square the nodes of a quadrature, and 1, and their weights, and 0; or n - 1 over i."""
    if of_squares:
        nodes, weights = RULES[n - 1]
        numbers: list[float] = [*nodes, 1.0, *weights, 0.0]
    else:
        numbers = [1.0]
        for i in range(n - 1):
            numbers.append(numbers[-1] * (n - 1 - i) / (i + 1))
    return torch.tensor(numbers, dtype=torch.float64).to(device, dtype)


@functools.lru_cache(maxsize=256)
def _constants(spec: Polynomial, wide: bool) -> dict[str, Any]:
    of_squares, P = spec.of_squares, spec.n_params
    n = spec.degree + 1 if of_squares else P + (1 if spec.tails == "linear" else 4)
    most = 1e300 if wide else 1e37  # from where on squares are no numbers
    return {
        "SQUARES": of_squares, "N": n, "P": P, "TERMS": spec.terms, "BOUND": spec.bound, "SLOPE": spec.slope,
        "CENTRE": spec.centre, "WEIGHT": spec.weight, "SHIFT": spec.shift,
        "STOP": spec.bound if spec.bounded else most, "LINEAR": spec.tails == "linear", "END": spec.end,
        "FREE": spec.free, "LOWERED": spec.lowered, "EDGE": spec.edge, "INVERSE": spec.inverse,
        "BN": _triton.power_of_2(n + of_squares),
    }  # fmt: skip


def _described(spec: Polynomial, wide: bool, device: torch.device) -> _row_params_triton.Kernels:
    from .triton_kernels import polynomial_bwd, polynomial_fwd

    constants = _constants(spec, wide)
    table = _table(spec.of_squares, constants["N"], torch.float64 if wide else torch.float32, device)
    elements = _row_params_triton.in_tiles(constants["BN"])
    return _row_params_triton.Kernels(polynomial_fwd, polynomial_bwd, (table,), constants, elements)


fwd = functools.partial(_row_params_triton.fwd, _described)
bwd = functools.partial(_row_params_triton.bwd, _described)
