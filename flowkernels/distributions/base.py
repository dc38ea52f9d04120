"""What every base distribution is."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Sequence
from typing import Any, Union

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowkernels._arguments import check_tensor

Size = int | Sequence[int]
Base = Union["Distribution", torch.distributions.Distribution]  # what a flow takes


def sample_shape(where: str, n: Any) -> list[int]:
    """``n`` draws, or draws of a shape; no number of them is one draw."""
    sizes: Any = [n] if isinstance(n, (int, torch.SymInt)) else n
    if isinstance(sizes, (list, tuple)) and all(_is_size(size) for size in sizes):
        return list(sizes)
    raise ValueError(f"{where}: n must be a number from 0 on, or a shape, got {n!r:.60}")


def _is_size(size: object) -> bool:
    return isinstance(size, (int, torch.SymInt)) and not isinstance(size, bool) and size >= 0


class Distribution(nn.Module):
    """A distribution of ``[D]`` vectors; its ``features`` are D.

    ``log_prob(x [..., D]) → [...]`` in nats, float32 or wider. ``sample(n)`` and ``rsample(n)`` → ``[n, D]``, and
    ``[n, ..., D]`` beside a context ``[..., C]``, in the dtype and on the device of the module; ``n`` is a number or a
    shape, by default ``()``: one draw ``[..., D]``, as in `torch.distributions`.
    A distribution that was not built for a context does not look at its values. ``temperature`` multiplies the
    deviation of the draws from their centre; only where there is a centre may it be another number than 1.
    """

    features: int

    @property
    def support(self) -> constraints.Constraint:
        """Where each number of x must lie."""
        return constraints.real

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``[..., D]`` → ``[...]``, in nats."""
        raise NotImplementedError(f"distributions.{type(self).__name__}: log_prob is not defined")

    def rsample(self, n: Size = (), context: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Draws ``[n, ..., D]`` through which gradients flow."""
        raise NotImplementedError(f"distributions.{type(self).__name__}: rsample is not defined")

    def sample(self, n: Size = (), context: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Draws ``[n, ..., D]`` without gradients."""
        with torch.no_grad():
            return self.rsample(n, context, temperature)

    def _shape(self, n: Size, context: Tensor | None) -> list[int]:
        lead = sample_shape(f"distributions.{type(self).__name__}", n)
        if context is not None:
            check_tensor(f"distributions.{type(self).__name__}", "context", context)
        return [*lead, *(() if context is None else context.shape[:-1]), self.features]

    def _wide(self, x: Tensor) -> Tensor:
        """``x`` in at least float32: a sum of squares in a 16-bit type is worth little."""
        if not isinstance(x, Tensor) or x.dim() == 0 or x.shape[-1] != self.features:
            name = type(self).__name__
            check_tensor(f"distributions.{name}", "x", x)
            raise ValueError(f"distributions.{name}: x must be [..., {self.features}], got {list(x.shape)}")
        if x.is_complex():
            raise TypeError(f"distributions.{type(self).__name__}: x must be real, got {x.dtype}")
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def extra_repr(self) -> str:
        return f"features={self.features}"


def as_vectors(where: str, features: int, **values: float | Sequence[float] | Tensor) -> list[Tensor]:
    """Each as ``[features]``, all of one dtype on one device: those of the floating tensors among them.

    Numbers, lists and arrays follow, or have the default dtype: never float64 by accident, as MPS has none.
    """
    floating = [v for v in values.values() if isinstance(v, Tensor) and v.is_floating_point()]
    dtype = functools.reduce(torch.promote_types, [v.dtype for v in floating] or [torch.get_default_dtype()])
    devices = dict.fromkeys(v.device for v in values.values() if isinstance(v, Tensor))
    if len(devices) > 1:
        names, given = " and ".join(values), " and ".join(str(d) for d in devices)
        raise ValueError(f"distributions.{where}: {names} must be on one device, got {given}")
    vectors = []
    for name, value in values.items():
        t = as_numbers(where, name, value, next(iter(devices), None))
        if t.shape not in ((), (1,), (features,)) or t.is_complex():
            given = f"{list(t.shape)}, {t.dtype}" if t.is_complex() else list(t.shape)
            raise ValueError(f"distributions.{where}: {name} must be a number or [{features}], got {given}")
        vectors.append(t.to(dtype).expand(features).clone())
    return vectors


def as_numbers(where: str, name: str, value: Any, device: torch.device | None = None) -> Tensor:
    """A number, a list, an array or a tensor as a tensor of no gradient."""
    try:
        return torch.as_tensor(value, device=device).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"distributions.{where}: {name} must be numbers, got {value!r:.60}") from error


def check_temperature(name: str, temperature: Any) -> None:
    """Raises unless it is a number from 0 on."""
    if isinstance(temperature, bool) or not isinstance(temperature, numbers.Real) or not 0 <= temperature < math.inf:  # type: ignore[operator]
        raise ValueError(f"{name}: temperature must be a finite number from 0 on, got {temperature!r:.60}")


def check_no_temperature(name: str, temperature: float) -> None:
    """For a distribution that has no centre."""
    if temperature != 1:
        raise ValueError(f"{name}: temperature must be 1, got {temperature!r}")
