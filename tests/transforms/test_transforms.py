"""What every transform promises, proved for every transform in one table."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import flowkernels
from flowkernels import transforms
from flowkernels.flows import NICE, Glow, RealNVP
from flowkernels.nets import (
    MADE,
    MLP,
    Constant,
    ConvNet,
    ConvResNet,
    PixelCNN,
    RecurrentNet,
    ResidualNet,
    RowConvNet,
    WaveNet,
)
from flowkernels.transforms import (
    RQS,
    ActNorm,
    Affine,
    Autoregressive,
    BatchNorm,
    BlockAutoregressive,
    Composite,
    Continuous,
    Coupling,
    Dequantize,
    DiagonalScale,
    FreeForm,
    ImageCoupling,
    Inverse,
    Logit,
    LUConv1x1,
    LULinear,
    Mint,
    Mixture,
    MonotoneNet,
    MultiScale,
    Permutation,
    PixelAutoregressive,
    Planar,
    Radial,
    Residual,
    RowAutoregressive,
    SignalAutoregressive,
    Softclip,
    Squeeze,
    Standardize,
    Sylvester,
    Transform,
    Unsqueeze,
    VariationalDequantize,
    checkerboard,
)

C = 3
BOX = 3.0
LEVELS = 7
net = functools.partial(MLP, hidden=(16, 16))
given = functools.partial(MLP, hidden=(16,), context=C)
residual = functools.partial(ResidualNet, hidden=16, context=C)
conv = functools.partial(ConvNet, hidden=(8, 8))
conv_given = functools.partial(ConvNet, hidden=(8, 8), context=C)
resnet = functools.partial(ConvResNet, hidden=8, blocks=1)
wave = functools.partial(WaveNet, hidden=6, layers=1)
causal = functools.partial(WaveNet, hidden=6, layers=1, kernel_size=2, causal=True)
pixels = functools.partial(PixelCNN, hidden=6, blocks=1, first_kernel_size=3, activation=torch.tanh)
rows = functools.partial(RowConvNet, hidden=6, kernel_size=(2, 3))


@pytest.fixture(autouse=True)
def one_thread(threads) -> None:
    """Small tensors: a second thread costs more than it gives."""
    threads(1)


def on_the_line(*shape: int) -> Tensor:
    """Most of it inside the box of a spline, some of it outside."""
    return 1.6 * torch.randn(shape, dtype=torch.float64)


def in_the_unit(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64)


def whole(*shape: int) -> Tensor:
    return torch.randint(0, LEVELS, shape).double()


@pytest.fixture(autouse=True)
def same_noise(monkeypatch) -> None:
    """Whole numbers get the same noise at every call, as if they were mapped."""
    for kind in (Dequantize, PixelAutoregressive):
        forward = kind.forward

        def seeded(
            self: Transform, x: Tensor, context: Tensor | None = None, forward: Any = forward
        ) -> tuple[Tensor, Tensor]:
            if not torch.compiler.is_compiling():  # which cannot
                torch.manual_seed(5)
            return forward(self, x, context)

        monkeypatch.setattr(kind, "forward", seeded)


class Case(NamedTuple):
    build: Callable[[], Transform]
    shape: int | tuple[int, ...]
    context: int = 0
    data: Callable[..., Tensor] = on_the_line
    leads: bool = True  # any leading dims; False: [N, C, H, W] only
    solved: float = 0.0  # of a differential equation: how far the way back may end from where the way began

    @property
    def event(self) -> tuple[int, ...]:
        return (self.shape,) if isinstance(self.shape, int) else self.shape

    @property
    def random(self) -> bool:
        """It adds noise to whole numbers: no function of x, and not invertible but on them."""
        return self.data is whole


def deep(context: int) -> Composite:
    factory = functools.partial(net, context=context)
    return Composite(
        [
            Coupling([0, 1, 0, 1, 0], factory, RQS(5)),
            Permutation.random(5),
            Coupling([1, 1, 0, 0, 1], factory, RQS(5)),
        ]
    )


def masked(features: int, univariate: Any = None, **settings: Any) -> Autoregressive:
    univariate = univariate or Affine()
    made = MADE(features, univariate.n_params, **{"hidden": (16, 16), "seed": 0, **settings})
    return Autoregressive(made, univariate)


def recurrent(features: int, univariate: Any = None, **settings: Any) -> Autoregressive:
    univariate = univariate or Affine()
    return Autoregressive(RecurrentNet(features, univariate.n_params, 8, **settings), univariate)


class Looped(Autoregressive):
    """Every inverse feature by feature, as for a conditioner that is not ours."""

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._feature_by_feature(y, context)


def looped(layer: Autoregressive) -> Looped:
    return Looped(layer.conditioner, layer.univariate)


def normed(features: int, channel_dim: int = -1) -> BatchNorm:
    """With running numbers as after some training."""
    layer = BatchNorm(features, channel_dim=channel_dim)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.2, 3.0)
    return layer


def noise(net: Any) -> Coupling | ImageCoupling:
    if net is MLP:
        return Coupling([1, 0, 1, 1], functools.partial(MLP, hidden=(8,), context=4), Affine("tanh"))
    return ImageCoupling(checkerboard(1, 2, 4), functools.partial(net, context=1, context_dims=3), Affine("tanh"))


CASES = {
    "coupling-alternating-even": Case(lambda: Coupling([0, 1] * 3, net, RQS()), 6),
    "coupling-alternating-odd": Case(lambda: Coupling([True, False] * 2 + [True], net, RQS()), 5),
    "coupling-halves": Case(lambda: Coupling([0, 0, 1, 1, 1], net, RQS()), 5),
    "coupling-halves-first-moved": Case(lambda: Coupling(torch.tensor([1, 1, 1, 0, 0]), net, RQS()), 5),
    "coupling-by-index": Case(lambda: Coupling([0, 1, 1, 0, 0, 1, 0], net, RQS()), 7),
    "coupling-context": Case(lambda: Coupling([0, 1, 0, 1], residual, RQS(bins=4)), 4, C),
    "coupling-all-context": Case(lambda: Coupling([1, 1, 1], given, RQS()), 3, C),
    "coupling-all-constant": Case(lambda: Coupling([1, 1, 1], Constant, RQS()), 3),
    "coupling-one-feature": Case(lambda: Coupling([1], given, RQS()), 1, C),
    "coupling-circular": Case(lambda: Coupling([0, 1, 0, 1], net, RQS(tails="circular", tail_bound=2.0)), 4),
    "coupling-order-linear": Case(lambda: Coupling([0, 1, 0, 1], net, RQS(order="linear")), 4),
    "permutation": Case(lambda: Permutation([2, 0, 3, 1]), 4),
    "permutation-reverse": Case(lambda: Permutation.reverse(5), 5),
    "permutation-random": Case(lambda: Permutation.random(6), 6),
    "permutation-one-feature": Case(lambda: Permutation([0]), 1),
    "composite": Case(lambda: deep(0), 5),
    "composite-context": Case(lambda: deep(C), 5, C),
    "composite-empty": Case(lambda: Composite([]), 4),
    "autoregressive-affine": Case(lambda: masked(5), 5),
    "autoregressive-exp": Case(lambda: masked(3, Affine("exp"), order="reversed", activation="tanh"), 3),
    "autoregressive-additive": Case(lambda: masked(4, Affine("additive")), 4),
    "autoregressive-spline": Case(lambda: masked(4, RQS(bins=4), order="random"), 4),
    "autoregressive-residual": Case(lambda: masked(4, RQS(bins=4), residual=True, context=C, activation="silu"), 4, C),
    "autoregressive-context": Case(lambda: masked(3, context=C, order=[1, 2, 0], degrees="random"), 3, C),
    "autoregressive-one-feature": Case(lambda: masked(1, context=C), 1, C),
    "autoregressive-narrow": Case(lambda: masked(7, hidden=(3, 4), degrees="even"), 7),
    "autoregressive-looped": Case(lambda: looped(masked(4, RQS(bins=4), order="reversed")), 4),
    "autoregressive-recurrent": Case(lambda: recurrent(4, RQS(bins=4), order="reversed"), 4),
    "autoregressive-recurrent-context": Case(lambda: recurrent(3, context=C, order=[1, 2, 0]), 3, C),
    "autoregressive-inverse": Case(lambda: Inverse(masked(3, RQS(bins=5))), 3),
    "inverse": Case(lambda: Inverse(Coupling([0, 1, 0, 1, 0], net, RQS())), 5),
    "coupling-affine": Case(lambda: Coupling([0, 1] * 3, net, Affine("tanh")), 6),
    "coupling-additive": Case(lambda: Coupling([0, 0, 1, 1], given, Affine("additive")), 4, C),
    "permutation-channels": Case(lambda: Permutation([2, 0, 1], channel_dim=1), (3, 2, 2), leads=False),
    "diagonal-scale": Case(lambda: DiagonalScale(5), 5),
    "standardize": Case(lambda: Standardize(torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.5, 2.0, 3.0])), 3),
    "standardize-images": Case(lambda: Standardize.from_data(torch.randn(9, 2, 2, 3), 3), (2, 2, 3)),
    "diagonal-scale-images": Case(lambda: DiagonalScale((2, 2, 3)), (2, 2, 3)),
    "actnorm": Case(lambda: ActNorm(4), 4),
    "actnorm-channels": Case(lambda: ActNorm(3, channel_dim=1), (3, 2, 2), leads=False),
    "batch-norm": Case(lambda: normed(4), 4),
    "batch-norm-channels": Case(lambda: normed(3, 1), (3, 2, 2), leads=False),
    "block-autoregressive": Case(lambda: BlockAutoregressive(4, (3, 2), seed=0), 4),
    "block-autoregressive-sum": Case(lambda: BlockAutoregressive(3, 4, activation="elu", residual="sum", seed=0), 3),
    "block-autoregressive-linear": Case(lambda: BlockAutoregressive(3, (), residual=None, seed=0), 3),
    "block-autoregressive-leaky": Case(
        lambda: BlockAutoregressive(4, (3,), activation="leaky_relu", residual=None, seed=0), 4
    ),
    "block-autoregressive-one-feature": Case(lambda: BlockAutoregressive(1, (5, 5), seed=0), 1),
    "continuous": Case(lambda: Continuous(4, (8, 8), solver="rk4", steps=40, seed=0), 4, solved=1e-11),
    "continuous-context": Case(
        lambda: Continuous(3, 8, context=C, rtol=1e-9, atol=1e-10, time="sinusoidal", activation="softplus", seed=0),
        3,
        C,
        solved=1e-9,
    ),
    "continuous-one-feature": Case(
        lambda: Inverse(Continuous(1, (5, 5), solver="rk4", steps=40, seed=0)), 1, solved=1e-11
    ),
    "planar": Case(lambda: Planar(4, 3, seed=0), 4),
    "planar-leaky": Case(lambda: Planar(3, activation="leaky_relu", seed=0), 3),
    "planar-context": Case(lambda: Planar(4, 3, context=C, seed=0), 4, C),
    "planar-one-feature": Case(lambda: Inverse(Planar(1, 2, seed=0)), 1),
    "radial": Case(lambda: Radial(4, 3, seed=0), 4),
    "radial-abs": Case(lambda: Radial(3, 5, alpha="abs", seed=1), 3),
    "radial-context": Case(lambda: Radial(4, 2, context=C, seed=0), 4, C),
    "sylvester": Case(lambda: Sylvester(5, 3, 2, seed=0), 5),
    "sylvester-reflections": Case(lambda: Sylvester(4, 4, reflections=3, activation="leaky_relu", seed=0), 4),
    "sylvester-context": Case(lambda: Sylvester(4, 2, 2, reflections=2, context=C, seed=0), 4, C),
    "residual": Case(lambda: Residual(4, (7, 6), seed=0), 4),
    "residual-elu": Case(lambda: Residual(3, (), preactivated=True, activation="elu", lipschitz=0.5, seed=0), 3),
    "monotone-integral": Case(
        lambda: Autoregressive(MADE(4, 4, (16,)), MonotoneNet(4, signal=3, hidden=(7, 5), activation="tanh", seed=0)), 4
    ),
    "monotone-positive": Case(
        lambda: Autoregressive(
            MADE(4, 3, (16,), context=C), MonotoneNet(4, form="positive", signal=3, hidden=(7, 5), seed=0)
        ),
        4,
        C,
    ),
    "monotone-coupling": Case(
        lambda: Coupling([0, 1, 1], net, MonotoneNet(2, form="positive", signal=3, hidden=(9, 8), seed=0)), 3
    ),
    "lu-linear": Case(lambda: LULinear(5, seed=0), 5),
    "lu-conv": Case(lambda: LUConv1x1(4, seed=0), (4, 2, 2), leads=False),
    "softclip": Case(lambda: Softclip(4.0), 5),
    "softclip-images": Case(lambda: Softclip(event_dims=3), (1, 2, 3)),
    "squeeze": Case(Squeeze, (2, 4, 2)),
    "unsqueeze": Case(Unsqueeze, (8, 1, 2)),
    "logit": Case(Logit, 5, data=in_the_unit),
    "logit-images": Case(lambda: Logit(0.1, 0.95, event_dims=3), (1, 2, 3), data=in_the_unit),
    "dequantize": Case(lambda: Dequantize(LEVELS), 4, data=whole),
    "dequantize-images": Case(lambda: Dequantize(LEVELS, event_dims=3), (1, 2, 4), data=whole),
    "variational-dequantize": Case(lambda: VariationalDequantize(noise(MLP), LEVELS), 4, data=whole),
    "variational-dequantize-images": Case(lambda: VariationalDequantize(noise(conv), LEVELS, 3), (1, 2, 4), data=whole),
    "image-coupling-halves": Case(lambda: ImageCoupling([0, 0, 1, 1], conv, Affine("tanh")), (4, 3, 2)),
    "image-coupling-first-moved": Case(lambda: ImageCoupling([1, 0, 0], conv, Affine("sigmoid")), (3, 3, 2)),
    "image-coupling-alternating": Case(lambda: ImageCoupling([0, 1] * 2, conv, Affine("exp")), (4, 2, 2)),
    "image-coupling-by-index": Case(lambda: ImageCoupling([0, 1, 1, 0], resnet, Affine("softplus")), (4, 2, 2)),
    "image-coupling-additive": Case(lambda: ImageCoupling([0, 1], conv, Affine("additive")), (2, 2, 2)),
    "image-coupling-spline": Case(lambda: ImageCoupling([0, 1], conv, RQS(bins=5)), (2, 2, 2)),
    "image-coupling-context": Case(lambda: ImageCoupling([0, 1], conv_given, Affine("tanh")), (2, 2, 3), C),
    "checkerboard": Case(lambda: ImageCoupling(checkerboard(2, 2, 3), resnet, Affine("tanh")), (2, 2, 3)),
    "checkerboard-additive": Case(lambda: ImageCoupling(checkerboard(1, 3, 3, 1), conv, Affine("additive")), (1, 3, 3)),
    "checkerboard-spline": Case(lambda: ImageCoupling(checkerboard(1, 2, 2), conv, RQS(bins=3)), (1, 2, 2)),
    "checkerboard-context": Case(lambda: ImageCoupling(checkerboard(1, 2, 4), conv_given, Affine("exp")), (1, 2, 4), C),
    "pixel-autoregressive": Case(lambda: PixelAutoregressive(pixels, Mixture(3), 2), (2, 2, 1)),
    "pixel-autoregressive-gated": Case(
        lambda: PixelAutoregressive(functools.partial(pixels, block="gated", context=C), Affine("exp"), 1), (1, 1, 2), C
    ),
    "pixel-autoregressive-levels": Case(
        lambda: PixelAutoregressive(pixels, Mixture(3), 1, levels=LEVELS), (1, 1, 2), data=whole
    ),
    "row-autoregressive": Case(lambda: RowAutoregressive(2, rows, Affine("tanh")), (2, 3, 2)),
    "row-autoregressive-left": Case(
        lambda: RowAutoregressive(1, functools.partial(rows, context=C), Affine("exp"), "left"), (1, 2, 4), C
    ),
    "mint": Case(lambda: Mint((2, 2, 2), 3), (2, 2, 2)),
    "mint-reverse": Case(lambda: Mint((1, 3, 3), 4, reverse=True), (1, 3, 3)),
    "multi-scale": Case(lambda: MultiScale([Squeeze(), Squeeze(), Composite([Squeeze()])], (1, 8, 8)), (1, 8, 8)),
    "squeeze-signals": Case(lambda: Squeeze(3, 2), (1, 6)),
    "unsqueeze-signals": Case(lambda: Unsqueeze(2, 2), (2, 3)),
    "logit-signals": Case(lambda: Logit(event_dims=2), (2, 3), data=in_the_unit),
    "dequantize-signals": Case(lambda: Dequantize(LEVELS, event_dims=2), (1, 4), data=whole),
    "lu-conv-signals": Case(lambda: LUConv1x1(4, seed=0), (4, 3), leads=False),
    "signal-coupling": Case(
        lambda: ImageCoupling([0, 1, 1], functools.partial(wave, context=C), Affine("exp"), 2), (3, 2), C
    ),
    "signal-coupling-samples": Case(lambda: ImageCoupling(torch.tensor([[0, 1, 0]]), wave, RQS(bins=3), 2), (1, 3)),
    "signal-autoregressive": Case(
        lambda: SignalAutoregressive(1, functools.partial(causal, context=C), Affine()), (1, 3), C
    ),
    "multi-scale-signals": Case(
        lambda: MultiScale([Squeeze(4, 2), Permutation.reverse(3, 1), LUConv1x1(2)], (1, 8), leave=1), (1, 8)
    ),
    "nice": Case(lambda: NICE(5, hidden=(8, 8)).transform, 5),
    "real-nvp": Case(lambda: RealNVP(4, C, 3, (8,), batch_norm=True).transform, 4, C),
    "real-nvp-images": Case(lambda: RealNVP((1, 4, 4), C, 1, (8,), batch_norm=True).transform, (1, 4, 4), C),
    "glow": Case(lambda: Glow((1, 4, 4), C, 2, 1, (8,), seed=0).transform, (1, 4, 4), C),
    "glow-additive": Case(
        lambda: Glow((2, 2, 2), 0, 1, 2, (8,), univariate=Affine("additive"), permutation="shuffle").transform,
        (2, 2, 2),
    ),
}
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Weights far from the start, where a layer is nearly the identity and hides its mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            vector = 0.2 if name.endswith("log_scale") else 0.7  # a ConvNet raises its scale to the third power
            scale = p[0].numel() ** -0.5 if p.dim() > 1 else vector
            p.copy_(torch.randn(p.shape, generator=generator) * scale)


def make(
    case: Case, dtype: torch.dtype = torch.float64, device: Any = "cpu", rows: tuple[int, ...] = (9,), seed: int = 0
) -> tuple[Transform, Tensor, Tensor | None]:
    """The transform, x and context. Most of x is inside the box, some of it outside."""
    torch.manual_seed(seed)
    transform = case.build()
    randomise(transform, seed)
    x = case.data(*rows, *case.event)
    context = torch.randn(*rows, C, dtype=torch.float64).to(device, dtype) if case.context else None
    return transform.to(device, dtype).eval(), x.to(device, dtype), context


def jacobian(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """dy/dx of every row, [B, D, D]; a row of y depends on its own row of x only, so rows may be summed."""
    J = torch.autograd.functional.jacobian(lambda v: f(v).sum(0).flatten(), x)
    return J.movedim(1, 0).flatten(2)


def stages(transform: Transform) -> list[Transform]:
    """The transform up to each of its layers."""
    parts = list(transform) if isinstance(transform, Composite) else [transform]
    return [Composite(parts[: i + 1]) for i in range(len(parts))]


def of_params(layer: Transform, y: Tensor, context: Tensor | None) -> Tensor:
    """How far the value of a layer moves when its parameters move by their own size.

    Coupling computes the same parameters in both directions; an autoregressive layer has one pass and one sweep.
    """
    turned = isinstance(layer, Inverse)
    inner = layer.transform if turned else layer
    mapped = (Autoregressive, PixelAutoregressive, RowAutoregressive, SignalAutoregressive)
    if not isinstance(inner, mapped) or getattr(inner, "levels", 0):
        return torch.zeros_like(y)
    data = y if turned else inner.inverse(y, context)[0].detach()
    params = inner._params(data, context).detach().requires_grad_()
    value = inner.univariate(data, params, False, data.dim() - 1)[0]
    (slope,) = torch.autograd.grad(value.sum(), params)
    size = params.detach().abs().flatten(1).amax(1).view(-1, *[1] * (data.dim() - 1))
    moved = slope.abs().sum(-1) * size
    if not turned:
        return moved
    # The value of the layer is the argument here: as far as it must move for its image to move so.
    J = jacobian(lambda v: inner(v, context)[0], data)
    return (torch.linalg.inv(J).abs() @ moved[..., None])[..., 0]


@EVERY
@pytest.mark.parametrize("precision", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_round_trip(case, precision, device) -> None:
    """Judged against what rounding costs: the last bit of every layer's value, brought back through the inverse.

    A layer's value is the sum of numbers as large as its box, so their last bit counts where the value is small; and
    what comes back as x has a last bit of its own.
    """
    transform, x, context = make(case, precision, device, rows=(50,))
    y, ladj = transform(x, context)
    back, ladj_back = transform.inverse(y, context)
    wide = None if context is None else context.double()
    eps, floor = torch.finfo(precision).eps, torch.finfo(precision).eps * x.detach().double().flatten(1).abs()
    for stage in stages(copy.deepcopy(transform).double()):
        value = stage(x.double(), wide)[0].detach()
        J = jacobian(lambda v, stage=stage: stage.inverse(v, wide)[0], value)
        flat = value.flatten(1)
        lost = flat.abs().amax(-1, keepdim=True).clamp_min(BOX).expand_as(flat)
        floor += eps * (J.abs() @ (lost + of_params(stage[-1], value, wide).flatten(1))[..., None])[..., 0]
    wrong = (back - x).flatten(1).abs()
    assert (wrong <= 4 * floor + case.solved).all(), (wrong / floor).max()
    if precision == torch.float64:
        torch.testing.assert_close(ladj_back, -ladj, rtol=0, atol=1e-8)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", [n for n, case in CASES.items() if not case.random])
def test_ladj_is_the_slogdet(name, direction, device) -> None:
    transform, x, context = make(CASES[name], device=device)
    f = transform.forward
    if direction == "inverse":  # at values that forward reaches
        x, f = transform(x, context)[0].detach(), transform.inverse
    y, ladj = f(x, context)
    assert y.shape[0] == x.shape[0] and y[0].numel() == x[0].numel() and ladj.shape == x.shape[:1]
    slogdet = torch.linalg.slogdet(jacobian(lambda v: f(v, context)[0], x))
    torch.testing.assert_close(ladj, slogdet.logabsdet, rtol=1e-9, atol=1e-10)


@EVERY
def test_table_is_not_trivial(case) -> None:
    """The proofs above would hold for a transform that does nothing."""
    transform, x, context = make(case, rows=(50,))
    y, ladj = transform(x, context)
    if len(list(transform.parameters())) > 0:
        univariates = [m.univariate for m in transform.modules() if hasattr(m, "univariate")]
        keeps_volume = all(getattr(u, "scale", "") == "additive" for u in univariates)
        assert ladj.abs().max() > 0.01 if univariates == [] else keeps_volume or ladj.std() > 0.1
        assert (y.flatten(1) - x.flatten(1)).abs().max() > 0.1


@EVERY
def test_gradients(case) -> None:
    """Of y and ladj, to x, to the context and to every parameter, against finite differences."""
    transform, x, context = make(case, rows=(3,))
    names, values = zip(*transform.named_parameters(), strict=True) if list(transform.parameters()) else ((), ())
    wanted = [t.detach().requires_grad_() for t in (x, *values, *(() if context is None else (context,)))]

    def f(x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        weights = dict(zip(names, rest[: len(names)], strict=True))
        return torch.func.functional_call(transform, weights, (x, *rest[len(names) :]))

    assert torch.autograd.gradcheck(f, wanted, fast_mode=True)


@EVERY
def test_leading_dims(case, device) -> None:
    transform, x, context = make(case, device=device, rows=(2, 5, 3))
    if not case.leads:
        with pytest.raises(ValueError, match=r"x must be \[N, "):
            transform(x)
        return
    y, ladj = transform(x, context)
    rows, given = x.flatten(0, 2), None if context is None else context.flatten(0, 2)
    flat, flat_ladj = transform(rows, given)
    shape = transform.latent_shape(case.event)
    assert y.shape == (2, 5, 3, *shape) and ladj.shape == (2, 5, 3)
    assert transform.data_shape(shape) == case.event
    torch.testing.assert_close(y, flat.view(y.shape))
    torch.testing.assert_close(ladj, flat_ladj.view(ladj.shape))
    one, one_ladj = transform(rows[0], None if given is None else given[0])
    assert one.shape == shape and one_ladj.shape == ()
    if not case.random:
        torch.testing.assert_close(one, flat[0])
        torch.testing.assert_close(one_ladj, flat_ladj[0])


@EVERY
def test_strided_input(case, device) -> None:
    transform, x, context = make(case, device=device)
    y = transform(x, context)[0].detach()
    for f, v in ((transform, x), (transform.inverse, y)):
        turned = v.mT.contiguous().mT
        wide = torch.cat([v, v, v], -1)[..., v.shape[-1] : 2 * v.shape[-1]]
        last = v.movedim(1, -1).contiguous().movedim(-1, 1)
        for form in (turned, wide, last):
            torch.testing.assert_close(f(form, context), f(v, context))


@EVERY
def test_empty_batch(case, device) -> None:
    transform, x, context = make(case, torch.float32, device, rows=(0,))
    shape = transform.latent_shape(case.event)
    for f, v, out in ((transform, x, shape), (transform.inverse, x.view(0, *shape), case.event)):
        v = v.detach().requires_grad_()
        y, ladj = f(v, context)
        assert y.shape == (0, *out) and ladj.shape == (0,)
        if y.requires_grad:
            (y.sum() + ladj.sum()).backward()
            assert v.grad is not None and v.grad.shape == v.shape


@EVERY
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_row_stays_in_its_row(case, bad, device) -> None:
    transform, x, context = make(case, torch.float32, device)
    clean = transform(x, context)
    for feature in range(x[0].numel()):
        broken = x.clone()
        broken[4].view(-1)[feature] = bad
        y, ladj = transform(broken, context)
        others = [0, 1, 2, 3, 5, 6, 7, 8]
        assert torch.equal(y[others], clean[0][others]) and torch.equal(ladj[others], clean[1][others])
        assert not (y[4].isfinite().all() and ladj[4].isfinite())  # infinity lies outside of some domains


@pytest.mark.thinned(2)
@EVERY
def test_dtypes(case, dtype, device) -> None:
    """The layers lose no more in a dtype than they lose around the eager spline in that dtype.

    Asked of the median: the worst element is a lottery of one spline's knots, which the tests of the op look at.
    """
    transform, x, context = make(case, dtype, device, rows=(200,))
    found = transform(x, context)
    wide_dtype = torch.promote_types(dtype, torch.float32)
    assert found[0].dtype == (wide_dtype if case.random else dtype) and found[1].dtype == wide_dtype
    back = transform.inverse(found[0].to(dtype), context)
    assert back[0].dtype == found[0].dtype and back[1].dtype == wide_dtype
    assert dtype == torch.float16 or back[0].isfinite().all()  # whose numbers end at 65504
    if case.random:  # and in another dtype other noise
        assert dtype not in (torch.float32, torch.float64) or torch.equal(back[0], x)
        return
    wide = None if context is None else context.double()
    with flowkernels.use_backend("reference"):
        eager, truth = transform(x, context), copy.deepcopy(transform).double()(x.double(), wide)
    if dtype == torch.float64:  # there eager is the truth
        torch.testing.assert_close(found, eager, rtol=1e-10, atol=1e-11)
        return
    for a, b, exact in zip(found, eager, truth, strict=True):
        error, of_eager = ((t.double() - exact).abs().median() for t in (a, b))
        assert error <= 2 * of_eager + 4 * torch.finfo(dtype).eps * exact.abs().median()


@EVERY
def test_state_dict(case) -> None:
    transform, x, context = make(case, seed=0)
    file = io.BytesIO()
    torch.save(transform.state_dict(), file)
    file.seek(0)
    other = make(case, seed=1)[0]
    other.load_state_dict(torch.load(file, weights_only=True))
    for f, g in ((transform, other), (transform.inverse, other.inverse)):
        at = x if f is transform else transform(x, context)[0]
        for a, b in zip(f(at, context), g(at, context), strict=True):
            assert torch.equal(a, b)
    assert all(not t.is_floating_point() or t.dtype == torch.float32 for t in case.build().state_dict().values())


@EVERY
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))], ids=["deepcopy", "pickle"])
def test_copies(case, clone) -> None:
    transform, x, context = make(case)
    y, ladj = transform(x, context)
    other = clone(transform)
    for p in transform.parameters():
        p.data.zero_()
    y2, ladj2 = other(x, context)
    assert torch.equal(y, y2) and torch.equal(ladj, ladj2)


@EVERY
def test_repr(case) -> None:
    text = repr(case.build())
    assert type(case.build()).__name__ in text
    if "Coupling" in text:
        assert "mask=" in text and any(m in text for m in ("RQS(bins=", "Affine(scale=", "MonotoneNet("))


@pytest.mark.thinned(3)
@EVERY
def test_compile_fullgraph(case) -> None:
    transform, x, context = make(case)
    x.requires_grad_()

    def both(x: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        y, ladj = transform(x, context)
        return (y, ladj, *transform.inverse(y, context))

    torch._dynamo.reset()
    wanted = both(x, context)
    torch.manual_seed(5)
    found = torch.compile(both, backend="aot_eager", fullgraph=True)(x, context)
    torch.testing.assert_close(found, wanted)
    grads = [torch.autograd.grad(sum(t.sin().sum() for t in out if t.requires_grad), x)[0] for out in (wanted, found)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    "name",
    [
        "coupling-alternating-odd",
        "coupling-by-index",
        "coupling-context",
        "composite",
        "autoregressive-affine",
        "autoregressive-residual",
        "autoregressive-recurrent",
    ],
)
def test_func_transforms(name) -> None:
    transform, x, context = make(CASES[name])
    if context is None:
        context = x.new_zeros(len(x), 0)

    def f(x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return transform(x, c if c.shape[-1] else None)

    torch.testing.assert_close(torch.func.vmap(f)(x, context), f(x, context))
    J = torch.func.vmap(torch.func.jacfwd(lambda v, c: f(v, c)[0]))(x, context)
    torch.testing.assert_close(torch.linalg.slogdet(J).logabsdet, f(x, context)[1])


def test_table_has_every_transform() -> None:
    """A new transform comes with its proofs, also where it is not exported."""

    def below(kind: type[Transform]) -> set[type[Transform]]:
        return {kind}.union(*(below(k) for k in kind.__subclasses__()))

    ours = {kind for kind in below(Transform) if kind.__module__.startswith("flowkernels")} - {Transform}
    # Of a solver that no compiler follows: its proofs are in test_free_form.py.
    assert ours == {type(case.build()) for case in CASES.values()} - {Looped} | {FreeForm}
    assert {getattr(transforms, name) for name in transforms.__all__} >= ours


# ---- one by one ----


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("autoregressive") and n != "autoregressive-inverse"])
def test_autoregressive_jacobian_is_triangular(name) -> None:
    transform, x, context = make(CASES[name])
    order = transform.conditioner.order.tolist()
    for f in (transform, transform.inverse):
        J = jacobian(lambda v, f=f: f(v, context)[0], x)[:, order][:, :, order]
        assert (J.triu(1) == 0).all() and (J.diagonal(dim1=1, dim2=2) > 0).all()
        if len(order) > 1:
            assert (J.tril(-1).abs().amax(0)[1:, 0] > 0).any()


@pytest.mark.parametrize("name", ["autoregressive-affine", "autoregressive-residual", "autoregressive-context"])
def test_autoregressive_sweep_and_loop_agree(name) -> None:
    """Values and gradients, with every reason to run the loop."""
    transform, y, context = make(CASES[name])

    def run(layer: Autoregressive) -> list[Tensor]:
        x, ladj = layer.inverse(y, context)
        grads = torch.autograd.grad(x.sin().sum() + ladj.sum(), list(transform.parameters()))
        return [x, ladj, *grads]

    wanted = run(transform)
    torch.testing.assert_close(run(looped(transform)), wanted)
    calls: list[int] = []
    handle = transform.conditioner.final_layer.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(run(transform), wanted)
    assert len(calls) == transform.features
    handle.remove()
    run(transform)
    assert len(calls) == transform.features


def test_autoregressive_is_nflows() -> None:
    nflows = pytest.importorskip("nflows.transforms", reason="nflows is not installed")
    for residual in (False, True):
        theirs = nflows.MaskedAffineAutoregressiveTransform(
            4, 12, context_features=C, num_blocks=2, use_residual_blocks=residual
        ).double()
        randomise(theirs)
        ours = masked(4, hidden=(12,) * (2 if residual else 3), residual=residual, context=C).double()
        ours.conditioner.load_state_dict(theirs.autoregressive_net.state_dict())
        x, context = torch.randn(9, 4).double(), torch.randn(9, C).double()
        torch.testing.assert_close(ours(x, context), theirs(x, context))
        torch.testing.assert_close(ours.inverse(x, context), theirs.inverse(x, context), rtol=1e-6, atol=1e-8)


def test_autoregressive_with_a_conditioner_of_your_own() -> None:
    class Own(nn.Module):
        order = (1, 0)

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.7))

        def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
            second = torch.stack((self.weight * x[..., 1], x[..., 1].sin()), -1)
            return torch.cat((second, torch.zeros_like(second)), -1)

    layer = Autoregressive(Own(), Affine("exp"))
    x = torch.randn(9, 2)
    y, ladj = layer(x)
    torch.testing.assert_close(ladj, 0.7 * x[:, 1])
    back, ladj_back = layer.inverse(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(ladj_back, -ladj)


def test_autoregressive_with_dropout() -> None:
    """Active, it costs D passes and still inverts nothing but noise; in evaluation mode it is not there."""
    layer = masked(4, dropout=0.5)
    randomise(layer)
    y = torch.randn(50, 4)
    assert layer.conditioner.as_net(y, None) is None
    assert not torch.equal(layer.inverse(y)[0], layer.inverse(y)[0])
    layer.eval()
    assert layer.conditioner.as_net(y, None) is not None
    torch.testing.assert_close(layer(layer.inverse(y)[0])[0], y)


def test_coupling_keeps_the_identity_part_bit_for_bit() -> None:
    for name, case in CASES.items():
        if name.startswith("coupling"):
            transform, x, context = make(case, torch.float32)
            mask = transform.split.mask
            y = transform(x, context)[0]
            assert torch.equal(y[:, ~mask], x[:, ~mask]), name
            assert (y[:, mask] != x[:, mask]).any(), name


@pytest.mark.parametrize(
    "mask", [[0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0], [1, 0, 1, 1, 0]]
)
def test_coupling_is_its_definition(mask, dtype, device) -> None:
    """With the split written out by hand, and bit for bit: the layer adds no rounding of its own.

    With an activation that no kernel knows, so that the conditioner is called, here and there.
    """
    spline, x = RQS(bins=4), torch.randn(6, len(mask)).to(device, dtype)
    kept, moved = [i for i, m in enumerate(mask) if not m], [i for i, m in enumerate(mask) if m]
    conditioner = MLP(len(kept), len(moved) * spline.n_params, hidden=(8,), activation=torch.sin)
    randomise(conditioner)
    layer = Coupling(mask, conditioner, spline).to(device, dtype)
    params = conditioner(x[:, kept]).view(6, len(moved), -1)
    for inverse in (False, True):
        value, total = flowkernels.ops.rqs(x[:, moved], params, bins=4, inverse=inverse)
        wanted = x.clone()
        for k, j in enumerate(moved):
            wanted[:, j] = value[:, k]
        y, ladj = layer.inverse(x) if inverse else layer(x)
        assert torch.equal(y, wanted) and torch.equal(ladj, total)
        assert y.dtype == dtype


@pytest.mark.parametrize("mask", [[0, 1] * 3, [1, 0] * 2 + [1], [0, 0, 1, 1], [1, 1, 0]])
def test_common_masks_are_views(mask) -> None:
    """Alternating masks and halves split without a copy."""
    x = torch.randn(4, len(mask))
    for part in Coupling(mask, net, RQS()).split.split(x):
        assert part.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def test_another_mask_comes_with_the_weights() -> None:
    """Slices and indices follow a loaded mask; nothing stays from the mask at construction."""
    masks = ([0, 1, 0, 1, 0, 1], [0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 1])
    x = torch.randn(5, 6)
    for old in masks:
        for new in masks:
            source, target = Coupling(new, net, RQS()), Coupling(old, net, RQS())
            randomise(source)
            target.load_state_dict(source.state_dict())
            assert torch.equal(target(x)[0], source(x)[0])
            assert torch.equal(target.inverse(x)[0], source.inverse(x)[0])


def test_context_broadcasts() -> None:
    transform, x, _ = make(CASES["composite-context"], rows=(4, 6))
    for shape in ((C,), (1, C), (6, C), (4, 1, C), (1, 6, C)):
        context = torch.randn(shape, dtype=torch.float64)
        found = transform(x, context)
        torch.testing.assert_close(found, transform(x, context.expand(4, 6, C).contiguous()))
        torch.testing.assert_close(transform.inverse(found[0], context)[0], x)


def test_autocast() -> None:
    transform, x, context = make(CASES["composite-context"], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, ladj = transform(x, context)
        back, _ = transform.inverse(y, context)
    assert y.dtype == ladj.dtype == torch.float32
    assert y.isfinite().all() and back.isfinite().all()


def test_coupling_promotes_a_narrow_input() -> None:
    x = torch.randn(4, 5, dtype=torch.bfloat16)
    for mask in ([0, 1, 0, 1, 0], [0, 0, 1, 1, 1], [0, 1, 1, 0, 1]):
        spline = RQS(bins=4)
        y, ladj = Coupling(mask, lambda _, n: Constant(0, n), spline)(x)
        assert y.dtype == ladj.dtype == torch.float32


def test_conditioner_may_be_shared_or_given_as_a_module() -> None:
    shared = MLP(2, 2 * RQS().n_params)
    layers = Composite([Coupling([0, 0, 1, 1], shared, RQS()), Coupling([1, 1, 0, 0], shared, RQS())])
    assert len(list(layers.parameters())) == len(list(shared.parameters()))
    assert layers[0].conditioner is layers[1].conditioner is shared


def test_permutation() -> None:
    x = torch.tensor([[10.0, 11.0, 12.0]])
    assert Permutation([2, 0, 1])(x)[0].tolist() == [[12.0, 10.0, 11.0]]
    assert Permutation([2, 0, 1]).inverse(x)[0].tolist() == [[11.0, 12.0, 10.0]]
    assert Permutation.reverse(3)(x)[0].tolist() == [[12.0, 11.0, 10.0]]
    one, two = Permutation.random(50, 7), Permutation.random(50, torch.Generator().manual_seed(7))
    assert torch.equal(one.order, two.order) and not torch.equal(one.order, torch.arange(50))
    assert "order" in one.state_dict()


def test_composite_order_and_access() -> None:
    first, second = Permutation([1, 2, 0]), Permutation([0, 2, 1])
    both = Composite([first, second])
    x = torch.tensor([10.0, 11.0, 12.0])
    assert torch.equal(both(x)[0], second(first(x)[0])[0])
    assert not torch.equal(both(x)[0], first(second(x)[0])[0])
    assert len(both) == 2 and both[0] is first and list(both) == [first, second]


def test_rqs_settings_reach_the_op() -> None:
    x = torch.randn(5, 2)
    for settings in (
        {"bins": 4, "tail_bound": 2.0},
        {"bins": 3, "tails": "circular", "logit_scale": 0.5},
        {"bins": 5, "tails": None, "box": (-1.0, 2.0, 0.0, 4.0)},
        {"bins": 5, "min_bin_width": 0.1, "min_bin_height": 0.15, "min_derivative": 0.5},
        {"bins": 6, "parametrization": "soft_clip", "slope": 1e-2},
    ):
        spline = RQS(**settings)
        params = torch.randn(5, 2, spline.n_params)
        for inverse in (False, True):
            wanted = flowkernels.ops.rqs(x, params, inverse=inverse, **settings)
            for a, b in zip(spline(x, params, inverse), wanted, strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize(
    "layer",
    [lambda s: Coupling([0, 1, 0, 1], net, s), lambda s: masked(4, s), lambda s: looped(masked(4, s))],
    ids=["coupling", "autoregressive", "looped"],
)
def test_circle_shift(layer) -> None:
    """The spline sees x from the other side of the circle, and the network does not."""
    turned = layer(RQS(bins=4, tail_bound=2.0, circle_shift=True)).double()
    randomise(turned)
    x = (4 * torch.rand(30, 4) - 2).double()
    y, ladj = turned(x)
    opposite, plain = torch.where(x < 0, x + 2, x - 2), RQS(bins=4, tail_bound=2.0)
    if isinstance(turned, Coupling):
        params = turned.conditioner(x[:, ::2], None)
        value, wanted = plain(opposite[:, 1::2], params.unflatten(-1, (2, -1)), False)
        value = torch.stack((x[:, 0], value[:, 0], x[:, 2], value[:, 1]), -1)
    else:
        value, wanted = plain(opposite, turned.conditioner(x, None).unflatten(-1, (4, -1)), False)
    torch.testing.assert_close((y, ladj), (value, wanted))
    back, inverse = turned.inverse(y)
    torch.testing.assert_close((back, inverse), (x, -ladj), rtol=1e-9, atol=1e-9)
    assert "circle_shift=True" in repr(turned)


@pytest.mark.parametrize("parametrization", ["softmax", "soft_clip"])
@pytest.mark.parametrize("tails", ["linear", "circular", None])
@pytest.mark.parametrize("order", ["quadratic", "linear"])
def test_rqs_identity(tails, parametrization, order) -> None:
    spline = RQS(bins=7, tails=tails, parametrization=parametrization, order=order)
    x = 2 * torch.randn(50, 3, dtype=torch.float64)
    params = torch.tensor(spline.identity, dtype=torch.float64).expand(50, 3, -1)
    assert params.shape[-1] == spline.n_params
    y, ladj = spline(x, params, inverse=False)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(ladj, torch.zeros_like(ladj), rtol=0, atol=1e-12)


def test_rqs_with_slopes_that_exclude_the_identity() -> None:
    assert len(RQS(bins=2, tails=None, min_derivative=1.5).identity) == 7


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Coupling([[0, 1]], net, RQS()), ValueError, "transforms.Coupling: mask must have 1 dimension, got 2"),
        (lambda: Coupling([0, 2], net, RQS()), ValueError, "mask must hold only 0 and 1 .*, got \\[0, 2\\]"),
        (lambda: Coupling([0, 0], net, RQS()), ValueError, "must transform at least one feature, got \\[0, 0\\]"),
        (lambda: Coupling([], net, RQS()), ValueError, "must transform at least one feature, got \\[\\]"),
        (lambda: Coupling([0, 1], 3, RQS()), TypeError, "conditioner must be a module .*, got int"),
        (lambda: Coupling([0, 1], lambda a, b: 3, RQS()), TypeError, "conditioner must be a module .*, got int"),
        (lambda: Coupling([0, 1], net, RQS())(torch.zeros(4, 3)), ValueError, "x must be \\[\\.\\.\\., 2\\], got"),
        (lambda: Coupling([0, 1], MLP(1, 22), RQS())(torch.zeros(4, 2)), ValueError, "must return \\[\\.\\.\\., 23\\]"),
        (lambda: Autoregressive(MLP(2, 4), Affine()), TypeError, "conditioner must be a module with an order, got MLP"),
        (lambda: Autoregressive(MADE(2, 3), Affine()), ValueError, "conditioner must return .*4.*, got .*6"),
        (lambda: masked(2)(torch.zeros(4, 3)), ValueError, "transforms.Autoregressive: x must be .*, got \\[4, 3\\]"),
        (lambda: masked(2).inverse(torch.zeros(4, 3)), ValueError, "transforms.Autoregressive: x must be"),
        (lambda: masked(2, context=2).inverse(torch.zeros(4, 2)), ValueError, "context must be .*, got None"),
        (lambda: Affine("cubic"), ValueError, "scale must be one of"),
        (lambda: Permutation([0, 2]), ValueError, "transforms.Permutation: order must .*, got \\[0, 2\\]"),
        (lambda: Permutation([]), ValueError, "order must hold each of 0 to D-1 once, got \\[\\]"),
        (lambda: Permutation([1, 0])(torch.zeros(3)), ValueError, "x must be \\[\\.\\.\\., 2\\], got \\[3\\]"),
        (lambda: Composite([nn.Identity()]), TypeError, "transforms.Composite: .* got Identity"),
        (lambda: Inverse(nn.Identity()), TypeError, "transforms.Inverse: .* got Identity"),
        (lambda: RQS(bins=0), ValueError, "bins must be an integer from 1 to 128, got 0"),
        (lambda: Transform()(torch.zeros(1)), NotImplementedError, "forward is not defined"),
        (lambda: Transform().inverse(torch.zeros(1)), NotImplementedError, "inverse is not defined"),
    ],
)
def test_errors(build, error, message) -> None:
    with pytest.raises(error, match=message):
        build()
