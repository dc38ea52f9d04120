"""WaveNet: its formula, what a sample sees, one sample at a time, contexts of both kinds, the start at zero."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels.nets import Upsampler, WaveNet
from tests.flops import flops
from tests.transforms.test_transforms import randomise

C = 3
CAUSAL: dict[str, Any] = {"kernel_size": 2, "causal": True}
KINDS = {
    "waveglow": functools.partial(WaveNet, hidden=4, layers=3, skip=5),
    "flowavenet": functools.partial(WaveNet, hidden=4, layers=2, head=True),
    "wavenet": functools.partial(WaveNet, hidden=4, layers=5, cycle=2, head=True, **CAUSAL),
    "causal, three taps": functools.partial(WaveNet, hidden=4, layers=2, skip=3, kernel_size=3, causal=True),
    "one layer, one tap": functools.partial(WaveNet, hidden=4, layers=1, kernel_size=1, causal=True),
}
EVERY = pytest.mark.parametrize("name", KINDS)
pytestmark = pytest.mark.usefixtures("one_thread")


def loose(net: Any) -> Any:
    randomise(net)
    return net.double().eval()


def at(x: Tensor, t: int) -> Tensor:
    """A sample of [N, C, L], zero outside."""
    return x[..., t] if 0 <= t < x.shape[-1] else torch.zeros_like(x[..., 0])


def by_hand(net: Any, x: Tensor, context: Tensor) -> Tensor:
    """The formula sample by sample; the context is [N, C, L]."""
    H, S, L = net.initial_layer.out_channels, net.final_layer.in_channels, x.shape[-1]
    one = lambda conv, v: v @ conv.weight[..., 0].T + conv.bias  # noqa: E731
    h, total = [one(net.initial_layer, x[..., t]) for t in range(L)], [torch.zeros(len(x), S).double()] * L
    for i, (gate, mix) in enumerate(zip(net.gate_layers, net.mix_layers, strict=True)):
        k, d, whole, after = gate.weight.shape[-1], 2 ** (i % (net.cycle or 99)), torch.stack(h, -1), []
        V = net.context_layer.weight[2 * H * i : 2 * H * (i + 1), :, 0]
        for t in range(L):
            places = [t + d * (j - (k - 1 if net.causal else k // 2)) for j in range(k)]
            g = gate.bias + context[..., t] @ V.T
            g = g + sum(at(whole, p) @ gate.weight[..., j].T for j, p in enumerate(places))
            u = torch.tanh(g[:, :H]) * torch.sigmoid(g[:, H:])
            both = one(mix, u)
            after.append(h[t] + both[:, :-S] if both.shape[1] > S else h[t])
            total[t] = total[t] + both[:, -S:]
        h = after
    if net.head_layer is not None:
        total = [F.relu(one(net.head_layer, F.relu(s))) for s in total]
    return torch.stack([one(net.final_layer, s) for s in total], -1)


@EVERY
def test_wavenet_is_its_formula(name) -> None:
    net = loose(KINDS[name](2, 6, context=C, context_dims=2))
    x, context = torch.randn(3, 2, 9).double(), torch.randn(3, C, 9).double()
    torch.testing.assert_close(net(x, context), by_hand(net, x, context))


@EVERY
def test_contexts_of_both_kinds(name) -> None:
    """A row is the signal sample after sample; a vector the same at every sample."""
    net, by_vector = loose(KINDS[name](2, 6, context=C, context_dims=2)), KINDS[name](2, 6, context=C).double()
    by_vector.load_state_dict(net.state_dict())
    x, context = torch.randn(4, 2, 9).double(), torch.randn(4, C, 9).double()
    wanted = net(x, context)
    torch.testing.assert_close(net(x, context.transpose(1, 2).flatten(1)), wanted)
    vector = torch.randn(4, C).double()
    torch.testing.assert_close(by_vector(x, vector), net(x, vector[..., None].expand(4, C, 9)))
    assert (wanted - net(x, context.flip(0))).abs().max() > 1e-3
    torch.testing.assert_close(net(x, context[1]), net(x, context[1].expand(4, C, 9)))


@EVERY
def test_what_a_sample_sees(name) -> None:
    """As far as the taps reach, and no further; causal ones no sample that comes later."""
    net, L, t = loose(KINDS[name](2, 6)), 41, 20
    x = torch.randn(1, 2, L, requires_grad=True, dtype=torch.float64)
    (slope,) = torch.autograd.grad(net(x)[0, :, t].square().sum(), x)
    seen = [i - t for i in range(L) if (slope[0, :, i] != 0).any()]
    reach = sum(g.dilation[0] * (g.kernel_size[0] - 1) for g in net.gate_layers)
    assert (seen[0], seen[-1]) == ((-reach, 0) if net.causal else (-reach // 2, reach // 2))


@pytest.mark.parametrize("kind", ["none", "vector", "signal", "row"])
@pytest.mark.parametrize("name", [n for n in KINDS if n not in ("waveglow", "flowavenet")])
def test_steps_are_the_pass(name, kind) -> None:
    dims = 1 if kind == "vector" else 2
    net = loose(KINDS[name](2, 6, context=0 if kind == "none" else C, context_dims=dims))
    x = torch.randn(3, 4, 2, 13).double().requires_grad_()
    shapes = {"none": None, "vector": (4, C), "signal": (3, 4, C, 13), "row": (1, 13 * C)}
    context = None if shapes[kind] is None else torch.randn(shapes[kind]).double().requires_grad_()
    step = net.steps(x, context)
    assert step is not None
    found, wanted = torch.stack([step(x[..., t]) for t in range(13)], -1), net(x, context)
    torch.testing.assert_close(found, wanted)
    leaves = [x, *net.parameters(), *([] if context is None else [context])]
    for a, b in zip(*(torch.autograd.grad(y.sin().sum(), leaves) for y in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_step_applies_each_layer_to_one_sample() -> None:
    """All steps multiply as often as one pass, however long the signal is."""
    net = KINDS["wavenet"](1, 3, context=C)
    for length in (16, 64):
        x, context = torch.randn(2, 1, length), torch.randn(2, C)
        step, applied = net.steps(x, context), []

        def all_steps(x: Tensor = x, step: Any = step, applied: list[int] = applied) -> None:
            applied += [flops(lambda t=t: step(x[..., t])) for t in range(x.shape[-1])]

        all_steps()
        of_context = flops(lambda context=context: net.context_layer(context[..., None]))
        assert len(set(applied)) == 1 and applied[0] > 0  # at every place the same
        assert sum(applied) + of_context == flops(lambda x=x, context=context: net(x, context))
    kept = [len(ring.kept) for _, _, ring in step.layers]
    assert kept == [1, 2, 1, 2, 1]  # a ring is as long as the layer looks back


def test_steps_give_way_to_hooks_and_other_layers() -> None:
    x = torch.randn(2, 1, 5)
    net = KINDS["wavenet"](1, 3)
    assert net.steps(x) is not None
    handle = net.gate_layers[1].register_forward_hook(lambda *_: None)
    assert net.steps(x) is None
    handle.remove()
    assert net.steps(x) is not None
    nn.utils.parametrizations.weight_norm(net.mix_layers[0])
    assert net.steps(x) is None

    class Own(WaveNet):
        def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
            return 2 * super().forward(x, context)

    assert Own(1, 3, causal=True).steps(x) is None


@EVERY
def test_any_leading_dims(name) -> None:
    net = loose(KINDS[name](2, 5, context=C))
    x, context = torch.randn(3, 4, 2, 7).double(), torch.randn(4, C).double()
    found = net(x, context)
    assert found.shape == (3, 4, 5, 7)
    torch.testing.assert_close(found[1, 2], net(x[1, 2], context[2]))
    torch.testing.assert_close(found[1], net(x[1], context))
    assert net(x[:0], context).shape == (0, 4, 5, 7)


@EVERY
def test_a_bad_row_stays_in_its_row(name) -> None:
    net = loose(KINDS[name](2, 5, context=C, context_dims=2))
    x, context = torch.randn(4, 2, 7).double(), torch.randn(4, C, 7).double()
    wanted = net(x, context)
    x[1, 0, 3], context[2, 1, 3] = torch.nan, torch.nan
    found = net(x, context)
    assert torch.equal(found[[0, 3]], wanted[[0, 3]]) and all(found[i].isnan().any() for i in (1, 2))
    if net.causal:
        assert not found[1, :, :3].isnan().any()


@EVERY
def test_start(name) -> None:
    """Zero at first, and alive at the second step."""
    net = KINDS[name](2, 5, context=C)
    x, context = torch.randn(6, 2, 9), torch.randn(6, C)
    assert (net(x, context) == 0).all()
    values = torch.arange(5.0)
    net.start_at(values)
    torch.testing.assert_close(net(x, context), values[:, None].expand(6, 5, 9))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        (net(x, context) * x.sum(1, keepdim=True)).square().sum().backward()
        optimizer.step()
    for parameter, p in net.named_parameters():
        assert p.grad is not None and (p.grad != 0).any(), parameter


@EVERY
def test_copies(name) -> None:
    net = loose(KINDS[name](2, 5, context=C))
    x, context = torch.randn(3, 2, 6).double(), torch.randn(3, C).double()
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x, context), net(x, context))


@pytest.mark.slow
def test_compile() -> None:
    net = loose(KINDS["causal, three taps"](2, 5, context=C, context_dims=2))
    x, context = torch.randn(3, 2, 6).double(), torch.randn(3, 6 * C).double()
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, context), net(x, context))


@pytest.mark.parametrize("hop", [1, 2, 5])
def test_upsampler_is_its_formula(hop) -> None:
    net = loose(Upsampler(C, hop))
    x, W = torch.randn(2, C, 4).double(), net.layer.weight
    row = net(x)
    assert row.shape == (2, 4 * hop * C) and net(x[0]).shape == (4 * hop * C,)
    y = row.view(2, 4 * hop, C)
    for t in range(4):
        for j in range(hop):
            wanted = net.layer.bias + sum(at(x, t + i) @ W[..., (1 - i) * hop + j] for i in (-1, 0, 1))
            torch.testing.assert_close(y[:, t * hop + j], wanted)


X = torch.zeros(6, 2, 4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: WaveNet(0, 5), "nets.WaveNet: in_channels must be at least 1, got 0"),
        (lambda: WaveNet(2, 5, layers=0), "nets.WaveNet: layers must be at least 1, got 0"),
        (lambda: WaveNet(2, 5, kernel_size=2), "kernel_size must be odd where causal is False, got 2"),
        (lambda: WaveNet(2, 5, layers=18), "cycle must be 1 to 17 where layers are more, got 0 for 18 layers"),
        (lambda: WaveNet(2, 5, context_dims=3), r"context_dims must be 1 \(features\) or 2 \(signals\), got 3"),
        (lambda: WaveNet(3, 5)(X), r"nets.WaveNet: x must be \[\.\.\., 3, L\] with samples, got \[6, 2, 4\]"),
        (lambda: WaveNet(2, 5)(X[..., :0]), r"x must be \[\.\.\., 2, L\] with samples, got \[6, 2, 0\]"),
        (lambda: WaveNet(2, 5, context=C)(X), r"nets.WaveNet: context must be \[\.\.\., 3\], got None"),
        (lambda: WaveNet(2, 5, context=C, context_dims=2)(X), r"context must be \[\.\.\., 3\], got None"),
        (lambda: WaveNet(2, 5, context=C)(X, torch.zeros(6, 2)), r"context must broadcast to \[6, 3\], got \[6, 2\]"),
        (lambda: WaveNet(2, 5)(X, torch.zeros(6, 2)), "nets.WaveNet: context must be None where context=0"),
        (
            lambda: WaveNet(2, 5, context=C, context_dims=2)(X, torch.zeros(6, 3, 5)),
            r"context must broadcast to \[6, 3, 4\], or as rows to \[6, 12\], got \[6, 3, 5\]",
        ),
        (lambda: WaveNet(2, 5).steps(X), "causal must be True for steps, got False"),
        (lambda: Upsampler(3, 2)(X), r"nets.Upsampler: x must be \[\.\.\., 3, T\] with frames, got \[6, 2, 4\]"),
    ],
)
def test_errors(build, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_dtypes_that_do_not_meet() -> None:
    for net in (WaveNet(2, 5), Upsampler(2, 3)):
        with pytest.raises(TypeError, match=r"of the dtype of the weights, torch\.float32, got torch\.float64"):
            net(X.double())
