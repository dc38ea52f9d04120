"""Affine map: raw conditioner output → y and log |det J|, one pass over memory."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from flowkernels.ops._checks import check_floating, expands, without_flags

from .autograd import op
from .spec import AffineSpec, cached_spec, make_spec

__all__ = ["affine"]


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

    =================  ==========================================  =====================================
    ``scale``          :math:`s(u)`
    =================  ==========================================  =====================================
    ``"exp"``          :math:`e^u`                                 MAF, Real NVP
    ``"softplus"``     :math:`\mathrm{softplus}(u)` + min_scale    nflows
    ``"sigmoid"``      :math:`\sigma(u + 2)` + min_scale           Glow, nflows, normflows
    ``"tanh"``         :math:`e^{c \tanh(u/c)}`, c = clamp         Real NVP's bounded scale
    ``"atan"``         :math:`e^{r \arctan(u/r)}`, r = 2c/π         FrEIA's bounded scale, c = clamp
    ``"soft_clip"``    :math:`e^{u/(1 + |u/c|)}`, c = clamp        zuko's bounded scale, c = -log slope
    ``"clip"``         :math:`e^{\mathrm{clip}(u)}`                Pyro's; see log_bounds
    ``"per_sigmoid"``  :math:`1/\sigma(u + 2)`                     normflows' sigmoid: its inverse multiplies
    ``"additive"``     1                                           NICE; ``params`` are shifts only
    =================  ==========================================  =====================================

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
    start, stop, step = (0, 0, 1) if part is None else _bounds(x, part, event_dims)
    bounds = None if log_bounds is None else without_flags(log_bounds)
    settings = (scale, min_scale, inverse, clamp, event_dims, shift_first, start, stop, step, bounds)
    if torch.compiler.is_compiling():
        spec = make_spec(*settings)
    else:
        try:
            spec = cached_spec(*settings)
        except TypeError:  # a setting without a hash, such as a list
            spec = make_spec(*settings)
    shift = None
    if not isinstance(params, Tensor):
        params, shift = _pair(params, spec)
        spec = spec._replace(shift_first=False)
    _check(x, params, shift, mask, spec)
    if mask is not None and mask.dtype is not torch.bool:
        mask = mask.bool()
    return op(spec, backend, x, params, shift, mask)  # type: ignore[return-value]


def _bounds(x: Tensor, part: slice, event_dims: int) -> tuple[int, int, int]:
    if not isinstance(part, slice):
        raise TypeError(f"ops.affine: part must be a slice, got {type(part).__name__} {part!r:.60}")
    ends = (part.start, part.stop, part.step)
    if part.step == 0 or not all(e is None or isinstance(e, numbers.Integral) for e in ends):
        raise ValueError(f"ops.affine: part must be a slice of integers, its step not 0, got {part}")
    if not isinstance(x, Tensor) or not isinstance(event_dims, numbers.Integral) or not 1 <= event_dims <= x.dim():
        return 0, 0, 1  # said by the checks that follow
    n = x.shape[-event_dims]
    chosen = range(n)[part]  # not part.indices(n), which torch 2.11 does not trace
    start, stop, step = chosen.start, chosen.stop, chosen.step
    if step < 1 or start >= stop:
        raise ValueError(f"ops.affine: part must select some of {n} features, forwards, got {part}")
    return start, stop, step


def _pair(params: Sequence[Tensor], spec: AffineSpec) -> tuple[Tensor, Tensor]:
    if not isinstance(params, (tuple, list)):
        raise TypeError(f"ops.affine: params must be a tensor or two, got {type(params).__name__} {params!r:.60}")
    if len(params) != 2 or spec.scale == "additive":
        contract = "one tensor where scale is 'additive'" if spec.scale == "additive" else "a tensor or two"
        raise ValueError(f"ops.affine: params must be {contract}, got {len(params)}")
    first, second = params
    return (second, first) if spec.shift_first else (first, second)


def _check(x: Tensor, params: Tensor, shift: Tensor | None, mask: Tensor | None, spec: AffineSpec) -> None:
    for name, t in (("x", x), ("params", params), ("params[1]", params if shift is None else shift)):
        check_floating("ops.affine", name, t)
    if x.dim() < spec.event_dims:
        dims = "[..., D], got a scalar" if x.dim() == 0 else f"{spec.event_dims}-dimensional, got {list(x.shape)}"
        raise ValueError(f"ops.affine: x must be {dims}")
    if x.device != params.device:
        raise ValueError(f"ops.affine: params must be on the device of x = {x.device}, got {params.device}")
    shape = spec.mapped(x).shape
    if shift is None and params.shape != (*shape, spec.n_params):
        expected, given = [*shape, spec.n_params], list(params.shape)
        raise ValueError(f"ops.affine: params must be [..., D, P] = {expected}, got {given}")
    if shift is not None:
        if not params.shape == shift.shape == shape:
            given = [list(params.shape), list(shift.shape)]
            raise ValueError(f"ops.affine: two params must be [..., D] = {list(shape)}, got {given}")
        if (params.dtype, params.device) != (shift.dtype, shift.device):
            given = f"{params.dtype} on {params.device} and {shift.dtype} on {shift.device}"
            raise ValueError(f"ops.affine: two params must be of one dtype on one device, got {given}")
    if mask is not None:
        _check_mask(x, mask, shape[x.dim() - spec.event_dims :])


def _check_mask(x: Tensor, mask: Tensor, event: torch.Size) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"ops.affine: mask must be a tensor, got {type(mask).__name__} {mask!r:.60}")
    if mask.device != x.device:
        raise ValueError(f"ops.affine: mask must be on the device of x = {x.device}, got {mask.device}")
    if mask.layout is not torch.strided:
        raise TypeError(f"ops.affine: mask must be a dense tensor, got layout {mask.layout}")
    if mask.is_floating_point() or mask.is_complex():
        raise TypeError(f"ops.affine: mask must be of bool or integers, as a share of a map is none, got {mask.dtype}")
    if not expands(mask.shape, event):
        raise ValueError(f"ops.affine: mask must broadcast to the event {list(event)}, got {list(mask.shape)}")
