"""The definition in plain PyTorch, differentiable any number of times, in both directions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkernels.ops._checks import without_autocast
from flowkernels.ops._root import root
from flowkernels.ops._routing import _dual_level_active, _lib, _transforms_active
from flowkernels.ops.net.activations import FUNCTIONS

from .spec import MonotoneSpec, plain, rule


def _silu_slope(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def _gelu_slope(z: Tensor) -> Tensor:
    return torch.special.ndtr(z) + z * torch.exp(-0.5 * z.square()) * 0.3989422804014327


def _tanh(z: Tensor) -> Tensor:
    """With a derivative that has its digits far out, where 1 - tanh² has lost them: an inverse divides by it twice."""
    near = torch.where(z > 0.5, 1 - 2 * torch.sigmoid(-2 * z), torch.tanh(z))
    return torch.where(z < -0.5, 2 * torch.sigmoid(2 * z) - 1, near)


ACTIVATIONS = {**FUNCTIONS, "tanh": _tanh}
# Their derivatives.
SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": torch.ones_like,
    "relu": lambda z: (z > 0).to(z.dtype),
    "leaky_relu": lambda z: torch.where(z > 0, z.new_ones(()), z.new_full((), 0.01)),
    "elu": lambda z: z.clamp(max=0).exp(),
    "gelu": _gelu_slope,
    "silu": _silu_slope,
    "tanh": lambda z: 4 * torch.sigmoid(2 * z) * torch.sigmoid(-2 * z),  # which has its digits far out, too
}


def _linear(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``h [..., D, i]`` through one weight ``[o, i]``, or one a feature ``[D, o, i]``."""
    if weight.dim() == 2:
        return F.linear(h, weight, bias)
    z = torch.einsum("...i,...oi->...o", h, weight)
    return z if bias is None else z + bias


