"""WaveGlow, FloWaveNet and WaveNet: both directions, what they are made of, contexts, samples, training, errors."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels.distributions import StandardLogistic, StandardNormal, UniformBox
from flowkernels.flows import Flow, FloWaveNet, WaveGlow, WaveNet
from flowkernels.nets import Upsampler
from flowkernels.transforms import (
    RQS,
    ActNorm,
    Affine,
    Dequantize,
    ImageCoupling,
    Logit,
    LUConv1x1,
    Mixture,
    SignalAutoregressive,
    Squeeze,
)
from tests.flops import flops

pytestmark = pytest.mark.usefixtures("one_thread")
C, T, HOP = 2, 4, 4
GLOW: dict[str, Any] = {"steps": 3, "hidden": 4, "layers": 2, "squeeze": 4, "leave_every": 1, "leave": 1, "seed": 0}
FLO: dict[str, Any] = {"blocks": 3, "steps": 2, "hidden": 4, "layers": 2, "leave_every": 1}
NET: dict[str, Any] = {"hidden": 4, "layers": 3, "components": 3}
SHAPE = (1, T * HOP)
FLOWS: dict[str, Callable[[], Flow]] = {
    "WaveGlow": lambda: WaveGlow(SHAPE, **GLOW),
    "WaveGlow, vector": lambda: WaveGlow(SHAPE, C, univariate=RQS(bins=4), **GLOW),
    "WaveGlow, frames": lambda: WaveGlow((2, 16), C, hop=HOP, **GLOW),
    "FloWaveNet": lambda: FloWaveNet(SHAPE, **FLO),
    "FloWaveNet, frames": lambda: FloWaveNet(SHAPE, C, hop=HOP, **FLO),
    "WaveNet": lambda: WaveNet(SHAPE, **NET),
    "WaveNet, vector": lambda: WaveNet((2, 8), C, univariate=Affine(), **NET),
    "WaveNet, frames": lambda: WaveNet(SHAPE, C, hop=HOP, univariate=Mixture(2, "normal", "probit"), **NET),
    "WaveNet, unit": lambda: WaveNet(SHAPE, univariate=Mixture(2, outer="unit"), **NET),
}
EVERY = pytest.mark.parametrize("name", FLOWS)


def far_from_the_identity(flow: Any) -> Any:
    torch.manual_seed(0)
    for p in flow.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return flow.double().eval()


def context_of(name: str, *lead: int) -> Tensor | None:
    if "frames" in name:
        return torch.randn(*lead, C, T).double()
    return torch.randn(*lead, C).double() if "vector" in name else None


@EVERY
def test_both_directions(name) -> None:
    flow = far_from_the_identity(FLOWS[name]())
    x, context = torch.randn(3, *flow.event_shape).double(), context_of(name, 3)
    embedded = flow.embed(context)
    z, ladj = flow.transform(x, embedded)
    back, negated = flow.transform.inverse(z, embedded)
    torch.testing.assert_close(back, x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(negated, -ladj, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(flow.log_prob(x, context), flow.base.log_prob(z) + ladj)
    for i in range(3):
        c = None if context is None else context[i]
        J = torch.autograd.functional.jacobian(lambda v, c=c: flow.encode(v, c), x[i]).reshape(len(z[i]), -1)
        torch.testing.assert_close(torch.linalg.slogdet(J)[1], ladj[i], rtol=1e-8, atol=1e-8)


@EVERY
def test_shapes_and_draws(name) -> None:
    flow = far_from_the_identity(FLOWS[name]())
    context = context_of(name, 3)
    draws, log_q = flow.sample_and_log_prob(2, context)
    event = flow.event_shape
    assert draws.shape == ((2, *event) if context is None else (2, 3, *event))
    torch.testing.assert_close(flow.log_prob(draws, context), log_q, rtol=1e-6, atol=1e-6)
    (draws.square().sum() + log_q.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())
    if context is not None:
        assert flow.log_prob(draws[0, 0], context).shape == (3,)
        assert flow.as_distribution(context).batch_shape == (3,)
        other = context.clone()
        other[1] += 1
        changed = flow.log_prob(draws[0], other) - flow.log_prob(draws[0], context)
        assert changed[1].abs() > 1e-3 and (changed[[0, 2]] == 0).all()


@EVERY
def test_a_bad_row_stays_in_its_row(name) -> None:
    flow = far_from_the_identity(FLOWS[name]())
    x, context = flow.sample(4, context_of(name)), context_of(name)
    wanted = flow.log_prob(x, context)
    x[2, 0, 5] = torch.nan
    found = flow.log_prob(x, context)
    assert found[2].isnan() and torch.equal(found[[0, 1, 3]], wanted[[0, 1, 3]])


@EVERY
def test_weights_are_of_no_length(name) -> None:
    if "unit" in name:
        pytest.skip("the corners of a uniform base are as many as the samples")
    make = {"WaveGlow": WaveGlow, "FloWaveNet": FloWaveNet, "WaveNet": WaveNet}[name.split(",")[0]]
    settings = {WaveGlow: GLOW, FloWaveNet: FLO, WaveNet: NET}[make]
    more = {"context": C, "hop": HOP} if "frames" in name else {}
    short, long = (make((1, length), **settings, **more) for length in (16, 48))
    short = far_from_the_identity(short)
    long.double().eval().load_state_dict(short.state_dict())
    x, context = torch.randn(2, 1, 48).double(), torch.randn(2, C, 12).double() if more else None
    assert long.log_prob(x, context).isfinite().all()
    if name == "WaveNet":  # what came later changed nothing
        torch.testing.assert_close(long.encode(x)[:, :16], short.encode(x[..., :16]))


@pytest.mark.parametrize("name", ["WaveGlow, frames", "FloWaveNet, frames", "WaveNet, frames"])
def test_frames_are_where_their_samples_are(name) -> None:
    """A sample's own frame and both neighbours are what it sees, but for the reach of the networks."""
    flow = far_from_the_identity(FLOWS[name]())
    assert type(flow.embedding) is Upsampler
    frames = torch.randn(C, T).double()
    moved = frames.clone()
    moved[:, -1] += 1
    row, other = flow.embed(frames), flow.embed(moved)
    assert row.shape == (T * HOP * C,)
    same = (row == other).view(T * HOP, C).all(-1)
    assert same.tolist() == [t < (T - 2) * HOP for t in range(T * HOP)]
    with_own = type(flow)((2, 16) if "Glow" in name else SHAPE, C, hop=HOP, embedding=torch.nn.Identity())
    assert isinstance(with_own.embedding, torch.nn.Sequential)


