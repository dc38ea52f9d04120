"""Affine map: raw conditioner output → y and log |det J|, one pass over memory."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from flowkernels.ops._checks import without_flags
from flowkernels.ops._routing import Op

from . import native, reference, triton
from .layout import Layout
from .spec import Affine, AffineCall, checked

__all__ = ["Affine", "Layout", "affine"]

_kept = functools.lru_cache(maxsize=256, typed=True)(Affine)  # typed: True must not pass because 1 has


def _fake(
    spec: AffineCall, x: Tensor, params: Tensor, shift: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, params.dtype)
    ladj_dtype = torch.promote_types(dtype, torch.float32)
    return (
        torch.empty_like(x, dtype=dtype),
        torch.empty(x.shape[: x.dim() - spec.layout.event_dims], dtype=ladj_dtype, device=x.device),
    )


# Saves its inputs for backward, and nothing else.
Affine._op = Op(
    "affine",
    spec_type=AffineCall,
    reference=reference.fwd,
    table={"cpu": native.cpu, "cuda": native.cuda, "triton": triton, "reference": reference},
    inputs=("x", "params", "shift?", "mask?"),
    n_outputs=2,
    fake=_fake,
    grad_like=torch.empty_like,
    sample=lambda: (AffineCall(Affine("exp")), (torch.zeros(1, 1), torch.zeros(1, 1, 2), None, None)),
)


def affine(
    x: Tensor,
    params: Tensor | Sequence[Tensor],
    *,
    scale: str = "exp",
    min_scale: float = 0.0,
    clamp: float | None = None,
    log_bounds: tuple[float, float] | None = None,
    shift_first: bool = False,
    part: slice | None = None,
    mask: Tensor | None = None,
    event_dims: int = 1,
    inverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Scales and shifts every element of ``x``, by its own scale logit :math:`u` and shift :math:`t`.

    .. math:: y = s(u)\,x + t, \qquad \mathrm{ladj} = \sum \log s(u)

    in nats, and inverse :math:`x = (y - t)/s(u)`, with

    ========================  ==========================================  =====================================
    ``scale``                 :math:`s(u)`
    ========================  ==========================================  =====================================
    ``"exp"``                 :math:`e^u`                                 MAF, Real NVP
    ``"softplus"``            :math:`\mathrm{softplus}(u)` + min_scale    nflows
    ``"sigmoid"``             :math:`\sigma(u + 2)` + min_scale           Glow, nflows, normflows
    ``"tanh"``                :math:`e^{c \tanh(u/c)}`, c = clamp         Real NVP's bounded scale
    ``"atan"``                :math:`e^{r \arctan(u/r)}`, r = 2c/π         FrEIA's bounded scale, c = clamp
    ``"soft_clip"``           :math:`e^{u/(1 + |u/c|)}`, c = clamp        zuko's bounded scale, c = -log slope
    ``"clip"``                :math:`e^{\mathrm{clip}(u)}`                Pyro's; see log_bounds
    ``"reciprocal_sigmoid"``  :math:`1/\sigma(u + 2)`                     normflows' sigmoid: its inverse multiplies
    ``"additive"``            :math:`1`                                   NICE; ``params`` are shifts only
    ========================  ==========================================  =====================================

    Where a mask is False, ``y = x`` with gradient 1, nothing is added to ``ladj``, and what ``params`` hold (NaN, even)
    has no effect and no gradient: :math:`b\,x + (1 - b)(x\,s + t)` without a masked copy of anything, b = not mask.

    Args:
        x: ``[..., *event]``; float32, float64, bfloat16 or float16; any strides.
        params: one tensor ``[..., *event, 2]``, in the order scale logit | shift (``[..., *event, 1]`` for
            ``"additive"``), or two tensors like ``x``, scale logit and shift. Any strides, of one dtype; may be a
            16-bit type beside a float32 ``x``. See below.
        scale: see the table.
        min_scale: smallest scale of ``"softplus"`` and ``"sigmoid"``.
        clamp: largest \|log s\| of ``"tanh"``, ``"atan"`` and ``"soft_clip"``, 2 by default. Near u = 0 it is the
            exponential.
        log_bounds: where log s of ``"clip"`` stops, (-5, 3) by default. Gradients do not see it: they are those of
            :math:`e^u` at the u where it stops.
        shift_first: the order of ``params`` is shift | scale logit.
        part: the features (for images the channels: the first dim of the event) that are mapped; ``params`` and
            ``mask`` are theirs alone, and the others pass. A coupling layer's split and merge at no cost.
        mask: True where an element is mapped; bool, or integers, of which all but 0 are True; broadcasts to the event
            (to its part).
        event_dims: how many of the last dims of ``x`` are the event, that ``ladj`` is summed over: 1 for features, 3
            for images ``[N, C, H, W]``.
        inverse: evaluate y → x; ``ladj`` is then that of the inverse.
        backend: run on this one or raise; default: the fastest that can.

    Returns:
        ``y [..., *event]`` in the promoted dtype of the inputs, in the memory order of ``x``, and ``ladj [...]`` in
        float32 (float64 for float64).

    Raises:
        TypeError: an input is not a floating-point tensor.
        ValueError: a shape or setting breaks its contract.

    A conditioner's output needs no split and no copy, forward or backward, as a view of it is one of the above. For
    ``h [N, 2C, H, W]`` with blocks of channels, ``h.unflatten(1, (2, -1)).movedim(1, -1)``; with alternating channels,
    ``h.unflatten(1, (-1, 2)).movedim(2, -1)``; for ``h [B, 2D]``, ``h.unflatten(-1, (2, -1)).mT`` and
    ``h.unflatten(-1, (-1, 2))``. Two tensors, ``h.chunk(2, 1)``, are read where they lie too, but autograd then puts
    their gradients together in a tensor of its own.

    Reference:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, ICLR 2017, arXiv:1605.08803. Kingma, Dhariwal:
        Glow, NeurIPS 2018, arXiv:1807.03039.

    Example:
        >>> import torch
        >>> from flowkernels import ops
        >>> y, ladj = ops.affine(torch.tensor([[1.0, 2.0]]), torch.tensor([[[0.0, 3.0], [0.0, -1.0]]]))
        >>> y, ladj
        (tensor([[4., 1.]]), tensor([0.]))
    """
    bounds = None if log_bounds is None else without_flags(log_bounds)
    settings = (scale, min_scale, clamp, bounds, shift_first, inverse)
    if torch.compiler.is_compiling():
        # Checked here as well: some compilers make a frozen dataclass without its __post_init__.
        spec = Affine(*checked(*settings))
    else:
        try:
            spec = _kept(*settings)
        except TypeError:  # a setting without a hash, such as a list
            spec = Affine(*settings)
    return spec(x, params, False, event_dims, mask, part, backend=backend)
