"""A small module of every class that is accelerated, by library and class, and of some classes in several ways.

Each is called by `Run`: x to a tuple of tensors, in a direction. A context is made of x, so that x is all there is.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ROWS, D, H, K, C = 12, 4, 8, 4, 2  # C: size of contexts
WIDE = 128  # of a masked layer alone, smaller ones being left alone
MANY = 32  # features from which FrEIA's all-in-one blocks are accelerated
Call = Callable[[Any, Tensor, bool], tuple[Any, ...]]  # of a module, x and whether it is the inverse


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    call: Call
    shape: tuple[int, ...] = (D,)  # of x, without the rows
    dtype: torch.dtype = torch.float64
    directions: tuple[str, ...] = ("forward", "inverse")


class Run(nn.Module):
    """One direction of a layer as a module that returns tensors only."""

    def __init__(self, layer: nn.Module, call: Call, inverse: bool) -> None:
        super().__init__()
        self.layer, self.call, self.inverse = layer, call, inverse

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(t for t in self.call(self.layer, x, self.inverse) if isinstance(t, Tensor))


def _class(root: str, path: str) -> Any:
    module, _, name = f"{root}.{path}".rpartition(".")
    return getattr(importlib.import_module(module), name)


# ---- how the libraries are called ----


def _both_ways(layer: Any, x: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    return layer.inverse(x) if inverse else layer(x)


def _both_ways_of_context(layer: Any, x: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    return (layer.inverse if inverse else layer)(x, x[..., :C].cos())


def _net(layer: Any, x: Tensor, inverse: bool) -> tuple[Tensor]:
    return (layer(x),)


def _net_of_context(layer: Any, x: Tensor, inverse: bool) -> tuple[Tensor]:
    return (layer(x, x[..., :C].cos()),)


def _halves(layer: Any, x: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    (kept, mapped), ladj = (layer.inverse if inverse else layer)(list(x.chunk(2, 1)))
    return kept, mapped, ladj


def _zuko(layer: Any, x: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    transform = layer()
    return (transform.inv if inverse else transform).call_and_ladj(x)


def _zuko_densities(layer: Any, x: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    """Of a layer whose inverse zuko finds to 1e-6, which is another number than the inverse."""
    return _zuko(layer, x, False)


def _zuko_of_context(layer: Any, x: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    transform = layer(x[..., :C].cos())
    return (transform.inv if inverse else transform).call_and_ladj(x)


def _freia(layer: Any, x: Tensor, inverse: bool) -> tuple[Any, ...]:
    (y,), ladj = layer([x], rev=inverse)
    return y, ladj


def _freia_of_context(layer: Any, x: Tensor, inverse: bool) -> tuple[Any, ...]:
    (y,), ladj = layer([x], [x[:, :C].cos()], rev=inverse)
    return y, ladj


def _freia_whole(inn: Any, x: Tensor, inverse: bool) -> tuple[Any, ...]:
    return inn(x, rev=inverse)


def _freia_whole_of_context(inn: Any, x: Tensor, inverse: bool) -> tuple[Any, ...]:
    return inn(x, [x[:, :C].cos()], rev=inverse)


def _pyro(layer: Any, x: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    if inverse:
        back = layer._inv_call(x)
        return back, layer.log_abs_det_jacobian(back, x)
    y = layer(x)
    return y, layer.log_abs_det_jacobian(x, y)


def _pyro_whole(whole: Any, x: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    transform = whole.inv if inverse else whole
    y = transform(x)
    return y, transform.log_abs_det_jacobian(x, y)


def _pyro_of_context(layer: Any, x: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    return _pyro(layer.condition(x[..., :C].cos()), x, inverse)


# ---- nflows and its copy in glasflow ----


def _initialised(layer: Any, *shape: int) -> Any:
    layer(torch.randn(64, *shape) * 0.8 + 0.3)
    return layer


def _nflows(root: str) -> dict[str, Case]:
    def of(path: str) -> Any:
        return _class(root, path)

    def dense(context: int | None = None) -> Any:
        net = of("nn.nets.resnet.ResidualNet")
        return lambda i, o: net(i, o, hidden_features=H, num_blocks=1, context_features=context)

    def normed(context: int | None = None) -> Any:
        net = of("nn.nets.resnet.ResidualNet")
        return net(D, 3, hidden_features=H, num_blocks=1, context_features=context, use_batch_norm=True)

    def conv(i: int, o: int) -> nn.Module:
        return of("nn.nets.resnet.ConvResidualNet")(i, o, hidden_channels=H, num_blocks=1)

    spline = {"num_bins": K, "tails": "linear", "tail_bound": 2.0}
    alternating, irregular = [0, 1, 0, 1], [1, 1, 0, 1]
    rqs = "transforms.coupling.PiecewiseRationalQuadraticCouplingTransform"
    affine, additive = (f"transforms.coupling.{n}CouplingTransform" for n in ("Affine", "Additive"))
    cdf = "transforms.nonlinearities.PiecewiseRationalQuadraticCDF"
    ar, maf = (
        f"transforms.autoregressive.Masked{n}AutoregressiveTransform" for n in ("PiecewiseRationalQuadratic", "Affine")
    )
    made, masked, resnet = "transforms.made.MADE", "transforms.made.MaskedLinear", "nn.nets.resnet.ResidualNet"
    image = (D, 2, 3)

    def composite(context: int | None = None) -> nn.Module:
        of_base, reverse = of("transforms.base.CompositeTransform"), of("transforms.permutations.ReversePermutation")
        block = of_base([of("transforms.permutations.RandomPermutation")(D), of(affine)(alternating, dense(context))])
        back = of("transforms.base.InverseTransform")(of(rqs)(irregular, dense(context), **spline))
        return of_base([block, reverse(D), back, of(maf)(D, H, context)])

    def between() -> nn.Module:
        """Layers without a network between two that have one."""
        z_score = of("transforms.standard.PointwiseAffineTransform")(torch.linspace(-1, 1, D), torch.linspace(1, 2, D))
        norm = _initialised(of("transforms.normalization.ActNorm")(D), D)
        seen_too = of(rqs)(alternating, dense(), apply_unconditional_transform=True, **spline)
        lu = of("transforms.lu.LULinear")(D, identity_init=False)
        return of(composed)([z_score, of(composed)([of(affine)(irregular, dense()), lu, norm, seen_too])])

    composed = "transforms.base.CompositeTransform"
    return {
        composed: Case(composite, _both_ways),
        f"{composed}: between": Case(between, _both_ways),
        f"{composed}: context": Case(lambda: composite(C), _both_ways_of_context),
        rqs: Case(lambda: of(rqs)(alternating, dense(), **spline), _both_ways),
        f"{rqs}: irregular": Case(lambda: of(rqs)(irregular, dense(C), **spline), _both_ways_of_context),
        f"{rqs}: image": Case(lambda: of(rqs)(irregular, conv, **spline), _both_ways, image),
        affine: Case(lambda: of(affine)(alternating, dense()), _both_ways),
        f"{affine}: irregular": Case(lambda: of(affine)(irregular, dense(C)), _both_ways_of_context),
        f"{affine}: image": Case(lambda: of(affine)(alternating, conv), _both_ways, image),
        additive: Case(lambda: of(additive)(alternating, dense()), _both_ways),
        cdf: Case(lambda: of(cdf)([D], **spline), _both_ways),
        ar: Case(lambda: of(ar)(D, H, **spline), _both_ways),
        f"{ar}: plain": Case(lambda: of(ar)(D, H, C, use_residual_blocks=False, **spline), _both_ways_of_context),
        maf: Case(lambda: of(maf)(D, H), _both_ways),
        f"{maf}: context": Case(lambda: of(maf)(D, H, C, num_blocks=1), _both_ways_of_context),
        f"{maf}: random": Case(
            lambda: of(maf)(D, H, use_residual_blocks=False, random_mask=True, activation=torch.tanh), _both_ways
        ),
        made: Case(lambda: of(made)(D, H, output_multiplier=2), _net, directions=("forward",)),
        masked: Case(
            lambda: of(masked)(torch.arange(WIDE) + 1, WIDE, WIDE, random_mask=False, is_output=False),
            _net, (WIDE,), directions=("forward",),
        ),
        resnet: Case(lambda: dense()(D, 3), _net, directions=("forward",)),
        f"{resnet}: context": Case(lambda: dense(C)(D, 3), _net_of_context, directions=("forward",)),
        f"{resnet}: batch norm": Case(lambda: normed().eval(), _net, directions=("forward",)),
        f"{resnet}: batch norm, context": Case(lambda: normed(C).eval(), _net_of_context, directions=("forward",)),
        f"{resnet}: batch norm in training": Case(normed, _net, directions=("forward",)),
        "nn.nets.resnet.ConvResidualNet": Case(lambda: conv(D, 3), _net, image, directions=("forward",)),
        "transforms.conv.OneByOneConvolution": Case(
            lambda: of("transforms.conv.OneByOneConvolution")(D, identity_init=False), _both_ways, image
        ),
        "transforms.lu.LULinear": Case(lambda: of("transforms.lu.LULinear")(D, identity_init=False), _both_ways),
        "transforms.normalization.ActNorm": Case(
            lambda: _initialised(of("transforms.normalization.ActNorm")(D), D), _both_ways
        ),
        "transforms.normalization.ActNorm: image": Case(
            lambda: _initialised(of("transforms.normalization.ActNorm")(D), *image), _both_ways, image
        ),
    }  # fmt: skip


# ---- normflows ----


def _normflows(root: str) -> dict[str, Case]:
    def of(path: str) -> Any:
        return _class(root, path)

    def dense(i: int, o: int, context: int | None = None) -> Any:
        return of("nets.resnet.ResidualNet")(i, o, H, context_features=context, num_blocks=1)

    def mlp(i: int, o: int, **settings: Any) -> Any:
        return of("nets.mlp.MLP")([i, H, o], **settings)

    def wrapped(name: str, **settings: Any) -> Callable[[], nn.Module]:
        wrapper = of(f"flows.neural_spline.wrapper.{name}RationalQuadraticSpline")
        return lambda: wrapper(D, 1, H, num_bins=K, **settings)

    spline = {"num_bins": K, "tails": "linear", "tail_bound": 2.0}
    bounds = torch.tensor([1.0, 2.0, 3.0, 1.5])
    coupling = "flows.neural_spline.coupling.PiecewiseRationalQuadraticCoupling"
    cdf = "flows.neural_spline.coupling.PiecewiseRationalQuadraticCDF"
    ar = "flows.neural_spline.autoregressive.MaskedPiecewiseRationalQuadraticAutoregressive"
    maf = "flows.affine.autoregressive.MaskedAffineAutoregressive"
    affine, block = (f"flows.affine.coupling.AffineCoupling{n}" for n in ("", "Block"))
    masked_affine, norm = "flows.affine.coupling.MaskedAffineFlow", "flows.normalization.ActNorm"
    made, masked, resnet = "nets.made.MADE", "nets.made.MaskedLinear", "nets.resnet.ResidualNet"
    conv1x1, lu = "flows.mixing.Invertible1x1Conv", "flows.mixing._LULinear"
    planar, radial = "flows.planar.Planar", "flows.radial.Radial"
    image = (D, 2, 3)
    mask = torch.tensor([1.0, 0.0, 0.0, 1.0])
    flow = "core.NormalizingFlow"

    def whole() -> nn.Module:
        blocks = [of(block)(mlp(2, D), split_mode=mode) for mode in ("channel", "channel_inv")]
        inner = [of(masked_affine)(mask, mlp(D, D), mlp(D, D)), of("flows.mixing.Permute")(D)]
        return of(flow)(of("distributions.base.DiagGaussian")(D), [*blocks, *inner, wrapped("Autoregressive")()])

    def between() -> nn.Module:
        lu, inner = of("flows.mixing.LULinearPermute")(D, identity_init=False), _initialised(of(norm)((D,)), D)
        return of(flow)(
            of("distributions.base.DiagGaussian")(D), [wrapped("Coupled")(), lu, inner, of(block)(mlp(2, D))]
        )

    def density(flow: Any, x: Tensor, inverse: bool) -> tuple[Tensor, ...]:
        return flow.log_prob(x), flow.inverse(x)

    return {
        flow: Case(whole, density, directions=("forward",)),
        f"{flow}: between": Case(between, density, directions=("forward",)),
        coupling: Case(lambda: of(coupling)(mask, dense, **spline), _both_ways),
        f"{coupling}: wrapped": Case(wrapped("Coupled"), _both_ways),
        f"{coupling}: circular": Case(wrapped("CircularCoupled", ind_circ=[1, 2]), _both_ways),
        f"{coupling}: bounds": Case(wrapped("CircularCoupled", ind_circ=[1, 2], tail_bound=bounds), _both_ways),
        cdf: Case(lambda: of(cdf)([D], **spline), _both_ways),
        ar: Case(lambda: of(ar)(D, H, num_blocks=1, permute_mask=True, **spline), _both_ways),
        f"{ar}: wrapped": Case(wrapped("Autoregressive", num_context_channels=C), _both_ways_of_context),
        f"{ar}: circular": Case(wrapped("CircularAutoregressive", ind_circ=[1, 3]), _both_ways),
        f"{ar}: bounds": Case(wrapped("CircularAutoregressive", ind_circ=[1], tail_bound=bounds), _both_ways),
        maf: Case(lambda: of(maf)(D, H), _both_ways),
        f"{maf}: plain": Case(lambda: of(maf)(D, H, use_residual_blocks=False, random_mask=True), _both_ways),
        f"{maf}: context": Case(lambda: of(maf)(D, H, context_features=C), _both_ways_of_context),
        affine: Case(lambda: of(affine)(mlp(2, 4)), _halves),
        block: Case(lambda: of(block)(mlp(2, 4)), _both_ways),
        f"{block}: sigmoid": Case(lambda: of(block)(mlp(2, 4), scale_map="sigmoid"), _both_ways),
        masked_affine: Case(lambda: of(masked_affine)(mask, mlp(D, D), mlp(D, D)), _both_ways),
        f"{masked_affine}: called": Case(
            lambda: of(masked_affine)(mask, mlp(D, D, output_fn="tanh"), mlp(D, D)), _both_ways
        ),
        made: Case(lambda: of(made)(D, H, output_multiplier=2), _net, directions=("forward",)),
        masked: Case(
            lambda: of(masked)(torch.arange(WIDE) + 1, WIDE, WIDE, random_mask=False, is_output=False),
            _net, (WIDE,), directions=("forward",),
        ),
        resnet: Case(lambda: dense(D, 3), _net, directions=("forward",)),
        "nets.cnn.ConvNet2d": Case(
            lambda: of("nets.cnn.ConvNet2d")([D, H, H, 3], [3, 1, 3], init_zeros=False),
            _net, image, directions=("forward",),
        ),
        norm: Case(lambda: _initialised(of(norm)((D,)), D), _both_ways),
        f"{norm}: image": Case(lambda: _initialised(of(norm)((D, 1, 1)), *image), _both_ways, image),
        conv1x1: Case(lambda: of(conv1x1)(D, use_lu=True), _both_ways, image),
        lu: Case(lambda: of(lu)(D, identity_init=False), _both_ways),
        planar: Case(lambda: of(planar)((D,)), _both_ways, directions=("forward",)),
        f"{planar}: leaky_relu": Case(  # whose slopes are of the default dtype
            lambda: of(planar)((D,), act="leaky_relu"), _both_ways, dtype=torch.float32
        ),
        radial: Case(lambda: of(radial)((D,)), _both_ways, directions=("forward",)),
    }  # fmt: skip


# ---- zuko ----


def _zuko_cases(root: str) -> dict[str, Case]:
    from zuko.flows.neural import MNN
    from zuko.flows.spline import CircularRQSTransform
    from zuko.transforms import MonotonicRQSTransform

    def of(path: str) -> Any:
        return _class(root, path)

    shapes = {"univariate": MonotonicRQSTransform, "shapes": [(K,), (K,), (K - 1,)]}
    circle = {**shapes, "univariate": CircularRQSTransform}
    wide = {"hidden_features": (600,)}
    ar, coupling = "flows.autoregressive.MaskedAutoregressiveTransform", "flows.coupling.GeneralCouplingTransform"
    element, small = "flows.gaussianization.ElementWiseTransform", {"hidden_features": (H, H)}
    composed = "lazy.LazyComposedTransform"

    def of_both(context: int = 0) -> nn.Module:
        parts = [of(ar)(D, context, **small), of(coupling)(D, context, **small, **shapes)]
        return of(composed)(*parts, of(ar)(D, context, order=[3, 1, 0, 2], **small, **shapes))

    return {
        composed: Case(of_both, _zuko),
        f"{composed}: context": Case(lambda: of_both(C), _zuko_of_context),
        f"{composed}: couplings": Case(lambda: of(composed)(*[of(coupling)(D, **small) for _ in range(2)]), _zuko),
        ar: Case(lambda: of(ar)(D, **small), _zuko),
        f"{ar}: spline, context": Case(lambda: of(ar)(D, C, **small, **shapes), _zuko_of_context),
        f"{ar}: circular": Case(lambda: of(ar)(D, **small, **circle), _zuko),
        # Not UMNN, of whose weights zuko has no gradients in evaluation mode, and no second ones.
        f"{ar}: monotone": Case(
            lambda: of(ar)(D, **small, univariate=MNN(3, stack=D, hidden_features=(H,)), shapes=[(3,)]), _zuko_densities
        ),
        f"{ar}: two passes": Case(lambda: of(ar)(D, passes=2, **small), _zuko),
        coupling: Case(lambda: of(coupling)(D, **small), _zuko),
        f"{coupling}: spline, context": Case(lambda: of(coupling)(D, C, **small, **shapes), _zuko_of_context),
        f"{coupling}: circular": Case(lambda: of(coupling)(D, **small, **circle), _zuko),
        f"{coupling}: wide": Case(lambda: of(coupling)(D, **wide), _zuko),
        element: Case(lambda: of(element)(D, **shapes), _zuko),
        f"{element}: context": Case(lambda: of(element)(D, C, **small, **shapes), _zuko_of_context),
    }


# ---- FrEIA ----


def _dense(n_in: int, n_out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(n_in, H), nn.ReLU(), nn.Linear(H, n_out))


def _freia_cases(root: str) -> dict[str, Case]:
    def of(path: str) -> Any:
        return _class(root, path)

    found = {}
    for name in ("GLOWCouplingBlock", "RNVPCouplingBlock", "NICECouplingBlock", "AffineCouplingOneSided"):
        path = f"modules.coupling_layers.{name}"
        found[path] = Case(lambda path=path: of(path)([(D,)], subnet_constructor=_dense), _freia)
    glow, all_in_one = "modules.coupling_layers.GLOWCouplingBlock", "modules.all_in_one_block.AllInOneBlock"
    conditional = "modules.coupling_layers.ConditionalAffineTransform"
    permute = "modules.fixed_transforms.PermuteRandom"
    sequence, graph = "framework.sequence_inn.SequenceINN", "framework.graph_inn.GraphINN"
    names = [glow, permute, all_in_one, glow.replace("GLOW", "NICE"), glow.replace("GLOW", "RNVP")]

    def in_sequence(context: int | None = None) -> nn.Module:
        inn = of(sequence)(D)
        for name in names:
            given = {} if context is None or name == permute else {"cond": 0, "cond_shape": (context,)}
            inn.append(of(name), **given, **({} if name == permute else {"subnet_constructor": _dense}))
        return inn

    def in_graph() -> nn.Module:
        Input, Node, Output = (of(f"framework.graph_inn.{n}Node") for n in ("Input", "", "Output"))
        nodes = [Input(D)]
        for name in names:
            nodes.append(Node(nodes[-1], of(name), {} if name == permute else {"subnet_constructor": _dense}))
        return of(graph)([*nodes, Output(nodes[-1])])

    found |= {
        f"{glow}: context": Case(lambda: of(glow)([(D,)], [(C,)], subnet_constructor=_dense), _freia_of_context),
        conditional: Case(lambda: of(conditional)([(D,)], [(C,)], subnet_constructor=_dense), _freia_of_context),
        all_in_one: Case(lambda: of(all_in_one)([(MANY,)], subnet_constructor=_dense), _freia, (MANY,)),
        f"{all_in_one}: soft": Case(
            lambda: of(all_in_one)([(D,)], subnet_constructor=_dense, permute_soft=True), _freia
        ),
        permute: Case(lambda: of(permute)([(D,)]), _freia),
        sequence: Case(in_sequence, _freia_whole),
        f"{sequence}: context": Case(lambda: in_sequence(C), _freia_whole_of_context),
        graph: Case(in_graph, _freia_whole),
    }
    return found


# ---- Pyro ----


def _pyro_cases(root: str) -> dict[str, Case]:
    from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN, DenseNN

    def of(path: str) -> Any:
        return _class(root, f"distributions.transforms.{path}")

    at = "distributions.transforms"
    quadratic, linear = [K, K, K - 1], [K, K, K - 1, K]
    two = {"order": "quadratic"}

    def exact(layer: Any) -> Any:
        layer.mask = layer.power_mask.double().reciprocal()  # else of float32, in a layer of float64 too
        return layer

    def upper(params: list[int]) -> Any:
        return DenseNN(2, [H], [2 * n for n in params])

    spline, conditional = "spline.Spline", "spline.ConditionalSpline"
    ar, of_context = (f"spline_autoregressive.{n}SplineAutoregressive" for n in ("", "Conditional"))
    maf, maf_of_context = (f"affine_autoregressive.{n}AffineAutoregressive" for n in ("", "Conditional"))
    polynomial, block = "polynomial.Polynomial", "block_autoregressive.BlockAutoregressive"
    neural, neural_of_context = (f"neural_autoregressive.{n}NeuralAutoregressive" for n in ("", "Conditional"))
    coupling, affine = "spline_coupling.SplineCoupling", "affine_coupling.AffineCoupling"
    affine_of_context = "affine_coupling.ConditionalAffineCoupling"
    context = functools.partial(_class, "pyro.nn.dense_nn")
    found = {
        spline: Case(lambda: of(spline)(D, K, **two), _pyro),
        f"{spline}: linear": Case(lambda: of(spline)(D, K), _pyro),
        conditional: Case(
            lambda: of(conditional)(DenseNN(C, [H], [D * n for n in quadratic]), D, K, **two),
            _pyro_of_context,
        ),
        ar: Case(lambda: of(ar)(D, AutoRegressiveNN(D, [H], quadratic), K, **two), _pyro),
        f"{ar}: linear": Case(lambda: of(ar)(D, AutoRegressiveNN(D, [H], linear), K), _pyro),
        of_context: Case(
            lambda: of(of_context)(D, ConditionalAutoRegressiveNN(D, C, [H], quadratic), count_bins=K, **two),
            _pyro_of_context,
        ),
        maf: Case(  # whose own inverse is of the default dtype
            lambda: of(maf)(AutoRegressiveNN(D, [H])), _pyro, dtype=torch.float32
        ),
        maf_of_context: Case(lambda: of(maf_of_context)(ConditionalAutoRegressiveNN(D, C, [H])), _pyro_of_context),
        polynomial: Case(
            lambda: exact(of(polynomial)(AutoRegressiveNN(D, [H], [3 * 2]), D, 2, 2)), _pyro, directions=("forward",)
        ),
        "planar.Planar": Case(lambda: of("planar.Planar")(D), _pyro, directions=("forward",)),
        "planar.ConditionalPlanar": Case(
            lambda: of("planar.ConditionalPlanar")(DenseNN(C, [H], [1, D, D])),
            _pyro_of_context,
            directions=("forward",),
        ),
        "radial.Radial": Case(lambda: of("radial.Radial")(D), _pyro, directions=("forward",)),
        "radial.ConditionalRadial": Case(
            lambda: of("radial.ConditionalRadial")(DenseNN(C, [H], [D, 1, 1])),
            _pyro_of_context,
            directions=("forward",),
        ),
        neural: Case(
            lambda: of(neural)(AutoRegressiveNN(D, [H], [4] * 3), hidden_units=4), _pyro, directions=("forward",)
        ),
        neural_of_context: Case(
            lambda: of(neural_of_context)(ConditionalAutoRegressiveNN(D, C, [H], [4] * 3), hidden_units=4),
            _pyro_of_context,
            directions=("forward",),
        ),
        block: Case(lambda: of(block)(D, [3, 2], residual="gated"), _pyro, directions=("forward",)),
        coupling: Case(lambda: of(coupling)(D, 2, upper(linear), K), _pyro),
        f"{coupling}: identity": Case(lambda: of(coupling)(D, 2, upper(quadratic), K, identity=True, **two), _pyro),
        affine: Case(lambda: of(affine)(2, DenseNN(2, [H], [2, 2])), _pyro),
        affine_of_context: Case(
            lambda: of(affine_of_context)(2, context("ConditionalDenseNN")(2, C, [H], [2, 2])), _pyro_of_context
        ),
    }
    composed = "distributions.torch_transform.ComposeTransformModule"

    def compose() -> Any:
        flipped = of("permute.Permute")(torch.arange(D).flip(0))
        blocks = [of(coupling)(D, 2, upper(linear), K), flipped, of(affine)(2, DenseNN(2, [H], [2, 2]))]
        return _class(root, composed)([*blocks, of(coupling)(D, 2, upper(quadratic), K, identity=True, **two)])

    return {f"{at}.{name}": case for name, case in found.items()} | {composed: Case(compose, _pyro_whole)}


# ---- copies of the spline function, in whatever package ----


def _copies_cases(root: str) -> dict[str, Case]:
    from tests.compat.copied_splines import ByHelper, ByName
    from tests.compat.test_parity_copies import ConvFlow

    def call(layer: Any, x: Tensor, inverse: bool) -> tuple[Tensor, ...]:
        return layer(x, torch.ones_like(x[:, :1]), inverse)

    def map(layer: Any, x: Tensor, inverse: bool) -> tuple[Tensor, ...]:
        return layer(x, inverse)

    return {
        "a copy of VITS' function": Case(lambda: ConvFlow(4, H, K), call, (4, 5)),
        "a copy of another name": Case(ByName, map),
        "a copy that a helper calls": Case(ByHelper, map),
    }


_MAKERS = {
    "nflows": _nflows, "glasflow": _nflows, "normflows": _normflows, "zuko": _zuko_cases, "freia": _freia_cases,
    "pyro": _pyro_cases, "copies": _copies_cases,
}  # fmt: skip


def library(name: str) -> Any:
    return importlib.import_module(f"flowkernels.compat.{name}").LIBRARY


def of_library(name: str) -> dict[str, Case]:
    """class, or "class: in what way" → case"""
    return _MAKERS[name](getattr(library(name), "root", ""))


# ---- flows of our own ----


def _native() -> dict[str, Case]:
    from flowkernels import flows

    def call(flow: Any, x: Tensor, inverse: bool) -> tuple[Tensor, ...]:
        return flow.transform.inverse(x) if inverse else flow.transform(x)

    def log_prob(flow: Any, x: Tensor, inverse: bool) -> tuple[Tensor]:
        return (flow.log_prob(x),)

    sizes = {"transforms": 2, "hidden": (H, H)}
    found = {
        name: Case(lambda name=name, more=more: getattr(flows, name)(D, **sizes, **more), call)
        for name, more in (("NSF", {}), ("MAF", {}), ("IAF", {}), ("RealNVP", {}), ("NICE", {}))
    }
    image = (1, 4, 4)

    def glow() -> nn.Module:
        flow = flows.Glow(image, levels=1, steps=1, hidden=(H, H))
        flow.log_prob(torch.randn(64, *image))  # the first batch sets its ActNorms
        return flow

    return found | {
        "MAF: log_prob": Case(found["MAF"].make, log_prob, directions=("forward",)),
        "Glow": Case(glow, log_prob, image, directions=("forward",)),
    }


CASES = {f"{name}, {case}": found for name in _MAKERS for case, found in of_library(name).items()}
NATIVE = {f"flowkernels, {name}": case for name, case in _native().items()}


def build(case: Case) -> nn.Module:
    """The module of a case; the same one every time."""
    import numpy as np

    torch.manual_seed(0)
    np.random.seed(0)  # FrEIA draws its permutations from it
    layer = case.make()
    for p in layer.parameters():
        if p.requires_grad:
            generator = torch.Generator().manual_seed(p.numel())
            p.data.add_(0.2 * torch.randn(p.shape, generator=generator))
    return layer.to(case.dtype)


def data(case: Case, rows: int = ROWS) -> Tensor:
    return 0.8 * torch.randn(rows, *case.shape, generator=torch.Generator().manual_seed(1), dtype=case.dtype)