class _Net:
    """The network of one signal: its first layer's half of it is a constant."""

    def __init__(self, spec: MonotoneSpec, signal: Tensor, tensors: Sequence[Tensor]) -> None:
        self.spec = spec
        first, *self.rest = list(zip(tensors[::2], tensors[1::2], strict=True))
        weight, bias = first
        self.column = weight[..., 0]
        self.seen = _linear(signal, weight[..., 1:], bias)

    def __call__(self, v: Tensor) -> Tensor:
        act = ACTIVATIONS[self.spec.activation]
        z = self.seen + self.column * v.unsqueeze(-1)
        for weight, bias in self.rest:
            z = _linear(act(z), weight, bias)
        return z.squeeze(-1)

    def with_slope(self, v: Tensor) -> tuple[Tensor, Tensor]:
        act, slope = ACTIVATIONS[self.spec.activation], SLOPES[self.spec.activation]
        z = self.seen + self.column * v.unsqueeze(-1)
        dz = self.column.expand_as(z)
        for weight, bias in self.rest:
            dz = _linear(slope(z) * dz, weight, None)
            z = _linear(act(z), weight, bias)
        return z.squeeze(-1), dz.squeeze(-1)

    def log_g(self, v: Tensor) -> Tensor:
        """The logarithm of the integrand, from -B to B."""
        u = self(v)
        return u / (1 + (u / self.spec.log_bound).abs())

    # ---- the map ----

    def area(self, x: Tensor) -> Tensor:
        """The quadrature of the integrand from 0 to x."""
        nodes, weights = (torch.tensor(r, dtype=x.dtype, device=x.device) for r in rule(self.spec.nodes))
        points = x * nodes.view(-1, *[1] * x.dim())
        return x * torch.tensordot(weights, self.log_g(points).exp(), dims=1)

    def run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y, without what a signal adds, and the logarithm of its slope."""
        if self.spec.form == "positive":
            y, slope = self.with_slope(x)
            return y, slope.log()
        if self.spec.slope == "integrand":
            # The derivative in x is that of the integral, the integrand; so is it in what follows it, twice: a rule of
            # one point from x to x is the integral up to the third order.
            at = x.detach()
            return self.area(at) + (x - at) * self.log_g(0.5 * (x + at)).exp(), self.log_g(x)
        nodes, weights = (torch.tensor(r, dtype=x.dtype, device=x.device) for r in rule(self.spec.nodes))
        t = nodes.view(-1, *[1] * x.dim())
        u, du = self.with_slope(x * t)
        q = 1 / (1 + (u / self.spec.log_bound).abs())
        g = (u * q).exp()
        slope = torch.tensordot(weights, g * (1 + x * t * du * q.square()), dims=1)
        return x * torch.tensordot(weights, g, dims=1), slope.log()

    def root(self, y: Tensor) -> Tensor:
        """Where the map is y; the end of [-bound, bound] nearest to it where it is beyond."""
        high = torch.full_like(y, self.spec.bound)

        def value(x: Tensor) -> tuple[Tensor, Tensor]:
            f, log = self.run(x)
            return f, log.exp()

        x = root(value, y, -high, high, torch.zeros_like(y), lambda a, b: a + 0.5 * (b - a))
        x = torch.where(y <= value(-high)[0], -high, x)
        return torch.where(y >= value(high)[0], high, x)


def _split(spec: MonotoneSpec, signal: Tensor) -> tuple[Tensor, Tensor | float]:
    """What the network sees, and what is added to y."""
    return (signal[..., :-1], signal[..., -1]) if spec.shift else (signal, 0.0)


@without_autocast  # a root and a slope want the digits of x
def fwd(spec: Any, x: Tensor, signal: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """``x [..., D]``, ``signal [..., D, S]``, then weight and bias of each layer → y and ladj."""
    out_dtype = x.dtype
    wide = torch.promote_types(out_dtype, torch.float32)
    x, signal, *tensors = (t.to(wide) for t in (x, signal, *tensors))  # type: ignore[assignment]
    tensors = plain(spec, tensors)  # type: ignore[assignment]
    seen, shift = _split(spec, signal)
    net = _Net(spec, seen, tensors)
    if not spec.inverse:
        y, log = net.run(x)
        return (y + shift).to(out_dtype), log.sum(-1)
    target = x - shift
    v = start = _start(spec, target, seen, tensors)
    most = math.log(torch.finfo(wide).max) - 1
    # Newton's step squares an error: after one, the derivatives of the root are those of the implicit function theorem,
    # after two also those of these. Its value stays what was found.
    for _ in range(2):
        f, log = net.run(v)
        # A slope that is no number any more has a largest inverse: 0 of it is 0.
        v = v - (f - f.detach() - (target - target.detach())) * (-log).clamp(max=most).exp()
    v = start + (v - v.detach())
    return v.to(out_dtype), -net.run(v)[1].sum(-1)


def _start(spec: MonotoneSpec, target: Tensor, signal: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """The root, without derivatives."""
    if torch.compiler.is_compiling() and not _transforms_active() and not _dual_level_active():
        # One node of a graph: its steps, unrolled, take a compiler minutes.
        return torch.ops.flowkernels.monotone_root(target, signal, list(tensors), *spec)
    with torch.no_grad():
        return _Net(spec, signal.detach(), [t.detach() for t in tensors]).root(target.detach())


def _root(target: Tensor, signal: Tensor, tensors: Sequence[Tensor], *settings: Any) -> Tensor:
    return _Net(MonotoneSpec(*settings), signal, tensors).root(target)


_lib.define(
    "monotone_root(Tensor target, Tensor signal, Tensor[] tensors, str form, str activation, int nodes, str slope, "
    "float log_bound, bool shift, float bound, bool inverse) -> Tensor"
)
_lib.impl("monotone_root", _root, "CompositeExplicitAutograd")
torch.library.register_fake("flowkernels::monotone_root", lambda target, *_: torch.empty_like(target), lib=_lib)
# Nothing flows back through it: what follows has the derivatives of the root.
torch.library.register_autograd(
    "flowkernels::monotone_root", lambda ctx, g: (None, None, [None] * ctx.n, *[None] * 8), lib=_lib,
    setup_context=lambda ctx, inputs, output: setattr(ctx, "n", len(inputs[2])),
)  # fmt: skip
