"""The polynomial maps alone: zuko's own transforms, called as its own layers call them, and ours.

Every row maps (x [B, D], params [B, D, P], family, inverse) to (y [B, D], ladj [B]) with zuko's defaults: three squared
polynomials of degree 4, and a Bernstein polynomial of 17 free coefficients on [-5, 5].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import calls
from bench.closeness import Distance, assert_close
from bench.suite import BACKWARD, FORWARD, INVERSE, Ready, Row, Suite, Tensors, named, points
from flowkernels.ops import Polynomial

OPS = (FORWARD, INVERSE, BACKWARD)
MAPS = {"sos": Polynomial(bounded=True), "bernstein": Polynomial("bernstein", edge=1e-6)}

Map = Callable[[Tensor, Tensor, str, bool], tuple[Tensor, Tensor]]


# ---- the rows ----


def _zuko(x: Tensor, params: Tensor, family: str, inverse: bool) -> tuple[Tensor, Tensor]:
    from zuko.flows.polynomial import ShiftedSOSPTransform
    from zuko.transforms import BoundedBernsteinTransform

    if family == "sos":
        f = MAPS[family]
        a = params[..., :-1].unflatten(-1, (f.terms, f.degree + 1))
        transform: Any = ShiftedSOSPTransform(a, params[..., -1])
    else:
        transform = BoundedBernsteinTransform(params)
    y, ladj = transform.inv.call_and_ladj(x) if inverse else transform.call_and_ladj(x)
    return y, ladj.sum(-1)


def _plain(x: Tensor, params: Tensor, family: str, inverse: bool) -> tuple[Tensor, Tensor]:
    return (MAPS[family].inverted() if inverse else MAPS[family]).reference(x, params)


def _ours(x: Tensor, params: Tensor, family: str, inverse: bool) -> tuple[Tensor, Tensor]:
    return MAPS[family](x, params, inverse, backend="cpu")


ROWS = named(
    Row("zuko eager", _zuko, "zuko", _plain),
    Row("zuko compiled", _zuko, "zuko", _plain),
    Row("plain torch", _plain, None, _plain),
    Row("plain torch compiled", _plain, None, _plain),
    Row("flowkernels", _ours, None, _plain),
)


# ---- the inputs ----


class Inputs(NamedTuple):
    """x [B, D], of an inverse y, and params [B, D, P] of a call, and the gradients that reach its outputs."""

    x: Tensor
    y: Tensor
    params: Tensor
    grad_y: Tensor
    grad_ladj: Tensor
    family: str

    @classmethod
    def make(cls, rows: int, features: int, family: str) -> Inputs:
        draw = torch.Generator().manual_seed(0)
        shapes = ((rows, features), (rows, features, MAPS[family].n_params), (rows, features), (rows,))
        x, params, grad_y, grad_ladj = (torch.randn(shape, generator=draw) for shape in shapes)
        with torch.no_grad():
            y, _ = _plain(x, params, family, False)
        return cls(x, y, params, grad_y, grad_ladj, family)

    def least_bytes(self, op: str) -> int:
        """Every input read once, every output written once; a backward pass is a second visit."""
        x, params, ladj = self.x.nbytes, self.params.nbytes, self.grad_ladj.nbytes
        forward = x + params + x + ladj
        return 2 * forward + x + params if op == BACKWARD else forward


# ---- a row on its inputs ----


def bind(of: Map, inputs: Inputs, op: str) -> Callable[[], Tensors]:
    """The call to time: → (y, ladj), and for forward + backward also (grad_x, grad_params)."""
    if op != BACKWARD:
        value = inputs.y if op == INVERSE else inputs.x
        return lambda: of(value, inputs.params, inputs.family, op == INVERSE)
    forward, wanted = _graph(of, inputs)
    return calls.forward_backward(forward, wanted, (inputs.grad_y, inputs.grad_ladj))


def _graph(of: Map, inputs: Inputs) -> tuple[Callable[[], tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    x, params = inputs.x.detach().requires_grad_(), inputs.params.detach().requires_grad_()
    return lambda: of(x, params, inputs.family, False), (x, params)


def ready(row: Row, inputs: Inputs, op: str) -> Ready:
    of = calls.fresh_compile(row.of) if row.compiled else row.of
    call = bind(of, inputs, op)
    checked = Ready(call, lambda truth: worst_error(row.name, call(), truth))
    return checked if op != BACKWARD else checked._replace(forward=_graph(of, inputs)[0], backward=call)


def float64_truth(of: Map, inputs: Inputs, op: str) -> Tensors:
    wide = inputs._replace(**{n: t.double() for n, t in inputs._asdict().items() if isinstance(t, Tensor)})
    return bind(of, wide, op)()


# They decide only whether a row may be timed: float32 loses this much where a slope is small.
VALUE, GRADIENT = Distance(1e-3, 1e-4), Distance(1e-2, 1e-3)


def worst_error(name: str, outputs: Tensors, truth: Tensors) -> float:
    """Asserts that the outputs are close to the truth; → the largest relative error of y, ladj."""
    for i, what in enumerate(("grad x", "grad params")[: len(outputs) - 2], 2):
        assert_close(name, what, outputs[i], truth[i], GRADIENT, least=1.0)
    worst = 0.0
    for what, found, wanted in zip(("y", "ladj"), outputs[:2], truth[:2], strict=True):
        worst = max(worst, assert_close(name, what, found, wanted, VALUE, least=1.0).largest or 0.0)
    return worst


# ---- the suite ----

FAMILIES = tuple(MAPS)
POINTS = [
    *points([(512, 32, f) for f in FAMILIES], [FORWARD], ROWS),
    *points([(512, 32, "sos")], [BACKWARD], ROWS),
    # torch 2.13 cannot compile the backward pass of either peer.
    *points([(512, 32, "bernstein")], [BACKWARD], ("zuko eager", "plain torch", "flowkernels")),
    # The compiler takes minutes on forty steps of Newton's method, and zuko's bisection.
    *points([(512, 32, f) for f in FAMILIES], [INVERSE], ("zuko eager", "plain torch", "flowkernels")),
    *points([(256, 6, f) for f in FAMILIES], [FORWARD], ("zuko eager", "plain torch compiled", "flowkernels")),
]
SUITE = Suite(
    title="polynomial",
    points=POINTS,
    label=lambda rows, features, family: f"{family} {rows}x{features}",
    smaller=lambda rows, features, family: (max(1, rows // 32), features, family),
    inputs=Inputs.make,
    rows=ROWS,
    ready=ready,
    truth=float64_truth,
    bytes=Inputs.least_bytes,
)
