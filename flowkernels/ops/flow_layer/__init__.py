"""A whole flow layer in one call: conditioner, univariate map of each feature, log |det J|."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from flowkernels import backends
from flowkernels._arguments import flag
from flowkernels._backend import Backend
from flowkernels.ops._routing import Op, in_transform
from flowkernels.ops.net.activations import check_activation
from flowkernels.ops.net.checks import check_dense, check_norms, check_shape, check_tensor
from flowkernels.ops.net.net import Net, dense_net
from flowkernels.ops.rqs import RQS
from flowkernels.ops.split import Split, split_of
from flowkernels.ops.univariate import Map, check_univariate

from . import native, reference, triton
from .reference import FlowLayerSpec

__all__ = [
    "FlowLayerSpec", "Split", "every", "flow_layer", "kernel_of", "op", "run_autoregressive_layer", "run_layer",
    "split_of",
]  # fmt: skip

_NAME = "ops.flow_layer"


def _first(spec: FlowLayerSpec, tensors: Sequence[Tensor]) -> str:
    """On a GPU the kernel, unless the library's products of so many rows take longer than the launches of the parts."""
    return "cpu" if tensors[0].is_cpu else "triton" if triton.is_little(tensors) else "reference"


def _sample() -> tuple[FlowLayerSpec, tuple[Tensor, ...]]:
    spline = RQS(bins=1, tails=None)
    layers = [(torch.zeros(n, k), torch.zeros(n)) for n, k in ((2, 1), (2, 2), (2, 2), (4, 2))]
    net = dense_net(layers, True, "relu", 1, (1,), None)
    return FlowLayerSpec(split_of(2, (0,), (1,)), spline, net.spec), (torch.zeros(1, 2), *net.tensors)


op = Op(
    "flow_layer",
    spec_type=FlowLayerSpec,
    reference=reference.fwd,
    table={"cpu": native, "triton": triton, "reference": reference},
    missing={"cuda": "backend triton; or its callers run the net, then the map"},
    first=_first,
    sample=_sample,
)


