"""The definition of the autoregressive inverse in plain PyTorch: one pass of the network per degree."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flowkernels.ops.made.plan import MadePlan
from flowkernels.ops.made.reference import masked, network, unpack
from flowkernels.ops.univariate import Map

from .seen import seen

IS_SLOW = False


class SweepSpec(NamedTuple):
    plan: MadePlan
    activation: str
    adds: tuple[bool, ...]  # which layers have something added, one flag per layer
    univariate: Map  # of the direction x → z
    gates: tuple[bool, ...] = ()  # which layers have a gate; empty: none
    waves: bool = False  # the network sees `seen` of x

    @property
    def only_on_cpu(self) -> str | None:
        """What of the network no GPU's kernel knows, or None."""
        return "gates" if self.gates else "waves" if self.waves else None


def why_not(spec: SweepSpec, *tensors: Tensor) -> str | None:
    return None


def fwd(spec: SweepSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """z, then (weight, bias) per layer, what is added, the gates, the waves → x [..., D] and ladj [...]."""
    tensors, waves = (tensors[:-1], tensors[-1]) if spec.waves else (tensors, None)
    z, layers, adds, gates = unpack(spec.adds, tensors, spec.gates)
    plan, layers = spec.plan, masked(spec.plan, layers)
    inverse = spec.univariate.inverted()
    x = torch.zeros_like(z)
    ladj = z.new_zeros(z.shape[:-1], dtype=torch.promote_types(z.dtype, torch.float32))
    for group in plan.groups:
        params = network(plan, spec.activation, x if waves is None else seen(x, waves), layers, adds, gates)
        params = params.unflatten(-1, (plan.features, plan.params_per_feature))
        at = torch.tensor(group, device=z.device)
        values, part = inverse.reference(z.index_select(-1, at), params.index_select(-2, at))
        x = x.index_copy(-1, at, values.to(x.dtype))  # not in place: the pass before needs its own x in backward
        ladj = ladj + part
    return x, ladj
