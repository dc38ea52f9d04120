"""Models of layers whose libraries have no flow class: Pyro's, FrEIA's, and those of speech models like VITS."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

BINS, TAIL_BOUND = 8, 3.0


class Chain(nn.Module):
    """Layers from data to a standard normal."""

    def __init__(self, features: int, layers: list[Any]) -> None:
        super().__init__()
        self.features, self.layers = features, layers
        self.held = nn.ModuleList(layer for layer in layers if isinstance(layer, nn.Module))

    def call(self, layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """Data → latent, and ladj [B]."""
        return layer(x)

    def call_back(self, layer: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        return layer(z, reverse=True)

    def log_prob(self, x: Tensor) -> Tensor:
        total = x.new_zeros(len(x))
        for layer in self.layers:
            x, ladj = self.call(layer, x)
            total = total + ladj
        return total - 0.5 * (x.square() + math.log(2 * math.pi)).sum(1)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        total = z.new_zeros(len(z))
        for layer in reversed(self.layers):
            z, ladj = self.call_back(layer, z)
            total = total + ladj
        return z, total

    def sample(self, n: int) -> Tensor:
        return self.inverse(torch.randn(n, self.features))[0]


# ---- Pyro ----


class _Pyro(Chain):
    def call(self, layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = layer._call(x)  # not as a transform, whose cache keeps a graph
        return y, layer.log_abs_det_jacobian(x, y).reshape(len(x), -1).sum(1)

    def call_back(self, layer: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        x = layer._inverse(z)
        return x, -layer.log_abs_det_jacobian(x, z).reshape(len(x), -1).sum(1)


def _flipped(features: int, layer: Any) -> list[Any]:
    """Beside a permutation, so that the next layer moves what this one keeps."""
    from pyro.distributions import transforms as pyro

    return [layer, pyro.Permute(torch.arange(features).flip(0))]


def _pyro_params(order: str) -> list[int]:
    """Parameters of a feature, in the parts that Pyro's networks return."""
    return [BINS, BINS, BINS - 1, *([BINS] if order == "linear" else [])]


def pyro_coupling(features: int, hidden: int, layers: int, order: str = "quadratic") -> nn.Module:
    from pyro.distributions import transforms as pyro
    from pyro.nn import DenseNN

    half = features // 2
    moved = [(features - half) * n for n in _pyro_params(order)]

    def layer() -> Any:
        net = DenseNN(half, [hidden, hidden], moved)
        return pyro.SplineCoupling(features, half, net, BINS, TAIL_BOUND, order=order)

    return _Pyro(features, [part for _ in range(layers) for part in _flipped(features, layer())])


def pyro_autoregressive(features: int, hidden: int, layers: int, order: str = "quadratic") -> nn.Module:
    from pyro.distributions import transforms as pyro
    from pyro.nn import AutoRegressiveNN

    def layer() -> Any:
        net = AutoRegressiveNN(features, [hidden, hidden], _pyro_params(order), permutation=torch.arange(features))
        return pyro.SplineAutoregressive(features, net, BINS, TAIL_BOUND, order=order)

    return _Pyro(features, [part for _ in range(layers) for part in _flipped(features, layer())])


# ---- FrEIA ----


class _Freia(Chain):
    """A SequenceINN, as FrEIA's models are made."""

    def call_back(self, layer: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        return layer(z, rev=True)


def freia(block: str) -> Callable[[int, int, int], nn.Module]:
    """Coupling blocks with the networks of FrEIA's tutorials and random permutations, which all-in-one blocks have."""

    def make(features: int, hidden: int, layers: int) -> nn.Module:
        import numpy as np
        from FrEIA import framework, modules

        def net(n_in: int, n_out: int) -> nn.Module:
            sizes = [n_in, hidden, hidden, n_out]
            parts = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
            return nn.Sequential(*parts[:-1])

        np.random.seed(0)  # FrEIA draws its permutations from it
        inn = framework.SequenceINN(features)
        for _ in range(layers):
            inn.append(getattr(modules, block), subnet_constructor=net)
            if block != "AllInOneBlock":
                inn.append(modules.PermuteRandom)
        return _Freia(features, [inn])

    return make


# ---- the VITS family ----


def piecewise_rational_quadratic_transform(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    unnormalized_derivatives: Tensor,
    inverse: bool = False,
    tails: str | None = None,
    tail_bound: float = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """Those models' function by name and arguments; it is nflows', which theirs is a copy of."""
    from nflows.transforms.splines import unconstrained_rational_quadratic_spline

    return unconstrained_rational_quadratic_spline(
        inputs, unnormalized_widths, unnormalized_heights, unnormalized_derivatives, inverse, tails or "linear",
        tail_bound, min_bin_width, min_bin_height, min_derivative,
    )  # fmt: skip


class _ConvFlow(nn.Module):
    """A coupling layer as their duration predictors have it: half of the channels choose the spline of the others."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.sizes, self.hidden = [channels // 2, channels - channels // 2], hidden
        self.net = nn.Sequential(
            nn.Conv1d(self.sizes[0], hidden, 1), nn.GELU(), nn.Conv1d(hidden, self.sizes[1] * (3 * BINS - 1), 1)
        )

    def forward(self, x: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
        kept, moved = (x.flip(1) if not reverse else x).unsqueeze(2).split(self.sizes, 1)
        h = self.net(kept).unflatten(1, (self.sizes[1], -1)).movedim(2, -1)
        moved, logabsdet = piecewise_rational_quadratic_transform(
            moved, h[..., :BINS] / math.sqrt(self.hidden), h[..., BINS : 2 * BINS] / math.sqrt(self.hidden),
            h[..., 2 * BINS :], inverse=reverse, tails="linear", tail_bound=TAIL_BOUND,
        )  # fmt: skip
        y = torch.cat([kept, moved], 1).squeeze(2)
        return y.flip(1) if reverse else y, logabsdet.sum((1, 2))


def vits(features: int, hidden: int, layers: int) -> nn.Module:
    return Chain(features, [_ConvFlow(features, hidden) for _ in range(layers)])
