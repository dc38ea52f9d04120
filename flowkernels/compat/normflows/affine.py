"""normflows' affine layers and 1 × 1 convolutions on the fused kernels.

`forward` samples here, and log determinants of maps that are the same for every row are scalars, as in normflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowkernels.compat.engine import thresholds
from flowkernels.compat.engine.patch import FastMethods, layer_of, or_theirs
from flowkernels.compat.layer import Layer
from flowkernels.compat.reading.halves import Half
from flowkernels.compat.reading.operands import mixed
from flowkernels.nets.reading import is_bare
from flowkernels.ops import actnorm, affine, lu_linear

from . import describe

Result = tuple[Any, Tensor] | None


def both_ways(run: Callable[[Any, Any, bool], Result]) -> type[FastMethods]:
    """The methods of accelerated layers that run both ways, or by normflows' own code where `run` returns None."""

    class BothWays(FastMethods):
        @or_theirs
        def forward(self: Any, z: Any) -> Any:
            return run(self, z, False)

        @or_theirs
        def inverse(self: Any, z: Any) -> Any:
            return run(self, z, True)

    return BothWays


# ---- coupling ----


def _affine(what: Layer, z: Tensor, params: Tensor, inverse: bool, part: slice | None) -> tuple[Tensor, Tensor]:
    scale: Any = what.map
    pairs = params.unflatten(1, (-1, 2)).movedim(2, -1)  # shift and scale logit alternate along the channels
    return affine(z, pairs, scale=scale.scale, shift_first=True, part=part, event_dims=z.dim() - 1, inverse=inverse)


def _couple(layer: Any, z: Any, inverse: bool) -> Result:
    z1, z2 = z
    if not thresholds.is_enough(z2.numel(), thresholds.AFFINE):
        return None
    params, what = layer.param_map(z1), describe.coupling(layer)
    if isinstance(what, str) or mixed(z2, params) or params.shape[1] != 2 * z2.shape[1]:
        return None
    z2, ladj = _affine(what, z2, params, inverse, None)
    return [z1, z2], ladj


AffineCoupling = both_ways(_couple)


def _may_pay(z: Tensor) -> bool:
    """Whether these are rows enough; the first question, since asking any other takes time from small batches."""
    return z.dim() == 2 and thresholds.is_enough(z.shape[0], thresholds.COUPLED_ROWS)


def _fused(half: Half | None, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """A coupling as an op with its network; None where that is to be called."""
    if half is None or torch.compiler.is_compiling() or not z.is_cpu:
        return None
    return half.run(z, (), inverse) if half.pays(len(z)) else None


def _block(layer: Any, z: Tensor, inverse: bool) -> Result:
    """Split, map and merge as one pass that writes the whole output, its network's too; None where they are called."""
    dense, split_off = _may_pay(z), thresholds.is_enough(z.numel(), 2 * thresholds.AFFINE)
    if not dense and not split_off:
        return None
    split, coupling, merge = layer.flows
    if not all(map(is_bare, (split, coupling, merge))):
        return None
    if not split.mode == merge.mode in ("channel", "channel_inv") or layer_of(coupling) is not AffineCoupling:
        return None
    what = describe.coupling(coupling)
    if isinstance(what, str):
        return None
    seen, part = describe.sides(split, z.shape[1])
    if dense:
        fused = _fused(describe.half(what, seen, part), z, inverse)
        if fused is not None or not split_off:
            return fused
    params = coupling.param_map(z[:, seen])
    if mixed(z, params) or params.shape[1] != 2 * (part.stop - part.start):
        return None
    return _affine(what, z, params, inverse, part)


CouplingBlock = both_ways(_block)


def _masked(layer: Any, z: Tensor, inverse: bool) -> Result:
    dense, large = _may_pay(z), not thresholds.may_train() or thresholds.is_enough(z.numel(), thresholds.MASKED_AFFINE)
    if not dense and not large:
        return None
    if z.dim() != layer.b.dim() or z.shape[1:] != layer.b.shape[1:] or mixed(z, layer.b):
        return None  # normflows broadcasts or promotes
    mask = describe.mask_of(layer)
    if not isinstance(mask, describe.Mask):
        return None
    fused = _fused(describe.masked(layer, mask), z, inverse) if dense else None
    if fused is not None or not large:
        return fused
    seen = layer.b * z
    return affine(z, (layer.s(seen), layer.t(seen)), mask=mask.maps, event_dims=mask.maps.dim(), inverse=inverse)


MaskedAffine = both_ways(_masked)


# ---- one scale per channel ----


def _norm(layer: Any, z: Tensor, inverse: bool) -> Result:
    s = layer.s
    if not thresholds.is_enough(z.numel(), thresholds.NORM) or z.dim() != s.dim():
        return None
    if z.shape[1] != s.shape[1] or mixed(z, s) or not layer.data_dep_init_done > 0.0:
        return None  # normflows broadcasts, promotes or refuses
    log_scale = s.view(-1)
    ladj = math.prod(z.shape[2:]) * log_scale.sum()
    y, _ = actnorm(z, log_scale, layer.t.view(-1), channel_dim=1, inverse=inverse)
    return y, -ladj if inverse else ladj


Norm = both_ways(_norm)


# ---- 1 × 1 convolution ----


def _conv(layer: Any, z: Tensor, density: bool) -> Result:
    if density and thresholds.may_train() and thresholds.is_few(z.numel(), thresholds.CONVOLUTION):
        return None  # before anything is read, which takes small images as long as the layer
    inverse, order = not density, describe.order_of(layer)
    if isinstance(order, str) or z.dim() != 4 or not z.is_floating_point():
        return None
    order = layer.P.argmax(1) if order is None else order  # None: not to be read now
    y, _ = lu_linear(z, layer.L, layer.U, layer.log_S, layer.sign_S, order, channel_dim=1, inverse=inverse)
    # The op keeps it for backward, and normflows lets one write to it. A trace is checked without gradients.
    if inverse and (y.requires_grad or torch.jit.is_tracing()):  # type: ignore[reportPrivateImportUsage]
        y = y.clone()
    ladj = layer.log_S.sum() * (z.shape[2] * z.shape[3])
    return y, -ladj if inverse else ladj


Conv1x1 = both_ways(_conv)  # with LU factors
