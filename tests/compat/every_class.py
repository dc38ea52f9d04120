"""One small layer of every kind that is accelerated, of every library, called in one way in both directions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import normflows as nf
import nflows.transforms as nflows
import torch
import zuko
from FrEIA import modules as freia
from glasflow.nflows import transforms as glasflow
from glasflow.nflows.nn import nets as glasflow_nets
from nflows.nn.nets import ConvResidualNet, ResidualNet
from pyro.distributions import transforms as pyro
from pyro.nn import AutoRegressiveNN, DenseNN
from torch import Tensor, nn

from tests.compat.nflows_models import shaken

D, C, ROWS, WIDTH, BINS = 6, 3, 40, 16, 4
Run = Callable[[Any, Tensor, "Tensor | None", bool], tuple[Tensor, Tensor]]


class Case(NamedTuple):
    """How a layer is made, for x ``[ROWS, D]`` and with or without a context; and how it is called."""

    make: Callable[[], nn.Module]
    run: Run
    context: bool = False


# ---- how the libraries' layers are called: (layer, x, context, inverse) → y and ladj ----


def _called(layer: Any, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
    run = layer.inverse if inverse else layer
    return run(x) if context is None else run(x, context)


def _net(net: Any, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
    y = net(x) if context is None else net(x, context)
    return y, y.sum(-1)


def _zuko(flow: Any, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
    transform = flow(context).transform
    return (transform.inv if inverse else transform).call_and_ladj(x)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _pyro(layer: Any, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
    if context is not None:
        layer = layer.condition(context)
    with _default_dtype(x.dtype if x.is_floating_point() else torch.get_default_dtype()):  # Pyro makes zeros of it
        y = layer._inverse(x) if inverse else layer._call(x)
    pair = (y, x) if inverse else (x, y)
    ladj = layer.log_abs_det_jacobian(*pair)
    return y, -ladj if inverse else ladj


def _freia(block: Any, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
    (y,), ladj = block([x], () if context is None else [context], rev=inverse)
    return y, torch.as_tensor(ladj)


# ---- the layers ----


def _dense(context: int | None = None, library: Any = ResidualNet) -> Callable[[int, int], nn.Module]:
    return lambda i, o: library(i, o, hidden_features=WIDTH, context_features=context, num_blocks=1)


def _conv(i: int, o: int) -> nn.Module:
    return ConvResidualNet(i, o, hidden_channels=8, num_blocks=1)


def _of_nflows(library: Any, net: Any) -> dict[str, Case]:
    """nflows' layers, or those of glasflow's copy."""
    mask = torch.arange(D) % 2
    spline = {"num_bins": BINS, "tails": "linear", "tail_bound": 2.0}
    rqs, maf = library.PiecewiseRationalQuadraticCouplingTransform, library.MaskedAffineAutoregressiveTransform
    spline_maf = library.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
    affine, additive = library.AffineCouplingTransform, library.AdditiveCouplingTransform
    return {
        "spline coupling": Case(lambda: rqs(mask, _dense(None, net), **spline), _called),
        "spline coupling, context": Case(lambda: rqs(mask, _dense(C, net), **spline), _called, True),
        "affine coupling": Case(lambda: affine(mask, _dense(None, net)), _called),
        "additive coupling": Case(lambda: additive(mask, _dense(None, net)), _called),
        "MAF": Case(lambda: maf(D, WIDTH), _called),
        "MAF, context": Case(lambda: maf(D, WIDTH, context_features=C), _called, True),
        "MAF, feed-forward": Case(lambda: maf(D, WIDTH, use_residual_blocks=False), _called),
        "spline MAF": Case(lambda: spline_maf(D, WIDTH, **spline), _called),
        "MADE": Case(lambda: maf(D, WIDTH).autoregressive_net, _net),
        "residual net": Case(lambda: net(D, 4, WIDTH, num_blocks=1), _net),
        "residual net, context": Case(lambda: net(D, 4, WIDTH, context_features=C, num_blocks=1), _net, True),
        "LU": Case(lambda: library.LULinear(D, identity_init=False), _called),
    }


def _of_normflows() -> dict[str, Case]:
    F, mask = nf.flows, torch.arange(D) % 2.0
    sizes = {"num_blocks": 1, "num_hidden_channels": WIDTH, "num_bins": BINS}

    def mlp(i: int, o: int) -> nn.Module:
        return nf.nets.MLP([i, WIDTH, o])

    return {
        "spline coupling": Case(lambda: F.CoupledRationalQuadraticSpline(D, **sizes), _called),
        "circular coupling": Case(lambda: F.CircularCoupledRationalQuadraticSpline(D, ind_circ=[1], **sizes), _called),
        "spline MAF": Case(lambda: F.AutoregressiveRationalQuadraticSpline(D, **sizes), _called),
        "spline MAF, context": Case(
            lambda: F.AutoregressiveRationalQuadraticSpline(D, num_context_channels=C, **sizes), _called, True
        ),
        "circular MAF": Case(
            lambda: F.CircularAutoregressiveRationalQuadraticSpline(D, ind_circ=[1, 2], **sizes), _called
        ),
        "MAF": Case(lambda: F.MaskedAffineAutoregressive(D, WIDTH), _called),
        "MAF, context": Case(lambda: F.MaskedAffineAutoregressive(D, WIDTH, context_features=C), _called, True),
        "MAF, feed-forward": Case(
            lambda: F.MaskedAffineAutoregressive(D, WIDTH, use_residual_blocks=False), _called
        ),
        "affine block": Case(lambda: F.AffineCouplingBlock(mlp(D // 2, D)), _called),
        "masked affine": Case(lambda: F.MaskedAffineFlow(mask, mlp(D, D), mlp(D, D)), _called),
        "LU": Case(lambda: F.LULinearPermute(D, identity_init=False), _called),
    }


def _of_zuko() -> dict[str, Case]:
    sizes = {"transforms": 1, "hidden_features": (WIDTH, WIDTH)}
    found = {}
    for name in ("NSF", "MAF", "NICE", "NCSF"):
        flow = getattr(zuko.flows, name)
        found[name] = Case(lambda flow=flow: flow(D, **sizes), _zuko)
        found[f"{name}, context"] = Case(lambda flow=flow: flow(D, C, **sizes), _zuko, True)
    return found


def _of_pyro() -> dict[str, Case]:
    half = D // 2
    quadratic = [BINS, BINS, BINS - 1]

    def dense(params: list[int]) -> nn.Module:
        return DenseNN(half, [WIDTH], [half * n for n in params])

    def autoregressive(params: list[int]) -> nn.Module:
        return AutoRegressiveNN(D, [WIDTH], param_dims=params)

    return {
        "spline": Case(lambda: pyro.Spline(D, BINS), _pyro),
        "spline, context": Case(lambda: pyro.conditional_spline(D, C, [WIDTH], BINS), _pyro, True),
        "spline coupling": Case(lambda: pyro.SplineCoupling(D, half, dense([*quadratic, BINS]), BINS), _pyro),
        "spline MAF": Case(
            lambda: pyro.SplineAutoregressive(D, autoregressive(quadratic), BINS, order="quadratic"), _pyro
        ),
        "spline MAF, context": Case(
            lambda: pyro.conditional_spline_autoregressive(D, C, [WIDTH], BINS), _pyro, True
        ),
        "MAF": Case(lambda: pyro.AffineAutoregressive(AutoRegressiveNN(D, [WIDTH])), _pyro),
        "MAF, context": Case(lambda: pyro.conditional_affine_autoregressive(D, C, [WIDTH]), _pyro, True),
        "affine coupling": Case(lambda: pyro.AffineCoupling(half, dense([1, 1])), _pyro),
        "affine coupling, context": Case(lambda: pyro.conditional_affine_coupling(D, C, [WIDTH]), _pyro, True),
    }


def _of_freia() -> dict[str, Case]:
    def subnet(i: int, o: int) -> nn.Module:
        return nn.Sequential(nn.Linear(i, WIDTH), nn.ReLU(), nn.Linear(WIDTH, o))

    blocks = {
        "glow": freia.GLOWCouplingBlock,
        "rnvp": freia.RNVPCouplingBlock,
        "nice": freia.NICECouplingBlock,
        "one-sided": freia.AffineCouplingOneSided,
        "all in one": freia.AllInOneBlock,
        "conditional": freia.ConditionalAffineTransform,
    }
    found = {}
    for name, cls in blocks.items():
        if name != "conditional":
            found[name] = Case(lambda cls=cls: cls([(D,)], subnet_constructor=subnet), _freia)
        found[f"{name}, context"] = Case(lambda cls=cls: cls([(D,)], [(C,)], subnet_constructor=subnet), _freia, True)
    return found


CASES = {
    f"{library}, {name}": case
    for library, cases in {
        "nflows": _of_nflows(nflows, ResidualNet),
        "glasflow": _of_nflows(glasflow, glasflow_nets.ResidualNet),
        "normflows": _of_normflows(),
        "zuko": _of_zuko(),
        "Pyro": _of_pyro(),
        "FrEIA": _of_freia(),
    }.items()
    for name, case in cases.items()
}


def make(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """The layer of a case; every call makes the same one."""
    import numpy as np

    torch.manual_seed(0)
    np.random.seed(0)  # FrEIA draws its permutations from it
    return shaken(CASES[name].make(), 0.1).to(dtype)


def data(name: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor | None]:
    """x and the context of a case."""
    case, g = CASES[name], torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, D, generator=g, dtype=torch.float64).clamp(-1.9, 1.9).to(dtype)
    return x, torch.randn(ROWS, C, generator=g, dtype=torch.float64).to(dtype) if case.context else None
