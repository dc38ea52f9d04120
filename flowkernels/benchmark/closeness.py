"""Whether the accelerated model computes what the original does, before a time of it means anything."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowkernels import _calls

DRAWS = 4  # of the original, moved by rounding: its errors are a lottery, of which one draw says little
ULPS = 4
CORNER_ROUNDS, CORNER_DRAWS = 3, 16


class Check(NamedTuple):
    """One quantity of both models. The rule: the accelerated one's error is at most twice the original's, and 4 ulp.

    The truth is the original in float64, at data and weights in their own dtype. The original's error is the largest of
    its own and of a few draws, in which data and weights are moved by an ulp at most, as if they were rounded once
    more. Where the original does not run in float64, the truth is what it gives as it is.

    At a knot of a spline or the corner of a ReLU the gradient jumps, and rounding decides on which side a number lies.
    A few rows whose gradient is wrong are left out, and counted in a note, if the original's own jumps half as far at
    least when they are moved by 16 ulp at most.

    Attributes:
        quantity: "log_prob", "ladj", "gradient of weights" or "gradient of x" (of the mean of -log_prob).
        difference: the largest ``|accelerated - original|``.
        largest: the largest value, ``|truth|``.
        error_before: of the original.
        error_after: of the accelerated model.
        allowed: of the accelerated model, by the rule.
    """

    quantity: str
    difference: float
    largest: float
    error_before: float
    error_after: float
    allowed: float

    @property
    def close(self) -> bool:
        return self.error_after <= self.allowed  # False for NaN

    def __str__(self) -> str:
        share = self.difference / max(self.largest, 1e-300)
        return (
            f"{self.quantity}: largest difference {self.difference:.1e} ({share:.1e} of the largest value); error "
            f"{self.error_after:.1e}, the original's own {self.error_before:.1e}, allowed {self.allowed:.1e}"
        )


Modules = Callable[[Any], Sequence[nn.Module]]


def check(
    before: Any, after: Any, modules: Modules, x: Tensor, context: Tensor | None
) -> tuple[list[Check], list[str]]:
    """A check per quantity, and sentences on what could not be compared."""
    n = len(x)
    for _ in range(CORNER_ROUNDS):
        checks, notes, errors = _compare(before, after, modules, x, context)
        allowed = next(c.allowed for c in checks if c.quantity == "gradient of x")
        wrong = ~(errors <= allowed)
        if all(c.close for c in checks) or not _on_corners(before, modules, x, context, wrong, errors, n):
            break
        x, context = x[~wrong], None if context is None else context[~wrong]
    if len(x) < n:
        which = f"{n - len(x)} of {n} rows" if n - len(x) > 1 else f"1 row of {n}"
        notes.append(f"{which} left out of the comparison: at a corner, where rounding decides the original's gradient")
    return checks, notes


def _on_corners(
    model: Any, modules: Modules, x: Tensor, context: Tensor | None, wrong: Tensor, errors: Tensor, n: int
) -> bool:
    """Whether these rows are few, and the original's gradient jumps at each if it is moved a little."""
    few = int(wrong.sum())
    if not 0 < few <= max(3, n // 100) or few == len(x) or not errors.isfinite().all():
        return False
    some, given = x[wrong], None if context is None else context[wrong]
    here = _quantities(model, modules, some, given)[0]["gradient of x"]
    jump = torch.zeros(few, dtype=torch.float64, device=x.device)
    for seed in range(CORNER_DRAWS):
        moved = _moved(some, torch.Generator().manual_seed(seed), ulps=16)
        there = _quantities(model, modules, moved, given)[0]["gradient of x"]
        jump = torch.maximum(jump, _row_errors(there, here))
    return bool((jump * (few / len(x)) >= errors[wrong] / 2).all())  # of a mean over few rows, and over all


def _compare(
    before: Any, after: Any, modules: Modules, x: Tensor, context: Tensor | None
) -> tuple[list[Check], list[str], Tensor]:
    """The checks, notes, and of each row the error of the accelerated gradient of x."""
    notes: list[str] = []
    original, missing = _quantities(before, modules, x, context)
    notes += missing
    eps = torch.finfo(x.dtype).eps
    truth = original
    if x.dtype is not torch.float64:
        try:
            exact = copy.deepcopy(before)
            for module in modules(exact):
                module.double()
            truth, _ = _quantities(exact, modules, x.double(), None if context is None else context.double())
            del exact
        except Exception as error:  # a library that makes float32 tensors on its way
            notes.append(f"closeness: by the original's rounding alone, as it does not run in float64 ({said(error)})")
    found, _ = _quantities(after, modules, x, context)
    names = [name for name in original if name in truth]
    largest_error = {name: _error(original[name], truth[name]) for name in names}
    for seed in range(DRAWS):
        random = torch.Generator().manual_seed(seed)
        other = copy.deepcopy(before)
        with torch.no_grad():
            for weight in (p for module in modules(other) for p in module.parameters() if p.is_floating_point()):
                weight.copy_(_moved(weight, random))
        moved, _ = _quantities(other, modules, _moved(x, random), context)
        for name in names:
            largest_error[name] = max(largest_error[name], _error(moved[name], truth[name]))
    checks = []
    for name in names:
        exact = truth[name]
        finite = exact[exact.isfinite()]
        largest = finite.abs().max().item() if finite.numel() else 0.0
        own = largest_error[name]
        mine = found.get(name, original[name].new_empty(0))
        difference, error = _error(mine, original[name]), _error(mine, exact)
        error = 0.0 if difference == 0 else error  # the same bits are close whatever they are
        checks.append(Check(name, difference, largest, own, error, 2 * own + ULPS * eps * largest))
    return checks, notes, _row_errors(found["gradient of x"], truth["gradient of x"])


def _row_errors(value: Tensor, target: Tensor) -> Tensor:
    return (value.double() - target.double()).abs().flatten(1).amax(1)


def _quantities(model: Any, modules: Modules, x: Tensor, context: Tensor | None) -> tuple[dict[str, Tensor], list[str]]:
    notes, found = [], {}
    torch.manual_seed(0)  # of what is random in it
    weights = [p for module in modules(model) for p in module.parameters() if p.requires_grad]
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        found["log_prob"] = _calls.log_prob(model, x, context)
        if not isinstance(found["log_prob"], Tensor):
            raise _calls.CannotAskError(f"log_prob gives {type(found['log_prob']).__name__}, no tensor")
        grads = torch.autograd.grad(-found["log_prob"].mean(), [x, *weights], allow_unused=True)
    try:
        with torch.no_grad():
            found["ladj"] = _calls.ladj(model, x.detach(), context)
    except Exception as error:
        notes.append(f"ladj: not compared ({said(error)})")
    of_weights = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, grads[1:], strict=True)]
    if of_weights:
        found["gradient of weights"] = torch.cat([g.flatten() for g in of_weights])
    found["gradient of x"] = torch.zeros_like(x) if grads[0] is None else grads[0]
    return {name: value.detach() for name, value in found.items()}, notes


def _moved(t: Tensor, random: torch.Generator, ulps: int = 1) -> Tensor:
    """Each number moved by so many ulp at most."""
    draw = 2 * torch.rand(t.shape, generator=random, dtype=torch.float64) - 1
    return (t.double() * (1 + ulps * torch.finfo(t.dtype).eps * draw.to(t.device))).to(t.dtype)


def _error(value: Tensor, target: Tensor) -> float:
    value, target = value.double(), target.double()
    if value.shape != target.shape:
        return float("nan")
    same = (value == target) | (value.isnan() & target.isnan())  # two infinities are
    return torch.where(same, 0.0, (value - target).abs()).max().item() if value.numel() else 0.0


def said(error: Exception) -> str:
    """An error in a line."""
    text = " ".join(str(error).split())
    kind = "" if isinstance(error, _calls.CannotAskError) else type(error).__name__
    return ": ".join(filter(None, (kind, text)))[:200]
