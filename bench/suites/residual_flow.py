"""Residual blocks alone: normflows' of a LipschitzMLP, and ours with the same weights.

Every row maps x [B, D] to (y, ladj): forward, the inverse of y, and forward + backward as in a step of training, with
gradients of all weights. normflows' log-determinant is a random estimate, of 20 terms and more in evaluation and of two
and more in training: its y alone is compared with the truth.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import calls
from bench.closeness import Distance, assert_close, worst_of_map
from bench.suite import BACKWARD, FORWARD, INVERSE, Ready, Row, Suite, Tensors, named, points
from flowkernels import ops

Map = Callable[["Inputs", bool], tuple[Tensor, Tensor]]
LIPSCHITZ = 0.9


@functools.cache
def block_of(features: int, hidden: int, dtype: torch.dtype) -> Any:
    """normflows', whose weights all rows have."""
    import normflows as nf

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nf.nets.LipschitzMLP([features, hidden, hidden, features], LIPSCHITZ ** (1 / 3), init_zeros=False)
        return nf.flows.Residual(net, reverse=False).to(dtype)


# ---- the rows ----


def _normflows(inputs: Inputs, inverse: bool) -> tuple[Tensor, Tensor]:
    block = block_of(inputs.x.shape[-1], inputs.hidden, inputs.x.dtype).train(inputs.x.requires_grad)
    if inverse:
        return block.inverse(inputs.y.clone())  # which it makes require a gradient
    return block(inputs.x if inputs.x.requires_grad else inputs.x.clone())


def _op(backend: str) -> Map:
    def call(inputs: Inputs, inverse: bool) -> tuple[Tensor, Tensor]:
        net = block_of(inputs.x.shape[-1], inputs.hidden, inputs.x.dtype).iresblock.nnet.net
        layers = [(m.compute_weight(update=False), m.bias) for m in [*net][1::2]]
        betas = F.softplus(torch.cat([m.beta for m in [*net][::2]]))
        return ops.residual_flow(
            inputs.y if inverse else inputs.x, layers, betas=betas, preactivated=True, lipschitz=LIPSCHITZ,
            inverse=inverse, backend=backend,
        )  # fmt: skip

    return call


_PLAIN = _op("reference")
ROWS = named(
    Row("normflows eager", _normflows, "normflows", _PLAIN),
    Row("plain torch", _PLAIN, None, _PLAIN),
    Row("flowkernels", _op("cpu"), None, _PLAIN),
)


# ---- the inputs ----


class Inputs(NamedTuple):
    """x [B, D], of an inverse y, and the gradients that reach the outputs."""

    x: Tensor
    y: Tensor
    grad_y: Tensor
    grad_ladj: Tensor
    hidden: int

    @classmethod
    def make(cls, rows: int, features: int, hidden: int) -> Inputs:
        draw = torch.Generator().manual_seed(1)
        x, grad_y = (torch.randn(rows, features, generator=draw) for _ in range(2))
        found = cls(x, x, grad_y, torch.full((rows,), 1 / rows), hidden)  # normflows wants those of ladj to be equal
        with torch.no_grad():
            return found._replace(y=_PLAIN(found, False)[0])

    def least_bytes(self, op: str) -> int:
        """Every input read once, every output written once; a backward pass is a second visit. Weights are in cache."""
        x = self.x.nbytes
        forward = 2 * x + self.grad_ladj.nbytes
        return 2 * forward + x if op == BACKWARD else forward


# ---- a row on its inputs ----


def bind(of: Map, inputs: Inputs, op: str) -> Callable[[], Tensors]:
    """The call to time: → (y, ladj), and for forward + backward also the gradients of x and of all weights."""
    if op != BACKWARD:
        return calls.without_graph(lambda: of(inputs, op == INVERSE))
    forward, wanted = _graph(of, inputs)
    return calls.forward_backward(forward, wanted, (inputs.grad_y, inputs.grad_ladj))


def _graph(of: Map, inputs: Inputs) -> tuple[Callable[[], tuple[Tensor, Tensor]], tuple[Tensor, ...]]:
    given = inputs._replace(x=inputs.x.detach().requires_grad_())
    net = block_of(given.x.shape[-1], given.hidden, given.x.dtype).iresblock.nnet
    return lambda: of(given, False), (given.x, *net.parameters())


def ready(row: Row, inputs: Inputs, op: str) -> Ready:
    call = bind(row.of, inputs, op)

    def error(truth: Tensors) -> float:
        if not row.package:
            return worst_of_map(row.name, call(), truth, VALUE, GRADIENT)
        return assert_close(row.name, "y", call()[0].detach(), truth[0], ROUGH, least=1.0).largest or 0.0

    checked = Ready(call, error)
    if op != BACKWARD:
        return checked
    # normflows' forward pass has backward passes in it, so that what it keeps cannot be counted.
    return checked._replace(forward=None if row.package else _graph(row.of, inputs)[0], backward=call)


def float64_truth(of: Map, inputs: Inputs, op: str) -> Tensors:
    wide = {n: t.double() for n, t in inputs._asdict().items() if isinstance(t, Tensor)}
    return bind(of, inputs._replace(**wide), op)()


# They decide only whether a row may be timed; normflows' inverse ends at steps of 0.003.
VALUE, GRADIENT, ROUGH = Distance(1e-4), Distance(1e-3), Distance(1e-2)


# ---- the suite ----

POINTS = points([(256, 21, 64), (256, 21, 128)], [FORWARD, INVERSE, BACKWARD], ROWS)
SUITE = Suite(
    title="residual",
    points=POINTS,
    label=lambda rows, features, hidden: f"{rows}x{features} hidden {hidden}",
    smaller=lambda rows, features, hidden: (max(1, rows // 32), features, hidden),
    inputs=Inputs.make,
    rows=ROWS,
    ready=ready,
    truth=float64_truth,
    bytes=Inputs.least_bytes,
)
