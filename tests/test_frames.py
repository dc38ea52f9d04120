"""How many Python frames of the package a warm call runs: the ceiling at small batches, and a reader's way to go."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import flowkernels
from flowkernels import _native, backends, compat, flows, nets, ops, transforms

PACKAGE = str(Path(flowkernels.__file__).parent)
B, D, HIDDEN, BINS = 512, 6, 64, 8

pytestmark = pytest.mark.skipif(
    _native.C is None or backends.default() not in ("auto", "cpu"),
    reason="the counts are of calls of the CPU's kernels",
)


def frames(call: Callable[[], Any]) -> int:
    """Python frames of the package in one call, once caches are warm; a generator counts each time it goes on."""
    count = 0

    def see(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(PACKAGE)

    with torch.no_grad():
        for _ in range(3):
            call()
        before = sys.getprofile()
        sys.setprofile(see)
        try:
            call()
        finally:
            sys.setprofile(before)
    return count


def _x() -> torch.Tensor:
    return torch.linspace(-2, 2, B * D).reshape(B, D)


def _nflows_coupling() -> Callable[[], Any]:
    pytest.importorskip("nflows")
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import PiecewiseRationalQuadraticCouplingTransform

    layer: Any = PiecewiseRationalQuadraticCouplingTransform(
        [i % 2 for i in range(D)], lambda i, o: ResidualNet(i, o, hidden_features=HIDDEN), num_bins=BINS,
        tails="linear", tail_bound=3.0,
    )  # fmt: skip
    assert compat.accelerate(layer).accelerated
    x = _x()
    return lambda: layer(x)


def _nflows_made() -> Callable[[], Any]:
    pytest.importorskip("nflows")
    from nflows.transforms import MaskedAffineAutoregressiveTransform

    layer: Any = MaskedAffineAutoregressiveTransform(D, HIDDEN)
    assert compat.accelerate(layer).accelerated
    x = _x()
    return lambda: layer(x)


def _coupling() -> Callable[[], Any]:
    layer, x = transforms.Coupling([i % 2 for i in range(D)], nets.MLP, transforms.RQS(bins=BINS)), _x()
    return lambda: layer(x)


def _nsf() -> Callable[[], Any]:
    flow, x = flows.NSF(D, transforms=1, bins=BINS, hidden=(HIDDEN, HIDDEN)), _x()
    return lambda: flow.log_prob(x)


def _six_layers(flow: Callable[..., Any]) -> Callable[[], Any]:
    model, x = flow(D, transforms=6, hidden=(HIDDEN, HIDDEN)), _x()
    return lambda: model.log_prob(x)


def _six_nflows_layers(kind: str) -> Callable[[], Any]:
    pytest.importorskip("nflows")
    import nflows.transforms as nf
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import ResidualNet

    spline = {"num_bins": BINS, "tails": "linear", "tail_bound": 3.0}
    halves, context = [i % 2 for i in range(D)], None
    layers: dict[str, Callable[[], Any]] = {
        "Real NVP": lambda: nf.AffineCouplingTransform(halves, lambda i, o: ResidualNet(i, o, HIDDEN)),
        "NSF": lambda: nf.PiecewiseRationalQuadraticCouplingTransform(
            halves, lambda i, o: ResidualNet(i, o, HIDDEN), **spline
        ),
        "MAF": lambda: nf.MaskedAffineAutoregressiveTransform(D, HIDDEN),
        "MAF with a context": lambda: nf.MaskedAffineAutoregressiveTransform(D, HIDDEN, context_features=2),
    }
    between = [nf.PointwiseAffineTransform(torch.zeros(D), torch.ones(D)), nf.LULinear(D)] if "LU" in kind else []
    kind = kind.removesuffix(", LU layers")
    parts = [t for _ in range(6) for t in (nf.ReversePermutation(D), *between, layers[kind]())]
    model: Any = Flow(nf.CompositeTransform(parts), StandardNormal([D]))
    assert compat.accelerate(model).notes == ("6 layers in one call (at _transform)",)
    x = _x()
    if "context" in kind:
        context = x[:, :2].cos()
    return lambda: model.log_prob(x, context)


def _six_zuko_layers() -> Callable[[], Any]:
    zuko = pytest.importorskip("zuko")
    model = zuko.flows.MAF(D, transforms=6, hidden_features=(HIDDEN, HIDDEN))
    assert compat.accelerate(model).notes == ("6 layers in one call (at transform)",)
    x = _x()
    return lambda: model().log_prob(x)


def _six_normflows_layers() -> Callable[[], Any]:
    nf = pytest.importorskip("normflows")
    layers = [nf.flows.AffineCouplingBlock(nf.nets.MLP([D // 2, HIDDEN, HIDDEN, D])) for _ in range(6)]
    layers = [part for layer in layers for part in (layer, nf.flows.Permute(D, "swap"))]
    model: Any = nf.NormalizingFlow(nf.distributions.DiagGaussian(D, trainable=False), layers)
    assert compat.accelerate(model).notes == ("6 layers in one call (at the model)",)
    x = _x()
    return lambda: model.log_prob(x)


def _rqs() -> Callable[[], Any]:
    x, params = _x(), torch.zeros(B, D, 3 * BINS - 1)
    return lambda: ops.rqs(x, params, bins=BINS)


# Bounds may only go down. The goal of each is in the comment.
CALLS = {
    "accelerated nflows RQ coupling": (_nflows_coupling, 18),  # 70
    "transforms.Coupling": (_coupling, 20),
    "NSF layer, log_prob": (_nsf, 26),  # 60
    "accelerated nflows affine MADE": (_nflows_made, 17),  # 80
    "six layers of Real NVP, log_prob": (functools.partial(_six_layers, flows.RealNVP), 26),
    "six layers of an NSF, log_prob": (functools.partial(_six_layers, flows.NSF), 26),
    "six layers of a MAF, log_prob": (functools.partial(_six_layers, flows.MAF), 26),
    "six accelerated layers of nflows, Real NVP": (functools.partial(_six_nflows_layers, "Real NVP"), 41),
    "six accelerated layers of nflows, NSF": (functools.partial(_six_nflows_layers, "NSF"), 19),
    "six accelerated layers of nflows, NSF, LU layers": (functools.partial(_six_nflows_layers, "NSF, LU layers"), 98),
    "six accelerated layers of nflows, MAF": (functools.partial(_six_nflows_layers, "MAF"), 19),
    "six accelerated layers of nflows, MAF with a context": (
        functools.partial(_six_nflows_layers, "MAF with a context"),
        114,
    ),
    "six accelerated layers of zuko, MAF": (_six_zuko_layers, 39),
    "six accelerated layers of normflows, Real NVP": (_six_normflows_layers, 25),
    "ops.rqs": (_rqs, 12),  # 12
}


@pytest.mark.parametrize("name", CALLS)
def test_frames_of_a_call(name: str) -> None:
    make, most = CALLS[name]
    found = frames(make())
    assert 0 < found <= most, f"{name}: {found} frames of the package, at most {most} before"
