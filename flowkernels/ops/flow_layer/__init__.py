"""A whole flow layer in one call: conditioner, univariate map of each feature, log |det J|."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkernels import backends
from flowkernels.ops._checks import check_flag
from flowkernels.ops._routing import Op, in_transform
from flowkernels.ops.made.activations import check_activation
from flowkernels.ops.made.checks import check_net, check_shape, check_tensor
from flowkernels.ops.made.plan import MadePlan
from flowkernels.ops.residual_net import ResidualNetSpec, with_context
from flowkernels.ops.residual_net.checks import check_dense
from flowkernels.ops.univariate import Map, check_univariate

from . import native, reference
from .spec import Columns, FlowLayerSpec, columns

__all__ = ["Columns", "FlowLayerSpec", "columns", "flow_layer", "try_autoregressive_layer", "try_flow_layer"]

_NAME = "ops.flow_layer"
_op = Op(
    "flow_layer",
    spec_type=FlowLayerSpec,
    reference=reference.fwd,
    table={"cpu": native, "reference": reference},
)


def flow_layer(
    x: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    univariate: Map,
    columns: Columns,
    *,
    context: Tensor | None = None,
    residual: bool = True,
    activation: str = "relu",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""A coupling layer: some features of x choose, through a net, the maps of the others.

    .. math:: y_b = f(x_b; \mathrm{net}(x_a, c)), \qquad y = x \text{ elsewhere}, \qquad
        \mathrm{ladj} = \sum_b \log |f'(x_b)|

    with a, b the features ``columns.inputs`` and ``columns.outputs``, and the net of `ops.residual_net`, or plain
    layers with an activation between them. Its output, often the largest tensor of a flow, never reaches memory; kept
    for backward is what enters the second layer of each block (of a plain net: each layer), and the inputs.

    Args:
        x: ``[..., D]``.
        layers: (weight, bias) as for `ops.residual_net`; the last returns ``len(b) * P`` numbers.
        univariate: the map, e.g. `flowkernels.ops.RQS` or `flowkernels.ops.Affine`, forward or inverse.
        columns: which features are seen and which are mapped; see `columns`.
        context: ``[..., C]`` or None.
        residual: False for a plain net: every pair of ``layers`` is a layer, and the first takes x and the context.
        activation: of a plain net, a name in `flowkernels.ops.made`'s table. Residual nets have relu.
        backend: run on this one or raise; default: the fastest that can.

    Returns:
        ``y [..., D]`` and ``ladj [...]``, in nats.

    Raises:
        TypeError: an input is not a floating-point tensor, or of another dtype than ``x``; ``univariate`` or
            ``columns`` is of another kind.
        ValueError: shapes that do not fit each other.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, NeurIPS 2019, arXiv:1906.04032.

    Example:
        >>> import torch
        >>> from flowkernels.ops.flow_layer import columns, flow_layer
        >>> from flowkernels.ops import RQS
        >>> sizes = [(16, 2), (16, 16), (16, 16), (2 * 23, 16)]
        >>> layers = [(torch.randn(s), torch.randn(s[0])) for s in sizes]
        >>> y, ladj = flow_layer(torch.randn(5, 4), layers, RQS(bins=8), columns(4, (0, 2), (1, 3)))
        >>> y.shape, ladj.shape
        (torch.Size([5, 4]), torch.Size([5]))
    """
    spec, tensors = prepare(x, layers, univariate, columns, context, residual, activation)
    return _op(spec, backend, *tensors)  # type: ignore[return-value]


def runs_fused(spec: FlowLayerSpec, tensors: Sequence[Tensor]) -> bool:
    """Whether the layer would run on a kernel, by the default backend and in the mode torch is in."""
    return (
        backends.default() in ("auto", "cpu") and not in_transform(tensors) and native.why_not(spec, *tensors) is None
    )


def try_flow_layer(
    x: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    univariate: Map,
    columns: Columns,
    context: Tensor | None = None,
    residual: bool = True,
    activation: str = "relu",
) -> tuple[Tensor, Tensor] | None:
    """`flow_layer` where it runs on a kernel, else None: a caller with faster parts than the reference uses those."""
    spec, tensors = prepare(x, layers, univariate, columns, context, residual, activation)
    return _op(spec, None, *tensors) if runs_fused(spec, tensors) else None  # type: ignore[return-value]


