"""One step of Glow, actnorm, 1 × 1 convolution, affine coupling: in nflows, normflows and ours, on one conditioner.

nflows' weights are ours too, so that its step in float64 is the truth of both. normflows lays its parameters out in
another way and is held against itself in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.suites import peers
from flowkernels import use_backend
from flowkernels.transforms import ActNorm, Affine, Composite, ImageCoupling, LUConv1x1

HIDDEN = 128
OPS = ("forward", "sample", "training step")
NAMES = ("nflows eager", "nflows compiled", "normflows eager", "normflows compiled", "flowkernels")
FLOOR = "conditioner alone"
Values = tuple[Tensor, Tensor]


class Step(NamedTuple):
    """`latent(x)` is data → latent with its ladj, `data(z)` the way back."""

    module: nn.Module
    latent: Callable[[Tensor], Values]
    data: Callable[[Tensor], Values]


class Conditioner(nn.Module):
    """Glow's three convolutions. The last is not zero, as after some training."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels_in, HIDDEN, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(HIDDEN, HIDDEN, 1),
            nn.ReLU(),
            nn.Conv2d(HIDDEN, channels_out, 3, padding=1),
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.layers(x)


def _n_identity(channels: int) -> int:
    return (channels + 1) // 2


def _nflows(channels: int) -> Step:
    from nflows import transforms

    torch.manual_seed(0)
    kept = _n_identity(channels)
    mixing: Any = transforms.OneByOneConvolution(channels, identity_init=False)
    mixing.permutation._permutation = torch.arange(channels)  # it permutes before L U, we after
    layers = [
        transforms.ActNorm(channels),
        mixing,
        transforms.AffineCouplingTransform([0] * kept + [1] * (channels - kept), Conditioner),
    ]
    module: Any = transforms.CompositeTransform(layers)
    return Step(module, module.forward, module.inverse)


def _ours(channels: int) -> Step:
    kept = _n_identity(channels)
    coupling = ImageCoupling([0] * kept + [1] * (channels - kept), Conditioner, Affine("sigmoid", 1e-3))
    module = Composite([ActNorm(channels, channel_dim=1), LUConv1x1(channels, bias=True), coupling])
    return Step(module, module.forward, module.inverse)


