"""The definition in plain PyTorch, differentiable any number of times, in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkernels.ops._checks import without_autocast
from flowkernels.ops._root import root
from flowkernels.ops._routing import _dual_level_active, _lib, _transforms_active

ACTIVATIONS = ("tanh", "leaky_relu")
KINDS = ("planar", "radial", "sylvester")
POSITIVE = ("softplus", "abs")  # what makes a radial layer's alpha so
# What has to be positive is at least this, so that its logarithm is a number.
FLOORS = {torch.float32: 1e-30, torch.float64: 1e-280}
_LINEAR = 40  # from here on a softplus is its argument in float64, too; exp of 89 is inf in float32


class Activated(NamedTuple):
    """h of z, its slope, and 1 less that."""

    value: Tensor
    slope: Tensor
    rest: Tensor


def activated(spec: Any, z: Tensor) -> Activated:
    if spec.activation == "tanh":
        h = torch.tanh(z)
        rest = h.square()
        return Activated(h, 1 - rest, rest)
    slope = torch.where(z < 0, z.new_full((), spec.negative_slope), z.new_ones(()))
    slope = torch.where(z.isnan(), z.detach(), slope)
    return Activated(slope * z, slope, 1 - slope)


def orthonormal(q: Tensor, how: str, width: int) -> Tensor:
    """``[..., D, M]`` of orthonormal columns: a QR of such a matrix, or reflections ``[..., H, D]``, first to last."""
    if how == "qr":
        return torch.linalg.qr(q)[0]
    H, D = q.shape[-2:]
    columns = torch.eye(D, width, dtype=q.dtype, device=q.device).expand(*q.shape[:-2], D, width)
    # A reflection is that of any multiple of its vector: here one whose square is a number.
    largest = q.detach().abs().amax(-1, keepdim=True)
    is_plain = (largest > 1e-10) & (largest < 1e10) | (largest == 0)
    q = q / torch.where(is_plain, 1.0, largest)
    for i in reversed(range(H)):
        v = q[..., i, :]
        square = v.square().sum(-1)
        twice = 2 / torch.where(square > 0, square, 1.0)
        columns = columns - twice[..., None, None] * v.unsqueeze(-1) * (v.unsqueeze(-2) @ columns)
    return columns


def _norm(d: Tensor) -> Tensor:
    """The length of rows, ``[..., 1]``; its gradient at 0 is 0."""
    square = d.square().sum(-1, keepdim=True)
    none = square == 0
    return torch.where(none, 0.0, torch.where(none, 1.0, square).sqrt())


# ---- layers: x and a layer's parameters -> y and ladj, [..., 1] ----


def _planar(spec: Any, x: Tensor, u: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    floor, tiny = FLOORS[x.dtype], torch.finfo(x.dtype).tiny
    inner, square = (u * w).sum(-1, keepdim=True), w.square().sum(-1, keepdim=True)
    some = square >= tiny  # of a w that is none every u will do
    # 1 + w u', with u' the u that is used: a softplus, and not a difference.
    plus = torch.where(some, F.softplus(inner, threshold=_LINEAR), 1 + inner).clamp(min=floor)
    used = u + torch.where(some, (plus - 1 - inner) / torch.where(some, square, 1.0), 0.0) * w
    z = (w * x).sum(-1, keepdim=True) + b.unsqueeze(-1)
    if spec.inverse:
        z = _root(spec, z, plus)
    h = activated(spec, z)
    ladj = (h.rest + plus * h.slope).log()
    return (x - used * h.value, -ladj) if spec.inverse else (x + used * h.value, ladj)


def _radial(spec: Any, x: Tensor, center: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    floor = FLOORS[x.dtype]
    a, s = ((t.abs() if how == "abs" else F.softplus(t, threshold=_LINEAR)).clamp(min=floor).unsqueeze(-1)
            for t, how in ((alpha, spec.alpha), (beta, "softplus")))  # fmt: skip
    d = x - center
    r = _norm(d)
    if spec.inverse:  # the length before: r (r + s) / (r + a) is what is given, a quadratic
        q = s - r
        both = q.abs() + (q.square() + 4 * r * a).sqrt()
        r = torch.where(q >= 0, 2 * r * a / both, both / 2)
    outer, inner = r + s, r + a
    near, far = a / inner, r / inner
    radial = far.square() + near * (2 * far + s / inner)  # the derivative of the length
    ladj = (x.shape[-1] - 1) * (outer.log() - inner.log()) + radial.log()
    return (x + ((a - s) / outer) * d, -ladj) if spec.inverse else (x + ((s - a) / inner) * d, ladj)


def _sylvester(spec: Any, x: Tensor, q: Tensor, r: Tensor, s: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    limit = 1 - torch.finfo(x.dtype).eps
    r_diagonal, s_diagonal = (torch.diagonal(t, dim1=-2, dim2=-1).tanh().clamp(-limit, limit) for t in (r, s))
    r, s = (t.triu(1) + torch.diag_embed(diagonal) for t, diagonal in ((r, r_diagonal), (s, s_diagonal)))
    plus = 1 + r_diagonal * s_diagonal
    t = (x.unsqueeze(-2) @ q).squeeze(-2)
    z = _back_substituted(spec, t, r, s, b, plus) if spec.inverse else (s @ t.unsqueeze(-1)).squeeze(-1) + b
    h = activated(spec, z)
    ladj = (h.rest + plus * h.slope).log().sum(-1, keepdim=True)
    moved = (q @ (r @ h.value.unsqueeze(-1))).squeeze(-1)
    return (x - moved, -ladj) if spec.inverse else (x + moved, ladj)


def _back_substituted(spec: Any, t: Tensor, r: Tensor, s: Tensor, b: Tensor, plus: Tensor) -> Tensor:
    """z of the coordinates t of y: the last from itself alone, each before it from those behind and itself."""
    M = t.shape[-1]
    z: list[Tensor] = []
    h: list[Tensor] = []
    before: list[Tensor] = []  # coordinates of x
    for i in reversed(range(M)):
        known = t[..., i]
        for j in range(i + 1, M):
            known = known - r[..., i, j] * h[M - 1 - j]
        target = s[..., i, i] * known + b[..., i]
        for j in range(i + 1, M):
            target = target + s[..., i, j] * before[M - 1 - j]
        z.append(_root(spec, target, plus[..., i]))
        h.append(activated(spec, z[-1]).value)
        before.append(known - r[..., i, i] * h[-1])
    return torch.stack(z[::-1], -1)


_LAYERS = {"planar": (_planar, (1, 1, 0)), "radial": (_radial, (1, 0, 0)), "sylvester": (_sylvester, (2, 2, 2, 1))}


def dims(kind: str) -> tuple[int, ...]:
    """Of each tensor of a layer."""
    return _LAYERS[kind][1]


@without_autocast  # that of whoever calls a backward pass that is differentiated again
def fwd(spec: Any, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
    """``x [..., D]``, then the layers' parameters → y and ladj."""
    out_dtype = x.dtype
    wide = torch.promote_types(out_dtype, torch.float32)
    x, *params = (t.to(wide) for t in (x, *params))  # type: ignore[assignment]
    layer, n_dims = _LAYERS[spec.kind]
    n = params[0].shape[-1 - n_dims[0]]
    ladj = x.new_zeros(*x.shape[:-1], 1)
    for k in reversed(range(n)) if spec.inverse else range(n):
        x, term = layer(spec, x, *(t.select(-1 - d, k) for t, d in zip(params, n_dims, strict=True)))
        ladj = ladj + term
    return x.to(out_dtype), ladj.squeeze(-1)


