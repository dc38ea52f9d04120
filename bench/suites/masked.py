"""One masked layer, relu(x (W∘M)ᵀ + b), against a product with masked weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import calls
from bench.closeness import Distance, assert_close
from bench.suite import BACKWARD, FORWARD, Ready, Row, Suite, Tensors, named, points
from flowkernels import ops
from flowkernels.ops.net import LayerPlan, layer_plan

FEATURES = 64  # D, from which nflows' degrees follow
OPS = (FORWARD, BACKWARD)
WIDTHS = ((256, 256), (512, 512), (1024, 1024), (64, 512), (512, 128))
BATCHES = (512, 4096)


def plan_of(n_in: int, n_out: int) -> LayerPlan:
    """nflows' degrees of a hidden layer: inputs are features where there are D of them, units of another layer else."""
    units = [1 + k % (FEATURES - 1) for k in range(max(n_in, n_out))]
    return layer_plan(range(1, FEATURES + 1) if n_in == FEATURES else units[:n_in], units[:n_out])


class Inputs(NamedTuple):
    """A layer's tensors, and the gradient that reaches its output."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    grad: Tensor
    plan: LayerPlan

    @classmethod
    def make(cls, rows: int, n_in: int, n_out: int) -> Inputs:
        draw = torch.Generator().manual_seed(0)
        shapes = ((rows, n_in), (n_out, n_in), (n_out,), (rows, n_out))
        x, weight, bias, grad = (torch.randn(shape, generator=draw) for shape in shapes)
        return cls(x, weight / n_in**0.5, bias, grad, plan_of(n_in, n_out))


# ---- the rows: plan, mask → layer ----

Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


def _nflows(plan: LayerPlan, mask: Tensor) -> Layer:
    """nflows' MaskedLinear.forward and what its networks put behind it."""
    return lambda x, weight, bias: F.relu(F.linear(x, weight * mask, bias))


def _dense(plan: LayerPlan, mask: Tensor) -> Layer:
    """The product that no mask makes smaller: the floor of everybody who multiplies weights by a mask."""
    return lambda x, weight, bias: F.relu(F.linear(x, weight, bias))


def _ours(plan: LayerPlan, mask: Tensor) -> Layer:
    return lambda x, weight, bias: ops.masked_linear(x, weight, bias, plan, activation="relu", backend="cpu")


DENSE = "dense product"
ROWS = named(
    Row("nflows eager", _nflows), Row("nflows compiled", _nflows), Row(DENSE, _dense), Row("flowkernels", _ours)
)


# ---- a row on its inputs ----


def bind(row: Row, inputs: Inputs, op: str) -> Callable[[], Tensors]:
    """The call to time: → (y,), and for forward + backward the gradients of x, weight and bias behind it."""
    x, weight, bias, grad, plan = inputs
    mask = plan.mask(weight)
    layer = row.of(plan, mask)
    layer = calls.fresh_compile(layer) if row.compiled else layer
    if row.name == DENSE:  # masked before the clock starts
        weight = weight * mask
    if op == FORWARD:
        return calls.without_graph(lambda: (layer(x, weight, bias),))
    leaves = tuple(t.detach().requires_grad_() for t in (x, weight, bias))
    return calls.forward_backward(lambda: (layer(*leaves),), leaves, (grad,))


def ready(row: Row, inputs: Inputs, op: str) -> Ready:
    call = bind(row, inputs, op)
    return Ready(
        call, lambda truth: worst_error(row.name, inputs, call(), truth), backward=call if op == BACKWARD else None
    )  # fmt: skip


def float64_truth(_: object, inputs: Inputs, op: str) -> Tensors:
    wide = (t.double() for t in inputs[:4])
    return bind(ROWS["nflows eager"], Inputs(*wide, plan=inputs.plan), op)()


# An argument of relu within rounding of 0 has two right slopes, so that a single gradient says nothing.
VALUE, GRADIENT = Distance(1e-5, 1e-5), Distance(norm=2e-3)


def worst_error(name: str, inputs: Inputs, outputs: Tensors, truth: Tensors) -> float:
    """Asserts that the outputs are close to the truth; → the largest relative error of y."""
    quantities = ("grad x", "grad weight", "grad bias")[: len(truth) - 1]
    for quantity, value, target in zip(quantities, outputs[1:], truth[1:], strict=True):
        if quantity == "grad weight" and name == DENSE:
            value = value * inputs.plan.mask(value)  # it has gradients where the mask is 0
        assert_close(name, quantity, value, target, GRADIENT)
    return assert_close(name, "y", outputs[0], truth[0], VALUE).largest


SUITE = Suite(
    title="masked layer",
    points=points([(rows, *width) for width in WIDTHS for rows in BATCHES], OPS, ROWS),
    label=lambda rows, n_in, n_out: f"{rows}x{n_in} to {n_out}",
    smaller=lambda rows, n_in, n_out: (rows // 128, n_in, n_out),
    inputs=Inputs.make,
    rows=ROWS,
    ready=ready,
    truth=float64_truth,
)
