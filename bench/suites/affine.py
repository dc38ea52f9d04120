"""An affine coupling layer without its network.

What a library's layer does apart from the conditioner: it splits x, makes scale and shift of the parameters, maps, sums
the log-determinant and puts the halves together. The parameters stand where the network's output would, so that
gradients reach them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench import calls
from bench.closeness import Distance, assert_close
from bench.suite import BACKWARD, FORWARD, INVERSE, Ready, Row, Suite, Tensors, named, points
from flowkernels import ops

OPS = (FORWARD, INVERSE, BACKWARD)
SHAPES = ((4096, 64), (64, 12, 16, 16), (64, 48, 32, 32))
Layer = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]


class Inputs(NamedTuple):
    """x, the parameters of its second half in blocks shift | scale logit, and the gradients that reach the outputs."""

    x: Tensor
    params: Tensor
    grad_y: Tensor
    grad_ladj: Tensor

    @classmethod
    def make(cls, *shape: int) -> Inputs:
        draw = torch.Generator().manual_seed(0)
        shapes = (shape, shape, shape, shape[:1])
        return cls(*(torch.randn(s, generator=draw) for s in shapes))

    def least_bytes(self, op: str) -> int:
        """Every input read once, every output written once; the backward pass reads the mapped half of x again."""
        x, params, ladj = self.x.nbytes, self.params.nbytes, self.grad_ladj.nbytes
        forward = x + params + x + ladj
        backward = (x // 2 + params + x + ladj) + (x + params)
        return forward + backward if op == BACKWARD else forward


# ---- the rows: channels → layer ----


class _Given(nn.Module):
    """Stands where the conditioner stands, and returns what it was given."""

    params: Tensor

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.params


def _fed(layer: Any, given: _Given) -> Layer:
    def run(x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        given.params = params
        return layer.inverse(x) if inverse else layer(x)

    return run


def _nflows(channels: int) -> Layer:
    from nflows.transforms import AffineCouplingTransform

    given = _Given()
    mask = [0] * (channels // 2) + [1] * (channels // 2)
    return _fed(AffineCouplingTransform(mask, lambda a, b: given), given)


def _normflows(channels: int) -> Layer:
    """Its parameters alternate, shift and scale logit, which costs it nothing to be told; no floor under its scale."""
    from normflows.flows import AffineCouplingBlock

    given = _Given()
    return _fed(AffineCouplingBlock(given, scale_map="sigmoid_inv"), given)


def _ours(floor: float, alternating: bool, backend: str) -> Callable[[int], Layer]:
    def layer(channels: int) -> Layer:
        sizes, dim = ((-1, 2), 2) if alternating else ((2, -1), 1)

        def run(x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
            return ops.affine(
                x, params.unflatten(1, sizes).movedim(dim, -1), scale="sigmoid", min_scale=floor, shift_first=True,
                part=slice(channels // 2, None), event_dims=x.dim() - 1, inverse=inverse, backend=backend,
            )  # fmt: skip

        return run

    return layer


_LIKE_NFLOWS, _LIKE_NORMFLOWS = _ours(1e-3, False, "reference"), _ours(0.0, True, "reference")
ROWS = named(
    Row("nflows eager", _nflows, "nflows", _LIKE_NFLOWS),
    Row("nflows compiled", _nflows, "nflows", _LIKE_NFLOWS),
    Row("normflows eager", _normflows, "normflows", _LIKE_NORMFLOWS),
    Row("normflows compiled", _normflows, "normflows", _LIKE_NORMFLOWS),
    Row("plain torch compiled", _LIKE_NFLOWS, None, _LIKE_NFLOWS),
    Row("flowkernels", _ours(1e-3, False, "cpu"), None, _LIKE_NFLOWS),
    Row("flowkernels as normflows", _ours(0.0, True, "cpu"), None, _LIKE_NORMFLOWS),
)


# ---- a row on its inputs ----


def bind(layer: Layer, inputs: Inputs, op: str) -> Callable[[], Tensors]:
    """The call to time: → (y, ladj), and for forward + backward the gradients of x and of the parameters too."""
    if op != BACKWARD:
        return calls.without_graph(lambda: layer(inputs.x, inputs.params, op == INVERSE))
    leaves = tuple(t.detach().requires_grad_() for t in inputs[:2])
    return calls.forward_backward(lambda: layer(*leaves, False), leaves, inputs[2:])


def ready(row: Row, inputs: Inputs, op: str) -> Ready:
    layer = row.of(inputs.x.shape[1])
    call = bind(calls.fresh_compile(layer) if row.compiled else layer, inputs, op)
    return Ready(
        call, lambda truth: worst_error(row.name, call(), truth), backward=call if op == BACKWARD else None
    )  # fmt: skip


def float64_truth(make: Callable[[int], Layer], inputs: Inputs, op: str) -> Tensors:
    wide = Inputs(*(t.double() for t in inputs))
    return bind(make(inputs.x.shape[1]), wide, op)()


BOUND = Distance(largest=1e-5)


def worst_error(name: str, outputs: Tensors, truth: Tensors) -> float:
    """Asserts that the outputs are close to the truth; → the largest relative error."""
    quantities = ("y", "ladj", "grad x", "grad params")[: len(truth)]
    found = zip(quantities, outputs, truth, strict=True)
    return max(assert_close(name, *each, BOUND).largest for each in found)


SUITE = Suite(
    title="affine coupling",
    points=points(SHAPES, OPS, ROWS),
    label=lambda *shape: "x".join(map(str, shape)),
    smaller=lambda rows, *rest: (max(1, rows // 32), *rest),
    inputs=Inputs.make,
    rows=ROWS,
    ready=ready,
    truth=float64_truth,
    bytes=Inputs.least_bytes,
)
