"""normflows layers and flows that the tests accelerate. Here forward is latent to data."""

from __future__ import annotations

import normflows as nf
import torch
from torch import nn

from tests.compat.nflows_models import normal, shaken, uniform

D = 6
F = nf.flows
BOUNDS = torch.tensor([1.0, 2.0, 3.0, 1.5, 2.5, 1.0])
SPLINES = {
    "coupling": (F.CoupledRationalQuadraticSpline, {}),
    "coupling, reversed": (F.CoupledRationalQuadraticSpline, {"reverse_mask": True}),
    "coupling, context": (F.CoupledRationalQuadraticSpline, {"num_context_channels": 3}),
    "coupling, circular tails": (F.CoupledRationalQuadraticSpline, {"tails": "circular"}),
    "coupling, no tails": (F.CoupledRationalQuadraticSpline, {"tails": None}),
    "coupling, tanh": (F.CoupledRationalQuadraticSpline, {"activation": nn.Tanh}),
    "circular coupling": (F.CircularCoupledRationalQuadraticSpline, {"ind_circ": [1, 4]}),
    "circular coupling, context": (
        F.CircularCoupledRationalQuadraticSpline, {"ind_circ": [0, 1, 2], "num_context_channels": 3}),
    "circular coupling, bounds": (
        F.CircularCoupledRationalQuadraticSpline, {"ind_circ": [1, 2], "tail_bound": BOUNDS}),
    "autoregressive": (F.AutoregressiveRationalQuadraticSpline, {}),
    "autoregressive, context": (F.AutoregressiveRationalQuadraticSpline, {"num_context_channels": 3}),
    "autoregressive, permuted": (F.AutoregressiveRationalQuadraticSpline, {"permute_mask": True}),
    "circular autoregressive": (
        F.CircularAutoregressiveRationalQuadraticSpline, {"ind_circ": [1, 4], "num_context_channels": 3}),
    "circular autoregressive, every feature": (
        F.CircularAutoregressiveRationalQuadraticSpline, {"ind_circ": list(range(D)), "permute_mask": False}),
    "circular autoregressive, bounds": (
        F.CircularAutoregressiveRationalQuadraticSpline, {"ind_circ": [1, 2, 4], "tail_bound": BOUNDS}),
}  # fmt: skip
SCALE_MAPS = ("exp", "sigmoid", "sigmoid_inv")


def spline(name, features=D, **sizes):
    cls, settings = SPLINES[name]
    torch.manual_seed(1)
    sizes = {"num_blocks": 1, "num_hidden_channels": 16, "num_bins": 5, **sizes}
    return shaken(cls(features, **sizes, **settings), 0.2)


def mlp(i, o, **settings):
    return nf.nets.MLP([i, 16, o], **settings)


def initialised(layer, data):
    layer(data.float())
    return layer


