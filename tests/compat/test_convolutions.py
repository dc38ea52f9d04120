"""Networks of convolutions after `accelerate`: nflows' ConvResidualNet, normflows' ConvNet2d, anybody's Sequential."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import normflows
import pytest
import torch
import torch.nn.functional as F
from FrEIA import modules as freia
from nflows.nn.nets import ConvResidualNet
from nflows.transforms import AffineCouplingTransform
from torch import Tensor, nn

from flowkernels import compat
from flowkernels.compat import convolutions
from flowkernels.compat.engine import thresholds
from flowkernels.compat.nflows import conv as of_nflows
from flowkernels.ops.conv_net import fused_torch
from tests.compat.parity import fuse_small_ones

C, H = 4, 8


@pytest.fixture(autouse=True)
def small(monkeypatch, threads) -> None:
    threads(1)
    fuse_small_ones(monkeypatch)


def sequential(n_in: int = C, n_out: int = 6, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Glow's network, the last part of it in a Sequential of its own."""
    end = nn.Sequential(act(), nn.Conv2d(7, n_out, 3, padding=1))
    return nn.Sequential(nn.Conv2d(n_in, H, 3, padding="same"), act(), nn.Conv2d(H, 7, 1), end)


def residual(**settings: Any) -> Callable[[], nn.Module]:
    return lambda: ConvResidualNet(C, 6, hidden_channels=H, num_blocks=2, **settings)


NETS: dict[str, Callable[[], nn.Module]] = {
    "sequential": sequential,
    "sequential, in place": lambda: sequential(act=lambda: nn.ReLU(inplace=True)),
    "sequential, leaky": lambda: sequential(act=lambda: nn.LeakyReLU(inplace=True)),
    "sequential, silu": lambda: sequential(act=lambda: nn.SiLU(inplace=True)),
    "ConvNet2d": lambda: normflows.nets.ConvNet2d([C, H, 7, 6], [3, 1, 3], init_zeros=False),
    "ConvNet2d, leaky": lambda: normflows.nets.ConvNet2d([C, H, 6], [3, 3], leaky=0.01, init_zeros=False),
    "ConvResidualNet": residual(),
    "ConvResidualNet, tanh": residual(activation=torch.tanh),
    "ConvResidualNet, norms": residual(use_batch_norm=True),
    "ConvResidualNet, context": residual(context_channels=3, dropout_probability=0.3),
}
EVERY = pytest.mark.parametrize("name", NETS)


def made(name: str) -> tuple[Any, tuple[Tensor, ...]]:
    """A network away from its start, and what it is called with."""
    torch.manual_seed(0)
    net = NETS[name]().double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p += 0.2 * torch.randn_like(p)
    x = torch.randn(5, C, 6, 5, dtype=torch.float64)
    return net, (x, torch.randn(5, 3, 6, 5, dtype=torch.float64)) if "context" in name else (x,)


def found(net: Any, given: tuple[Tensor, ...]) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in given]
    y = net(*leaves)
    g = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad(y, [*leaves, *net.parameters()], g)]


def assert_same(mine: list[Tensor], wanted: list[Tensor]) -> None:
    """To some roundings of the largest: a bias before a batch norm has no gradient but what cancels."""
    largest = max(b.abs().max().item() for b in wanted if b.numel())
    for a, b in zip(mine, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=64 * torch.finfo(a.dtype).eps * max(1.0, largest))


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """A word for each network that ran without its activations being called."""
    names: list[str] = []
    for module, op in ((convolutions, "run_convs"), (of_nflows, "run")):
        plain = getattr(module, op)

        def watched(*args: Any, plain: Any = plain, **kwargs: Any) -> Any:
            y = plain(*args, **kwargs)
            names.extend([plain.__name__] if y is not None else [])
            return y

        monkeypatch.setattr(module, op, watched)
    from flowkernels.compat.normflows import conv as of_normflows

    monkeypatch.setattr(of_normflows, "run_convs", convolutions.run_convs)
    return names


@EVERY
def test_values_and_gradients(name, ran) -> None:
    net, given = made(name)
    fast = copy.deepcopy(net)
    assert compat.accelerate(fast).accelerated
    assert [*fast.state_dict()] == [*net.state_dict()] and repr(fast) == repr(net)
    assert_same(found(fast, given), found(net, given))
    with torch.no_grad():
        y = fast(*given)
    assert_same([y], [net(*given).detach()])
    assert y.is_contiguous() and len(ran) >= 2
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert_same([other(*given)], [net(*given)])
    compat.restore(fast)
    assert type(fast) is type(net)


@EVERY
def test_in_training_mode(name) -> None:
    """Batch norms have the same statistics, dropouts drop the same for a seed."""
    net, given = made(name)
    fast = copy.deepcopy(net)
    compat.accelerate(fast)
    results = []
    for module in (net.train(), fast.train()):
        torch.manual_seed(1)
        results.append([*found(module, given), *module.buffers()])
        with torch.no_grad():
            results[-1].append(module(*given))
    assert_same([t.double() for t in results[1]], [t.double() for t in results[0]])


