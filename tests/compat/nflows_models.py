"""nflows layers and flows that the tests accelerate, and the rule by which results are judged."""

from __future__ import annotations

import copy

import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.nn.nets import ConvResidualNet, ResidualNet
from nflows.transforms import (
    ActNorm,
    AdditiveCouplingTransform,
    AffineCouplingTransform,
    CompositeTransform,
    LULinear,
    MaskedAffineAutoregressiveTransform,
    MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
    OneByOneConvolution,
    PiecewiseRationalQuadraticCDF,
    PiecewiseRationalQuadraticCouplingTransform,
    RandomPermutation,
    ReversePermutation,
)
from nflows.utils import torchutils

B = 64
MASKS = {
    "alternating": torchutils.create_alternating_binary_mask(6, even=True),
    "alternating from 0": torchutils.create_alternating_binary_mask(6, even=False),
    "alternating, odd": torchutils.create_alternating_binary_mask(7, even=True),
    "alternating from 0, odd": torchutils.create_alternating_binary_mask(7, even=False),
    "first half": torchutils.create_mid_split_binary_mask(6),
    "last third": torch.tensor([0, 0, 0, 0, 1, 1]),
    "irregular": torch.tensor([1, 1, 0, 1, 0, 0]),
    "all but one": torch.tensor([1, 1, 0, 1, 1, 1]),
    "one dimension": torch.tensor([1]),
}


def dense(context=None, **kwargs):
    return lambda i, o: ResidualNet(i, o, hidden_features=16, context_features=context, num_blocks=1, **kwargs)


def conv(i, o):
    return ConvResidualNet(i, o, hidden_channels=8, num_blocks=1)


def stretch(module, factor=4.0):
    """Scales the conditioners' last layer: at initialisation every spline is nearly a straight line."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "final_layer" in name:
                p.mul_(factor)
    return module


def coupling(mask="alternating", net=None, stretched=True, **kwargs):
    torch.manual_seed(0)
    kwargs = {"num_bins": 5, "tails": "linear", "tail_bound": 2.0, **kwargs}
    mask = MASKS[mask] if isinstance(mask, str) else mask
    layer = PiecewiseRationalQuadraticCouplingTransform(mask, net or dense(), **kwargs)
    return stretch(layer) if stretched else layer


def cdf(shape, **kwargs):
    torch.manual_seed(0)
    return PiecewiseRationalQuadraticCDF(shape, num_bins=5, **kwargs)


def normal(*shape):
    return torch.randn(B, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def uniform(*shape):
    return torch.rand(B, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def layer_cases():
    """name → (layer, inputs in float64, context or None)"""
    cases = {f"mask {m}": (coupling(m), normal(len(v)), None) for m, v in MASKS.items()}
    cases |= {
        "no tails": (coupling(tails=None), uniform(6), None),
        "context": (coupling(net=dense(context=3)), normal(6), normal(3)),
        "batch norm": (coupling(net=dense(use_batch_norm=True)), normal(6), None),
        "one bin": (coupling(num_bins=1), normal(6), None),
        "settings": (coupling(min_bin_width=0.05, min_bin_height=0.02, min_derivative=0.1), normal(6), None),
        "unconditional": (coupling(apply_unconditional_transform=True), normal(6), None),
        "unconditional, no tails": (coupling(apply_unconditional_transform=True, tails=None), uniform(6), None),
        "image": (coupling("irregular", conv), normal(6, 3, 4), None),
        "image, alternating": (coupling("alternating", conv), normal(6, 2, 2), None),
        "image, odd channels": (coupling("alternating, odd", conv), normal(7, 2, 2), None),
        "image, unconditional": (
            coupling("first half", conv, apply_unconditional_transform=True, img_shape=[3, 4]),
            normal(6, 3, 4),
            None,
        ),
        "cdf": (cdf([4], tails="linear", tail_bound=2.0), normal(4), None),
        "cdf, no tails": (cdf([4]), uniform(4), None),
        "cdf of an image": (cdf([3, 2, 4], tails="linear"), normal(3, 2, 4), None),
    }
    return cases


def flow(features=6, context=None, layers=3, **kwargs):
    torch.manual_seed(0)
    transforms = []
    for i in range(layers):
        mask = torchutils.create_alternating_binary_mask(features, even=i % 2 == 0)
        transforms += [
            RandomPermutation(features),
            LULinear(features, identity_init=True),
            PiecewiseRationalQuadraticCouplingTransform(
                mask, dense(context, **kwargs), num_bins=5, tails="linear", tail_bound=3.0
            ),
        ]
    return stretch(Flow(CompositeTransform(transforms), StandardNormal([features])))


def affine(features=5, hidden=16, **kwargs):
    torch.manual_seed(0)
    return MaskedAffineAutoregressiveTransform(features, hidden, **kwargs)


def spline(features=5, hidden=16, **kwargs):
    torch.manual_seed(0)
    kwargs = {"num_bins": 5, "tails": "linear", "tail_bound": 2.0, **kwargs}
    return stretch(MaskedPiecewiseRationalQuadraticAutoregressiveTransform(features, hidden, **kwargs))


AUTOREGRESSIVE = {"affine": affine, "spline": spline}
NETS = {
    "residual": {},
    "feed-forward": {"use_residual_blocks": False},
    "random mask": {"use_residual_blocks": False, "random_mask": True},
    "context": {"context_features": 3},
    "feed-forward, context": {"use_residual_blocks": False, "context_features": 3},
    "one feature": {"features": 1},
    "one feature, context": {"features": 1, "context_features": 3},
    "one feature, random mask": {"features": 1, "use_residual_blocks": False, "random_mask": True},
    "narrower than D": {"features": 9, "hidden": 4},
    "no blocks": {"num_blocks": 0},
    "feed-forward, no blocks": {"num_blocks": 0, "use_residual_blocks": False},
    "tanh": {"activation": torch.tanh},
    "leaky relu module": {"activation": torch.nn.LeakyReLU(), "use_residual_blocks": False},
    "batch norm": {"use_batch_norm": True},
}


def autoregressive_cases():
    """name → (layer, inputs in float64, context or None)"""
    cases = {}
    for map_name, make in AUTOREGRESSIVE.items():
        for net, settings in NETS.items():
            layer = make(**settings)
            context = normal(3) if "context_features" in settings else None
            cases[f"{map_name}, {net}"] = (layer, normal(settings.get("features", 5)), context)
    cases["spline, no tails"] = (spline(tails=None), uniform(5), None)
    cases["spline, settings"] = (spline(min_bin_width=0.05, min_bin_height=0.02, min_derivative=0.1), normal(5), None)
    return cases


def shaken(module, by=0.3):
    """Moves every parameter: many layers start as the identity."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(by * torch.randn(p.shape, generator=generator))
    return module


