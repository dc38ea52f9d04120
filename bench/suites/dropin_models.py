"""A typical model of each library, before and after `accelerate`. The tests train the same models, smaller.

A row of another library: a function (features, hidden, layers) → module, its entry in `MODELS`, and in `_CALLS` where
the module's methods have other names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.suites import dropin_layers
from bench.suites.model import Model, learned
from flowkernels.compat import accelerate

BINS, TAIL_BOUND, BLOCKS = 8, 3.0, 2
BEFORE, AFTER = "before", "accelerated"


class Typical(NamedTuple):
    library: str
    make: Callable[[int, int, int], nn.Module]
    training: bool = False  # batch norm has no inverse in training, but in the network of a coupling


# ---- nflows ----


def _nflows_flow(features: int, layers: list[Any]) -> nn.Module:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import CompositeTransform

    return Flow(CompositeTransform(layers), StandardNormal([features]))


def _nflows_nsf(features: int, hidden: int, layers: int) -> nn.Module:
    from nflows import transforms as T
    from nflows.nn.nets import ResidualNet

    def net(n_in: int, n_out: int) -> nn.Module:
        return ResidualNet(n_in, n_out, hidden_features=hidden, num_blocks=BLOCKS)

    parts = []
    for i in range(layers):
        mask = [(i + j) % 2 for j in range(features)]
        parts += [
            T.RandomPermutation(features),
            T.LULinear(features, identity_init=True),
            T.PiecewiseRationalQuadraticCouplingTransform(
                mask, net, num_bins=BINS, tails="linear", tail_bound=TAIL_BOUND
            ),
        ]
    return _nflows_flow(features, parts)


def _nflows_realnvp(features: int, hidden: int, layers: int) -> nn.Module:
    from nflows.flows import SimpleRealNVP

    return SimpleRealNVP(features, hidden, layers, BLOCKS)


def _nflows_autoregressive(features: int, hidden: int, layers: int) -> nn.Module:
    from nflows import transforms as T

    parts = []
    for _ in range(layers):
        spline = T.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
            features, hidden, num_blocks=BLOCKS, num_bins=BINS, tails="linear", tail_bound=TAIL_BOUND
        )
        parts += [T.ReversePermutation(features), spline]
    return _nflows_flow(features, parts)


def _nflows_maf(features: int, hidden: int, layers: int) -> nn.Module:
    from nflows import transforms as T

    parts = []
    for _ in range(layers):
        affine = T.MaskedAffineAutoregressiveTransform(features, hidden, num_blocks=BLOCKS)
        # Fresh layers put samples of 63 features at 1e14, and one of some thousands beyond float32.
        with torch.no_grad():
            for p in affine.autoregressive_net.final_layer.parameters():
                p.mul_(0.1)
        parts += [T.ReversePermutation(features), affine]
    return _nflows_flow(features, parts)


# ---- nflows as dingo has it: elu and batch norm, and a context as wide as its embedding of a strain ----

_CONTEXT = 128


class _Conditional(nn.Module):
    """A flow of nflows with a context of its own for each row."""

    def __init__(self, flow: Any, features: int) -> None:
        super().__init__()
        self.flow, self.features = flow, features

    @staticmethod
    @functools.lru_cache(maxsize=8)
    def context(rows: int, dtype: torch.dtype) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(rows, _CONTEXT, generator=generator, dtype=torch.float64).to(dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x, self.context(len(x), x.dtype))

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow._transform.inverse(z, self.context(len(z), z.dtype))

    def sample(self, n: int) -> Tensor:
        return self.inverse(torch.randn(n, self.features))[0]


def _dingo(features: int, hidden: int, layers: int) -> nn.Module:
    from nflows import transforms as T
    from nflows.nn.nets import ResidualNet

    def net(n_in: int, n_out: int) -> nn.Module:
        return ResidualNet(
            n_in, n_out, hidden_features=hidden, context_features=_CONTEXT, num_blocks=BLOCKS,
            activation=nn.functional.elu, use_batch_norm=True,
        )  # fmt: skip

    parts: list[Any] = []
    for i in range(layers):
        mask = [(i + j) % 2 for j in range(features)]
        spline = T.PiecewiseRationalQuadraticCouplingTransform(
            mask, net, num_bins=BINS, tails="linear", tail_bound=TAIL_BOUND
        )
        parts += [T.RandomPermutation(features), T.LULinear(features, identity_init=True), spline]
    return _Conditional(_nflows_flow(features, parts), features)


# ---- glasflow, as nessai builds its flows ----


def _glasflow(name: str, **settings: Any) -> Callable[[int, int, int], nn.Module]:
    def make(features: int, hidden: int, layers: int) -> nn.Module:
        import glasflow

        cls = getattr(glasflow, name)
        return cls(features, layers, n_neurons=hidden, n_blocks_per_transform=BLOCKS, **settings)

    return make


# ---- normflows ----


def _normflows(flow: Callable[[Any, int, int, int], list[Any]]) -> Callable[[int, int, int], nn.Module]:
    def make(features: int, hidden: int, layers: int) -> nn.Module:
        import normflows as nf

        parts = [part for i in range(layers) for part in flow(nf, features, hidden, i)]
        return nf.NormalizingFlow(nf.distributions.DiagGaussian(features, trainable=False), parts)

    return make


def _normflows_nsf(nf: Any, features: int, hidden: int, i: int) -> list[Any]:
    spline = nf.flows.CoupledRationalQuadraticSpline(
        features, BLOCKS, hidden, num_bins=BINS, tail_bound=TAIL_BOUND, reverse_mask=i % 2 == 1
    )
    return [spline, nf.flows.LULinearPermute(features)]


def _normflows_circular(nf: Any, features: int, hidden: int, i: int) -> list[Any]:
    spline = nf.flows.CircularCoupledRationalQuadraticSpline(
        features, BLOCKS, hidden, ind_circ=list(range(0, features, 3)), num_bins=BINS, tail_bound=4 * TAIL_BOUND,
        reverse_mask=i % 2 == 1,
    )  # fmt: skip
    return [spline]


def _normflows_circular_autoregressive(nf: Any, features: int, hidden: int, i: int) -> list[Any]:
    spline = nf.flows.CircularAutoregressiveRationalQuadraticSpline(
        features, BLOCKS, hidden, ind_circ=list(range(0, features, 3)), num_bins=BINS, tail_bound=4 * TAIL_BOUND
    )
    return [spline]


def _normflows_autoregressive(nf: Any, features: int, hidden: int, i: int) -> list[Any]:
    spline = nf.flows.AutoregressiveRationalQuadraticSpline(
        features, BLOCKS, hidden, num_bins=BINS, tail_bound=TAIL_BOUND
    )
    return [spline, nf.flows.LULinearPermute(features)]


def _normflows_maf(nf: Any, features: int, hidden: int, i: int) -> list[Any]:
    affine = nf.flows.MaskedAffineAutoregressive(features, hidden, num_blocks=BLOCKS)
    return [affine, nf.flows.LULinearPermute(features)]


def _normflows_realnvp(nf: Any, features: int, hidden: int, i: int) -> list[Any]:
    mask = torch.tensor([float((i + j) % 2) for j in range(features)])
    nets = [nf.nets.MLP([features, hidden, hidden, features], init_zeros=True) for _ in range(2)]
    return [nf.flows.MaskedAffineFlow(mask, *nets)]


def _normflows_affine(nf: Any, features: int, hidden: int, i: int) -> list[Any]:
    first = (features + 1) // 2
    net = nf.nets.MLP([first, hidden, hidden, 2 * (features - first)], init_zeros=True)
    return [nf.flows.AffineCouplingBlock(net), nf.flows.Permute(features, mode="shuffle")]


# ---- zuko ----


def _zuko(name: str, **settings: Any) -> Callable[[int, int, int], nn.Module]:
    def make(features: int, hidden: int, layers: int) -> nn.Module:
        from zuko import flows

        return getattr(flows, name)(features, transforms=layers, hidden_features=(hidden, hidden), **settings)

    return make


def _zuko_spline_coupling(features: int, hidden: int, layers: int) -> nn.Module:
    from zuko.transforms import MonotonicRQSTransform

    shapes = [(BINS,), (BINS,), (BINS - 1,)]
    return _zuko("NICE", univariate=MonotonicRQSTransform, shapes=shapes)(features, hidden, layers)


MODELS = {
    "nflows spline coupling": Typical("nflows", _nflows_nsf),
    "nflows Real NVP": Typical("nflows", _nflows_realnvp),
    "nflows autoregressive spline": Typical("nflows", _nflows_autoregressive),
    "nflows MAF": Typical("nflows", _nflows_maf),
    "nflows as dingo's": Typical("nflows", _dingo),
    "nflows as dingo's, training": Typical("nflows", _dingo, training=True),
    "glasflow CouplingNSF": Typical("glasflow", _glasflow("CouplingNSF", linear_transform="lu")),
    "glasflow RealNVP": Typical("glasflow", _glasflow("RealNVP", linear_transform="lu")),
    "normflows spline coupling": Typical("normflows", _normflows(_normflows_nsf)),
    "normflows circular spline": Typical("normflows", _normflows(_normflows_circular)),
    "normflows autoregressive spline": Typical("normflows", _normflows(_normflows_autoregressive)),
    "normflows circular autoregressive": Typical("normflows", _normflows(_normflows_circular_autoregressive)),
    "normflows MAF": Typical("normflows", _normflows(_normflows_maf)),
    "normflows Real NVP": Typical("normflows", _normflows(_normflows_realnvp)),
    "normflows affine coupling": Typical("normflows", _normflows(_normflows_affine)),
    "zuko autoregressive spline": Typical("zuko", _zuko("NSF")),
    "zuko MAF": Typical("zuko", _zuko("MAF")),
    "zuko circular spline": Typical("zuko", _zuko("NCSF")),
    "zuko spline coupling": Typical("zuko", _zuko_spline_coupling),
    "zuko Real NVP": Typical("zuko", _zuko("NICE")),
    "zuko Gaussianization": Typical("zuko", _zuko("GF")),
    "Pyro spline coupling": Typical("pyro", dropin_layers.pyro_coupling),
    "Pyro autoregressive spline": Typical("pyro", dropin_layers.pyro_autoregressive),
    "FrEIA GLOW": Typical("FrEIA", dropin_layers.freia("GLOWCouplingBlock")),
    "FrEIA RNVP": Typical("FrEIA", dropin_layers.freia("RNVPCouplingBlock")),
    "FrEIA NICE": Typical("FrEIA", dropin_layers.freia("NICECouplingBlock")),
    "FrEIA all-in-one": Typical("FrEIA", dropin_layers.freia("AllInOneBlock")),
    "Pyro linear spline coupling": Typical("pyro", functools.partial(dropin_layers.pyro_coupling, order="linear")),
    "Pyro linear autoregressive spline": Typical(
        "pyro", functools.partial(dropin_layers.pyro_autoregressive, order="linear")
    ),
    "VITS spline coupling": Typical("nflows", dropin_layers.vits),
}

# library → (log_prob, sample, latent → data) of a module
_CALLS: dict[str, Callable[[Any], tuple[Any, Any, Any]]] = {
    "nflows": lambda m: (m.log_prob, m.sample, m._transform.inverse),
    "glasflow": lambda m: (m.log_prob, m.sample, m.inverse),
    "normflows": lambda m: (m.log_prob, lambda n: m.sample(n)[0], m.forward_and_log_det),
    "zuko": lambda m: (
        lambda x: m().log_prob(x), lambda n: m().sample((n,)), lambda z: m().transform.inv.call_and_ladj(z)
    ),
}  # fmt: skip


def calls_of(library: str, name: str, module: nn.Module) -> Model:
    """A library's model by the calls that every row has."""
    if isinstance(module, (dropin_layers.Chain, _Conditional)):
        return Model(name, module, module.log_prob, module.sample, module.inverse)
    return Model(name, module, *_CALLS[library](module))


def wrap(name: str, row: str, module: nn.Module) -> Model:
    return calls_of(MODELS[name].library, f"{name}, {row}", module)


def build(name: str, row: str, features: int, hidden: int = 128, layers: int = 4) -> Model:
    """The model of a row; the same weights in every row of it, and not those of an identity."""
    torch.manual_seed(0)
    module = MODELS[name].make(features, hidden, layers).train(MODELS[name].training)
    with torch.no_grad():
        for p in learned(module):
            p.add_(0.02 * torch.randn_like(p))
        for b in (m.running_var for m in module.modules() if hasattr(m, "running_var")):
            b.fill_(1)
    if row == AFTER:
        report = accelerate(module)
        assert report.accelerated, report
    return wrap(name, row, module)
