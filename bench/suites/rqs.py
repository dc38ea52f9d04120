"""The spline alone: each library's own function, called as its own layers call it, and ours.

Every row maps (x [B, D], params [B, D, 3K-1], bins, inverse) to (y [B, D], ladj [B]) on the box [-3, 3]: a user of
a flow needs the row sum, so it is inside every row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import calls
from bench.closeness import Distance, assert_close
from bench.suite import BACKWARD, FORWARD, INVERSE, Ready, Row, Suite, Tensors, named, points
from flowkernels import ops
from flowkernels.ops import RQS
from flowkernels.ops.rqs import reference

TAIL_BOUND = 3.0
MIN_SIZE = 1e-3  # the default of all three libraries, and zuko's smallest slope
OPS = (FORWARD, INVERSE, BACKWARD)

Spline = Callable[[Tensor, Tensor, int, bool], tuple[Tensor, Tensor]]


# ---- the rows ----


def _from_parts(spline: Callable[..., Any], x: Tensor, params: Tensor, bins: int, inverse: bool) -> Any:
    y, ladj = spline(
        x, params[..., :bins], params[..., bins : 2 * bins], params[..., 2 * bins :],
        inverse=inverse, tails="linear", tail_bound=TAIL_BOUND,
    )  # fmt: skip
    return y, ladj.sum(-1)


def _nflows(x: Tensor, params: Tensor, bins: int, inverse: bool) -> tuple[Tensor, Tensor]:
    from nflows.transforms.splines.rational_quadratic import unconstrained_rational_quadratic_spline

    return _from_parts(unconstrained_rational_quadratic_spline, x, params, bins, inverse)


def _normflows(x: Tensor, params: Tensor, bins: int, inverse: bool) -> tuple[Tensor, Tensor]:
    from normflows.utils.splines import unconstrained_rational_quadratic_spline

    return _from_parts(unconstrained_rational_quadratic_spline, x, params, bins, inverse)


def _zuko(x: Tensor, params: Tensor, bins: int, inverse: bool) -> tuple[Tensor, Tensor]:
    from zuko.transforms import MonotonicRQSTransform

    transform: Any = MonotonicRQSTransform(*params.split([bins, bins, bins - 1], -1), bound=TAIL_BOUND, slope=MIN_SIZE)
    y, ladj = transform.inv.call_and_ladj(x) if inverse else transform.call_and_ladj(x)
    return y, ladj.sum(-1)


def spec_of(bins: int, parametrization: str, inverse: bool = False) -> RQS:
    return RQS(
        bins, "linear", TAIL_BOUND, None, MIN_SIZE, MIN_SIZE, MIN_SIZE, 1.0, parametrization, MIN_SIZE, inverse=inverse
    )  # fmt: skip


def _plain(x: Tensor, params: Tensor, bins: int, inverse: bool) -> tuple[Tensor, Tensor]:
    return reference.fwd(spec_of(bins, "softmax", inverse), x, params)


def _plain_soft_clip(x: Tensor, params: Tensor, bins: int, inverse: bool) -> tuple[Tensor, Tensor]:
    return reference.fwd(spec_of(bins, "soft_clip", inverse), x, params)


def _ours(x: Tensor, params: Tensor, bins: int, inverse: bool) -> tuple[Tensor, Tensor]:
    return ops.rqs(x, params, bins=bins, tail_bound=TAIL_BOUND, inverse=inverse, backend="cpu")


def _ours_soft_clip(x: Tensor, params: Tensor, bins: int, inverse: bool) -> tuple[Tensor, Tensor]:
    return ops.rqs(
        x, params, bins=bins, tail_bound=TAIL_BOUND, parametrization="soft_clip", slope=MIN_SIZE, inverse=inverse,
        backend="cpu",
    )  # fmt: skip


ROWS = named(
    Row("nflows eager", _nflows, "nflows", _plain),
    Row("normflows eager", _normflows, "normflows", _plain),
    Row("zuko eager", _zuko, "zuko", _plain_soft_clip),
    Row("nflows compiled", _nflows, "nflows", _plain),
    Row("normflows compiled", _normflows, "normflows", _plain),
    Row("zuko compiled", _zuko, "zuko", _plain_soft_clip),
    Row("plain torch compiled", _plain, None, _plain),
    Row("flowkernels", _ours, None, _plain),
    Row("flowkernels soft_clip", _ours_soft_clip, None, _plain_soft_clip),
)


# ---- the inputs ----

KNOT_MARGIN = 2e-5


def _off_the_knots(x: Tensor, params: Tensor, bins: int, chunk: int = 512) -> Tensor:
    """x with every value that lies on a knot, to within rounding, moved off it.

    The gradient of ladj jumps at a knot: there two right answers differ, and a check could not tell them from a wrong
    one. Moves a few values in ten thousand.
    """
    x = x.clone()
    for start in range(0, x.shape[0], chunk):
        part = x[start : start + chunk]
        logits = params[start : start + chunk, :, :bins].double()
        for spec in (spec_of(bins, "softmax"), spec_of(bins, "soft_clip")):
            knots, _ = reference._knots(logits, spec.left, spec.right, spec.least_width, spec)
            near = (part[..., None] - knots).abs().amin(-1) < KNOT_MARGIN
            part += 2 * KNOT_MARGIN * near
    return x


class Inputs(NamedTuple):
    """x [B, D] and params [B, D, 3K-1] of a spline call, and the gradients that reach its outputs."""

    x: Tensor
    params: Tensor
    grad_y: Tensor
    grad_ladj: Tensor
    bins: int

    @classmethod
    def make(cls, rows: int, features: int, bins: int) -> Inputs:
        """Standard normal throughout: 0.3 % of x lies outside the box."""
        draw = torch.Generator().manual_seed(0)
        shapes = ((rows, features), (rows, features, 3 * bins - 1), (rows, features), (rows,))
        x, params, grad_y, grad_ladj = (torch.randn(shape, generator=draw) for shape in shapes)
        return cls(_off_the_knots(x, params, bins), params, grad_y, grad_ladj, bins)

    def least_bytes(self, op: str) -> int:
        """Bytes that any implementation of `op` must move: every input read once, every output written once.

        The backward pass is a second visit: it reads x, params and the incoming gradients, and writes two gradients.
        """
        x, params, ladj = self.x.nbytes, self.params.nbytes, self.grad_ladj.nbytes
        forward = x + params + x + ladj
        backward = (x + params + x + ladj) + (x + params)
        return forward + backward if op == BACKWARD else forward


# ---- a row on its inputs ----


def bind(spline: Spline, inputs: Inputs, op: str) -> Callable[[], Tensors]:
    """The call to time: → (y, ladj), and for forward + backward also (grad_x, grad_params).

    No input of `forward` and `inverse` wants a gradient, so none of the rows records a graph there.
    """
    if op != BACKWARD:
        return lambda: spline(inputs.x, inputs.params, inputs.bins, op == INVERSE)
    forward, wanted = bind_graph(spline, inputs)
    return calls.forward_backward(forward, wanted, (inputs.grad_y, inputs.grad_ladj))


def bind_graph(spline: Spline, inputs: Inputs) -> tuple[Callable[[], tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    """The forward half of forward + backward, which leaves a graph, and the two leaves that want gradients."""
    x, params = inputs.x.detach().requires_grad_(), inputs.params.detach().requires_grad_()
    return lambda: spline(x, params, inputs.bins, False), (x, params)


def ready(row: Row, inputs: Inputs, op: str) -> Ready:
    spline = calls.fresh_compile(row.of) if row.compiled else row.of
    call = bind(spline, inputs, op)
    checked = Ready(call, lambda truth: worst_error(row.name, call(), truth, inputs.bins))
    if op != BACKWARD:
        return checked
    return checked._replace(forward=bind_graph(spline, inputs)[0], backward=call)


def float64_truth(spline: Spline, inputs: Inputs, op: str, chunk: int = 512) -> Tensors:
    """`op` in float64, a few rows at a time, so that the memory of eager float64 stays small."""
    pieces = []
    for start in range(0, inputs.x.shape[0], chunk):
        part = (t[start : start + chunk].double() for t in inputs[:4])
        pieces.append(bind(spline, Inputs(*part, bins=inputs.bins), op)())
    return tuple(torch.cat(column) for column in zip(*pieces, strict=True))


# They decide only whether a row may be timed. Values: float32 loses this much in bins of width 1e-3. Gradients divide
# by bin sizes, some of them twice, and one element in half a million carries most of the 2-norm.
VALUE, GRADIENT = Distance(1e-4, 1e-5), Distance(1e-2, 5e-3)


def _quantities(outputs: Tensors, bins: int) -> dict[str, Tensor]:
    named = {"y": outputs[0], "ladj": outputs[1]}
    if len(outputs) == 4:
        widths, heights, slopes = outputs[3].split([bins, bins, bins - 1], -1)
        named |= {"grad x": outputs[2], "grad widths": widths, "grad heights": heights, "grad slopes": slopes}
    return named


def worst_error(name: str, outputs: Tensors, truth: Tensors, bins: int) -> float:
    """Asserts that the outputs are close to the truth; → the largest relative error of y, ladj."""
    expected, found = _quantities(truth, bins), _quantities(outputs, bins)
    assert found.keys() == expected.keys(), f"{name}: must give {list(expected)}, got {list(found)}"
    of_gradients = [q for q in found if q.startswith("grad")]
    for quantity in of_gradients:
        assert_close(name, quantity, found[quantity], expected[quantity], GRADIENT, least=1.0)
    values = (assert_close(name, q, found[q], expected[q], VALUE, least=1.0) for q in ("y", "ladj"))
    return max(error.largest for error in values)


# ---- the suite ----

SHORT = ("nflows eager", "plain torch compiled", "flowkernels")
POINTS = [
    *points([(8192, 64, 8)], OPS, ROWS),
    # The compiler takes minutes on the peers' graphs: at K = 32 only where it makes one graph.
    *points([(8192, 64, 32)], OPS, (*list(ROWS)[:3], "zuko compiled", "plain torch compiled", "flowkernels")),
    *points([(4096, 63, 8)], OPS, SHORT),  # odd rows: no vector ends where a row ends
    *points([(512, 6, 8)], OPS, SHORT),  # a layer of a small model
    *points([(64, 8, 8)], [FORWARD], SHORT),  # what one call costs before it does anything
]
SUITE = Suite(
    title="spline",
    points=POINTS,
    label=lambda rows, features, bins: f"{rows}x{features} K={bins}",
    smaller=lambda rows, features, bins: (max(1, rows // 128), features, bins),
    inputs=Inputs.make,
    rows=ROWS,
    ready=ready,
    truth=float64_truth,
    bytes=Inputs.least_bytes,
)
