"""The conditioners: equal to nflows' and to plain torch.nn, with any leading dims and any context."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flowkernels.nets import MLP, Constant, GatedNet, ResidualNet

C = 3
NETS = {
    "mlp": functools.partial(MLP, 5, 4, hidden=(16, 8)),
    "mlp-linear": functools.partial(MLP, 5, 4, hidden=()),
    "mlp-context": functools.partial(MLP, 5, 4, hidden=(16,), context=C),
    "mlp-context-only": functools.partial(MLP, 0, 4, hidden=(16,), context=C),
    "residual": functools.partial(ResidualNet, 5, 4, hidden=16),
    "residual-context": functools.partial(ResidualNet, 5, 4, hidden=16, blocks=3, context=C),
    "residual-context-only": functools.partial(ResidualNet, 0, 4, hidden=16, context=C),
    "residual-batch-norm": functools.partial(ResidualNet, 5, 4, hidden=16, context=C, batch_norm=True),
    "gated": functools.partial(GatedNet, 5, 4, hidden=16),
    "gated-context": functools.partial(GatedNet, 5, 4, hidden=16, blocks=1, context=C, dropout=0.1),
    "constant": functools.partial(Constant, 5, 4),
}
EVERY = pytest.mark.parametrize("build", NETS.values(), ids=NETS.keys())
CONTEXTUAL = pytest.mark.parametrize(
    "build", [b for n, b in NETS.items() if "context" in n], ids=[n for n in NETS if "context" in n]
)


@pytest.fixture(autouse=True)
def one_thread(threads) -> None:
    """Small tensors: a second thread costs more than it gives."""
    threads(1)


def inputs(build: functools.partial, *rows: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    torch.manual_seed(1)
    context = torch.randn(*rows, C, dtype=torch.float64) if "context" in build.keywords else None
    return torch.randn(*rows, build.args[0], dtype=torch.float64), context


def make(build: functools.partial) -> nn.Module:
    """In evaluation mode, with every weight away from its start."""
    torch.manual_seed(0)
    net = build().double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(0, 0.5)
    return net


def test_gated_net_is_its_formula() -> None:
    net = make(functools.partial(GatedNet, 5, 4, hidden=6, blocks=1, context=C))
    x, context = torch.randn(3, 5).double(), torch.randn(3, C).double()
    both = lambda h: F.elu(torch.cat((h, -h), -1))  # noqa: E731
    h = net.initial_layer(torch.cat((x, context), -1))
    (block,) = net.blocks
    a, b = block.gate_layer(both(block.linear_layer(both(h)))).chunk(2, -1)
    h = block.norm_layer(h + a * torch.sigmoid(b))
    torch.testing.assert_close(net(x, context), net.final_layer(h))


# ---- against nflows ----


def both(**settings: Any) -> tuple[nn.Module, nn.Module]:
    resnet = pytest.importorskip("nflows.nn.nets.resnet", reason="nflows is not installed")
    theirs = resnet.ResidualNet(
        in_features=5, out_features=7, hidden_features=16, num_blocks=settings["blocks"],
        context_features=settings["context"] or None, activation=settings["activation"],
        dropout_probability=settings["dropout"], use_batch_norm=settings["batch_norm"],
    )  # fmt: skip
    return theirs.double(), ResidualNet(5, 7, hidden=16, **settings).double()


@pytest.mark.parametrize("context", [0, C])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("activation", [F.relu, torch.tanh])
@pytest.mark.parametrize("training", [False, True])
def test_residual_net_is_nflows(context, batch_norm, activation, training) -> None:
    """Same keys, same values, same gradients, same running statistics."""
    torch.manual_seed(0)
    settings = {"blocks": 2, "context": context, "activation": activation, "dropout": 0.0, "batch_norm": batch_norm}
    theirs, ours = both(**settings)
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(0, 0.5)
    ours.load_state_dict(theirs.state_dict())
    x, c = torch.randn(11, 5).double(), torch.randn(11, C).double() if context else None
    results = []
    for net in (theirs, ours):
        net.train(training)
        out = net(x, c)
        (out * torch.linspace(-1, 1, 7).double()).sum().backward()
        results.append((out, [p.grad for p in net.parameters()], net.state_dict()))
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-13)


def test_residual_net_starts_as_nflows_and_drops_alike() -> None:
    """One seed, the same weights; and the same units dropped."""
    nets = []
    for i in range(2):
        torch.manual_seed(3)
        settings = {"blocks": 2, "context": C, "activation": F.relu, "dropout": 0.4, "batch_norm": True}
        nets.append(both(**settings)[0] if i == 0 else ResidualNet(5, 7, hidden=16, **settings).double())
    torch.testing.assert_close(nets[1].state_dict(), nets[0].state_dict(), rtol=0, atol=0)
    for p in (*nets[0].parameters(), *nets[1].parameters()):
        p.data.add_(0.3)
    x, c = torch.randn(11, 5).double(), torch.randn(11, C).double()
    outs = []
    for net in nets:
        torch.manual_seed(4)
        outs.append(net(x, c))
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-12, atol=1e-13)
    assert not torch.allclose(nets[1](x, c), outs[1])


# ---- against torch.nn ----


def test_mlp_is_a_sequential() -> None:
    net = make(functools.partial(MLP, 5, 4, hidden=(16, 8), context=C, activation=F.silu))
    first, second = net.hidden_layers
    plain = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), net.final_layer)
    x, c = torch.randn(9, 5).double(), torch.randn(9, C).double()
    torch.testing.assert_close(net(x, c), plain(torch.cat((x, c), -1)))


def test_activations_of_every_kind() -> None:
    for activation in (F.silu, nn.SiLU, nn.SiLU()):
        for build in (MLP, ResidualNet):
            torch.manual_seed(0)
            net = build(5, 4, activation=activation)
            torch.manual_seed(0)
            assert torch.equal(net(torch.ones(2, 5)), build(5, 4, activation=F.silu)(torch.ones(2, 5)))
            assert not torch.equal(net(torch.ones(2, 5)), build(5, 4)(torch.ones(2, 5)))


@pytest.mark.parametrize("build", [MLP, ResidualNet])
def test_dropout_only_in_training(build) -> None:
    net = build(5, 4, dropout=0.5)
    for p in net.parameters():
        p.data.normal_(0, 0.5)
    x = torch.randn(9, 5)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


# ---- what every net does ----


@EVERY
def test_leading_dims(build) -> None:
    net = make(build)
    x, context = inputs(build, 2, 3, 4)
    out = net(x, context)
    assert out.shape == (2, 3, 4, 4)
    flat = net(x.flatten(0, 2), None if context is None else context.flatten(0, 2))
    torch.testing.assert_close(out.flatten(0, 2), flat)
    torch.testing.assert_close(net(x[0, 0, 0], None if context is None else context[0, 0, 0]), flat[0])
    assert net(x[:0], None if context is None else context[:0]).shape == (0, 3, 4, 4)


def test_batch_norm_takes_statistics_over_all_leading_dims() -> None:
    nets = [make(NETS["residual-batch-norm"]).train() for _ in range(2)]
    x, context = inputs(NETS["residual-batch-norm"], 3, 4)
    assert context is not None
    out = nets[0](x, context)
    torch.testing.assert_close(out.flatten(0, 1), nets[1](x.flatten(0, 1), context.flatten(0, 1)))
    torch.testing.assert_close(nets[0].state_dict(), nets[1].state_dict())


@CONTEXTUAL
@pytest.mark.parametrize("shape", [(C,), (1, C), (4, C), (3, 1, C), (1, 4, C)])
def test_context_broadcasts(build, shape) -> None:
    net = make(build)
    x, _ = inputs(build, 3, 4)
    context = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    found, wanted = net(x, context), net(x, context.expand(3, 4, C).contiguous())
    torch.testing.assert_close(found, wanted)
    grads = [torch.autograd.grad(out.sin().sum(), context)[0] for out in (found, wanted)]
    torch.testing.assert_close(*grads)
    assert (grads[0] != 0).any()


@EVERY
def test_gradients(build) -> None:
    net = make(build)
    x, context = inputs(build, 3)
    leaves = [t.requires_grad_() for t in (x, context) if t is not None and t.numel() > 0]
    if not isinstance(net, Constant):
        assert torch.autograd.gradcheck(lambda *_: net(x, context), leaves, fast_mode=True)
    net(x, context).sin().sum().backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in net.parameters())


@EVERY
def test_start_at(build) -> None:
    net = build()
    values = torch.tensor([1.0, -2.0, 3.0, 0.5])
    net.start_at(values)
    x, context = inputs(build, 20)
    out = net(x.float(), None if context is None else context.float())
    assert (out - values).abs().max() < 0.05
    out.sin().sum().backward()  # not a dead start: the layers below learn from the first step
    assert all((p.grad != 0).any() for p in net.parameters())


@EVERY
def test_copies_and_dtypes(build) -> None:
    net = make(build)
    x, context = inputs(build, 6)
    out = net(x, context)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x, context), out)
    fresh = build().double().eval()
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(x, context), out)
    for dtype in (torch.float32, torch.bfloat16):
        narrow = net.to(dtype)(x.to(dtype), None if context is None else context.to(dtype))
        assert narrow.dtype == dtype
        if dtype == torch.float32:
            torch.testing.assert_close(narrow, out.float())


@pytest.mark.parametrize("name", ["mlp-context-only", "residual-batch-norm"])  # the others: with the transforms
def test_compile_fullgraph(name) -> None:
    build = NETS[name]
    net = make(build)
    x, context = inputs(build, 2, 3)
    torch._dynamo.reset()
    found = torch.compile(net, backend="aot_eager", fullgraph=True)(x, context)
    torch.testing.assert_close(found, net(x, context))


X = torch.zeros(4, 5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLP(0, 3), r"nets.MLP: in_features \+ context must be at least 1, got 0 \+ 0"),
        (lambda: ResidualNet(0, 3), r"nets.ResidualNet: in_features \+ context must be at least 1"),
        (lambda: MLP(5, 3)(X, X), r"nets.MLP: context must be None where context=0, got \[4, 5\]"),
        (lambda: Constant(5, 3)(X, X), r"nets.Constant: context must be None where context=0, got \[4, 5\]"),
        (lambda: MLP(5, 3, context=2)(X), r"nets.MLP: context must be \[\.\.\., 2\], got None"),
        (lambda: ResidualNet(5, 3, context=2)(X, X), r"context must broadcast to \[4, 2\], got \[4, 5\]"),
        (lambda: ResidualNet(5, 3, context=5)(X, X[:3]), r"context must broadcast to \[4, 5\], got \[3, 5\]"),
        (lambda: MLP(5, 3, context=5)(X, X[None]), r"context must broadcast to \[4, 5\], got \[1, 4, 5\]"),
        (lambda: MLP(5, 3, context=5)(X, X[0, 0]), r"context must broadcast to \[4, 5\], got \[\]"),
    ],
)
def test_errors(build, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()
