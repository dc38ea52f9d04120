"""A small whole model of each library as a module from data to log densities, for what is done to whole models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.compat import glasflow_models, nflows_models, normflows_models
from tests.compat.nflows_models import shaken

D = 6


class Density(nn.Module):
    """log p(x) by `forward`, which is what wrappers call."""

    def __init__(self, model: nn.Module, log_prob: Any) -> None:
        super().__init__()
        self.model, self.log_prob = model, log_prob

    def forward(self, x: Tensor) -> Tensor:
        return self.log_prob(self.model, x)


def _log_prob(model: Any, x: Tensor) -> Tensor:
    return model.log_prob(x)


def _nflows() -> nn.Module:
    return Density(nflows_models.flow(D, layers=2), _log_prob)


def _nflows_autoregressive() -> nn.Module:
    return Density(nflows_models.autoregressive_flow(nflows_models.spline, D, layers=2), _log_prob)


def _glasflow() -> nn.Module:
    return Density(glasflow_models.flow("nsf, lu"), _log_prob)


def _normflows() -> nn.Module:
    return Density(normflows_models.flow("autoregressive"), _log_prob)


def _normflows_circular() -> nn.Module:
    return Density(normflows_models.flow("circular coupling"), _log_prob)


def _normflows_circular_autoregressive() -> nn.Module:
    return Density(normflows_models.flow("circular autoregressive, bounds"), _log_prob)


def _zuko_log_prob(model: Any, x: Tensor) -> Tensor:
    return model().log_prob(x)


def _zuko(name: str) -> nn.Module:
    from zuko import flows

    return Density(shaken(getattr(flows, name)(D, transforms=2, hidden_features=(16, 16)), 0.1), _zuko_log_prob)


def _freia() -> nn.Module:
    from FrEIA import framework, modules

    def dense(n_in: int, n_out: int) -> nn.Module:
        return nn.Sequential(nn.Linear(n_in, 16), nn.ReLU(), nn.Linear(16, n_out))

    inn = framework.SequenceINN(D)
    for _ in range(2):
        inn.append(modules.PermuteRandom)
        inn.append(modules.GLOWCouplingBlock, subnet_constructor=dense)

    def log_prob(inn: Any, x: Tensor) -> Tensor:
        z, ladj = inn(x)
        return ladj - 0.5 * z.square().sum(1)

    return Density(inn, log_prob)


def _pyro() -> nn.Module:
    from pyro.distributions import transforms as pyro
    from pyro.nn import AutoRegressiveNN, DenseNN

    K, half = 4, D // 2
    net = DenseNN(half, [16], [half * n for n in (K, K, K - 1, K)])
    layers = nn.ModuleList(
        [
            pyro.SplineCoupling(D, half, net, K),  # of linear order
            pyro.SplineAutoregressive(D, AutoRegressiveNN(D, [16], [K, K, K - 1]), K, order="quadratic"),
        ]
    )

    def log_prob(layers: Any, x: Tensor) -> Tensor:
        ladj = x.new_zeros(len(x))
        for layer in layers:
            y = layer._call(x)  # not as a transform, whose cache keeps a graph
            ladj = ladj + layer.log_abs_det_jacobian(x, y).reshape(len(x), -1).sum(1)
            x = y
        return ladj - 0.5 * x.square().sum(1)

    return Density(layers, log_prob)


MODELS = {
    "nflows": _nflows,
    "nflows autoregressive": _nflows_autoregressive,
    "glasflow": _glasflow,
    "normflows": _normflows,
    "normflows circular": _normflows_circular,
    "normflows circular autoregressive": _normflows_circular_autoregressive,
    "zuko NSF": lambda: _zuko("NSF"),
    "zuko NCSF": lambda: _zuko("NCSF"),
    "zuko NICE": lambda: _zuko("NICE"),
    "FrEIA": _freia,
    "Pyro": _pyro,
}


def build(name: str) -> Any:
    """The model in float64; every process makes the same one."""
    import numpy as np

    torch.manual_seed(0)
    np.random.seed(0)  # FrEIA draws its permutations from it
    return MODELS[name]().double()


def data(rows: int = 24) -> Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
