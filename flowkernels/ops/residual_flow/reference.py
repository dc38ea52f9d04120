"""The definition in plain PyTorch, differentiable any number of times, in both directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkernels.ops._checks import without_autocast
from flowkernels.ops._routing import _dual_level_active, _lib, _transforms_active, in_transform

from .spec import ResidualSpec

ACTIVATIONS = ("lipswish", "elu", "tanh")
IS_SLOW = False  # of an estimate: there is nothing else, and whoever asks for one knows it
# By as much a swish is divided, whose slope is at most 1.0998.
STEEPEST = 1.1
# Beyond it a sigmoid is 0 or 1, and so is its product with what it is of.
_FLAT = 1e3


class Net(NamedTuple):
    """The tensors of g by their roles."""

    layers: list[tuple[Tensor, Tensor]]
    betas: Tensor | None  # of a lipswish, one number for each activation
    weights: Tensor | None  # of the terms of a series
    noise: Tensor | None  # [S, ..., D]


def unpack(spec: Any, tensors: Sequence[Tensor]) -> Net:
    """``tensors``: those behind x."""
    rest = list(tensors)
    noise = rest.pop() if spec.log_det != "exact" else None
    weights = rest.pop() if spec.log_det != "exact" else None
    betas = rest.pop() if spec.has_betas else None
    return Net(list(zip(rest[::2], rest[1::2], strict=True)), betas, weights, noise)


def activated(spec: Any, net: Net, k: int, z: Tensor) -> tuple[Tensor, Tensor]:
    """The activation in front of layer k, and its slope."""
    if spec.activation == "tanh":
        h = torch.tanh(z)
        return h, 1 - h.square()
    if spec.activation == "elu":
        return F.elu(z), z.clamp(max=0).exp()
    scaled = z if net.betas is None else net.betas[k if spec.preactivated else k - 1] * z
    share, scaled = torch.sigmoid(scaled), scaled.clamp(-_FLAT, _FLAT)
    return z * share / STEEPEST, share * (1 + scaled * torch.sigmoid(-scaled)) / STEEPEST


def run(spec: Any, net: Net, x: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """g(x), and the slopes of the activations in front of each layer, None where there is none."""
    h, slopes = x, []
    for k, (weight, bias) in enumerate(net.layers):
        slope = None
        if k > 0 or spec.preactivated:
            h, slope = activated(spec, net, k, h)
        slopes.append(slope)
        h = F.linear(h, weight, bias)
    return h, slopes


def transposed_jacobian(net: Net, slopes: Sequence[Tensor | None], lead: Sequence[int]) -> Tensor:
    """Of g: ``[..., d, o]`` is the slope of its output o along feature d, a product for every layer."""
    first, found = slopes[0], net.layers[0][0].mT
    if first is not None:
        found = first.unsqueeze(-1) * found
    for slope, (weight, _) in zip(slopes[1:], net.layers[1:], strict=True):
        assert slope is not None  # for the type checker
        found = (found * slope.unsqueeze(-2)) @ weight.mT
    return found.expand(*lead, *found.shape[-2:])


def _pulled(net: Net, slopes: Sequence[Tensor | None], q: Tensor) -> Tensor:
    """Jᵀ q."""
    for slope, (weight, _) in zip(reversed(slopes), reversed(net.layers), strict=True):
        q = q @ weight
        if slope is not None:
            q = q * slope
    return q


def _pushed(net: Net, slopes: Sequence[Tensor | None], v: Tensor) -> Tensor:
    """J v."""
    for slope, (weight, _) in zip(slopes, net.layers, strict=True):
        if slope is not None:
            v = v * slope
        v = v @ weight.mT
    return v


def _with_identity(t: Tensor) -> Tensor:
    return t + torch.eye(t.shape[-1], dtype=t.dtype, device=t.device)


def _log_det(spec: Any, net: Net, slopes: Sequence[Tensor | None], lead: Sequence[int]) -> Tensor:
    if spec.log_det == "exact":
        return torch.linalg.slogdet(_with_identity(transposed_jacobian(net, slopes, lead)))[1]
    return _series(spec, net, slopes)


def _series(spec: Any, net: Net, slopes: Sequence[Tensor | None]) -> Tensor:
    """Σ (-1)^(k+1) / k  w_k  vᵀ J^k v, and its gradient: its own, or vᵀ Σ (-1)^k w_(k+1) J^k  ∂J v by Neumann."""
    assert net.weights is not None and net.noise is not None  # for the type checker
    weights, v = net.weights.detach(), net.noise.detach()
    q, total = v, v.new_zeros(())
    neumann = weights[0] * v
    for k in range(1, len(weights) + 1):
        q = _pulled(net, slopes, q)
        sign = 1 if k % 2 else -1
        total = total + (sign / k) * weights[k - 1] * (q * v).sum(-1)
        if k < len(weights):
            neumann = neumann - sign * weights[k] * q
    if spec.neumann:
        moved = _pushed(net, slopes, v)
        first = (neumann.detach() * moved).sum(-1)
        # A trace does not mind the order of its factors, so that half of either mixed term is in the mean the second
        # derivative. Its value is 0, and so is its first derivative.
        second = ((neumann - neumann.detach()) * (moved - moved.detach())).sum(-1)
        total = total.detach() + (first - first.detach()) + 0.5 * second
    return total.mean(0)


@without_autocast  # that of whoever calls a backward pass that is differentiated again
def fwd(spec: Any, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """``x [..., D]``, then weight and bias of each layer, betas, and a series' weights and noise → y and ladj."""
    out_dtype = x.dtype
    wide = torch.promote_types(out_dtype, torch.float32)
    x, *tensors = (t.to(wide) for t in (x, *tensors))  # type: ignore[assignment]
    net = unpack(spec, tensors)
    if spec.inverse:
        x = _inverse(spec, x, net, tensors)
    g, slopes = run(spec, net, x)
    log_det = _log_det(spec, net, slopes, x.shape[:-1])
    return (x.to(out_dtype), -log_det) if spec.inverse else ((x + g).to(out_dtype), log_det)


