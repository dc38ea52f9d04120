"""Networks as one differentiable op: a whole MADE, a residual net, one masked layer; and the plans of masks.

All three are a `NetSpec` and its tensors: one reference, one kernel a machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkernels._arguments import count
from flowkernels.ops._routing import Op

from . import cuda, fused_torch, native, reference, triton, triton_chain
from .activations import SLOPE_NEEDS_INPUT, check_activation
from .blocks import fastest
from .checks import check_broadcasts, check_dense, check_net, check_norms, check_shape, check_tensor
from .net import Net, dense_net, made_net
from .plan import LayerPlan, MadePlan, layer_plan
from .spec import NetSpec

__all__ = ["LayerPlan", "MadePlan", "Net", "NetSpec", "layer_plan", "made", "masked_linear", "residual_net", "run_made"]


def _fake(spec: NetSpec, x: Tensor, *rest: Tensor) -> tuple[Tensor]:
    return (x.new_empty((*x.shape[:-1], spec.masks()[-1].n_out)),)


def _sample(kind: str) -> tuple[NetSpec, tuple[Tensor, ...]]:
    plan = MadePlan([[1, 2], [1, 1], [1, 1, 2, 2]])
    layers = [(torch.zeros(p.n_out, p.n_in), torch.zeros(p.n_out)) for p in plan.layers]
    if kind == "masked_linear":
        return _one_layer(plan.layers[0], "relu", True, False), (torch.zeros(1, 2), *layers[0])
    square = [(torch.zeros(2, 2), torch.zeros(2))] * 4
    net = made_net(layers, plan, "relu") if kind == "made" else dense_net(square, True, "relu", 2, (1,), None)
    return net.spec, (torch.zeros(1, 2), *net.tensors)


_made = Op(
    "made",
    spec_type=NetSpec,
    reference=reference.fwd,
    table={"cpu": native, "cuda": cuda, "triton": triton_chain, "reference": reference},
    first=lambda spec, tensors: fastest(spec.masks(), tensors[0]),
    sample=lambda: _sample("made"),
)
_residual_net = Op(
    "residual_net",
    spec_type=NetSpec,
    reference=reference.fwd,
    table={"cpu": native, "fused_torch": fused_torch, "reference": reference},
    missing=dict.fromkeys(("cuda", "triton"), "nothing is masked: backend fused_torch, on the GPU library's products"),
    sample=lambda: _sample("residual_net"),
)
_masked_linear = Op(
    "masked_linear",
    spec_type=NetSpec,
    reference=reference.fwd,
    table={"cpu": native, "cuda": cuda, "triton": triton, "reference": reference},
    inputs=("tensors[]",),
    n_outputs=1,
    fake=_fake,
    keeps_outputs=lambda spec: spec.last not in ("identity", *SLOPE_NEEDS_INPUT),
    first=lambda spec, tensors: fastest(spec.masks(), tensors[0]),
    sample=lambda: _sample("masked_linear"),
    schema=("str plan", "str activation", "bool has_bias", "bool has_residual"),
    pack=lambda spec: [spec.plan.text, spec.last, spec.has_bias, bool(spec.adds)],
    unpack=lambda plan, *rest: _one_layer(LayerPlan.from_text(plan), *rest),
)


def _one_layer(plan: LayerPlan, activation: str, has_bias: bool, has_residual: bool) -> NetSpec:
    return NetSpec(1, plan, False, "identity", activation, (True,) if has_residual else (), (), has_bias)


def run_made(x: Tensor, net: Net, backend: str | None = None) -> Tensor:
    """The output of a masked network that a reader of modules has described."""
    return _made(net.spec, backend, x, *net.tensors)[0]


def run_residual_net(x: Tensor, net: Net, backend: str | None = None) -> Tensor:
    """The same of a residual net without masks."""
    return _residual_net(net.spec, backend, x, *net.tensors)[0]


_LINEAR = NetSpec(1, None, False, "identity")


def run_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One dense layer on the CPU's kernels, of plain tensors in no transform, for who has asked them already."""
    return _residual_net.run(_residual_net.backend("cpu"), _LINEAR, (x, weight, bias))[0]


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
    check_net("ops.made", x, layers, plan, activation, adds, gates)
    return run_made(x, made_net(layers, plan, activation, adds, gates), backend)


