"""normflows' affine layers and 1 × 1 convolutions on the fused kernels.

`forward` samples here, and log determinants of maps that are the same for every row are scalars, as in normflows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flowkernels.compat.engine import thresholds
from flowkernels.compat.engine.patch import FastMethods, layer_of, original_class
from flowkernels.compat.engine.reads import CachedRead
from flowkernels.compat.reading.masks import read_order
from flowkernels.compat.reading.operands import mixed
from flowkernels.nets.reading import is_bare
from flowkernels.ops import actnorm, affine, lu_linear

from .dense import Mask, coupled, mask_of, masked, may_pay

# ---- coupling ----

_SCALES = {"exp": "exp", "sigmoid": "reciprocal_sigmoid", "sigmoid_inv": "sigmoid"}  # of `ops.affine`


def _affine(layer: Any, z: Tensor, params: Tensor, inverse: bool, part: slice | None) -> tuple[Tensor, Tensor]:
    scale = _SCALES[layer.scale_map]
    pairs = params.unflatten(1, (-1, 2)).movedim(2, -1)  # shift and scale logit alternate along the channels
    return affine(z, pairs, scale=scale, shift_first=True, part=part, event_dims=z.dim() - 1, inverse=inverse)


def _couple(layer: Any, z: Any, inverse: bool) -> tuple[list[Tensor], Tensor]:
    z1, z2 = z
    params = layer.param_map(z1) if thresholds.is_enough(z2.numel(), thresholds.AFFINE) else None
    if params is None or mixed(z2, params) or params.shape[1] != 2 * z2.shape[1]:
        theirs = original_class(layer)
        return (theirs.inverse if inverse else theirs.forward)(layer, z)
    z2, ladj = _affine(layer, z2, params, inverse, None)
    return [z1, z2], ladj


def coupling_refusal(layer: Any) -> str | None:
    if not layer.scale:
        return "without a scale it is one addition"
    known = layer.scale_map in _SCALES
    return None if known else f"its scale map is {layer.scale_map!r}, none of {', '.join(_SCALES)}"


class AffineCoupling(FastMethods):
    """The methods of an accelerated AffineCoupling."""

    def forward(self, z: Any) -> tuple[list[Tensor], Tensor]:
        return _couple(self, z, False)

    def inverse(self, z: Any) -> tuple[list[Tensor], Tensor]:
        return _couple(self, z, True)


def _block(layer: Any, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """Split, map and merge as one pass that writes the whole output, its network's too; None where they are called."""
    dense, split_off = may_pay(z), thresholds.is_enough(z.numel(), 2 * thresholds.AFFINE)
    if not dense and not split_off:
        return None
    split, coupling, merge = layer.flows
    if not all(map(is_bare, (split, coupling, merge))):
        return None
    if not split.mode == merge.mode in ("channel", "channel_inv") or layer_of(coupling) is not AffineCoupling:
        return None
    C = z.shape[1]
    first = (C + 1) // 2
    if dense:
        sides = (range(first), range(first, C)) if split.mode == "channel" else (range(first, C), range(first))
        fused = coupled(coupling.param_map, _SCALES[coupling.scale_map], z, *sides, inverse)
        if fused is not None or not split_off:
            return fused
    seen, part = (z[:, :first], slice(first, C)) if split.mode == "channel" else (z[:, first:], slice(0, first))
    params = coupling.param_map(seen)
    if mixed(z, params) or params.shape[1] != 2 * (part.stop - part.start):
        return None
    return _affine(coupling, z, params, inverse, part)


def block_refusal(layer: Any) -> str | None:
    names = [type(flow).__name__ for flow in layer.flows]
    if names != ["Split", "AffineCoupling", "Merge"]:
        return f"its parts are {', '.join(names)}"
    split, coupling, _ = layer.flows
    if split.mode not in ("channel", "channel_inv"):
        return f"its split is a {split.mode}, not one of channels"
    reason = None if layer_of(coupling) is AffineCoupling else coupling_refusal(coupling)
    return None if reason is None else f"its AffineCoupling is left alone: {reason}"