# ---- the root ----


def _root(spec: Any, s: Tensor, plus: Tensor) -> Tensor:
    """z of z + (plus - 1) h(z) = s, which grows with z."""
    if spec.activation != "tanh":
        slope = activated(spec, s).slope
        return s / (1 - slope + plus * slope)
    s, plus = torch.broadcast_tensors(s, plus)
    if torch.compiler.is_compiling() and not _transforms_active() and not _dual_level_active():
        # One node of a graph: its steps, unrolled for every layer, take a compiler minutes.
        start = torch.ops.flowkernels.low_rank_root(s, plus)
    else:
        with torch.no_grad():
            start = _tanh_root(s.detach(), plus.detach())
    # Newton's step squares an error: after one, the derivatives of the root are those of the implicit function theorem,
    # after two also those of these. Its value stays what was found.
    z = start
    for _ in range(2):
        h = activated(spec, z)
        off = z + (plus - 1) * h.value - s
        z = z - (off - off.detach()) / (h.rest + plus * h.slope)
    return start + (z - z.detach())


def _tanh_root(s: Tensor, plus: Tensor) -> Tensor:
    sign, target, c = torch.where(s < 0, -1.0, 1.0).to(s.dtype), s.abs(), plus - 1
    high = target + (-c).clamp(min=0)
    # A side from which Newton's steps come monotonously: before the root where f is concave, else behind it.
    start = torch.where(c > 0, torch.maximum(target / plus, target - c), torch.minimum(target / plus, high))

    def value(z: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(z)
        rest = h.square()
        return z + c * h, rest + plus * (1 - rest)

    return sign * root(value, target, torch.zeros_like(target), high, start, lambda a, b: a + 0.5 * (b - a))


_lib.define("low_rank_root(Tensor s, Tensor plus) -> Tensor")
_lib.impl("low_rank_root", _tanh_root, "CompositeExplicitAutograd")
torch.library.register_fake("flowkernels::low_rank_root", lambda s, plus: torch.empty_like(s), lib=_lib)
# Nothing flows back through it: what follows has the derivatives of the root.
torch.library.register_autograd(
    "flowkernels::low_rank_root", lambda ctx, g: (None, None), lib=_lib, setup_context=lambda ctx, inputs, output: None
)


def shapes(kind: str, params: Sequence[Tensor], features: int) -> list[tuple[int, ...]]:
    """What follows the leading dims of each tensor, given the layers of the first and the width of r."""
    n = params[0].shape[-1 - dims(kind)[0]]
    if kind == "sylvester":
        M = params[1].shape[-1]
        return [(n, features, M), (n, M, M), (n, M, M), (n, M)]
    return [(n, features), (n, features) if kind == "planar" else (n,), (n,)]