def residual_net(
    x: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    *,
    blocks: int,
    context: Tensor | None = None,
    activation: str = "relu",
    norms: Sequence[tuple[Tensor, Tensor]] | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Residual network, as conditioners of coupling flows use it (nflows' ``ResidualNet``).

    .. math:: h_0 = W_0 [x, c] + b_0, \quad t_i = \mathrm{act}(W'_i \mathrm{act}(h_i) + b'_i), \quad
        h_{i+1} = h_i + (W''_i t_i + b''_i) \odot \sigma(V_i c + v_i), \quad y = W h_n + b

    without the gate where there is no context; with ``norms``, a scale and a shift of each unit before each activation
    in a block, :math:`\mathrm{act}(s_i \odot h_i + u_i)` for :math:`\mathrm{act}(h_i)`, and the same for the other.

    Args:
        x: ``[..., D]``.
        layers: (weight ``[out, in]``, bias ``[out]``) of the initial layer, of each block's two layers (and its gate
            where there is a context), and of the final layer.
        blocks: how many residual blocks.
        context: ``[..., C]`` or None.
        activation: identity, relu, leaky_relu (slope 0.01), elu (alpha 1), gelu (by erf), silu or tanh.
        norms: (scale ``[hidden]``, shift ``[hidden]``), two per block, or None: what batch norm does in evaluation,
            with scale :math:`w / \sqrt{v + \varepsilon}` and shift :math:`b - m\,w / \sqrt{v + \varepsilon}`.
        backend: run on this one or raise; default: the fastest that can.

    Returns:
        ``[..., out]``.

    Raises:
        TypeError: an input is not a floating-point tensor, or of another dtype than ``x``.
        ValueError: the number of layers does not fit the number of blocks, a shape those beside it, or the
            activation is none of these.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, NeurIPS 2019, arXiv:1906.04032, appendix.

    Example:
        >>> import torch
        >>> from flowkernels import ops
        >>> sizes = [(16, 3), (16, 16), (16, 16), (4, 16)]
        >>> ops.residual_net(torch.randn(5, 3), [(torch.randn(s), torch.randn(s[0])) for s in sizes], blocks=1).shape
        torch.Size([5, 4])
    """
    name = "ops.residual_net"
    check_tensor(name, "x", x)
    count(name, "blocks", blocks, least=0)
    check_activation(name, activation)
    check_dense(name, x, x.shape[-1], layers, context, residual=True, blocks=blocks)
    check_norms(name, x, layers, norms, residual=True, per_block=2 if context is None else 3)
    net = dense_net(layers, True, activation, x.shape[-1], x.shape[:-1], context, norms or ())
    return run_residual_net(x, net, backend)


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
    name = "ops.masked_linear"
    check_activation(name, activation)
    check_tensor(name, "x", x)
    if isinstance(degrees_in, LayerPlan):
        if degrees_out is not None:
            raise ValueError(f"{name}: degrees_out must be None beside a LayerPlan, got {type(degrees_out).__name__}")
        plan = degrees_in
    else:
        if degrees_out is None:
            raise ValueError(f"{name}: degrees_out must be integers, one per output, got None")
        plan = layer_plan(degrees_in, degrees_out, strict)
    if x.shape[-1] != plan.n_in:
        raise ValueError(f"{name}: x must be [..., {plan.n_in}], one per degree, got {list(x.shape)}")
    check_tensor(name, "weight", weight, x)
    check_shape(name, "weight", weight, (plan.n_out, plan.n_in))
    tensors = [x, weight]
    if bias is not None:
        check_tensor(name, "bias", bias, x)
        check_shape(name, "bias", bias, (plan.n_out,))
        tensors.append(bias)
    if residual is not None:
        shape = (*x.shape[:-1], plan.n_out)
        check_tensor(name, "residual", residual, x)
        check_broadcasts(name, "residual", residual, shape)
        tensors.append(residual.expand(shape))
    return _masked_linear(_one_layer(plan, activation, bias is not None, residual is not None), backend, *tensors)[0]
