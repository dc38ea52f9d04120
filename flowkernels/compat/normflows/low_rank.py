"""normflows' planar and radial layers on `flowkernels.ops.low_rank`, of vectors and of events of any shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkernels import ops
from flowkernels._arguments import is_number
from flowkernels.compat.engine.patch import FastMethods, or_theirs, original_class
from flowkernels.compat.reading.operands import mixed
from flowkernels.nets.reading import hooked, hooked_globally
from flowkernels.ops._checks import in_autocast


def _run(layer: Any, z: Tensor, inverse: bool, vectors: list[Tensor], numbers: list[Tensor], **settings: Any) -> Any:
    """z and ladj; None where normflows' own code is called for."""
    tensors = [*vectors, *numbers]
    if z.dim() < 2 or in_autocast(z) or any(t.device != z.device or mixed(z, t) for t in tensors):
        return None
    if any(t.shape != (1, *z.shape[1:]) for t in vectors) or any(t.shape != (1,) for t in numbers):
        return None
    params = [*(t.flatten(1) for t in vectors), *numbers]
    found, ladj = ops.low_rank(z.flatten(1), params, inverse=inverse, **settings)
    return found.view(z.shape), ladj


def _planar(layer: Any, z: Tensor, inverse: bool) -> Any:
    activation: Any = {"activation": layer.act}
    if layer.act == "leaky_relu":
        slope = layer.h.negative_slope
        if hooked(layer.h) or hooked_globally() or not is_number(slope) or not 0 < slope <= 1:
            return None
        activation["negative_slope"] = slope
    found = _run(layer, z, inverse, [layer.u, layer.w], [layer.b], kind="planar", **activation)
    if found is None or inverse or layer.act != "leaky_relu":
        return found
    return found[0], found[1].to(torch.get_default_dtype())  # as normflows' slopes are


def _radial(layer: Any, z: Tensor, inverse: bool) -> Any:
    return _run(layer, z, inverse, [layer.z_0], [layer.alpha, layer.beta], kind="radial", alpha="abs")


def planar_refusal(layer: Any) -> str | None:
    """Why a planar layer has no kernel, or None."""
    known = {"tanh": layer.h is torch.tanh, "leaky_relu": type(layer.h) is torch.nn.LeakyReLU}
    return None if known.get(layer.act, False) else f"no kernel for its activation, {layer.act!r:.60}"


class Planar(FastMethods):
    """The methods of an accelerated Planar, and the inverse that normflows has of leaky_relu alone."""

    @or_theirs
    def forward(self: Any, z: Tensor) -> Any:
        return None if planar_refusal(self) else _planar(self, z, False)

    @or_theirs
    def inverse(self: Any, z: Tensor) -> Any:
        return None if planar_refusal(self) else _planar(self, z, True)


class Radial(FastMethods):
    """The methods of an accelerated Radial, and the inverse that normflows has not."""

    @or_theirs
    def forward(self: Any, z: Tensor) -> Any:
        return _radial(self, z, False)

    def inverse(self: Any, z: Tensor) -> Any:
        found = _radial(self, z, True)
        return original_class(self).inverse(self, z) if found is None else found
