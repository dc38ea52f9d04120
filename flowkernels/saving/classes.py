"""What a file may name: one fixed table of classes, each with the arguments that build it again.

Nothing else can be built from a file, and nothing is imported by a name that a file holds. Arguments say the
architecture alone. What a state dict holds (weights, masks, orders, corners of a box) comes from there, so a seed is
never needed again.
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from flowkernels import distributions, flows, nets, ops, transforms
from flowkernels.flows.made import MixtureMADE
from flowkernels.ops.net import activations

Arguments = dict[str, Any]


class Part(NamedTuple):
    """A class, what its object's arguments are, and what builds one from them."""

    cls: type
    arguments: Callable[[Any], Arguments]
    build: Callable[..., Any]


class NotTheSame(ValueError):
    """What one argument sets in several places differs between them."""


def _attributes(cls: type, *names: str) -> Part:
    """Of a class whose object keeps its arguments under their names."""
    return Part(cls, lambda m: {name: getattr(m, name) for name in names}, cls)


def _same(values: Iterable[Any], otherwise: Any) -> Any:
    """The value that all of them are."""
    found = list(values) or [otherwise]
    if any(value is not found[0] and value != found[0] for value in found):
        raise NotTheSame
    return found[0]


def _dropout(blocks: Iterable[Any]) -> float:
    """The probability of the dropout in every block, 0 where there is none."""
    return _same((0.0 if b.dropout is None else b.dropout.p for b in blocks), 0.0)


# ---- distributions ----


def _standard(cls: type) -> Part:
    """It has no weights; draws are of the dtype of a buffer that no state dict holds."""

    def build(features: int, dtype: str) -> Any:
        made = cls(features)
        made._like = made._like.to(DTYPES[dtype])
        return made

    return Part(cls, lambda m: {"features": m.features, "dtype": str(m._like.dtype).rpartition(".")[2]}, build)


def _diagonal(cls: type) -> Part:
    def arguments(m: Any) -> Arguments:
        learnable = isinstance(m.loc, nn.Parameter)
        return {"features": m.features, "learnable": learnable, "context": m.context_features}

    return Part(cls, arguments, cls)


def _box(features: int) -> distributions.UniformBox:
    with torch.device("cpu"):  # corners are compared, which the meta device cannot
        return distributions.UniformBox([0.0] * features, [1.0] * features)


# ---- networks ----


def _mlp(m: Any) -> Arguments:
    sizes = [layer.in_features for layer in (*m.hidden_layers, m.final_layer)]
    return {
        "in_features": sizes[0] - m.context_features, "out_features": m.final_layer.out_features, "hidden": sizes[1:],
        "context": m.context_features, "activation": m.activation, "dropout": _dropout([m]),
    }  # fmt: skip


def _residual_net(m: Any) -> Arguments:
    return {
        "in_features": m.initial_layer.in_features - m.context_features, "out_features": m.final_layer.out_features,
        "hidden": m.initial_layer.out_features, "blocks": len(m.blocks), "context": m.context_features,
        "activation": _same((b.activation for b in m.blocks), F.relu), "dropout": _dropout(m.blocks),
        "batch_norm": _same((b.batch_norm_layers is not None for b in m.blocks), False),
    }  # fmt: skip


def _made(m: Any) -> Arguments:
    width = m.initial_layer.out_features
    hidden = [width] * len(m.blocks) if m.residual else [width, *(b.linear.out_features for b in m.blocks)]
    return {
        "features": m.features, "params_per_feature": m.params_per_feature, "hidden": hidden, "residual": m.residual,
        "context": m.context_features, "activation": _same((b.activation for b in (m, *m.blocks)), None),
        "dropout": _dropout(m.blocks), "context_activation": m.context_activation,
    }  # fmt: skip


def _recurrent_net(m: Any) -> Arguments:
    names = ("features", "params_per_feature", "hidden")
    return {**{name: getattr(m, name) for name in names}, "context": m.context_features}


def _images(m: Any) -> Arguments:
    names = ("in_channels", "out_channels", "context_dims", "activation")
    return {**{name: getattr(m, name) for name in names}, "context": m.context_features}


