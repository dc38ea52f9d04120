"""Actnorm as a differentiable op."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkernels.ops import _channels
from flowkernels.ops._routing import Op

from . import native, reference, triton
from .reference import ActNormSpec


def _fake(spec: ActNormSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    return _channels.fake(tensors[0], spec.channel_dim, tensors)


def _sample() -> tuple[ActNormSpec, tuple[Tensor, ...]]:
    return ActNormSpec(-1, False), (torch.zeros(1, 1), torch.zeros(1), torch.zeros(1))


op = Op(
    "actnorm",
    spec_type=ActNormSpec,
    reference=reference.fwd,
    table={"cpu": native.cpu, "cuda": native.cuda, "triton": triton, "reference": reference},
    inputs=("x", "log_scale", "shift"),
    n_outputs=2,
    fake=_fake,
    sample=_sample,
)
