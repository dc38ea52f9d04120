"""An affine coupling layer without its network: the rows, the truth, and how far a row may be from it.

What a library's layer does apart from the conditioner: it splits x, makes scale and shift of the parameters, maps, sums
the log-determinant and puts the halves together. The parameters stand where the network's output would, so that
gradients reach them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.suites import peers
from flowkernels import ops

OPS = ("forward", "inverse", "forward + backward")
Tensors = tuple[Tensor, ...]
Layer = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]


class Inputs(NamedTuple):
    """x, the parameters of its second half in blocks shift | scale logit, and the gradients that reach the outputs."""

    x: Tensor
    params: Tensor
    grad_y: Tensor
    grad_ladj: Tensor

    @classmethod
    def make(cls, shape: tuple[int, ...]) -> Inputs:
        draw = torch.Generator().manual_seed(0)
        shapes = (shape, shape, shape, shape[:1])
        return cls(*(torch.randn(s, generator=draw) for s in shapes))

    def least_bytes(self, op: str) -> int:
        """Every input read once, every output written once; the backward pass reads the mapped half of x again."""
        x, params, ladj = self.x.nbytes, self.params.nbytes, self.grad_ladj.nbytes
        forward = x + params + x + ladj
        backward = (x // 2 + params + x + ladj) + (x + params)
        return forward + backward if op == OPS[2] else forward


class _Given(nn.Module):
    """Stands where the conditioner stands, and returns what it was given."""

    params: Tensor

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.params


def _nflows(channels: int, image: bool) -> Layer:
    from nflows.transforms import AffineCouplingTransform

    given = _Given()
    layer: Any = AffineCouplingTransform([0] * (channels // 2) + [1] * (channels // 2), lambda a, b: given)

    def run(x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        given.params = params
        return layer.inverse(x) if inverse else layer(x)

    return run


def _normflows(channels: int, image: bool) -> Layer:
    """Its parameters alternate, shift and scale logit, which costs it nothing to be told; no floor under its scale."""
    from normflows.flows import AffineCouplingBlock

    given = _Given()
    layer: Any = AffineCouplingBlock(given, scale_map="sigmoid_inv")

    def run(x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        given.params = params
        return layer.inverse(x) if inverse else layer(x)

    return run


def _ours(floor: float, alternating: bool, backend: str) -> Callable[[int, bool], Layer]:
    def layer(channels: int, image: bool) -> Layer:
        sizes, dim = ((-1, 2), 2) if alternating else ((2, -1), 1)

        def run(x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
            return ops.affine(
                x, params.unflatten(1, sizes).movedim(dim, -1), scale="sigmoid", min_scale=floor, shift_first=True,
                part=slice(channels // 2, None), event_dims=x.dim() - 1, inverse=inverse, backend=backend,
            )  # fmt: skip

        return run

    return layer


class Row(NamedTuple):
    make: Callable[[int, bool], Layer]
    truth: Callable[[int, bool], Layer]
    package: str | None = None


_LIKE_NFLOWS, _LIKE_NORMFLOWS = _ours(1e-3, False, "reference"), _ours(0.0, True, "reference")
ROWS = {
    "nflows eager": Row(_nflows, _LIKE_NFLOWS, "nflows"),
    "nflows compiled": Row(_nflows, _LIKE_NFLOWS, "nflows"),
    "normflows eager": Row(_normflows, _LIKE_NORMFLOWS, "normflows"),
    "normflows compiled": Row(_normflows, _LIKE_NORMFLOWS, "normflows"),
    "plain torch compiled": Row(_LIKE_NFLOWS, _LIKE_NFLOWS),
    "flowkernels": Row(_ours(1e-3, False, "cpu"), _LIKE_NFLOWS),
    "flowkernels as normflows": Row(_ours(0.0, True, "cpu"), _LIKE_NORMFLOWS),
}


def missing(name: str) -> str | None:
    package = ROWS[name].package
    return None if package is None or importlib.util.find_spec(package) else f"{package} is not installed"


def bind(layer: Layer, inputs: Inputs, op: str) -> Callable[[], Tensors]:
    """The call to time: → (y, ladj), and for forward + backward the gradients of x and of the parameters too."""
    if op != OPS[2]:

        def values() -> Tensors:
            with torch.no_grad():
                return layer(inputs.x, inputs.params, op == OPS[1])

        return values
    leaves = tuple(t.detach().requires_grad_() for t in inputs[:2])

    def forward_backward() -> Tensors:
        y, ladj = layer(*leaves, False)
        return y.detach(), ladj.detach(), *torch.autograd.grad((y, ladj), leaves, (inputs.grad_y, inputs.grad_ladj))

    return forward_backward


def ready(name: str, shape: tuple[int, ...]) -> Layer:
    layer = ROWS[name].make(shape[1], len(shape) == 4)
    return peers.fresh_compile(layer) if name.endswith("compiled") else layer


def float64_truth(name: str, inputs: Inputs, op: str) -> Tensors:
    wide = Inputs(*(t.double() for t in inputs))
    return bind(ROWS[name].truth(inputs.x.shape[1], inputs.x.dim() == 4), wide, op)()


BOUND = 1e-5  # of the largest value of each quantity


def worst_error(name: str, outputs: Tensors, truth: Tensors) -> float:
    """Asserts that the outputs are finite and within `BOUND` of the truth; → the largest relative error.

    Raises:
        AssertionError: the row is wrong, so its time means nothing.
    """
    worst = 0.0
    for quantity, value, target in zip(("y", "ladj", "grad x", "grad params"), outputs, truth, strict=False):
        assert value.shape == target.shape, f"{name}: {quantity} must be {list(target.shape)}, got {list(value.shape)}"
        error = ((value.double() - target).abs().max() / target.abs().max()).item()
        if not error <= BOUND:  # a NaN is not
            raise AssertionError(f"{name}: {quantity} must be within {BOUND:.0e} of the float64 truth, got {error:.1e}")
        worst = max(worst, error)
    return worst