def actnorm(channels, data):
    layer = ActNorm(channels)
    layer(data.float())  # the first batch sets it
    return layer


def other_cases():
    """name → (layer, inputs in float64, context or None): affine couplings and layers of one matrix."""
    image = normal(6, 3, 4)
    made = {}
    for name, cls in (("affine", AffineCouplingTransform), ("additive", AdditiveCouplingTransform)):
        for m in ("alternating", "alternating, odd", "irregular"):
            made[f"{name}, mask {m}"] = (cls, (MASKS[m], dense()), normal(len(MASKS[m])), None)
        made |= {
            f"{name}, context": (cls, (MASKS["first half"], dense(3)), normal(6), normal(3)),
            f"{name}, image": (cls, (MASKS["irregular"], conv), image, None),
            f"{name}, batch norm": (cls, (MASKS["first half"], dense(use_batch_norm=True)), normal(6), None),
        }
    made |= {
        "LU": (LULinear, (6, False, False), normal(6), None),
        "LU, one feature": (LULinear, (1, False, False), normal(1), None),
        "LU convolution": (OneByOneConvolution, (6, False, False), image, None),
        "actnorm": (actnorm, (6, 2 + normal(6)), normal(6), None),
        "actnorm, image": (actnorm, (6, 2 + image), image, None),
    }
    cases = {}
    for seed, (name, (make, settings, x, context)) in enumerate(made.items()):
        torch.manual_seed(seed)
        cases[name] = (shaken(make(*settings), 0.1), x, context)
    return cases


def autoregressive_flow(make, features=5, layers=3, **kwargs):
    torch.manual_seed(0)
    transforms = []
    for _ in range(layers):
        transforms += [ReversePermutation(features), make(features, **kwargs)]
    return Flow(CompositeTransform(transforms), StandardNormal([features]))


