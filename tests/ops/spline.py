"""Inputs for the spline's tests, and one call that returns values and gradients together."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkernels import ops
from tests.cases import n_params

BOUND = 3.0


class Result(NamedTuple):
    y: Tensor
    ladj: Tensor
    grad_x: Tensor
    grad_params: Tensor

    def same_bits(self, other: Result) -> bool:
        return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(self, other, strict=True))


def weights(like: Tensor) -> Tensor:
    """Fixed gradients for an output, different for every element and never small."""
    n = torch.arange(like.numel(), dtype=torch.float64, device=like.device)
    return ((n * 0.618).frac() + 0.5).mul((-1) ** n).reshape(like.shape).to(like.dtype)


def kernels_of(order: str = "quadratic", **settings: Any) -> str | None:
    """What a test asks for: linear splines have kernels on CPUs only, also where the emulator is the default."""
    return "auto" if order == "linear" else None


def run(x: Tensor, params: Tensor, *, backend: str | None = None, **settings: Any) -> Result:
    """Values and gradients of one call, for fixed weights of y and ladj."""
    backend = backend or kernels_of(**settings)
    x, params = x.detach().requires_grad_(), params.detach().requires_grad_()
    y, ladj = ops.rqs(x, params, backend=backend, **settings)
    grads = torch.autograd.grad([y, ladj], [x, params], [weights(y), weights(ladj)])
    return Result(y.detach(), ladj.detach(), *grads)


def reference(x: Tensor, params: Tensor, **settings: Any) -> Result:
    return run(x, params, backend="reference", **settings)


def truth(x: Tensor, params: Tensor, *, weights_of: Result, **settings: Any) -> Result:
    """The reference in float64, with the output gradients that the kernel was given."""
    x, params = x.detach().double().requires_grad_(), params.detach().double().requires_grad_()
    y, ladj = ops.rqs(x, params, backend="reference", **settings)
    given = [weights(weights_of.y).double(), weights(weights_of.ladj).double()]
    return Result(y.detach(), ladj.detach(), *torch.autograd.grad([y, ladj], [x, params], given))


def knots(params: Tensor, *, bins: int, inverse: bool = False, **settings: Any) -> Tensor:
    """The knots [..., K+1] on the side that is searched, in float64, written independently."""
    left, right, bottom, top = settings.get("box") or (-BOUND, BOUND, -BOUND, BOUND)
    low, high = (bottom, top) if inverse else (left, right)
    half_ends = settings.get("parametrization") == "half_ends"
    n = bins - 1 if half_ends else bins
    u = params[..., n : 2 * n] if inverse else params[..., :n]
    u = u.double() * settings.get("logit_scale", 1.0)
    least = 1e-3
    if settings.get("parametrization") == "soft_clip":
        u, least = u / (1 + (2 * u / math.log(1e-3)).abs()), 0.0
    e = (u - u.amax(-1, keepdim=True)).exp()
    sizes = least + (1 - least * n) * e / e.sum(-1, keepdim=True)
    if half_ends:
        half = sizes[..., :1] / 2
        sizes = torch.cat([half, sizes[..., 1:], half], -1)
    edges = torch.cat([torch.zeros_like(u[..., :1]), sizes.cumsum(-1)], -1)
    return low + (high - low) * edges


def at_the_split(params: Tensor, k: Tensor, **settings: Any) -> Tensor:
    """Where bin k is split, on the side that is searched: [..., D] in float64."""
    bins = settings["bins"]
    ahead = {**settings, "inverse": False}
    share = 0.025 + 0.95 * params[..., -bins:].double().sigmoid().gather(-1, k)
    edges = knots(params, **ahead)
    at = torch.lerp(edges.gather(-1, k), edges.gather(-1, k + 1), share)[..., 0]
    return ops.rqs(at, params.double(), backend="reference", **ahead)[0] if settings.get("inverse") else at


def draw(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    params_dtype: torch.dtype | None = None,
    *,
    seed: int = 0,
    scale: float = 1.0,
    device: torch.device | str = "cpu",
    **settings: Any,
) -> tuple[Tensor, Tensor]:
    """x and params of a spline: nine tenths of x inside the box, off the knots and splits.

    There d ladj / dx has two right values, so that a comparison compares coins. Tests of knots choose x themselves.
    """
    g = torch.Generator().manual_seed(seed)
    bins = settings["bins"]
    tails = settings.get("tails", "linear")

    def rand(*s: int) -> Tensor:
        return torch.rand(*s, generator=g, dtype=torch.float64)

    P = n_params(bins, tails, settings.get("order", "quadratic"), settings.get("parametrization", "softmax"))
    logits = scale * torch.randn(*shape, P, generator=g, dtype=torch.float64)
    params = logits.to(params_dtype or dtype)
    at = knots(params, **settings)
    k = (rand(*shape, 1) * bins).long()
    low, high = at.gather(-1, k)[..., 0], at.gather(-1, k + 1)[..., 0]
    if settings.get("order") == "linear":
        split, upper = at_the_split(params, k, **settings), rand(*shape) < 0.5
        low, high = torch.where(upper, split, low), torch.where(upper, high, split)
    x = low + (0.02 + 0.96 * rand(*shape)) * (high - low)
    outside = rand(*shape) < 0.1
    first, last = at[..., 0], at[..., -1]
    beyond = torch.where(rand(*shape) < 0.5, first - 0.1 - rand(*shape), last + 0.1 + rand(*shape))
    return torch.where(outside, beyond, x).to(dtype).to(device), params.to(device)


def condition(x: Tensor, params: Tensor, **settings: Any) -> tuple[Result, Result]:
    """Per element, how far rounding moves the truth, and the largest error of eager, over a few
    draws of noise: one eps in params and one eps of the box in x (there is where knots are rounded).

    In float32, which every 16-bit type is computed in; float64 is the same, 2^-29 times smaller.
    """
    g = torch.Generator().manual_seed(1)
    eps, n = torch.finfo(torch.float32).eps, 4

    def noise(t: Tensor) -> Tensor:
        return eps * torch.randn(t.shape, generator=g, dtype=torch.float64).to(t.device)

    x, params = x.detach().float(), params.detach().float()
    at = truth(x, params, weights_of=reference(x, params, **settings), **settings)
    moves, draws = ([torch.zeros_like(t) for t in at] for _ in range(2))
    for _ in range(n):
        moved = (x + BOUND * noise(x)).float(), (params * (1 + noise(params))).float()
        eager = reference(*moved, **settings)
        exact = truth(*moved, weights_of=eager, **settings)
        for m, d, e, t, t0 in zip(moves, draws, eager, exact, at, strict=True):
            m += (t - t0).square() / n
            torch.maximum(d, (e - t).abs(), out=d)
    y, ladj, grad_x, grad_params = (m.sqrt() for m in moves)
    # The gradients of one element's params come from one sum: its largest rounding is theirs.
    largest = grad_params.amax(-1, keepdim=True) + eps * at.grad_params.abs().amax(-1, keepdim=True)
    # A log rounds its argument, however near 0 it comes out.
    return Result(y, ladj + eps, grad_x, largest.expand_as(grad_params)), Result(*draws)
