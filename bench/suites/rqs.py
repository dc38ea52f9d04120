"""The spline problem that every row solves: its inputs, its truth in float64, and how far from it a row may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flowkernels.ops import RQS
from flowkernels.ops.rqs import reference

TAIL_BOUND = 3.0
MIN_SIZE = 1e-3  # the default of all three libraries, and zuko's smallest slope
OPS = ("forward", "inverse", "forward + backward")

Spline = Callable[[Tensor, Tensor, int, bool], tuple[Tensor, Tensor]]


def spec_of(bins: int, parametrization: str, inverse: bool = False) -> RQS:
    return RQS(
        bins, "linear", TAIL_BOUND, None, MIN_SIZE, MIN_SIZE, MIN_SIZE, 1.0, parametrization, MIN_SIZE, inverse=inverse
    )  # fmt: skip


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
        return forward + backward if op == OPS[2] else forward


def bind(spline: Spline, inputs: Inputs, op: str) -> Callable[[], tuple[Tensor, ...]]:
    """The call to time: → (y, ladj), and for forward + backward also (grad_x, grad_params).

    No input of `forward` and `inverse` wants a gradient, so none of the rows records a graph there.
    """
    if op != OPS[2]:
        return lambda: spline(inputs.x, inputs.params, inputs.bins, op == OPS[1])
    forward, wanted = bind_graph(spline, inputs)

    def forward_backward() -> tuple[Tensor, ...]:
        y, ladj = forward()
        grads = torch.autograd.grad((y, ladj), wanted, (inputs.grad_y, inputs.grad_ladj))
        return y.detach(), ladj.detach(), *grads

    return forward_backward


def bind_graph(spline: Spline, inputs: Inputs) -> tuple[Callable[[], tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    """The forward half of forward + backward, which leaves a graph, and the two leaves that want gradients."""
    x, params = inputs.x.detach().requires_grad_(), inputs.params.detach().requires_grad_()
    return lambda: spline(x, params, inputs.bins, False), (x, params)


def float64_truth(spline: Spline, inputs: Inputs, op: str, chunk: int = 512) -> tuple[Tensor, ...]:
    """`op` in float64, a few rows at a time, so that the memory of eager float64 stays small."""
    pieces = []
    for start in range(0, inputs.x.shape[0], chunk):
        part = (t[start : start + chunk].double() for t in inputs[:4])
        pieces.append(bind(spline, Inputs(*part, bins=inputs.bins), op)())
    return tuple(torch.cat(column) for column in zip(*pieces, strict=True))


# Largest error, as a fraction of the quantity's largest value, and error in the 2-norm, as a fraction of its norm.
# They decide only whether a row may be timed. Values: float32 loses this much in bins of width 1e-3. Gradients divide
# by bin sizes, some of them twice, and one element in half a million carries most of the 2-norm.
BOUNDS = {"value": (1e-4, 1e-5), "gradient": (1e-2, 5e-3)}


def _quantities(outputs: tuple[Tensor, ...], bins: int) -> dict[str, Tensor]:
    named = {"y": outputs[0], "ladj": outputs[1]}
    if len(outputs) == 4:
        widths, heights, slopes = outputs[3].split([bins, bins, bins - 1], -1)
        named |= {"grad x": outputs[2], "grad widths": widths, "grad heights": heights, "grad slopes": slopes}
    return named


def worst_error(name: str, outputs: tuple[Tensor, ...], truth: tuple[Tensor, ...], bins: int) -> float:
    """Asserts that the outputs are finite and within `BOUNDS` of the truth; → the largest relative error of y, ladj.

    Raises:
        AssertionError: the row is wrong, so its time means nothing.
    """
    worst = 0.0
    expected = _quantities(truth, bins)
    for quantity, value in _quantities(outputs, bins).items():
        target = expected[quantity]
        assert value.shape == target.shape, f"{name}: {quantity} must be {list(target.shape)}, got {list(value.shape)}"
        difference = value.double() - target
        largest = difference.abs().max().item() / max(1.0, target.abs().max().item())
        norm = difference.norm().item() / max(target.norm().item(), 1e-300)
        kind = "gradient" if quantity.startswith("grad") else "value"
        of_largest, of_norm = BOUNDS[kind]
        if not (largest <= of_largest and norm <= of_norm):  # a NaN is not
            raise AssertionError(
                f"{name}: {quantity} must be within {of_largest:.0e} of its largest value and {of_norm:.0e} of its "
                f"2-norm of the float64 truth, got {largest:.1e} and {norm:.1e}"
            )
        if kind == "value":
            worst = max(worst, largest)
    return worst
