"""zuko's flows as native ones and back."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from zuko import distributions as D
from zuko import flows, lazy, transforms
from zuko.flows.gaussianization import ElementWiseTransform
from zuko.flows.neural import MNN, UMNN
from zuko.flows.polynomial import ShiftedSOSPTransform
from zuko.flows.spline import CircularRQSTransform
from zuko.nn import MLP as TheirMLP
from zuko.nn import Linear as TheirLinear
from zuko.nn import MaskedLinear, MaskedMLP

from flowkernels.compat.convert import CannotConvert, as_native, cannot, copied, fixed_affine, parts_of
from flowkernels.compat.layer import has_settings, in_our_order, native_rows
from flowkernels.compat.reading.dense import parts
from flowkernels.distributions import DiagonalNormal, Distribution, StandardNormal, UniformBox
from flowkernels.flows import Flow
from flowkernels.nets import MADE, MLP, Constant
from flowkernels.ops import MadePlan
from flowkernels.ops.net.activations import TABLE, name_of
from flowkernels.transforms import (
    Autoregressive,
    Composite,
    Continuous,
    Coupling,
    Inverse,
    LULinear,
    MonotoneNet,
    Permutation,
    Softclip,
    Transform,
)

from .continuous import Field, Times, field_of, times_of
from .describe import GAUSSIANIZATION, describe, own_params, plan_of
from .monotone import SETTINGS, MonotoneMap
from .monotone import read as read_monotone


def flow_of(model: Any) -> Flow:
    base = _base(model.base)
    return Flow(_transform(model.transform, base.features), base)


def _base(base: Any) -> Distribution:
    distribution = base(None)
    if isinstance(base, lazy.UnconditionalDistribution) and isinstance(distribution, D.DiagNormal):
        loc, scale = distribution.base_dist.loc, distribution.base_dist.scale
        if bool((loc == 0).all()) and bool((scale == 1).all()):
            return StandardNormal(len(loc))
        return _with(DiagonalNormal(len(loc), learnable=loc.requires_grad), loc=loc, log_scale=scale.log())
    if isinstance(base, lazy.UnconditionalDistribution) and isinstance(distribution, D.BoxUniform):
        box = distribution.base_dist
        return _with(UniformBox(box.low, box.high), low=box.low, high=box.high)
    raise CannotConvert(f"convert: base must be a DiagNormal or a BoxUniform, got {base}")


@torch.no_grad()
def _with(base: Distribution, **values: Tensor) -> Distribution:
    for name, value in values.items():
        getattr(base.double(), name).copy_(value)
    return base


def _transform(module: Any, features: int) -> Transform:
    return as_native("zuko", _NATIVE, module, features)


def _fixed(transform: Any, features: int) -> Transform:
    if isinstance(transform, transforms.PermutationTransform):
        return Permutation(transform.order)
    if type(transform) is transforms.SoftclipTransform:
        return Softclip(transform.bound)
    if type(transform) is transforms.RotationTransform:
        return _rotation(transform.R)
    if type(transform) is torch.distributions.AffineTransform:
        return fixed_affine(features, torch.as_tensor(transform.scale), torch.as_tensor(transform.loc))
    raise CannotConvert(f"convert: every layer must be one that native flows have, got {transform}")


@torch.no_grad()
def _rotation(matrix: Tensor) -> LULinear:
    """By its LU factors: the same map, which training may take away from rotations."""
    native = LULinear(len(matrix), bias=False, seed=0).double()
    P, L, U = torch.linalg.lu(matrix.double())
    s = U.diagonal()
    for name, value in (("lower", L.tril(-1)), ("upper", U.triu(1)), ("log_s", s.abs().log()), ("sign_s", s.sign())):
        getattr(native, name).copy_(value)
    native.permutation.copy_(P.argmax(1))
    return native


def _described(layer: Any, n: int) -> tuple[Any, Tensor]:
    """A layer's map of n features as native layers have it, and which rows of its network's last layer they have."""
    found = describe(layer)
    if isinstance(found, str):
        raise CannotConvert(f"convert: every layer must have a spline or an affine map, but {found}")
    assert found.map is not None
    if isinstance(found.map, MonotoneMap):
        return _native_monotone(found.map, n), torch.arange(n * found.map.n_params)
    return in_our_order(found.map)[0], native_rows(found.map, n)


@torch.no_grad()
def _native_monotone(found: MonotoneMap, n: int) -> MonotoneNet:
    if found.tensors[0].shape[:-2] != (n,):
        raise CannotConvert(f"convert: a monotone network must be one for each of {n} features, got one for all")
    hidden = [t.shape[-1] for t in found.tensors[1:-1:2]]
    if not hidden:
        raise CannotConvert("convert: a monotone network must have a hidden layer, got none")
    spec = found.specs[0]
    net = MonotoneNet(
        n, form=spec.form, signal=found.tensors[0].shape[-1] - 1, hidden=hidden, activation=spec.activation, seed=0
    ).double()
    for ours, theirs in zip(net.tensors(), found.tensors, strict=True):
        ours.copy_(theirs)
    return net


def _parts(net: Any, *classes: type) -> tuple[list[Any], str]:
    found = parts(net, *classes)
    if isinstance(found, str):
        raise CannotConvert(f"convert: a network must be zuko's without extras, but {found}")
    return found


def _copied(to: Iterable[Any], layers: Iterable[Any], rows: Tensor) -> None:
    """Copies the weights of linear layers, the last one's rows in this order."""
    *pairs, (weight, bias) = [(m.weight, m.bias) for m in layers]
    for layer, pair in zip(to, [*pairs, (weight[rows], bias[rows])], strict=True):
        copied(layer, *pair)


