"""The univariate maps as the compiled kernels take them. Shared by the ops that fuse a map with its conditioner."""

from __future__ import annotations

import functools
from typing import Any

from flowkernels import _native
from flowkernels.ops.affine import native as affine
from flowkernels.ops.affine.spec import AffineSpec
from flowkernels.ops.rqs import native as rqs
from flowkernels.ops.rqs.spec import RqsSpec


def check_univariate(op: str, univariate: object) -> None:
    """Raises unless this is the map of single features that a fused layer can make of it: each one by itself."""
    if isinstance(univariate, RqsSpec):
        return
    if not isinstance(univariate, AffineSpec):
        raise TypeError(f"{op}: univariate must be an RqsSpec or an AffineSpec, got {type(univariate).__name__}")
    if univariate.event_dims != 1:
        raise ValueError(f"{op}: univariate must be of event_dims 1, got {univariate.event_dims}")
    if univariate.in_part:
        part = slice(univariate.start, univariate.stop, univariate.step)
        raise ValueError(f"{op}: univariate must be of all features, got one of the part {part}")


@functools.lru_cache(maxsize=1024)
def univariate_map(spec: RqsSpec | AffineSpec, module: Any = _native.C) -> Any:
    """A handle of the map, in the direction that the spec says, as this compiled module takes it."""
    handle = affine.handle(module, spec) if isinstance(spec, AffineSpec) else rqs.handle(module, spec)
    return module.UnivariateMap(handle)
