"""The batch norms of a residual network: in evaluation a scale and a shift of each unit; in training another network.

In training every row depends on the batch, at each norm anew, so that no tile of rows can run from one end of the
network to the other. Products are then torch's, and a norm with its activation is one op.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels import _native, backends
from flowkernels.ops.batch_norm import BatchNormSpec, op
from flowkernels.ops.net import run_linear
from flowkernels.ops.net.activations import FUNCTIONS
from flowkernels.ops.net.net import Layers

from .reading import Walk, may_compute

_each: Any = torch  # whose operations on lists of tensors have private names
_BUFFERS = ("running_mean", "running_var")
_KERNELS = (torch.float32, torch.float64)
# Multiply-adds and rows from which a product is ours where a processor has AVX-512: torch has AVX2 on many of those.
_OWN_PRODUCT, _OWN_ROWS = 1 << 21, 32
# Width from which it runs layer by layer in evaluation too: one op scales all weights in every call, packs them for few
# rows, and sums the gradients of wide ones tile by tile.
_WIDE = 384


class BatchNorms:
    """Those of a network, two per block, as they are whenever they are asked."""

    def __init__(self, norms: Sequence[nn.BatchNorm1d]) -> None:
        self.norms, first = norms, norms[0]
        self.training, self.eps, self.momentum = first.training, first.eps, first.momentum

    def agree(self) -> bool:
        """Whether all are in one mode and have the same settings; in training, a momentum that is a number."""
        settings = self.training, self.eps, self.momentum
        same = all((norm.training, norm.eps, norm.momentum) == settings for norm in self.norms)
        return same and (self.momentum is not None or not self.training)

    def _of(self, owned: str, name: str) -> list[Any]:
        return [norm.__dict__[owned][name] for norm in self.norms]  # nn.Module's attributes cost a microsecond each

    def tensors(self) -> list[Tensor]:
        """What they own."""
        of_both = (("_parameters", ("weight", "bias")), ("_buffers", _BUFFERS))
        return [t for owned, names in of_both for name in names for t in self._of(owned, name)]

    def want_layers(self, layers: Layers, rows: int) -> bool:
        """Whether the network is to run layer by layer now: where rows depend on each other, or it is too wide."""
        bias = layers[0][1]
        if self.training or bias.shape[0] < _WIDE:
            return self.training
        return rows < _OWN_ROWS or (bias.requires_grad and torch.is_grad_enabled()) or _has_own_products()

    def pairs(self) -> Layers:
        """(scale, shift) of each in evaluation: all of them at once, in a fifth of the time of one by one."""
        weight, bias = (torch.stack(self._of("_parameters", name)) for name in ("weight", "bias"))
        mean, var = (torch.stack(self._of("_buffers", name)) for name in _BUFFERS)
        dtype = weight.dtype
        if dtype.itemsize < 4:
            weight, bias, mean, var = weight.float(), bias.float(), mean.float(), var.float()
        scale = weight * torch.rsqrt(var + self.eps)
        shift = torch.addcmul(bias, mean, scale, value=-1)
        return list(zip(scale.to(dtype).unbind(), shift.to(dtype).unbind(), strict=True))

    # ---- layer by layer ----

    def run(self, layers: Layers, activation: str, x: Tensor, context: Tensor | None) -> Tensor | None:
        """What the residual network of these layers returns, in training with new running statistics; None: call it."""
        like = layers[0][0]
        if x.dim() != 2 or x.dtype not in _KERNELS or not x.is_cpu or (self.training and x.shape[0] < 2):
            return None
        if not may_compute(like, x, context):
            return None
        if context is not None and (context.dim() != 2 or context.shape[0] != x.shape[0]):
            return None
        if _native.C is None or backends.default() not in ("auto", "cpu"):
            return None
        mean, var = (self._of("_buffers", name) for name in _BUFFERS)
        if None in mean or None in var or like.shape[1] != x.shape[1] + (0 if context is None else context.shape[1]):
            return None
        (weight, bias), *inner, last = layers
        per_block = 2 if context is None else 3
        spec, kernel, function = BatchNormSpec(self.eps, activation), op.backend("cpu"), FUNCTIONS[activation]
        found: list[list[Tensor]] = []
        given = zip(self._of("_parameters", "weight"), self._of("_parameters", "bias"), mean, var, strict=True)

        def normed(h: Tensor) -> Tensor:
            w, b, m, v = next(given)
            if not self.training:
                return function(F.batch_norm(h, m, v, w, b, False, 0.0, self.eps))
            y, *statistics = op.run(kernel, spec, (h, w, b))
            found.append(statistics)
            return y

        gates = None if context is None else [torch.sigmoid(_linear(context, *layer)) for layer in inner[2::3]]
        h = _linear(x if context is None else torch.cat((x, context), dim=1), weight, bias)
        for i in range(0, len(inner), per_block):
            t = _linear(normed(_linear(normed(h), *inner[i])), *inner[i + 1])
            h = h + t if gates is None else torch.addcmul(h, t, gates[i // 3])
        if self.training:
            self._update(found, x.shape[0])
        return _linear(h, *last)

    @torch.no_grad()
    def _update(self, found: Sequence[Sequence[Tensor]], rows: int) -> None:
        """What torch's own do to their running statistics, by the mean and variance of a batch."""
        tracked = [t for t in self._of("_buffers", "num_batches_tracked") if t is not None]
        if tracked:
            _each._foreach_add_(tracked, 1)
        means, variances = zip(*found, strict=True)
        unbiased = _each._foreach_mul(variances, rows / (rows - 1))
        _each._foreach_lerp_(self._of("_buffers", "running_mean"), means, self.momentum)
        _each._foreach_lerp_(self._of("_buffers", "running_var"), unbiased, self.momentum)


def _has_own_products() -> bool:
    return _native.C is not None and _native.C.isa() == "avx512"


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    rows = x.shape[0]
    is_ours = rows >= _OWN_ROWS and rows * weight.numel() >= _OWN_PRODUCT and _has_own_products()
    return run_linear(x, weight, bias) if is_ours else F.linear(x, weight, bias)


def read_norms(walk: Walk, block: Any, norms: list[nn.BatchNorm1d]) -> bool:
    """Adds those of a block of a residual network, if it has some; False where they must be called."""
    listed = block.__dict__["_modules"].get("batch_norm_layers")
    if not block.__dict__.get("use_batch_norm", listed is not None):
        return True
    if listed is None:
        return False
    found = list(listed._modules.values())
    norms += found
    return len(found) == 2 and walk.enter(listed) and all(_is_read(walk, norm) for norm in found)


def _is_read(walk: Walk, norm: Any) -> bool:
    """Whether a norm is torch's own, with what it does read off its parameters and buffers."""
    if type(norm) is not nn.BatchNorm1d or (norm.training and not norm.track_running_stats):
        return False
    if None in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        return False
    # In training every call changes the buffers, which nobody has kept.
    return walk.enter(
        norm,
        parameters=("weight", "bias"),
        attributes=("training", "eps", "momentum", "track_running_stats"),
        buffers=() if norm.training else _BUFFERS,
    )