def _autoregressive(layer: Any, features: int) -> Transform:
    linears, activation = _parts(layer.hyper, MaskedMLP, MaskedLinear)
    univariate, rows = _described(layer, features)
    plan = plan_of(layer.hyper, [m.mask for m in linears], features)
    if not isinstance(plan, MadePlan) or layer.passes < len(plan.groups):
        raise CannotConvert(f"convert: the masks of a layer must be those of an order of the features, but {plan}")
    if len(linears) == 1:
        raise CannotConvert("convert: a masked network must have a hidden layer, got none")
    context = layer.hyper.in_features - features
    net = MADE(
        features, layer.total, [m.out_features for m in linears[:-1]], context=context, activation=activation,
        context_activation=False,
    ).double()  # fmt: skip
    net._store(plan._degrees)
    of_x = SimpleNamespace(weight=linears[0].weight[:, :features], bias=linears[0].bias)
    _copied(net._linears(), [of_x, *linears[1:]], rows)
    if context:
        copied(net.context_layer, linears[0].weight[:, features:], None)
    return Autoregressive(net, univariate)


def _dense(net: Any, n_in: int, rows: Tensor) -> MLP:
    linears, activation = _parts(net, TheirMLP, TheirLinear)
    hidden = [m.out_features for m in linears[:-1]]
    native = MLP(n_in, net.out_features, hidden, net.in_features - n_in, TABLE[activation].module).double()
    _copied([*native.hidden_layers, native.final_layer], linears, rows)
    return native


def _coupling(layer: Any, features: int) -> Transform:
    kept = int(layer.mask.sum())
    univariate, rows = _described(layer, features - kept)
    return Coupling(~layer.mask, _dense(layer.hyper, kept, rows), univariate)


@torch.no_grad()
def _elementwise(layer: Any, features: int) -> Transform:
    univariate, rows = _described(layer, features)
    if hasattr(layer, "hyper"):
        return Coupling([1] * features, _dense(layer.hyper, 0, rows), univariate)
    phi = own_params(layer).flatten()
    net = Constant(0, len(phi)).double()
    net.start_at(phi[rows])
    return Coupling([1] * features, net, univariate)


