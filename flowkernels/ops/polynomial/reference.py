"""The definition in plain PyTorch, differentiable any number of times, in both directions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import bernstein, sos

_FAMILIES = {"sos": sos, "bernstein": bernstein}


def fwd(spec: Any, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """``x [..., D]``, ``params [..., D, P]`` → ``y [..., D]``, ``ladj [...]``."""
    out_dtype = torch.promote_types(x.dtype, params.dtype)
    dtype = torch.promote_types(out_dtype, torch.float32)
    x, params = x.to(dtype), params.to(dtype)
    family = _FAMILIES[spec.family]
    if not spec.inverse:
        y, slope = family.value(spec, x, params)
        return y.to(out_dtype), slope.log().sum(-1)
    fixed = params.detach()
    exact = found = family.solve(spec, x.detach(), fixed)
    # Newton's step squares an error: after one, the derivatives of the root are those of the implicit function theorem,
    # after two also those of these. Its value stays what was found, which is the root of what it gives.
    target = family.value(spec, found, fixed)[0] + (x - x.detach())
    for _ in range(2):
        y, slope = family.value(spec, exact, params)
        exact = exact - (y - target) / slope
    exact = found + (exact - exact.detach())
    slope = family.value(spec, exact, params)[1]
    # A search leaves out what is no number, and what lies outside of a box does not see the parameters.
    of_all = slope + 0 * family.value(spec, torch.zeros_like(exact), fixed)[1]
    exact = torch.where(of_all.isnan(), of_all, exact)
    return exact.to(out_dtype), -slope.log().sum(-1)
