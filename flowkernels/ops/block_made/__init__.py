"""Block neural autoregressive maps: a masked network whose diagonal blocks are positive, and its inverse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkernels._arguments import flag, is_number
from flowkernels.ops._routing import Op
from flowkernels.ops.net.checks import check_pair, check_sequence, check_tensor

from . import native, reference, triton
from .reference import ACTIVATIONS

__all__ = ["block_made"]

_NAME = "ops.block_made"


class BlockSpec(NamedTuple):
    activation: str
    residual: str  # "none", "sum" or "gated", whose gate is the last tensor
    inverse: bool
    normalized: bool = False  # each layer has a third tensor, the logarithms of its rows' norms
    eps: float = 0.0


def _fake(spec: BlockSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    x = tensors[0]
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=wide)


_op = Op(
    "block_made",
    spec_type=BlockSpec,
    reference=reference.fwd,
    table={"cpu": native, "triton": triton, "reference": reference},
    inputs=("tensors[]",),
    n_outputs=2,
    fake=_fake,
    sample=lambda: (
        BlockSpec("tanh", "none", False),
        (torch.zeros(1, 1), *[torch.zeros(1, 1), torch.zeros(1)] * 2),
    ),
)


def block_made(
    x: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    *,
    log_norms: Sequence[Tensor] | None = None,
    activation: str = "tanh",
    residual: Tensor | bool = False,
    eps: float = 0.0,
    inverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Runs a masked network that is itself an increasing map of each feature, given those before it.

    .. math:: h_0 = x, \qquad h_k = \sigma(W_k h_{k-1} + b_k), \qquad y = W_n h_{n-1} + b_n

    Units come in D groups, feature after feature. Block (d, e) of :math:`W_k` is free where e < d, 0 where e > d, and
    :math:`\exp` of what is given where e = d: each :math:`y_d` grows with :math:`x_d`. ``ladj`` is
    :math:`\sum_D \log \partial y_d / \partial x_d` in nats, by sums of exponentials of the blocks' logarithms. The
    inverse is one sweep: what stands before a feature is a constant of its own small network, and its root is found by
    Newton's method in a bracket, without a read by the host.

    Args:
        x: ``[..., D]``; float32, float64, bfloat16 or float16.
        layers: weight ``[D o, D i]`` and bias ``[D o]`` of each, of the dtype of ``x``, at least one; i is 1 for the
            first and o for the last. What lies above the diagonal blocks is not read.
        log_norms: weight normalization: ``[D o]`` of each layer; every row of :math:`W_k`, exponentials and all, is
            scaled to the length of this logarithm. None: weights are as they are given.
        activation: between layers, increasing: ``"tanh"``, ``"sigmoid"``, ``"elu"`` or ``"leaky_relu"``.
        residual: True: y + x; a tensor of one number, the gate g: :math:`\sigma(g)\,x + (1 - \sigma(g))\,y`. Without
            one, and where the activation is bounded, y is bounded too, and the inverse of what lies outside is NaN.
        eps: what is added to the norms of rows, in ladj to their squares and to the gate's :math:`\sigma`, at least 0.
            Pyro adds 1e-8, and its ladj is off by as much; 0 adds nothing.
        inverse: evaluate y → x; ``ladj`` is then that of the inverse. Roots are looked for up to 1e18 (float64: 1e150).
        backend: run on this one or raise. Kernels are the CPU's and, of up to 64 units a feature (float64: 16),
            Triton's; elsewhere plain PyTorch runs.

    Returns:
        ``y [..., D]`` in the dtype of ``x`` and ``ladj [...]`` in float32 (float64 for float64).

    Raises:
        TypeError: an input is not a floating-point tensor, or of another dtype than ``x``.
        ValueError: a shape or setting breaks its contract.

    Reference:
        De Cao, Titov, Aziz: Block Neural Autoregressive Flow, UAI 2019, arXiv:1904.04676.

    Example:
        >>> import torch
        >>> from flowkernels import ops
        >>> _ = torch.manual_seed(0)
        >>> D, a = 3, 4
        >>> layers = [(torch.randn(D * a, D), torch.randn(D * a)), (torch.randn(D, D * a), torch.randn(D))]
        >>> x = torch.randn(5, D)
        >>> y, ladj = ops.block_made(x, layers, residual=True)
        >>> back, neg = ops.block_made(y, layers, residual=True, inverse=True)
        >>> torch.allclose(back, x, atol=1e-4), torch.allclose(ladj, -neg, atol=1e-4)
        (True, True)
    """
    check_tensor(_NAME, "x", x)
    flag(_NAME, "inverse", inverse)
    if not is_number(eps) or not 0 <= eps <= 1:
        raise ValueError(f"{_NAME}: eps must be a number from 0 to 1, got {eps!r:.60}")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        options = ", ".join(f'"{name}"' for name in ACTIVATIONS)
        raise ValueError(f"{_NAME}: activation must be one of {options}, got {activation!r:.60}")
    tensors = _checked(x, layers, log_norms)
    kind = "gated"
    if isinstance(residual, Tensor):
        check_tensor(_NAME, "residual", residual, x)
        if residual.numel() != 1:
            raise ValueError(f"{_NAME}: residual must be True, False or one number, got {list(residual.shape)}")
        tensors.append(residual.reshape(()))
    else:
        kind = "sum" if flag(_NAME, "residual", residual) else "none"
    return _op(BlockSpec(activation, kind, inverse, log_norms is not None, float(eps)), backend, x, *tensors)  # type: ignore[return-value]


def _checked(x: Tensor, layers: Any, log_norms: Any) -> list[Tensor]:
    """Weights, biases and norms, layer after layer."""
    D = x.shape[-1]
    check_sequence(_NAME, "layers", layers, "a list of (weight, bias)")
    if not layers or D == 0:
        what, given = ("layers", 0) if D else ("features of x", 0)
        raise ValueError(f"{_NAME}: {what} must be at least one, got {given}")
    if log_norms is not None:
        check_sequence(_NAME, "log_norms", log_norms, "None or a list of tensors")
        if len(log_norms) != len(layers):
            raise ValueError(f"{_NAME}: log_norms must be {len(layers)}, one per layer, got {len(log_norms)}")
    units, tensors = 1, []
    for k, layer in enumerate(layers):
        name, last = f"layers[{k}]", k == len(layers) - 1
        check_pair(_NAME, k, layer)
        weight, bias = layer
        for what, t in (("weight", weight), ("bias", bias)):
            check_tensor(_NAME, f"{name} {what}", t, x)
        shape = list(weight.shape)
        rows = str(D) if last else f"a multiple of {D}"
        fits = len(shape) == 2 and shape[1] == D * units and shape[0] > 0 and shape[0] % D == 0
        if not fits or (last and shape[0] != D):
            raise ValueError(f"{_NAME}: {name} weight must be [{rows}, {D * units}], got {shape}")
        if list(bias.shape) != shape[:1]:
            raise ValueError(f"{_NAME}: {name} bias must be {shape[:1]}, got {list(bias.shape)}")
        units = shape[0] // D
        tensors += [weight, bias]
        if log_norms is not None:
            check_tensor(_NAME, f"log_norms[{k}]", log_norms[k], x)
            if list(log_norms[k].shape) != shape[:1]:
                raise ValueError(f"{_NAME}: log_norms[{k}] must be {shape[:1]}, got {list(log_norms[k].shape)}")
            tensors.append(log_norms[k])
    return tensors
