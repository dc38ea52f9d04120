"""Files of small flows as they were written once, and the log-probabilities that they had: they stay loadable.

`python -m tests.flows.golden` writes those that are missing. A file that is there is never written anew: whoever has
one like it on a disk cannot do so either.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels import nets
from flowkernels.distributions import DiagonalLogistic, DiagonalNormal, StandardNormal, UniformBox
from flowkernels.flows import (
    BNAF,
    CNF,
    FFJORD,
    IAF,
    MADE,
    MAF,
    NAF,
    NICE,
    NSF,
    SOS,
    UMNN,
    CouplingFlow,
    Flow,
    FloWaveNet,
    FlowPP,
    Gaussianization,
    Glow,
    MaCow,
    MintNet,
    MixtureMADE,
    PixelCNN,
    Planar,
    Radial,
    RealNVP,
    RecurrentFlow,
    ResidualFlow,
    Sylvester,
    WaveGlow,
    WaveNet,
)
from flowkernels.transforms import (
    RQS,
    Affine,
    Composite,
    Coupling,
    Dequantize,
    ImageCoupling,
    Inverse,
    Logit,
    Mixture,
    MultiScale,
    Permutation,
    Polynomial,
    SinhArcsinh,
    Softclip,
    Squeeze,
    Standardize,
    Unsqueeze,
    VariationalDequantize,
    checkerboard,
)

FOLDER = Path(__file__).parent
LOG_PROBS = FOLDER / "log_probs.json"
ROWS = 5


def _by_hand() -> Flow:
    """Layers that no ready model has, one of them used twice."""
    shared = Coupling([0, 0, 1], nets.MLP(2, 2, hidden=(), activation=nn.Tanh), Affine("clip", log_bounds=(-1, 2)))
    circle = RQS(bins=3, tails="circular", tail_bound=math.pi, circle_shift=True)
    circular = Coupling([1, 0, 0], nets.MLP(2, circle.n_params, hidden=3), circle)
    layers = [circular, Permutation([2, 0, 1]), shared, Inverse(shared)]
    base = UniformBox([-50.0] * 3, [50.0, 60.0, 70.0])
    return Flow(Composite([Logit(0.1, 0.8), Inverse(Composite(layers))]), base)


def _levels() -> Flow:
    """Whole numbers as images, with noise that a network has learned."""
    net = functools.partial(nets.ConvNet, hidden=(2,), context=1, context_dims=3, activation="silu")
    noise = ImageCoupling(checkerboard(1, 2, 2), net, Affine("tanh"))
    first = VariationalDequantize(noise, levels=4, event_dims=3)
    layers = [first, MultiScale([Composite([Squeeze(), Unsqueeze(), Squeeze()])], (1, 2, 2))]
    return Flow(Composite(layers), StandardNormal(4))


def _standardized() -> Flow:
    flow = MAF(3, **SMALL)
    return Flow(
        Composite([Standardize(torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.5, 2.0, 3.0])), *flow.transform]),
        flow.base,
    )


def _softclip() -> Flow:
    first, second = SOS(3, degree=1, terms=2, **SMALL).transform
    return Flow(Composite([first, Softclip(4.0), second]), StandardNormal(3))


def _embedding() -> nn.Module:
    """Every plain layer of torch that a file can name."""
    activations = [nn.ELU(0.5), nn.GELU(), nn.LeakyReLU(0.1), nn.Mish(), nn.ReLU(), nn.SELU(), nn.SiLU(), nn.Sigmoid()]
    others = [nn.Softplus(2), nn.Tanh(), nn.LayerNorm(4), nn.Dropout(0.1), nn.Flatten(-1), nn.Identity()]
    return nn.Sequential(nn.Linear(2, 4), *activations, *others, nn.PReLU(4))


SMALL: dict[str, Any] = {"transforms": 2, "hidden": (4, 4)}
CASES: dict[str, Callable[[], Flow]] = {
    "nsf": lambda: NSF(3, bins=3, linear=None, **SMALL),
    "nsf-lu-context": lambda: NSF(
        3, 2, bins=3, linear="lu", base=DiagonalNormal(3, [0.0, 1.0, 2.0], context=2), **SMALL
    ),
    "nsf-autoregressive": lambda: NSF(3, 2, bins=3, autoregressive=True, linear="reverse", order="random", **SMALL),
    "nsf-batch-norm": lambda: NSF(3, bins=3, batch_norm=True, dropout=0.5, linear=None, **SMALL).eval(),
    "nsf-one-feature": lambda: NSF(1, bins=3, **SMALL),
    "maf": lambda: MAF(3, 2, univariate=SinhArcsinh(1.5), activation="tanh", dropout=0.1, **SMALL).eval(),
    "maf-polynomial": lambda: MAF(3, univariate=Polynomial("bernstein", 4, edge=1e-6), **SMALL),
    "maf-groups": lambda: MAF(4, groups=[[0, 3], [1], [2]], **SMALL),
    "sos": lambda: SOS(3, 2, degree=2, terms=2, **SMALL),
    "maf-mixture": lambda: MAF(3, residual=True, base=MixtureMADE(nets.MADE(3, 6, (4,))), **SMALL),
    "iaf": lambda: IAF(3, 2, linear="permutation", univariate=Affine("exp"), **SMALL),
    "made": lambda: MADE(3, hidden=(5, 4), order=[2, 0, 1], degrees="random"),
    "made-mixture": lambda: MADE(3, components=2, context=2, hidden=(4, 4), residual=True),
    "umnn": lambda: UMNN(3, 2, signal=2, network=(4, 3), nodes=8, **SMALL),
    "naf": lambda: NAF(3, order="random", signal=2, network=4, **SMALL),
    "recurrent": lambda: RecurrentFlow(3, 2, hidden=4, transforms=2, order="random", univariate=RQS(bins=3)),
    "bnaf": lambda: BNAF(3, 2, (2, 3), activation="elu"),
    "cnf": lambda: CNF(3, 2, transforms=2, hidden=(4, 4), solver="rk4", steps=4, activation="softplus"),
    "cnf-dopri5": lambda: CNF(3, hidden=5, time="sinusoidal", frequencies=2, rtol=1e-8, atol=1e-9, t1=0.5),
    "ffjord": lambda: FFJORD(3, 2, transforms=2, hidden=(4, 4), trace="hutchinson", solver="rk4", steps=4).eval(),
    "planar": lambda: Planar(3, 2, 2, activation="leaky_relu"),
    "radial": lambda: Radial(3, transforms=2, alpha="abs", fast_sampling=False),
    "sylvester": lambda: Sylvester(4, transforms=2, width=3, reflections=2),
    "residual": lambda: ResidualFlow(3, transforms=2, hidden=(4, 5)).eval(),
    "nice": lambda: NICE(3, activation=torch.sigmoid, **SMALL),
    "coupling": lambda: CouplingFlow(4, univariate=RQS(bins=3, order="linear"), activation=nn.PReLU, **SMALL),
    "embedding": lambda: CouplingFlow(
        3, 4, embedding=_embedding(), base=DiagonalLogistic(3, learnable=False), **SMALL
    ).eval(),
    "embedding-net": lambda: CouplingFlow(3, 3, embedding=nets.ResidualNet(2, 3, 4, 1), net="residual", **SMALL),
    "realnvp": lambda: RealNVP(4, batch_norm=True, **SMALL).eval(),
    "realnvp-lu": lambda: RealNVP(3, linear="lu", **SMALL),
    "realnvp-images": lambda: RealNVP((1, 4, 4), transforms=1, hidden=(2,), levels=1, batch_norm=True).eval(),
    "glow": lambda: Glow((1, 4, 4), levels=2, steps=1, hidden=(2, 2), preprocessing=[Dequantize(4, 3)]).eval(),
    "glow-classes": lambda: Glow((1, 4, 4), levels=1, steps=1, hidden=2, classes=2, permutation="shuffle").eval(),
    "gaussianization": lambda: Gaussianization(3, transforms=2, components=2),
    "maf-shrunk-mixture": lambda: MAF(
        3, univariate=Mixture(2, "normal", "probit", parametrization="shifts", shrink=1e-6), **SMALL
    ),
    "gaussianization-context": lambda: Gaussianization(3, 2, components=2, kernel="logistic", rotate=False, **SMALL),
    "flowpp": lambda: FlowPP(3, 2, transforms=2, hidden=4, blocks=1, components=2),
    "flowpp-levels": lambda: FlowPP(
        (1, 2, 2),
        transforms=(1, 1, 0),
        hidden=2,
        blocks=1,
        components=1,
        attention=2,
        dropout=0.1,
        levels=4,
        noise_transforms=1,
        noise_blocks=1,
    ).eval(),
    "waveglow": lambda: WaveGlow(
        (1, 8), 2, steps=2, hidden=2, layers=1, hop=4, squeeze=4, leave_every=1, leave=1, skip=3, seed=0
    ),
    "flowavenet": lambda: FloWaveNet(
        (1, 8), blocks=2, steps=2, hidden=2, layers=1, leave_every=1, preprocessing=[Dequantize(4, 2)]
    ).eval(),
    "wavenet": lambda: WaveNet((1, 4), 2, hidden=2, layers=3, components=2, cycle=2),
    "pixel-cnn": lambda: PixelCNN((2, 2, 2), 2, 4, 1, 2, block="gated", first_kernel_size=3),
    "pixel-cnn-levels": lambda: PixelCNN((1, 2, 2), 0, 4, 1, 2, levels=4, first_kernel_size=3, activation="elu"),
    "macow": lambda: MaCow((1, 2, 4), 2, 1, 1, 1, kernel_size=(1, 3), row_hidden=2, hidden=2).eval(),
    "mintnet": lambda: MintNet((1, 2, 2), 1, 2, levels=1, steps=50),
    "standardized": _standardized,
    "softclip": _softclip,
    "by-hand": _by_hand,
    "levels": _levels,
}
CONTEXTS = {
    "nsf-lu-context", "nsf-autoregressive", "maf", "iaf", "umnn", "made-mixture", "sos", "embedding", "embedding-net",
    "glow-classes", "gaussianization-context", "flowpp", "planar", "cnf", "ffjord", "waveglow", "wavenet", "pixel-cnn",
    "macow", "recurrent",
}  # fmt: skip
LEVELS = {"glow", "levels", "flowpp-levels", "flowavenet", "pixel-cnn-levels"}  # which take whole numbers
FRAMES = {"waveglow"}  # whose context is a sequence


def build(name: str) -> Flow:
    """The flow of a case, far from the identity, in float64."""
    torch.manual_seed(0)
    flow = CASES[name]().double()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.3 * torch.randn_like(p))
        for key, buffer in flow.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                buffer.add_(0.2 * torch.rand_like(buffer))
    return flow


def inputs(name: str, flow: Flow) -> tuple[Tensor, Tensor | None]:
    """Some rows, not by random numbers, which another version of torch may draw otherwise."""
    shape = (ROWS, *flow.event_shape)
    x = torch.tensor([0.5 + 0.45 * math.sin(1.7 * i) for i in range(math.prod(shape))], dtype=torch.float64).view(shape)
    if name in LEVELS:
        x = (4 * x).floor()
    context = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * ROWS, dtype=torch.float64)[:ROWS]
    if name in FRAMES:
        context = torch.stack([context, 0.5 * context.flip(-1)], -1)
    return x, context if name in CONTEXTS else None


def log_prob(name: str, flow: Flow) -> Tensor:
    """Of the rows of a case, ``[ROWS]``; noise is drawn anew from the same seed."""
    torch.manual_seed(1)
    with torch.no_grad():
        return flow.log_prob(*inputs(name, flow))


def write() -> list[str]:
    """Writes the files that are missing, and says which."""
    found = json.loads(LOG_PROBS.read_text()) if LOG_PROBS.exists() else {}
    missing = [name for name in CASES if not (FOLDER / f"{name}.safetensors").exists()]
    for name in missing:
        flow = build(name)
        flow.save(FOLDER / f"{name}.safetensors")
        found[name] = log_prob(name, flow).tolist()
    LOG_PROBS.write_text(json.dumps(found, indent=1) + "\n")
    return missing
