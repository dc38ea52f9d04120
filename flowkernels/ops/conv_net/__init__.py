"""A network of convolutions as one op: the conditioner of Glow, and of other flows on images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels.ops._checks import check_shape
from flowkernels.ops._routing import Op
from flowkernels.ops.net.activations import check_activation
from flowkernels.ops.net.checks import check_pair, check_sequence, check_tensor

from . import fused_torch, native, reference
from .spec import ConvSpec, weights, widest

__all__ = ["conv_net"]

# Bytes of a hidden layer from which pixels as rows may win; below them nothing waits for memory.
_ROWS = 4 << 20


def _first(spec: ConvSpec, tensors: Sequence[Tensor]) -> str:
    """Pixels as rows where a hidden layer is large, and a pixel's neighbourhoods are small beside it."""
    if spec.n < 2 or not tensors[0].is_cpu:
        return "fused_torch"
    x, of, width = tensors[0], weights(tensors), widest(tensors)
    if len(x) * x.shape[-2] * x.shape[-1] * x.element_size() * width < _ROWS:
        return "fused_torch"
    around = of[0].shape[1:].numel() + of[-1].shape[0] * of[-1].shape[2:].numel()
    return "cpu" if around <= width else "fused_torch"


_op = Op(
    "conv_net",
    spec_type=ConvSpec,
    reference=reference.fwd,
    table={"cpu": native, "fused_torch": fused_torch, "reference": reference},
    first=_first,
    missing=dict.fromkeys(("cuda", "triton"), "a GPU's library runs convolutions: backend reference"),
    sample=lambda: (ConvSpec(2, "relu"), (torch.zeros(1, 1, 2, 2), *[torch.zeros(1, 1, 1, 1), torch.zeros(1)] * 2)),
)


def run_conv_net(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]], activation: str) -> Tensor:
    """The output of a network that a reader of modules has described, on ``x [N, C, H, W]``."""
    return _op(ConvSpec(len(layers), activation), None, x, *[t for layer in layers for t in layer])[0]


def conv_net(
    x: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    *,
    activation: str = "relu",
    backend: str | None = None,
) -> Tensor:
    r"""Convolutions with an activation between them, which keep the size of the image (Glow's conditioner).

    .. math:: h_0 = W_0 * x + b_0, \quad h_{i+1} = W_{i+1} * \mathrm{act}(h_i) + b_{i+1}, \quad y = h_\mathrm{last}

    with zeros beyond the border. On a CPU large batches run in memory that has been used before, or, where all layers
    but the first and the last are of 1 x 1, on tiles of pixels that do not leave the cache.

    Args:
        x: ``[..., C, H, W]``; float32, float64, bfloat16 or float16.
        layers: (weight ``[out, in, k, k]``, bias ``[out]``) of each layer, k odd, of the dtype of ``x`` or under
            autocast.
        activation: identity, relu, leaky_relu (slope 0.01), elu (alpha 1), gelu (by erf), silu or tanh.
        backend: run on this one or raise; default: the fastest that can.

    Returns:
        ``[..., out, H, W]``, contiguous.

    Raises:
        TypeError: an input is not a floating-point tensor, or of another dtype than ``x``.
        ValueError: a layer does not take what the one before returns, a kernel is of even size, a shape or the
            activation breaks its contract.

    Reference:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1x1 Convolutions, NeurIPS 2018, arXiv:1807.03039.

    Example:
        >>> import torch
        >>> from flowkernels import ops
        >>> sizes = [(16, 2, 3, 3), (16, 16, 1, 1), (4, 16, 3, 3)]
        >>> ops.conv_net(torch.randn(5, 2, 8, 8), [(torch.randn(s), torch.randn(s[0])) for s in sizes]).shape
        torch.Size([5, 4, 8, 8])
    """
    name = "ops.conv_net"
    check_activation(name, activation)
    check_tensor(name, "x", x)
    if x.dim() < 3 or 0 in x.shape[-3:]:
        raise ValueError(f"{name}: x must be [..., C, H, W] with a pixel at least, got {list(x.shape)}")
    _check_layers(name, x, layers)
    images = x if x.dim() == 4 else x.reshape(-1, *x.shape[-3:])
    tensors = [t for layer in layers for t in layer]
    (y,) = _op(ConvSpec(len(layers), activation), backend, images, *tensors)
    return y if x.dim() == 4 else y.view(*x.shape[:-3], *y.shape[1:])


def _check_layers(name: str, x: Tensor, layers: Any) -> None:
    """Raises unless these are the layers of a network that takes x."""
    check_sequence(name, "layers", layers, "a list of (weight, bias) pairs")
    if len(layers) == 0:
        raise ValueError(f"{name}: layers must be one at least, got none")
    channels = x.shape[-3]
    for i, pair in enumerate(layers):
        check_pair(name, i, pair)
        weight, bias = pair
        check_tensor(name, f"layers[{i}] weight", weight, x)
        shape = list(weight.shape)
        if weight.dim() != 4 or shape[1] != channels or shape[2] != shape[3] or shape[2] % 2 == 0 or shape[0] == 0:
            raise ValueError(f"{name}: layers[{i}] weight must be [out, {channels}, k, k] with k odd, got {shape}")
        check_tensor(name, f"layers[{i}] bias", bias, x)
        check_shape(name, f"layers[{i}] bias", bias, (shape[0],))
        channels = shape[0]
