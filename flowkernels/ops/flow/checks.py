"""What `ops.flow` asks of its steps, before any kernel sees them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flowkernels._arguments import flag
from flowkernels.ops._checks import check_shape
from flowkernels.ops.autoregressive_inverse.reference import SweepSpec
from flowkernels.ops.flow_layer.reference import FlowLayerSpec
from flowkernels.ops.net.checks import check_broadcasts, check_tensor
from flowkernels.ops.net.net import Net
from flowkernels.ops.net.plan import MadePlan
from flowkernels.ops.net.spec import unpack
from flowkernels.ops.split import Split
from flowkernels.ops.univariate import check_univariate

from .spec import Layer, Order, Step, Sweep
from .steps import LU, Elementwise, Normal, Own, Scale, spec_and_tensors

_NAME = "ops.flow"
_KINDS = (Layer, Sweep, Order, LU, Scale, Elementwise, Normal)


def checked(i: int, step: Any, x: Tensor) -> tuple[Step, tuple[Tensor, ...]]:
    """The spec of a step, and its tensors; raises where it does not fit x, or its tensors each other."""
    name, features = f"layers[{i}]", x.shape[-1]
    if not isinstance(step, _KINDS):
        raise TypeError(f"{_NAME}: {name} must be a Layer or an Order, got {type(step).__name__}")
    if isinstance(step, Order):
        return Order(_order(name, "an order", step.order, features)), ()
    if isinstance(step, Layer):
        return _checked_layer(name, step, x), step.net.tensors
    if isinstance(step, Sweep):
        return _checked_sweep(name, step, x), step.net.tensors
    _check_own(name, step, x)
    return spec_and_tensors(step, features)


def _order(name: str, what: str, order: Any, features: int) -> tuple[int, ...]:
    numbers = isinstance(order, (list, tuple)) and all(type(i) is int for i in order)
    if not numbers or sorted(order) != list(range(features)):
        raise ValueError(f"{_NAME}: {name} must be {what} of {features} features, got {order!r:.60}")
    return tuple(order)


def _check_own(name: str, step: Own, x: Tensor) -> None:
    D = x.shape[-1]

    def check(what: str, t: Tensor | None, *shape: int, may_lack: bool = False) -> None:
        if t is None and may_lack:
            return
        check_tensor(_NAME, f"{name} {what}", t, x)
        assert t is not None  # for the type checker
        check_shape(_NAME, f"{name} {what}", t, shape)

    if isinstance(step, LU):
        flag(_NAME, f"{name} inverse", step.inverse)
        if step.permutation is not None:
            _order(f"{name} permutation", "an order", step.permutation, D)
        check("lower", step.lower, D, D)
        check("upper", step.upper, D, D)
        check("log_s", step.log_s, D)
        check("sign_s", step.sign_s, D)
        check("bias", step.bias, D, may_lack=True)
    elif isinstance(step, Scale):
        flag(_NAME, f"{name} inverse", step.inverse)
        flag(_NAME, f"{name} is_log", step.is_log)
        check("scale", step.scale, D)
        check("shift", step.shift, D, may_lack=True)
    elif isinstance(step, Elementwise):
        check_univariate(_NAME, step.univariate, x.dtype)
        outputs = range(D) if step.outputs is None else step.outputs
        given = list(outputs) if isinstance(outputs, (list, tuple, range)) else [None]
        fits = all(type(i) is int and 0 <= i < D for i in given) and 0 < len(given) == len(set(given))
        if not fits:
            contract = f"distinct features below {D}, at least one"
            raise ValueError(f"{_NAME}: {name} outputs must be {contract}, got {step.outputs!r:.60}")
        check("params", step.params, len(given), step.univariate.n_params)


def _checked_layer(name: str, step: Layer, x: Tensor) -> FlowLayerSpec:
    univariate, net, split = step
    if not isinstance(net, Net):
        raise TypeError(f"{_NAME}: {name} net must be a Net, got {type(net).__name__}")
    if not isinstance(split, Split):
        raise TypeError(f"{_NAME}: {name} split must be a Split, got {type(split).__name__}")
    check_univariate(_NAME, univariate, x.dtype)
    if split.features != x.shape[-1]:
        raise ValueError(f"{_NAME}: {name} split must be of {x.shape[-1]} features, as x, got {split.features}")
    _check_net(name, net, len(split.inputs), len(split.outputs) * univariate.n_params, x)
    return FlowLayerSpec(split, univariate, net.spec)


def _checked_sweep(name: str, step: Sweep, x: Tensor) -> SweepSpec:
    univariate, net = step
    if not isinstance(net, Net):
        raise TypeError(f"{_NAME}: {name} net must be a Net, got {type(net).__name__}")
    check_univariate(_NAME, univariate, x.dtype)
    if univariate.inverse:
        raise ValueError(f"{_NAME}: {name} univariate must be of the layer's direction, got inverse=True")
    plan = net.spec.plan
    if not isinstance(plan, MadePlan):
        raise ValueError(f"{_NAME}: {name} net must be of the masks of a MadePlan, got one of others or of none")
    wanted, given = (x.shape[-1], univariate.n_params), (plan.features, plan.params_per_feature)
    if wanted != given:
        raise ValueError(f"{_NAME}: {name} net must be of {wanted} features and parameters of each, got {given}")
    _check_net(name, net, x.shape[-1], x.shape[-1] * univariate.n_params, x)
    return SweepSpec(net.spec, univariate)


def _check_net(name: str, net: Net, n_in: int, n_out: int, x: Tensor) -> None:
    spec = net.spec
    if spec.periodic:
        raise ValueError(f"{_NAME}: {name} net must see x itself, got one of periodic features")
    _, parts = unpack(spec, (x, *net.tensors))
    before = n_in
    for j, (weight, bias) in enumerate(zip(parts.weights, parts.biases, strict=True)):
        where = f"{name} net layer {j}"
        check_tensor(_NAME, f"{where} weight", weight, x)
        out = n_out if j == spec.n - 1 else parts.weights[0].shape[0] if spec.closes_block(j) else None
        shape = list(weight.shape)
        if len(shape) != 2 or shape[1] != before or out not in (None, shape[0]):
            raise ValueError(f"{_NAME}: {where} weight must be [{out or 'out'}, {before}], got {shape}")
        mask = spec.masks()[j] if spec.plan is not None else None
        if mask is not None and (mask.n_out, mask.n_in) != tuple(shape):
            raise ValueError(f"{_NAME}: {where} weight must be [{mask.n_out}, {mask.n_in}], got {shape}")
        before = shape[0]
        if bias is not None:
            check_tensor(_NAME, f"{where} bias", bias, x)
            check_shape(_NAME, f"{where} bias", bias, (before,))
        for what, term in (("term", parts.adds[j]), ("gate", parts.gates[j])):
            if term is not None:
                check_tensor(_NAME, f"{where} {what}", term, x)
                check_broadcasts(_NAME, f"{where} {what}", term, (*x.shape[:-1], before))
        for what, t in zip(("scale", "shift"), parts.scales[j] or (), strict=False):
            check_tensor(_NAME, f"{where} {what}", t, x)
            check_shape(_NAME, f"{where} {what}", t, (shape[1],))
