"""What a layer of nflows is, as map, net and split; of its copies in glasflow and normflows too.

normflows' circular layers have a list of tails, one per feature, and bounds that may be a tensor. A kernel has one kind
of tails and one box per call, so the map of such a layer is a spline of free ends, in a box of 1, and `OwnTails` say
the rest.
"""

from __future__ import annotations

import math
import sys
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkernels.compat.engine.reads import CachedRead
from flowkernels.compat.layer import Layer, or_reason
from flowkernels.ops import RQS, Affine
from flowkernels.ops._routing import _transforms_active
from flowkernels.ops.split import Split, split_of

_LEAST = 1e-3  # nflows: sigmoid(u + 2) + 1e-3
_SHIFT_THEN_SCALE = (1, 1)

# ---- splines ----


class OwnTails(NamedTuple):
    """Tails and bounds of which features have their own."""

    tails: tuple[str, ...] | None  # None: one kind for all, which the map has
    bound: Any  # a number, or a tensor where the map's box is of 1

    @property
    def is_scaled(self) -> bool:
        return isinstance(self.bound, Tensor)


def own_tails(layer: Any) -> OwnTails | None:
    """None where one map serves all features; without tails there is no bound."""
    tails = layer.tails
    listed = isinstance(tails, (list, tuple))
    if not listed and (tails is None or not isinstance(layer.tail_bound, Tensor)):
        return None
    return OwnTails(tuple(tails) if listed else None, layer.tail_bound)


def spline(layer: Any, logit_scale: float = 1.0, bounds: bool = True) -> RQS:
    """The spline of a layer with a network, or of one whose parameters are its own.

    ``bounds``: the library may have a tensor of them.
    """
    tails = layer.tails
    if tails is None:
        box = {"box": (0.0, 1.0, 0.0, 1.0)}
    else:
        bound = layer.tail_bound
        box = {"tail_bound": 1.0 if bounds and isinstance(bound, Tensor) else bound}
    # A traced size is a tensor.
    bins = layer.num_bins if hasattr(layer, "num_bins") else int(layer.unnormalized_widths.shape[-1])
    return RQS.kept(
        bins=bins,
        tails=None if isinstance(tails, (list, tuple)) else tails,
        min_bin_width=layer.min_bin_width,
        min_bin_height=layer.min_bin_height,
        min_derivative=layer.min_derivative,
        logit_scale=logit_scale,
        **box,
    )


def spline_refusal(layer: Any) -> RQS | str:
    """Why the kernel would not take the settings of a layer of nflows; or the spline, which is no reason."""
    if layer.tails not in (None, "linear"):  # the kernel knows circular ones too, but nflows has no parameters for them
        return f"{layer.tails} tails are not implemented"
    return or_reason(spline, layer, bounds=False)


def listed_refusal(layer: Any) -> RQS | str:
    """Why it would not take those of a layer of normflows."""
    tails = set(layer.tails) if isinstance(layer.tails, (list, tuple)) else {layer.tails}
    if tails - {None, "linear", "circular"} or (None in tails and len(tails) > 1):
        return f"{layer.tails} tails are not implemented"
    return or_reason(spline, layer)


# ---- couplings ----


def _read_split(identity: Tensor, transformed: Tensor, features: int) -> Split | str:
    first, second = identity.tolist(), transformed.tolist()
    partition = sorted(first + second) == list(range(features)) and first and second
    return split_of(features, tuple(first), tuple(second)) if partition else "its features are not parted"


_split = CachedRead[Split | str](_read_split)


def _split_of(layer: Any) -> Split | None:
    """The layer's split, or None where its buffers' values cannot be read now, may differ per model, or are none."""
    if torch.compiler.is_compiling() or _transforms_active():
        return None
    found = _split(layer, (layer.identity_features, layer.transform_features), layer.features)
    return found if isinstance(found, Split) else None


def _logit_scale(net: Any) -> float:
    for name in ("hidden_features", "hidden_channels"):
        if hasattr(net, name):
            return 1 / math.sqrt(getattr(net, name))
    if not torch.compiler.is_compiling():
        warnings.warn("Inputs to the softmax are not scaled down: initialization might be bad.")
    return 1.0


def spline_coupling(layer: Any) -> Layer:
    net = layer.transform_net
    return Layer(spline(layer, _logit_scale(net)), net, _split_of(layer), own=own_tails(layer))


def affine_coupling(layer: Any) -> Layer:
    """Its map is None where the scale is not nflows': its forks let the user give a function instead."""
    given, univariate = getattr(layer, "scale_activation", None), None
    named = getattr(sys.modules.get("glasflow.transforms.utils"), "SCALE_ACTIVATIONS", {})
    if given in (None, getattr(type(layer), "DEFAULT_SCALE_ACTIVATION", None), named.get("nflows")):
        univariate = Affine.kept(scale="sigmoid", min_scale=_LEAST, shift_first=True)
    return Layer(univariate, layer.transform_net, _split_of(layer), _SHIFT_THEN_SCALE)


def additive_coupling(layer: Any) -> Layer:
    return Layer(Affine.kept(scale="additive"), layer.transform_net, _split_of(layer))


# ---- autoregressive layers ----


def spline_autoregressive(layer: Any) -> Layer:
    net = layer.autoregressive_net
    width = getattr(net, "hidden_features", None)  # which nflows' own MADE has not
    return Layer(spline(layer, 1.0 if width is None else 1 / math.sqrt(width)), net, own=own_tails(layer))


_DEFAULT = "MaskedAffineAutoregressiveTransform.__init__.<locals>.<lambda>"


def affine_autoregressive(layer: Any) -> Layer:
    if not hasattr(layer, "_epsilon"):  # normflows
        return Layer(Affine.kept(scale="sigmoid", min_scale=_LEAST), layer.autoregressive_net)
    given = getattr(layer, "scale_activation", None)  # of glasflow, whose default is a function of its own
    if given is not None and getattr(given, "__qualname__", "") != _DEFAULT:
        raise ValueError("its scale_activation is not the default one")
    return Layer(Affine.kept(scale="softplus", min_scale=layer._epsilon), layer.autoregressive_net)
