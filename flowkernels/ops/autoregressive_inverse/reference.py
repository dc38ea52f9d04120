"""The definition of the autoregressive inverse in plain PyTorch: one pass of the network per degree."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flowkernels.ops.affine import reference as affine
from flowkernels.ops.affine.spec import AffineSpec
from flowkernels.ops.net.plan import MadePlan
from flowkernels.ops.net.reference import masked, network
from flowkernels.ops.net.spec import NetSpec, unpack
from flowkernels.ops.rqs import reference as rqs
from flowkernels.ops.rqs.spec import RqsSpec
from flowkernels.ops.rqs.turn import half_turn

from .periodic import periodic_features, zero_outside

IS_SLOW = False


class SweepSpec(NamedTuple):
    net: NetSpec  # whose plan is a MadePlan
    univariate: RqsSpec | AffineSpec  # of the direction x → z
    half_turn: bool = False  # of what the inverse of a spline returns
    zero_outside: bool = False  # x is 0 where z is outside of a spline's box

    @property
    def plan(self) -> MadePlan:
        assert isinstance(self.net.plan, MadePlan)
        return self.net.plan

    @property
    def only_on_cpu(self) -> str | None:
        """What of these settings no GPU's kernel knows, or None."""
        linear = isinstance(self.univariate, RqsSpec) and self.univariate.splits
        wanted = {
            "gates": self.net.gates, "periodic features": self.net.periodic, "zero_outside": self.zero_outside,
            'splines of order "linear"': linear,
        }  # fmt: skip
        return next((name for name, given in wanted.items() if given), None)


def why_not(spec: SweepSpec, *tensors: Tensor) -> str | None:
    return None


def _solve(spec: SweepSpec, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    univariate = spec.univariate._replace(inverse=True)
    if isinstance(univariate, AffineSpec):
        return affine.fwd(univariate, z, params)
    x, ladj = rqs.fwd(univariate, z, params)
    if spec.zero_outside:
        x = zero_outside(univariate, z, x)
    return half_turn(x, univariate) if spec.half_turn else x, ladj


def fwd(spec: SweepSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """z, then the network's tensors → x [..., D] and ladj [...]."""
    z, parts = unpack(spec.net, tensors)
    plan, parts = spec.plan, masked(spec.net, parts)
    x = torch.zeros_like(z)
    ladj = z.new_zeros(z.shape[:-1], dtype=torch.promote_types(z.dtype, torch.float32))
    for group in plan.groups:
        seen = x if parts.periodic is None else periodic_features(x, parts.periodic)
        params = network(spec.net, seen, parts).unflatten(-1, (plan.features, plan.params_per_feature))
        at = torch.tensor(group, device=z.device)
        values, part = _solve(spec, z.index_select(-1, at), params.index_select(-2, at))
        x = x.index_copy(-1, at, values.to(x.dtype))  # not in place: the pass before needs its own x in backward
        ladj = ladj + part
    return x, ladj
