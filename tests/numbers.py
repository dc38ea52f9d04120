"""The numbers rule: how far a kernel may be from the truth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _at(quantile: float, values: Tensor) -> float:
    """That quantile, as an element of the sample (torch.quantile refuses large ones)."""
    n = values.numel()
    return values.kthvalue(max(1, min(n, round(quantile * n)))).values.item()


def _report(name: str, i: int, kernel: Tensor, eager: Tensor, truth: Tensor) -> str:
    values = (t.flatten()[i].item() for t in (kernel, eager, truth))
    return f"{name}: worst element {i}: kernel {{:.9g}}, eager {{:.9g}}, truth {{:.9g}}".format(*values)


def worst_of(truth: Tensor, draws: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """What an eager reference would give with the largest error of several draws, each beside its own truth: of inputs
    that differ a little the errors are draws of one rounding lottery, and one draw alone says little."""
    errors = [(eager.double() - its_truth.double()).abs() for eager, its_truth in draws]
    return truth.double() + torch.stack(errors).amax(0)


def assert_within_rule(
    kernel: Tensor,
    eager: Tensor,
    truth: Tensor,
    name: str = "output",
    *,
    condition: tuple[Tensor, Tensor] | None = None,
    ulps: int = 4,
    dtype: torch.dtype | None = None,  # of the kernel, where its values come widened
) -> None:
    """Error of the kernel <= 2 x error of the eager reference in the same dtype + a few ulp.

    Without `condition` that is asked of the largest errors, with ulp of the largest |value|. They
    belong to the worst conditioned element, which hides the others and is one draw of a rounding
    lottery: two equally good implementations break the rule one time in six. So `condition` gives,
    per element, how far rounding the inputs once moves the truth, and the largest error of eager
    over a few such draws. Errors are then counted in units of the first plus an ulp of the element
    (not less than one of the usual value), in which all elements are alike, and the rule is asked
    of the median, the 90th and 99th percentile, plus half a unit, and of the largest, plus a few.
    """
    assert kernel.shape == eager.shape == truth.shape, f"{name}: {kernel.shape}, {eager.shape}, {truth.shape}"
    if truth.numel() == 0:
        return
    exact = truth.double().flatten()
    assert exact.isfinite().all(), f"{name}: the truth is not finite"
    assert kernel.isfinite().all(), f"{name}: {int((~kernel.isfinite()).sum())} values are not finite"
    found, of_eager = ((t.double().flatten() - exact).abs() for t in (kernel, eager))
    eps = torch.finfo(dtype or kernel.dtype).eps
    if condition is None:
        allowed = 2 * of_eager.max().item() + ulps * eps * exact.abs().max().item()
        worst = found.max().item()
        where = _report(name, int(found.argmax()), kernel, eager, truth)
        assert worst <= allowed, f"{where}; error {worst:.3g}, allowed {allowed:.3g}"
        return
    moves, draws = (c.double().flatten() for c in condition)
    unit = moves + eps * exact.abs().clamp_min(_at(0.9, exact.abs()))
    # Where the truth and its usual value are exactly 0, only 0 is right.
    found, of_eager, draws = (torch.where(e == 0, torch.zeros_like(e), e / unit) for e in (found, of_eager, draws))
    where = _report(name, int(found.argmax()), kernel, eager, truth)
    for q, few in ((0.5, 0.5), (0.9, 0.5), (0.99, 0.5), (1.0, ulps)):
        mine, its = _at(q, found), _at(q, torch.maximum(of_eager, draws) if q == 1 else of_eager)
        assert mine <= 2 * its + few, f"{where}; at quantile {q} the error is {mine:.3g} units, eager's {its:.3g}"
