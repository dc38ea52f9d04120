"""The recurrent inverse: plain PyTorch, a cell, a product and the inverse of the map for each feature, and ours.

Every row maps z [B, D] to (x, ladj) by a GRU of H units whose state gives splines of eight bins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bench import calls
from bench.closeness import Distance, worst_of_map
from bench.suite import INVERSE, Ready, Row, Suite, Tensors, named, points
from flowkernels import ops

SPLINE = ops.RQS(bins=8)
Map = Callable[["Inputs"], tuple[Tensor, Tensor]]


def _op(backend: str) -> Map:
    def call(inputs: Inputs) -> tuple[Tensor, Tensor]:
        weight, bias, last, last_bias = inputs.layers
        return ops.recurrent_inverse(
            inputs.z, inputs.state, inputs.gates, inputs.value, (weight, bias), (last, last_bias), SPLINE,
            backend=backend,
        )  # fmt: skip

    return call


_PLAIN = _op("reference")
ROWS = named(
    Row("plain torch", _PLAIN, None, _PLAIN),
    Row("plain torch compiled", _PLAIN, None, _PLAIN),
    Row("flowkernels", _op("cpu"), None, _PLAIN),
)


class Inputs(NamedTuple):
    """z, what every row starts from and reads, and the two layers."""

    z: Tensor
    state: Tensor
    gates: Tensor
    value: Tensor
    layers: tuple[Tensor, ...]

    @classmethod
    def make(cls, rows: int, features: int, hidden: int) -> Inputs:
        g = torch.Generator().manual_seed(0)

        def randn(*shape: int, scale: float = 1.0) -> Tensor:
            return scale * torch.randn(shape, generator=g)

        H, P, scale = hidden, SPLINE.n_params, hidden**-0.5
        layers = (randn(3 * H, H, scale=scale), randn(3 * H), randn(P, H, scale=scale), randn(P))
        return cls(randn(rows, features), randn(H), randn(3 * H), randn(3 * H), layers)

    def least_bytes(self, op: str) -> int:
        """Every input read once, every output written once."""
        read = sum(t.nbytes for t in (self.z, self.state, self.gates, self.value, *self.layers))
        return read + self.z.nbytes + self.z.nbytes // self.z.shape[-1]


def bind(of: Map, inputs: Inputs) -> Callable[[], Tensors]:
    return lambda: of(inputs)


def ready(row: Row, inputs: Inputs, op: str) -> Ready:
    call = bind(calls.fresh_compile(row.of) if row.compiled else row.of, inputs)
    return Ready(call, lambda truth: worst_of_map(row.name, call(), truth, VALUE, VALUE))


def float64_truth(of: Map, inputs: Inputs, op: str) -> Tensors:
    wide = {n: t.double() for n, t in inputs._asdict().items() if isinstance(t, Tensor)}
    return of(inputs._replace(**wide, layers=tuple(t.double() for t in inputs.layers)))


VALUE = Distance(1e-3, 1e-4)  # decides only whether a row may be timed
SIZES = ((64, 6, 64), (512, 6, 64), (512, 21, 64), (512, 21, 128))
POINTS = points(SIZES, [INVERSE], ROWS)
SUITE = Suite(
    title="recurrent inverse",
    points=POINTS,
    label=lambda rows, features, hidden: f"{rows}x{features} {hidden}",
    smaller=lambda rows, features, hidden: (max(1, rows // 32), min(features, 3), hidden // 4),
    inputs=Inputs.make,
    rows=ROWS,
    ready=ready,
    truth=float64_truth,
    bytes=Inputs.least_bytes,
)
