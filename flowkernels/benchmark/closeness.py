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


class Check(NamedTuple):
    """One quantity of both models. The rule: the accelerated one's error is at most twice the original's, and 4 ulp.

    The truth is the original in float64, at data and weights in their own dtype. The original's error is the largest of
    its own and of a few draws, in which data and weights are moved by an ulp at most, as if they were rounded once
    more. Where the original does not run in float64, the truth is what it gives as it is.

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


def check(
    before: Any, after: Any, modules: Callable[[Any], Sequence[nn.Module]], x: Tensor, context: Tensor | None
) -> tuple[list[Check], list[str]]:
    """A check per quantity, and sentences on what could not be compared."""
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
        moved, _ = _quantities(*_moved(before, modules, x, seed), context)
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
    return checks, notes


def _quantities(
    model: Any, modules: Callable[[Any], Sequence[nn.Module]], x: Tensor, context: Tensor | None
) -> tuple[dict[str, Tensor], list[str]]:
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


def _moved(
    model: Any, modules: Callable[[Any], Sequence[nn.Module]], x: Tensor, seed: int
) -> tuple[Any, Callable[[Any], Sequence[nn.Module]], Tensor]:
    """A copy of the model, and the data, each number moved by an ulp at most."""
    random = torch.Generator().manual_seed(seed)

    def move(t: Tensor) -> Tensor:
        draw = 2 * torch.rand(t.shape, generator=random, dtype=torch.float64) - 1
        return (t.double() * (1 + torch.finfo(t.dtype).eps * draw.to(t.device))).to(t.dtype)

    moved = copy.deepcopy(model)
    with torch.no_grad():
        for weight in (p for module in modules(moved) for p in module.parameters() if p.is_floating_point()):
            weight.copy_(move(weight))
    return moved, modules, move(x)


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
