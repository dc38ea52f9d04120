"""A flow of ours in nothing but PyTorch's own operations, as a careful user writes them and a compiler sees them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowkernels.ops.affine import reference as affine
from flowkernels.ops.affine.spec import AffineCall
from flowkernels.ops.rqs import reference as rqs
from flowkernels.transforms import RQS, Coupling, DiagonalScale


class Net(nn.Module):
    """Products, masks (of a MADE) and relu, on the weights of another module."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(m for m in of.modules() if isinstance(m, nn.Linear))
        self.masked = any(hasattr(m, "plan") for m in self.layers)
        for i, layer in enumerate(self.layers):
            if self.masked:
                plan: Any = layer.plan
                self.register_buffer(f"mask_{i}", plan.mask(layer.weight.detach()))

    def forward(self, h: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            weight: Any = layer.weight
            h = F.linear(
                h.relu() if i else h, weight * getattr(self, f"mask_{i}") if self.masked else weight, layer.bias
            )
        return h


def mapped(univariate: Any, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """The map's definition, x ``[B, D]``, params ``[B, D P]`` → y ``[B, D]``, ladj ``[B]``."""
    spec = univariate.inverted() if inverse else univariate
    params = params.unflatten(-1, (x.shape[-1], -1))
    if isinstance(spec, RQS):
        y, ladj = rqs.fwd(spec, x, params)
        return y, ladj if ladj.dim() == 1 else ladj.sum(-1)
    return affine.fwd(AffineCall(spec), x, params)


class CouplingLayer(nn.Module):
    """One half given the other."""

    first: Tensor
    second: Tensor
    back: Tensor

    def __init__(self, of: Coupling) -> None:
        super().__init__()
        self.net, self.univariate = Net(of.conditioner), of.univariate
        mask = torch.tensor([bool(m) for m in of.split.mask])
        first, second = (~mask).nonzero()[:, 0], mask.nonzero()[:, 0]
        self.register_buffer("first", first)
        self.register_buffer("second", second)
        self.register_buffer("back", torch.cat((first, second)).argsort())

    def forward(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        same = x[:, self.first]
        y, ladj = mapped(self.univariate, x[:, self.second], self.net(same), inverse)
        return torch.cat((same, y), 1)[:, self.back], ladj


class AutoregressiveLayer(nn.Module):
    """Each feature given those before it; backwards one feature after another, by as many passes of the network."""

    def __init__(self, of: Any) -> None:
        super().__init__()
        self.net, self.univariate = Net(of.conditioner), of.univariate
        self.order: list[int] = of.conditioner.order.tolist()

    def forward(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if not inverse:
            return mapped(self.univariate, x, self.net(x), False)
        y = torch.zeros_like(x)
        for _ in self.order:  # each pass makes one feature more right
            y, ladj = mapped(self.univariate, x, self.net(y), True)
        return y, ladj


class ScaleLayer(nn.Module):
    """The scale at the end of a NICE."""

    def __init__(self, of: DiagonalScale) -> None:
        super().__init__()
        self.log_scale = of.log_scale

    def forward(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        s = -self.log_scale if inverse else self.log_scale
        return x * s.exp(), s.sum().expand(x.shape[0])


class PlainFlow(nn.Module):
    """log_prob and sample of a flow's own parameters."""

    def __init__(self, flow: Any) -> None:
        super().__init__()
        self.base = flow.base
        self.layers = nn.ModuleList(_plain(layer) for layer in flow.transform.transforms)

    def _run(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[0])
        for layer in reversed(self.layers) if inverse else self.layers:  # type: ignore[call-overload]
            x, ladj = layer(x, inverse)
            total = total + ladj
        return x, total

    def log_prob(self, x: Tensor) -> Tensor:
        z, ladj = self._run(x, False)
        return self.base.log_prob(z) + ladj

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(z, True)

    def sample(self, n: int) -> Tensor:
        return self.inverse(self.base.sample((n,)))[0]


def _plain(layer: nn.Module) -> nn.Module:
    if isinstance(layer, DiagonalScale):
        return ScaleLayer(layer)
    return CouplingLayer(layer) if isinstance(layer, Coupling) else AutoregressiveLayer(layer)
