"""LU 1×1 convolutions and actnorm of the peers and ours: rows, their truth, how far a row may be from it."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.suites import peers
from flowkernels import transforms

OPS = ("forward", "forward + backward", "inverse")
SUITES = ("LU 1x1 convolution", "actnorm")
ROWS = ("nflows eager", "normflows eager", "nflows compiled", "normflows compiled", "flowkernels")
Tensors = tuple[Tensor, ...]


def missing(row: str) -> str | None:
    """Why the row cannot run, or None."""
    package = row.split()[0]
    return None if importlib.util.find_spec(package) else f"{package} is not installed"


class Layer(NamedTuple):
    """A module with its product (data → latent in ours) and its inverse."""

    module: nn.Module
    product: Callable[[Tensor], tuple[Tensor, Tensor]]
    inverse: Callable[[Tensor], tuple[Tensor, Tensor]]


def build(suite: str, row: str, channels: int, dtype: torch.dtype = torch.float32) -> Layer:
    """The row's layer away from its start. Equal seeds: the float64 one has the same parameters."""
    torch.manual_seed(0)
    package = row.split()[0]
    lu = suite == SUITES[0]
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
        return self.x.nbytes * (5 if op == OPS[1] else 2)


def bind(layer: Layer, inputs: Inputs, op: str, compiled: bool = False) -> Callable[[], Tensors]:
    """The call to time: → (y, ladj), and for forward + backward the gradients of x and all parameters behind them."""
    f = layer.inverse if op == OPS[2] else layer.product
    f = peers.fresh_compile(f) if compiled else f
    rows = inputs.x.shape[0]
    if op != OPS[1]:

        def values() -> Tensors:
            with torch.no_grad():
                y, ladj = f(inputs.x)
            return y, ladj.expand(rows)  # normflows gives one number

        return values
    x = inputs.x.detach().requires_grad_()
    leaves = [x, *layer.module.parameters()]

    def step() -> Tensors:
        y, ladj = f(x)
        outputs, given = [y, ladj.expand(rows)], [inputs.grad_y, inputs.grad_ladj]
        grads = torch.autograd.grad(outputs, leaves, given, allow_unused=True)
        return y.detach(), outputs[1].detach(), *(g for g in grads if g is not None)

    return step


def float64_truth(suite: str, row: str, inputs: Inputs, op: str) -> Tensors:
    """The row's own layer in float64."""
    return bind(build(suite, row, inputs.x.shape[1], torch.float64), Inputs(*(t.double() for t in inputs)), op)()


# Of the quantity's 2-norm. Matrices are near rotations, so that an inverse loses no more than a product.
BOUND = 2e-5


def worst_error(row: str, outputs: Tensors, truth: Tensors) -> float:
    """Asserts that every output is within `BOUND` of the truth; → the relative error of y."""
    assert len(outputs) == len(truth)
    errors = []
    for i, (value, target) in enumerate(zip(outputs, truth, strict=True)):
        error = ((value.double() - target).norm() / target.norm().clamp_min(1e-30)).item()
        if not error <= BOUND:  # a NaN is not
            raise AssertionError(f"{row}: result {i} must be within {BOUND:.0e} of the float64 truth, got {error:.1e}")
        errors.append(error)
    return errors[0]
