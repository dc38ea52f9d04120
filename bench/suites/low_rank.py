"""Planar, radial and Sylvester chains: Pyro's layers, the reference in plain PyTorch, and ours, of the same weights.

Every row maps x [B, D] through n layers to (y, ladj): Pyro's one by one, as a distribution of them does, the others in
one call. Forward + backward is a step of reverse KL, but for the optimizer's and the target's: gradients of all
parameters and of x, from those of y and of ladj. Pyro has no inverse of new points, and its Sylvester layer is another
map; there the rival is the reference. Pyro keeps its last x and y: every call gets an x of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import calls
from bench.closeness import Distance, worst_of_map
from bench.suite import BACKWARD, FORWARD, INVERSE, Ready, Row, Suite, Tensors, named, points
from flowkernels import ops

Map = Callable[["Inputs", bool], tuple[Tensor, Tensor]]
WIDTH = 8  # of Sylvester layers


# ---- the rows ----


def _pyro(inputs: Inputs, inverse: bool) -> tuple[Tensor, Tensor]:
    x, ladj = inputs.x.view_as(inputs.x), torch.zeros(())
    for layer in inputs.layers:
        y = layer(x)
        ladj = ladj + layer.log_abs_det_jacobian(x, y)
        x = y
    return x, ladj


def _op(backend: str) -> Map:
    def call(inputs: Inputs, inverse: bool) -> tuple[Tensor, Tensor]:
        x = inputs.y if inverse else inputs.x
        settings: Any = {"orthogonal": "householder", "inverse": inverse, "backend": backend}
        return ops.low_rank(x, inputs.params, kind=inputs.kind, **settings)

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
    """x [B, D], of an inverse y, the layers' parameters, and the gradients that reach the outputs."""

    x: Tensor
    y: Tensor
    params: tuple[Tensor, ...]
    grad_y: Tensor
    grad_ladj: Tensor
    kind: str
    layers: Any = ()  # Pyro's, whose parameters are views of these; of its rows alone

    @classmethod
    def make(cls, kind: str, rows: int, features: int, layers: int) -> Inputs:
        draw, D, n = torch.Generator().manual_seed(0), features, layers

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw)

        M = min(WIDTH, D)
        shapes: dict[str, tuple[tuple[int, ...], ...]] = {
            "planar": ((n, D), (n, D), (n,)), "radial": ((n, D), (n,), (n,)),
            "sylvester": ((n, 4, D), (n, M, M), (n, M, M), (n, M)),
        }  # fmt: skip
        x = randn(rows, D)
        params = tuple(D**-0.5 * randn(*shape) for shape in shapes[kind])
        found = cls(x, x, params, randn(rows, D), randn(rows), kind)
        with torch.no_grad():
            return found._replace(y=_PLAIN(found, False)[0])

    def with_layers(self) -> Inputs:
        from pyro.distributions import transforms as T

        D = self.x.shape[-1]
        make, names = {
            "planar": (T.Planar, ("u", "w", "bias")), "radial": (T.Radial, ("x0", "alpha_prime", "beta_prime")),
        }[self.kind]  # fmt: skip
        layers = []
        for k in range(len(self.params[0])):
            layer = make(D)
            for name, t in zip(names, self.params, strict=True):
                delattr(layer, name)
                setattr(layer, name, t[k] if t.dim() > 1 else t[k : k + 1])
            layers.append(layer)
        return self._replace(layers=layers)

    def least_bytes(self, op: str) -> int:
        """Every input read once, every output written once; a backward pass is a second visit."""
        params, x = sum(t.nbytes for t in self.params), self.x.nbytes
        forward = 2 * x + self.grad_ladj.nbytes + params
        return 2 * forward + x + params if op == BACKWARD else forward


# ---- a row on its inputs ----


def _graph(of: Map, inputs: Inputs) -> tuple[Callable[[], tuple[Tensor, Tensor]], Tensors]:
    leaves = tuple(t.detach().clone().requires_grad_() for t in (inputs.x, *inputs.params))
    given = inputs._replace(x=leaves[0], params=leaves[1:])
    if not inputs.layers:
        return lambda: of(given, False), leaves
    return lambda: of(given.with_layers(), False), leaves  # views, made anew: a backward pass frees them


def bind(of: Map, inputs: Inputs, op: str) -> Callable[[], Tensors]:
    """The call to time: → (y, ladj), and for forward + backward also the gradients of x and of all parameters."""
    if op != BACKWARD:
        return lambda: of(inputs, op == INVERSE)
    forward, wanted = _graph(of, inputs)
    return calls.forward_backward(forward, wanted, (inputs.grad_y, inputs.grad_ladj))


def ready(row: Row, inputs: Inputs, op: str) -> Ready:
    of = calls.fresh_compile(row.of) if row.compiled else row.of
    inputs = inputs.with_layers() if row.package else inputs
    call = bind(of, inputs, op)
    checked = Ready(call, lambda truth: worst_of_map(row.name, call(), truth, VALUE, GRADIENT))
    return checked if op != BACKWARD else checked._replace(forward=_graph(of, inputs)[0], backward=call)


def float64_truth(of: Map, inputs: Inputs, op: str) -> Tensors:
    wide = {n: t.double() for n, t in inputs._asdict().items() if isinstance(t, Tensor)}
    return bind(of, inputs._replace(**wide, params=tuple(t.double() for t in inputs.params)), op)()


# They decide only whether a row may be timed.
VALUE, GRADIENT = Distance(1e-4, 1e-5), Distance(1e-3, 1e-4)


# ---- the suite ----

PYROS = (("planar", 256, 21, 10), ("radial", 256, 21, 10))
SIZES = (*PYROS, ("sylvester", 256, 21, 4))
OURS = ("plain torch", "plain torch compiled", "flowkernels")
POINTS = [
    *points(PYROS, [FORWARD, BACKWARD], ROWS),
    *points(SIZES[2:], [FORWARD, BACKWARD], OURS),
    *points(SIZES, [INVERSE], ("plain torch", "flowkernels")),
]
SUITE = Suite(
    title="planar, radial, Sylvester",
    points=POINTS,
    label=lambda kind, rows, features, layers: f"{kind} {rows}x{features} {layers} layers",
    smaller=lambda kind, rows, features, layers: (kind, max(1, rows // 32), features, min(layers, 2)),
    inputs=Inputs.make,
    rows=ROWS,
    ready=ready,
    truth=float64_truth,
    bytes=Inputs.least_bytes,
)
