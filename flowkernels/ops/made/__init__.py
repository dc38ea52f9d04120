"""A whole MADE as one differentiable op, and the plans of its masks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flowkernels.ops._routing import Op

from . import cuda, native, reference, triton
from .activations import FUNCTIONS
from .checks import check_net
from .plan import LayerPlan, MadePlan, layer_plan
from .reference import MadeSpec
from .strips import fastest

__all__ = ["FUNCTIONS", "LayerPlan", "MadePlan", "layer_plan", "made"]


_op = Op(
    "made",
    spec_type=MadeSpec,
    reference=reference.fwd,
    table={"cpu": native, "cuda": cuda, "triton": triton, "reference": reference},
    first=lambda spec, tensors: fastest(spec.plan.layers, tensors[0]),
)


def made(
    x: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    plan: MadePlan,
    *,
    activation: str = "relu",
    adds: Sequence[Tensor | None] | None = None,
    gates: Sequence[Tensor | None] | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Masked autoregressive network: the outputs of a feature depend on features of smaller degree only.

    .. math:: z_i = (W_i \circ M_i)\, a_i + b_i + c_i, \quad a_0 = x, \quad a_{i+1} = \mathrm{act}(z_i),
        \quad y = z_\mathrm{last}

    and with ``plan.residual`` (nflows' residual MADE) :math:`h = z_0`, per block
    :math:`t = W'\,\mathrm{act}(h) + b' + c'` and
    :math:`h \leftarrow h + g \odot (W''\,\mathrm{act}(t) + b'' + c'')`, then :math:`y = W h + b + c`, every weight
    masked.

    Args:
        x: ``[..., D]``; float32, float64, bfloat16 or float16.
        layers: (weight ``[N_i, K_i]``, bias ``[N_i]``) of each layer, of the dtype of ``x`` or under autocast. Masked
            entries of the weights are ignored, and their gradients are exactly zero.
        plan: the degrees of all units.
        activation: identity, relu, leaky_relu (slope 0.01), elu (alpha 1), gelu (by erf), silu or tanh.
        adds: :math:`c_i` per layer, a tensor that broadcasts to ``[..., N_i]`` or None: projections of a context.
        gates: :math:`g` per layer, the same, None but for the second layer of a residual block; not on a GPU yet, where
            plain PyTorch runs such a network.
        backend: run on this one or raise; default: the fastest that can.

    Returns:
        ``[..., D * P]``, feature-major: view it as ``[..., D, P]``.

    Raises:
        TypeError: an input is not a floating-point tensor, or of another dtype; ``plan`` is not a `MadePlan`.
        ValueError: a shape, the number of layers or the activation breaks its contract.

    Reference:
        Germain, Gregor, Murray, Larochelle: MADE: Masked Autoencoder for Distribution Estimation, ICML 2015,
        arXiv:1502.03509.

    Example:
        >>> import torch
        >>> from flowkernels import ops
        >>> plan = ops.MadePlan([[1, 2, 3], [1, 2, 1, 2], [1, 1, 2, 2, 3, 3]])
        >>> layers = [(torch.randn(p.n_out, p.n_in), torch.randn(p.n_out)) for p in plan.layers]
        >>> y = ops.made(torch.randn(5, 3), layers, plan)
        >>> y.shape, torch.equal(y[:, :2], layers[1][1][:2].expand(5, 2))
        (torch.Size([5, 6]), True)
    """
    flags = check_net("ops.made", x, layers, plan, activation, adds, gates)
    flat = [t for layer in layers for t in layer]
    terms = (t for t in (*(adds or ()), *(gates or ())) if t is not None)
    return _op(MadeSpec(plan, activation, *flags), backend, x, *flat, *terms)[0]
