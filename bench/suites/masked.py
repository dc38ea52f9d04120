"""The masked layer that every row computes, relu(x (W∘M)ᵀ + b): its rows, its truth, how far a row may be from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.suites import peers
from flowkernels import ops
from flowkernels.ops.net import LayerPlan, layer_plan

FEATURES = 64  # D, from which nflows' degrees follow
OPS = ("forward", "forward + backward")
Tensors = tuple[Tensor, ...]


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
ROWS = {"nflows eager": _nflows, "nflows compiled": _nflows, DENSE: _dense, "flowkernels": _ours}


def bind(name: str, inputs: Inputs, op: str) -> Callable[[], Tensors]:
    """The call to time: → (y,), and for forward + backward the gradients of x, weight and bias behind it."""
    x, weight, bias, grad, plan = inputs
    mask = plan.mask(weight)
    layer = ROWS[name](plan, mask)
    if name.endswith("compiled"):
        layer = peers.fresh_compile(layer)
    if name == DENSE:  # masked before the clock starts
        weight = weight * mask
    if op == OPS[0]:

        def forward() -> Tensors:
            with torch.no_grad():
                return (layer(x, weight, bias),)

        return forward
    leaves = tuple(t.detach().requires_grad_() for t in (x, weight, bias))

    def forward_backward() -> Tensors:
        y = layer(*leaves)
        return y.detach(), *torch.autograd.grad(y, leaves, grad)

    return forward_backward


def float64_truth(inputs: Inputs, op: str) -> Tensors:
    wide = (t.double() for t in inputs[:4])
    return bind("nflows eager", Inputs(*wide, plan=inputs.plan), op)()


# Of the quantity's 2-norm: an argument of relu within rounding of 0 has two right slopes, so that a single gradient
# says nothing. Of the output also the largest error, as a fraction of its largest value.
BOUNDS = {"value": 1e-5, "gradient": 2e-3}


def worst_error(name: str, inputs: Inputs, outputs: Tensors, truth: Tensors) -> float:
    """Asserts that the outputs are finite and within `BOUNDS` of the truth; → the largest relative error of y.

    Raises:
        AssertionError: the row is wrong, so its time means nothing.
    """
    largest = ((outputs[0].double() - truth[0]).abs().max() / truth[0].abs().max()).item()
    for quantity, value, target in zip(("y", "grad x", "grad weight", "grad bias"), outputs, truth, strict=False):
        if quantity == "grad weight" and name == DENSE:
            value = value * inputs.plan.mask(value)  # it has gradients where the mask is 0
        bound = BOUNDS["gradient" if quantity.startswith("grad") else "value"]
        error = ((value.double() - target).norm() / target.norm()).item()
        if not (error <= bound and largest <= BOUNDS["value"]):  # a NaN is not
            raise AssertionError(
                f"{name}: {quantity} must be within {bound:.0e} of the float64 truth, got {max(error, largest):.1e}"
            )
    return largest
