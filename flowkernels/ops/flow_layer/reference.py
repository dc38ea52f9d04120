"""The definition of a flow layer in plain PyTorch: a net, a univariate map, and the features put back in place."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flowkernels.ops.net.reference import masked, network
from flowkernels.ops.net.spec import NetSpec, unpack
from flowkernels.ops.split import Split
from flowkernels.ops.univariate import Map


class FlowLayerSpec(NamedTuple):
    """A map of some features, whose parameters a net makes from others, under a split that says which."""

    split: Split
    univariate: Map
    net: NetSpec


def fwd(spec: FlowLayerSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    x, parts = unpack(spec.net, tensors)
    inputs, outputs = list(spec.split.inputs), list(spec.split.outputs)
    params = network(spec.net, x[..., inputs], masked(spec.net, parts))
    params = params.unflatten(-1, (len(outputs), spec.univariate.n_params))
    mapped, ladj = spec.univariate.reference(x[..., outputs], params)
    kept = [i for i in range(spec.split.features) if i not in set(outputs)]
    place = [0] * spec.split.features  # in Python: a compiler cannot read a tensor
    for i, at in enumerate(kept + outputs):
        place[at] = i
    return torch.cat((x[..., kept], mapped), dim=-1)[..., place], ladj
