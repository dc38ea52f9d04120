"""The inverse of Pyro's neural autoregressive layers, which are mixtures of logistics."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkernels.compat.engine.patch import FastMethods, original_class

from . import describe
from .layers import Conditional


def _solved(layer: Any, y: Tensor, seen: Tensor, at: int) -> Tensor:
    r"""Feature `at` of the x of y, by the parameters that the network returns of what is seen, ``[..., K, D]`` each.

    :math:`T(y) = \sum_k w_k T(a_k x + b_k)` with T a sigmoid is a mixture of logistics, means -b / a and scales 1 / a;
    tanh is a sigmoid of twice as much, less a constant on both sides.
    """
    slopes, weights, shifts = (t[..., at] for t in layer.arn(seen))
    twice = describe.twice(layer)
    a = F.softplus(slopes).clamp(min=torch.finfo(slopes.dtype).tiny)
    params = torch.cat([weights, -shifts / a, -(twice * a).log()], dim=-1)
    return describe.mixture(layer)(twice * y[..., at : at + 1], params.unsqueeze(-2), inverse=True)[0].squeeze(-1)


class NeuralAutoregressive(FastMethods):
    """The methods of an accelerated NeuralAutoregressive. Forward is Pyro's, and so is the log-determinant at what the
    inverse found."""

    def _inverse(self: Any, y: Tensor) -> Tensor:
        plain, order = original_class(self), getattr(self.arn, "permutation", None)
        if order is None or isinstance(describe.neural_refusal(self), str):
            return plain._inverse(self, y)
        order = [int(d) for d in order]
        if y.dim() == 0 or y.shape[-1] != len(order):
            raise ValueError(f"compat.pyro: y must be [..., {len(order)}], got {list(y.shape)}")
        x = [torch.zeros_like(y[..., 0])] * len(order)
        for d in order:
            x[d] = _solved(self, y, torch.stack(x, dim=-1), d)
        found = torch.stack(x, dim=-1)
        plain._call(self, found)  # what it keeps for the log-determinant
        return found


class ConditionalNeuralAutoregressive(Conditional):
    """Those of an accelerated ConditionalNeuralAutoregressive."""

    parts: ClassVar = {"": NeuralAutoregressive}
