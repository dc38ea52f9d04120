"""A whole MADE on Triton: a chain of masked layers whose hidden units stay in the order of their degrees.

Between layers nothing is gathered: weights and biases are put in order instead, once a call. Each layer is
`ops.masked_linear`, which differentiates itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowkernels.ops._kept import kept

from . import triton as masked_linear
from .activations import FUNCTIONS
from .plan import LayerPlan, MadePlan, layer_plan
from .spec import NetSpec, unpack

IS_SLOW = False
IS_COMPOSED = True


def why_not(spec: NetSpec, *tensors: Tensor) -> str | None:
    return "no kernel for gates" if spec.gates else masked_linear.why_not(spec, *tensors)


def _in_order(plan: MadePlan) -> tuple[LayerPlan, ...]:
    """The plans of the layers between hidden units in order; x and y stay as they are."""
    degrees = plan._degrees  # not the tensors of its layers, which a compiler cannot read
    rows = [degrees[0], *(sorted(row) for row in degrees[1:-1]), degrees[-1]]
    return tuple(layer_plan(rows[i], rows[i + 1], i == len(rows) - 2) for i in range(len(rows) - 1))


_kept_in_order = kept(maxsize=256)(_in_order)


def fwd(spec: NetSpec, *tensors: Tensor) -> tuple[Tensor]:
    from . import masked_linear as masked_layer

    x, parts = unpack(spec, tensors)
    assert isinstance(spec.plan, MadePlan)
    plans = (_in_order if torch.compiler.is_compiling() else _kept_in_order)(spec.plan)
    last, adds = spec.n - 1, parts.adds

    def by_degree(t: Tensor, i: int, dim: int) -> Tensor:
        """What has a layer's outputs (dim 0, -1) or inputs (dim 1) along `dim`, in order; y and x are not to be."""
        stairs = masked_linear.stairs(spec.masks()[i], x.device)
        order = stairs.in_order if dim == 1 else stairs.out_order
        return t if i == (0 if dim == 1 else last) or order is None else t.index_select(dim, order)

    def layer(i: int, h: Tensor, activation: str = "identity", stream: Tensor | None = None) -> Tensor:
        weight, bias, add = parts.weights[i], parts.biases[i], adds[i]
        add = None if add is None else by_degree(add, i, -1)
        if stream is not None:
            add = stream if add is None else stream + add
        weight = by_degree(by_degree(weight, i, 0), i, 1)
        return masked_layer(
            h, weight, by_degree(bias, i, 0), plans[i], activation=activation, residual=add, backend="triton"
        )

    if not spec.residual:
        h = x
        for i in range(last + 1):
            h = layer(i, h, spec.activation if i < last else "identity")
        return (h,)
    h, activate = layer(0, x), FUNCTIONS[spec.activation]
    for i in range(1, last, 2):
        h = layer(i + 1, layer(i, activate(h), spec.activation), stream=h)
    return (layer(last, h),)
