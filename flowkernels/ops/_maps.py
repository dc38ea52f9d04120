"""The univariate maps as the compiled kernels take them. Shared by the ops that fuse a map with its conditioner."""

from __future__ import annotations

import functools

from flowkernels import _native
from flowkernels.ops.affine.spec import AffineSpec
from flowkernels.ops.rqs import native as rqs
from flowkernels.ops.rqs.spec import RqsSpec

_KINDS = {"exp": 1, "softplus": 2, "sigmoid": 3, "additive": 4}  # the order of csrc/flow_layer/flow_layer.h


@functools.lru_cache(maxsize=1024)
def univariate_map(spec: RqsSpec | AffineSpec):
    """A handle of the map, in the direction that the spec says."""
    C = _native.C
    if isinstance(spec, AffineSpec):
        return C.UnivariateMap(_KINDS[spec.scale], spec.min_scale, spec.inverse)  # type: ignore[union-attr]
    return C.UnivariateMap(rqs._handle(spec))  # type: ignore[union-attr]