def cases():
    """name → (layer, inputs in float64, context or None)"""
    found = {}
    for name, (_, settings) in SPLINES.items():
        x = uniform(D) if settings.get("tails", "") is None else normal(D)
        found[f"spline {name}"] = (spline(name), x, normal(3) if "num_context_channels" in settings else None)
    torch.manual_seed(0)

    def periodic(i, o):
        features = nf.utils.nn.PeriodicFeaturesElementwise(i, [0, 2])
        return nf.nets.ResidualNet(i, o, 16, num_blocks=1, preprocessing=features)

    inner = F.neural_spline.coupling.PiecewiseRationalQuadraticCoupling
    halves = torch.tensor([0, 0, 0, 1, 1, 1])
    layer = shaken(inner(halves, periodic, num_bins=5, tails="linear", tail_bound=2.0), 0.2)
    found["spline coupling, a map before the network"] = (layer, normal(D), None)
    inner = F.neural_spline.autoregressive.MaskedPiecewiseRationalQuadraticAutoregressive
    for tails, x in (("linear", normal(D)), ("circular", normal(D)), (None, uniform(D))):
        layer = inner(D, 16, num_blocks=1, num_bins=5, tails=tails, tail_bound=BOUNDS, permute_mask=True)
        found[f"spline autoregressive, {tails} tails, bounds"] = (shaken(layer, 0.2), x, None)
    image = normal(D, 4, 4)
    mask = torch.tensor([0.0, 1, 0, 0, 1, 1])
    pixels = (torch.arange(D * 16) % 2).view(D, 4, 4).float()
    net = nf.nets.ConvNet2d([D, 8, D], [3, 3], init_zeros=False)
    found |= {
        "maf": (shaken(F.MaskedAffineAutoregressive(D, 16)), normal(D), None),
        "maf, no blocks": (shaken(F.MaskedAffineAutoregressive(D, 16, num_blocks=0)), normal(D), None),
        "maf, feed-forward": (shaken(F.MaskedAffineAutoregressive(D, 16, use_residual_blocks=False)), normal(D), None),
        "maf, random mask": (
            shaken(F.MaskedAffineAutoregressive(D, 16, use_residual_blocks=False, random_mask=True, num_blocks=1)),
            normal(D),
            None,
        ),
        "maf, context": (
            shaken(F.MaskedAffineAutoregressive(D, 16, context_features=3, activation=torch.tanh)),
            normal(D),
            normal(3),
        ),
        "masked affine": (F.MaskedAffineFlow(mask, mlp(D, D), mlp(D, D)), normal(D), None),
        "masked affine, no shift": (F.MaskedAffineFlow(mask, None, mlp(D, D)), normal(D), None),
        "masked affine, no scale": (F.MaskedAffineFlow(mask, mlp(D, D)), normal(D), None),
        "masked affine, nets called": (
            F.MaskedAffineFlow(mask, mlp(D, D, output_fn="tanh"), mlp(D, D, leaky=0.2)),
            normal(D),
            None,
        ),
        "masked affine, image": (F.MaskedAffineFlow(pixels, net, net), image, None),
        "LU permute": (shaken(F.LULinearPermute(D, identity_init=False)), normal(D), None),
        "1x1 LU": (shaken(F.Invertible1x1Conv(D, use_lu=True), 0.1), image, None),
        "actnorm": (initialised(F.ActNorm((D,)), 2 + normal(D)), normal(D), None),
        "actnorm, image": (initialised(F.ActNorm((D, 1, 1)), 2 + image), image, None),
    }
    for scale_map in SCALE_MAPS:
        found[f"affine block, {scale_map}"] = (F.AffineCouplingBlock(mlp(4, 6), scale_map=scale_map), normal(7), None)
        glow = F.GlowBlock(D, 8, scale_map=scale_map, init_zeros=False)
        found[f"glow, {scale_map}"] = (initialised(glow, image), image, None)
    other = F.AffineCouplingBlock(mlp(3, 8), split_mode="channel_inv")
    found["affine block, inverted"] = (other, normal(7), None)
    called = F.AffineCouplingBlock(mlp(4, 6, output_fn="tanh", output_scale=2.0))
    found["affine block, net called"] = (called, normal(7), None)
    checkers = F.GlowBlock(D, 8, split_mode="checkerboard", init_zeros=False)
    found["glow, checkerboard"] = (initialised(checkers, image), image, None)
    return found


def flow(name="coupling", features=D, layers=2, context=None, **sizes):
    """normflows' neural spline flow: splines and LU layers over a normal base."""
    torch.manual_seed(0)
    flows = []
    for _ in range(layers):
        flows += [spline(name, features, **sizes), F.LULinearPermute(features)]
    cls = nf.NormalizingFlow if context is None else nf.ConditionalNormalizingFlow
    return cls(nf.distributions.DiagGaussian(features, trainable=False), flows)


def multiscale(levels=2, channels=1, size=8, hidden=16):
    """A small Glow on images [B, channels, size, size]."""
    torch.manual_seed(0)
    q0, merges, flows = [], [], []
    for i in range(levels):  # from the coarsest
        c, s = channels * 2 ** (levels - i), size // 2 ** (levels - i)  # of what leaves at this level
        inside = 2 * c
        if i == 0:
            c = inside
        else:
            merges.append(F.Merge())
        flows.append([F.GlowBlock(inside, hidden, init_zeros=False), F.Squeeze()])
        q0.append(nf.distributions.DiagGaussian((c, s, s), trainable=False))
    return nf.MultiscaleFlow(q0, flows, merges, class_cond=False)
