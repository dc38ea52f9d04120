"""What users give that flows, transforms, nets and distributions cannot take: one message of three parts each."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowkernels import distributions, flows, nets, transforms
from flowkernels.flows import IAF, MADE, MAF, NICE, NSF, CouplingFlow, Flow, Glow, RealNVP
from flowkernels.transforms import RQS, Affine, Composite, Coupling, Permutation

MESSAGE = re.compile(r"(flows|transforms|nets|distributions|ops)\.\w+: .* must .*, got .+", re.DOTALL)
X = torch.linspace(-1, 1, 20).view(5, 4)
C = torch.linspace(0, 1, 15).view(5, 3)


def raises(call: Callable[[], object], *parts: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    message = str(caught.value)
    assert MESSAGE.fullmatch(message), message
    for part in parts:
        assert part in message


# ---- constructors ----

FLOWS: dict[str, Callable[..., Flow]] = {
    "NSF": NSF,
    "NSF-mlp": functools.partial(NSF, net="mlp"),
    "NSF-autoregressive": functools.partial(NSF, autoregressive=True),
    "NSF-lu": functools.partial(NSF, linear="lu", seed=0),
    "CouplingFlow": CouplingFlow,
    "MAF": MAF,
    "IAF": IAF,
    "MADE": MADE,
    "RealNVP": RealNVP,
    "NICE": NICE,
}
EVERY_FLOW = pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)
NO_COUNT = ("6", -1, 2.5, True, [3], torch.tensor(3), float("nan"))


@EVERY_FLOW
@pytest.mark.parametrize("value", [*NO_COUNT, None, 0], ids=repr)
def test_counts_of_flows(make, value) -> None:
    raises(lambda: make(value), "must be")
    if make is not MADE and not (value is None and make is RealNVP):  # its default
        raises(lambda: make(2, transforms=value), "transforms must be", f"got {value!r}")
    if value != 0:
        raises(lambda: make(2, context=value), "context must be", f"got {value!r}")


@EVERY_FLOW
@pytest.mark.parametrize("value", ["64", -1, 0, 2.5, True, (4, 0), (4, 2.5), ("4",), torch.tensor([4])], ids=repr)
def test_hidden(make, value) -> None:
    raises(lambda: make(2, hidden=value), "hidden must be", f"got {value!r}")


@EVERY_FLOW
def test_a_number_is_one_hidden_layer(make) -> None:
    shapes = [{n: p.shape for n, p in make(2, hidden=h).named_parameters()} for h in (8, (8,), np.array([8]))]
    assert shapes[0] == shapes[1] == shapes[2]


@EVERY_FLOW
@pytest.mark.parametrize("value", ["rel", 3, torch.Tensor, [torch.relu]], ids=["name", "number", "class", "list"])
def test_activations(make, value) -> None:
    raises(lambda: make(2, hidden=(8,), activation=value), "activation must be")


@EVERY_FLOW
def test_activations_by_name(make) -> None:
    """In all flows alike: a coupling's network takes the names that masked ones know."""
    found = []
    for activation in ("tanh", torch.tanh, nn.Tanh):
        torch.manual_seed(0)
        found.append(make(4, hidden=(8,), activation=activation).log_prob(X))
    assert torch.equal(found[0], found[1]) and torch.equal(found[1], found[2])


@pytest.mark.parametrize("value", [-0.1, 1.5, "0.1", None, True, float("nan")], ids=repr)
@pytest.mark.parametrize(
    "make", [f for n, f in FLOWS.items() if n != "RealNVP"], ids=[n for n in FLOWS if n != "RealNVP"]
)
def test_dropout(make, value) -> None:
    raises(lambda: make(2, hidden=(8,), dropout=value), "dropout must be a number from 0 to 1", f"got {value!r}")


