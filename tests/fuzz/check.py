"""What must hold of a call, valid or wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from flowkernels.backends import BackendUnavailableError
from tests.isa import running

from . import maps, nets
from .calls import Arguments, Call, Path, Results, at, call, floating, made, mapped, replaced, run
from .draw import Draw
from .faults import Fault, faults
from .rule import Rule, Wrong, path_name

# What torch.use_deterministic_algorithms calls, without its import of a compiler.
_deterministic: Any = torch._C._set_deterministic_algorithms
_C: Any = importlib.import_module("flowkernels._native").C
GENERATORS: dict[str, Callable[[Draw], Call]] = {
    "rqs": maps.rqs,
    "affine": maps.affine,
    "mixture": maps.mixture,
    "polynomial": maps.polynomial,
    "actnorm": maps.actnorm,
    "batch_norm": nets.batch_norm,
    "lu_linear": maps.lu_linear,
    "masked_linear": nets.masked_linear,
    "made": nets.made,
    "residual_net": nets.residual_net,
    "conv_net": nets.conv_net,
    "flow_layer": nets.flow_layer,
    "flow": nets.flow,
    "autoregressive_inverse": nets.autoregressive_inverse,
    "recurrent_inverse": nets.recurrent_inverse,
    "block_made": nets.block_made,
    "low_rank": nets.low_rank,
    "residual_flow": nets.residual_flow,
    "monotone_net": nets.monotone_net,
    "ode_flow": nets.ode_flow,
}
N_OUTPUTS = {"made": 1, "masked_linear": 1, "residual_net": 1, "conv_net": 1, "batch_norm": 3}  # of others 2
VALID, WRONG = 4, 10  # calls of a case: valid ones of the same values, and with one fault
THREADS = (1, 1, 1, 2, 3)
EMULATED = "emulated"  # CUDA's kernels on the CPU, in place of an instruction set
_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
# "ops.rqs: params must be ..., got ..."; what is made before the op is called has a name of its own.
_MESSAGE = re.compile(r"(ops\.\w+|MadePlan|LayerPlan|flowkernels): .+ must .+, got .+", re.DOTALL)


def check_case(op: str, seed: int) -> tuple[int, list[Wrong]]:
    """Draws the calls of a case and checks them; how many there were, and what was wrong."""
    draw = Draw(op, seed)
    valid = GENERATORS[op](draw)
    n, found = 0, []
    checks = [functools.partial(check_valid, valid, draw)]
    if draw.chance(0.5):
        checks = [functools.partial(check_wrong, valid, fault, draw) for fault in faults(valid, draw, WRONG)]
    for check in checks:
        try:
            n += check()
        except BackendUnavailableError:  # of which there are none but emulated
            n += 0
        except Wrong as wrong:
            n += 1
            found.append(wrong)
    return n, found


# ---- valid calls ----


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Memory that nobody wrote shows as NaN, or the largest integer."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    _deterministic(True, warn_only=True)
    try:
        yield
    finally:
        _deterministic(before[0], warn_only=before[1])


@contextlib.contextmanager
def machine(isa: str | None, threads: int) -> Iterator[None]:
    """This instruction set, and so many threads."""
    before = torch.get_num_threads()
    with running(isa):
        if isa != EMULATED:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


_isas: list[str | None] = [None] if _C is None else list(_C.isas())


def emulate() -> None:
    """From here on CUDA's kernels run, in the emulator, in place of the CPU's."""
    _isas[:] = [EMULATED]


def isas() -> list[str | None]:
    return _isas


def _run(op: str, arguments: Arguments, wanted: list[Path], of: list[int], seed: int | None = None) -> Results:
    """The kernels on poisoned memory; a seed lays out the gradients of the outputs, alike in every call."""
    layouts = None if seed is None else Draw("gradients", seed)
    with poisoned():
        return run(op, arguments, None, wanted, of, lambda t: t if layouts is None else layouts.laid_out(t)[0])


class _Memory:
    """Arguments under other strides, and whether a call left their memory alone."""

    def __init__(self, arguments: Arguments, draw: Draw) -> None:
        self._kept: list[tuple[Path, Tensor, Tensor]] = []
        self.layouts: list[str] = []

        def lay_out(path: Path, t: Tensor) -> Tensor:
            view, base = draw.laid_out(t)
            self._kept.append((path, base, base if base is t else base.clone()))
            if not view.is_contiguous() or view.is_neg():
                sign = " negative" * view.is_neg()
                self.layouts.append(f"{path_name(path)} {list(view.shape)} strides {view.stride()}{sign}")
            return view

        self.arguments = mapped(arguments, lay_out)

    def check(self, how: str) -> None:
        for path, now, before in self._kept:
            if not same_bits(now, before):
                raise Wrong(f"{path_name(path)} or the memory around it was written to; {how}")


def check_valid(valid: Call, draw: Draw, calls: int = VALID) -> int:
    """Several calls with the same values; returns how many."""
    try:
        return _check_valid(valid, draw, calls)
    except (Wrong, BackendUnavailableError):
        raise
    except Exception as error:
        raise Wrong(f"a valid call raises {type(error).__name__}: {error!s:.300}") from error


def _check_valid(valid: Call, draw: Draw, calls: int) -> int:
    valid = dataclasses.replace(valid, arguments=made(valid.arguments))
    paths = floating(valid.arguments)
    with machine(None, 1):
        n_outputs = N_OUTPUTS.get(valid.op, 2)
        of = draw.choice(([*range(n_outputs)], [*range(n_outputs)], [0], [n_outputs - 1])) if n_outputs > 1 else [0]
        rule = Rule(valid, paths, of)
    n = 0
    for _ in range(calls):
        wanted = paths if n == 0 else draw.some(paths)
        isa, threads, memory = draw.choice(isas()), draw.choice(THREADS), _Memory(valid.arguments, draw)
        seed = draw.seed() if draw.chance(0.3) else None
        how = f"{isa}, {threads} threads, gradients of {', '.join(map(path_name, wanted)) or 'nothing'}, " + (
            "; ".join(memory.layouts) or "all contiguous"
        )

        once = functools.partial(_run, valid.op, memory.arguments, wanted, of, seed)
        with machine(isa, threads):
            found = once()
            n += 1
            memory.check(how)
            if len(found.outputs) != n_outputs:
                raise Wrong(f"{n_outputs} outputs must come, got {len(found.outputs)}; {how}")
            for i, t in enumerate(found.outputs):
                rule.check(i, t, how)
            for path, t in zip(wanted, found.grads, strict=True):
                rule.check(n_outputs + paths.index(path), t, how)
            if draw.chance(0.25):
                n += 1
                _assert_same_bits(found, once(), wanted, f"called twice; {how}")
            if draw.chance(0.25) and valid.rows:
                n += _check_poisoned_row(valid, wanted, of, draw, how)
        if draw.chance(0.1) and not _is_torchs(valid):
            other = draw.choice([t for t in (1, 2, 3) if t != threads])
            with machine(isa, other):
                n += 1
                # A gradient of weights is a sum over rows, which threads share out.
                by_row = [i for i, path in enumerate(wanted) if path in valid.rows]
                again = once()
                some = [wanted[i] for i in by_row]
                first, second = (Results(r.outputs, [r.grads[i] for i in by_row]) for r in (found, again))
                _assert_same_bits(first, second, some, f"{other} threads; {how}")
    return n


def _is_torchs(valid: Call) -> bool:
    """Whether torch computes a part of the call, whose bits depend on the number of threads."""
    if valid.op == "conv_net":  # where convolutions are not of the kind that runs on pixels as rows
        layers = valid.arguments["layers"]
        return len(layers) < 2 or any(weight.shape[-1] > 1 for weight, _ in layers[1:-1])
    if valid.arguments.get("parametrization") == "half_ends":  # as a logit for each bin
        return True
    if valid.arguments.get("slope") == "quadrature" or _leaks(valid):  # which have no kernel
        return True
    if valid.arguments.get("neumann") is False:  # nor has an estimate's own gradient
        return True
    return valid.arguments.get("context") is not None  # its product


def _leaks(valid: Call) -> bool:
    """Whether torch multiplies bfloat16, layer by layer where no kernel does: with AMX its product reads 0 times what
    is next to a row, so that NaN reaches the rows before."""
    return valid.op == "flow" and valid.arguments["x"].dtype is torch.bfloat16


def _check_poisoned_row(valid: Call, wanted: list[Path], of: list[int], draw: Draw, how: str) -> int:
    """NaN in one row leaves every bit of the others alone."""
    if _leaks(valid):
        return 0
    full = {path: at(valid.arguments, path) for path in valid.rows}
    first, behind = next((t, valid.rows[path]) for path, t in full.items())
    lead = first.shape[: first.dim() - behind]
    if lead.numel() < 2 or any(t.shape[: t.dim() - valid.rows[path]] != lead for path, t in full.items()):
        return 0
    row, value = draw.int(0, lead.numel() - 1), draw.choice((float("nan"), float("nan"), float("inf"), 1e4))
    ill = valid.arguments
    for path, t in full.items():
        spoiled = t.clone(memory_format=torch.contiguous_format)
        spoiled.reshape(lead.numel(), -1)[row] = value
        ill = replaced(ill, path, spoiled)
    kept = torch.arange(lead.numel()) != row
    by_row = [path for path in wanted if path in valid.rows]
    found = []
    for arguments in (mapped(valid.arguments, lambda _, t: t.contiguous()), ill):
        outputs, grads = _run(valid.op, arguments, wanted, of)
        grads = [g for path, g in zip(wanted, grads, strict=True) if path in by_row]
        found.append(Results(*([None if t is None else _rows(t, lead, kept) for t in ts] for ts in (outputs, grads))))  # type: ignore[arg-type]
    _assert_same_bits(*found, by_row, f"row {row} of {list(lead)} is {value}; {how}")
    return 2


def _rows(t: Tensor, lead: torch.Size, kept: Tensor) -> Tensor:
    return t.reshape(lead.numel(), -1)[kept] if t.numel() else t


def same_bits(a: Tensor, b: Tensor) -> bool:
    if a.layout is not torch.strided or a.is_meta:
        return a is b
    kind = _BITS[a.element_size()]
    return a.dtype is b.dtype and torch.equal(a.resolve_neg().view(kind), b.resolve_neg().view(kind))


def _assert_same_bits(a: Results, b: Results, wanted: list[Path], how: str) -> None:
    names = [f"output {i}" for i in range(len(a.outputs))] + [f"gradient of {path_name(p)}" for p in wanted]
    for name, s, t in zip(names, [*a.outputs, *a.grads], [*b.outputs, *b.grads], strict=True):
        if (s is None) != (t is None) or (s is not None and t is not None and not same_bits(s, t)):
            raise Wrong(f"{name} has other bits: {how}")


# ---- wrong calls ----


def _outcome(op: str, arguments: Arguments, backend: str | None) -> list[Tensor] | Exception:
    try:
        with poisoned():
            return call(op, arguments, backend)
    except Exception as error:
        return error


def check_wrong(valid: Call, fault: Fault, draw: Draw) -> int:
    """A call with one fault is refused in three parts, or answered as the reference answers it; how many calls."""
    threads, isa, arguments = draw.choice(THREADS), draw.choice(isas()), fault.arguments
    backend = arguments.get("backend")
    with machine(isa, threads):
        right = _outcome(valid.op, arguments, "reference" if backend is None else backend)
        found = _outcome(valid.op, arguments, backend)

    if isinstance(found, BackendUnavailableError):
        raise found

    def wrong(message: str) -> Wrong:
        return Wrong(message, fault.what)

    if isinstance(right, Exception) and not isinstance(found, Exception):
        raise wrong(f"kernel answers, reference raises {type(right).__name__}: {right!s:.200}")
    for name, result in (("reference", right), ("kernel", found)):
        if isinstance(result, Exception):
            said = f"{type(result).__name__}: {result!s:.200}"
            if not isinstance(result, (TypeError, ValueError)):
                raise wrong(f"{name} raises neither TypeError nor ValueError but {said}") from result
            if not _MESSAGE.match(str(result)):
                raise wrong(f"{name}'s message is not of three parts: {said}") from result
        elif fault.must_raise:
            raise wrong(f"{name} answers")
    if isinstance(right, Exception):
        return 2
    if isinstance(found, Exception):
        raise wrong(f"reference answers, kernel raises {type(found).__name__}: {found!s:.200}")
    if any(t.is_meta for t in found):
        return 2
    try:
        extreme = valid.extreme or fault.extreme
        sizes = maps.sizes_of(valid.op, arguments)
        accepted = Call(
            valid.op, arguments, sizes=sizes, extreme=extreme, at_rounded=valid.at_rounded, made_of=valid.made_of
        )
        return 2 + check_valid(accepted, draw, calls=1)
    except Wrong as error:
        raise wrong(error.message) from error
