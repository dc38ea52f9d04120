"""zuko's flows as native ones and back."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from zuko import distributions as D
from zuko import flows, lazy, transforms
from zuko.flows.gaussianization import ElementWiseTransform
from zuko.flows.spline import CircularRQSTransform
from zuko.nn import MLP as TheirMLP
from zuko.nn import Linear as TheirLinear
from zuko.nn import MaskedLinear, MaskedMLP

from flowkernels.compat.convert import CannotConvert, class_name, copied, fixed_affine, parts_of
from flowkernels.compat.reading.dense import parts
from flowkernels.distributions import DiagonalNormal, Distribution, StandardNormal, UniformBox
from flowkernels.flows import Flow
from flowkernels.nets import MADE, MLP, Constant
from flowkernels.ops import MadePlan
from flowkernels.ops.net.activations import TABLE, name_of
from flowkernels.transforms import RQS, Affine, Autoregressive, Composite, Coupling, Inverse, Permutation, Transform

from .nets import _plan_of
from .univariate import univariate_of


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
    name = class_name(module)
    if name == "zuko.lazy.LazyComposedTransform":
        return Composite([_transform(t, features) for t in module.transforms])
    if name == "zuko.lazy.LazyInverse":
        return Inverse(_transform(module.transform, features))
    if name == "zuko.lazy.UnconditionalTransform":
        return _fixed(module(None), features)
    if name == "zuko.flows.autoregressive.MaskedAutoregressiveTransform":
        return _autoregressive(module)
    if name == "zuko.flows.coupling.GeneralCouplingTransform":
        return _coupling(module)
    if name == "zuko.flows.gaussianization.ElementWiseTransform":
        return _elementwise(module, features)
    raise CannotConvert(f"convert: every layer must be one that native flows have, got {type(module).__name__}")


def _fixed(transform: Any, features: int) -> Transform:
    if isinstance(transform, transforms.PermutationTransform):
        return Permutation(transform.order)
    if type(transform) is torch.distributions.AffineTransform:
        return fixed_affine(features, torch.as_tensor(transform.scale), torch.as_tensor(transform.loc))
    raise CannotConvert(f"convert: every layer must be one that native flows have, got {transform}")


def _univariate(layer: Any) -> RQS | Affine:
    found = univariate_of(layer)
    if isinstance(found, str):
        raise CannotConvert(f"convert: every layer must have a spline or an affine map, but {found}")
    return dataclasses.replace(found, shift_first=False) if type(found) is Affine else found


def _scale_first(univariate: Any, n: int) -> Tensor:
    """Which rows of zuko's last layer ours has: zuko's affine parameters are shift | scale."""
    P = univariate.n_params
    rows = torch.arange(n * P).view(n, P)
    return (rows.flip(1) if type(univariate) is Affine else rows).flatten()


def _parts(net: Any, *classes: type) -> tuple[list[Any], str]:
    found = parts(net, *classes)
    if isinstance(found, str):
        raise CannotConvert(f"convert: a network must be zuko's without extras, but {found}")
    return found


def _autoregressive(layer: Any) -> Transform:
    linears, activation = _parts(layer.hyper, MaskedMLP, MaskedLinear)
    univariate = _univariate(layer)
    features = layer.hyper.out_features // layer.total
    plan = _plan_of(layer.hyper, [m.mask for m in linears], features)
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
    for i, (ours, theirs) in enumerate(zip(net._linears(), linears, strict=True)):
        rows = _scale_first(univariate, features) if i == len(linears) - 1 else slice(None)
        copied(ours, theirs.weight[rows, : features if i == 0 else None], theirs.bias[rows])
    if context:
        copied(net.context_layer, linears[0].weight[:, features:], None)
    return Autoregressive(net, univariate)


def _dense(net: Any, n_in: int, univariate: Any, n: int) -> MLP:
    linears, activation = _parts(net, TheirMLP, TheirLinear)
    hidden = [m.out_features for m in linears[:-1]]
    native = MLP(n_in, net.out_features, hidden, net.in_features - n_in, TABLE[activation].module).double()
    rows = _scale_first(univariate, n)
    for ours, theirs in zip([*native.hidden_layers, native.final_layer], linears, strict=True):
        last = ours is native.final_layer
        copied(ours, theirs.weight[rows] if last else theirs.weight, theirs.bias[rows] if last else theirs.bias)
    return native


def _coupling(layer: Any) -> Transform:
    univariate, kept = _univariate(layer), int(layer.mask.sum())
    return Coupling(~layer.mask, _dense(layer.hyper, kept, univariate, len(layer.mask) - kept), univariate)


@torch.no_grad()
def _elementwise(layer: Any, features: int) -> Transform:
    univariate = _univariate(layer)
    if hasattr(layer, "hyper"):
        return Coupling([1] * features, _dense(layer.hyper, 0, univariate, features), univariate)
    phi = torch.cat([p.unsqueeze(-1) if p.dim() == 1 else p for p in layer.phi], dim=-1).flatten()
    net = Constant(0, len(phi)).double()
    net.start_at(phi[_scale_first(univariate, features)])
    return Coupling([1] * features, net, univariate)


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


def _refuse(part: Any, why: str) -> CannotConvert:
    return CannotConvert(f"to_zuko: every layer must be one that zuko has, got {type(part).__name__} {why}")


def _their_layer(part: Any) -> Any:
    if type(part) is Permutation and part.channel_dim == -1:
        return lazy.UnconditionalTransform(transforms.PermutationTransform, order=part.order.clone(), buffer=True)
    if type(part) is Autoregressive and type(part.conditioner) is MADE and not part.conditioner.residual:
        return _their_autoregressive(part)
    if type(part) is Coupling and type(part.conditioner) is MLP:
        return _their_coupling(part)
    if type(part) is Coupling and type(part.conditioner) is Constant and bool(part.split.mask.all()):
        return _their_elementwise(part)
    raise _refuse(part, "of this kind")


def _their_univariate(part: Any) -> dict[str, Any]:
    univariate = part.univariate
    if type(univariate) is Affine and univariate.scale == "soft_clip":
        slope = math.exp(-univariate.bound)
        return {"univariate": functools.partial(transforms.MonotonicAffineTransform, slope=slope), "shapes": [(), ()]}
    if (
        type(univariate) is not RQS
        or (univariate.parametrization, univariate.tails, univariate.box) != ("soft_clip", "linear", None)
        or univariate.logit_scale != 1
        or univariate.is_linear
    ):
        raise _refuse(part, f"with {univariate}")
    K = univariate.bins
    spline = functools.partial(transforms.MonotonicRQSTransform, slope=univariate.slope, bound=univariate.tail_bound)
    if univariate.circle_shift:
        if univariate.tail_bound != math.pi:
            raise _refuse(part, f"with a circle that is not from -pi to pi, {univariate}")
        spline = functools.partial(CircularRQSTransform, slope=univariate.slope)
    return {"univariate": spline, "shapes": [(K,), (K,), (K - 1,)]}


def _their_autoregressive(part: Any) -> Any:
    net, plan = part.conditioner, part.conditioner.plan
    if part.features == 1:  # zuko makes an elementwise layer of it
        raise _refuse(part, "of one feature")
    if net.context_features and net.context_activation:
        raise _refuse(part, "whose context goes through an activation of its own")
    if any(m.training and m.p > 0 for m in net.modules() if isinstance(m, nn.Dropout)):
        raise _refuse(part, "with dropout")
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
    rows = torch.argsort(_scale_first(part.univariate, part.features))
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
        raise _refuse(part, "with dropout, or with an activation that kernels do not know")
    linears = [*net.hidden_layers, net.final_layer]
    settings = {"hidden_features": [m.out_features for m in net.hidden_layers], **_their_univariate(part)}
    if bool(mask.all()):
        activation = TABLE[name].module
        layer: Any = ElementWiseTransform(part.features, net.context_features, activation=activation, **settings)
    else:
        layer = flows.GeneralCouplingTransform(
            part.features, net.context_features, mask=~mask, activation=TABLE[name].module, **settings
        )
    layer = layer.double()
    rows = torch.argsort(_scale_first(part.univariate, part.split.n_transformed))
    for theirs, ours in zip([*layer.hyper][::2], linears, strict=True):
        last = ours is net.final_layer
        copied(theirs, ours.weight[rows] if last else ours.weight, ours.bias[rows] if last else ours.bias)
    return layer


@torch.no_grad()
def _their_elementwise(part: Any) -> Any:
    layer: Any = ElementWiseTransform(part.features, 0, **_their_univariate(part)).double()
    phi = torch.empty_like(part.conditioner.value)
    phi[_scale_first(part.univariate, part.features)] = part.conditioner.value
    sizes = [p[0].numel() for p in layer.phi]
    for theirs, ours in zip(layer.phi, phi.view(part.features, -1).split(sizes, dim=1), strict=True):
        theirs.copy_(ours.reshape(theirs.shape))
    return layer
