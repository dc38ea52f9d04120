"""One masked layer on Triton: puts x and W in the order of the degrees where they are not, allocates, launches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkernels._backend import Grads, Inputs, Needs
from flowkernels.ops import _channels, _triton
from flowkernels.ops._checks import why_not_multiplied
from flowkernels.ops._kept import kept

from .activations import SLOPE_NEEDS_INPUT
from .plan import LayerPlan
from .spec import NetSpec, unpack

_PROGRAMS = 256  # that share a sum over rows


def why_not(spec: Any, *tensors: Tensor) -> str | None:
    return why_not_multiplied(tensors) or _triton.why_no_product(tensors)


def _one_layer(spec: NetSpec, tensors: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
    """x, weight, and bias and what is added or None; or what is told of each."""
    x, parts = unpack(spec, tensors)
    return x, parts.weights[0], parts.biases[0], parts.adds[0]


def _plan(spec: NetSpec) -> LayerPlan:
    assert isinstance(spec.plan, LayerPlan)
    return spec.plan


class _Stairs(NamedTuple):
    """A plan on a device. An order that changes nothing is None."""

    in_order: Tensor | None
    out_order: Tensor | None
    limit: Tensor  # [n_out]: of the j-th unit, how many inputs it sees
    first: Tensor  # [n_in]: of the j-th input, the first unit that sees it


def _stairs(plan: LayerPlan, device: torch.device) -> _Stairs:
    inputs = torch.arange(plan.n_in, dtype=torch.int32, device="cpu")  # whatever torch.set_default_device says
    first = torch.searchsorted(plan.limit, inputs, right=True, out_int32=True)
    in_order = None if plan.in_sorted else plan.in_order.to(device)
    out_order = None if plan.out_sorted else plan.out_order.to(device)
    return _Stairs(in_order, out_order, plan.limit.to(device), first.to(device))


_kept_stairs = kept(maxsize=1024)(_stairs)


def stairs(plan: LayerPlan, device: torch.device) -> _Stairs:
    """Made once; in a compiler's graph with every call, as what is made there must not stay."""
    return (_stairs if torch.compiler.is_compiling() else _kept_stairs)(plan, device)


def _sorted(t: Tensor, order: Tensor | None, dim: int) -> Tensor:
    return t if order is None else t.index_select(dim, order)


def _rows(t: Tensor, columns: int) -> Tensor:
    """[rows, columns], each row dense."""
    t = t.resolve_neg().reshape(-1, columns)
    return t if t.stride(1) == 1 or columns == 1 else t.contiguous()


def _kind(x: Tensor) -> str:
    """Whose configurations a product has."""
    return "half" if x.element_size() == 2 else _triton.precision(x.dtype)