class CouplingBlock(FastMethods):
    """The methods of an accelerated AffineCouplingBlock."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        found = _block(self, z, False)
        return original_class(self).forward(self, z) if found is None else found

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        found = _block(self, z, True)
        return original_class(self).inverse(self, z) if found is None else found


def _masked(layer: Any, mask: Mask, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    seen = layer.b * z
    logit, shift = layer.s(seen), layer.t(seen)
    return affine(z, (logit, shift), mask=mask.maps, event_dims=mask.maps.dim(), inverse=inverse)


def _fits_mask(layer: Any, z: Tensor) -> bool:
    """Whether z has an entry for each of the mask's, of its dtype; otherwise normflows broadcasts or promotes."""
    return z.dim() == layer.b.dim() and z.shape[1:] == layer.b.shape[1:] and not mixed(z, layer.b)


def _masked_affine(layer: Any, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    dense, large = may_pay(z), not torch.is_grad_enabled() or thresholds.is_enough(z.numel(), thresholds.MASKED_AFFINE)
    mask = mask_of(layer) if (dense or large) and _fits_mask(layer, z) else None
    if isinstance(mask, Mask):
        fused = masked(layer, mask, z, inverse) if dense else None
        if fused is not None:
            return fused
        if large:
            return _masked(layer, mask, z, inverse)
    theirs = original_class(layer)
    return theirs.inverse(layer, z) if inverse else theirs.forward(layer, z)


def masked_refusal(layer: Any) -> str | None:
    mask = mask_of(layer)
    return mask if isinstance(mask, str) else None


class MaskedAffine(FastMethods):
    """The methods of an accelerated MaskedAffineFlow."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return _masked_affine(self, z, False)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return _masked_affine(self, z, True)


# ---- one scale per channel ----


def _pixels(z: Tensor) -> int:
    return math.prod(z.shape[2:])


def norm_refusal(layer: Any) -> str | None:
    s, t = layer.s, layer.t
    per_channel = s.dim() >= 2 and s.shape == t.shape and s.numel() == s.shape[1]
    return None if per_channel else f"its scale is {list(s.shape)}, not one number per channel"


def _leaves_norm(layer: Any, z: Tensor) -> bool:
    """Small, or of a shape or dtype that normflows broadcasts, promotes or refuses."""
    s = layer.s
    if not thresholds.is_enough(z.numel(), thresholds.NORM) or z.dim() != s.dim():
        return True
    return z.shape[1] != s.shape[1] or mixed(z, s)


class Norm(FastMethods):
    """The methods of an accelerated ActNorm."""

    def forward(self: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        if _leaves_norm(self, z) or not self.data_dep_init_done > 0.0:
            return original_class(self).forward(self, z)
        log_scale = self.s.view(-1)
        return actnorm(z, log_scale, self.t.view(-1), channel_dim=1)[0], _pixels(z) * log_scale.sum()

    def inverse(self: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        if _leaves_norm(self, z) or not self.data_dep_init_done > 0.0:
            return original_class(self).inverse(self, z)
        log_scale = self.s.view(-1)
        return actnorm(z, log_scale, self.t.view(-1), channel_dim=1, inverse=True)[0], -_pixels(z) * log_scale.sum()


# ---- 1 × 1 convolution ----


def _read_factors(permutation: Tensor, signs: Tensor) -> Tensor | str:
    return read_order(permutation) if bool((signs.abs() == 1).all()) else "its signs are not 1 and -1"


_order_of = CachedRead[Tensor | str](_read_factors)


def conv_refusal(layer: Any) -> str | None:
    if not layer.use_lu:
        return "its matrix is dense; with use_lu=True it would be accelerated"
    order = _order_of(layer, (layer.P, layer.sign_S))
    return order if isinstance(order, str) else None


def _conv(layer: Any, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    order = _order_of(layer, (layer.P, layer.sign_S))
    if isinstance(order, str) or z.dim() != 4 or not z.is_floating_point():
        theirs = original_class(layer)
        return theirs.forward(layer, z) if inverse else theirs.inverse(layer, z)
    order = layer.P.argmax(1) if order is None else order  # None: not to be read now
    y, _ = lu_linear(z, layer.L, layer.U, layer.log_S, layer.sign_S, order, channel_dim=1, inverse=inverse)
    if inverse and y.requires_grad:  # which the op keeps for backward, and normflows lets one write to
        y = y.clone()
    ladj = layer.log_S.sum() * (z.shape[2] * z.shape[3])
    return y, -ladj if inverse else ladj


class Conv1x1(FastMethods):
    """The methods of an accelerated Invertible1x1Conv with LU factors."""

    def forward(self: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        return _conv(self, z, True)

    def inverse(self: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        return _conv(self, z, False)
