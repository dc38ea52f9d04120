"""The residual conditioner of neural spline flows as one differentiable op."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkernels.ops._routing import Op
from flowkernels.ops.made.checks import check_tensor

from . import eager, native, reference
from .checks import check_dense
from .modules import layers_of, plain_layers_of
from .reference import ResidualNetSpec

__all__ = ["ResidualNetSpec", "layers_of", "plain_layers_of", "residual_net", "with_context"]

_NAME = "ops.residual_net"
_op = Op(
    "residual_net",
    spec_type=ResidualNetSpec,
    reference=reference.fwd,
    table={"cpu": native, "eager": eager, "reference": reference},
)


def residual_net(
    x: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    *,
    blocks: int,
    context: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Residual network with relu, as conditioners of coupling flows use it (nflows' ``ResidualNet``).

    .. math:: h_0 = W_0 [x, c] + b_0, \quad t_i = \mathrm{relu}(W'_i \mathrm{relu}(h_i) + b'_i), \quad
        h_{i+1} = h_i + (W''_i t_i + b''_i) \odot \sigma(V_i c + v_i), \quad y = W h_n + b

    without the gate where there is no context.

    Args:
        x: ``[..., D]``.
        layers: (weight ``[out, in]``, bias ``[out]``) of the initial layer, of each block's two layers (and its gate
            where there is a context), and of the final layer.
        blocks: how many residual blocks.
        context: ``[..., C]`` or None.
        backend: run on this one or raise; default: the fastest that can.

    Returns:
        ``[..., out]``.

    Raises:
        TypeError: an input is not a floating-point tensor, or of another dtype than ``x``.
        ValueError: the number of layers does not fit the number of blocks, or a shape those beside it.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, NeurIPS 2019, arXiv:1906.04032, appendix.

    Example:
        >>> import torch
        >>> from flowkernels import ops
        >>> sizes = [(16, 3), (16, 16), (16, 16), (4, 16)]
        >>> ops.residual_net(torch.randn(5, 3), [(torch.randn(s), torch.randn(s[0])) for s in sizes], blocks=1).shape
        torch.Size([5, 4])
    """
    check_tensor(_NAME, "x", x)
    if (
        type(blocks) is not int and (isinstance(blocks, bool) or not isinstance(blocks, numbers.Integral))
    ) or blocks < 0:
        raise ValueError(f"{_NAME}: blocks must be an integer from 0 on, got {blocks!r:.60}")
    check_dense(_NAME, x, x.shape[-1], layers, context, residual=True, blocks=blocks)
    terms: list[Tensor] = []
    if context is not None:
        layers, terms = with_context(x.shape[-1], x.shape[:-1], layers, context)
    flat = [t for layer in layers for t in layer]
    return _op(ResidualNetSpec(blocks, context is not None), backend, x, *flat, *terms)[0]


def with_context(
    features: int, lead: Sequence[int], layers: Sequence[tuple[Tensor, Tensor]], context: Tensor
) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    """The layers that see x, and what the context adds to the first and multiplies each block with.

    A context has no mask and is often shared by many rows: its products are torch's, one per context and not per row.
    """
    first, bias = layers[0]
    gated = layers[3:-1:3]
    terms = [F.linear(context, first[:, features:]), *(torch.sigmoid(F.linear(context, *layer)) for layer in gated)]
    kept = [(first[:, :features], bias), *(layer for i, layer in enumerate(layers[1:-1]) if i % 3 != 2), layers[-1]]
    return kept, [t.expand(*lead, t.shape[-1]) for t in terms]
