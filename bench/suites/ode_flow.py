"""Continuous maps alone: zuko's free-form transform, called as its CNF calls it, and ours with the same weights.

Every row maps x [B, D] to (y, ladj) by Dormand and Prince's pair with zuko's tolerances and zuko's field: 64 and 64
units, ELU, three frequencies of time. ``hutchinson``: the estimate, all rows with the same noise. The truth is the
solution in float64 with tolerances of 1e-8. zuko's solver reads an error in every step, which nothing compiles.
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

Map = Callable[["Inputs", bool], tuple[Tensor, Tensor]]
WAVES, SEED = 3, 0
RTOL, ATOL, TIGHT = 1e-5, 1e-6, 1e-8


@functools.cache
def layer_of(features: int, dtype: torch.dtype) -> Any:
    """zuko's, whose weights all rows have."""
    from zuko.flows.continuous import FFJTransform

    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return FFJTransform(features, freqs=WAVES).to(dtype)


def layers_of(layer: Any) -> list[tuple[Tensor, Tensor]]:
    """Its weights as the op has them, x in front of time, and its biases."""
    (weight, bias), *rest = [(m.weight, m.bias) for m in [*layer.ode][::2]]
    of_time, of_x = weight.tensor_split((2 * WAVES,), 1)
    return [(torch.cat((of_x, of_time), 1), bias), *rest]


# ---- the rows ----


def _zuko(inputs: Inputs, inverse: bool) -> tuple[Tensor, Tensor]:
    layer = layer_of(inputs.x.shape[-1], inputs.x.dtype)
    layer.exact = inputs.trace == "exact"
    torch.manual_seed(SEED)  # of the noise that it draws
    transform = layer()
    return (transform.inv if inverse else transform).call_and_ladj(inputs.y if inverse else inputs.x)


def _op(backend: str) -> Map:
    def call(inputs: Inputs, inverse: bool) -> tuple[Tensor, Tensor]:
        layer = layer_of(inputs.x.shape[-1], inputs.x.dtype)
        return ops.ode_flow(
            inputs.y if inverse else inputs.x, layers_of(layer), solver="dopri5", rtol=inputs.rtol, atol=inputs.atol,
            trace=inputs.trace, noise=None if inputs.trace == "exact" else inputs.noise, time="sinusoidal",
            frequencies=WAVES, activation="elu", inverse=inverse, backend=backend,
        )  # fmt: skip

    return call


_PLAIN = _op("reference")
ROWS = named(
    Row("zuko eager", _zuko, "zuko", _PLAIN),
    Row("plain torch", _PLAIN, None, _PLAIN),
    Row("flowkernels", _op("cpu"), None, _PLAIN),
)


# ---- the inputs ----


class Inputs(NamedTuple):
    """x [B, D], of an inverse y, the noise that zuko draws, and the gradients that reach the outputs."""

    x: Tensor
    y: Tensor
    noise: Tensor
    grad_y: Tensor
    grad_ladj: Tensor
    trace: str
    rtol: float = RTOL
    atol: float = ATOL

    @classmethod
    def make(cls, rows: int, features: int, trace: str) -> Inputs:
        draw = torch.Generator().manual_seed(1)
        x, grad_y, grad_ladj = (torch.randn(s, generator=draw) for s in ((rows, features), (rows, features), (rows,)))
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(SEED))
        found = cls(x, x, noise, grad_y, grad_ladj, trace)
        with torch.no_grad():
            return found._replace(y=_PLAIN(found, False)[0])

    def least_bytes(self, op: str) -> int:
        """Every input read once, every output written once; a backward pass is a second visit. Weights are in cache."""
        x = self.x.nbytes
        forward = 2 * x + self.grad_ladj.nbytes
        return 2 * forward + x if op == BACKWARD else forward


# ---- a row on its inputs ----


def bind(of: Map, inputs: Inputs, op: str) -> Callable[[], Tensors]:
    """The call to time: → (y, ladj), and for forward + backward also the gradients of x and of all weights."""
    if op != BACKWARD:
        return calls.without_graph(lambda: of(inputs, op == INVERSE))
    forward, wanted = _graph(of, inputs)
    return calls.forward_backward(forward, wanted, (inputs.grad_y, inputs.grad_ladj))


def _graph(of: Map, inputs: Inputs) -> tuple[Callable[[], tuple[Tensor, Tensor]], tuple[Tensor, ...]]:
    given = inputs._replace(x=inputs.x.detach().requires_grad_())
    return lambda: of(given, False), (given.x, *layer_of(given.x.shape[-1], given.x.dtype).parameters())


def ready(row: Row, inputs: Inputs, op: str) -> Ready:
    call = bind(row.of, inputs, op)
    checked = Ready(call, lambda truth: worst_of_map(row.name, call(), truth, VALUE, GRADIENT))
    if op != BACKWARD:
        return checked
    # zuko's forward pass has backward passes in it, so that what it keeps cannot be counted.
    return checked._replace(forward=None if row.package else _graph(row.of, inputs)[0], backward=call)


def float64_truth(of: Map, inputs: Inputs, op: str) -> Tensors:
    wide = {n: t.double() for n, t in inputs._asdict().items() if isinstance(t, Tensor)}
    return bind(of, inputs._replace(**wide, rtol=TIGHT, atol=TIGHT), op)()


# What tolerances allow, and the rounding of zuko's adjoint. They decide only whether a row may be timed.
VALUE, GRADIENT = Distance(1e-3), Distance(3e-2)


# ---- the suite ----

POINTS = [
    *points([(256, 6, trace) for trace in ("exact", "hutchinson")], [FORWARD, INVERSE, BACKWARD], ROWS),
    *points([(256, 21, "exact"), (256, 21, "hutchinson")], [FORWARD], ("zuko eager", "flowkernels")),
]
SUITE = Suite(
    title="continuous",
    points=POINTS,
    label=lambda rows, features, trace: f"{trace} {rows}x{features}",
    smaller=lambda rows, features, trace: (max(1, rows // 64), features, trace),
    inputs=Inputs.make,
    rows=ROWS,
    ready=ready,
    truth=float64_truth,
    bytes=Inputs.least_bytes,
)
