"""One step of Glow, actnorm, 1 × 1 convolution, affine coupling: in nflows, normflows and ours, on one conditioner.

nflows' weights are ours too, so that its step in float64 is the truth of both. normflows lays its parameters out in
another way and is held against itself in float64.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench import calls
from bench.closeness import Distance, assert_close
from bench.suite import FORWARD, SAMPLE, STEP, Ready, Row, Suite, Tensors, named, points
from flowkernels import use_backend
from flowkernels.nets import ConvNet
from flowkernels.transforms import ActNorm, Affine, Composite, ImageCoupling, LUConv1x1

HIDDEN = 128
OPS = (FORWARD, SAMPLE, STEP)
SHAPES = ((64, 3, 32, 32), (64, 12, 16, 16))
FLOOR = "conditioner alone"
Values = tuple[Tensor, Tensor]


# ---- the rows ----


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
    net = functools.partial(ConvNet, hidden=(HIDDEN, HIDDEN))
    coupling = ImageCoupling([0] * kept + [1] * (channels - kept), net, Affine("sigmoid", 1e-3))
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
    conditioner, of = ours[2].conditioner, theirs._transforms[2].transform_net.layers
    for layer, weights in zip((*conditioner.hidden_layers, conditioner.final_layer), of[::2], strict=True):
        layer.load_state_dict(weights.state_dict())
    for parameter in conditioner.final_layer.parameters():  # shift | scale logit → scale logit | shift
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


def _conditioner_alone(channels: int) -> nn.Module:
    """What no forward pass can go below: the convolutions, which are torch's in every row."""
    torch.manual_seed(0)
    kept = _n_identity(channels)
    return Conditioner(kept, 2 * (channels - kept))


ROWS = named(
    Row("nflows eager", _nflows, "nflows", "nflows eager"),
    Row("nflows compiled", _nflows, "nflows", "nflows eager"),
    Row("normflows eager", _normflows, "normflows", "normflows eager"),
    Row("normflows compiled", _normflows, "normflows", "normflows eager"),
    Row("flowkernels", _ours, "nflows", "nflows eager"),
    Row(FLOOR, _conditioner_alone),
)


def build(name: str, channels: int, x: Tensor, *, double: bool = False) -> Step:
    """The step of a row, its actnorm set by x. ``double``: the same weights in float64, on plain PyTorch."""
    make = ROWS[name].of
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
        return step._replace(latent=calls.fresh_compile(step.latent), data=calls.fresh_compile(step.data))
    return step


# ---- a row on its inputs ----


def loss(step: Step, x: Tensor) -> Tensor:
    z, ladj = step.latent(x)
    return (0.5 * z.square().flatten(1).sum(1) - ladj).mean() / x[0].numel()


def gradients(step: Step, x: Tensor) -> Tensor:
    """Of the loss, with respect to the hidden layers of the conditioner, and to x."""
    leaf = x.detach().requires_grad_()
    conditioner = next(m for m in step.module.modules() if isinstance(m, (Conditioner, ConvNet)))
    hidden = [m for m in conditioner.modules() if isinstance(m, nn.Conv2d)][:-1]
    grads = torch.autograd.grad(loss(step, leaf), (leaf, *[p for m in hidden for p in m.parameters()]))
    return torch.cat([g.flatten() for g in grads])


def values(step: Step, op: str, x: Tensor) -> Tensors:
    if op == STEP:
        return (gradients(step, x),)
    with torch.no_grad():
        return step.latent(x) if op == FORWARD else step.data(x)


def float64_truth(name: str, x: Tensor, op: str) -> Tensors:
    with use_backend("reference"):
        return values(build(name, x.shape[1], x, double=True), op, x.double())


def worst_error(name: str, op: str, found: Tensors, truth: Tensors) -> float:
    """Asserts that every quantity is close to the truth; → the largest relative error.

    Of a gradient the 2-norm counts, as one small channel may decide its largest error.
    """
    bound = Distance(norm=1e-4) if op == STEP else Distance(largest=1e-4)
    pairs = zip(found, truth, strict=True)
    errors = [assert_close(name, "result", *pair, bound) for pair in pairs]
    return max(error.norm if op == STEP else error.largest for error in errors)


def bind(step: Step, op: str, x: Tensor) -> Callable[[], Tensor]:
    """The call to time."""
    if op == STEP:
        return calls.training_step(step.module, lambda: loss(step, x), lr=1e-5)
    return lambda: values(step, op, x)[0]


def ready(row: Row, x: Tensor, op: str) -> Ready:
    if row.name == FLOOR:
        net, half = row.of(x.shape[1]), x[:, : _n_identity(x.shape[1])].contiguous()
        return Ready(calls.without_graph(lambda: net(half)))
    step = build(row.name, x.shape[1], x)
    call = bind(step, op, x)
    checked = Ready(call, lambda truth: worst_error(row.name, op, values(step, op, x), truth))
    if op != STEP:
        return checked
    return checked._replace(
        forward=lambda: loss(step, x), backward=call, weights=tuple(step.module.parameters())
    )  # fmt: skip


SUITE = Suite(
    title="Glow step",
    points=[*points(SHAPES, OPS, [name for name in ROWS if name != FLOOR]), *points(SHAPES, (FORWARD,), (FLOOR,))],
    label=lambda *shape: "x".join(map(str, shape)),
    smaller=lambda batch, *rest: (max(2, batch // 32), *rest),
    inputs=lambda *shape: torch.randn(shape, generator=torch.Generator().manual_seed(0)),
    rows=ROWS,
    ready=ready,
    truth=float64_truth,
)
