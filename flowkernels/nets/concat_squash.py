"""FFJORD's vector field: linear layers that time gates and shifts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels._arguments import count, widths

from .common import Activation, as_function, check_context, check_dtypes


class _Layer(nn.Module):
    def __init__(self, in_features: int, out_features: int, given: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_features, out_features)
        self.gate = nn.Linear(given, out_features)
        self.shift = nn.Linear(given, out_features, bias=False)

    def forward(self, h: Tensor, given: Tensor) -> Tensor:
        return self.layer(h) * torch.sigmoid(self.gate(given)) + self.shift(given)


class ConcatSquash(nn.Module):
    r"""FFJORD's vector field f(t, x, c): every linear layer is gated and shifted by what time and context say.

    .. math:: h \leftarrow \mathrm{act}\left((W h + b) \odot \sigma(U \tau + u) + V \tau\right), \quad \tau = [t, c]

    without an activation behind the last. ``forward(t, x, context=None)``: t a number ``[]``, or ``[..., 1]`` of each
    row; ``x [..., D]``, ``context`` broadcasting to ``[..., C]`` → ``[..., D]``, in the dtype of the weights.

    Args:
        features: D.
        hidden: widths of the hidden layers.
        context: C, the size of the context, 0 for none.
        activation: a function of a tensor, a module, a module class, or a name that `nets.MADE` knows.

    Raises:
        ValueError: a size breaks its contract; ``x`` or ``context`` has another shape.
        TypeError: ``activation`` is none.

    Reference:
        Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud: FFJORD, ICLR 2019, arXiv:1810.01367.

    Example:
        >>> import torch
        >>> from flowkernels.nets import ConcatSquash
        >>> ConcatSquash(3, hidden=(16, 16), context=2)(torch.tensor(0.5), torch.randn(7, 3), torch.randn(2)).shape
        torch.Size([7, 3])
    """

    def __init__(
        self,
        features: int,
        hidden: int | Sequence[int] = (64, 64, 64),
        context: int = 0,
        activation: Activation = F.softplus,
    ) -> None:
        super().__init__()
        count("nets.ConcatSquash", "features", features)
        self.features = features
        self.context_features = count("nets.ConcatSquash", "context", context, least=0)
        self.activation = as_function("nets.ConcatSquash", activation)
        sizes = [features, *widths("nets.ConcatSquash", "hidden", hidden), features]
        self.layers: Any = nn.ModuleList([_Layer(a, b, 1 + context) for a, b in itertools.pairwise(sizes)])

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        check_dtypes("nets.ConcatSquash", self, self.layers[0].layer.weight, x, context)
        check_context("nets.ConcatSquash", context, self.context_features, x.shape[:-1])
        given = t.to(x).expand(*t.shape[:-1], 1)
        if context is not None:
            lead = torch.broadcast_shapes(given.shape[:-1], context.shape[:-1])
            given = torch.cat((given.expand(*lead, 1), context.expand(*lead, context.shape[-1])), -1)
        for layer in self.layers[:-1]:
            x = self.activation(layer(x, given))
        return self.layers[-1](x, given)