def _product(
    x: Tensor, W: Tensor, edge: Tensor, order: Tensor | None, y: Tensor, *, suffix: bool = False,
    bias: Tensor | None = None, residual: Tensor | None = None, z: Tensor | None = None, activation: str = "identity",
) -> None:  # fmt: skip
    """W [n_out, n_in] in order of the degrees; y in columns `order`."""
    from .triton_kernels import masked_product

    rows, (n_out, n_in), dtype = x.shape[0], W.shape, _channels.wide(x.dtype)

    def programs(given: dict[str, Any]) -> int:
        return -(-rows // given["BM"]) * -(-n_out // given["BN"])

    def present(t: Tensor | None) -> Tensor:
        return x if t is None else t

    _triton.launch(
        masked_product[_kind(x)], programs, x, W, edge, present(order), present(bias), present(residual), y,
        present(z), rows,
        _triton.bucket(rows), n_in, n_out, x.stride(0), *W.stride(), *(0, 0) if residual is None else residual.stride(),
        y.stride(0), SUFFIX=suffix, ORDER=order is not None, BIAS=bias is not None, RESIDUAL=residual is not None,
        KEEP=z is not None, ACTIVATION=activation, PRECISION=_triton.precision(x.dtype),
        dtype=_triton.language_dtype(dtype),
    )  # fmt: skip


def _fwd(spec: NetSpec, tensors: Sequence[Tensor], keep: bool) -> tuple[Tensor, list[Tensor]]:
    x, weight, bias, residual = _one_layer(spec, tensors)
    plan = _plan(spec)
    y = torch.empty((*x.shape[:-1], plan.n_out), dtype=x.dtype, device=x.device)
    z = torch.empty_like(y) if keep and spec.last in SLOPE_NEEDS_INPUT else None
    if y.numel() > 0:
        s = stairs(plan, x.device)
        W = _sorted(_sorted(weight.resolve_neg(), s.out_order, 0), s.in_order, 1)
        _product(
            _sorted(_rows(x, plan.n_in), s.in_order, 1), W, s.limit, s.out_order, y.view(-1, plan.n_out),
            bias=None if bias is None else bias.resolve_neg().contiguous(),
            residual=None if residual is None else residual.resolve_neg().reshape(-1, plan.n_out),
            z=z, activation=spec.last,
        )  # fmt: skip
    return y, [] if spec.last == "identity" else [y if z is None else z]


def fwd(spec: NetSpec, *tensors: Tensor) -> tuple[Tensor]:
    return (_fwd(spec, tensors, keep=False)[0],)


def fwd_saving(spec: NetSpec, *tensors: Tensor) -> tuple[tuple[Tensor], list[Tensor]]:
    """Keeps what the slope follows from: of most activations the output, which whatever comes next keeps anyway."""
    y, saved = _fwd(spec, tensors, keep=True)
    return (y,), saved


def saved_of(spec: NetSpec, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return outputs


def _gradient_of_z(spec: NetSpec, g: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """g act'(z) [rows, n_out], and its sums over the rows."""
    from .triton_kernels import masked_slope

    rows, n_out = g.shape
    dtype = _channels.wide(g.dtype)
    tile = {"BM": 32, "BN": min(128, _triton.power_of_2(n_out))}
    programs = min(_PROGRAMS, -(-rows // tile["BM"]))
    sums = g.new_empty((programs, n_out), dtype=dtype)
    gz = g if kept is None else torch.empty_like(g)
    _triton.launch(
        masked_slope, programs * -(-n_out // tile["BN"]), g, g if kept is None else kept, gz, sums, rows, n_out,
        ACTIVATION=spec.last, PROGRAMS=programs, **tile, dtype=_triton.language_dtype(dtype),
    )  # fmt: skip
    return gz, sums.double().sum(0)


def _gradient_of_weight(gz: Tensor, x: Tensor, s: _Stairs) -> Tensor:
    """[n_out, n_in] as its owner orders it, from gz and x in the order of the degrees; summed over splits of rows."""
    from .triton_kernels import masked_outer

    rows, n_out, n_in, dtype = gz.shape[0], gz.shape[1], x.shape[1], _channels.wide(x.dtype)
    splits = max(1, min(_PROGRAMS // (-(-n_out // 128) * -(-n_in // 128)), -(-rows // 512)))
    out = x.new_empty((splits, n_out, n_in), dtype=x.dtype if splits == 1 else dtype)

    def programs(given: dict[str, Any]) -> int:
        return splits * -(-n_out // given["BM"]) * -(-n_in // given["BN"])

    _triton.launch(
        masked_outer[_kind(x)], programs, gz, x, s.limit, gz if s.out_order is None else s.out_order,
        x if s.in_order is None else s.in_order, out, rows, _triton.bucket(rows), n_in, n_out, x.stride(0),
        gz.stride(0), SPLITS=splits, OUT_ORDER=s.out_order is not None, IN_ORDER=s.in_order is not None,
        PRECISION=_triton.precision(x.dtype), dtype=_triton.language_dtype(dtype),
    )  # fmt: skip
    return out[0] if splits == 1 else out.sum(0)


def bwd(spec: NetSpec, grads: Grads, tensors: Inputs, needs: Needs, saved: Inputs = ()) -> Grads:
    g = grads[0]
    if g is None:
        return [None] * len(tensors)
    x, weight, bias, residual = _one_layer(spec, tensors)
    need_x, need_weight, need_bias, need_residual = _one_layer(spec, needs)
    plan = _plan(spec)
    if g.numel() == 0:
        return [torch.zeros_like(t) if n else None for t, n in zip(tensors, needs, strict=True)]
    if not saved and spec.last != "identity":  # the library op keeps outputs alone
        saved = _fwd(spec, tensors, keep=True)[1]
    g = _rows(g, plan.n_out).contiguous()
    gz, sums = _gradient_of_z(spec, g, saved[0].view(-1, plan.n_out) if saved else None)
    s = stairs(plan, x.device)
    sorted_gz = _sorted(gz, s.out_order, 1)
    found: list[Tensor | None] = [None, None]
    if need_x:
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        W = _sorted(_sorted(weight.resolve_neg(), s.out_order, 0), s.in_order, 1)
        _product(sorted_gz, W.mT, s.first, s.in_order, grad_x.view(-1, plan.n_in), suffix=True)
        found[0] = grad_x
    if need_weight:
        rows = _sorted(_rows(x, plan.n_in), s.in_order, 1)
        found[1] = _gradient_of_weight(sorted_gz, rows, s).to(weight.dtype)
    if bias is not None:
        found.append(sums.to(bias.dtype) if need_bias else None)
    if residual is not None:
        found.append(gz.view(residual.shape) if need_residual else None)
    return found
