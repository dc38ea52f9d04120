"""The checks of the ops on dense nets: of every call a quick one and, where that finds something odd, the one that says
what it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, strided

from flowkernels.ops._checks import expands
from flowkernels.ops.made.checks import check_pair, check_sequence, check_shape, check_tensor

_PAIRS = "a list of (weight, bias) pairs"


def check_dense(
    op: str, x: Tensor, features: int, layers: Any, context: Any, *, residual: bool, blocks: int | None = None
) -> None:
    """Raises unless these are the layers of a net that takes so many features of x, and the context.

    ``blocks``: how many of a residual net, where the caller says so.
    """
    try:
        if _fits(x, features, layers, context, residual, blocks):
            return
    except (AttributeError, IndexError, TypeError, ValueError):
        pass  # something is not even a tensor
    _explain(op, x, features, layers, context, residual, blocks)


def _fits(x: Tensor, features: int, layers: Any, context: Any, residual: bool, blocks: int | None) -> bool:
    """Whether all is as it should be. What is right may be refused here, as two dtypes under autocast are."""
    if type(layers) is not list and type(layers) is not tuple:
        return False
    n, per_block, dtype, on_cpu = len(layers), 2 if context is None else 3, x.dtype, x.is_cpu
    if n == 0 or (residual and (n < 2 or (n - 2) % per_block or blocks not in (None, (n - 2) // per_block))):
        return False
    n_context = 0
    if context is not None:
        if context.dtype is not dtype or context.is_cpu is not on_cpu or context.layout is not strided:
            return False
        if not expands(context.shape[:-1], x.shape[:-1]):
            return False
        n_context = context.shape[-1]
    width, stream = features + n_context, 0
    for i, (weight, bias) in enumerate(layers):
        n_out, n_in = weight.shape
        if not (
            n_out > 0
            and bias.shape == (n_out,)
            and weight.dtype is dtype
            and bias.dtype is dtype
            and weight.is_cpu is on_cpu
            and bias.is_cpu is on_cpu
            and weight.layout is strided
            and bias.layout is strided
        ):
            return False
        if not residual:
            if n_in != width:
                return False
            width = n_out
        elif i == 0:
            if n_in != width:
                return False
            width = stream = n_out
        else:
            role = (i - 1) % per_block if i < n - 1 else 0
            if n_in != (n_context if role == 2 else width) or (role > 0 and n_out != stream):
                return False
            width = stream if role == 2 else n_out
    return True


def _explain(op: str, x: Any, features: int, layers: Any, context: Any, residual: bool, blocks: int | None) -> None:
    check_sequence(op, "layers", layers, _PAIRS)
    n, per_block = len(layers), 2 if context is None else 3
    if blocks is not None:
        if n != 2 + per_block * blocks:
            raise ValueError(f"{op}: layers must be 2 + {per_block} * blocks = {2 + per_block * blocks}, got {n}")
    elif residual and (n < 2 or (n - 2) % per_block):
        raise ValueError(f"{op}: layers must be 2 + {per_block} * blocks, got {n}")
    elif n == 0:
        raise ValueError(f"{op}: layers must be one at least, got none")
    n_context = 0
    if context is not None:
        check_tensor(op, "context", context, x)
        if context.dim() == 0 or not expands(context.shape[:-1], x.shape[:-1]):
            lead = ", ".join(map(str, (*x.shape[:-1], "C")))
            raise ValueError(f"{op}: context must broadcast to [{lead}], got {list(context.shape)}")
        n_context = context.shape[-1]
    for i, pair in enumerate(layers):
        check_pair(op, i, pair)
        for part, t, dims in zip(("weight", "bias"), pair, (2, 1), strict=True):
            check_tensor(op, f"layers[{i}] {part}", t, x)
            if t.dim() != dims:
                sizes = "[out, in]" if dims == 2 else "[out]"
                raise ValueError(f"{op}: layers[{i}] {part} must be {sizes}, got {list(t.shape)}")
    _check_widths(op, features, n_context, layers, residual, per_block)


def _check_widths(
    op: str, features: int, n_context: int, layers: Sequence[tuple[Tensor, Tensor]], residual: bool, per_block: int
) -> None:
    n_in, stream, last = features + n_context, layers[0][0].shape[0], len(layers) - 1
    for i, (weight, bias) in enumerate(layers):
        n_out = weight.shape[0]
        role = (i - 1) % per_block if residual and 0 < i < last else 0
        if i == 0 and weight.shape[1] != n_in:
            of_context = f" and {n_context} of the context" if per_block == 3 or n_context else ""
            raise ValueError(
                f"{op}: layers[0] weight must be [out, {n_in}], for {features} features of x{of_context}, got "
                f"{list(weight.shape)}"
            )
        shape = (stream if role else n_out, n_context if role == 2 else n_in)
        check_shape(op, f"layers[{i}] weight", weight, shape)
        if n_out == 0:
            raise ValueError(f"{op}: layers[{i}] weight must have one output at least, got {list(weight.shape)}")
        check_shape(op, f"layers[{i}] bias", bias, (n_out,))
        n_in = stream if role == 2 else n_out
