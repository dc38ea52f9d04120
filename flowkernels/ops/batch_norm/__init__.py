"""Batch norm by the batch's own statistics and the activation behind it, as one differentiable op."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flowkernels._arguments import positive
from flowkernels.ops._checks import check_shape
from flowkernels.ops._routing import Op
from flowkernels.ops.net.activations import check_activation
from flowkernels.ops.net.checks import check_tensor

from . import native, reference

__all__ = ["batch_norm"]

_NAME = "ops.batch_norm"


class BatchNormSpec(NamedTuple):
    """What it is apart from its tensors, x, weight and bias."""

    eps: float
    activation: str


def _fake(spec: BatchNormSpec, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[1:]), x.new_empty(x.shape[1:])


op = Op(
    "batch_norm",
    spec_type=BatchNormSpec,
    reference=reference.fwd,
    table={"cpu": native, "reference": reference},
    inputs=("x", "weight", "bias"),
    n_outputs=3,
    fake=_fake,
    missing=dict.fromkeys(("cuda", "triton"), "the GPU library's own is one launch"),
    sample=lambda: (BatchNormSpec(1e-5, "relu"), (torch.zeros(2, 1), torch.ones(1), torch.zeros(1))),
)


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    activation: str = "identity",
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Batch norm as in training, by the statistics of the batch, and the activation behind it.

    .. math:: y = \mathrm{act}\Big(\frac{x - m}{\sqrt{v + \varepsilon}}\, w + b\Big), \quad
        m = \frac{1}{B} \sum_i x_i, \quad v = \frac{1}{B} \sum_i (x_i - m)^2

    of every feature. Who keeps running statistics updates them by what is returned. One pass over the batch for the
    statistics and one for y; equal bits on any number of threads.

    Args:
        x: ``[B, D]``, at least two rows; float32, float64, bfloat16 or float16.
        weight, bias: ``[D]``, of the dtype of ``x``.
        eps: :math:`\varepsilon`, positive.
        activation: identity, relu, leaky_relu (slope 0.01), elu (alpha 1), gelu (by erf), silu or tanh.
        backend: run on this one or raise; default: the fastest that can.

    Returns:
        y ``[B, D]``, and m and v ``[D]`` (v of B, not of B - 1).

    Raises:
        TypeError: an input is not a floating-point tensor, or of another dtype than ``x``.
        ValueError: a shape, eps or the activation breaks its contract; there are fewer than two rows.

    Reference:
        Ioffe, Szegedy: Batch Normalization: Accelerating Deep Network Training, ICML 2015, arXiv:1502.03167.

    Example:
        >>> import torch
        >>> from flowkernels import ops
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> y, mean, var = ops.batch_norm(x, torch.ones(1), torch.zeros(1), activation="relu")
        >>> y.tolist()[0], mean.tolist(), var.tolist()
        ([0.0], [2.0], [1.0])
    """
    check_tensor(_NAME, "x", x)
    if x.dim() != 2:
        raise ValueError(f"{_NAME}: x must be [B, D], got {list(x.shape)}")
    if x.shape[0] < 2:
        raise ValueError(f"{_NAME}: x must have at least two rows, got {x.shape[0]}")
    for name, t in (("weight", weight), ("bias", bias)):
        check_tensor(_NAME, name, t, x)
        check_shape(_NAME, name, t, x.shape[1:])
    check_activation(_NAME, activation)
    spec = BatchNormSpec(positive(_NAME, "eps", eps), activation)
    return op(spec, backend, x, weight, bias)  # type: ignore[return-value]
