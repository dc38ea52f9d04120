"""The checks that the ops on masked layers share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkernels.ops._checks import check_floating, expands, in_autocast

from .activations import check_activation
from .plan import MadePlan


def check_tensor(op: str, name: str, t: object, like: Tensor | None = None) -> None:
    """Raises unless `t` is a dense floating tensor, of the dtype (or under autocast) and on the device of `like`."""
    if (
        isinstance(t, Tensor)
        and like is not None
        and t.dtype == like.dtype
        and t.device == like.device
        and t.layout is torch.strided
    ):
        return
    check_floating(op, name, t)
    assert isinstance(t, Tensor)  # for the type checker
    if like is None:
        if t.dim() == 0:
            raise ValueError(f"{op}: {name} must be [..., D], got a scalar")
        return
    if t.device != like.device:
        raise ValueError(f"{op}: {name} must be on the device of x = {like.device}, got {t.device}")
    if t.dtype != like.dtype and not in_autocast(like):
        raise TypeError(f"{op}: {name} must be of the dtype of x = {like.dtype}, got {t.dtype}")


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


def check_shape(op: str, name: str, t: Tensor, shape: Sequence[int]) -> None:
    """Raises unless `t` has this shape."""
    if tuple(t.shape) != tuple(shape):
        raise ValueError(f"{op}: {name} must be {list(shape)}, got {list(t.shape)}")


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
) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Checks the arguments of a whole MADE; returns which layers have something added, and which a gate."""
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
            check_tensor(op, f"layers[{i}] {part}", t, x)
            check_shape(op, f"layers[{i}] {part}", t, shape)
    for what, given in (("adds", adds), ("gates", gates)):
        for i, t in enumerate(given or ()):
            if t is not None:
                check_tensor(op, f"{what}[{i}]", t, x)
                check_broadcasts(op, f"{what}[{i}]", t, (*x.shape[:-1], plan.layers[i].n_out))
    gated = tuple(gate is not None for gate in gates or ())
    for i, has in enumerate(gated):
        if has and not (plan.residual and 0 < i < n - 1 and i % 2 == 0):
            raise ValueError(f"{op}: gates[{i}] must be None where layer {i} closes no residual block, got a tensor")
    added = (False,) * n if adds is None else tuple(add is not None for add in adds)
    return added, gated if True in gated else ()
