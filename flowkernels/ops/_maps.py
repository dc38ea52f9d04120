"""The univariate maps as the compiled kernels take them. Shared by the ops that fuse a map with its conditioner."""

from __future__ import annotations

import functools
from typing import Any

import torch

from flowkernels import _native
from flowkernels.ops.affine import native as affine
from flowkernels.ops.affine.spec import AffineSpec
from flowkernels.ops.rqs import native as rqs
from flowkernels.ops.rqs.spec import RqsSpec, check_box_once


def check_univariate(op: str, univariate: object, dtype: torch.dtype) -> None:
    """Raises unless this is a map of single features, each by itself, that has numbers in a layer's dtype."""
    if isinstance(univariate, RqsSpec):
        check_box_once(univariate, dtype is torch.float64)
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
