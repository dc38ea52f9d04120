"""A case, the numbers that go into it, and the bytes that come out.

Numbers are made by integer arithmetic alone, so that they are the same under every version of numpy and torch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

Results = dict[str, Tensor | None]
DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}
WIDE = ("f32", "f64")


class Case(NamedTuple):
    name: str
    run: Callable[[], Results]


def _mixed(seeds: np.ndarray) -> np.ndarray:
    """splitmix64: 64 well mixed bits of each seed."""
    z = seeds * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw(key: str, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Numbers of mean 0 and variance 1 times `scale`, the same ones for a key, rounded to the dtype once.

    A sum of three uniform numbers of 20 bits is exact in float64, on any machine.
    """
    start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "little")
    bits = _mixed(np.arange(start, start + math.prod(shape), dtype=np.uint64))
    parts = [(bits >> np.uint64(s) & np.uint64(0xFFFFF)).astype(np.float64) for s in (0, 20, 40)]
    values = ((parts[0] + parts[1] + parts[2]) * 2.0**-19 - 3.0) * scale
    return torch.from_numpy(values).reshape(shape).to(dtype)


def leaf(key: str, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return draw(key, *shape, scale=scale, dtype=dtype).requires_grad_()


def set_parameters(module: nn.Module) -> None:
    """Gives each parameter drawn numbers; matrices as large as layers start with."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            scale = 0.3 if p.dim() < 2 else 1.0 / math.sqrt(max(p[0].numel(), 1))
            p.copy_(draw(name, *p.shape, scale=scale))


def with_gradients(outputs: Mapping[str, Tensor], leaves: Mapping[str, Tensor]) -> Results:
    """The outputs, and the gradients of all leaves behind them, by drawn gradients of the outputs."""
    recorded = {name: t for name, t in outputs.items() if t.requires_grad}
    given = [draw(f"grad of {name}", *t.shape, dtype=t.dtype) for name, t in recorded.items()]
    grads = torch.autograd.grad(list(recorded.values()), list(leaves.values()), given, allow_unused=True)
    found: Results = {name: t.detach() for name, t in outputs.items()}
    return found | {f"grad {name}": g for name, g in zip(leaves, grads, strict=True)}


def leaves_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in sorted(module.named_parameters()) if p.requires_grad}


def digest(t: Tensor | None) -> str:
    """32 bits of the SHA-256 of the bytes, in the order of the indices."""
    if t is None:
        return "none"
    flat = t.detach().resolve_neg().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"").hexdigest()[:8]


def not_finite(results: Results) -> list[str]:
    return [name for name, t in results.items() if t is not None and not torch.isfinite(t).all()]


def unique(cases: Iterable[Case]) -> dict[str, Case]:
    found: dict[str, Case] = {}
    for case in cases:
        assert case.name not in found, case.name
        found[case.name] = case
    return found
