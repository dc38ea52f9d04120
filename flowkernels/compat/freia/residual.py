"""FrEIA's i-ResNet blocks of features on `flowkernels.ops.residual_flow`, with the exact determinant."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flowkernels import ops
from flowkernels.compat.engine.patch import FastMethods, or_theirs
from flowkernels.compat.reading.dense import parts
from flowkernels.compat.reading.operands import mixed
from flowkernels.nets.reading import hooked, hooked_globally
from flowkernels.ops._checks import in_autocast
from flowkernels.ops.residual_flow.native import MOST_FEATURES

LIPSCHITZ = 0.98  # which bounds the steps of the inverse alone


def layers_of(block: Any) -> list[tuple[Tensor, Tensor]] | str:
    """Weights and biases of the network of a block, or why no kernel has it."""
    if len(block.dims_in) != 1:
        return "its input is an image"
    if block.dims_in[0] > MOST_FEATURES:
        return f"no kernel for determinants of more than {MOST_FEATURES} features"
    net = block._modules["residual"]
    found = parts(net)
    if isinstance(found, str):
        return found
    if found[1] != "elu":
        return f"the activation of its network is {found[1]}"
    if any(map(hooked, net.modules())) or hooked_globally():
        return "its network has hooks"
    return [(m.weight, m.bias) for m in found[0]]


def refusal(block: Any) -> str | None:
    found = layers_of(block)
    return found if isinstance(found, str) else None


class IResNet(FastMethods):
    """The methods of an accelerated IResNetLayer."""

    @or_theirs
    def forward(self: Any, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> Any:
        layers, z = layers_of(self), x[0]
        if isinstance(layers, str) or z.dim() != 2 or z.shape[1] != self.dims_in[0] or in_autocast(z):
            return None
        if any(t.device != z.device or mixed(z, t) for layer in layers for t in layer):
            return None
        y, ladj = ops.residual_flow(z, layers, activation="elu", lipschitz=LIPSCHITZ, inverse=bool(rev))
        return [y], ladj if jac else None