@EVERY
def test_batches_in_pieces(name, monkeypatch) -> None:
    net, given = made(name)
    fast = copy.deepcopy(net)
    compat.accelerate(fast)
    monkeypatch.setattr(fused_torch, "_WHOLE", 0)
    monkeypatch.setattr(fused_torch, "_PIECE", 2 * H * 30 * 8)
    with torch.no_grad():
        assert_same([fast(*given)], [net(*given)])
        empty = tuple(t[:0] for t in given)
        assert fast(*empty).shape == net(*empty).shape


@EVERY
def test_hooks_are_called_and_see_what_layers_returned(name, ran) -> None:
    net, given = made(name)
    wanted = net(*given)
    compat.accelerate(net)
    net(*given)
    ran.clear()
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            m.register_forward_hook(lambda m, args, out: seen.append((m, args[0].clone(), out)))
    torch.testing.assert_close(net(*given), wanted)
    assert ran == [] and len(seen) >= 2
    for m, x, out in seen:
        y = m._conv_forward(x, m.weight, m.bias)
        # In a Sequential of the user's that works in place, what a hook keeps is written over, as before.
        assert torch.equal(out, y) or "in place" in name or "leaky" in name or "silu" in name


@EVERY
def test_other_dtypes_transforms_and_compilers(name) -> None:
    net, given = made(name)
    fast = copy.deepcopy(net)
    compat.accelerate(fast)
    wanted = net(*given)
    torch.testing.assert_close(torch.func.functional_call(fast, dict(net.named_parameters()), given), wanted)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(fast, backend="aot_eager")(*given), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast.float()(*[t.float() for t in given]), net.float()(*[t.float() for t in given]))
    with pytest.raises(RuntimeError):
        fast(*[t.double() for t in given])


@pytest.mark.parametrize("change", ["stride", "class", "padding", "activation", "longer", "no bias"])
def test_what_is_changed_later_is_noticed(change, ran) -> None:
    net, (x,) = made("sequential")
    compat.accelerate(net)
    net(x)
    ran.clear()
    if change == "stride":
        net[2].stride = (2, 2)
    elif change == "class":
        net[2] = type("Own", (nn.Conv2d,), {"forward": lambda self, x: -nn.Conv2d.forward(self, x)})(H, 7, 1).double()
    elif change == "padding":
        net[0].padding = (0, 0)
    elif change == "activation":
        net[1] = nn.Softplus().double()
    elif change == "longer":
        net.append(nn.ReLU())
    else:
        net[2].bias = None
    y = net(x)
    plain = copy.deepcopy(net)
    compat.restore(plain)
    assert torch.equal(y, plain(x)) and ran == []


def test_couplings_of_every_library_run_them(ran) -> None:
    def own(a: int, b: int) -> nn.Module:
        class Own(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = sequential(a, b)

            def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
                return self.layers(x)

        return Own()

    x = torch.randn(3, C, 4, 4)
    models: list[tuple[nn.Module, Callable[[Any], Tensor]]] = [
        (AffineCouplingTransform([0, 1, 0, 1], own), lambda m: m(x)[0]),
        (AffineCouplingTransform([0, 1, 0, 1], lambda i, o: ConvResidualNet(i, o, H)), lambda m: m.inverse(x)[0]),
        (normflows.flows.GlowBlock(C, H, init_zeros=False), lambda m: m.inverse(x)[0]),
        (freia.GLOWCouplingBlock([(C, 4, 4)], subnet_constructor=sequential), lambda m: m([x])[0][0]),
    ]
    for model, call in models:
        wanted = call(model)
        ran.clear()
        report = compat.accelerate(model)
        torch.testing.assert_close(call(model), wanted)
        assert ran, type(model)
        assert any("in place" in line for line in str(report).splitlines() if "×" in line), report


def test_what_has_no_such_network_is_in_no_report() -> None:
    for net in (
        nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)),
        nn.Sequential(nn.Conv2d(2, 2, 3, padding=1)),
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)),
        nn.Sequential(nn.Conv2d(2, 4, 1), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1)),
        nn.Sequential(),
    ):
        assert not compat.accelerate(net).rows and type(net) is nn.Sequential


def test_reasons() -> None:
    own = normflows.nets.ConvNet2d([C, H, 6], [3, 3], actnorm=True)
    row = next(row for row in compat.accelerate(own).rows if row.class_name == "ConvNet2d")
    assert row.reason == "it has more than convolutions of one activation"
    (row,) = compat.accelerate(residual(activation=F.softplus)()).rows
    assert row.reason == "its activation is softplus, which is not known"


def test_small_images_are_left_to_their_modules(monkeypatch, ran) -> None:
    monkeypatch.setattr(thresholds, "CONVOLUTIONS", 4000)
    net, (x,) = made("sequential")
    compat.accelerate(net)
    n = x[0, 0].numel() * 7 * len(x)  # 1,050 elements of the narrowest hidden layer
    assert n < 2000
    net(x)
    assert ran == []
    net(x.repeat(2, 1, 1, 1))
    assert ran == ["run_convs"]
    with torch.no_grad():
        net(x.repeat(2, 1, 1, 1))
    assert ran == ["run_convs"]
