"""Planar, radial and Sylvester maps: chains of them, and their exact inverses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkernels._arguments import choice, flag, is_number
from flowkernels.ops._checks import expands, in_autocast
from flowkernels.ops._routing import Op
from flowkernels.ops.net.checks import check_sequence, check_tensor

from . import native, reference, triton
from .reference import ACTIVATIONS, KINDS, POSITIVE

__all__ = ["low_rank"]

_NAME = "ops.low_rank"
# The tensors of a kind: name, and sizes behind leading dims; n layers.
_PARTS = {
    "planar": (("u", "n, D"), ("w", "n, D"), ("b", "n")),
    "radial": (("center", "n, D"), ("alpha", "n"), ("beta", "n")),
    "sylvester": (("q", "n, D, M"), ("r", "n, M, M"), ("s", "n, M, M"), ("b", "n, M")),
}


class LowRankSpec(NamedTuple):
    """What it is apart from its tensors; of a Sylvester map q has been made orthonormal."""

    kind: str
    activation: str
    negative_slope: float
    alpha: str  # of radial maps: what makes it positive
    inverse: bool


def _fake(spec: LowRankSpec, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    x = tensors[0]
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=wide)


_op = Op(
    "low_rank",
    spec_type=LowRankSpec,
    reference=reference.fwd,
    table={"cpu": native, "triton": triton, "reference": reference},
    inputs=("tensors[]",),
    n_outputs=2,
    fake=_fake,
    sample=lambda: (
        LowRankSpec("planar", "tanh", 0.2, "softplus", False),
        (torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1)),
    ),
)


def low_rank(
    x: Tensor,
    params: Sequence[Tensor],
    *,
    kind: str,
    activation: str = "tanh",
    negative_slope: float = 0.2,
    alpha: str = "softplus",
    orthogonal: str | None = "qr",
    inverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Runs a chain of n planar, radial or Sylvester layers: maps that differ from the identity by a low rank.

    .. math:: \text{planar: } y = x + \hat u\, h(w^\top x + b), \qquad
        \hat u = u + \frac{\mathrm{softplus}(w^\top u) - 1 - w^\top u}{w^\top w}\, w

    .. math:: \text{radial: } y = x + \frac{\beta}{\alpha + r}\,(x - c), \qquad r = \lVert x - c \rVert, \qquad
        \alpha = \mathrm{softplus}(\tilde\alpha), \qquad \beta = \mathrm{softplus}(\tilde\beta) - \alpha

    .. math:: \text{sylvester: } y = x + Q R\, h(S Q^\top x + b), \qquad Q^\top Q = I, \qquad
        R_{ii} = \tanh \tilde R_{ii}, \qquad S_{ii} = \tanh \tilde S_{ii}

    R and S are upper triangular, what is given below their diagonals is not read. Every layer is invertible whatever
    the parameters: :math:`w^\top \hat u > -1`, :math:`\beta > -\alpha`, :math:`R_{ii} S_{ii} > -1`. ``ladj`` is the
    chain's :math:`\log |\det J|` in nats. The inverse is exact: a planar layer is the root of one number, found by
    Newton's method in a bracket without a read by the host, a Sylvester one M of them by back substitution, a radial
    one a quadratic.

    Args:
        x: ``[..., D]``; float32, float64, bfloat16 or float16.
        params: tensors of the dtype of ``x`` (of any under autocast, which the map itself ignores), n layers in a dim
            of theirs, the first of the chain first: planar ``(u [n, D], w [n, D], b [n])``, radial
            ``(c [n, D], alpha [n], beta [n])``, Sylvester ``(q [n, D, M], r [n, M, M], s [n, M, M], b [n, M])`` with
            1 <= M <= D. Leading dims in front, which broadcast to those of ``x``: every row has parameters of its own,
            as posteriors have them whose encoder makes the flow.
        kind: ``"planar"``, ``"radial"`` or ``"sylvester"``.
        activation: h of planar and Sylvester layers: ``"tanh"`` or ``"leaky_relu"``.
        negative_slope: of a leaky_relu, above 0 and at most 1.
        alpha: what makes alpha of a radial layer positive: ``"softplus"``, or ``"abs"`` as normflows has it.
        orthogonal: of Sylvester layers: ``"qr"``, the orthogonal factor of q; ``"householder"``: q is ``[n, H, D]``,
            vectors of H reflections, of whose product Q is the first M columns; None: the columns of q are orthonormal
            as they are given, which is not checked.
        inverse: evaluate y → x, from the last layer to the first; ``ladj`` is then that of the inverse.
        backend: run on this one or raise. Kernels are the CPU's and Triton's; elsewhere plain PyTorch runs.

    Returns:
        ``y [..., D]`` in the dtype of ``x`` and ``ladj [...]`` in float32 (float64 for float64).

    Raises:
        TypeError: an input is not a floating-point tensor, or of another dtype than ``x``.
        ValueError: a shape or setting breaks its contract.

    Reference:
        Rezende, Mohamed: Variational Inference with Normalizing Flows, ICML 2015, arXiv:1505.05770; van den Berg,
        Hasenclever, Tomczak, Welling: Sylvester Normalizing Flows for Variational Inference, UAI 2018,
        arXiv:1803.05649.

    Example:
        >>> import torch
        >>> from flowkernels import ops
        >>> _ = torch.manual_seed(0)
        >>> x, n = torch.randn(7, 4), 10
        >>> params = torch.randn(n, 4), torch.randn(n, 4), torch.randn(n)
        >>> y, ladj = ops.low_rank(x, params, kind="planar")
        >>> back, neg = ops.low_rank(y, params, kind="planar", inverse=True)
        >>> torch.allclose(back, x, atol=1e-3), torch.allclose(neg, -ladj, atol=1e-3)
        (True, True)
    """
    for name, given, options in (
        ("kind", kind, KINDS), ("activation", activation, ACTIVATIONS), ("alpha", alpha, POSITIVE),
    ):  # fmt: skip
        choice(_NAME, name, given, options)
    if orthogonal is not None and (not isinstance(orthogonal, str) or orthogonal not in ("qr", "householder")):
        raise ValueError(f'{_NAME}: orthogonal must be "qr", "householder" or None, got {orthogonal!r:.60}')
    if not is_number(negative_slope) or not 0 < negative_slope <= 1:
        raise ValueError(f"{_NAME}: negative_slope must be above 0 and at most 1, got {negative_slope!r:.60}")
    flag(_NAME, "inverse", inverse)
    check_tensor(_NAME, "x", x)
    given = _checked(x, params, kind, orthogonal)
    spec = LowRankSpec(kind, activation, float(negative_slope), alpha, inverse)
    made = orthogonal if kind == "sylvester" else None
    if not in_autocast(x):
        return _run(spec, backend, made, x, given)
    # Rounded to 8 bits a map and its inverse would not meet. Tensors of several dtypes do in that of x.
    with torch.autocast(x.device.type, enabled=False):
        return _run(spec, backend, made, x, [t.to(x.dtype) for t in given])


