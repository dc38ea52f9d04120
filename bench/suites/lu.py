"""LU 1×1 convolutions and actnorm on images, against the layers of nflows and normflows."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench import calls
from bench.closeness import Distance, assert_close
from bench.suite import BACKWARD, FORWARD, INVERSE, Ready, Row, Suite, Tensors, named, points
from flowkernels import transforms

OPS = (FORWARD, BACKWARD, INVERSE)
SIZES = [(64, channels, 16) for channels in (12, 48, 96)]  # batch, channels, pixels of a side


class Layer(NamedTuple):
    """A module with its product (data → latent in ours) and its inverse."""

    module: nn.Module
    product: Callable[[Tensor], tuple[Tensor, Tensor]]
    inverse: Callable[[Tensor], tuple[Tensor, Tensor]]


def build(lu: bool, package: str, channels: int, dtype: torch.dtype = torch.float32) -> Layer:
    """The layer of a library away from its start. Equal seeds: the float64 one has the same parameters."""
    torch.manual_seed(0)
    if package == "nflows":
        from nflows.transforms import ActNorm
        from nflows.transforms.conv import OneByOneConvolution

        module: Any = OneByOneConvolution(channels, identity_init=False) if lu else ActNorm(channels)
    elif package == "normflows":
        from normflows.flows import ActNorm, Invertible1x1Conv

        module = Invertible1x1Conv(channels, use_lu=True) if lu else ActNorm((channels, 1, 1))
    else:
        module = transforms.LUConv1x1(channels) if lu else transforms.ActNorm(channels, channel_dim=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p += 0.3 / channels**0.5 * torch.randn(p.shape, generator=generator)
    if not lu:  # timed as it is after its first batch
        module.eval()
        if package == "normflows":
            module.data_dep_init_done.fill_(1.0)
    module = copy.deepcopy(module).to(dtype)
    if package == "normflows" and lu:  # its forward goes from latent to data, by the dense inverse
        return Layer(module, module.inverse, module.forward)
    return Layer(module, module.forward, module.inverse)


class Inputs(NamedTuple):
    x: Tensor
    grad_y: Tensor
    grad_ladj: Tensor

    @classmethod
    def make(cls, batch: int, channels: int, size: int) -> Inputs:
        draw = torch.Generator().manual_seed(0)
        shapes = ((batch, channels, size, size), (batch, channels, size, size), (batch,))
        return cls(*(torch.randn(s, generator=draw) for s in shapes))

    def least_bytes(self, op: str) -> int:
        """x in and y out; for forward + backward also x and the gradient of y in, that of x out."""
        return self.x.nbytes * (5 if op == BACKWARD else 2)


def bind(layer: Layer, inputs: Inputs, op: str, compiled: bool = False) -> Callable[[], Tensors]:
    """The call to time: → (y, ladj), and for forward + backward the gradients of x and all parameters behind them."""
    f = layer.inverse if op == INVERSE else layer.product
    f = calls.fresh_compile(f) if compiled else f
    x = inputs.x.detach().requires_grad_(op == BACKWARD)

    def both() -> Tensors:
        y, ladj = f(x)
        return y, ladj.expand(x.shape[0])  # normflows gives one number

    if op != BACKWARD:
        return calls.without_graph(both)
    return calls.forward_backward(both, [x, *layer.module.parameters()], inputs[1:])


def ready(lu: bool, row: Row, inputs: Inputs, op: str) -> Ready:
    call = bind(build(lu, row.of, inputs.x.shape[1]), inputs, op, row.compiled)
    return Ready(
        call, lambda truth: worst_error(row.name, call(), truth), backward=call if op == BACKWARD else None
    )  # fmt: skip


def float64_truth(lu: bool, package: str, inputs: Inputs, op: str) -> Tensors:
    """The library's own layer in float64."""
    wide = Inputs(*(t.double() for t in inputs))
    return bind(build(lu, package, inputs.x.shape[1], torch.float64), wide, op)()


BOUND = Distance(norm=2e-5)  # matrices are near rotations, so that an inverse loses no more than a product


def worst_error(row: str, outputs: Tensors, truth: Tensors) -> float:
    """Asserts that the outputs are close to the truth; → the relative error of y."""
    y, *_ = [
        assert_close(row, f"result {i}", *pair, BOUND).norm for i, pair in enumerate(zip(outputs, truth, strict=True))
    ]
    return y


ROWS = named(
    *(Row(f"{p} {how}", p, p, p) for how in ("eager", "compiled") for p in ("nflows", "normflows")),
    Row("flowkernels", "flowkernels", None, "flowkernels"),
)


def _suite(title: str, lu: bool) -> Suite[Inputs, Tensors]:
    return Suite(
        title=title,
        points=points(SIZES, OPS, ROWS),
        label=lambda batch, channels, side: f"{batch}x{channels}x{side}x{side}",
        smaller=lambda batch, channels, side: (2, channels, side),
        inputs=Inputs.make,
        rows=ROWS,
        ready=functools.partial(ready, lu),
        truth=functools.partial(float64_truth, lu),
        bytes=Inputs.least_bytes,
    )


SUITES = (_suite("LU 1x1 convolution", True), _suite("actnorm", False))