# ---- the inverse ----


def n_steps(lipschitz: float, dtype: torch.dtype) -> int:
    """After which what is missing, at most L^k / (1 - L) of the first step, is less than a rounding of that."""
    return max(1, math.ceil(math.log(torch.finfo(dtype).eps * (1 - lipschitz)) / math.log(lipschitz)))


def _inverse(spec: Any, y: Tensor, net: Net, tensors: Sequence[Tensor]) -> Tensor:
    if torch.compiler.is_compiling() and not _transforms_active() and not _dual_level_active():
        # One node of a graph: its steps, unrolled, take a compiler minutes, and rows that rest are seen by the host.
        x = torch.ops.flowkernels.residual_root(y, list(tensors), *spec)
    else:
        with torch.no_grad():
            x = _fixed_point(spec, y.detach(), [t.detach() for t in tensors])
    if not (torch.is_grad_enabled() or _transforms_active() or _dual_level_active()):
        return x
    # Newton's step squares an error: after one, the derivatives are those of the implicit function theorem, after two
    # also those of these, whatever the step is multiplied with. Its value stays what was found.
    start = x
    with torch.no_grad():
        slopes = run(spec, net, start)[1]
        over = torch.linalg.inv_ex(_with_identity(transposed_jacobian(net, slopes, start.shape[:-1])))[0].detach()
    for _ in range(2):
        off = x + run(spec, net, x)[0] - y
        x = x - ((off - off.detach()).unsqueeze(-2) @ over).squeeze(-2)
    return start + (x - x.detach())


def _fixed_point(spec: Any, y: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """x of x + g(x) = y by Banach's iteration. A row rests once its step says that it is there."""
    net = unpack(spec, tensors)
    may_read = y.device.type == "cpu" and not in_transform([y, *tensors])
    x, rests = y, torch.zeros_like(y[..., :1], dtype=torch.bool)
    # What is missing is at most L / (1 - L) of a step; a step of a rounding says nothing.
    least = spec.tolerance * (1 - spec.lipschitz) / spec.lipschitz
    rounding = 2 * torch.finfo(y.dtype).eps
    for _ in range(n_steps(spec.lipschitz, y.dtype)):
        following = torch.where(rests, x, y - run(spec, net, x)[0])
        step, size = ((following - x).abs().amax(-1, keepdim=True), following.abs().amax(-1, keepdim=True))
        rests = rests | ~(step > (rounding * size).clamp(min=least))
        x = following
        if may_read and bool(rests.all()):
            break
    return x


def _root(y: Tensor, tensors: Sequence[Tensor], *settings: Any) -> Tensor:
    with torch.no_grad():
        x = _fixed_point(ResidualSpec(*settings), y, tensors)
    return x.clone() if x is y else x


_lib.define(
    "residual_root(Tensor y, Tensor[] tensors, str activation, bool preactivated, bool has_betas, str log_det, "
    "bool neumann, float lipschitz, float tolerance, bool inverse) -> Tensor"
)
_lib.impl("residual_root", _root, "CompositeExplicitAutograd")
torch.library.register_fake("flowkernels::residual_root", lambda y, *_: torch.empty_like(y), lib=_lib)
# Nothing flows back through it: what follows has the derivatives of the root.
torch.library.register_autograd(
    "flowkernels::residual_root", lambda ctx, g: (None, [None] * ctx.n, *[None] * 8), lib=_lib,
    setup_context=lambda ctx, inputs, output: setattr(ctx, "n", len(inputs[1])),
)  # fmt: skip
