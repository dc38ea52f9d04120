"""The mixture map on Triton."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from flowkernels.ops import _row_params_triton, _triton
from flowkernels.ops._kept import kept

from .spec import Mixture

# csrc/common/normal_tail.h says of what; the same numbers.
ERFC = (
    -0.6513268598908547171, 0.6419697923564902603, 0.019476473204185836312, -0.0095615147868086316419,
    -0.0009465953444820368663, 0.00036683949785276145187, 0.000042523324806907771645, -0.000020278578112534243154,
    -1.6242900046470255135e-6, 1.3036558355805232018e-6, 1.5626441722066143178e-8, -8.5238095914926542525e-8,
    6.5290544390988514964e-9, 5.0593434955514689418e-9, -9.9136415649303308674e-10, -2.2736512229318358557e-10,
    9.646791102015526802e-11, 2.3940380830391147447e-12, -6.8860275264975533984e-12, 8.9448792730907257167e-13,
    3.1309213993429580783e-13, -1.1270822361367252365e-13, 3.8109052551892320678e-16, 7.1060976136092369431e-15,
    -1.5230282014571041472e-15, -9.4574945712912544535e-17,
)  # fmt: skip


def why_not(spec: Mixture, x: Tensor, params: Tensor) -> str | None:
    if spec.shrink > 0 or spec.parametrization != "weights":
        return "no kernel for shrunk mixtures or ones of shifts"
    return _triton.why_not((x, params))


@kept(16)
def _table(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(ERFC, dtype=torch.float64).to(device, dtype)


def _described(spec: Mixture, wide: bool, device: torch.device) -> _row_params_triton.Kernels:
    from .triton_kernels import mixture_bwd, mixture_fwd

    BK = _triton.power_of_2(spec.components)
    constants = {
        "K": spec.components, "NORMAL": spec.kernel == "normal", "OUTER": spec.outer, "LOW": spec.min_log_scale,
        "HIGH": spec.max_log_scale, "INVERSE": spec.inverse, "BK": BK,
    }  # fmt: skip
    table = _table(torch.float64 if wide else torch.float32, device)
    elements = _row_params_triton.in_tiles(BK)
    return _row_params_triton.Kernels(mixture_fwd, mixture_bwd, (table,), constants, elements)


fwd = functools.partial(_row_params_triton.fwd, _described)
bwd = functools.partial(_row_params_triton.bwd, _described)
