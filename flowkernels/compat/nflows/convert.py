"""nflows' flows as native ones and back. Networks have the same parameter names on both sides."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from flowkernels.compat.convert import CannotConvert, class_name, fixed_affine, parts_of, rows_by_block
from flowkernels.distributions import StandardNormal
from flowkernels.flows import Flow
from flowkernels.nets import MADE, ResidualNet
from flowkernels.nets.made import MaskedLinear
from flowkernels.ops.net.activations import FUNCTIONS
from flowkernels.ops.net.activations import name_of as activation_name
from flowkernels.transforms import (
    RQS,
    ActNorm,
    Affine,
    Autoregressive,
    Composite,
    Coupling,
    Inverse,
    LULinear,
    Permutation,
    Transform,
)

from .spline import spline_settings

_EPSILON = 1e-3  # of nflows' affine layers


def flow_of(model: Any) -> Flow:
    base = model._distribution
    if class_name(base) != "nflows.distributions.normal.StandardNormal" or len(base._shape) != 1:
        raise CannotConvert(f"convert: _distribution must be a StandardNormal of features, got {base}")
    embedding = None if type(model._embedding_net) is nn.Identity else model._embedding_net
    return Flow(_transform(model._transform, base._shape[0]), StandardNormal(base._shape[0]), embedding)


def _transform(module: Any, features: int) -> Transform:
    name = class_name(module).removeprefix("nflows.transforms.")
    if name not in _NATIVE:
        raise CannotConvert(f"convert: every layer must be one that native flows have, got {type(module).__name__}")
    return _NATIVE[name](module, features)


# ---- networks ----


def _dropout(net: Any) -> float:
    return next((m.p for m in net.modules() if isinstance(m, nn.Dropout)), 0.0)


def _residual_net(net: Any, n_in: int, rows: torch.Tensor | None = None) -> ResidualNet:
    if class_name(net) != "nflows.nn.nets.resnet.ResidualNet":
        raise CannotConvert(f"convert: the network of a coupling must be a ResidualNet, got {type(net).__name__}")
    state, first = net.state_dict(), net.initial_layer
    if rows is not None:
        state |= {n: state[n][rows] for n in ("final_layer.weight", "final_layer.bias")}
    block = net.blocks[0] if len(net.blocks) else None
    native = ResidualNet(
        n_in, net.final_layer.out_features, first.out_features, len(net.blocks), first.in_features - n_in,
        activation=F.relu if block is None else block.activation, dropout=_dropout(net),
        batch_norm=bool(block is not None and block.use_batch_norm),
    )  # fmt: skip
    native.double().load_state_dict(state)
    return native


def _made(net: Any, features: int) -> MADE:
    if class_name(net) != "nflows.transforms.made.MADE":
        raise CannotConvert(f"convert: the network of an autoregressive layer must be a MADE, got {type(net).__name__}")
    activation = activation_name(net.activation)
    if activation is None or any("batch_norm" in name for name in net.state_dict()):
        raise CannotConvert("convert: a MADE must have no batch norm and an activation of nets.MADE, got one that has")
    residual, blocks = net.use_residual_blocks, len(net.blocks)
    if residual and not blocks:
        raise CannotConvert("convert: a residual MADE must have a block, got none")
    context = net.context_layer.in_features if hasattr(net, "context_layer") else 0
    hidden = (net.initial_layer.out_features,) * (blocks + (not residual))
    native = MADE(
        features, net.final_layer.out_features // features, hidden, residual=residual, context=context,
        activation=activation, dropout=_dropout(net),
    )  # fmt: skip
    native.double().load_state_dict(net.state_dict())
    return native


# ---- layers → native ----


def _rqs(layer: Any, scaled_by: Any) -> RQS:
    width = getattr(scaled_by, "hidden_features", None)
    return RQS(**spline_settings(layer, layer.num_bins), logit_scale=1.0 if width is None else 1 / math.sqrt(width))


def _mask(layer: Any) -> list[bool]:
    mapped = set(layer.transform_features.tolist())
    if layer.unconditional_transform is not None:
        raise CannotConvert("convert: a coupling must leave its other features alone, got an unconditional_transform")
    return [i in mapped for i in range(layer.features)]


def _coupling(layer: Any, univariate: RQS | Affine) -> Transform:
    return Coupling(_mask(layer), _residual_net(layer.transform_net, layer.num_identity_features), univariate)


def _affine_coupling(layer: Any, features: int) -> Transform:
    if hasattr(layer, "scale_activation"):
        raise CannotConvert("convert: an affine coupling must have nflows' 0.14 scale, got a scale_activation")
    rows = rows_by_block(layer.num_transform_features, swap=True)  # nflows has shifts | scales
    net = _residual_net(layer.transform_net, layer.num_identity_features, rows)
    return Coupling(_mask(layer), net, Affine("sigmoid", _EPSILON))


def _autoregressive(layer: Any, features: int, univariate: RQS | Affine) -> Transform:
    return Autoregressive(_made(layer.autoregressive_net, features), univariate)


@torch.no_grad()
def _lu(layer: Any, features: int) -> Transform:
    native = LULinear(features, seed=0).double()
    lower, upper = layer._create_lower_upper()
    native.lower.copy_(lower.tril(-1))
    native.upper.copy_(upper.triu(1))
    native.log_s.copy_(layer.upper_diag.log())
    native.bias.copy_(layer.bias)  # type: ignore[union-attr]
    native.sign_s.fill_(1)
    native.permutation.copy_(torch.arange(features))
    return native


@torch.no_grad()
def _actnorm(layer: Any, features: int) -> Transform:
    native = ActNorm(features).double()
    native.log_scale.copy_(layer.log_scale)
    native.shift.copy_(layer.shift)
    native.initialised.copy_(layer.initialized)
    return native


_NATIVE: dict[str, Callable[[Any, int], Transform]] = {
    "base.CompositeTransform": lambda m, D: Composite([_transform(t, D) for t in m._transforms]),
    "base.InverseTransform": lambda m, D: Inverse(_transform(m._transform, D)),
    "standard.IdentityTransform": lambda m, D: Composite([]),
    "standard.PointwiseAffineTransform": lambda m, D: fixed_affine(D, m._scale, m._shift),
    **dict.fromkeys(
        ("permutations.Permutation", "permutations.RandomPermutation", "permutations.ReversePermutation"),
        lambda m, D: Permutation(m._permutation),
    ),
    "lu.LULinear": _lu,
    "normalization.ActNorm": _actnorm,
    "coupling.PiecewiseRationalQuadraticCouplingTransform": lambda m, D: _coupling(m, _rqs(m, m.transform_net)),
    "coupling.AffineCouplingTransform": _affine_coupling,
    "coupling.AdditiveCouplingTransform": lambda m, D: _coupling(m, Affine("additive")),
    "autoregressive.MaskedAffineAutoregressiveTransform": lambda m, D: _autoregressive(
        m, D, Affine("softplus", m._epsilon)
    ),
    "autoregressive.MaskedPiecewiseRationalQuadraticAutoregressiveTransform": lambda m, D: _autoregressive(
        m, D, _rqs(m, m.autoregressive_net)
    ),
}


# ---- native → nflows ----


def theirs_of(flow: Flow) -> Any:
    from nflows import distributions, flows, transforms

    if not isinstance(flow.base, StandardNormal) or flow.context_to_base:
        raise CannotConvert(f"to_nflows: base must be a StandardNormal, got {type(flow.base).__name__}")
    layers = [_their_layer(part) for part in parts_of(flow.transform)]
    base = distributions.StandardNormal([flow.base.features])
    return flows.Flow(transforms.CompositeTransform(layers), base, flow.embedding)


def _refuse(part: Any, why: str) -> CannotConvert:
    return CannotConvert(f"to_nflows: every layer must be one that nflows has, got {type(part).__name__} {why}")


def _their_layer(part: Any) -> Any:
    from nflows import transforms as T

    if type(part) is Inverse:
        return T.InverseTransform(T.CompositeTransform([_their_layer(p) for p in parts_of(part.transform)]))
    if type(part) is Permutation and part.channel_dim == -1:
        return T.Permutation(part.order.clone())
    if type(part) is LULinear and part.channel_dim == -1:
        return _their_lu(part)
    if type(part) is ActNorm and part.channel_dim == -1:
        layer = T.ActNorm(part.features).double()
        layer.load_state_dict({**part.state_dict(), "initialized": part.initialised}, strict=False)
        return layer
    if type(part) is Coupling and type(part.conditioner) is ResidualNet:
        return _their_coupling(part)
    if type(part) is Autoregressive and type(part.conditioner) is MADE:
        return _their_autoregressive(part)
    raise _refuse(part, "of this kind")


@torch.no_grad()
def _their_lu(part: LULinear) -> Any:
    from nflows.transforms import LULinear as Theirs

    layer = Theirs(part.features).double()
    diagonal = part.log_s.exp() - layer.eps
    in_order = torch.equal(part.permutation.cpu(), torch.arange(part.features))
    if not in_order or not bool((part.sign_s > 0).all()) or not bool((diagonal > 0).all()):
        raise _refuse(part, "with a permutation, or with a diagonal that is not above 1e-3")
    layer.lower_entries.copy_(part.lower[layer.lower_indices])
    layer.upper_entries.copy_(part.upper[layer.upper_indices])
    layer.unconstrained_upper_diag.copy_(torch.log(torch.expm1(diagonal)))
    layer.bias.copy_(torch.zeros(part.features) if part.bias is None else part.bias)
    return layer


def _their_spline(part: Any, state: dict[str, Any], logit_scale: float) -> dict[str, Any]:
    """Their settings; in `state`, the rows of bin sizes are scaled where nflows scales by another factor."""
    spline: RQS = part.univariate
    unit = spline.tails is None and spline.box == (0.0, 1.0, 0.0, 1.0)
    linear = spline.tails == "linear" and spline.box is None
    if spline.circle_shift or spline.is_linear or spline.parametrization != "softmax" or not (unit or linear):
        raise _refuse(part, f"with {spline}")
    factor = torch.ones(spline.n_params, dtype=torch.float64)
    factor[: 2 * spline.bins] = spline.logit_scale / logit_scale
    factor = factor.repeat(len(state["final_layer.bias"]) // len(factor)).to(state["final_layer.bias"].device)
    state["final_layer.weight"] = state["final_layer.weight"] * factor[:, None]
    state["final_layer.bias"] = state["final_layer.bias"] * factor
    return {
        "num_bins": spline.bins, "tails": spline.tails, "tail_bound": spline.tail_bound,
        "min_bin_width": spline.min_bin_width, "min_bin_height": spline.min_bin_height,
        "min_derivative": spline.min_derivative,
    }  # fmt: skip


def _their_coupling(part: Any) -> Any:
    from nflows import transforms as T
    from nflows.nn.nets import ResidualNet as Theirs

    net, univariate = part.conditioner, part.univariate
    width = net.initial_layer.out_features
    state = net.state_dict()
    if type(univariate) is RQS:
        cls: Any = T.PiecewiseRationalQuadraticCouplingTransform
        settings = _their_spline(part, state, 1 / math.sqrt(width))
    elif univariate in (Affine("sigmoid", _EPSILON), Affine("sigmoid")):
        cls, settings = T.AffineCouplingTransform, {}
        rows = torch.argsort(rows_by_block(part.split.n_transformed, swap=True))
        state |= {n: state[n][rows] for n in ("final_layer.weight", "final_layer.bias")}
    elif univariate == Affine("additive"):
        cls, settings = T.AdditiveCouplingTransform, {}
    else:
        raise _refuse(part, f"with {univariate}")
    block = net.blocks[0] if len(net.blocks) else None

    def make(n_in: int, n_out: int) -> Any:
        return Theirs(
            n_in, n_out, width, net.context_features or None, len(net.blocks),
            activation=F.relu if block is None else block.activation, dropout_probability=_dropout(net),
            use_batch_norm=block is not None and block.batch_norm_layers is not None,
        )  # fmt: skip

    layer = cls(part.split.mask.int().tolist(), make, **settings)
    layer.transform_net.double().load_state_dict(state)
    return layer


def _their_autoregressive(part: Any) -> Any:
    """In nflows the features are in their natural order: in any other they are permuted before, and back after."""
    from nflows import transforms as T

    net, univariate = part.conditioner, part.univariate
    widths = {layer.out_features for layer in net._linears()[:-1]}
    if any(len(group) > 1 for group in net.plan.groups) or len(widths) > 1 or not net.context_activation:
        raise _refuse(part, "with equal degrees, layers of several widths or a context without activation")
    state = _in_natural_order(net)
    settings: dict[str, Any] = {
        "features": part.features, "hidden_features": widths.pop(), "context_features": net.context_features or None,
        "num_blocks": len(net.blocks), "use_residual_blocks": net.residual, "dropout_probability": _dropout(net),
        "activation": FUNCTIONS[net.activation],
    }  # fmt: skip
    if type(univariate) is RQS:
        settings |= _their_spline(part, state, 1.0)
        layer: Any = T.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(**settings)
    elif type(univariate) is Affine and univariate.scale == "softplus" and univariate.floor == _EPSILON:
        layer = T.MaskedAffineAutoregressiveTransform(**settings)
    else:
        raise _refuse(part, f"with {univariate}")
    layer.autoregressive_net.double().load_state_dict(state)
    order = net.order.long()
    if torch.equal(order, torch.arange(part.features)):
        return layer
    return T.CompositeTransform([T.Permutation(order), layer, T.Permutation(torch.argsort(order))])


def _in_natural_order(net: MADE) -> dict[str, Any]:
    """The state of nflows' MADE that sees the features in the net's order, with its masks."""
    masks = {f"{n}.mask": m.plan.mask(m.weight) for n, m in net.named_modules() if isinstance(m, MaskedLinear)}
    state, order = {**net.state_dict(), **masks}, net.order.long()
    rows = torch.arange(len(state["final_layer.bias"])).view(net.features, -1)[order].flatten()
    for name in ("initial_layer.weight", "initial_layer.mask"):
        state[name] = state[name][:, order]
    for name in ("weight", "bias", "mask", "degrees"):
        state[f"final_layer.{name}"] = state[f"final_layer.{name}"][rows]
    return state
