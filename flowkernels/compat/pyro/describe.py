"""What a layer of Pyro is, as map, net and split; and its networks as the ops take them."""

from __future__ import annotations

import functools
import importlib
import types
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels.compat.engine.patch import original_class
from flowkernels.compat.engine.reads import CachedRead
from flowkernels.compat.layer import Layer, by_feature, or_reason
from flowkernels.compat.reading.dense import too_wide
from flowkernels.compat.reading.masks import read_plan, with_context
from flowkernels.nets.reading import may_read, of_parameters
from flowkernels.ops import RQS, Affine, Mixture, Polynomial
from flowkernels.ops.net import MadePlan, Net
from flowkernels.ops.net.activations import name_of
from flowkernels.ops.net.net import dense_net, fitting, made_net
from flowkernels.ops.split import split_of
from flowkernels.ops.univariate import Map

SLOPE = 1e-8  # that the log-determinant of Pyro's polynomials counts, and their values do not have
_LEAST = 1e-3  # Pyro's minimum sizes and slope, which its layers do not let one set

# ---- maps ----


def spline(layer: Any) -> RQS:
    """Of a module with `count_bins`, `bound` and `order`."""
    bound = float(layer.bound)
    return RQS.kept(bins=layer.count_bins, tail_bound=bound, edge_slope=1 - _LEAST, order=layer.order)


def affine(layer: Any) -> Affine:
    bounds = (layer.log_scale_min_clip, layer.log_scale_max_clip)
    return Affine.kept(scale="clip", log_bounds=bounds, shift_first=True)  # Pyro has means | log-scales


def polynomial(layer: Any) -> Polynomial:
    """But for its constant, which is a parameter of the layer and none of its network's."""
    return Polynomial.kept(
        degree=layer.count_degree, terms=layer.count_sum, bound=1.0, slope=SLOPE, squares="sum", shift=False
    )


def _read_powers(powers: Tensor, reciprocals: Tensor) -> bool:
    n = torch.arange(len(powers), dtype=torch.float64, device=powers.device)
    expected = 1 + n + n.unsqueeze(-1)
    return powers.shape == expected.shape == reciprocals.shape and bool(
        torch.equal(powers.double(), expected) and torch.allclose(reciprocals.double(), 1 / expected, 1e-2)
    )


_powers = CachedRead[bool](_read_powers)


def has_its_powers(layer: Any) -> bool:
    """Whether the buffers of a polynomial's exponents, and of their reciprocals, are as they were made."""
    return bool(_powers(layer, (layer.power_mask, layer.mask)))


def polynomial_refusal(layer: Any) -> object:
    """Why a polynomial has no kernel."""
    return or_reason(polynomial, layer)


# ---- neural autoregressive layers ----

_OF_SIGMOID = {"SigmoidTransform": 1.0, "TanhTransform": 2.0}  # a sigmoid's argument, of theirs
_WIDEST = 20.0  # the farthest that log-scales may go


def twice(layer: Any) -> float:
    """What a neural layer's arguments are multiplied with to be those of a sigmoid."""
    return _OF_SIGMOID[type(layer.T).__name__]


def mixture(layer: Any) -> Mixture:
    return Mixture.kept(components=layer.hidden_units, min_log_scale=-_WIDEST, max_log_scale=_WIDEST)


def neural_refusal(layer: Any) -> object:
    """Why a neural autoregressive layer has no inverse."""
    if hasattr(layer, "kwargs"):
        name = str(layer.kwargs.get("activation", "sigmoid"))
        known = name in ("sigmoid", "tanh")
    else:
        name = type(layer.T).__name__
        known = name in _OF_SIGMOID
    if not known:
        return f"no kernel inverts sums of its {name}"
    return or_reason(mixture, _will_be(layer, hidden_units=16))


# ---- block autoregressive layers ----

EPS = 1e-8  # that Pyro adds to norms, and to the gate in logarithms
# Pyro's activations by their class, as the op has them.
INCREASING = {
    "TanhTransform": "tanh", "SigmoidTransform": "sigmoid", "ELUTransform": "elu", "LeakyReLUTransform": "leaky_relu"
}  # fmt: skip


