"""Block autoregressive maps: Pyro's layer, the reference in plain PyTorch, and ours, of the same weights.

Every row maps x [B, D] to (y, ladj) through hidden layers of so many units a feature, tanh, a residual and rows of
given norms. Pyro has no inverse of new points; there the rival is the reference, and the table says how the time of
ours compares with that of its own forward pass. Pyro keeps its last x and y: every call gets an x of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import calls
from bench.closeness import Distance, worst_of_map
from bench.suite import BACKWARD, FORWARD, INVERSE, Ready, Row, Suite, Tensors, named, points
from flowkernels import ops

EPS = 1e-8  # Pyro's

Map = Callable[["Inputs", bool], tuple[Tensor, Tensor]]


# ---- the rows ----


def _pyro(inputs: Inputs, inverse: bool) -> tuple[Tensor, Tensor]:
    layer, x = inputs.layer, inputs.x.view_as(inputs.x)
    for part, norm in zip(layer.layers, inputs.weights[2::3], strict=True):
        part._diag_weight = norm.unsqueeze(-1)  # in every call, or a backward pass would free it
    y = layer(x)
    return y, layer.log_abs_det_jacobian(x, y)


def _op(backend: str) -> Map:
    def call(inputs: Inputs, inverse: bool) -> tuple[Tensor, Tensor]:
        weights, norms = inputs.weights, inputs.weights[2::3]
        layers = list(zip(weights[::3], weights[1::3], strict=True))
        settings: Any = {"log_norms": norms, "residual": True, "eps": EPS, "inverse": inverse, "backend": backend}
        return ops.block_made(inputs.y if inverse else inputs.x, layers, **settings)

    return call


_PLAIN = _op("reference")
ROWS = named(
    Row("pyro eager", _pyro, "pyro", _PLAIN),
    Row("pyro compiled", _pyro, "pyro", _PLAIN),
    Row("plain torch", _PLAIN, None, _PLAIN),
    Row("plain torch compiled", _PLAIN, None, _PLAIN),
    Row("flowkernels", _op("cpu"), None, _PLAIN),
)


# ---- the inputs ----


class Inputs(NamedTuple):
    """x [B, D], of an inverse y, weight, bias and norm of each layer, and the gradients that reach the outputs."""

    x: Tensor
    y: Tensor
    weights: tuple[Tensor, ...]
    grad_y: Tensor
    grad_ladj: Tensor
    hidden: tuple[int, ...]
    layer: Any = None  # Pyro's, whose parameters are these very weights; of its rows alone

    @classmethod
    def make(cls, rows: int, features: int, hidden: tuple[int, ...]) -> Inputs:
        draw, D = torch.Generator().manual_seed(0), features

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw)

        weights = [
            0.5 * randn(*shape)
            for a, b in itertools.pairwise((1, *hidden, 1))
            for shape in ((D * b, D * a), (D * b,), (D * b,))
        ]
        x = randn(rows, D)
        found = cls(x, x, tuple(weights), randn(rows, D), randn(rows), hidden)
        with torch.no_grad():
            return found._replace(y=_PLAIN(found, False)[0])

    def with_layer(self) -> Inputs:
        from pyro.distributions.transforms import BlockAutoregressive

        layer = BlockAutoregressive(self.x.shape[-1], [*self.hidden], residual="normal").to(self.x.dtype)
        for k, part in enumerate(layer.layers):
            del part._weight, part.bias, part._diag_weight
            part._weight, part.bias = self.weights[3 * k : 3 * k + 2]
        return self._replace(layer=layer)

    def least_bytes(self, op: str) -> int:
        """Every input read once, every output written once; a backward pass is a second visit."""
        weights, x = sum(t.nbytes for t in self.weights), self.x.nbytes
        forward = 2 * x + self.grad_ladj.nbytes + weights
        return 2 * forward + x + weights if op == BACKWARD else forward


# ---- a row on its inputs ----


def _graph(of: Map, inputs: Inputs) -> tuple[Callable[[], tuple[Tensor, Tensor]], Tensors]:
    leaves = tuple(t.detach().clone().requires_grad_() for t in (inputs.x, *inputs.weights))
    given = inputs._replace(x=leaves[0], weights=leaves[1:])
    given = given if inputs.layer is None else given.with_layer()
    return lambda: of(given, False), leaves


def bind(of: Map, inputs: Inputs, op: str) -> Callable[[], Tensors]:
    """The call to time: → (y, ladj), and for forward + backward also the gradients of x and of all weights."""
    if op != BACKWARD:
        return lambda: of(inputs, op == INVERSE)
    forward, wanted = _graph(of, inputs)
    return calls.forward_backward(forward, wanted, (inputs.grad_y, inputs.grad_ladj))


def ready(row: Row, inputs: Inputs, op: str) -> Ready:
    of = calls.fresh_compile(row.of) if row.compiled else row.of
    inputs = inputs.with_layer() if row.package else inputs
    call = bind(of, inputs, op)
    checked = Ready(call, lambda truth: worst_of_map(row.name, call(), truth, VALUE, GRADIENT))
    return checked if op != BACKWARD else checked._replace(forward=_graph(of, inputs)[0], backward=call)


def float64_truth(of: Map, inputs: Inputs, op: str) -> Tensors:
    wide = {n: t.double() for n, t in inputs._asdict().items() if isinstance(t, Tensor)}
    return bind(of, inputs._replace(**wide, weights=tuple(t.double() for t in inputs.weights)), op)()


# They decide only whether a row may be timed.
VALUE, GRADIENT = Distance(1e-4, 1e-5), Distance(1e-3, 1e-4)


# ---- the suite ----

SIZES = ((512, 6, (8, 8)), (512, 20, (8, 8)), (1024, 43, (8,)))
POINTS = [
    *points(SIZES, [FORWARD, BACKWARD], ROWS),
    *points(SIZES[:2], [INVERSE], ("plain torch", "flowkernels")),
]
SUITE = Suite(
    title="block autoregressive",
    points=POINTS,
    label=lambda rows, features, hidden: f"{rows}x{features} {'+'.join(map(str, hidden))}",
    smaller=lambda rows, features, hidden: (max(1, rows // 32), features, hidden),
    inputs=Inputs.make,
    rows=ROWS,
    ready=ready,
    truth=float64_truth,
    bytes=Inputs.least_bytes,
)
