"""One masked layer of a MADE: product, bias, residual and activation in one call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flowkernels.ops._net import SLOPE_NEEDS_INPUT
from flowkernels.ops._routing import Op
from flowkernels.ops.made.activations import check_activation
from flowkernels.ops.made.checks import check_broadcasts, check_shape, check_tensor
from flowkernels.ops.made.plan import LayerPlan, layer_plan
from flowkernels.ops.made.strips import fastest

from . import cuda, native, reference, triton
from .reference import MaskedLinearSpec

__all__ = ["masked_linear"]

_NAME = "ops.masked_linear"


def _fake(spec: MaskedLinearSpec, x: Tensor, *rest: Tensor) -> tuple[Tensor]:
    return (x.new_empty((*x.shape[:-1], spec.plan.n_out)),)


_op = Op(
    "masked_linear",
    spec_type=MaskedLinearSpec,
    reference=reference.fwd,
    table={"cpu": native, "cuda": cuda, "triton": triton, "reference": reference},
    inputs=("tensors[]",),
    n_outputs=1,
    fake=_fake,
    keeps_outputs=lambda spec: spec.activation not in ("identity", *SLOPE_NEEDS_INPUT),
    first=lambda spec, tensors: fastest((spec.plan,), tensors[0]),
)


def masked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    degrees_in: Sequence[int] | Tensor | LayerPlan,
    degrees_out: Sequence[int] | Tensor | None = None,
    *,
    strict: bool = False,
    activation: str = "identity",
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Linear layer whose output units see inputs of no larger degree only.

    .. math:: y = \mathrm{act}(x\,(W \circ M)^\top + b + r), \qquad M_{oi} = [\,m_o \ge m_i\,]

    with :math:`m_o > m_i` where ``strict``, as in the last layer of a MADE.

    Args:
        x: ``[..., K]``; float32, float64, bfloat16 or float16.
        weight: ``[N, K]``, of the dtype of ``x`` or under autocast. Masked entries are ignored, and their gradients
            are exactly zero.
        bias: ``[N]`` or None.
        degrees_in, degrees_out: K and N integers from 0 on. Or ``degrees_in`` is a ready `LayerPlan` (then
            ``degrees_out`` is None and ``strict`` is the plan's): the fastest form, and the one to use under
            ``torch.compile``, where degrees cannot be read off tensors.
        strict: equal degrees are hidden from each other.
        activation: identity, relu, leaky_relu (slope 0.01), elu (alpha 1), gelu (by erf), silu or tanh.
        residual: r, broadcasting to ``[..., N]``: a residual stream or the projection of a context.
        backend: run on this one or raise; default: the fastest that can.

    Returns:
        ``[..., N]``.

    Raises:
        TypeError: an input is not a floating-point tensor, or of another dtype than ``x``.
        ValueError: a shape, the degrees or the activation breaks its contract.

    Reference:
        Germain, Gregor, Murray, Larochelle: MADE: Masked Autoencoder for Distribution Estimation, ICML 2015,
        arXiv:1502.03509.

    Example:
        >>> import torch
        >>> from flowkernels import ops
        >>> x, weight = torch.randn(5, 3), torch.randn(4, 3)
        >>> y = ops.masked_linear(x, weight, None, [1, 2, 3], [1, 2, 1, 2], activation="relu")
        >>> torch.allclose(y[:, 0], torch.relu(x[:, 0] * weight[0, 0]))
        True
    """
    check_activation(_NAME, activation)
    check_tensor(_NAME, "x", x)
    if isinstance(degrees_in, LayerPlan):
        if degrees_out is not None:
            raise ValueError(f"{_NAME}: degrees_out must be None beside a LayerPlan, got {type(degrees_out).__name__}")
        plan = degrees_in
    else:
        if degrees_out is None:
            raise ValueError(f"{_NAME}: degrees_out must be integers, one per output, got None")
        plan = layer_plan(degrees_in, degrees_out, strict)
    if x.shape[-1] != plan.n_in:
        raise ValueError(f"{_NAME}: x must be [..., {plan.n_in}], one per degree, got {list(x.shape)}")
    check_tensor(_NAME, "weight", weight, x)
    check_shape(_NAME, "weight", weight, (plan.n_out, plan.n_in))
    tensors = [x, weight]
    if bias is not None:
        check_tensor(_NAME, "bias", bias, x)
        check_shape(_NAME, "bias", bias, (plan.n_out,))
        tensors.append(bias)
    if residual is not None:
        shape = (*x.shape[:-1], plan.n_out)
        check_tensor(_NAME, "residual", residual, x)
        check_broadcasts(_NAME, "residual", residual, shape)
        tensors.append(residual.expand(shape))
    return _op(MaskedLinearSpec(plan, activation, bias is not None, residual is not None), backend, *tensors)[0]