def flow_layer(
    x: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    univariate: Map,
    split: Split,
    *,
    context: Tensor | None = None,
    residual: bool = True,
    activation: str = "relu",
    norms: Sequence[tuple[Tensor, Tensor]] | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""A coupling layer: some features of x choose, through a net, the maps of the others.

    .. math:: y_b = f(x_b; \mathrm{net}(x_a, c)), \qquad y = x \text{ elsewhere}, \qquad
        \mathrm{ladj} = \sum_b \log |f'(x_b)|

    with a, b the features ``split.inputs`` and ``split.outputs``, and the net of `ops.residual_net`, or plain
    layers with an activation between them. Its output, often the largest tensor of a flow, never reaches memory; kept
    for backward is what enters the second layer of each block (of a plain net: each layer), and the inputs.

    Args:
        x: ``[..., D]``.
        layers: (weight, bias) as for `ops.residual_net`; the last returns ``len(b) * P`` numbers.
        univariate: the map, e.g. `flowkernels.ops.RQS` or `flowkernels.ops.Affine`, forward or inverse.
        split: which features are seen and which are mapped; see `split_of`.
        context: ``[..., C]`` or None.
        residual: False for a plain net: every pair of ``layers`` is a layer, and the first takes x and the context.
        activation: identity, relu, leaky_relu (slope 0.01), elu (alpha 1), gelu (by erf), silu or tanh.
        norms: (scale, shift) before each activation in the blocks of a residual net, as for `ops.residual_net`.
        backend: run on this one or raise; default: the fastest that can.

    Returns:
        ``y [..., D]`` and ``ladj [...]``, in nats.

    Raises:
        TypeError: an input is not a floating-point tensor, or of another dtype than ``x``; ``univariate`` or
            ``split`` is of another kind.
        ValueError: shapes that do not fit each other.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, NeurIPS 2019, arXiv:1906.04032.

    Example:
        >>> import torch
        >>> from flowkernels.ops import RQS
        >>> from flowkernels.ops.flow_layer import flow_layer, split_of
        >>> sizes = [(16, 2), (16, 16), (16, 16), (2 * 23, 16)]
        >>> layers = [(torch.randn(s), torch.randn(s[0])) for s in sizes]
        >>> y, ladj = flow_layer(torch.randn(5, 4), layers, RQS(bins=8), split_of(4, (0, 2), (1, 3)))
        >>> y.shape, ladj.shape
        (torch.Size([5, 4]), torch.Size([5]))
    """
    check_tensor(_NAME, "x", x)
    if not isinstance(split, Split):
        raise TypeError(f"{_NAME}: split must be a Split, got {type(split).__name__} {split!r:.60}")
    if x.shape[-1] != split.features:
        raise ValueError(f"{_NAME}: x must be [..., {split.features}], got {list(x.shape)}")
    residual = flag(_NAME, "residual", residual)
    check_activation(_NAME, activation)
    check_univariate(_NAME, univariate, x.dtype)
    seen = len(split.inputs)
    check_dense(_NAME, x, seen, layers, context, residual=residual)
    check_norms(_NAME, x, layers, norms, residual=residual, per_block=2 if context is None else 3)
    net = dense_net(layers, residual, activation, seen, x.shape[:-1], context, norms or ())
    _check_outputs(net, univariate, split)
    return op(FlowLayerSpec(split, univariate, net.spec), backend, x, *net.tensors)  # type: ignore[return-value]


def run_layer(x: Tensor, net: Net, univariate: Map, split: Split) -> tuple[Tensor, Tensor] | None:
    """A layer whose network a reader of modules has described, where it runs on a kernel by the default backend and in
    the mode torch is in; else None: a caller with faster parts than the reference uses those."""
    spec, tensors = FlowLayerSpec(split, univariate, net.spec), (x, *net.tensors)
    if backends.default() not in ("auto", "cpu", "triton") or in_transform(tensors):
        return None
    check_univariate(_NAME, univariate, x.dtype)
    kernel = kernel_of(spec, tensors)
    if kernel is None:
        return None
    if x.dim() == 0 or x.shape[-1] != split.features:
        raise ValueError(f"{_NAME}: x must be [..., {split.features}], got {list(x.shape)}")
    if net.n_in() != len(split.inputs):
        raise ValueError(f"{_NAME}: layers[0] weight must be [out, {len(split.inputs)}], got [out, {net.n_in()}]")
    _check_outputs(net, univariate, split)
    return op.run(kernel, spec, tensors)  # type: ignore[return-value]


def kernel_of(spec: FlowLayerSpec, tensors: tuple[Tensor, ...]) -> Backend | None:
    """The backend whose kernel runs a call by the default one, where that is faster than the layer's parts; or None."""
    default, x = backends.default(), tensors[0]
    name = default if default != "auto" else "cpu" if x.is_cpu else "triton"
    if name not in ("cpu", "triton"):
        return None
    found = op.backend(name)
    if found.why_not(spec, *tensors) is not None:
        return None
    if name == "triton" and (default == "auto" and not triton.is_little(tensors)):
        return None
    return found if name == "cpu" or all(t.device == x.device for t in tensors) else None


def _check_outputs(net: Net, univariate: Map, split: Split) -> None:
    n_out, expected = net.n_out(), len(split.outputs) * univariate.n_params
    if n_out != expected:
        raise ValueError(f"{_NAME}: the last layer must return {expected} parameters, got {n_out}")


def run_autoregressive_layer(
    x: Tensor, net: Net, univariate: Map, seen: Tensor | None = None
) -> tuple[Tensor, Tensor] | None:
    """``f(x; made(x))`` and its ladj as one op, where it runs on a kernel; else None.

    ``seen``: what the network sees in place of x.
    """
    features = net.n_in()
    if seen is None:
        return run_layer(x, net, univariate, every(features))
    check_tensor(_NAME, "seen", seen, x)
    check_shape(_NAME, "seen", seen, x.shape)
    found = run_layer(torch.cat((seen, x), -1), net, univariate, every(features, apart=True))
    return None if found is None else (found[0][..., features:], found[1])


@functools.lru_cache(maxsize=256)
def every(features: int, apart: bool = False) -> Split:
    """All features, seen and mapped; or those that are mapped behind those that are seen."""
    every = tuple(range(features))
    behind = tuple(range(features, 2 * features))
    return split_of(2 * features, every, behind) if apart else split_of(features, every, every)


def __getattr__(name: str) -> object:
    if name in ("columns", "Columns"):
        new = "split_of" if name == "columns" else "Split"
        warnings.warn(f"{_NAME}: {name} is called {new} now", DeprecationWarning, stacklevel=2)
        return globals()[new]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
