"""Copies of a model, before and after, checked and then timed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from flowkernels import _calls, _native
from flowkernels._arguments import check_tensor, is_number
from flowkernels.compat import accelerate, restore
from flowkernels.compat.engine.models import modules_of

from . import WHAT
from .closeness import check, said
from .result import Benchmark, Row
from .timing import turn_by_turn

_WHERE = "flowkernels.benchmark"


def compare(model: Any, x: Tensor, context: Tensor | None, *, seconds: float, what: str | Iterable[str]) -> Benchmark:
    """What `flowkernels.benchmark` does, where it is documented."""
    wanted = _wanted(what)
    if not is_number(seconds) or not 0 < seconds < math.inf:
        raise ValueError(f"{_WHERE}: seconds must be a number above 0, got {seconds!r:.60}")
    _check_data(x, context)
    devices = [x.device] if x.is_cuda else []
    with torch.inference_mode(False), torch.random.fork_rng(devices):
        x, context = x.detach().clone(), None if context is None else context.detach().clone()
        before, after = _copies(model)
        restore(before)
        report = accelerate(after)
        for each in (before, after):
            _mode(each, False)
        try:
            checks, notes = check(before, after, _modules, x, context)
        except _calls.CannotAskError as error:
            raise TypeError(
                f"{_WHERE}: model must have log_prob(x, context), or return (z, ladj), got {type(model).__name__}, of "
                f"which {error}"
            ) from error
        if not report.accelerated:
            notes.insert(0, "nothing of it was accelerated, so before and after are the same code")
        rows = []
        if all(c.close for c in checks):
            for name in wanted:
                row = _timed(name, before, after, x, context, seconds, notes)
                rows += [] if row is None else [row]
        else:
            notes.append("nothing was timed, as the accelerated model does not compute what the original does")
    return Benchmark(
        type(model).__name__, tuple(x.shape), _machine(x), report, tuple(checks), tuple(rows), tuple(notes)
    )


def _wanted(what: str | Iterable[str]) -> list[str]:
    names = [what] if isinstance(what, str) else list(what) if isinstance(what, Iterable) else [None]
    if not names or not all(name in WHAT for name in names):
        raise ValueError(f"{_WHERE}: what must be some of {', '.join(WHAT)}, got {what!r:.60}")
    return list(dict.fromkeys(map(str, names)))


def _check_data(x: Tensor, context: Tensor | None) -> None:
    given = {"x": x} if context is None else {"x": x, "context": context}
    for name, value in given.items():
        check_tensor(_WHERE, name, value)
        if not value.is_floating_point():
            raise TypeError(f"{_WHERE}: {name} must be of floating-point numbers, got {value.dtype}")
        if value.dim() == 0 or value.shape[0] == 0:
            raise ValueError(f"{_WHERE}: {name} must be [B, ...] with a row at least, got {list(value.shape)}")
    if context is not None and context.shape[0] != x.shape[0]:
        raise ValueError(f"{_WHERE}: context must have a row for each of x, {x.shape[0]}, got {context.shape[0]}")


def _modules(model: Any) -> Sequence[nn.Module]:
    return modules_of(_WHERE, model)


def _copies(model: Any) -> tuple[Any, Any]:
    _modules(model)  # raises where there is nothing to accelerate in it
    try:
        return copy.deepcopy(model), copy.deepcopy(model)
    except Exception as error:
        raise TypeError(
            f"{_WHERE}: model must be one that copy.deepcopy copies, as both are run on copies, got "
            f"{type(model).__name__}: {str(error)[:160]}"
        ) from error


def _mode(model: Any, training: bool) -> None:
    for module in _modules(model):
        module.train(training)


def _timed(
    name: str, before: Any, after: Any, x: Tensor, context: Tensor | None, seconds: float, notes: list[str]
) -> Row | None:
    """The row of one of `WHAT`; None, and a note, where a model cannot do it."""
    calls: list[Callable[[], object]] = []
    for which, model in (("original", before), ("accelerated", after)):
        try:
            call = _CALLS[name](model, x, context)
            torch.manual_seed(0)
            call()
        except Exception as error:
            notes.append(f"{name}: not timed, as the {which} model cannot ({said(error)})")
            return None
        calls.append(call)
    wait = (lambda: torch.cuda.synchronize(x.device)) if x.is_cuda else (lambda: None)
    return Row(name, *turn_by_turn(calls[0], calls[1], seconds, wait))


def _log_prob(model: Any, x: Tensor, context: Tensor | None) -> Callable[[], object]:
    _mode(model, False)
    return torch.no_grad()(lambda: _calls.log_prob(model, x, context))


def _sample(model: Any, x: Tensor, context: Tensor | None) -> Callable[[], object]:
    _mode(model, False)
    return torch.no_grad()(lambda: _calls.sample(model, x, context))


def _train(model: Any, x: Tensor, context: Tensor | None) -> Callable[[], object]:
    _mode(model, True)
    weights = [p for module in _modules(model) for p in module.parameters() if p.requires_grad]
    if not weights:
        raise _calls.CannotAskError(f"{type(model).__name__} has no weights to train")
    try:
        adam = Adam(weights, lr=0.0, fused=True)
    except RuntimeError:  # a device or dtype that it does not know
        adam = Adam(weights, lr=0.0)

    @torch.enable_grad()
    def step() -> None:
        adam.zero_grad()
        (-_calls.log_prob(model, x, context).mean()).backward()
        adam.step()

    return step


_CALLS = {"log_prob": _log_prob, "sample": _sample, "train": _train}


def _machine(x: Tensor) -> str:
    if x.is_cuda:
        where = torch.cuda.get_device_name(x.device)
    else:
        threads = torch.get_num_threads()
        isa = f", {_native.C.isa()}" if _native.C is not None else ""
        where = f"CPU{isa}, {threads} thread{'s' * (threads > 1)}"
    return f"{where}, {str(x.dtype).removeprefix('torch.')}, torch {torch.__version__}"
