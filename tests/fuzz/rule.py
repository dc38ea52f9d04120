"""How far the results of a call may be from the truth: the rule of `tests.numbers`, for millions of small calls.

The error of a kernel is at most twice that of the eager reference in the same dtype, and a few ulp of the largest
value. On a handful of elements that is a lottery, which equally good implementations lose one time in six. So where
it fails, eager gets more draws: inputs that differ from these by a rounding, of which its largest error counts, and how
far the truth itself moves. The truth is the reference in float64.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .calls import Arguments, Call, Path, cast, mapped, run
from .draw import Draw

ULPS = 4
ULPS_OF_TRUTH = 64  # a float64 kernel has no eager error to be compared with
# Of the largest value: as far as the reference in float64 is the truth whatever cancels in it, as in the gradient of a
# softmax that is all but 1. float32, the same source, is held to its own ulp.
TRUTH = 2.0**-40
GELU = 2.0**-48  # 1 + erf of the reference cancels where the kernel's normal tail does not
DRAWS = (4, 16, 64, 256)
OF_VALUE = ("elu", "tanh")
# Return the logarithms of their slopes: take none from a rounded value, and have no identity.
OF_SLOPES = ("block_made", "low_rank", "residual_flow")
ELEMENTWISE = ("rqs", "affine")  # no element of y, x or params has to do with another


class Wrong(AssertionError):
    """What a call did in place of what it should: with this fault, or none."""

    def __init__(self, message: str, fault: str = "") -> None:
        super().__init__(f"{fault}: {message}" if fault else message)
        self.message, self.fault = message, fault


def _is_finite(of: np.ndarray | None) -> bool:
    return of is None or bool(np.isfinite(of).all())


def _array(t: Tensor | None) -> np.ndarray | None:
    return None if t is None else t.detach().resolve_neg().to(torch.float64).numpy().ravel()


class Rule:
    """The right results of a call, and how far from them a kernel may be."""

    def __init__(self, call: Call, wanted: list[Path], of: list[int]) -> None:
        self.call, self.wanted, self.of = call, wanted, of
        dtypes = {t.dtype for path in wanted if isinstance(t := _at(call.arguments, path), Tensor)}
        self.eager = self._run(call.arguments)
        self.narrow = not dtypes <= {torch.float32, torch.float64}
        self.wide = torch.float64 if torch.float64 in dtypes else torch.float32
        self.of_eager = [_array(t) for t in self.eager]
        only_float64 = dtypes <= {torch.float64}
        self.truth = self.of_eager if only_float64 else self._truth_of(call.arguments)
        # Where elements meet in sums, one that is not finite speaks for all.
        self._silent = call.op not in ELEMENTWISE and not all(map(_is_finite, self.of_eager + self.truth))
        self._errors = [_worst(e, t) for e, t in zip(self.of_eager, self.truth, strict=True)]
        self._moves = [0.0] * len(self.truth)
        self._drawn = 0

    def _run(self, arguments: Arguments) -> list[Tensor | None]:
        outputs, grads = run(self.call.op, arguments, "reference", self.wanted, self.of)
        return [*outputs, *grads]

    def name(self, i: int) -> str:
        n = len(self.truth) - len(self.wanted)
        return f"output {i}" if i < n else "gradient of " + path_name(self.wanted[i - n])

    def check(self, i: int, found: Tensor | None, how: str) -> None:
        """Raises where result i is not what it should be."""
        eager, truth, its = self.eager[i], self.truth[i], self.of_eager[i]
        if found is None or eager is None:
            for t in (found, eager):
                # 0 of a row that is not finite is NaN, which eager never forms where nothing asks for the gradient.
                if t is not None and bool(((t != 0) & (t.isfinite() | (not self._silent))).any()):
                    raise Wrong(f"{self.name(i)} is {'missing' if found is None else 'not 0'}; {how}")
            return
        assert truth is not None and its is not None
        if found.shape != eager.shape or found.dtype != eager.dtype:
            given = f"{found.dtype} {list(found.shape)}"
            raise Wrong(f"{self.name(i)} must be {eager.dtype} {list(eager.shape)}, got {given}; {how}")
        mine = _array(found)
        assert mine is not None
        if self._silent:
            return
        limits = torch.finfo(found.dtype)
        if limits.bits == 16:  # inf is what its largest number rounds to
            mine = np.clip(mine, limits.min, limits.max)
        asked = np.isfinite(truth) & np.isfinite(its) & (np.abs(truth) < 0.99 * limits.max)
        asked &= self._has_gradient(i, found)
        if asked.all():
            right = truth
        else:
            mine, right = mine[asked], truth[asked]
        if mine.size == 0:
            return
        if self.call.extreme and np.isfinite(mine).all():
            return
        error = float(np.abs(mine - right).max())
        ulp = limits.eps * (ULPS if found.dtype != torch.float64 else ULPS_OF_TRUTH)
        few = ulp * float(np.abs(right).max()) + 4 * limits.tiny
        if self.call.arguments.get("activation") == "gelu":
            few += GELU
        if error <= 2 * self._errors[i] + few:
            return
        of_gradient = i >= len(self.truth) - len(self.wanted)
        if of_gradient and self.call.op not in OF_SLOPES and self.call.arguments.get("activation") in OF_VALUE:
            few += torch.finfo(self.wide).eps * self._without_activation(i)
        moves = 64 if self.call.at_rounded and of_gradient else ULPS
        if found.dtype == torch.float64:
            moves *= 2  # the truth is eager in the same dtype, and as far from it as the kernel may be
        if error == error and not self.call.exact:
            few += (ulp if found.dtype != torch.float64 else TRUTH) * self._usual(i)
            for n in DRAWS:
                self._draw(n)
                if error <= 2 * self._errors[i] + moves * self._moves[i] + few:
                    return
        worst = int(np.argmax(np.where(np.isnan(mine), np.inf, np.abs(mine - right))))
        kinds = "not finite" if not np.isfinite(mine[worst]) else "wrong"
        values = f"kernel {mine[worst]:.9g}, truth {right[worst]:.9g}, error {error:.3g}"
        allowed = 2 * self._errors[i] + moves * self._moves[i] + few
        raise Wrong(f"{self.name(i)} is {kinds}: {values}, allowed {allowed:.3g}; {how}")

    def _has_gradient(self, i: int, found: Tensor) -> np.ndarray:
        """Whether eager's results of an element's row are numbers: of NaN (inf / inf, where a logit times its scale
        overflows) it takes a gradient that is 0 here and there, by the order of its own steps."""
        ladj = self.eager[1] if len(self.truth) - len(self.wanted) == 2 else None
        if i < 2 or ladj is None or found.shape[: ladj.dim()] != ladj.shape:
            return np.ones(found.numel(), dtype=bool)
        of_row = ladj.isnan().logical_not().reshape([*ladj.shape, *[1] * (found.dim() - ladj.dim())])
        return of_row.expand(found.shape).numpy().ravel()

    def _without_activation(self, i: int) -> float:
        """The largest value of a gradient where slopes are 1. Kernels keep what elu and tanh return, as torch does of
        tanh, and of elu in place: their slopes, y + 1 and 1 - y y, are known to a rounding of 1."""
        arguments = {**cast(self.call.arguments, torch.float64), "activation": "identity"}
        return _worst(_array(self._run(arguments)[i]), np.zeros(()))

    def _usual(self, i: int) -> float:
        """The largest value of a result of this kind: what a sum that comes to nothing was made of. ladj's slope, which
        is in the gradient of x, is made of terms of 1 by the size of the box."""
        n = len(self.truth) - len(self.wanted)
        alike = self.truth[:n] if i < n else self.truth[n:]
        size = 0.0 if i < n else self.call.sizes.get(self.wanted[i - n], 0.0)
        of_box = 1 / size if size > 0 else max(self.call.sizes.values(), default=0.0)
        return max(_worst(t, np.zeros(())) for t in alike) + max(of_box, self.call.made_of)

    def _draw(self, n: int) -> None:
        """Eager's errors and the truth's moves over n draws in all."""
        while self._drawn < n:
            self._drawn += 1
            draw = Draw("rounding", self._drawn)
            wide = self._moved(draw, self.wide)
            truth = self._truth_of(wide)
            self._moves = _larger(self._moves, truth, self.truth)
            if self.wide is torch.float32:
                self._errors = _larger(self._errors, self._eager_of(wide), truth)
            if self.narrow:
                rounded = self._moved(draw, None)
                self._errors = _larger(self._errors, self._eager_of(rounded), self._truth_of(rounded))

    def _moved(self, draw: Draw, dtype: torch.dtype | None) -> Arguments:
        """Inputs that differ by a rounding of this dtype, in it where it is wider; None: of their own."""

        def moved(path: Path, t: Tensor) -> Tensor:
            if path not in self.wanted:
                return t
            exact = t.to(torch.float64)
            size = self.call.sizes.get(path)
            if size is None:
                size = min(float(exact.abs().max()), 3.0) or 1.0 if exact.numel() else 0.0
            # float: a bound of a box may be an integer that torch has no dtype for
            exact = exact + torch.finfo(dtype or t.dtype).eps * draw.noise(t.shape) * (exact.abs() + float(size))
            return exact.to(torch.promote_types(t.dtype, dtype or t.dtype))

        return mapped(self.call.arguments, moved)

    def _eager_of(self, arguments: Arguments) -> list[np.ndarray | None]:
        return [_array(t) for t in self._run(arguments)]

    def _truth_of(self, arguments: Arguments) -> list[np.ndarray | None]:
        return self._eager_of(cast(arguments, torch.float64))


def _larger(found: list[float], a: list[np.ndarray | None], b: list[np.ndarray | None]) -> list[float]:
    """The largest differences so far, of every result."""
    return [max(worst, _worst(s, t)) for worst, s, t in zip(found, a, b, strict=True)]


def _at(tree: object, path: Path) -> object:
    for key in path:
        tree = tree[key]  # type: ignore[index]
    return tree


def _worst(a: np.ndarray | None, b: np.ndarray | None) -> float:
    """The largest difference where both are numbers."""
    if a is None or b is None or a.size == 0 or (a is b):
        return 0.0
    with np.errstate(all="ignore"):
        off = np.abs(a - b)
    off = off[np.isfinite(off)]
    return float(off.max()) if off.size else 0.0


def path_name(path: Path) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")