SWITCHES: dict[str, Callable[[Any], object]] = {
    "NSF-autoregressive": lambda v: NSF(2, autoregressive=v),
    "NSF-batch-norm": lambda v: NSF(2, batch_norm=v),
    "CouplingFlow-batch-norm": lambda v: CouplingFlow(2, batch_norm=v),
    "RealNVP-batch-norm": lambda v: RealNVP(2, batch_norm=v),
    "MAF-residual": lambda v: MAF(2, residual=v),
    "Flow": lambda v: Flow(Permutation([0]), distributions.StandardNormal(1), context_to_base=v),
    "learnable": lambda v: distributions.DiagonalNormal(2, learnable=v),
    "LU-bias": lambda v: transforms.LULinear(2, bias=v),
    "circle-shift": lambda v: RQS(circle_shift=v),
    "zero-outside": lambda v: RQS(zero_outside=v),
    "MADE": lambda v: nets.MADE(2, 2, context=1, context_activation=v),
    "ResidualNet": lambda v: nets.ResidualNet(2, 2, batch_norm=v),
    "ConvResNet": lambda v: nets.ConvResNet(2, 2, batch_norm=v),
    "WaveNet-causal": lambda v: nets.WaveNet(2, 2, causal=v),
    "WaveNet-head": lambda v: nets.WaveNet(2, 2, head=v),
}


@pytest.mark.parametrize("make", SWITCHES.values(), ids=SWITCHES)
@pytest.mark.parametrize("value", ["no", 2, None, 0.0, torch.tensor(True)], ids=repr)
def test_switches_are_not_taken_by_truth_value(make, value) -> None:
    raises(lambda: make(value), "must be True or False", f"got {value!r}")


COUNTS: dict[str, Callable[[Any], object]] = {
    "Glow-shape": lambda v: Glow((1, v, 4), levels=1, steps=1),
    "Glow-steps": lambda v: Glow((1, 4, 4), levels=1, steps=v),
    "Glow-classes": lambda v: Glow((1, 4, 4), levels=1, steps=1, classes=v),
    "RealNVP-levels": lambda v: RealNVP((1, 8, 8), levels=v),
    "components": lambda v: MADE(2, components=v),
    "ActNorm": lambda v: transforms.ActNorm(v),
    "LULinear": lambda v: transforms.LULinear(v),
    "BatchNorm": lambda v: transforms.BatchNorm(v),
    "Dequantize": lambda v: transforms.Dequantize(v),
    "checkerboard": lambda v: transforms.checkerboard(2, v, 2),
    "reverse": lambda v: Permutation.reverse(v),
    "random": lambda v: Permutation.random(v),
    "channel_dim": lambda v: transforms.ActNorm(2, channel_dim=v),
    "event_dims": lambda v: transforms.Logit(event_dims=v),
    "StandardNormal": lambda v: distributions.StandardNormal(v),
    "DiagonalLogistic": lambda v: distributions.DiagonalLogistic(v),
    "context": lambda v: distributions.DiagonalNormal(2, context=v),
    "MLP": lambda v: nets.MLP(2, v),
    "MLP-in": lambda v: nets.MLP(v, 2),
    "Constant": lambda v: nets.Constant(0, v),
    "ResidualNet": lambda v: nets.ResidualNet(2, 2, hidden=v),
    "blocks": lambda v: nets.ResidualNet(2, 2, blocks=v),
    "ConvNet": lambda v: nets.ConvNet(v, 2),
    "context_dims": lambda v: nets.ConvNet(2, 2, context_dims=v),
    "WaveNet": lambda v: nets.WaveNet(2, 2, hidden=v),
    "WaveNet-context": lambda v: nets.WaveNet(2, 2, context_dims=v),
    "Upsampler": lambda v: nets.Upsampler(v, 2),
    "Squeeze": lambda v: transforms.Squeeze(v),
    "SignalAutoregressive": lambda v: transforms.SignalAutoregressive(v, nets.WaveNet, Affine()),
    "WaveGlow-shape": lambda v: flows.WaveGlow((v, 8)),
    "WaveGlow-steps": lambda v: flows.WaveGlow((1, 8), steps=v),
    "FloWaveNet": lambda v: flows.FloWaveNet((1, 8), blocks=v),
    "flows.WaveNet": lambda v: flows.WaveNet((1, 8), layers=v),
    "interpolate": lambda v: NSF(2, hidden=8, transforms=1).interpolate(X[0, :2], X[1, :2], v),
    "bits_per_dim": lambda v: flows.bits_per_dim(X, v),
}


