"""A whole flow in one call: layers and reorderings of features, and the sum of the log-determinants."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from flowkernels._arguments import is_flat
from flowkernels.ops._routing import Op
from flowkernels.ops.flow_layer.reference import FlowLayerSpec
from flowkernels.ops.net.checks import check_tensor
from flowkernels.ops.net.net import dense_net
from flowkernels.ops.rqs import RQS
from flowkernels.ops.split import split_of

from . import native, reference
from .checks import checked
from .spec import NET_STEPS, FlowSpec, Layer, Order, Step, Sweep
from .steps import LU, Elementwise, Normal, NormalSpec, Scale

__all__ = ["LU", "Elementwise", "FlowSpec", "Layer", "Normal", "Order", "Scale", "Sweep", "flow", "op", "spec_of"]

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
    saves=native.saves,
    missing=dict.fromkeys(("cuda", "triton"), "its callers run layer after layer: a batch's products fill a GPU"),
    sample=_sample,
)


def flow(
    x: Tensor,
    layers: Sequence[Layer | Sweep | Order | LU | Scale | Elementwise | Normal],
    *,
    memory: str = "fast",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Layers of a flow, one after another on the same rows, in one call and one node of autograd.

    .. math:: x_0 = x, \qquad x_i, \mathrm{ladj}_i = f_i(x_{i-1}), \qquad y = x_n, \qquad
        \mathrm{ladj} = \sum_i \mathrm{ladj}_i

    with every :math:`f_i` a layer as `ops.flow_layer` has them, the inverse of an autoregressive one as
    `ops.autoregressive_inverse` solves it, a reordering of the features, a linear map by its LU factors, a scale and
    shift of every feature, or a map of features by parameters of their own; at the end there may be the base, whose
    :math:`y = x` and whose ladj is :math:`\log \mathcal{N}(x; 0, 1)`. Kept for backward are what enters each layer and
    hidden activations, or with ``memory="flat"`` nothing but ``x``; parameters of maps never reach memory. The inverse
    of a list is the list from its end: couplings with maps ``univariate.inverted()``, a `Sweep` for an autoregressive
    layer, inverse orders, and the others with ``inverse=True``.

    Args:
        x: ``[..., D]``; float32 or float64 for the kernel, the reference takes 16 bits too.
        layers: each a `Layer` (map, net, split), a `Sweep` (map, net), an `Order`, an `LU`, a `Scale` or an
            `Elementwise`, and at the end perhaps a `Normal`, all of ``flowkernels.ops.flow``, at least one of them a
            `Layer` or a `Sweep`. A net is what ``flowkernels.ops.net.net.dense_net`` and ``made_net`` return, of the
            dtype of ``x``.
        memory: ``"flat"``: backward goes forward once more with each tile of rows, from ``x``: bytes do not grow with
            the number of layers, for a third of a training step's time; the same numbers as ``"fast"``.
        backend: run on this one or raise; default: the fastest that can.

    Returns:
        ``y [..., D]`` and ``ladj [...]``, in nats.

    Raises:
        TypeError: an input is not a floating-point tensor, or of another dtype than ``x``; a layer or a part of one is
            of another kind.
        ValueError: there is no layer; a base that is not the last; shapes that do not fit each other; an order that is
            no permutation.

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
    flat = is_flat(_NAME, memory)
    given = list(layers) if isinstance(layers, Sequence) else [layers]
    parts = [checked(i, step, x) for i, step in enumerate(given)]
    steps, tensors = [step for step, _ in parts], [t for _, part in parts for t in part]
    if not any(isinstance(step, NET_STEPS) for step in steps):
        raise ValueError(f"{_NAME}: layers must have at least one Layer, got {len(given)} other steps")
    bases = [i for i, step in enumerate(steps[:-1]) if isinstance(step, NormalSpec)]
    if bases:
        raise ValueError(f"{_NAME}: a Normal must be the last of layers, got one at {bases[0]} of {len(steps)}")
    spec = spec_of(x.shape[-1], tuple(steps), flat)
    if torch.compiler.is_compiling() and backend in (None, "auto", "reference"):
        return reference.fwd(spec, x, *tensors)  # a compiler can trace no words of a spec that it has made itself
    return op(spec, backend, x, *tensors)  # type: ignore[return-value]


@functools.lru_cache(maxsize=256)
def _kept(features: int, steps: tuple[Step, ...], flat: bool) -> FlowSpec:
    return FlowSpec(features, steps, flat)


def spec_of(features: int, steps: tuple[Step, ...], flat: bool = False) -> FlowSpec:
    """The `FlowSpec` of these steps; the same one for equal ones, so that what hangs on it is made once."""
    if torch.compiler.is_compiling():  # which could not trace a cache
        return FlowSpec(features, steps, flat)
    return _kept(features, steps, flat)