def _conv_net(m: Any) -> Arguments:
    return {**_images(m), "hidden": [layer.out_channels for layer in m.hidden_layers]}


def _conv_res_net(m: Any) -> Arguments:
    _same((b.activation for b in (m, *m.blocks)), None)
    normed = _same((b.batch_norm_layers is not None for b in m.blocks), False)
    return {**_images(m), "hidden": m.initial_layer.out_channels, "blocks": len(m.blocks), "batch_norm": normed}


def _gated_net(m: Any) -> Arguments:
    return {
        "in_features": m.initial_layer.in_features - m.context_features, "out_features": m.final_layer.out_features,
        "hidden": m.initial_layer.out_features, "blocks": len(m.blocks), "context": m.context_features,
        "activation": _same((b.activation for b in (m, *m.blocks)), None), "dropout": _dropout(m.blocks),
    }  # fmt: skip


def _gated_conv_net(m: Any) -> Arguments:
    blocks = [b for b in m.blocks if hasattr(b, "conv_layer")]
    _same((b.activation for b in (m, *blocks)), None)
    return {
        **_images(m), "hidden": m.initial_layer.out_channels, "blocks": len(blocks), "dropout": _dropout(blocks),
        "attention": m.attention,
    }  # fmt: skip


def _wavenet(m: Any) -> Arguments:
    names = ("in_channels", "out_channels", "context_dims", "cycle", "causal")
    return {
        **{name: getattr(m, name) for name in names}, "hidden": m.initial_layer.out_channels,
        "layers": len(m.gate_layers), "context": m.context_features, "skip": m.final_layer.in_channels,
        "kernel_size": _same((g.kernel_size[0] for g in m.gate_layers), 1), "head": m.head_layer is not None,
    }  # fmt: skip


def _pixel_cnn(m: Any) -> Arguments:
    first = m.initial_layer
    return {
        **_images(m), "hidden": first.out_channels, "blocks": len(m.blocks), "kernel_size": m.kernel_size,
        "first_kernel_size": first.kernel_size[0], "block": m.block,
    }  # fmt: skip


def _row_conv_net(m: Any) -> Arguments:
    hidden = [layer.out_channels for layer in (m.initial_layer, *m.hidden_layers)]
    return {**_images(m), "hidden": hidden, "kernel_size": list(m.initial_layer.kernel_size)}


# ---- transforms ----


def _coupling(m: Any) -> Arguments:
    return {"mask": m.split.mask.int().tolist(), "conditioner": m.conditioner, "univariate": m.univariate}


def _image_coupling(m: Any) -> Arguments:
    mask = {"pixels": list(m.mask.shape)} if m.split is None else {"mask": m.split.mask.int().tolist()}
    return {**mask, "conditioner": m.conditioner, "univariate": m.univariate, "event_dims": m.event_dims}


def _build_image_coupling(
    conditioner: nn.Module, univariate: Any, mask: Sequence[int] = (), pixels: Sequence[int] = (), event_dims: int = 3
) -> transforms.ImageCoupling:
    return transforms.ImageCoupling(torch.ones(*pixels) if pixels else mask, conditioner, univariate, event_dims)


def _standardize(shape: Sequence[int]) -> transforms.Standardize:
    with torch.device("cpu"):  # as of a box
        return transforms.Standardize(torch.zeros(*shape), torch.ones(*shape))


def _lu(cls: type, features: str, *names: str) -> Part:
    """The file's weights and permutation replace whatever it starts as: nothing is drawn."""

    def arguments(m: Any) -> Arguments:
        return {features: m.features, **{name: getattr(m, name) for name in names}, "bias": m.bias is not None}

    return Part(cls, arguments, lambda **given: cls(**given, init="identity"))


# ---- torch's layers ----


def _sequential(layers: Sequence[Sequence[Any]]) -> nn.Sequential:
    made = nn.Sequential()
    for name, layer in layers:
        made.add_module(name, layer)
    return made


def _linear(m: nn.Linear) -> Arguments:
    return {"in_features": m.in_features, "out_features": m.out_features, "bias": m.bias is not None}


