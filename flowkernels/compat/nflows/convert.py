"""nflows' flows as native ones and back. Networks have the same parameter names on both sides."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from nflows import distributions, flows
from nflows import transforms as T
from nflows.nn.nets import ResidualNet as Theirs
from torch import Tensor, nn

from flowkernels.compat.convert import CannotConvert, act_norm, as_native, cannot, class_name, fixed_affine, parts_of
from flowkernels.compat.layer import Layer, has_settings, in_our_order, native_rows
from flowkernels.distributions import StandardNormal
from flowkernels.flows import Flow
from flowkernels.nets import MADE, ResidualNet
from flowkernels.nets.made import MaskedLinear
from flowkernels.ops.net.activations import FUNCTIONS
from flowkernels.transforms import (
    ActNorm,
    Autoregressive,
    Composite,
    Coupling,
    Inverse,
    LULinear,
    Permutation,
    Transform,
)

from . import describe
from .made import parts_of as made_parts

_EPSILON = 1e-3  # of nflows' affine layers
_LAST = ("final_layer.weight", "final_layer.bias")


def flow_of(model: Any) -> Flow:
    base = model._distribution
    if class_name(base) != "nflows.distributions.normal.StandardNormal" or len(base._shape) != 1:
        raise CannotConvert(f"convert: _distribution must be a StandardNormal of features, got {base}")
    embedding = None if type(model._embedding_net) is nn.Identity else model._embedding_net
    return Flow(_transform(model._transform, base._shape[0]), StandardNormal(base._shape[0]), embedding)


def _transform(module: Any, features: int) -> Transform:
    return as_native("nflows.transforms", _NATIVE, module, features)


# ---- networks ----


def _dropout(net: Any) -> float:
    return next((m.p for m in net.modules() if isinstance(m, nn.Dropout)), 0.0)


def _activation_and_norm(net: Any) -> tuple[Any, bool]:
    """The activation of a residual network on either side, and whether it has batch norm."""
    block = net.blocks[0] if len(net.blocks) else None
    return F.relu if block is None else block.activation, getattr(block, "batch_norm_layers", None) is not None


def _residual_net(net: Any, n_in: int, rows: Tensor) -> ResidualNet:
    if class_name(net) != "nflows.nn.nets.resnet.ResidualNet":
        raise CannotConvert(f"convert: the network of a coupling must be a ResidualNet, got {type(net).__name__}")
    first, (activation, has_norm) = net.initial_layer, _activation_and_norm(net)
    ours = ResidualNet(
        n_in, net.final_layer.out_features, first.out_features, len(net.blocks), first.in_features - n_in,
        activation=activation, dropout=_dropout(net), batch_norm=has_norm,
    )  # fmt: skip
    ours.double().load_state_dict({**net.state_dict(), **_last_rows(net, rows)})
    return ours


def _last_rows(net: Any, rows: Tensor) -> dict[str, Tensor]:
    """The last layer of a network with its rows in this order, as a part of its state."""
    state = net.state_dict()
    return {name: state[name][rows] for name in _LAST}


def _made(net: Any, features: int) -> MADE:
    if class_name(net) != "nflows.transforms.made.MADE":
        raise CannotConvert(f"convert: the network of an autoregressive layer must be a MADE, got {type(net).__name__}")
    parts = made_parts(net)
    if isinstance(parts, str):
        raise CannotConvert(f"convert: a MADE must be as those of nets.MADE are, but {parts}")
    blocks = len(net.blocks)
    if parts.residual and not blocks:
        raise CannotConvert("convert: a residual MADE must have a block, got none")
    context = net.context_layer.in_features if hasattr(net, "context_layer") else 0
    hidden = (net.initial_layer.out_features,) * (blocks + (not parts.residual))
    ours = MADE(
        features, net.final_layer.out_features // features, hidden, residual=parts.residual, context=context,
        activation=parts.activation, dropout=_dropout(net),
    )  # fmt: skip
    ours.double().load_state_dict(net.state_dict())
    return ours


# ---- layers → native ----


def _described(describe: Callable[[Any], Layer]) -> Callable[[Any, int], Transform]:
    """How to make a native coupling or autoregressive layer of a module that is described so."""

    def native(module: Any, features: int) -> Transform:
        layer = describe(module)
        if layer.map is None:
            raise CannotConvert("convert: an affine coupling must have nflows' 0.14 scale, got a scale_activation")
        univariate: Any = in_our_order(layer.map)[0]
        if not hasattr(module, "transform_features"):
            return Autoregressive(_made(layer.net, features), univariate)
        if module.unconditional_transform is not None:
            why = "leave its other features alone, got an unconditional_transform"
            raise CannotConvert(f"convert: a coupling must {why}")
        mapped = module.transform_features.tolist()
        net = _residual_net(layer.net, features - len(mapped), native_rows(layer.map, len(mapped), layer.groups))
        return Coupling([i in mapped for i in range(features)], net, univariate)

    return native


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
    "normalization.ActNorm": lambda m, D: act_norm(D, m.log_scale, m.shift, m.initialized),
    "coupling.PiecewiseRationalQuadraticCouplingTransform": _described(describe.spline_coupling),
    "coupling.AffineCouplingTransform": _described(describe.affine_coupling),
    "coupling.AdditiveCouplingTransform": _described(describe.additive_coupling),
    "autoregressive.MaskedAffineAutoregressiveTransform": _described(describe.affine_autoregressive),
    "autoregressive.MaskedPiecewiseRationalQuadraticAutoregressiveTransform": _described(
        describe.spline_autoregressive
    ),
}


# ---- native → nflows ----


def theirs_of(flow: Flow) -> Any:
    if not isinstance(flow.base, StandardNormal) or flow.context_to_base:
        raise CannotConvert(f"to_nflows: base must be a StandardNormal, got {type(flow.base).__name__}")
    layers = [_their_layer(part) for part in parts_of(flow.transform)]
    base = distributions.StandardNormal([flow.base.features])
    return flows.Flow(T.CompositeTransform(layers), base, flow.embedding)


def _their_layer(part: Any) -> Any:
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
    raise cannot("to_nflows", part, "of this kind")


@torch.no_grad()
def _their_lu(part: LULinear) -> Any:
    layer = T.LULinear(part.features).double()
    diagonal = part.log_s.exp() - layer.eps
    in_order = torch.equal(part.permutation.cpu(), torch.arange(part.features))
    if not in_order or not bool((part.sign_s > 0).all()) or not bool((diagonal > 0).all()):
        raise cannot("to_nflows", part, "with a permutation, or with a diagonal that is not above 1e-3")
    layer.lower_entries.copy_(part.lower[layer.lower_indices])
    layer.upper_entries.copy_(part.upper[layer.upper_indices])
    layer.unconstrained_upper_diag.copy_(torch.log(torch.expm1(diagonal)))
    layer.bias.copy_(torch.zeros(part.features) if part.bias is None else part.bias)
    return layer


_FIELDS = ("tails", "tail_bound", "min_bin_width", "min_bin_height", "min_derivative")
_SPLINE = {"parametrization": "softmax", "order": "quadratic", "circle_shift": False, "zero_outside": False,
           "edge_slope": 1.0}  # fmt: skip


def _their_spline(part: Any, state: dict[str, Any], logit_scale: float) -> dict[str, Any]:
    """Their settings; in `state`, the rows of bin sizes are scaled where nflows scales by another factor."""
    spline: Any = part.univariate
    linear, unit = {"tails": "linear", "box": None}, {"tails": None, "box": (0.0, 1.0, 0.0, 1.0)}
    if not has_settings(spline, **_SPLINE) or not (has_settings(spline, **linear) or has_settings(spline, **unit)):
        raise cannot("to_nflows", part, f"with {spline}")
    factor = torch.ones(spline.n_params, dtype=torch.float64)
    factor[: 2 * spline.bins] = spline.logit_scale / logit_scale
    factor = factor.repeat(len(state["final_layer.bias"]) // len(factor)).to(state["final_layer.bias"].device)
    weight, bias = _LAST
    state |= {weight: state[weight] * factor[:, None], bias: state[bias] * factor}
    return {"num_bins": spline.bins, **{name: getattr(spline, name) for name in _FIELDS}}


_AFFINE_COUPLINGS: dict[str, dict[str, Any]] = {
    "AffineCouplingTransform": {"scale": "sigmoid", "floor": _EPSILON},
    "AdditiveCouplingTransform": {"scale": "additive"},
}


def _their_coupling(part: Any) -> Any:
    net, univariate = part.conditioner, part.univariate
    state, settings = net.state_dict(), {}
    width, (activation, has_norm) = net.initial_layer.out_features, _activation_and_norm(net)
    name = next((n for n, wanted in _AFFINE_COUPLINGS.items() if has_settings(univariate, **wanted)), None)
    if name is None:
        name, settings = "PiecewiseRationalQuadraticCouplingTransform", _their_spline(part, state, 1 / math.sqrt(width))
    else:  # whose network returns shifts and then scales
        rows = torch.arange(net.final_layer.out_features).view(part.split.n_transformed, -1).flip(1).T.flatten()
        state |= _last_rows(net, rows)

    def make(n_in: int, n_out: int) -> Any:
        return Theirs(
            n_in, n_out, width, net.context_features or None, len(net.blocks), activation=activation,
            dropout_probability=_dropout(net), use_batch_norm=has_norm,
        )  # fmt: skip

    layer: Any = getattr(T, name)(part.split.mask.int().tolist(), make, **settings)
    layer.transform_net.double().load_state_dict(state)
    return layer


def _their_autoregressive(part: Any) -> Any:
    """In nflows the features are in their natural order: in any other they are permuted before, and back after."""
    net = part.conditioner
    widths = {layer.out_features for layer in net._linears()[:-1]}
    if any(len(group) > 1 for group in net.plan.groups) or len(widths) > 1 or not net.context_activation:
        raise cannot("to_nflows", part, "with equal degrees, layers of several widths or a context without activation")
    state = _in_natural_order(net)
    settings: dict[str, Any] = {
        "features": part.features, "hidden_features": widths.pop(), "context_features": net.context_features or None,
        "num_blocks": len(net.blocks), "use_residual_blocks": net.residual, "dropout_probability": _dropout(net),
        "activation": FUNCTIONS[net.activation],
    }  # fmt: skip
    if has_settings(part.univariate, scale="softplus", floor=_EPSILON):
        layer: Any = T.MaskedAffineAutoregressiveTransform(**settings)
    else:
        settings |= _their_spline(part, state, 1.0)
        layer = T.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(**settings)
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