@torch.no_grad()
def _continuous(layer: Any, features: int) -> Transform:
    field, times = field_of(layer), times_of(layer)
    if not isinstance(field, Field) or not isinstance(times, Times):
        reason = field if isinstance(field, str) else times
        raise CannotConvert(f"convert: a continuous layer must have a field that the op has, but {reason}")
    layers = field.layers(times.waves, True)
    native = Continuous(
        features, [len(bias) for _, bias in layers[:-1]], activation=field.activation, rtol=layer.rtol, atol=layer.atol,
        context=layers[0][0].shape[1] - features - 2 * times.waves, t0=times.t0, t1=times.t1, noise="gaussian",
        trace="exact" if layer.exact else "hutchinson", time="sinusoidal" if times.waves else "none",
        frequencies=times.waves or 1, seed=0,
    ).double()  # fmt: skip
    for ours, theirs in zip(native.layers(), layers, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            a.copy_(b)
    return native


_NATIVE: dict[str, Callable[[Any, int], Transform]] = {
    "lazy.LazyComposedTransform": lambda m, D: Composite([_transform(t, D) for t in m.transforms]),
    "lazy.LazyInverse": lambda m, D: Inverse(_transform(m.transform, D)),
    "lazy.UnconditionalTransform": lambda m, D: _fixed(m(None), D),
    "flows.autoregressive.MaskedAutoregressiveTransform": _autoregressive,
    "flows.coupling.GeneralCouplingTransform": _coupling,
    "flows.gaussianization.ElementWiseTransform": _elementwise,
    "flows.continuous.FFJTransform": _continuous,
}


# ---- native → zuko ----


def theirs_of(flow: Flow) -> Any:
    if type(flow.base) not in (StandardNormal, UniformBox) or flow.context_to_base or flow.embedding is not None:
        given = f"{type(flow.base).__name__} and embedding {flow.embedding}"
        raise CannotConvert(f"to_zuko: base must be a StandardNormal or a UniformBox, and embedding None, got {given}")
    return lazy.Flow([_their_layer(part) for part in parts_of(flow.transform)], _their_base(flow.base))


def _their_base(base: Any) -> Any:
    if isinstance(base, UniformBox):
        box = {"lower": base.low.clone(), "upper": base.high.clone()}
        return lazy.UnconditionalDistribution(D.BoxUniform, **box, buffer=True)
    normal = {"loc": torch.zeros(base.features), "scale": torch.ones(base.features)}
    return lazy.UnconditionalDistribution(D.DiagNormal, **normal, buffer=True)


def _their_layer(part: Any) -> Any:
    if type(part) is Permutation and part.channel_dim == -1:
        return lazy.UnconditionalTransform(transforms.PermutationTransform, order=part.order.clone(), buffer=True)
    if type(part) is Softclip and part.event_dims == 1:
        return lazy.UnconditionalTransform(transforms.SoftclipTransform, bound=part.bound)
    if type(part) is Autoregressive and type(part.conditioner) is MADE and not part.conditioner.residual:
        return _their_autoregressive(part)
    if type(part) is Coupling and type(part.conditioner) is MLP:
        return _their_coupling(part)
    if type(part) is Coupling and type(part.conditioner) is Constant and bool(part.split.mask.all()):
        return _their_elementwise(part)
    if type(part) is Continuous:
        return _their_continuous(part)
    raise cannot("to_zuko", part, "of this kind")


_SPLINE = {"parametrization": "soft_clip", "tails": "linear", "box": None, "logit_scale": 1, "order": "quadratic",
           "zero_outside": False}  # fmt: skip


def _their_univariate(part: Any) -> dict[str, Any]:
    univariate = part.univariate
    if isinstance(univariate, MonotoneNet):
        return _their_monotone(part)
    if has_settings(univariate, scale="soft_clip"):
        slope = math.exp(-univariate.bound)
        return {"univariate": functools.partial(transforms.MonotonicAffineTransform, slope=slope), "shapes": [(), ()]}
    if has_settings(univariate, family="sos", squares="mean", bounded=True):
        terms, n = univariate.terms, univariate.degree + 1
        settings = {"slope": univariate.slope}
        if univariate.shift and univariate.bound == 10:
            return {"univariate": functools.partial(ShiftedSOSPTransform, **settings), "shapes": [(terms, n), ()]}
        if not univariate.shift:
            sos = functools.partial(transforms.SOSPolynomialTransform, bound=univariate.bound, **settings)
            return {"univariate": sos, "shapes": [(terms, n)]}
    if has_settings(univariate, family="bernstein") and univariate.edge > 0:
        bounded = univariate.tails == "identity"
        kind = transforms.BoundedBernsteinTransform if bounded else transforms.BernsteinTransform
        made = functools.partial(kind, bound=univariate.bound, eps=univariate.edge)
        return {"univariate": made, "shapes": [(univariate.n_params,)]}
    if has_settings(univariate, **GAUSSIANIZATION):
        made = functools.partial(transforms.GaussianizationTransform, bound=univariate.bound)
        return {"univariate": made, "shapes": [(univariate.components,), (univariate.components,)]}
    if not has_settings(univariate, **_SPLINE):
        raise cannot("to_zuko", part, f"with {univariate}")
    K = univariate.bins
    spline = functools.partial(transforms.MonotonicRQSTransform, slope=univariate.slope, bound=univariate.tail_bound)
    if univariate.circle_shift:
        if univariate.tail_bound != math.pi:
            raise cannot("to_zuko", part, f"with a circle that is not from -pi to pi, {univariate}")
        spline = functools.partial(CircularRQSTransform, slope=univariate.slope)
    return {"univariate": spline, "shapes": [(K,), (K,), (K - 1,)]}


@torch.no_grad()
def _their_monotone(part: Any) -> dict[str, Any]:
    ours = part.univariate
    spec, positive = ours.spec, ours.spec.form == "positive"
    if (spec.nodes, spec.log_bound, spec.bound) != SETTINGS or (positive and spec.activation != "elu"):
        raise cannot("to_zuko", part, f"with {ours}")
    sizes = {"signal": ours.signal, "stack": ours.features, "hidden_features": ours.hidden}
    net = MNN(**sizes) if positive else UMNN(**sizes, activation=TABLE[spec.activation].module)
    shapes: Any = ((ours.signal,),) if positive else ((ours.signal,), ())
    found: Any = read_monotone(net, shapes)
    net.double()
    for theirs, t in zip(found.tensors, ours.tensors(), strict=True):
        theirs.copy_(t)
    return {"univariate": net, "shapes": shapes}


def _their_rows(layer: Any, n: int) -> Tensor:
    """Which rows of a native last layer that of a layer of zuko has, of n features."""
    return torch.argsort(_described(layer, n)[1])


def _their_autoregressive(part: Any) -> Any:
    net, plan = part.conditioner, part.conditioner.plan
    if part.features == 1:  # zuko makes an elementwise layer of it
        raise cannot("to_zuko", part, "of one feature")
    if net.context_features and net.context_activation:
        raise cannot("to_zuko", part, "whose context goes through an activation of its own")
    if any(m.training and m.p > 0 for m in net.modules() if isinstance(m, nn.Dropout)):
        raise cannot("to_zuko", part, "with dropout")
    linears = net._linears()
    order = torch.empty(part.features, dtype=torch.long)
    for level, group in enumerate(plan.groups):
        order[list(group)] = level
    ranks: Any = torch.argsort(torch.argsort(order, stable=True))
    layer: Any = flows.MaskedAutoregressiveTransform(
        part.features, net.context_features, order=ranks, hidden_features=[m.out_features for m in linears[:-1]],
        activation=TABLE[net.activation].module, **_their_univariate(part),
    ).double()  # fmt: skip
    layer.order, layer.passes = order, len(plan.groups)
    rows = _their_rows(layer, part.features)
    with torch.no_grad():
        for i, (theirs, ours) in enumerate(zip([*layer.hyper][::2], linears, strict=True)):
            mask, weight, bias = ours.plan.mask(theirs.weight).bool(), ours.weight, ours.bias
            if i == 0 and net.context_features:
                weight = torch.cat((weight, net.context_layer.weight), dim=1)
                bias = bias + net.context_layer.bias
                mask = torch.cat((mask, torch.ones(len(mask), net.context_features, dtype=torch.bool)), dim=1)
            last = i == len(linears) - 1
            theirs.mask = mask[rows] if last else mask
            copied(theirs, weight[rows] if last else weight, bias[rows] if last else bias)
    return layer


def _their_coupling(part: Any) -> Any:
    net, mask = part.conditioner, part.split.mask
    name = name_of(net.activation) if len(net.hidden_layers) else "identity"
    if name is None or net.dropout is not None:
        raise cannot("to_zuko", part, "with dropout, or with an activation that kernels do not know")
    sizes = part.features, net.context_features
    settings = {"hidden_features": [m.out_features for m in net.hidden_layers], "activation": TABLE[name].module}
    settings |= _their_univariate(part)
    if bool(mask.all()):
        layer: Any = ElementWiseTransform(*sizes, **settings)
    else:
        layer = flows.GeneralCouplingTransform(*sizes, mask=~mask, **settings)
    rows = _their_rows(layer.double(), part.split.n_transformed)
    _copied([*layer.hyper][::2], [*net.hidden_layers, net.final_layer], rows)
    return layer


@torch.no_grad()
def _their_continuous(part: Any) -> Any:
    if part.solver != "dopri5" or part.time == "concat" or (part.trace != "exact" and part.noise != "gaussian"):
        raise cannot("to_zuko", part, f"by {part.solver}, with time={part.time!r} and noise={part.noise!r}")
    module = nn.Softplus if part.activation == "softplus" else TABLE[part.activation].module
    waves = part.frequencies if part.time == "sinusoidal" else 0
    layer: Any = flows.continuous.FFJTransform(
        part.features, part.context, waves, part.atol, part.rtol, part.trace == "exact", hidden_features=part.hidden,
        activation=module,
    ).double()  # fmt: skip
    layer.times.copy_(torch.tensor((part.t0, part.t1)))
    (weight, bias), *rest = part.layers()
    of_x, of_time, of_context = weight.tensor_split((part.features, part.features + 2 * waves), 1)
    for theirs, (w, b) in zip(
        [*layer.ode][::2], [(torch.cat((of_time, of_x, of_context), 1), bias), *rest], strict=True
    ):
        copied(theirs, w, b)
    return layer


@torch.no_grad()
def _their_elementwise(part: Any) -> Any:
    layer: Any = ElementWiseTransform(part.features, 0, **_their_univariate(part)).double()
    phi = part.conditioner.value[_their_rows(layer, part.features)]
    sizes = [p[0].numel() for p in layer.phi]
    for theirs, ours in zip(layer.phi, phi.view(part.features, -1).split(sizes, dim=1), strict=True):
        theirs.copy_(ours.reshape(theirs.shape))
    return layer