def results(module, inputs, context, direction, dtype):
    """y, ladj and the gradients by inputs and parameters, of a copy of the module in `dtype`."""
    module = copy.deepcopy(module).to(dtype)
    x = inputs.to(dtype, copy=True).requires_grad_()
    run = module if direction == "forward" else module.inverse
    y, ladj = run(x) if context is None else run(x, context.to(dtype))  # not every layer of normflows takes a context
    weights = torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)
    ((y * weights).sum() + (ladj * torch.linspace(0.5, 1.5, ladj.numel(), dtype=dtype).view_as(ladj)).sum()).backward()
    found = {"y": y.detach(), "ladj": ladj.detach(), "grad of inputs": x.grad}
    found |= {f"grad of {n}": p.grad for n, p in module.named_parameters() if p.grad is not None}
    return found


def disturbed(value, generator):
    """A float32 tensor, or a copy of a module, with the last bit of about two thirds of its numbers changed."""
    if isinstance(value, torch.nn.Module):
        value = copy.deepcopy(value)
        with torch.no_grad():
            for p in value.parameters():
                p.copy_(disturbed(p, generator))
        return value
    towards = torch.tensor([-torch.inf, torch.nan, torch.inf])[torch.randint(3, value.shape, generator=generator)]
    return torch.where(towards.isnan(), value, torch.nextafter(value, towards))


def assert_numbers(theirs, ours, *problem, draws=6, at_most=24):
    """The numbers rule: error against float64 <= 2 x that of nflows in float32 + 4 ulp of the largest value.

    `theirs(*problem, dtype)` and `ours(*problem, dtype)` give a dict of tensors; `problem` is modules and tensors in
    float32. The largest error belongs to the worst conditioned element, and luck in rounding moves it by a factor of
    three either way, for nflows as for us (`tests/ops` judges the kernel's accuracy where luck is no matter). So the
    error of nflows is its largest in a few problems that differ in their last bits, plus how far those bits move the
    truth. Where every row of the batch has its own elements the rule is asked of the median and of the 90th percentile
    too, of nflows' error alone.

    For ours in float64 there is no better run to compare with: nflows' error is then its float32 error scaled by the
    ratio of the two epsilons, and counted half as much again because the truth has it too.

    Where a few problems are not enough, more are drawn: the luck is nflows' too.
    """
    generator = torch.Generator().manual_seed(2)
    single, double = torch.float32, torch.float64
    runs = [(theirs(*problem, single), theirs(*problem, double))]
    found = {precision: ours(*problem, precision) for precision in (single, double)}
    for more in (draws, at_most - draws):
        cases = [tuple(disturbed(v, generator) for v in problem) for _ in range(more)]
        runs += [(theirs(*case, single), theirs(*case, double)) for case in cases]
        try:
            _assert_within(found, runs)
        except AssertionError:
            if len(runs) > at_most:
                raise
        else:
            return


def _assert_within(found, runs):
    truth, double = runs[0][1], torch.float64
    for precision, fused in found.items():
        scale = 1.0 if precision is not double else 1.5 * torch.finfo(double).eps / torch.finfo(torch.float32).eps
        assert fused.keys() == truth.keys()
        for name, exact in truth.items():
            value = fused[name]
            assert value.dtype == precision, name
            assert value.shape == exact.shape, name
            assert value.isfinite().all(), name
            if exact.numel() == 0:
                continue
            error = (value.double() - exact).abs()
            of_nflows = scale * torch.stack([(eager[name].double() - t[name]).abs() for eager, t in runs])
            moved = scale * torch.stack([(t[name] - exact).abs() for _, t in runs])
            rows = exact.shape[:1] == (B,) and exact.numel() >= 3 * B
            for q in (0.5, 0.9, 1.0) if rows else (1.0,):
                allowed = 2 * of_nflows.quantile(q) + 4 * torch.finfo(precision).eps * exact.abs().quantile(q)
                if q == 1:
                    allowed += 2 * moved.max()
                mine = error.quantile(q)
                assert mine <= allowed, f"{name} in {precision}: {mine:.3g} at quantile {q}, allowed {allowed:.3g}"
