"""The univariate maps as the compiled kernels take them. Shared by the ops that fuse a map with its conditioner."""

from __future__ import annotations

import functools

from flowkernels import _native
from flowkernels.ops.affine import native as affine
from flowkernels.ops.affine.spec import AffineSpec
from flowkernels.ops.rqs import native as rqs
from flowkernels.ops.rqs.spec import RqsSpec


@functools.lru_cache(maxsize=1024)
def univariate_map(spec: RqsSpec | AffineSpec):
    """A handle of the map, in the direction that the spec says."""
    handle = affine.handle(_native.C, spec) if isinstance(spec, AffineSpec) else rqs.handle(_native.C, spec)
    return _native.C.UnivariateMap(handle)  # type: ignore[union-attr]
