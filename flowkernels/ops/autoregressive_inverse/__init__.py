"""The inverse of an autoregressive transform: latent → data in one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flowkernels import backends
from flowkernels._renamed import warn_renamed
from flowkernels.ops._checks import check_flag
from flowkernels.ops._routing import Op
from flowkernels.ops.made.checks import check_net, check_shape, check_tensor
from flowkernels.ops.made.plan import MadePlan
from flowkernels.ops.univariate import Map, check_univariate

from . import native, reference, triton
from .reference import SweepSpec

__all__ = ["autoregressive_inverse", "try_autoregressive_inverse"]

_NAME = "ops.autoregressive_inverse"
_op = Op(
    "autoregressive_inverse",
    spec_type=SweepSpec,
    reference=reference.fwd,
    table={"cpu": native.cpu, "cuda": native.cuda, "triton": triton, "reference": reference},
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
    half_turn: bool | None = None,
    zero_outside: bool | None = None,
    waves: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Solves :math:`z_d = f(x_d; \mathrm{params}_d(x_{<d}))` for x, feature by feature; ``ops.made`` is params.

    .. math:: x_d = f^{-1}(z_d; \mathrm{params}_d(x_{<d})), \qquad \mathrm{ladj} = \sum_D \log|dx_d / dz_d|

    in nats. The definition runs the network once per degree. A kernel sweeps once over the hidden units instead: each
    is computed when the features it sees are known.

    Args:
        z: ``[..., D]``; float32, float64, bfloat16 or float16.
        layers, plan, activation, adds, gates: the network, as for `flowkernels.ops.made`.
        univariate: f, e.g. `flowkernels.ops.RQS` or `flowkernels.ops.Affine`, of the direction x → z.
        half_turn, zero_outside: old ways to say ``RQS(circle_shift=)`` and ``RQS(zero_outside=)``.
        waves: ``[D, 5]`` of l, a, b, s and c: the network sees :math:`l x + a \sin(s x) + b \cos(s x) + c` in place of
            x (normflows' periodic features). This and a spline's ``zero_outside`` have kernels on the
            CPU alone.
        backend: run on this one or raise; default: the fastest that can.

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
    spec, tensors = _prepare(z, layers, plan, univariate, activation, adds, gates, half_turn, zero_outside, waves)
    return _op(spec, backend, *tensors)  # type: ignore[return-value]


def try_autoregressive_inverse(
    z: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    plan: MadePlan,
    univariate: Map,
    **settings: Any,
) -> tuple[Tensor, Tensor] | None:
    """`autoregressive_inverse` where it runs on a kernel, else None: a caller with faster parts uses those."""
    spec, tensors = _prepare(z, layers, plan, univariate, **settings)
    if backends.pick(_op.name, None, spec, tensors) is reference:
        return None
    return _op(spec, None, *tensors)  # type: ignore[return-value]


def _with_flag(univariate: Any, old: str, new: str, given: object) -> Any:
    """The map with a flag that was an argument of this op."""
    warn_renamed(f"ops.autoregressive_inverse({old}=)", f"RQS({new}=)")
    flag = check_flag(_NAME, old, given)
    if flag and new not in {f.name for f in dataclasses.fields(univariate)}:
        raise TypeError(f"{_NAME}: univariate must be a spline where {old} is, got {type(univariate).__name__}")
    return dataclasses.replace(univariate, **{new: True}) if flag else univariate


def _prepare(
    z: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    plan: MadePlan,
    univariate: Map,
    activation: str = "relu",
    adds: Sequence[Tensor | None] | None = None,
    gates: Sequence[Tensor | None] | None = None,
    half_turn: bool | None = None,
    zero_outside: bool | None = None,
    waves: Tensor | None = None,
) -> tuple[SweepSpec, tuple[Tensor, ...]]:
    """The settings and tensors of a call."""
    flags = check_net(_NAME, z, layers, plan, activation, adds, gates, "z")
    check_univariate(_NAME, univariate, z.dtype)
    for old, new, given in (("half_turn", "circle_shift", half_turn), ("zero_outside", "zero_outside", zero_outside)):
        if given is not None:
            univariate = _with_flag(univariate, old, new, given)
    if waves is not None:
        check_tensor(_NAME, "waves", waves, z)
        check_shape(_NAME, "waves", waves, (plan.features, 5))
    if univariate.inverse:
        raise ValueError(f"{_NAME}: univariate must be of the direction x → z, got inverse=True")
    if plan.params_per_feature != univariate.n_params:
        expected, given = univariate.n_params, plan.params_per_feature
        raise ValueError(f"{_NAME}: plan must have {expected} outputs per feature for this univariate, got {given}")
    flat = [t for layer in layers for t in layer]
    terms = (t for t in (*(adds or ()), *(gates or ()), waves) if t is not None)
    spec = SweepSpec(plan, activation, flags[0], univariate, flags[1], waves is not None)
    return spec, (z, *flat, *terms)
