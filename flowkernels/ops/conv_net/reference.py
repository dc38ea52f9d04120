"""The definition in plain PyTorch: any dtype, any device, differentiable any number of times."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from flowkernels.ops.net.activations import FUNCTIONS

from .spec import ConvSpec, layers

IS_SLOW = False  # its time is in the products; `backends.pick` does not warn


def fwd(spec: ConvSpec, *tensors: Tensor) -> tuple[Tensor]:
    act, h = FUNCTIONS[spec.activation], tensors[0]
    for i, (weight, bias) in enumerate(layers(tensors)):
        # Dense: backward through weights that are not, torch writes to a gradient that lies as they do, and refuses.
        h = F.conv2d(act(h) if i else h, weight.contiguous(), bias, padding=weight.shape[-1] // 2)
    return (h.contiguous(),)