# ---- what they are made of ----


def test_waveglow_is_the_papers() -> None:
    with torch.device("meta"):
        flow = WaveGlow((1, 16384), 80, hop=256, hidden=512, skip=256, layers=8)
    (levels,) = flow.transform
    assert levels.leave == 2
    kinds = [[type(layer) for layer in level] for level in levels.levels]
    assert kinds == [[Squeeze, *[LUConv1x1, ImageCoupling] * 4], *[[LUConv1x1, ImageCoupling] * 4] * 2]
    convolutions = [layer for level in levels.levels for layer in level if type(layer) is LUConv1x1]
    assert [layer.features for layer in convolutions] == [8] * 4 + [6] * 4 + [4] * 4
    couplings = [layer for level in levels.levels for layer in level if type(layer) is ImageCoupling]
    for layer in couplings:
        net, half = layer.conditioner, layer.channels // 2
        assert layer.split.part == slice(half, 2 * half, 1) and layer.univariate == Affine("exp")
        assert (net.in_channels, net.out_channels, net.context_features) == (half, 2 * half, 640)
        gates = [(g.in_channels, g.out_channels, g.kernel_size, g.dilation) for g in net.gate_layers]
        assert gates == [(512, 1024, (3,), (2**i,)) for i in range(8)]
        assert net.final_layer.in_channels == 256 and net.head_layer is None and not net.causal
    assert len(couplings) == 12 and type(flow.base) is StandardNormal and flow.event_shape == (1, 16384)


def test_flowavenet_is_the_papers() -> None:
    with torch.device("meta"):
        flow = FloWaveNet((1, 16384), 80, blocks=8, steps=6, hidden=256, hop=256, leave_every=4)
    (levels,) = flow.transform
    block = [Squeeze, *[ActNorm, ImageCoupling] * 6]
    kinds = [[type(layer) for layer in level] for level in levels.levels]
    assert kinds == [[*block * 4, ImageCoupling], block * 4]
    channels = [layer.channels for level in levels.levels for layer in level if type(layer) is ImageCoupling]
    assert channels == [2] * 6 + [4] * 6 + [8] * 6 + [16] * 6 + [16] + [16] * 6 + [32] * 6 + [64] * 6 + [128] * 6
    first, second = (levels.levels[0][i] for i in (2, 4))
    assert first.split.mask.shape == second.split.mask.shape == (2,)
    assert first.split.part == slice(1, 2, 1) and second.split.part == slice(0, 1, 1)  # the halves change
    assert first.conditioner.context_features == 160 and levels.levels[1][2].conditioner.context_features == 80 * 32
    assert [g.dilation for g in first.conditioner.gate_layers] == [(1,), (2,)]