def _read_blocks(on: Tensor, below: Tensor, features: int) -> bool:
    """Whether the masks of a layer are those of its blocks."""
    if on.shape != below.shape or on.dim() != 2 or any(n % features for n in on.shape):
        return False
    of_units = torch.ones(on.shape[0] // features, on.shape[1] // features, device=on.device)
    eye = torch.eye(features, device=on.device)
    expected = torch.kron(eye, of_units), torch.kron(torch.ones_like(eye).tril(-1), of_units)
    return torch.equal(on.float(), expected[0]) and torch.equal(below.float(), expected[1])


_blocks = CachedRead[bool](_read_blocks)


def block_refusal(layer: Any) -> str | None:
    """Why a block autoregressive layer has no kernel, or None."""
    linear = importlib.import_module("pyro.distributions.transforms.block_autoregressive").MaskedBlockLinear
    if type(layer.T).__name__ not in INCREASING:
        return f"its activation is a {type(layer.T).__name__}"
    if not all(type(m) is linear and isinstance(m.bias, Tensor) for m in layer.layers):
        return "its layers are not Pyro's own"
    return None


def block_tensors(layer: Any, x: Tensor) -> tuple[list[Any], list[Tensor]] | None:
    """Weight and bias of each layer, and the logarithms of its rows' norms; None where the layers must be called."""
    parts, D = [*layer.layers], layer.input_dim
    if block_refusal(layer) is not None or x.dim() == 0 or x.shape[-1] != D:
        return None
    found, norms = [], []
    for m in parts:
        given = [m._parameters.get(name) for name in ("_weight", "bias", "_diag_weight")]
        if any(t is None for t in given) or not _blocks(m, (m.mask_d, m.mask_o), D):
            return None
        found.append((given[0], given[1]))
        norms.append(given[2].squeeze(-1))  # type: ignore[union-attr]
    tensors = [t for pair in found for t in pair] + ([layer.gate] if layer.residual == "gated" else [])
    if not may_read(parts, found[0][0], x, *tensors):
        return None
    return found, norms


def _will_be(layer: Any, **defaults: Any) -> Any:
    """The settings of what a conditional layer will make, or else the layer, which has them itself."""
    return types.SimpleNamespace(**{**defaults, **layer.kwargs}) if hasattr(layer, "kwargs") else layer


def refusal(layer: Any) -> object:
    """Why a spline has no kernel, if that is a string."""
    theirs = importlib.import_module("pyro.distributions.transforms").Spline
    if hasattr(layer, "unnormalized_widths") and layer._params.__func__ is not theirs._params:
        return "its parameters are its own"
    return or_reason(spline, layer)


def autoregressive_refusal(layer: Any) -> object:
    """Why an autoregressive spline has no kernel."""
    return or_reason(spline, _will_be(getattr(layer, "spline", layer), count_bins=8, bound=3.0, order="linear"))


def affine_refusal(layer: Any) -> object:
    """Why an affine autoregressive layer gains nothing: its map alone is as fast in Pyro."""
    settings = _will_be(layer, stable=False, log_scale_min_clip=-5.0, log_scale_max_clip=3.0)
    if settings.stable:
        return "no kernel for its stable map"
    why = _masked_refusal(getattr(layer, "arn", None) or layer.nn)
    return or_reason(affine, settings) if why is None else f"its network is called: {why}"


# ---- networks ----


def _layers_of(net: Any, x: Tensor, context: Tensor | None = None) -> list[Any] | None:
    """Weights and biases of a network that is not refused, where calling it now would do nothing but its arithmetic."""
    if not all(map(of_parameters, net.layers)):
        return None
    modules = [net, *net.layers, *([net.f] if isinstance(net.f, nn.Module) else [])]
    pairs = [(m._parameters["weight"], m._parameters["bias"]) for m in net.layers]
    return pairs if may_read(modules, x, x, context, *(t for pair in pairs for t in pair)) else None


def _bound(net: Any) -> tuple[Any, Any]:
    """A network and the context that a conditional layer has bound to it."""
    if isinstance(net, functools.partial) and not net.args and [*net.keywords] == ["context"]:
        return net.func, net.keywords["context"]
    return net, None


def _of_rows(context: Any, x: Tensor) -> Tensor | None:
    """A context for the rows of x, or None: Pyro says what is wrong with it."""
    if not isinstance(context, Tensor) or context.dim() == 0:
        return None
    try:
        return context.expand(*x.shape[:-1], context.shape[-1])
    except RuntimeError:
        return None


# ---- masked ones ----


def _read(*masks_and_sizes: Any) -> MadePlan | str:
    """The plan of a network whose outputs are made feature by feature."""
    *masks, context, features, groups = masks_and_sizes
    return read_plan([*masks[:-1], by_feature(masks[-1], features, groups)], slice(context, None))


_plan_of = CachedRead[MadePlan | str](_read)


def _masked_refusal(net: Any) -> str | None:
    """Why a network is none that one op can run, or None."""
    from pyro.nn.auto_reg_nn import AutoRegressiveNN, ConditionalAutoRegressiveNN, MaskedLinear

    if type(net) not in (AutoRegressiveNN, ConditionalAutoRegressiveNN):
        return f"a {type(net).__name__}, not Pyro's AutoRegressiveNN"
    if net.skip_layer is not None:
        return "it has skip connections"
    if name_of(net.f) is None or not all(type(m) is MaskedLinear for m in net.layers):
        return "it has an activation or a layer that the ops do not know"
    return None


def masked_net(net: Any, x: Tensor, univariate: Map) -> Net | None:
    """A masked network of so many features as x has, for this map, as an op takes it; None where it must be called."""
    (net, context), groups = _bound(net), (1,) * univariate.n_params
    if context is not None:
        context = _of_rows(context, x)
    if _masked_refusal(net) is not None or (context is None) != (net.context_dim == 0):
        return None
    pairs, features = _layers_of(net, x, context), net.input_dim
    if pairs is None or len(net.layers[-1].mask) != features * len(groups):
        return None
    plan = _plan_of(net, [m.mask for m in net.layers], net.context_dim, features, groups)
    if not isinstance(plan, MadePlan) or x.shape[-1] != features:
        return None
    pairs[-1] = tuple(by_feature(t, features, groups) for t in pairs[-1])
    found = made_net(pairs, plan, name_of(net.f) or "")
    return fitting(found if context is None else with_context(found, context, slice(net.context_dim, None)))


# ---- couplings ----


def _coupling(net: Any, known: str, univariate: Map | str, seen: int, mapped: int, groups: tuple[int, ...]) -> Any:
    if type(net) is not getattr(importlib.import_module("pyro.nn"), known):
        return f"its network is a {type(net).__name__}, not Pyro's {known}, and its map alone is as fast in Pyro"
    if name_of(net.f) is None or not all(type(m) is nn.Linear and of_parameters(m) for m in net.layers):
        return "its network has an activation or a layer that the ops do not know"
    wide = too_wide([*net.layers])
    if wide is not None:
        return wide
    if [*net.param_dims] != [mapped * n for n in groups]:
        return f"its network returns parameters of sizes {net.param_dims}"
    if isinstance(univariate, str) or seen < 1 or mapped < 1:
        return univariate
    split = split_of(seen + mapped, tuple(range(seen)), tuple(range(seen, seen + mapped)))
    return Layer(univariate, net, split, groups)


def affine_coupling(layer: Any) -> Layer | str:
    if layer.dim != -1:
        return f"its event has {-layer.dim} dims"
    net, context = _bound(layer.nn)
    known = "DenseNN" if context is None else "ConditionalDenseNN"
    mapped = next(iter(getattr(net, "param_dims", ())), 0)
    return _coupling(net, known, or_reason(affine, layer), layer.split_dim, mapped, (1, 1))


def conditional_coupling(layer: Any) -> Layer | str:
    """What a conditional coupling returns, for any context."""
    return affine_coupling(original_class(layer).condition(layer, torch.empty(0)))


def spline_coupling(layer: Any) -> Layer | str:
    """Its upper spline, beside what it sees."""
    upper = layer.upper_spline
    K = upper.count_bins
    groups = (K, K, K - 1, *([K] if upper.order == "linear" else []))
    return _coupling(upper.nn, "DenseNN", spline(upper), layer.split_dim, upper.input_dim, groups)


def run_coupling(what: object, nn: Any, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """y and ladj of a coupling as it is described, and its network; None where Pyro's own way is called for."""
    if not isinstance(what, Layer) or what.split is None or x.dim() == 0 or x.shape[-1] != what.split.features:
        return None
    context, given = _bound(nn)[1], 0
    layers = _layers_of(what.net, x, context)
    if layers is None:
        return None
    if context is not None:  # the network's first columns; the op's last
        context = _of_rows(context, x)
        if context is None:
            return None
        given = context.shape[-1]
        layers[0] = layers[0][0].roll(-given, dims=1), layers[0][1]
    seen, mapped = len(what.split.inputs), len(what.split.outputs)
    if layers[0][0].shape[1] != seen + given or layers[-1][0].shape[0] != sum(what.groups) * mapped:
        return None
    found = dense_net(layers, False, name_of(what.net.f) or "", seen, x.shape[:-1], context)
    return what.run(x, found, inverse)