def _layer_norm(m: nn.LayerNorm) -> Arguments:
    shape, affine = list(m.normalized_shape), m.elementwise_affine
    return {"normalized_shape": shape, "eps": m.eps, "elementwise_affine": affine, "bias": m.bias is not None}


TORCH = {
    "Dropout": _attributes(nn.Dropout, "p", "inplace"),
    "ELU": _attributes(nn.ELU, "alpha", "inplace"),
    "Flatten": _attributes(nn.Flatten, "start_dim", "end_dim"),
    "GELU": _attributes(nn.GELU, "approximate"),
    "Identity": _attributes(nn.Identity),
    "LayerNorm": Part(nn.LayerNorm, _layer_norm, nn.LayerNorm),
    "LeakyReLU": _attributes(nn.LeakyReLU, "negative_slope", "inplace"),
    "Linear": Part(nn.Linear, _linear, nn.Linear),
    "Mish": _attributes(nn.Mish, "inplace"),
    "PReLU": _attributes(nn.PReLU, "num_parameters"),
    "ReLU": _attributes(nn.ReLU, "inplace"),
    "SELU": _attributes(nn.SELU, "inplace"),
    "Sequential": Part(
        nn.Sequential, lambda m: {"layers": [[name, layer] for name, layer in m._modules.items()]}, _sequential
    ),
    "SiLU": _attributes(nn.SiLU, "inplace"),
    "Sigmoid": _attributes(nn.Sigmoid),
    "Softplus": _attributes(nn.Softplus, "beta", "threshold"),
    "Tanh": _attributes(nn.Tanh),
}


# ---- flows ----


def _flow_arguments(m: flows.Flow) -> Arguments:
    return {
        "transform": m.transform, "base": m.base, "embedding": m.embedding, "context_to_base": m.context_to_base
    }  # fmt: skip


def _flow(cls: type[flows.Flow]) -> Part:
    """By its parts: what a class made of its own arguments, and whatever was put in its place later."""

    def build(**parts: Any) -> flows.Flow:
        made = cls.__new__(cls)
        flows.Flow.__init__(made, **parts)
        return made

    return Part(cls, _flow_arguments, build)


def _block_autoregressive(m: transforms.BlockAutoregressive) -> Arguments:
    hidden = [layer.after for layer in m.layers[:-1]]  # type: ignore[union-attr]
    return {"features": m.features, "hidden": hidden, "activation": m.activation, "residual": m.residual}


def _low_rank(cls: type[transforms.Planar | transforms.Radial | transforms.Sylvester], **names: str) -> Part:
    """Of arguments that are attributes of other names, or of the same."""
    wanted = {name: name for name in ("features", "layers", "context")} | names
    return Part(cls, lambda m: {of: getattr(m, name) for of, name in wanted.items()}, functools.partial(cls, seed=0))


def _residual(m: transforms.Residual) -> Arguments:
    names = ("features", "activation", "lipschitz", "log_det", "samples", "preactivated", "iterations")
    terms = None if m.log_det == "exact" else m.terms
    return {**{name: getattr(m, name) for name in names}, "hidden": list(m.hidden), "terms": terms}


def _continuous(m: transforms.Continuous) -> Arguments:
    names = ("features", "context", "activation", "solver", "steps", "rtol", "atol", "trace", "noise", "time")
    more = ("frequencies", "t0", "t1")
    return {"hidden": list(m.hidden), **{name: getattr(m, name) for name in (*names, *more)}}


def _concat_squash(m: nets.ConcatSquash) -> Arguments:
    hidden = [layer.layer.out_features for layer in m.layers[:-1]]  # type: ignore[union-attr]
    return {"features": m.features, "hidden": hidden, "context": m.context_features, "activation": m.activation}


def _monotone_net(m: transforms.MonotoneNet) -> Arguments:
    names = ("form", "activation", "nodes", "log_bound", "bound")
    return {
        "features": m.features, "signal": m.signal, "hidden": m.hidden, **{n: getattr(m.spec, n) for n in names}
    }  # fmt: skip


FREE_FORM = (
    "features", "context", "solver", "steps", "rtol", "atol", "trace", "noise", "adjoint", "t0", "t1"
)  # fmt: skip


# ---- the tables ----

