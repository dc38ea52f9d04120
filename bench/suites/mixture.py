"""The mixture map alone: plain PyTorch, eager and compiled, its inverse by bisection as libraries have it, and ours.

Every row maps (x [B, D], params [B, D, 3K], components, inverse) to (y [B, D], ladj [B]): a mixture of logistics, and
the logit of its distribution function. The short form of plain PyTorch saturates in its tails, where the reference and
the kernel do not: what it is compared on is drawn where it does not. zuko's bisection takes 25 steps in [-10, 10], and
stops at 1e-6; so does this one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import calls
from bench.closeness import Distance, assert_close
from bench.suite import BACKWARD, FORWARD, INVERSE, Ready, Row, Suite, Tensors, named, points
from flowkernels import ops
from flowkernels.ops import Mixture
from flowkernels.ops.mixture import reference

OPS = (FORWARD, INVERSE, BACKWARD)
BOUND, STEPS = 10.0, 25

Map = Callable[[Tensor, Tensor, int, bool], tuple[Tensor, Tensor]]


# ---- the rows ----


def _short(x: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
    weight, means, per_scale = parts.unbind(-2)
    s = torch.sigmoid((x[..., None] - means) * per_scale)
    part = weight * s
    below, density = part.sum(-1), (part * (1 - s) * per_scale).sum(-1)
    both = below * (1 - below)
    return torch.logit(below), torch.log(density / both)


def _logs(x: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
    log_weight, means, log_scale = parts.unbind(-2)
    z = (x[..., None] - means) * torch.exp(-log_scale)
    low, high = F.logsigmoid(z), F.logsigmoid(-z)
    below, above = torch.logsumexp(log_weight + low, -1), torch.logsumexp(log_weight + high, -1)
    density = torch.logsumexp(log_weight + low + high - log_scale, -1)
    return below - above, density - below - above


def _by_bisection(form: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], y: Tensor, parts: Tensor) -> Any:
    low, high = torch.full_like(y, -BOUND), torch.full_like(y, BOUND)
    for _ in range(STEPS):
        middle = (low + high) / 2
        above = form(middle, parts)[0] > y
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    x = (low + high) / 2
    return x, -form(x, parts)[1].sum(-1)


def _plain(form: Any, scale: Callable[[Tensor], Tensor], weight: Callable[..., Tensor]) -> Map:
    def run(x: Tensor, params: Tensor, components: int, inverse: bool) -> tuple[Tensor, Tensor]:
        w, m, s = params.unflatten(-1, (3, components)).unbind(-2)
        parts = torch.stack((weight(w, -1), m, scale(s)), -2)
        if inverse:
            return _by_bisection(form, x, parts)
        y, ladj = form(x, parts)
        return y, ladj.sum(-1)

    return run


_plain_short = _plain(_short, lambda s: torch.exp(-s), torch.softmax)
_plain_logs = _plain(_logs, lambda s: s, torch.log_softmax)


def _truth(x: Tensor, params: Tensor, components: int, inverse: bool) -> tuple[Tensor, Tensor]:
    return reference.fwd(Mixture(components, inverse=inverse), x, params)


def _ours(x: Tensor, params: Tensor, components: int, inverse: bool) -> tuple[Tensor, Tensor]:
    return ops.mixture(x, params, components=components, inverse=inverse, backend="cpu")


ROWS = named(
    Row("plain torch eager", _plain_short, None, _truth),
    Row("plain torch in logs eager", _plain_logs, None, _truth),
    Row("plain torch compiled", _plain_short, None, _truth),
    Row("plain torch in logs compiled", _plain_logs, None, _truth),
    Row("flowkernels", _ours, None, _truth),
)


# ---- the inputs ----


class Inputs(NamedTuple):
    """x [B, D] and params [B, D, 3K] of a call, and the gradients that reach its outputs."""

    x: Tensor
    params: Tensor
    grad_y: Tensor
    grad_ladj: Tensor
    components: int

    @classmethod
    def make(cls, rows: int, features: int, components: int) -> Inputs:
        """Scales near 1, so that the short form does not saturate and a bisection's bracket holds the roots."""
        draw = torch.Generator().manual_seed(0)
        shapes = ((rows, features), (rows, features, 3 * components), (rows, features), (rows,))
        x, params, grad_y, grad_ladj = (torch.randn(shape, generator=draw) for shape in shapes)
        params[..., 2 * components :] *= 0.3
        return cls(x.clamp(-3, 3), params, grad_y, grad_ladj, components)

    def least_bytes(self, op: str) -> int:
        """Bytes that any implementation of `op` must move: every input read once, every output written once."""
        x, params, ladj = self.x.nbytes, self.params.nbytes, self.grad_ladj.nbytes
        forward = x + params + x + ladj
        return forward + (x + params + x + ladj) + (x + params) if op == BACKWARD else forward


# ---- a row on its inputs ----


def bind(row: Map, inputs: Inputs, op: str) -> Callable[[], Tensors]:
    """The call to time: → (y, ladj), and for forward + backward also (grad_x, grad_params)."""
    if op != BACKWARD:
        return lambda: row(inputs.x, inputs.params, inputs.components, op == INVERSE)
    x, params = inputs.x.detach().requires_grad_(), inputs.params.detach().requires_grad_()
    forward = lambda: row(x, params, inputs.components, False)  # noqa: E731
    return calls.forward_backward(forward, (x, params), (inputs.grad_y, inputs.grad_ladj))


def ready(row: Row, inputs: Inputs, op: str) -> Ready:
    run = calls.fresh_compile(row.of) if row.compiled else row.of
    call = bind(run, inputs, op)
    return Ready(call, lambda truth: worst_error(row.name, call(), truth))


def float64_truth(row: Map, inputs: Inputs, op: str) -> Tensors:
    return bind(row, Inputs(*(t.double() for t in inputs[:4]), components=inputs.components), op)()


# They decide only whether a row may be timed. A bisection ends a millionth away from the root.
VALUE, GRADIENT = Distance(1e-4, 1e-5), Distance(1e-2, 1e-3)


def worst_error(name: str, outputs: Tensors, truth: Tensors) -> float:
    """Asserts that the outputs are close to the truth; → the largest relative error of y, ladj."""
    pairs = list(zip(("y", "ladj", "grad x", "grad params"), outputs, truth, strict=False))
    for quantity, found, expected in pairs[2:]:
        assert_close(name, quantity, found, expected, GRADIENT, least=1.0)
    return max(assert_close(name, q, found, expected, VALUE, least=1.0).largest for q, found, expected in pairs[:2])


# ---- the suite ----

SHORT = ("plain torch eager", "plain torch compiled", "flowkernels")
SUITE = Suite(
    title="mixture",
    points=[
        *points([(512, 32, 8), (512, 32, 16)], OPS, ROWS),
        *points([(8192, 64, 8)], [FORWARD, BACKWARD], SHORT),
        *points([(64, 6, 8)], OPS, SHORT),  # a layer of a small model
    ],
    label=lambda rows, features, components: f"{rows}x{features} K={components}",
    smaller=lambda rows, features, components: (max(1, rows // 128), features, components),
    inputs=Inputs.make,
    rows=ROWS,
    ready=ready,
    truth=float64_truth,
    bytes=Inputs.least_bytes,
)
