"""The definition of a network in plain PyTorch: any dtype, any device, differentiable any number of times."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .activations import FUNCTIONS
from .spec import NetSpec, Parts, unpack

IS_SLOW = False  # its time is in the products; `backends.pick` does not warn


def masked(spec: NetSpec, parts: Parts) -> Parts:
    """The network with W∘M for W."""
    if spec.plan is None:
        return parts
    weights = [m.apply(w) for m, w in zip(spec.masks(), parts.weights, strict=True)]
    return Parts(weights, parts.biases, parts.adds, parts.gates, parts.periodic, parts.scales)


def network(spec: NetSpec, x: Tensor, parts: Parts) -> Tensor:
    """x through layers that are masked already."""
    act, last = FUNCTIONS[spec.activation], spec.n - 1

    def linear(i: int, a: Tensor) -> Tensor:
        z, add, gate = F.linear(a, parts.weights[i], parts.biases[i]), parts.adds[i], parts.gates[i]
        z = z if add is None else z + add
        return z if gate is None else z * gate

    def opened(i: int, h: Tensor) -> Tensor:
        scale, shift = parts.scales[i] or (None, None)
        return act(h if scale is None else h * scale + shift)

    h = linear(0, x)
    if spec.residual:
        for i in range(1, last, 2):
            h = h + linear(i + 1, act(linear(i, opened(i, h))))
        h = linear(last, h)
    else:
        for i in range(1, last + 1):
            h = linear(i, act(h))
    return FUNCTIONS[spec.last](h)


def fwd(spec: NetSpec, *tensors: Tensor) -> tuple[Tensor]:
    x, parts = unpack(spec, tensors)
    return (network(spec, x, masked(spec, parts)),)