@torch.no_grad()
def _with_weights_of_nflows(step: Step, channels: int, x: Tensor) -> Step:
    theirs: Any = build("nflows eager", channels, x).module
    ours: Any = step.module
    for norm_or_bias, names in ((0, ("log_scale", "shift")), (1, ("bias",))):
        for name in names:
            getattr(ours[norm_or_bias], name).copy_(getattr(theirs._transforms[norm_or_bias], name))
    ours[0].initialised.fill_(True)
    mixing, other = ours[1], theirs._transforms[1]
    lower, upper = other._create_lower_upper()
    diagonal = (other.upper_diag.log(), torch.ones(channels), torch.arange(channels))
    names = ("lower", "upper", "log_s", "sign_s", "permutation")
    for name, value in zip(names, (lower, upper, *diagonal), strict=True):
        getattr(mixing, name).copy_(value)
    conditioner = ours[2].conditioner
    conditioner.load_state_dict(theirs._transforms[2].transform_net.state_dict())
    last = conditioner.layers[-1]
    for parameter in (last.weight, last.bias):  # shift | scale logit → scale logit | shift
        parameter.copy_(parameter.roll(parameter.shape[0] // 2, 0))
    return step


def _normflows(channels: int) -> Step:
    from normflows import flows

    torch.manual_seed(0)
    kept = _n_identity(channels)
    conditioner = Conditioner(kept, 2 * (channels - kept))
    layers: Any = nn.ModuleList(
        [
            flows.ActNorm((channels, 1, 1)),
            flows.Invertible1x1Conv(channels, use_lu=True),
            flows.AffineCouplingBlock(conditioner, scale_map="sigmoid"),
        ]
    )

    def run(parts: Any, way: str, x: Tensor) -> Values:
        total = x.new_zeros(x.shape[0])
        for part in parts:
            x, ladj = getattr(part, way)(x)
            total = total + ladj
        return x, total

    return Step(layers, lambda x: run(layers, "inverse", x), lambda z: run(layers[::-1], "forward", z))


def build(name: str, channels: int, x: Tensor, *, double: bool = False) -> Step:
    """The step of a row, its actnorm set by x. ``double``: the same weights in float64, on plain PyTorch."""
    make = {"nflows": _nflows, "normflows": _normflows, "flowkernels": _ours}[name.split()[0]]
    step = make(channels)
    if name == "flowkernels":
        step = _with_weights_of_nflows(step, channels, x)
    with torch.no_grad():
        step.latent(x)
    if double:
        weights = copy.deepcopy(step.module.state_dict())
        step = make(channels)
        step.module.load_state_dict(weights)
        step.module.double()
    step.module.eval()  # actnorm is set; nothing else has modes
    if name.endswith("compiled"):
        return step._replace(latent=peers.fresh_compile(step.latent), data=peers.fresh_compile(step.data))
    return step


def loss(step: Step, x: Tensor) -> Tensor:
    z, ladj = step.latent(x)
    return (0.5 * z.square().flatten(1).sum(1) - ladj).mean() / x[0].numel()


def gradients(step: Step, x: Tensor) -> Tensor:
    """Of the loss, with respect to all parameters of the conditioner, and to x."""
    leaf = x.detach().requires_grad_()
    conditioner = next(m for m in step.module.modules() if isinstance(m, Conditioner))
    grads = torch.autograd.grad(loss(step, leaf), (leaf, *list(conditioner.parameters())[:-2]))
    return torch.cat([g.flatten() for g in grads])


def values(step: Step, op: str, x: Tensor) -> tuple[Tensor, ...]:
    if op == OPS[2]:
        return (gradients(step, x),)
    with torch.no_grad():
        return step.latent(x) if op == OPS[0] else step.data(x)


def float64_truth(name: str, op: str, x: Tensor) -> tuple[Tensor, ...]:
    truth = "normflows eager" if name.startswith("normflows") else "nflows eager"
    with use_backend("reference"):
        return values(build(truth, x.shape[1], x, double=True), op, x.double())


BOUND = 1e-4  # of the largest value; of a gradient's 2-norm, as one small channel may decide its largest error


def worst_error(name: str, op: str, found: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
    """Asserts that every quantity is finite and within `BOUND` of the truth; → the largest relative error.

    Raises:
        AssertionError: the row is wrong, so its time means nothing.
    """
    worst = 0.0
    for value, target in zip(found, truth, strict=True):
        order = 2 if op == OPS[2] else float("inf")
        error = ((value.double() - target).flatten().norm(order) / target.flatten().norm(order)).item()
        if not error <= BOUND:  # a NaN is not
            raise AssertionError(f"{name}: must be within {BOUND:.0e} of the float64 truth, got {error:.1e}")
        worst = max(worst, error)
    return worst


def bind(step: Step, op: str, x: Tensor) -> Callable[[], Tensor]:
    """The call to time. A training step is zero_grad, loss, backward and a step of Adam."""
    if op != OPS[2]:
        return lambda: values(step, op, x)[0]
    optimizer = torch.optim.Adam(step.module.parameters(), lr=1e-5)

    def training_step() -> Tensor:
        optimizer.zero_grad()
        value = loss(step, x)
        value.backward()
        optimizer.step()
        return value.detach()

    return training_step


def conditioner_alone(channels: int, x: Tensor) -> Callable[[], Tensor]:
    """What no forward pass can go below: the convolutions, which are torch's in every row."""
    torch.manual_seed(0)
    kept = _n_identity(channels)
    net = Conditioner(kept, 2 * (channels - kept))
    half = x[:, :kept].contiguous()

    def run() -> Tensor:
        with torch.no_grad():
            return net(half)

    return run