def test_flowavenet_leaves_a_normal_of_the_other_half() -> None:
    """What leaves is normal, with mean and scale of a WaveNet of the half that stays."""
    flow = far_from_the_identity(FloWaveNet((1, 8), blocks=2, steps=1, hidden=4, layers=1, leave_every=1))
    x = torch.randn(3, 1, 8).double()
    level = flow.transform[0].levels[0]
    h = x
    for layer in list(level)[:-1]:
        h, _ = layer(h)
    log_s, t = level[-1].conditioner(h[:, :1]).chunk(2, 1)
    torch.testing.assert_close(flow.encode(x)[:, :4], (h[:, 1:] * log_s.exp() + t).flatten(1))
    assert (FloWaveNet((1, 8), blocks=2, steps=1, leave_every=1).transform[0].levels[0][-1](h.float())[1] == 0).all()


def test_wavenet_is_a_product_of_mixtures() -> None:
    for outer, base in (("logit", StandardLogistic), ("unit", UniformBox)):
        flow = far_from_the_identity(WaveNet((1, 6), univariate=Mixture(3, outer=outer), **NET))
        assert type(flow.base) is base
        layer = flow.transform[0].levels[0][0]
        assert type(layer) is SignalAutoregressive
        x = torch.randn(5, 1, 6).double()
        logits, means, log_scales = layer._params(x, None).unflatten(-1, (3, 3)).unbind(-2)
        z = (x[..., None] - means) * torch.exp(-log_scales)
        of_each = torch.log_softmax(logits, -1) - z - 2 * torch.nn.functional.softplus(-z) - log_scales
        torch.testing.assert_close(flow.log_prob(x), of_each.logsumexp(-1).sum((1, 2)))
    assert type(WaveNet((1, 6), univariate=Affine()).base) is StandardNormal
    assert type(WaveNet((1, 6), univariate=Mixture(2, "normal", "probit")).base) is StandardNormal
    assert type(WaveNet((1, 6)).base) is StandardLogistic


