"""A network whose convolutions between the first and the last are of 1 x 1, as a dense one on every pixel.

The first layer is a dense one of a pixel's neighbours; the last gives every pixel what it adds to its own, and a sum of
shifted images is left. In between nothing leaves the cache: `csrc/net` runs all layers on a tile of pixels before the
next. It is for images of few channels and wide hidden layers, which then are read and written by nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkernels._backend import Grads, Inputs, Needs
from flowkernels.ops.net import NetSpec
from flowkernels.ops.net import native as net

from .spec import ConvSpec, weights, widest

# What enters hidden layers is kept for backward where it is little, or where layers are so wide that computing it again
# takes longer than memory that nobody has touched before; measured in the README.
_KEPT_BYTES, _KEPT_WIDTH = 8 << 20, 256


def why_not(spec: ConvSpec, *tensors: Tensor) -> str | None:
    if spec.n < 2:
        return "there is no hidden layer"
    if any(w.shape[-1] != 1 for w in weights(tensors)[1:-1]):
        return "a layer between the first and the last sees more than one pixel"
    return net.why_not_run(tensors)


# ---- between images and rows of pixels ----


def unfold(x: Tensor, k: int) -> Tensor:
    """``[N, C, H, W]`` → rows ``[N H W, k k C]``: each pixel's neighbourhood, zeros beyond the border."""
    N, C, H, W = x.shape
    rows = x.permute(0, 2, 3, 1)
    if k == 1:
        return rows.reshape(N * H * W, C)
    side = k // 2
    padded = F.pad(rows.reshape(N, H, W * C), (side * C, side * C, side, side))
    lines = padded.unfold(2, k * C, C)  # [N, H + k - 1, W, k C]: neighbours of a line lie side by side
    return torch.cat([lines[:, i : i + H] for i in range(k)], -1).view(N * H * W, k * k * C)


def fold(rows: Tensor, shape: Sequence[int], k: int) -> Tensor:
    """The adjoint of `unfold`, an image of this shape: what lies in the neighbourhoods of others is added up there."""
    N, C, H, W = shape
    if k == 1:
        return rows.view(N, H, W, C).permute(0, 3, 1, 2).contiguous()
    side, parts = k // 2, rows.view(N, H, W, k, k, C)
    total = rows.new_zeros((N, H + 2 * side, W + 2 * side, C))
    for i in range(k):
        for j in range(k):
            total[:, i : i + H, j : j + W] += parts[:, :, :, i, j]
    return total[:, side : side + H, side : side + W].permute(0, 3, 1, 2).contiguous()


# ---- the network on rows ----


def _first(weight: Tensor) -> Tensor:
    """``[out, in, k, k]`` as `unfold` orders a neighbourhood."""
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def _last(weight: Tensor) -> Tensor:
    """``[out, in, k, k]`` with a row for each neighbour that a pixel adds to, which sees it from the other side."""
    return weight.flip(2, 3).permute(2, 3, 0, 1).reshape(-1, weight.shape[1])


def _of_first(grad: Tensor | None, weight: Tensor) -> Tensor | None:
    """The gradient of `_first`'s weight from that of what it returns."""
    out, inner, k, _ = weight.shape
    return None if grad is None else grad.view(out, k, k, inner).permute(0, 3, 1, 2).contiguous()


def _of_last(grad: Tensor | None, weight: Tensor) -> Tensor | None:
    """The same of `_last`."""
    out, inner, k, _ = weight.shape
    return None if grad is None else grad.view(k, k, out, inner).permute(2, 3, 0, 1).flip(2, 3)


def _dense(spec: ConvSpec, wide: Sequence[Tensor]) -> tuple[NetSpec, list[Tensor]]:
    """The dense network and its tensors, without rows; the last layer's bias is added to the image."""
    given, biases = weights(wide), wide[2::2]
    matrices = [_first(given[0]), *(w.reshape(w.shape[:2]) for w in given[1:-1]), _last(given[-1])]
    vectors = [*biases[:-1], biases[-1].new_zeros(len(matrices[-1]))]
    tensors = [t for pair in zip(matrices, vectors, strict=True) for t in pair]
    return NetSpec(spec.n, None, False, spec.activation), tensors


def _is_kept(wide: Sequence[Tensor]) -> bool:
    x, width = wide[0], widest(wide)
    kept = len(x) * x.shape[-2] * x.shape[-1] * x.element_size() * sum(w.shape[1] for w in weights(wide)[1:])
    return kept <= _KEPT_BYTES or width > _KEPT_WIDTH


def _run(spec: ConvSpec, tensors: Sequence[Tensor], keep: bool) -> tuple[tuple[Tensor], list[Tensor]]:
    wide = net.widen(*tensors)
    x, last = wide[0], weights(wide)[-1]
    dense, parts = _dense(spec, wide)
    rows, saved = unfold(x, weights(wide)[0].shape[-1]), list[Tensor]()
    if keep and _is_kept(wide):
        (out,), saved = net.fwd_saving(dense, rows, *parts)
    else:
        (out,) = net.fwd(dense, rows, *parts)
    y = fold(out, (len(x), last.shape[0], *x.shape[-2:]), last.shape[-1]).add_(wide[-1].view(-1, 1, 1))
    return (y.to(tensors[0].dtype),), saved


def fwd(spec: ConvSpec, *tensors: Tensor) -> tuple[Tensor]:
    return _run(spec, tensors, False)[0]


def fwd_saving(spec: ConvSpec, *tensors: Tensor) -> tuple[tuple[Tensor], list[Tensor]]:
    return _run(spec, tensors, True)


def bwd(spec: ConvSpec, grads: Grads, tensors: Inputs, needs: Needs, saved: Inputs = ()) -> Grads:
    g = grads[0]
    if g is None:
        return [None] * len(tensors)
    wide = net.widen(*tensors)
    g = g.to(wide[0].dtype)
    first, last = weights(wide)[0], weights(wide)[-1]
    dense, parts = _dense(spec, wide)
    rows = unfold(wide[0], first.shape[-1])
    of_rows, *found = net.bwd(dense, [unfold(g, last.shape[-1])], (rows, *parts), [*needs[:-1], False], saved)
    out = [None if t is None else t.view(given.shape) for t, given in zip(found[2:-2], wide[3:-2], strict=True)]
    of_x = None if of_rows is None else fold(of_rows, wide[0].shape, first.shape[-1])
    of_bias = g.sum((0, 2, 3)) if needs[-1] else None
    out = [of_x, _of_first(found[0], first), found[1], *out, _of_last(found[-2], last), of_bias]
    return [None if t is None else t.to(given.dtype) for t, given in zip(out, tensors, strict=True)]
