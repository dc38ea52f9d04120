"""A whole flow in one call: layers and reorderings of features, and the sum of the log-determinants."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from flowkernels.ops._routing import Op
from flowkernels.ops.flow_layer.reference import FlowLayerSpec
from flowkernels.ops.net.checks import check_broadcasts, check_shape, check_tensor
from flowkernels.ops.net.net import Net, dense_net
from flowkernels.ops.net.spec import unpack
from flowkernels.ops.rqs import RQS
from flowkernels.ops.split import Split, split_of
from flowkernels.ops.univariate import check_univariate

from . import native, reference
from .spec import FlowSpec, Layer, Order, Step

__all__ = ["FlowSpec", "Layer", "Order", "flow", "op", "spec_of"]

_NAME = "ops.flow"


def _sample() -> tuple[FlowSpec, tuple[Tensor, ...]]:
    layers = [(torch.zeros(n, k), torch.zeros(n)) for n, k in ((2, 1), (4, 2))]
    net = dense_net(layers, False, "relu", 1, (1,), None)
    spec = FlowSpec(2, [FlowLayerSpec(split_of(2, (0,), (1,)), RQS(bins=1, tails=None), net.spec), Order((1, 0))])
    return spec, (torch.zeros(1, 2), *net.tensors)


def _fake(spec: FlowSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    x = tensors[0]
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1])


op = Op(
    "flow",
    spec_type=FlowSpec,
    reference=reference.fwd,
    table={"cpu": native, "reference": reference},
    inputs=("tensors[]",),
    n_outputs=2,
    fake=_fake,
    missing=dict.fromkeys(("cuda", "triton"), "its callers run layer after layer: a batch's products fill a GPU"),
    sample=_sample,
)


def flow(x: Tensor, layers: Sequence[Layer | Order], *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    r"""Layers of a flow, one after another on the same rows, in one call and one node of autograd.

    .. math:: x_0 = x, \qquad x_i, \mathrm{ladj}_i = f_i(x_{i-1}), \qquad y = x_n, \qquad
        \mathrm{ladj} = \sum_i \mathrm{ladj}_i

    with every :math:`f_i` a layer as `ops.flow_layer` has them, or a reordering of the features. Kept for backward are
    what enters each layer and hidden activations; parameters of maps never reach memory. The inverse of couplings is
    the list from its end, of maps ``univariate.inverted()`` and inverse orders.

    Args:
        x: ``[..., D]``; float32 or float64 for the kernel, the reference takes 16 bits too.
        layers: each a `Layer` (map, net, split), or an `Order`, at least one of them a layer. A net is what
            ``flowkernels.ops.net.net.dense_net`` and ``made_net`` return, of the dtype of ``x``.
        backend: run on this one or raise; default: the fastest that can.

    Returns:
        ``y [..., D]`` and ``ladj [...]``, in nats.

    Raises:
        TypeError: an input is not a floating-point tensor, or of another dtype than ``x``; a layer or a part of one is
            of another kind.
        ValueError: there is no layer; shapes that do not fit each other; an order that is no permutation.

    Reference:
        Papamakarios et al.: Normalizing Flows for Probabilistic Modeling and Inference, JMLR 2021, arXiv:1912.02762.

    Example:
        >>> import torch
        >>> from flowkernels.ops import Affine, flow
        >>> from flowkernels.ops.flow import Layer, Order
        >>> from flowkernels.ops.flow_layer import split_of
        >>> from flowkernels.ops.net.net import dense_net
        >>> def layer():
        ...     weights = [(torch.randn(s), torch.randn(s[0])) for s in [(16, 2), (4, 16)]]
        ...     net = dense_net(weights, False, "relu", 2, (5,), None)
        ...     return Layer(Affine("tanh"), net, split_of(4, (0, 1), (2, 3)))
        >>> y, ladj = flow(torch.randn(5, 4), [layer(), Order((2, 3, 0, 1)), layer()])
        >>> y.shape, ladj.shape
        (torch.Size([5, 4]), torch.Size([5]))
    """
    check_tensor(_NAME, "x", x)
    given = list(layers) if isinstance(layers, Sequence) else [layers]
    steps = [_checked(i, step, x) for i, step in enumerate(given)]
    tensors = [t for step in given if isinstance(step, Layer) for t in step.net.tensors]
    if not any(isinstance(step, FlowLayerSpec) for step in steps):
        raise ValueError(f"{_NAME}: layers must have at least one Layer, got {len(given)} other steps")
    spec = spec_of(x.shape[-1], tuple(steps))
    if torch.compiler.is_compiling() and backend in (None, "auto", "reference"):
        return reference.fwd(spec, x, *tensors)  # a compiler can trace no words of a spec that it has made itself
    return op(spec, backend, x, *tensors)  # type: ignore[return-value]


@functools.lru_cache(maxsize=256)
def _kept(features: int, steps: tuple[Step, ...]) -> FlowSpec:
    return FlowSpec(features, steps)


def spec_of(features: int, steps: tuple[Step, ...]) -> FlowSpec:
    """The `FlowSpec` of these steps; the same one for equal ones, so that what hangs on it is made once."""
    if torch.compiler.is_compiling():  # which could not trace a cache
        return FlowSpec(features, steps)
    return _kept(features, steps)


def _checked(i: int, step: Layer | Order, x: Tensor) -> Step:
    """The spec of a step; raises where it does not fit x, or its tensors each other."""
    name, features = f"layers[{i}]", x.shape[-1]
    if isinstance(step, Order):
        order = step.order
        numbers = isinstance(order, (list, tuple)) and all(type(i) is int for i in order)
        if not numbers or sorted(order) != list(range(features)):
            raise ValueError(f"{_NAME}: {name} must be an order of {features} features, got {order!r:.60}")
        return Order(tuple(order))
    if not isinstance(step, Layer):
        raise TypeError(f"{_NAME}: {name} must be a Layer or an Order, got {type(step).__name__}")
    univariate, net, split = step
    if not isinstance(net, Net):
        raise TypeError(f"{_NAME}: {name} net must be a Net, got {type(net).__name__}")
    if not isinstance(split, Split):
        raise TypeError(f"{_NAME}: {name} split must be a Split, got {type(split).__name__}")
    check_univariate(_NAME, univariate, x.dtype)
    if split.features != features:
        raise ValueError(f"{_NAME}: {name} split must be of {features} features, as x, got {split.features}")
    _check_net(name, net, len(split.inputs), len(split.outputs) * univariate.n_params, x)
    return FlowLayerSpec(split, univariate, net.spec)


def _check_net(name: str, net: Net, n_in: int, n_out: int, x: Tensor) -> None:
    spec = net.spec
    if spec.periodic:
        raise ValueError(f"{_NAME}: {name} net must see x itself, got one of periodic features")
    _, parts = unpack(spec, (x, *net.tensors))
    before = n_in
    for j, (weight, bias) in enumerate(zip(parts.weights, parts.biases, strict=True)):
        where = f"{name} net layer {j}"
        check_tensor(_NAME, f"{where} weight", weight, x)
        out = n_out if j == spec.n - 1 else parts.weights[0].shape[0] if spec.closes_block(j) else None
        shape = list(weight.shape)
        if len(shape) != 2 or shape[1] != before or out not in (None, shape[0]):
            raise ValueError(f"{_NAME}: {where} weight must be [{out or 'out'}, {before}], got {shape}")
        mask = spec.masks()[j] if spec.plan is not None else None
        if mask is not None and (mask.n_out, mask.n_in) != tuple(shape):
            raise ValueError(f"{_NAME}: {where} weight must be [{mask.n_out}, {mask.n_in}], got {shape}")
        before = shape[0]
        if bias is not None:
            check_tensor(_NAME, f"{where} bias", bias, x)
            check_shape(_NAME, f"{where} bias", bias, (before,))
        for what, term in (("term", parts.adds[j]), ("gate", parts.gates[j])):
            if term is not None:
                check_tensor(_NAME, f"{where} {what}", term, x)
                check_broadcasts(_NAME, f"{where} {what}", term, (*x.shape[:-1], before))
