"""Affine map: raw conditioner output → y and log |det J|."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkernels.ops._routing import Op

from . import reference
from .spec import AffineSpec, cached_spec, make_spec

__all__ = ["affine"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _fake(spec: AffineSpec, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, params.dtype)
    ladj_dtype = torch.promote_types(dtype, torch.float32)
    return (
        torch.empty(x.shape, dtype=dtype, device=x.device),
        torch.empty(x.shape[:-1], dtype=ladj_dtype, device=x.device),
    )


_op = Op(
    "affine",
    spec_type=AffineSpec,
    reference=reference.fwd,
    table={"reference": reference},
    inputs=("x", "params"),
    n_outputs=2,
    fake=_fake,
)


def affine(
    x: Tensor,
    params: Tensor,
    *,
    scale: str = "exp",
    min_scale: float = 0.0,
    inverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Scales and shifts every element of ``x``, by its own scale logit :math:`u` and shift :math:`t`.

    .. math:: y = s(u)\,x + t, \qquad \mathrm{ladj} = \sum_D \log s(u)

    in nats, and inverse :math:`x = (y - t)/s(u)`, with

    ===============  ==========================================  ===============================
    ``scale``        :math:`s(u)`
    ===============  ==========================================  ===============================
    ``"exp"``        :math:`e^u`                                 MAF, Real NVP
    ``"softplus"``   :math:`\mathrm{softplus}(u)` + min_scale    nflows
    ``"sigmoid"``    :math:`\sigma(u + 2)` + min_scale           older nflows, normflows
    ``"additive"``   1                                           NICE; ``params`` are shifts only
    ===============  ==========================================  ===============================

    Args:
        x: ``[..., D]``; float32, float64, bfloat16 or float16.
        params: ``[..., D, 2]``, in the order scale logit | shift; ``[..., D, 1]`` for ``"additive"``. May be a 16-bit
            type beside a float32 ``x``.
        scale: see the table.
        min_scale: smallest scale of ``"softplus"`` and ``"sigmoid"``.
        inverse: evaluate y → x; ``ladj`` is then that of the inverse.
        backend: run on this one or raise; default: the fastest that can.

    Returns:
        ``y [..., D]`` in the promoted dtype of the inputs and ``ladj [...]`` in float32 (float64 for float64).

    Raises:
        TypeError: an input is not a floating-point tensor.
        ValueError: a shape or setting breaks its contract.

    Reference:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, ICLR 2017, arXiv:1605.08803.

    Example:
        >>> import torch
        >>> from flowkernels import ops
        >>> y, ladj = ops.affine(torch.tensor([[1.0, 2.0]]), torch.tensor([[[0.0, 3.0], [0.0, -1.0]]]))
        >>> y, ladj
        (tensor([[4., 1.]]), tensor([0.]))
    """
    spec = (make_spec if torch.compiler.is_compiling() else cached_spec)(scale, min_scale, inverse)
    _check(x, params, spec)
    return _op(spec, backend, x, params)  # type: ignore[return-value]


def _check(x: Tensor, params: Tensor, spec: AffineSpec) -> None:
    for name, t in (("x", x), ("params", params)):
        if not isinstance(t, Tensor):
            raise TypeError(f"ops.affine: {name} must be a tensor, got {type(t).__name__} {t!r:.60}")
        if t.dtype not in _DTYPES:
            raise TypeError(f"ops.affine: {name} must be float32, float64, bfloat16 or float16, got {t.dtype}")
        if t.layout is not torch.strided:
            raise TypeError(f"ops.affine: {name} must be a dense tensor, got layout {t.layout}")
    if x.dim() == 0:
        raise ValueError("ops.affine: x must be [..., D], got a scalar")
    if x.device != params.device:
        raise ValueError(f"ops.affine: params must be on the device of x = {x.device}, got {params.device}")
    if params.shape != (*x.shape, spec.n_params):
        expected, given = [*x.shape, spec.n_params], list(params.shape)
        raise ValueError(f"ops.affine: params must be [..., D, P] = {expected}, got {given}")
