"""MintNet's layers: masked convolutional networks whose Jacobian is triangular, with a positive diagonal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels._arguments import check_tensor, count, flag, widths
from flowkernels.nets import MaskedConv2d
from flowkernels.nets.common import check_dtypes
from flowkernels.nets.masked_conv import convolved
from flowkernels.ops._checks import without_autocast
from flowkernels.ops._routing import _dual_level_active, _lib, _transforms_active, in_transform

from .base import Transform

_NAME = "transforms.Mint"
_LEAST = 1e-12  # of a diagonal, as the authors have it
_STALE = 4  # steps in which a number comes no nearer to its y: it is where rounding lets it be
_NEAR = 2.0**12  # roundings of the terms that y is a sum of, within which that may be said
_ROUNDINGS = 4.0  # of these, which are no reason for one more step


class Mint(Transform):
    r"""Maps an image by a masked convolutional network beside a scale: its Jacobian is triangular, its slopes positive.

    .. math:: y = t \odot x + W_3 * h(W_2 * h(W_1 * x + b_1) + b_2) + b_3, \quad h = \mathrm{elu}, \quad t > 0

    with L hidden channels for each channel of x, and all kernels masked as in `flowkernels.nets.MaskedConv2d`: a number
    sees those before it, row by row, a pixel's channels in their order. On the diagonal, i.e. from a number through its
    own hidden channels to itself, the signs of :math:`W_2` are those that make every product
    :math:`w_{3i}\,w_{2ij}\,w_{1j}` positive, so that

    .. math:: \frac{\partial y_d}{\partial x_d} = t_d + \sum_{ij} w_{3i}\,h'(\cdot)\,w_{2ij}\,h'(\cdot)\,w_{1j} \ge t_d,
        \qquad \mathrm{ladj} = \sum_d \log \frac{\partial y_d}{\partial x_d}

    exactly, in nats. ``inverse`` is the authors' iteration :math:`x \leftarrow x + \alpha\,(y - f(x)) / \mathrm{diag}`
    with :math:`\alpha = 1` and a step that is cut where it leaves what the bounds of the slope allow; an image rests at
    the rounding floor. Its derivatives are those of the implicit function. ``x [..., C, H, W]`` in the dtype of the
    weights, ``y`` the same, ``ladj [...]``; computed in float32 at least. ``context`` is ignored.

    Args:
        shape: (C, H, W).
        latents: L.
        kernel_size: of all three kernels, an odd number.
        reverse: numbers see those behind them, the upper triangular half of the paper's pairs.
        steps: of the inverse, at most. On a CPU it ends when all numbers rest; on a GPU, which the host does not ask,
            all steps are taken. None: C H W + 100, on a CPU and outside of torch.func 40 C H W.

    Raises:
        ValueError: an argument breaks its contract; ``x`` is not of that shape.
        TypeError: ``x`` is not in the dtype of the weights.

    Reference:
        Song, Meng, Ermon: MintNet: Building Invertible Neural Networks with Masked Convolutions, NeurIPS 2019,
        arXiv:1907.07945.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import Mint
        >>> layer, x = Mint((2, 4, 4), latents=3), torch.randn(5, 2, 4, 4)
        >>> y, ladj = layer(x)
        >>> torch.allclose(layer.inverse(y)[0], x, atol=1e-5), ladj.shape
        (True, torch.Size([5]))
    """

    def __init__(
        self,
        shape: Sequence[int],
        latents: int = 8,
        kernel_size: int = 3,
        reverse: bool = False,
        steps: int | None = None,
    ) -> None:
        super().__init__()
        self.shape = widths(_NAME, "shape", shape, layers=1)
        if len(self.shape) != 3:
            raise ValueError(f"{_NAME}: shape must be (C, H, W), got {shape!r:.60}")
        self.latents, self.reverse = count(_NAME, "latents", latents), flag(_NAME, "reverse", reverse)
        self.steps = None if steps is None else count(_NAME, "steps", steps)
        C, wide = self.shape[0], self.shape[0] * latents
        sizes = ((C, wide), (wide, wide), (wide, C))
        self.layers = nn.ModuleList([MaskedConv2d(a, b, kernel_size, "B", C) for a, b in sizes])
        self.kernel_size = kernel_size
        self.scale = nn.Parameter(torch.ones(self.shape))
        for layer in self.layers:
            nn.init.xavier_normal_(layer.weight, 0.01)  # type: ignore[arg-type]
        nn.init.zeros_(self.layers[-1].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_tensor(_NAME, "x", x)
        return self._run(x, False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_tensor(_NAME, "y", y)
        return self._run(y, True)

    @without_autocast  # rounded to 8 bits a map and its inverse would not meet
    def _run(self, given: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if given.shape[-3:] != self.shape:
            expected = str(list(self.shape))[1:]
            raise ValueError(f"{_NAME}: x must be [..., {expected}, got {list(given.shape)}")
        check_dtypes(_NAME, self, self._parameters.get("scale"), given, None)
        wide = torch.promote_types(given.dtype, torch.float32)
        images = self._turned(given.reshape(-1, *self.shape).to(wide))
        tensors = [t.to(wide) for t in self.tensors()]
        if inverse:
            found = _inverse(images, tensors, self.latents, self._n_steps(images))
            slope = _Network(tensors, self.latents).run(found)[1]
            ladj = -slope.log().sum((-3, -2, -1))
        else:
            found, slope = _Network(tensors, self.latents).run(images)
            ladj = slope.log().sum((-3, -2, -1))
        return self._turned(found).reshape(given.shape).to(given.dtype), ladj.reshape(given.shape[:-3])

    def tensors(self) -> list[Tensor]:
        """Kernels behind their masks and signs, each with its bias, and the scale, which is above 0."""
        first, second, third = (layer.kernel() for layer in self.layers)  # type: ignore[operator,union-attr]
        before, behind = _diagonals(first, third, self.latents)
        second = _with_signs(second, behind.sign()[:, :, None] * before.sign()[:, None, :])
        biases: list[Tensor] = [layer.bias for layer in self.layers]  # type: ignore[misc]
        scale = self.scale.abs().clamp(min=_LEAST)
        return [first, biases[0], second, biases[1], third, biases[2], self._turned(scale)]

    def _turned(self, x: Tensor) -> Tensor:
        return x.flip((-3, -2, -1)) if self.reverse else x

    def _n_steps(self, x: Tensor) -> int:
        D = math.prod(self.shape)
        read = x.device.type == "cpu" and not (_transforms_active() or _dual_level_active())
        return self.steps or (40 * D if read else D + 100)

    def extra_repr(self) -> str:
        return f"{self.shape}, latents={self.latents}, reverse={self.reverse}"


def _diagonals(first: Tensor, third: Tensor, latents: int) -> tuple[Tensor, Tensor]:
    """What each channel gives to its own hidden channels, and what these give to it, ``[C, L]`` both."""
    r, shape = first.shape[-2] - 1, (-1, latents)
    before = first[:, :, r, r].unflatten(0, shape).diagonal(dim1=0, dim2=2).mT
    behind = third[:, :, r, r].unflatten(1, shape).diagonal(dim1=0, dim2=1).mT
    return before, behind


def _middle(kernel: Tensor, latents: int) -> Tensor:
    """What the hidden channels of each channel give to each other at a pixel, ``[C, L, L]``."""
    r, shape = kernel.shape[-2] - 1, (-1, latents)
    return kernel[:, :, r, r].unflatten(1, shape).unflatten(0, shape).diagonal(dim1=0, dim2=2).movedim(-1, 0)


def _with_signs(kernel: Tensor, signs: Tensor) -> Tensor:
    """The kernel with these signs ``[C, L, L]`` on its diagonal blocks."""
    r, (C, L, _), on = kernel.shape[-2] - 1, signs.shape, kernel.device
    signed = signs * _middle(kernel, L).abs()
    row, column = torch.arange(r + 1, device=on)[:, None], torch.arange(2 * r + 1, device=on)
    of = torch.arange(C * L, device=on) // L
    where = (of[:, None] == of)[..., None, None] & (row == r) & (column == r)
    # Every row of a channel's block beside the others', of which `where` takes its own.
    spread = signed[:, :, None, :].expand(C, L, C, L).reshape(C * L, C * L)
    return torch.where(where, spread[..., None, None], kernel)


class _Point(NamedTuple):
    """Slopes of the two activations at an x, and of each number of y along its own one of x."""

    first: Tensor
    second: Tensor
    own: Tensor


class _Network:
    """f of tensors that are given, its slopes, and products with its Jacobian."""

    def __init__(self, tensors: Sequence[Tensor], latents: int) -> None:
        self.k1, self.b1, self.k2, self.b2, self.k3, self.b3, self.scale = tensors
        self.latents, self.channels = latents, tensors[6].shape[0]
        self.before, self.behind = _diagonals(self.k1, self.k3, latents)
        self.middle = _middle(self.k2, latents)

    def run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x), and the diagonal of its Jacobian."""
        y, point, _ = self.at(x)
        return y, point.own

    def with_terms(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """These, and the size of the terms that f(x) is a sum of."""
        y, point, hidden = self.at(x)
        terms = (self.scale * x).abs() + convolved(hidden.abs(), self.k3.abs(), self.b3.abs())
        return y, point.own, terms

    def at(self, x: Tensor) -> tuple[Tensor, _Point, Tensor]:
        """f(x), slopes there, and what the last convolution reads."""
        z1 = convolved(x, self.k1, self.b1)
        z2 = convolved(F.elu(z1), self.k2, self.b2)
        hidden = F.elu(z2)
        y = self.scale * x + convolved(hidden, self.k3, self.b3)
        first, second = z1.clamp(max=0).exp(), z2.clamp(max=0).exp()
        by_channel = (self.channels, self.latents)
        along = (first.unflatten(1, by_channel) * self.before[..., None, None]).flatten(1, 2)
        mixing = self.middle.reshape(-1, self.latents, 1, 1)
        along = second * F.conv2d(along, mixing, groups=self.channels)
        own = (along.unflatten(1, by_channel) * self.behind[..., None, None]).sum(2) + self.scale
        return y, _Point(first, second, own), hidden

    def steepest(self) -> Tensor:
        """A bound of the diagonal, ``[C, H, W]``: no slope of an activation is above 1."""
        most = (self.behind[:, :, None] * self.middle * self.before[:, None, :]).sum((1, 2))
        return self.scale + most[:, None, None]

    def pushed(self, point: _Point, v: Tensor) -> Tensor:
        """J v."""
        u = point.second * convolved(point.first * convolved(v, self.k1), self.k2)
        return self.scale * v + convolved(u, self.k3)

    def pulled(self, point: _Point, v: Tensor) -> Tensor:
        """Jᵀ v."""
        u = point.first * _transposed(point.second * _transposed(v, self.k3), self.k2)
        return self.scale * v + _transposed(u, self.k1)


def _transposed(y: Tensor, kernel: Tensor) -> Tensor:
    """The transposed map of `convolved`."""
    r = kernel.shape[-2] - 1
    return F.conv_transpose2d(F.pad(y, (0, 0, 0, r)), kernel, padding=r)


# ---- the inverse ----


def _inverse(y: Tensor, tensors: Sequence[Tensor], latents: int, steps: int) -> Tensor:
    """x of f(x) = y, with all first and second derivatives."""
    if _transforms_active() or _dual_level_active():
        return _inverse_in_transforms(y, tensors, latents, steps)
    detached = [t.detach() for t in tensors]
    start = torch.ops.flowkernels.mint_root(y.detach(), detached, latents, steps)
    if not torch.is_grad_enabled():
        return start
    # Newton's step squares an error: after one, the derivatives are those of the implicit function theorem, after two
    # also those of these, whatever the step is multiplied with. Its value stays what was found.
    x, net = start, _Network(tensors, latents)
    for _ in range(2):
        off = y - net.run(x)[0]
        x = x + torch.ops.flowkernels.mint_step(off - off.detach(), start, detached, latents, steps)
    return start + (x - x.detach())


def _inverse_in_transforms(y: Tensor, tensors: Sequence[Tensor], latents: int, steps: int) -> Tensor:
    """The same of operations alone that torch.func and dual numbers know: two steps of Newton's with the whole matrix,
    of which each takes as many products as there are numbers, since what the values no longer need tangents may."""
    with torch.no_grad():
        start = _root(y, tensors, latents, steps)
    x, net = start, _Network(tensors, latents)
    for _ in range(2):
        value, point, _ = net.at(x)
        off = y - value
        step = off / point.own
        for _ in range(math.prod(y.shape[-3:])):  # what is not on the diagonal is nilpotent
            step = step + (off - net.pushed(point, step)) / point.own
        x = x + step
    return x


def _may_read(tensors: Sequence[Tensor]) -> bool:
    """Whether the host may ask if all rows rest."""
    return tensors[0].device.type == "cpu" and not in_transform(tensors)


def _most(t: Tensor) -> Tensor:
    return t.abs().amax((-3, -2, -1), keepdim=True)


def _root(y: Tensor, tensors: Sequence[Tensor], latents: int, steps: int) -> Tensor:
    """The iteration. A number rests once all before it do, and what is left of its y is what rounding leaves of it.

    A number's slope along itself is between the scale and `steepest`. So, with all before it at rest, what is left of y
    bounds its root from both sides, and a step of Newton's that leaves what is known of it, or only changes the sign,
    is replaced by the middle. What is known is dropped where the value moved as no such slope would have it: numbers
    before it have moved. Numbers that would go on moving by a rounding would be seen by those behind them, and grow.
    """
    if y.numel() == 0:
        return y.clone()
    net, eps = _Network(tensors, latents), torch.finfo(y.dtype).eps
    least_slope, most_slope = net.scale, net.steepest()
    x = best = (y - net.run(torch.zeros_like(y[:1]))[0]) / most_slope
    low, high = torch.full_like(y, -torch.inf), torch.full_like(y, torch.inf)
    moved, before = torch.zeros_like(y), torch.full_like(y, torch.inf)
    rests, least, stale = torch.zeros_like(y, dtype=torch.bool), torch.full_like(y, torch.inf), torch.zeros_like(y)
    of_row = torch.full_like(y[:, :1, :1, :1], torch.inf)
    for _ in range(steps):
        value, slope, terms = net.with_terms(x)
        off = y - value
        nearer = _most(off) < of_row
        best, of_row = torch.where(nearer, x, best), torch.where(nearer, _most(off), of_row)
        below, above = _ordered(x + off / most_slope, x + off / least_slope)
        if_still = _ordered(before - moved * least_slope, before - moved * most_slope)
        a, b = torch.maximum(low, below), torch.minimum(high, above)
        anew = (off < if_still[0]) | (off > if_still[1]) | (a > b)
        low, high = torch.where(anew, below, a), torch.where(anew, above, b)
        newton = x + off / slope
        fits = (newton >= low) & (newton <= high) & ((off * before > 0) | (2 * off.abs() <= before.abs()))
        following = torch.where(rests, x, torch.where(fits | anew, newton, low + 0.5 * (high - low)))
        moved, before = following - x, off
        front, smaller = _all_before(rests), off.abs() < least
        stale = torch.where(front & ~smaller, stale + 1, stale)
        least = torch.where(front & smaller, off.abs(), least)
        # NaN rests at once.
        rounding = eps * (y.abs() + terms)
        is_small = ~(off.abs() > _ROUNDINGS * rounding) | (moved.abs() <= eps * following.abs())
        rests = rests | is_small | ((stale >= _STALE) & (off.abs() <= _NEAR * rounding))
        rests = rests & _all_before(rests)
        x = following
        if _may_read((y, *tensors)) and bool(rests.all()):
            break
    return torch.where(rests.flatten(1).all(1).view(of_row.shape), x, best)


def _all_before(flags: Tensor) -> Tensor:
    """Whether all numbers before each one have the flag: row by row, a pixel's channels in their order."""
    n, C, H, W = flags.shape
    missing = (~flags).movedim(1, -1).reshape(n, -1)
    return ((missing.cumsum(1) - missing.long()) == 0).view(n, H, W, C).movedim(-1, 1)


def _ordered(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return torch.minimum(a, b), torch.maximum(a, b)


def _solve(e: Tensor, x: Tensor, tensors: Sequence[Tensor], latents: int, steps: int, transposed: bool) -> Tensor:
    """J⁻¹ e at x, or J⁻ᵀ e: what is not on the diagonal is nilpotent, so that the iteration ends."""
    if e.numel() == 0:
        return e.clone()
    net = _Network(tensors, latents)
    point = net.at(x)[1]
    product: Callable[[_Point, Tensor], Tensor] = net.pulled if transposed else net.pushed
    found, rounding = e / point.own, torch.finfo(e.dtype).eps
    rests = torch.zeros_like(e[:, :1, :1, :1], dtype=torch.bool)
    for _ in range(steps):
        step = (e - product(point, found)) / point.own
        rests = rests | ~(_most(step) > rounding * _most(found))
        found = torch.where(rests, found, found + step)
        if _may_read((e, *tensors)) and bool(rests.all()):
            break
    return found


# One node of a graph each: their steps, unrolled, would take a compiler minutes; and the host sees rows that rest.
_lib.define("mint_root(Tensor y, Tensor[] tensors, int latents, int steps) -> Tensor")
_lib.impl("mint_root", _root, "CompositeExplicitAutograd")
_lib.define("mint_solve(Tensor e, Tensor x, Tensor[] tensors, int latents, int steps, bool transposed) -> Tensor")
_lib.impl("mint_solve", _solve, "CompositeExplicitAutograd")
# J⁻¹ e of an e that is 0, and whose derivatives are not.
_lib.define("mint_step(Tensor e, Tensor x, Tensor[] tensors, int latents, int steps) -> Tensor")
_lib.impl("mint_step", lambda e, *_: e.clone(), "CompositeExplicitAutograd")
for _op in ("mint_root", "mint_solve", "mint_step"):
    torch.library.register_fake(f"flowkernels::{_op}", lambda t, *_: torch.empty_like(t), lib=_lib)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, x, tensors, ctx.latents, ctx.steps, *transposed = inputs
    ctx.transposed = transposed == [True]
    ctx.n_inputs = len(inputs)
    ctx.save_for_backward(x, *tensors)


def _back(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, *tensors = ctx.saved_tensors
    found = torch.ops.flowkernels.mint_solve(g, x, tensors, ctx.latents, ctx.steps, not ctx.transposed)
    return found, None, [None] * len(tensors), *[None] * (ctx.n_inputs - 3)


# Linear in e, of constants: a derivative of any order is the same of the other matrix.
for _op in ("mint_solve", "mint_step"):
    torch.library.register_autograd(f"flowkernels::{_op}", _back, setup_context=_keep, lib=_lib)
