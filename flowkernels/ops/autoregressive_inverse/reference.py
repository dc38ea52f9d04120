"""The definition of the autoregressive inverse in plain PyTorch: one pass of the network per degree."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flowkernels.ops.net.plan import MadePlan
from flowkernels.ops.net.reference import masked, network
from flowkernels.ops.net.spec import NetSpec, unpack
from flowkernels.ops.univariate import Map

from .periodic import periodic_features

IS_SLOW = False


class SweepSpec(NamedTuple):
    net: NetSpec  # whose plan is a MadePlan
    univariate: Map  # of the direction x → z

    def plan(self) -> MadePlan:
        assert isinstance(self.net.plan, MadePlan)
        return self.net.plan

    def only_on_cpu(self) -> str | None:
        """What of the network no GPU's kernel knows, or None."""
        return "gates" if self.net.gates else "periodic features" if self.net.periodic else None


def fwd(spec: SweepSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """z, then the network's tensors → x [..., D] and ladj [...]."""
    z, parts = unpack(spec.net, tensors)
    plan, parts, inverse = spec.plan(), masked(spec.net, parts), spec.univariate.inverted()
    x = torch.zeros_like(z)
    ladj = z.new_zeros(z.shape[:-1], dtype=torch.promote_types(z.dtype, torch.float32))
    for group in plan.groups:
        seen = x if parts.periodic is None else periodic_features(x, parts.periodic)
        params = network(spec.net, seen, parts).unflatten(-1, (plan.features, plan.params_per_feature))
        at = torch.tensor(group, device=z.device)
        values, part = inverse.reference(z.index_select(-1, at), params.index_select(-2, at))
        x = x.index_copy(-1, at, values.to(x.dtype))  # not in place: the pass before needs its own x in backward
        ladj = ladj + part
    return x, ladj