@pytest.mark.parametrize("make", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("value", [v for v in NO_COUNT if v != [3]], ids=repr)
def test_counts(make, value) -> None:
    if value == -1 and make is COUNTS["channel_dim"]:
        make(value)
    else:
        raises(lambda: make(value), f"{value!r}")


OTHERS: dict[str, Callable[[], object]] = {
    "seed": lambda: MAF(2, order="random", seed="a"),  # type: ignore[arg-type]
    "seed-float": lambda: transforms.LULinear(2, seed=2.5),  # type: ignore[arg-type]
    "seed-bool": lambda: Permutation.random(2, seed=True),
    "base": lambda: MAF(2, base=torch.distributions.Normal(0.0, 1.0)),  # type: ignore[arg-type]
    "embedding": lambda: MAF(2, embedding=nn.Identity),  # type: ignore[arg-type]
    "univariate": lambda: MAF(2, univariate=3),  # type: ignore[arg-type]
    "univariate-class": lambda: Coupling([0, 1], nets.MLP, RQS),  # type: ignore[arg-type]
    "univariate-realnvp": lambda: RealNVP(2, univariate="affine"),  # type: ignore[arg-type]
    "net": lambda: NSF(2, net=3),  # type: ignore[arg-type]
    "conditioner": lambda: Coupling([0, 1], 3, RQS()),  # type: ignore[arg-type]
    "MixtureMADE": lambda: flows.MixtureMADE(nets.MLP(2, 6)),  # type: ignore[arg-type]
    "Composite": lambda: Composite(3),  # type: ignore[arg-type]
    "MultiScale": lambda: transforms.MultiScale(3, (1, 2, 2)),  # type: ignore[arg-type]
    "preprocessing": lambda: Glow((1, 4, 4), levels=1, steps=1, preprocessing=3),  # type: ignore[arg-type]
    "momentum": lambda: transforms.BatchNorm(2, momentum=2.0),
    "DiagonalScale": lambda: transforms.DiagonalScale("3"),  # type: ignore[arg-type]
    "Logit": lambda: transforms.Logit("0.1"),  # type: ignore[arg-type]
    "loc": lambda: distributions.DiagonalNormal(2, loc="0"),  # type: ignore[arg-type]
    "loc-complex": lambda: distributions.DiagonalNormal(2, loc=torch.zeros(2, dtype=torch.complex64)),
    "low": lambda: distributions.UniformBox(None, [1.0]),  # type: ignore[arg-type]
    "temperature": lambda: distributions.StandardNormal(2).sample(3, temperature=-1.0),
    "temperature-text": lambda: distributions.DiagonalNormal(2).sample(3, temperature="1"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_other_settings(make) -> None:
    raises(make)


@pytest.mark.parametrize(
    "mask",
    [3, None, "01", [0.5, 1], [float("nan"), 1], [2, 1], [], [[0, 1]], torch.ones(2, 2), ["a", 1], [0, 0]],
    ids=repr,
)
def test_masks(mask) -> None:
    raises(lambda: Coupling(mask, nets.MLP, RQS()), "Coupling: mask must")
    raises(lambda: transforms.ImageCoupling(mask, nets.ConvNet, Affine()), "ImageCoupling: mask must")


@pytest.mark.parametrize("mask", [[False, True], torch.tensor([0.0, 1.0]), np.array([0, 1])], ids=repr)
def test_masks_of_any_numbers(mask) -> None:
    layers = [Coupling(m, lambda i, o: nets.Constant(i, o), RQS()) for m in (mask, [0, 1])]
    assert torch.equal(layers[0].split.mask, layers[1].split.mask)


@pytest.mark.parametrize(
    "order",
    [3, None, "01", [0, 0], [0, 2], [1, 2], [0.0, 1.0], [True, False], torch.tensor([1.0, 0.0]), [], [[0, 1]]],
    ids=repr,
)
def test_orders(order) -> None:
    raises(lambda: Permutation(order), "Permutation: order must hold each of 0 to D-1 once")
    if order != [[0, 1]]:  # a group
        raises(lambda: nets.MADE(2, 2, order=order), "MADE: order must")


# ---- tensors ----

BAD: dict[str, Callable[[Tensor], Any]] = {
    "list": Tensor.tolist,
    "numpy": Tensor.numpy,
    "float": lambda t: 1.0,
    "none": lambda t: None,
    "scalar": lambda t: t[0, 0],
    "width": lambda t: t[:, :-1],
    "sparse": Tensor.to_sparse,
    "complex": lambda t: t.to(torch.complex64),
}
BAD_FOR_NETS = BAD | {
    "float64": Tensor.double,
    "float16": Tensor.half,
    "integer": Tensor.long,
    "meta": lambda t: t.to("meta"),
}
SMALL: dict[str, Flow] = {n: f(4, hidden=(8,)) for n, f in FLOWS.items()} | {
    "MADE-mixture": MADE(4, 3, hidden=(8,)),
    "NSF-context": NSF(4, 3, hidden=(8,), transforms=2),
    "NSF-mlp-context": NSF(4, 3, hidden=(8,), transforms=2, net="mlp"),
    "MAF-context": MAF(4, 3, hidden=(8,), transforms=2),
    "CNF": flows.CNF(4, hidden=8, solver="rk4", steps=2),
    "CNF-context": flows.CNF(4, 3, hidden=8, solver="rk4", steps=2),
    "Planar": flows.Planar(4),
    "Radial-context": flows.Radial(4, 3, 2),
    "Sylvester-context": flows.Sylvester(4, 3, 2),
    "ResidualFlow": flows.ResidualFlow(4, 2, (8,), actnorm=False),
    "base-context": Flow(Composite([]), distributions.DiagonalNormal(4, context=3)),
    "no-networks": Flow(Composite([]), distributions.StandardNormal(4)),
}
EVERY_SMALL = pytest.mark.parametrize("name", SMALL)


@EVERY_SMALL
@pytest.mark.parametrize("bad", BAD_FOR_NETS)
def test_x(name, bad) -> None:
    flow, value = SMALL[name], BAD_FOR_NETS[bad](X)
    context = (C,) if "context" in name else ()
    if name.startswith("NSF") and bad == "float16":  # the LU layer, which comes first, gives the wider of both dtypes
        # Up to rounding: that layer is then not part of one call with those behind it.
        torch.testing.assert_close(flow.log_prob(value, *context), flow.log_prob(value.float(), *context))
        return
    if bad in BAD or name not in ("base-context", "no-networks"):  # which take any real dtype
        raises(lambda: flow.log_prob(value, *context))
    if bad in BAD and bad != "complex":
        raises(lambda: flow.encode(value, *context))
        raises(lambda: flow.decode(value, *context))
        raises(lambda: flow.interpolate(value, X, 3, *context))
    raises(lambda: flow.interpolate(X, value, 3, *context))


@pytest.mark.parametrize("name", [name for name in SMALL if "context" in name])
@pytest.mark.parametrize("bad", [bad for bad in BAD_FOR_NETS if bad != "none"])
def test_context(name, bad) -> None:
    flow, value = SMALL[name], BAD_FOR_NETS[bad](C)
    for call in (flow.sample, flow.rsample, flow.sample_and_log_prob):
        raises(lambda call=call: call(3, value), "context must b")
    raises(lambda: flow.log_prob(X, value), "context must b")
    raises(lambda: flow.as_distribution(value).sample(), "context must b")


@pytest.mark.parametrize(
    "make",
    [MAF, flows.CNF, flows.Planar, flows.Radial, flows.RecurrentFlow, flows.Sylvester, flows.BNAF, flows.ResidualFlow],
)
def test_a_context_is_not_swallowed(make) -> None:
    flow = make(4)
    raises(lambda: flow.log_prob(X, C), "context must be None", "got [5, 3]")
    raises(lambda: flow.sample(2, C), "context must be None", "got [5, 3]")


LOW_RANK = [transforms.Planar(4, context=3), transforms.Radial(4, context=3), transforms.Sylvester(4, 2, context=3)]


@pytest.mark.parametrize("bad", BAD_FOR_NETS)
@pytest.mark.parametrize("layer", LOW_RANK, ids=lambda layer: type(layer).__name__)
def test_a_context_of_low_rank_layers(layer, bad) -> None:
    value = BAD_FOR_NETS[bad](C)
    for call in (layer.forward, layer.inverse):
        raises(lambda call=call: call(X, value), f"transforms.{type(layer).__name__}: context must b")


def test_a_dtype_says_both_and_what_to_do() -> None:
    expected = r"nets\.MADE: x must be of the dtype of the weights, torch\.float32, got torch\.float64 \(try x\.to\("
    with pytest.raises(TypeError, match=expected + r"torch\.float32\) or flow\.to\(torch\.float64\)\)"):
        SMALL["MAF"].log_prob(X.double())


@pytest.mark.parametrize("given", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["NSF", "NSF-mlp", "MAF", "RealNVP"])
def test_autocast_brings_16_bits_and_32_together(name, given) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert SMALL[name].log_prob(X.to(given)).isfinite().all()
        raises(lambda: SMALL[name].log_prob(X.double()), "float64")


def test_hooks_may_bring_the_weights_to_x() -> None:
    """Layers whose weights are kept in another dtype, and cast when they are called."""
    net = nets.MLP(4, 2, hidden=(8,)).double()
    for layer in (*net.hidden_layers, net.final_layer):
        layer.register_forward_pre_hook(lambda module, _: module.float() and None)
    assert net(X).dtype == torch.float32


def test_leading_dims_that_do_not_match() -> None:
    raises(lambda: SMALL["NSF-context"].log_prob(X, C[:3]), "got [5, 4] and [3, 3]")


TRANSFORMS: dict[str, transforms.Transform] = {
    "Permutation": Permutation([1, 0, 2, 3]),
    "ActNorm": transforms.ActNorm(4),
    "BatchNorm": transforms.BatchNorm(4),
    "LULinear": transforms.LULinear(4),
    "DiagonalScale": transforms.DiagonalScale(4),
    "Standardize": transforms.Standardize(torch.zeros(4), torch.ones(4)),
    "Logit": transforms.Logit(),
    "Dequantize": transforms.Dequantize(4),
    "Composite": Composite([]),
    "Squeeze": transforms.Squeeze(),
    "Squeeze, signals": transforms.Squeeze(2, 2),
    "MultiScale": transforms.MultiScale([transforms.Squeeze()], (1, 2, 2)),
    "Coupling": Coupling([0, 1, 0, 1], nets.MLP, RQS()),
    "Constant": Coupling([1, 1, 1, 1], nets.Constant, Affine()),
    "Autoregressive": transforms.Autoregressive(nets.MADE(4, 2, (8,)), Affine()),
    "Continuous": transforms.Continuous(4),
    "Planar": transforms.Planar(4),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("bad", ["list", "numpy", "float", "none", "sparse"])
def test_transforms(name, bad) -> None:
    transform, value = TRANSFORMS[name], BAD[bad](X)
    raises(lambda: transform(value))
    raises(lambda: transform.inverse(value))


def test_whole_numbers_are_no_probabilities() -> None:
    """The logit of them came back rounded to whole numbers."""
    raises(lambda: transforms.Logit()(torch.tensor([0, 1])), "floating-point")
    raises(lambda: transforms.Logit().inverse(torch.tensor([0, 1])), "floating-point")


# ---- how many draws ----


@EVERY_SMALL
@pytest.mark.parametrize("n", [-1, 2.5, True, "3", None, (2, -1), (2, 1.5), torch.tensor(3)], ids=repr)
def test_n(name, n) -> None:
    flow = SMALL[name]
    context = (C,) if "context" in name else ()
    for call in (flow.sample, flow.rsample, flow.sample_and_log_prob):
        raises(lambda call=call: call(n, *context), "n must be", f"got {n!r}")


@EVERY_SMALL
def test_no_n_is_one_draw(name) -> None:
    """As in torch.distributions: a shape of no dims."""
    flow = SMALL[name]
    context, shape = (C, (5, 4)) if "context" in name else (None, (4,))
    assert flow.sample(context=context).shape == flow.rsample(context=context).shape == shape
    x, log_q = flow.sample_and_log_prob(context=context)
    assert x.shape == shape and log_q.shape == shape[:-1]
    torch.manual_seed(0)
    one = flow.sample(1, context)
    torch.manual_seed(0)
    assert torch.equal(flow.sample(context=context), one[0])