def test_wavenet_conditionals_integrate_to_one() -> None:
    flow = far_from_the_identity(WaveNet((1, 3), **NET))
    grid = torch.linspace(-80, 80, 8001, dtype=torch.float64)
    x = torch.randn(1, 3).double().expand(8001, 1, 3).clone()
    x[:, 0, 2] = grid
    joint = flow.log_prob(x).exp()
    short = WaveNet((1, 2), **NET).double()
    short.load_state_dict(flow.state_dict())
    torch.testing.assert_close(torch.trapezoid(joint, grid), short.log_prob(x[0, :, :2]).exp(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["WaveNet", "WaveNet, vector", "WaveNet, frames"])
def test_samples_are_those_of_passes(name, monkeypatch) -> None:
    flow, context = far_from_the_identity(FLOWS[name]()), context_of(name, 3)

    def drawn() -> Tensor:
        torch.manual_seed(3)
        return flow.sample(4, context)

    found, multiplied = drawn(), flops(drawn)
    assert multiplied == flops(lambda: flow.log_prob(found, context))
    layer = flow.transform[0].levels[0][0]
    monkeypatch.setattr(layer, "inverse", layer._sample_by_sample)
    torch.testing.assert_close(drawn(), found, rtol=1e-7, atol=1e-8)
    assert flops(drawn) > 0.5 * flow.event_shape[1] * multiplied  # but for what brings frames to the rate once


# ---- training ----


def trained(flow: Any, x: Tensor, context: Tensor | None, steps: int, lr: float = 1e-2) -> float:
    """Nats per sample after some steps of Adam, on the data themselves."""
    flow.log_prob(x, context)  # sets the actnorms
    optimizer = torch.optim.Adam(flow.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -flow.log_prob(x, context).mean() / x[0].numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
    return -flow.eval().log_prob(x, context).mean().item() / x[0].numel()


@pytest.mark.parametrize(
    ("make", "rows", "steps"),
    [
        (lambda: WaveGlow((1, 16), 1, 3, 8, 2, hop=4, squeeze=4, leave_every=2, leave=1, seed=0), 64, 80),
        pytest.param(lambda: FloWaveNet((1, 16), 1, 2, 2, 12, hop=4, leave_every=1), 128, 120, marks=pytest.mark.slow),
    ],
    ids=["WaveGlow", "FloWaveNet"],
)
def test_frames_are_learned(make, rows, steps) -> None:
    """A tone whose loudness is in the frames: little but 0.1 of noise is left, of a deviation of 0.7."""
    draws = torch.Generator().manual_seed(0)
    frames = torch.randn(rows, 1, 4, generator=draws)
    tone = torch.sin(torch.arange(16) * 0.9)
    x = (frames.repeat_interleave(4, -1) * tone) + 0.1 * torch.randn(rows, 1, 16, generator=draws)
    torch.manual_seed(0)
    flow = make()
    found = trained(flow, x, frames, steps, 2e-2)
    noise, alone = (0.5 * math.log(2 * math.pi * math.e * v) for v in (0.01, x.square().mean().item()))
    assert noise - 0.2 < found < noise + 0.45 < alone - 1
    error = (flow.sample(context=frames) - x).square().mean() / x.square().mean()
    assert error < 0.5  # 2 for draws that know nothing of the frames


def test_wavenet_learns_what_comes_before() -> None:
    """x_t = 0.8 x_(t-1) + 0.6 e: 0.51 nats less than samples by themselves."""
    draws = torch.Generator().manual_seed(0)
    e, x = torch.randn(256, 16, generator=draws), []
    for t in range(16):
        x.append(e[:, 0] if t == 0 else 0.8 * x[-1] + 0.6 * e[:, t])
    torch.manual_seed(0)
    flow = WaveNet((1, 16), hidden=8, layers=2, components=2)
    alone, left = (0.5 * math.log(2 * math.pi * math.e * v) for v in (1.0, 0.36))
    found = trained(flow, torch.stack(x, -1)[:, None], None, 80)
    assert left - 0.1 < found < left + 0.15 < alone
    drawn = flow.sample(400)[:, 0]
    ratio = (drawn[:, 1:] * drawn[:, :-1]).mean() / drawn.square().mean()
    assert 0.6 < ratio < 0.95


def test_levels_of_a_signal() -> None:
    """Whole numbers in, whole numbers out."""
    flow = WaveNet((1, 8), preprocessing=[Dequantize(16, 2), Logit(0.05, event_dims=2)], **NET)
    x = torch.randint(16, (5, 1, 8))
    assert flow.log_prob(x).isfinite().all()
    drawn = flow.sample(5)
    assert torch.equal(drawn, drawn.round()) and drawn.min() >= 0 and drawn.max() <= 15


def test_an_embedding_that_is_no_module() -> None:
    with pytest.raises(TypeError, match=r"flows\.WaveGlow: embedding must be a module or None, got <built-in"):
        WaveGlow((1, 16), 2, hop=4, embedding=torch.sin)  # type: ignore[arg-type]


FRAMED = functools.partial(WaveNet, (1, 8), 2, hop=4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: WaveGlow((1, 4, 4)), r"flows.WaveGlow: shape must be \(C, L\), got \(1, 4, 4\)"),
        (lambda: WaveGlow((1, 12)), r"signals must be \[C, L\] with L divisible by 8, got \[1, 12\]"),
        (lambda: WaveGlow((1, 16), steps=0), "flows.WaveGlow: steps must be at least 1, got 0"),
        (lambda: WaveGlow((1, 16), steps=17), "there must be two channels for every step, got 0 for the last"),
        (lambda: WaveGlow((1, 16), hop=4), "flows.WaveGlow: hop must be 0 where context is 0, got 4"),
        (lambda: WaveGlow((1, 16), 2, hop=5), "flows.WaveGlow: hop must divide the length 16, got 5"),
        (lambda: FloWaveNet((1, 8), blocks=4), r"with even L, got \[4, 1\]"),
        (lambda: FloWaveNet((1, 8), context=-1), "flows.FloWaveNet: context must be at least 0, got -1"),
        (lambda: FloWaveNet((1, 8), leave_every=0), "flows.FloWaveNet: leave_every must be at least 1, got 0"),
        (lambda: WaveNet((8,)), r"flows.WaveNet: shape must be \(C, L\), got \(8,\)"),
        (lambda: WaveNet((1, 8), components=0), "components must be an integer from 1 to 128, got 0"),
        (lambda: WaveNet((1, 8), layers=0), "nets.WaveNet: layers must be at least 1, got 0"),
        (lambda: FRAMED().log_prob(torch.zeros(1, 8)), r"context must be \[\.\.\., 2\], got None"),
        (lambda: FRAMED().log_prob(torch.zeros(1, 8), torch.zeros(2, 3)), r"as rows to \[1, 16\], got \[1, 24\]"),
        (lambda: WaveNet((1, 8)).log_prob(torch.zeros(8)), r"x must be \[\.\.\., 1, 8\], got \[8\]"),
    ],
)
def test_errors(build, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()
