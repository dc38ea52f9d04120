"""Some thousand calls drawn at random, and the fuzzer itself. `make fuzz` runs as many as there is time for."""

from __future__ import annotations

import queue
import signal
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from flowkernels import backends, ops

from . import workers
from .calls import FUNCTIONS, Call, floating, run
from .cases import CASES, Case, call_of
from .check import GENERATORS, check_case, check_valid, check_wrong
from .draw import Draw
from .faults import Fault
from .rule import Rule, Wrong

CASES_OF_AN_OP = 40  # at each first seed; about ten calls each


@pytest.fixture(autouse=True)
def _quiet(one_thread) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", backends.SlowPathWarning)  # calls without features have no kernel
        yield


def test_every_op_is_drawn() -> None:
    public = {name for name in ops.__all__ if not isinstance(getattr(ops, name), type)} - {"layer_plan"}  # no op
    assert set(GENERATORS) == set(FUNCTIONS) == public | set(backends.table())


@pytest.mark.parametrize("op", GENERATORS)
@pytest.mark.parametrize("first", [0, 1_000_000])
def test_calls(op, first) -> None:
    """The same seeds every time: one in a hundred thousand loses a lottery of roundings, which `make fuzz` may name."""
    for seed in range(first, first + CASES_OF_AN_OP):
        _, found = check_case(op, seed)
        if found:
            pytest.fail(f"{op}: {found[0]}\npython -m tests.fuzz --op {op} --case {seed}", pytrace=False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}: {case.why}")
def test_known(case: Case) -> None:
    call = call_of(case)
    for seed in range(1 if case.refused else 8):
        draw = Draw(case.why, seed)
        if case.refused:
            check_wrong(call, Fault(case.why, call.arguments, True), draw)
        else:
            check_valid(call, draw)


# ---- the fuzzer judges ----


def _block(lead: tuple[int, ...]) -> Call:
    """A call whose last tensor has no dims, of an op that has no identity among its activations."""
    draw = Draw("block", 0)
    layers = [(draw.values(6, 3), draw.values(6)), (draw.values(3, 6), draw.values(3))]
    arguments = {"x": draw.values(*lead, 3), "layers": layers, "residual": draw.values(), "activation": "tanh"}
    return Call("block_made", arguments)


@pytest.mark.parametrize("lead", [(), (5,)], ids=str)
def test_right_results_are_right_whatever_their_dims_and_signs(lead) -> None:
    """A gradient of no dims beside a ladj of none; a tensor whose sign is not in memory."""
    call = _block(lead)
    rule = Rule(call, paths := floating(call.arguments), [0, 1])
    outputs, grads = run(call.op, call.arguments, "reference", paths, [0, 1])
    for i, t in enumerate([*outputs, *grads]):
        assert t is not None
        rule.check(i, t, "as it is")
        rule.check(i, torch._neg_view(-t), "negative")


def test_a_wrong_gradient_is_named_without_an_activation_of_slope_1() -> None:
    """Not an error of the op, which refuses activations that it has not."""
    call = _block((5,))
    rule = Rule(call, paths := floating(call.arguments), [0, 1])
    _, grads = run(call.op, call.arguments, "reference", paths, [0, 1])
    assert grads[1] is not None
    with pytest.raises(Wrong, match=r"gradient of layers\[0\]\[0\] is wrong"):
        rule.check(3, 1.001 * grads[1], "")


# ---- the fuzzer finds ----


def _unwritten(outputs: list[Tensor], x: Tensor) -> None:
    outputs[0] = torch.empty_like(outputs[0])


def _imprecise(outputs: list[Tensor], x: Tensor) -> None:
    outputs[0] = outputs[0] * (1 + 1e-5)


def _in_place(outputs: list[Tensor], x: Tensor) -> None:
    x.data.add_(1)  # as a kernel does, unseen by autograd


def _leaks(outputs: list[Tensor], x: Tensor) -> None:
    outputs[0] = outputs[0] + 0 * x.detach().sum()


def _random(outputs: list[Tensor], x: Tensor) -> None:
    outputs[0] = outputs[0] + 1e-8 * torch.rand(())


def _by_threads(outputs: list[Tensor], x: Tensor) -> None:
    outputs[0] = outputs[0] * (1 + 2e-7 * torch.get_num_threads())


def _wrong_gradient(outputs: list[Tensor], x: Tensor) -> None:
    outputs[0] = 1.001 * outputs[0] - 0.001 * outputs[0].detach()


DEFECTS = {
    _unwritten: "output 0 is not finite",
    _imprecise: "output 0 is wrong",
    _in_place: "x or the memory around it was written to",
    _leaks: "output 0 has other bits: row",
    _random: "output 0 has other bits: (called twice|row)",
    _by_threads: "output 0 has other bits: [123] threads",
    _wrong_gradient: "gradient of (x|log_scale|shift) is wrong",
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found(defect, monkeypatch) -> None:
    def broken(x, *, backend, **arguments):
        outputs = list(ops.actnorm(x, backend=backend, **arguments))
        if backend is None:
            defect(outputs, x)
        return outputs

    monkeypatch.setitem(FUNCTIONS, "actnorm", broken)
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    call = Call("actnorm", {"x": x, "log_scale": x[0], "shift": x[1]}, {("x",): 1})
    with pytest.raises(Wrong, match=DEFECTS[defect]):
        for seed in range(20):
            check_valid(call, Draw("defect", seed))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("mat1 and mat2"), "neither TypeError nor ValueError but RuntimeError"),
        (ValueError("not enough values to unpack"), "message is not of three parts"),
        (None, "kernel answers, reference raises ValueError"),
    ],
)
def test_a_call_that_is_not_refused_well_is_found(error, message, monkeypatch) -> None:
    def broken(x, *, backend, **arguments):
        if backend is None and error is not None:
            raise error
        if backend is None:
            return x, x
        return ops.actnorm(x, backend=backend, **arguments)

    monkeypatch.setitem(FUNCTIONS, "actnorm", broken)
    arguments = {"x": torch.zeros(5, 7), "log_scale": torch.zeros(7), "shift": torch.zeros(8)}
    with pytest.raises(Wrong, match=message):
        check_wrong(Call("actnorm", arguments), Fault("shift is longer", arguments, False), Draw("fault", 0))


def _wait_for_calls(said: queue.SimpleQueue) -> None:
    while "calls" not in said.get(timeout=120):
        pass


def test_a_crash_is_named_and_the_others_go_on() -> None:
    said: queue.SimpleQueue = queue.SimpleQueue()
    worker = workers.Worker(["actnorm"], 5, 1, said)
    try:
        _wait_for_calls(said)
        worker.process.send_signal(signal.SIGSEGV)
        worker.process.wait()
        (find,) = worker.look_after()
        assert find.op == "actnorm" and find.seed >= 5 and "SIGSEGV" in find.message
        _wait_for_calls(said)
    finally:
        worker.stop()