# Not here: `distributions.FromTorch`, as a distribution of torch may be of any class and hold anything. Such a flow
# saves its weights (config=False), the base's tensors among them.
MODULES: dict[str, Part] = {
    **{
        f"flows.{cls.__name__}": _flow(cls)
        for cls in (
            flows.BNAF, flows.CNF, flows.CouplingFlow, flows.FFJORD, flows.FloWaveNet, flows.Flow, flows.FlowPP,
            flows.Gaussianization, flows.Glow, flows.IAF,
            flows.MADE, flows.MAF, flows.MaCow, flows.MintNet, flows.NAF, flows.NICE, flows.NSF, flows.PixelCNN,
            flows.Planar, flows.Radial,
            flows.RealNVP, flows.RecurrentFlow, flows.ResidualFlow, flows.SOS, flows.Sylvester, flows.UMNN,
            flows.WaveGlow, flows.WaveNet,
        )
    },
    "flows.MixtureMADE": _attributes(MixtureMADE, "net"),
    "distributions.DiagonalLogistic": _diagonal(distributions.DiagonalLogistic),
    "distributions.DiagonalNormal": _diagonal(distributions.DiagonalNormal),
    "distributions.StandardLogistic": _standard(distributions.StandardLogistic),
    "distributions.StandardNormal": _standard(distributions.StandardNormal),
    "distributions.UniformBox": Part(distributions.UniformBox, lambda m: {"features": m.features}, _box),
    "nets.ConcatSquash": Part(nets.ConcatSquash, _concat_squash, nets.ConcatSquash),
    "nets.Constant": Part(
        nets.Constant, lambda m: {"out_features": len(m.value)}, lambda out_features: nets.Constant(0, out_features)
    ),
    "nets.ConvNet": Part(nets.ConvNet, _conv_net, nets.ConvNet),
    "nets.ConvResNet": Part(nets.ConvResNet, _conv_res_net, nets.ConvResNet),
    "nets.GatedConvNet": Part(nets.GatedConvNet, _gated_conv_net, nets.GatedConvNet),
    "nets.GatedNet": Part(nets.GatedNet, _gated_net, nets.GatedNet),
    "nets.MADE": Part(nets.MADE, _made, nets.MADE),
    "nets.MLP": Part(nets.MLP, _mlp, nets.MLP),
    "nets.PixelCNN": Part(nets.PixelCNN, _pixel_cnn, nets.PixelCNN),
    "nets.RecurrentNet": Part(nets.RecurrentNet, _recurrent_net, nets.RecurrentNet),
    "nets.ResidualNet": Part(nets.ResidualNet, _residual_net, nets.ResidualNet),
    "nets.Upsampler": _attributes(nets.Upsampler, "channels", "hop"),
    "nets.WaveNet": Part(nets.WaveNet, _wavenet, nets.WaveNet),
    "nets.RowConvNet": Part(nets.RowConvNet, _row_conv_net, nets.RowConvNet),
    "transforms.ActNorm": _attributes(transforms.ActNorm, "features", "channel_dim"),
    "transforms.Autoregressive": _attributes(transforms.Autoregressive, "conditioner", "univariate"),
    "transforms.BatchNorm": _attributes(transforms.BatchNorm, "features", "channel_dim", "eps", "momentum"),
    "transforms.BlockAutoregressive": Part(
        transforms.BlockAutoregressive, _block_autoregressive, functools.partial(transforms.BlockAutoregressive, seed=0)
    ),
    "transforms.Composite": Part(
        transforms.Composite, lambda m: {"transforms": list(m.transforms)}, transforms.Composite
    ),
    "transforms.Continuous": Part(
        transforms.Continuous, _continuous, functools.partial(transforms.Continuous, seed=0)
    ),
    "transforms.Coupling": Part(transforms.Coupling, _coupling, transforms.Coupling),
    "transforms.Dequantize": _attributes(transforms.Dequantize, "levels", "event_dims"),
    "transforms.DiagonalScale": Part(
        transforms.DiagonalScale, lambda m: {"shape": list(m.log_scale.shape)}, transforms.DiagonalScale
    ),
    "transforms.FreeForm": _attributes(transforms.FreeForm, "field", *FREE_FORM),
    "transforms.ImageCoupling": Part(transforms.ImageCoupling, _image_coupling, _build_image_coupling),
    "transforms.Inverse": _attributes(transforms.Inverse, "transform"),
    "transforms.LUConv1x1": _lu(transforms.LUConv1x1, "channels"),
    "transforms.LULinear": _lu(transforms.LULinear, "features", "channel_dim"),
    "transforms.Logit": _attributes(transforms.Logit, "alpha", "upper", "event_dims"),
    "transforms.Mint": _attributes(transforms.Mint, "shape", "latents", "kernel_size", "reverse", "steps"),
    "transforms.MonotoneNet": Part(
        transforms.MonotoneNet, _monotone_net, functools.partial(transforms.MonotoneNet, seed=0)
    ),
    "transforms.MultiScale": Part(
        transforms.MultiScale,
        lambda m: {"levels": list(m.levels), "shape": list(m.shape), "leave": m.leave},
        transforms.MultiScale,
    ),
    "transforms.Permutation": Part(
        transforms.Permutation,
        lambda m: {"features": m.features, "channel_dim": m.channel_dim},
        lambda features, channel_dim: transforms.Permutation(range(features), channel_dim),
    ),
    "transforms.PixelAutoregressive": _attributes(
        transforms.PixelAutoregressive, "conditioner", "univariate", "levels"
    ),
    "transforms.Planar": _low_rank(transforms.Planar, activation="activation"),
    "transforms.Radial": _low_rank(transforms.Radial, alpha="positive"),
    "transforms.Residual": Part(transforms.Residual, _residual, functools.partial(transforms.Residual, seed=0)),
    "transforms.RowAutoregressive": _attributes(
        transforms.RowAutoregressive, "channels", "conditioner", "univariate", "direction"
    ),
    "transforms.SignalAutoregressive": _attributes(
        transforms.SignalAutoregressive, "channels", "conditioner", "univariate"
    ),
    "transforms.Softclip": _attributes(transforms.Softclip, "bound", "event_dims"),
    "transforms.Standardize": Part(
        transforms.Standardize, lambda m: {"shape": list(m.mean.shape)}, _standardize
    ),
    "transforms.Sylvester": _low_rank(
        transforms.Sylvester, width="width", reflections="reflections", activation="activation"
    ),
    "transforms.Squeeze": _attributes(transforms.Squeeze, "factor", "event_dims"),
    "transforms.Unsqueeze": Part(
        transforms.Unsqueeze,
        lambda m: {"factor": m.transform.factor, "event_dims": m.transform.event_dims},
        transforms.Unsqueeze,
    ),
    "transforms.VariationalDequantize": _attributes(
        transforms.VariationalDequantize, "noise", "levels", "event_dims"
    ),
    **{f"torch.nn.{name}": part for name, part in TORCH.items()},
}  # fmt: skip
# Maps of one feature: frozen dataclasses, whose fields are their arguments.
MAPS: dict[str, type] = {
    f"ops.{cls.__name__}": cls
    for cls in (ops.Affine, ops.Mixture, ops.MixtureAffine, ops.Polynomial, ops.RQS, ops.SinhArcsinh)
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **activations.FUNCTIONS,
    "celu": F.celu, "cos": torch.cos, "logsigmoid": F.logsigmoid, "mish": F.mish, "relu6": F.relu6, "selu": F.selu,
    "sigmoid": torch.sigmoid, "sin": torch.sin, "softplus": F.softplus, "softsign": F.softsign,
}  # fmt: skip
DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16")}

_NAMES: dict[type, str] = {part.cls: name for name, part in MODULES.items()} | {cls: name for name, cls in MAPS.items()}


def name_of(value: object) -> str | None:
    """The name of an object's class in the tables, None where it has none: subclasses are other classes."""
    return _NAMES.get(type(value))


def name_of_function(value: Any) -> str | None:
    """The name of an activation, None where it has none."""
    found = activations.name_of(value)
    return found or next((name for name, function in FUNCTIONS.items() if function is value), None)


def plain(value: Any) -> Any:
    """What JSON holds as it is, numpy's numbers as Python's; raises where it is none of that."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    raise TypeError
