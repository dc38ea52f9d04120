"""Monotone networks alone: zuko's UMNN and MNN, called as its own flows call them, and ours with the same weights.

Every row maps (x [B, D], signal [B, D, S], form, inverse) to (y [B, D], ladj [B]) with zuko's defaults: a network of 64
and 64 units for each feature, signals of 16 numbers, 32 nodes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import calls
from bench.closeness import Distance, worst_of_map
from bench.suite import BACKWARD, FORWARD, INVERSE, Ready, Row, Suite, Tensors, named, points
from flowkernels import ops

OPS = (FORWARD, INVERSE, BACKWARD)
SIGNAL, HIDDEN = 16, (64, 64)

Map = Callable[[Tensor, Tensor, str, bool], tuple[Tensor, Tensor]]


@functools.cache
def _network(features: int, form: str, dtype: torch.dtype) -> Any:
    """zuko's, whose weights all rows have."""
    from zuko.flows.neural import MNN, UMNN

    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = (UMNN if form == "integral" else MNN)(signal=SIGNAL, stack=features, hidden_features=HIDDEN)
    return made.to(dtype)


# ---- the rows ----


def _zuko(x: Tensor, signal: Tensor, form: str, inverse: bool) -> tuple[Tensor, Tensor]:
    net = _network(x.shape[-1], form, x.dtype)
    transform: Any = net(signal, torch.zeros_like(x)) if form == "integral" else net(signal)
    y, ladj = transform.inv.call_and_ladj(x) if inverse else transform.call_and_ladj(x)
    return y, ladj.sum(-1)


def _of(backend: str, x: Tensor, signal: Tensor, form: str, inverse: bool) -> tuple[Tensor, Tensor]:
    net = _network(x.shape[-1], form, x.dtype)
    layers = [(m.weight, m.bias) for m in net.modules() if hasattr(m, "weight")]
    return ops.monotone_net(x, signal, layers, form=form, inverse=inverse, backend=backend)


def _plain(x: Tensor, signal: Tensor, form: str, inverse: bool) -> tuple[Tensor, Tensor]:
    return _of("reference", x, signal, form, inverse)


def _ours(x: Tensor, signal: Tensor, form: str, inverse: bool) -> tuple[Tensor, Tensor]:
    return _of("cpu", x, signal, form, inverse)


ROWS = named(
    Row("zuko eager", _zuko, "zuko", _plain),
    Row("plain torch", _plain, None, _plain),
    Row("plain torch compiled", _plain, None, _plain),
    Row("flowkernels", _ours, None, _plain),
)


# ---- the inputs ----


class Inputs(NamedTuple):
    """x [B, D], of an inverse y, and signals [B, D, S] of a call, and the gradients that reach its outputs."""

    x: Tensor
    y: Tensor
    signal: Tensor
    grad_y: Tensor
    grad_ladj: Tensor
    form: str

    @classmethod
    def make(cls, rows: int, features: int, form: str) -> Inputs:
        draw = torch.Generator().manual_seed(0)
        shapes = ((rows, features), (rows, features, SIGNAL), (rows, features), (rows,))
        x, signal, grad_y, grad_ladj = (torch.randn(shape, generator=draw) for shape in shapes)
        with torch.no_grad():
            y, _ = _plain(x, signal, form, False)
        return cls(x, y, signal, grad_y, grad_ladj, form)

    def least_bytes(self, op: str) -> int:
        """Every input read once, every output written once; a backward pass is a second visit. Weights are in cache."""
        x, signal, ladj = self.x.nbytes, self.signal.nbytes, self.grad_ladj.nbytes
        forward = x + signal + x + ladj
        return 2 * forward + x + signal if op == BACKWARD else forward


# ---- a row on its inputs ----


def bind(of: Map, inputs: Inputs, op: str) -> Callable[[], Tensors]:
    """The call to time: → (y, ladj), and for forward + backward also (grad_x, grad_signal)."""
    if op != BACKWARD:
        value = inputs.y if op == INVERSE else inputs.x

        def call() -> Tensors:
            with torch.no_grad():
                return of(value, inputs.signal, inputs.form, op == INVERSE)

        return call
    forward, wanted = _graph(of, inputs)
    return calls.forward_backward(forward, wanted, (inputs.grad_y, inputs.grad_ladj))


def _graph(of: Map, inputs: Inputs) -> tuple[Callable[[], tuple[Tensor, Tensor]], tuple[Tensor, ...]]:
    """Gradients of the weights come too, as in training."""
    x, signal = inputs.x.detach().requires_grad_(), inputs.signal.detach().requires_grad_()
    weights = _network(x.shape[-1], inputs.form, x.dtype).parameters()
    return lambda: of(x, signal, inputs.form, False), (x, signal, *weights)


def ready(row: Row, inputs: Inputs, op: str) -> Ready:
    of = calls.fresh_compile(row.of) if row.compiled else row.of
    call = bind(of, inputs, op)
    checked = Ready(call, lambda truth: worst_of_map(row.name, call(), truth, VALUE, GRADIENT))
    return checked if op != BACKWARD else checked._replace(forward=_graph(of, inputs)[0], backward=call)


def float64_truth(of: Map, inputs: Inputs, op: str) -> Tensors:
    wide = inputs._replace(**{n: t.double() for n, t in inputs._asdict().items() if isinstance(t, Tensor)})
    return bind(of, wide, op)()


# They decide only whether a row may be timed; bisection is off by 1e-6 and float32's own rounding.
VALUE, GRADIENT = Distance(1e-3, 1e-4), Distance(1e-2, 1e-3)


# ---- the suite ----

POINTS = [
    *points([(256, 6, form) for form in ("integral", "positive")], [FORWARD], ROWS),
    # The compiler takes minutes on forty steps of Newton's method.
    *points(
        [(256, 6, form) for form in ("integral", "positive")], [INVERSE, BACKWARD],
        ("zuko eager", "plain torch", "flowkernels"),
    ),
]  # fmt: skip
SUITE = Suite(
    title="monotone",
    points=POINTS,
    label=lambda rows, features, form: f"{form} {rows}x{features}",
    smaller=lambda rows, features, form: (max(1, rows // 32), features, form),
    inputs=Inputs.make,
    rows=ROWS,
    ready=ready,
    truth=float64_truth,
    bytes=Inputs.least_bytes,
)