def _run(
    spec: LowRankSpec, backend: str | None, orthogonal: str | None, x: Tensor, given: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """``orthogonal``: how the columns of the first tensor are to be made orthonormal, or None."""
    if orthogonal is None:
        return _op(spec, backend, x, *given)  # type: ignore[return-value]
    # In 16 bits columns would be orthonormal to three digits alone.
    wide = torch.promote_types(x.dtype, torch.float32)
    q, *rest = (t.to(wide) for t in given)
    q = reference.orthonormal(q, orthogonal, rest[0].shape[-1])
    y, ladj = _op(spec, backend, x.to(wide), q, *rest)
    return y.to(x.dtype), ladj


def _checked(x: Tensor, params: Any, kind: str, orthogonal: str | None) -> list[Tensor]:
    """The tensors, all shared by the rows, or all with one set for each."""
    D, parts = x.shape[-1], _PARTS[kind]
    contract = f"({', '.join(f'{name} [{sizes}]' for name, sizes in parts)})"
    check_sequence(_NAME, "params", params, contract)
    if len(params) != len(parts):
        raise ValueError(f"{_NAME}: params must be {contract}, got {len(params)} tensors")
    if D == 0:
        raise ValueError(f"{_NAME}: features of x must be at least one, got 0")
    for (name, _), t in zip(parts, params, strict=True):
        check_tensor(_NAME, name, t, x)
    n_dims = [1 + d for d in reference.dims(kind)]
    for (name, sizes), t, dims in zip(parts, params, n_dims, strict=True):
        if t.dim() < dims:
            raise ValueError(f"{_NAME}: {name} must be [..., {sizes}], got {list(t.shape)}")
    if params[0].shape[-n_dims[0]] == 0:
        raise ValueError(f"{_NAME}: layers must be at least one, got 0")
    if kind == "sylvester" and not 1 <= params[1].shape[-1] <= D:
        raise ValueError(f"{_NAME}: M of r must be from 1 to D = {D}, got {params[1].shape[-1]}")
    wanted = reference.shapes(kind, params, D)
    if kind == "sylvester" and orthogonal == "householder":
        wanted[0] = (wanted[0][0], params[0].shape[-2], D)
    rowwise = False
    for (name, _), t, sizes in zip(parts, params, wanted, strict=True):
        lead = t.shape[: t.dim() - len(sizes)]
        if tuple(t.shape[len(lead) :]) != sizes or not expands(lead, x.shape[:-1]):
            of = ", ".join(map(str, (*x.shape[:-1], *sizes)))
            raise ValueError(f"{_NAME}: {name} must be {list(sizes)} or broadcast to [{of}], got {list(t.shape)}")
        rowwise |= len(lead) > 0
    if not rowwise:
        return list(params)
    return [t.expand(*x.shape[:-1], *sizes) for t, sizes in zip(params, wanted, strict=True)]
