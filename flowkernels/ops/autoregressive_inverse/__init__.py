"""The inverse of an autoregressive transform: latent → data in one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels import backends
from flowkernels._arguments import flag
from flowkernels._renamed import warn_renamed
from flowkernels.ops._routing import Op
from flowkernels.ops.affine import Affine
from flowkernels.ops.net.checks import check_net, check_shape, check_tensor
from flowkernels.ops.net.net import Net, made_net
from flowkernels.ops.net.plan import MadePlan
from flowkernels.ops.univariate import Map, check_univariate

from . import native, reference, triton
from .reference import SweepSpec

__all__ = ["autoregressive_inverse", "run_inverse"]

_NAME = "ops.autoregressive_inverse"


def _sample() -> tuple[SweepSpec, tuple[Tensor, ...]]:
    plan = MadePlan([[1, 2], [1, 1], [1, 1, 2, 2]])
    net = made_net([(torch.zeros(p.n_out, p.n_in), torch.zeros(p.n_out)) for p in plan.layers], plan, "relu")
    return SweepSpec(net.spec, Affine("exp")), (torch.zeros(1, 2), *net.tensors)


_op = Op(
    "autoregressive_inverse",
    spec_type=SweepSpec,
    reference=reference.fwd,
    table={"cpu": native.cpu, "cuda": native.cuda, "triton": triton, "reference": reference},
    sample=_sample,
)


def autoregressive_inverse(
    z: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    plan: MadePlan,
    univariate: Map,
    *,
    activation: str = "relu",
    adds: Sequence[Tensor | None] | None = None,
    gates: Sequence[Tensor | None] | None = None,
    periodic_features: Tensor | None = None,
    backend: str | None = None,
    half_turn: bool | None = None,
    zero_outside: bool | None = None,
    waves: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Solves :math:`z_d = f(x_d; \mathrm{params}_d(x_{<d}))` for x, feature by feature; ``ops.made`` is params.

    .. math:: x_d = f^{-1}(z_d; \mathrm{params}_d(x_{<d})), \qquad \mathrm{ladj} = \sum_D \log|dx_d / dz_d|

    in nats. The definition runs the network once per degree. A kernel sweeps once over the hidden units instead: each
    is computed when the features it sees are known.

    Args:
        z: ``[..., D]``; float32, float64, bfloat16 or float16.
        layers, plan, activation, adds, gates: the network, as for `flowkernels.ops.made`.
        univariate: f, e.g. `flowkernels.ops.RQS` or `flowkernels.ops.Affine`, of the direction x → z.
        periodic_features: ``[D, 5]`` of l, a, b, s and c: the network sees
            :math:`l x + a \sin(s x) + b \cos(s x) + c` in place of x (as normflows' does). This and a spline's
            ``zero_outside`` have kernels on the CPU alone.
        backend: run on this one or raise; default: the fastest that can.
        half_turn, zero_outside, waves: old ways to say ``RQS(circle_shift=)``, ``RQS(zero_outside=)`` and
            ``periodic_features``.

    Returns:
        ``x [..., D]`` in the dtype of ``z`` and ``ladj [...]`` in float32 (float64 for float64).

    Raises:
        TypeError: an input is not a floating-point tensor, or of another dtype; ``plan`` or ``univariate`` is of
            another kind.
        ValueError: a shape, the number of layers, of parameters, or the activation breaks its contract.

    Reference:
        Papamakarios, Pavlakou, Murray: Masked Autoregressive Flow for Density Estimation, NeurIPS 2017,
        arXiv:1705.07057, section 3.

    Example:
        >>> import torch
        >>> from flowkernels import ops
        >>> plan = ops.MadePlan([[1, 2, 3], [1, 2, 1, 2], [1, 1, 2, 2, 3, 3]])
        >>> layers = [(0.5 * torch.randn(p.n_out, p.n_in), torch.zeros(p.n_out)) for p in plan.layers]
        >>> z = torch.randn(5, 3)
        >>> x, ladj = ops.autoregressive_inverse(z, layers, plan, ops.Affine("exp"))
        >>> back, _ = ops.affine(x, ops.made(x, layers, plan).view(5, 3, 2), scale="exp")
        >>> torch.allclose(back, z, atol=1e-5)
        True
    """
    if waves is not None:
        warn_renamed("ops.autoregressive_inverse(waves=)", "periodic_features")
        periodic_features = waves
    check_net(_NAME, z, layers, plan, activation, adds, gates, "z")
    if periodic_features is not None:
        check_tensor(_NAME, "periodic_features", periodic_features, z, "z")
        check_shape(_NAME, "periodic_features", periodic_features, (plan.features, 5))
    net = made_net(layers, plan, activation, adds, gates).with_periodic(periodic_features)
    for old, new, given in (("half_turn", "circle_shift", half_turn), ("zero_outside", "zero_outside", zero_outside)):
        if given is not None:
            univariate = _with_flag(univariate, old, new, given)
    return _op(_spec(z, net, univariate), backend, z, *net.tensors)  # type: ignore[return-value]


def _with_flag(univariate: Any, old: str, new: str, given: object) -> Any:
    """The map with a flag that was an argument of this op."""
    warn_renamed(f"ops.autoregressive_inverse({old}=)", f"RQS({new}=)")
    wanted = flag(_NAME, old, given)
    if wanted and new not in {f.name for f in dataclasses.fields(univariate)}:
        raise TypeError(f"{_NAME}: univariate must be a spline where {old} is, got {type(univariate).__name__}")
    return dataclasses.replace(univariate, **{new: True}) if wanted else univariate


def run_inverse(
    z: Tensor,
    net: Net,
    univariate: Map,
    or_none: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """The inverse of a layer whose network a reader of modules has described.

    ``or_none``: None where no kernel runs it, for a caller with faster parts than the reference.
    """
    spec, tensors = _spec(z, net, univariate), (z, *net.tensors)
    if or_none and backends.pick(_op.name, None, spec, tensors) is _op.backend("reference"):
        return None
    return _op(spec, None, *tensors)  # type: ignore[return-value]


def _spec(z: Tensor, net: Net, univariate: Map) -> SweepSpec:
    """The settings of a call, checked."""
    check_univariate(_NAME, univariate, z.dtype)
    if univariate.inverse:
        raise ValueError(f"{_NAME}: univariate must be of the direction x → z, got inverse=True")
    spec = SweepSpec(net.spec, univariate)
    if spec.plan().params_per_feature != univariate.n_params:
        expected, given = univariate.n_params, spec.plan().params_per_feature
        raise ValueError(f"{_NAME}: plan must have {expected} outputs per feature for this univariate, got {given}")
    return spec
