"""The inverse of an autoregressive transform with a recurrent conditioner: latent → data in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkernels.ops._routing import Op
from flowkernels.ops.affine import Affine
from flowkernels.ops.net.checks import check_broadcasts, check_shape, check_tensor
from flowkernels.ops.univariate import Map, check_univariate

from . import native, reference
from .reference import RecurrentSpec

__all__ = ["recurrent_inverse"]

_NAME = "ops.recurrent_inverse"

_op = Op(
    "recurrent_inverse",
    spec_type=RecurrentSpec,
    reference=reference.fwd,
    table={"cpu": native, "reference": reference},
    sample=lambda: (
        RecurrentSpec(Affine("exp")),
        tuple(torch.zeros(s) for s in ((1, 2), (1,), (3,), (3,), (3, 1), (3,), (2, 1), (2,))),
    ),
)


def recurrent_inverse(
    z: Tensor,
    state: Tensor,
    gates: Tensor,
    value: Tensor,
    cell: tuple[Tensor, Tensor],
    last: tuple[Tensor, Tensor],
    univariate: Map,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Solves :math:`z_i = f(x_i; W s_i + b)` for x, feature by feature, where a GRU reads each feature that is found.

    .. math:: x_i = f^{-1}(z_i; W s_i + b), \quad s_{i+1} = \mathrm{GRU}(x_i, s_i), \quad
        \mathrm{ladj} = \sum_D \log|dx_i / dz_i|

    in nats. The GRU is torch's: with :math:`a = g + v x_i` of the input and :math:`k = U s_i + u` of the state, in
    three parts each, :math:`r = \sigma(a_1 + k_1)`, :math:`w = \sigma(a_2 + k_2)`, :math:`n = \tanh(a_3 + r k_3)` and
    :math:`s_{i+1} = (1 - w)\,n + w\,s_i`. The kernel takes a tile of rows through all steps in cache. There is none for
    the way back: gradients are the reference's.

    Args:
        z: ``[..., D]``, D from 1 on; float32, float64, bfloat16 or float16.
        state: :math:`s_1`, broadcasting to ``[..., H]``.
        gates: g, the input's bias and whatever else the GRU reads in every step, broadcasting to ``[..., 3H]``.
        value: v, ``[3H]``.
        cell: U ``[3H, H]`` and u ``[3H]``.
        last: W ``[P, H]`` and b ``[P]``.
        univariate: f, e.g. `flowkernels.ops.RQS` or `flowkernels.ops.Affine`, of the direction x → z.
        backend: run on this one or raise; default: the fastest that can. The kernel is the CPU's.

    Returns:
        ``x [..., D]`` in the dtype of ``z`` and ``ladj [...]`` in float32 (float64 for float64).

    Raises:
        TypeError: an input is not a floating-point tensor, or of another dtype; ``univariate`` is of another kind.
        ValueError: a shape breaks its contract.

    Reference:
        Papamakarios, Nalisnick, Rezende, Mohamed, Lakshminarayanan: Normalizing Flows for Probabilistic Modeling and
        Inference, JMLR 2021, arXiv:1912.02762, section 3.1; Cho et al., arXiv:1406.1078, of the GRU.

    Example:
        >>> import torch
        >>> from flowkernels import ops
        >>> gru, last, state = torch.nn.GRU(1, 4), torch.nn.Linear(4, 2), torch.zeros(4)
        >>> cell, of_input = (gru.weight_hh_l0, gru.bias_hh_l0), (gru.bias_ih_l0, gru.weight_ih_l0[:, 0])
        >>> z = torch.randn(5, 3)
        >>> x, _ = ops.recurrent_inverse(z, state, *of_input, cell, (last.weight, last.bias), ops.Affine("exp"))
        >>> read, _ = gru(x[:, :-1].t().unsqueeze(-1))  # by s_2, s_3
        >>> params = last(torch.cat((state.expand(1, 5, 4), read))).transpose(0, 1)
        >>> torch.allclose(ops.affine(x, params, scale="exp")[0], z, atol=1e-5)
        True
    """
    check_tensor(_NAME, "z", z)
    check_univariate(_NAME, univariate, z.dtype)
    if univariate.inverse:
        raise ValueError(f"{_NAME}: univariate must be of the direction x → z, got inverse=True")
    if z.shape[-1] == 0:
        raise ValueError(f"{_NAME}: z must be [..., D] with D from 1 on, got {list(z.shape)}")
    check_tensor(_NAME, "state", state, z, "z")
    if state.dim() == 0 or state.shape[-1] == 0:
        raise ValueError(f"{_NAME}: state must be [..., H] with H from 1 on, got {list(state.shape)}")
    H, lead = state.shape[-1], z.shape[:-1]
    check_tensor(_NAME, "gates", gates, z, "z")
    for name, t, size in (("state", state, H), ("gates", gates, 3 * H)):
        check_broadcasts(_NAME, name, t, (*lead, size))
    check_tensor(_NAME, "value", value, z, "z")
    check_shape(_NAME, "value", value, (3 * H,))
    layers = (*_pair("cell", cell, z, 3 * H, H), *_pair("last", last, z, univariate.n_params, H))
    return _op(RecurrentSpec(univariate), backend, z, state, gates, value, *layers)  # type: ignore[return-value]


def _pair(name: str, pair: Any, z: Tensor, n_out: int, n_in: int) -> tuple[Tensor, Tensor]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"{_NAME}: {name} must be (weight, bias), got {pair!r:.60}")
    for what, t, shape in (("weight", pair[0], (n_out, n_in)), ("bias", pair[1], (n_out,))):
        check_tensor(_NAME, f"{name} {what}", t, z, "z")
        check_shape(_NAME, f"{name} {what}", t, shape)
    return pair[0], pair[1]
