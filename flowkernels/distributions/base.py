"""What every base distribution is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Size = int | Sequence[int]


class Distribution(nn.Module):
    """A distribution of ``[D]`` vectors; its ``features`` are D.

    ``log_prob(x [..., D]) → [...]`` in nats, float32 or wider. ``sample(n)`` and ``rsample(n)`` → ``[n, D]``, and
    ``[n, ..., D]`` beside a context ``[..., C]``, in the dtype and on the device of the module; ``n`` is a number or a
    shape. A distribution that was not built for a context does not look at its values. ``temperature`` multiplies the
    deviation of the draws from their centre; only where there is a centre may it be another number than 1.
    """

    features: int

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``[..., D]`` → ``[...]``, in nats."""
        raise NotImplementedError(f"distributions.{type(self).__name__}: log_prob is not defined")

    def rsample(self, n: Size, context: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Draws ``[n, ..., D]`` through which gradients flow."""
        raise NotImplementedError(f"distributions.{type(self).__name__}: rsample is not defined")

    def sample(self, n: Size, context: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Draws ``[n, ..., D]`` without gradients."""
        with torch.no_grad():
            return self.rsample(n, context, temperature)

    def _shape(self, n: Size, context: Tensor | None) -> list[int]:
        lead = [n] if isinstance(n, int) else list(n)
        return [*lead, *(() if context is None else context.shape[:-1]), self.features]

    def _wide(self, x: Tensor) -> Tensor:
        """``x`` in at least float32: a sum of squares in a 16-bit type is worth little."""
        if x.dim() == 0 or x.shape[-1] != self.features:
            name = type(self).__name__
            raise ValueError(f"distributions.{name}: x must be [..., {self.features}], got {list(x.shape)}")
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def extra_repr(self) -> str:
        return f"features={self.features}"


def as_vector(values: float | Sequence[float] | Tensor, features: int, name: str) -> Tensor:
    t = torch.as_tensor(values).detach().to(torch.get_default_dtype())  # never float64 by accident: MPS has none
    if t.shape not in ((), (1,), (features,)):
        raise ValueError(f"distributions.{name} must be a number or [{features}], got {list(t.shape)}")
    return t.expand(features).clone()


def check_no_temperature(name: str, temperature: float) -> None:
    """For a distribution that has no centre."""
    if temperature != 1:
        raise ValueError(f"{name}: temperature must be 1, got {temperature!r}")
