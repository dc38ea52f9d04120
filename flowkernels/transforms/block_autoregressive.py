"""Block neural autoregressive layers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowkernels import ops
from flowkernels._arguments import count, generator
from flowkernels.ops.block_made.reference import ACTIVATIONS

from .base import Transform, check_features

_RESIDUALS = (None, "sum", "gated")


class BlockLinear(nn.Module):
    r"""Holds one layer of a block autoregressive network, whose rows have lengths of their own (weight normalization).

    :math:`W = e^{g}\, v / \lVert v \rVert` row by row, where v is ``weight``, the exponential of it on the diagonal
    blocks, and 0 above them; g is ``log_norm``.

    Args:
        features: D, the blocks of a row and of a column.
        before, after: units of a feature in front of the layer and behind it.
        draws: a generator on the CPU, or None for torch's global one.
    """

    def __init__(self, features: int, before: int, after: int, draws: torch.Generator | None = None) -> None:
        super().__init__()
        self.features, self.before, self.after = features, before, after
        like = torch.empty(())  # the default dtype and device

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=draws, device="cpu", dtype=torch.float64)

        weight = torch.zeros(features * after, features * before, dtype=torch.float64, device="cpu")
        for d in range(features):
            bound = math.sqrt(6 / (after + (d + 1) * before))  # of Glorot, of all that a block's rows see
            drawn = bound * (2 * uniform(after, (d + 1) * before) - 1)
            weight[d * after : (d + 1) * after, : (d + 1) * before] = drawn
        rows = features * after
        bound = 1 / math.sqrt(rows)
        self.weight = nn.Parameter(weight.to(like))
        self.log_norm = nn.Parameter(uniform(rows).clamp_(min=1e-6).log().to(like))
        self.bias = nn.Parameter((bound * (2 * uniform(rows) - 1)).to(like))

    def extra_repr(self) -> str:
        return f"{self.features}, {self.before}, {self.after}"


class BlockAutoregressive(Transform):
    r"""Maps all features by one masked network that is increasing in each of them (B-NAF).

    :math:`y_d = f_d(x_d; x_{<d})`, f a network of positive weights on its way from :math:`x_d` to :math:`y_d`, as
    `flowkernels.ops.block_made` has it, with weight normalization. ``forward`` is one pass, ``inverse`` one sweep over
    the features, each a root of one number. ``x [..., D]``, ``ladj [...]`` in nats. ``context`` is ignored.

    Args:
        features: D.
        hidden: units of each hidden layer, for every feature.
        activation: between layers: ``"tanh"``, ``"sigmoid"``, ``"elu"`` or ``"leaky_relu"``.
        residual: ``"gated"``: :math:`\sigma(g)\,x + (1 - \sigma(g))\,f(x)` with a gate g that is learned, from 0 on;
            ``"sum"``: x + f(x); None: f(x), which is bounded where the activation is, so that not every y has an x.
        seed: of the weights; a number, a generator on the CPU, or None for torch's global one.

    Raises:
        ValueError: an argument breaks its contract; ``x`` does not have D features.

    Reference:
        De Cao, Titov, Aziz: Block Neural Autoregressive Flow, UAI 2019, arXiv:1904.04676.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import BlockAutoregressive
        >>> layer, x = BlockAutoregressive(3, hidden=(4, 4), seed=0), torch.randn(7, 3)
        >>> y, ladj = layer(x)
        >>> back, neg = layer.inverse(y)
        >>> torch.allclose(back, x, atol=1e-4), torch.allclose(neg, -ladj, atol=1e-4)
        (True, True)
    """

    def __init__(
        self,
        features: int,
        hidden: int | Sequence[int] = (8, 8),
        *,
        activation: str = "tanh",
        residual: str | None = "gated",
        seed: int | torch.Generator | None = None,
    ) -> None:
        super().__init__()
        name = "transforms.BlockAutoregressive"
        self.features = count(name, "features", features)
        widths = [hidden] if isinstance(hidden, int) else list(hidden)
        units = [1, *(count(name, "hidden", h) for h in widths), 1]
        if activation not in ACTIVATIONS:
            options = ", ".join(f'"{option}"' for option in ACTIVATIONS)
            raise ValueError(f"{name}: activation must be one of {options}, got {activation!r:.60}")
        if residual not in _RESIDUALS:
            raise ValueError(f'{name}: residual must be "gated", "sum" or None, got {residual!r:.60}')
        self.activation, self.residual = activation, residual
        draws = generator(name, seed)
        self.layers = nn.ModuleList([BlockLinear(features, a, b, draws) for a, b in itertools.pairwise(units)])
        self.gate = nn.Parameter(torch.zeros(())) if residual == "gated" else None

    def _run(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        check_features("transforms.BlockAutoregressive", x, self.features)
        residual = self.residual == "sum" if self.gate is None else self.gate
        parts: list[BlockLinear] = [*self.layers]  # type: ignore[assignment]
        return ops.block_made(
            x, [(part.weight, part.bias) for part in parts], log_norms=[part.log_norm for part in parts],
            activation=self.activation, residual=residual, inverse=inverse,
        )  # fmt: skip

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(x, False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(y, True)

    def extra_repr(self) -> str:
        hidden = tuple(layer.after for layer in self.layers[:-1])  # type: ignore[union-attr]
        return f"{self.features}, hidden={hidden}, activation={self.activation!r}, residual={self.residual!r}"