def try_autoregressive_layer(
    x: Tensor,
    univariate: Map,
    layers: Sequence[tuple[Tensor, Tensor]],
    plan: MadePlan,
    activation: str = "relu",
    adds: Sequence[Tensor | None] | None = None,
    gates: Sequence[Tensor | None] | None = None,
    seen: Tensor | None = None,
) -> tuple[Tensor, Tensor] | None:
    """``f(x; made(x))`` and its ladj as one op, where it runs on a kernel; else None. Arguments as for `ops.made`.

    ``seen``: what the network sees in place of x.
    """
    flags = check_net("ops.made", x, layers, plan, activation, adds, gates)
    check_univariate(_NAME, univariate, x.dtype)
    if plan.params_per_feature != univariate.n_params:
        expected, given = univariate.n_params, plan.params_per_feature
        raise ValueError(f"{_NAME}: plan must have {expected} outputs per feature for this univariate, got {given}")
    if seen is not None:
        check_tensor(_NAME, "seen", seen, x)
        check_shape(_NAME, "seen", seen, x.shape)
    every = tuple(range(plan.features))
    of_map = every if seen is None else tuple(range(plan.features, 2 * plan.features))
    at = columns(len(every) if seen is None else 2 * len(every), every, of_map)
    spec = FlowLayerSpec(at, univariate, plan, plan.residual, activation, *flags)
    terms = (t for t in (*(adds or ()), *(gates or ())) if t is not None)
    both = x if seen is None else torch.cat((seen, x), -1)
    tensors = [both, *(t for layer in layers for t in layer), *terms]
    if not runs_fused(spec, tensors):
        return None
    y, ladj = _op(spec, None, *tensors)
    return (y if seen is None else y[..., plan.features :]), ladj


def prepare(
    x: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    univariate: Map,
    columns: Columns,
    context: Tensor | None,
    residual: bool,
    activation: str,
) -> tuple[FlowLayerSpec, list[Tensor]]:
    """The settings and tensors of a call."""
    check_tensor(_NAME, "x", x)
    if not isinstance(columns, Columns):
        raise TypeError(f"{_NAME}: columns must be Columns, got {type(columns).__name__} {columns!r:.60}")
    if x.shape[-1] != columns.features:
        raise ValueError(f"{_NAME}: x must be [..., {columns.features}], got {list(x.shape)}")
    check_univariate(_NAME, univariate, x.dtype)
    residual = check_flag(_NAME, "residual", residual)
    check_dense(_NAME, x, len(columns.inputs), layers, context, residual=residual)
    n_out, expected = layers[-1][0].shape[0], len(columns.outputs) * univariate.n_params
    if n_out != expected:
        raise ValueError(f"{_NAME}: the last layer must return {expected} parameters, got {n_out}")
    if not residual:
        return _prepare_plain(x, layers, univariate, columns, context, activation)
    terms: list[Tensor] = []
    adds, gates = (), ()
    if context is not None:
        layers, terms = with_context(len(columns.inputs), x.shape[:-1], layers, context)
        net = ResidualNetSpec(len(layers) // 2 - 1, True)
        adds, gates = net.adds, net.gates
    flat = [t for layer in layers for t in layer]
    return FlowLayerSpec(columns, univariate, None, True, "relu", adds, gates), [x, *flat, *terms]


def _prepare_plain(
    x: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    univariate: Map,
    columns: Columns,
    context: Tensor | None,
    activation: str,
) -> tuple[FlowLayerSpec, list[Tensor]]:
    check_activation(_NAME, activation)
    flat, adds = [t for layer in layers for t in layer], ()
    if context is not None:  # its product is torch's, one per context and not per row
        n = len(columns.inputs)
        add = F.linear(context, flat[0][:, n:])
        adds = (True, *[False] * (len(layers) - 1))
        flat = [flat[0][:, :n], *flat[1:], add.expand(*x.shape[:-1], add.shape[-1])]
    return FlowLayerSpec(columns, univariate, None, False, activation, adds, ()), [x, *flat]
