"""ability × class × direction: what the original can, the accelerated one has to, with the same numbers.

`python -m tests.compat.ability_table [PART OF AN ABILITY [PART OF A CASE]]` fills in and prints all of it; the tests do
what they have time for.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from flowkernels import backends, compat
from tests.compat.abilities import EAGER, GRAPHS, PRECISIONS, ROUNDED, WIDTHS, Ability, Subject
from tests.compat.ability_cases import CASES, NATIVE
from tests.compat.parity import fuse_small_ones

Outcome = Sequence[Tensor] | Exception


class Cell(NamedTuple):
    """`fault` is empty where all is well; `beyond` says why the original cannot do it either, where it cannot."""

    name: str
    fault: str
    beyond: str = ""


def _nothing(module: nn.Module) -> None:
    pass


def _accelerate(module: nn.Module) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fuse_small_ones(patch)  # small weights too
        assert compat.accelerate(module).accelerated


@contextlib.contextmanager
def _circumstances(native: bool, original: bool, small: bool) -> Iterator[None]:
    """The original of a flow of our own is what plain PyTorch makes of it. Small inputs run fused where asked for."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if small:
            fuse_small_ones(patch)
        with backends.use_backend("reference") if native and original else contextlib.nullcontext():
            yield


def _outcome(ability: Ability, case: str, inverse: bool, original: bool, small: bool) -> Outcome:
    native = case in NATIVE
    subject = Subject((CASES | NATIVE)[case], inverse, _nothing if native or original else _accelerate)
    with _circumstances(native, original, small):
        try:
            return list(ability(subject))
        except Exception as error:
            return error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]:.200}"


# ---- whether two outcomes agree: why not, or "" ----


def _differ(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> str:
    """In float64 rounding is far below the bound, the root of epsilon, and any fault far above it."""
    if len(found) != len(wanted):
        return f"{len(found)} tensors, not {len(wanted)}"
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        if not b.is_floating_point() and a.dtype is b.dtype and a.shape == b.shape:  # numbers cut off in integers
            if a.numel() and (a.long() - b.long()).abs().max() > 1:
                return f"tensor {i}: integers differ by more than 1"
            continue
        bound = torch.finfo(b.dtype).eps ** 0.5
        try:
            torch.testing.assert_close(a, b, rtol=bound, atol=bound, equal_nan=True)
        except AssertionError as error:
            return f"tensor {i}: {' '.join(str(error).split()):.250}"
    return ""


def _worse(found: Sequence[Tensor], theirs: Sequence[Tensor], truth: Sequence[Tensor], eps: float) -> str:
    """The rule for numbers in another precision: twice the original's error and a few ulp of the largest value."""
    if len(found) != len(theirs):
        return f"{len(found)} tensors, not {len(theirs)}"
    for i, (a, b, exact) in enumerate(zip(found, theirs, truth, strict=True)):
        if a.shape != b.shape:
            return f"tensor {i}: {list(a.shape)}, not {list(b.shape)}"
        if exact.numel() == 0 or not b.isfinite().all():
            continue
        errors = [(t.double() - exact.double()).abs().max().item() for t in (a, b)]
        allowed = 2 * errors[1] + 8 * eps * exact.abs().max().item()
        if not errors[0] <= allowed:
            return f"tensor {i}: error {errors[0]:.3g}, allowed {allowed:.3g}"
    return ""


# ---- cells ----

# What differs as `flowkernels.compat.nflows` says: LU layers return the wider of two dtypes.
BY_DESIGN = {
    (ability, cls)
    for ability in ("x: float32", "x: float64", "float64_data_of_a_float32_model")
    for cls in ("LULinear", "OneByOneConvolution", "Invertible1x1Conv")
}


def _eager(name: str, case: str, inverse: bool) -> tuple[str, str]:
    wanted, found = (_outcome(EAGER[name], case, inverse, original, True) for original in (True, False))
    if isinstance(wanted, Exception):
        accepted = name in WIDTHS and not isinstance(found, Exception)
        return f"accepted, where the original raises {_said(wanted)}" if accepted else "", _said(wanted)
    if isinstance(found, Exception):
        refused = name in WIDTHS and isinstance(found, ValueError)
        return "" if refused else _said(found), ""
    return _differ(found, wanted), ""


def _graph(name: str, case: str, inverse: bool) -> tuple[str, str]:
    """The original's graph is recorded only where ours is not right: most of the time goes there."""
    recorded, plain = GRAPHS[name]
    truth = _outcome(plain, case, inverse, True, False)
    if isinstance(truth, Exception):
        return "", _said(truth)
    found = _outcome(recorded, case, inverse, False, False)
    fault = _said(found) if isinstance(found, Exception) else _differ(found, truth)
    if not fault:
        return "", ""
    theirs = _outcome(recorded, case, inverse, True, False)
    beyond = _said(theirs) if isinstance(theirs, Exception) else _differ(theirs, truth)
    return ("" if beyond else fault), beyond


def _rounded(name: str, case: str, inverse: bool) -> tuple[str, str]:
    rounded, exact = ROUNDED[name]
    theirs, truth = (_outcome(ability, case, inverse, True, True) for ability in (rounded, exact))
    if isinstance(theirs, Exception) or isinstance(truth, Exception):
        return "", next(_said(t) for t in (theirs, truth) if isinstance(t, Exception))
    found, eps = _outcome(rounded, case, inverse, False, True), torch.finfo(PRECISIONS[name]).eps
    return (_said(found) if isinstance(found, Exception) else _worse(found, theirs, truth, eps)), ""


def cells(case: str, names: Sequence[str]) -> list[Cell]:
    """The cells of a case for these abilities, in each of its directions."""
    found = []
    for name in names:
        judge = _eager if name in EAGER else _graph if name in GRAPHS else _rounded
        designed = any(name == ability and cls in case for ability, cls in BY_DESIGN)
        for direction in (CASES | NATIVE)[case].directions:
            judged = ("", "another dtype by design") if designed else judge(name, case, direction == "inverse")
            found.append(Cell(f"{name}, {case}, {direction}", *judged))
    return found


def main(arguments: list[str]) -> int:
    of_ability, of_case = (*arguments, "", "")[:2]
    torch.set_num_threads(1)
    names = [n for n in (*EAGER, *ROUNDED, *GRAPHS) if of_ability in n]
    faults = 0
    for case in (c for c in (*CASES, *NATIVE) if of_case in c):
        for cell in cells(case, names):
            faults += bool(cell.fault)
            kind = "FAULT" if cell.fault else "beyond" if cell.beyond else "ok"
            print(kind, cell.name, cell.fault or cell.beyond, sep=" | ", flush=True)
    print(f"{faults} faults")
    return faults > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
