"""The checks of the ops on networks, masked and dense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flowkernels.ops._checks import check_device, check_floating, check_shape, expands, in_autocast, is_like

from .activations import check_activation
from .plan import MadePlan


def check_tensor(op: str, name: str, t: object, like: Tensor | None = None, called: str = "x") -> None:
    """Raises unless `t` is a dense floating tensor, of the dtype (or under autocast) and on the device of `like`, which
    the op's users know by the name `called`."""
    if like is not None and is_like(t, like):
        return
    check_floating(op, name, t)
    assert isinstance(t, Tensor)  # for the type checker
    if like is None:
        if t.dim() == 0:
            raise ValueError(f"{op}: {name} must be [..., D], got a scalar")
        return
    check_device(op, name, t, like, called)
    if t.dtype != like.dtype and not in_autocast(like):
        raise TypeError(f"{op}: {name} must be of the dtype of {called} = {like.dtype}, got {t.dtype}")


def check_sequence(op: str, name: str, given: object, contract: str) -> None:
    """Raises unless `given` is a list, or anything like one."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise TypeError(f"{op}: {name} must be {contract}, got {type(given).__name__} {given!r:.60}")


def check_pair(op: str, i: int, pair: object) -> None:
    """Raises unless `pair` is (weight, bias)."""
    if not isinstance(pair, (tuple, list)):
        raise TypeError(f"{op}: layers[{i}] must be (weight, bias), got {type(pair).__name__} {pair!r:.60}")
    if len(pair) != 2:
        raise ValueError(f"{op}: layers[{i}] must be (weight, bias), got {len(pair)} parts")


def check_broadcasts(op: str, name: str, t: Tensor, shape: Sequence[int]) -> None:
    """Raises unless `t` broadcasts to this shape."""
    if t.dim() == 0 or t.shape[-1] != shape[-1] or not expands(t.shape, shape):
        raise ValueError(f"{op}: {name} must broadcast to {list(shape)}, got {list(t.shape)}")


def check_net(
    op: str,
    x: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    plan: MadePlan,
    activation: str,
    adds: Sequence[Tensor | None] | None,
    gates: Sequence[Tensor | None] | None,
    name: str = "x",
) -> None:
    """Raises unless these are the arguments of a whole MADE."""
    if not isinstance(plan, MadePlan):
        raise TypeError(f"{op}: plan must be a MadePlan, got {type(plan).__name__}")
    check_activation(op, activation)
    check_tensor(op, name, x)
    if x.shape[-1] != plan.features:
        raise ValueError(f"{op}: {name} must be [..., {plan.features}], got {list(x.shape)}")
    n = len(plan.layers)
    check_sequence(op, "layers", layers, "a list of (weight, bias) pairs")
    for what, given in (("layers", layers), ("adds", adds), ("gates", gates)):
        if given is None:
            continue
        check_sequence(op, what, given, "None or a list of tensors")
        if len(given) != n:
            raise ValueError(f"{op}: {what} must be {n}, one per layer of the plan, got {len(given)}")
    for i, (layer, pair) in enumerate(zip(plan.layers, layers, strict=True)):
        check_pair(op, i, pair)
        for part, t, shape in zip(("weight", "bias"), pair, ((layer.n_out, layer.n_in), (layer.n_out,)), strict=True):
            check_tensor(op, f"layers[{i}] {part}", t, x, name)
            check_shape(op, f"layers[{i}] {part}", t, shape)
    for what, given in (("adds", adds), ("gates", gates)):
        for i, t in enumerate(given or ()):
            if t is not None:
                check_tensor(op, f"{what}[{i}]", t, x, name)
                check_broadcasts(op, f"{what}[{i}]", t, (*x.shape[:-1], plan.layers[i].n_out))
    for i, gate in enumerate(gates or ()):
        if gate is not None and not (plan.residual and 0 < i < n - 1 and i % 2 == 0):
            raise ValueError(f"{op}: gates[{i}] must be None where layer {i} closes no residual block, got a tensor")


# ---- dense nets ----

_PAIRS = "a list of (weight, bias) pairs"
_NORMS = "None or a list of (scale, shift) pairs, two per block"


def check_norms(op: str, x: Tensor, layers: Any, norms: Any, *, residual: bool, per_block: int) -> None:
    """Raises unless these scale and shift what enters the activations in the blocks of a residual net, or are None."""
    if norms is None:
        return
    check_sequence(op, "norms", norms, _NORMS)
    n = 2 * (len(layers) - 2) // per_block if residual else 0
    if len(norms) != n:
        of = f"2 * blocks = {n}" if residual else "none of a plain net"
        raise ValueError(f"{op}: norms must be {of}, got {len(norms)}")
    for i, pair in enumerate(norms):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"{op}: norms[{i}] must be (scale, shift), got {pair!r:.60}")
        block, of_second = divmod(i, 2)
        before = layers[1 + per_block * block if of_second else 0]
        for part, t in zip(("scale", "shift"), pair, strict=True):
            check_tensor(op, f"norms[{i}] {part}", t, x)
            check_shape(op, f"norms[{i}] {part}", t, (before[0].shape[0],))


def check_dense(
    op: str, x: Tensor, features: int, layers: Any, context: Any, *, residual: bool, blocks: int | None = None
) -> None:
    """Raises unless these are the layers of a net that takes so many features of x, and the context.

    ``blocks``: how many of a residual net, where the caller says so.
    """
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
    check_widths(op, features, n_context, layers, residual, per_block)


def check_widths(
    op: str, features: int, n_context: int, layers: Sequence[tuple[Tensor, Tensor]], residual: bool, per_block: int
) -> None:
    """Raises unless every layer takes what the one before returns; of residual nets, streams and gates too."""
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
