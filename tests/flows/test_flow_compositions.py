"""What flows are made of: one map and one kind of layer as arguments, linear layers between them, NSF over both."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowkernels.distributions import DiagonalNormal
from flowkernels.flows import IAF, MAF, NICE, NSF, CouplingFlow, Flow, RealNVP
from flowkernels.nets import MLP, Constant, ResidualNet
from flowkernels.transforms import (
    RQS,
    Affine,
    Autoregressive,
    BatchNorm,
    Coupling,
    DiagonalScale,
    Inverse,
    LULinear,
    Permutation,
)
from tests.flows.test_flows import integral
from tests.transforms.test_transforms import jacobian

C = 3
SMALL: dict[str, Any] = {"transforms": 3, "hidden": (16, 16)}
FLOWS = {
    "coupling": functools.partial(CouplingFlow, **SMALL),
    "nsf": functools.partial(NSF, bins=4, **SMALL),
    "maf": functools.partial(MAF, **SMALL),
    "iaf": functools.partial(IAF, **SMALL),
    "realnvp": functools.partial(RealNVP, **SMALL),
    "nsf-autoregressive": functools.partial(NSF, bins=4, autoregressive=True, **SMALL),
}
LINEAR = {"lu": LULinear, "lu_permutation": LULinear, "permutation": Permutation, "reverse": Permutation}
EVERY = pytest.mark.parametrize("build", FLOWS.values(), ids=FLOWS)
EVERY_LINEAR = pytest.mark.parametrize("linear", LINEAR)


@pytest.fixture(autouse=True)
def _one_thread(one_thread) -> None:
    """Small tensors: a second thread costs more than it gives."""


def loose(flow: Flow, noise: float = 0.3) -> Flow:
    """Away from the identity."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(noise * torch.randn_like(p) / p.shape[-1] ** 0.5)
    return flow.double()


def plain(layer: nn.Module) -> nn.Module:
    """A layer of an IAF as the one that it turns round."""
    return layer.transform if isinstance(layer, Inverse) else layer


# ---- one builder, many maps ----


@pytest.mark.parametrize("features", [1, 2, 5])
@pytest.mark.parametrize("context", [0, C])
def test_named_flows_are_coupling_flows(features, context) -> None:
    """The same weights and the same numbers, by the arguments that the named flows stand for."""
    x, given = torch.randn(7, features), torch.randn(7, C) if context else None
    spline = RQS(bins=5, tail_bound=2.0, min_bin_width=1e-2)
    bare: dict[str, Any] = {"linear": None}
    residual: dict[str, Any] = {"net": "residual"}
    for named, settings in (
        (lambda: NSF(features, context, 3, 5, 16, 2.0, min_bin_width=1e-2, **bare), {"univariate": spline, **residual}),
        (lambda: NSF(features, context, 3, hidden=16, net="mlp", univariate=spline, **bare), {"univariate": spline}),
        (lambda: RealNVP(features, context, 3, 16), {"univariate": Affine("tanh")}),
    ):
        torch.manual_seed(0)
        flow = named()
        torch.manual_seed(0)
        other = CouplingFlow(features, context, 3, 16, **settings)
        assert list(flow.state_dict()) == list(other.state_dict())
        assert torch.equal(flow.log_prob(x, given), other.log_prob(x, given))


def test_autoregressive_nsf_is_a_maf_of_splines() -> None:
    x = torch.randn(7, 4)
    torch.manual_seed(0)
    flow = NSF(4, bins=5, linear=None, autoregressive=True, order="random", seed=1, **SMALL)
    torch.manual_seed(0)
    other = MAF(4, univariate=RQS(bins=5), residual=True, order="random", seed=1, **SMALL)
    assert list(flow.state_dict()) == list(other.state_dict())
    assert torch.equal(flow.log_prob(x), other.log_prob(x))


def test_settings_arrive() -> None:
    flow = CouplingFlow(
        4, 2, 6, (32, 32, 32), univariate=Affine("exp"), net="residual", activation="silu", dropout=0.1,
        batch_norm=True, base=DiagonalNormal(4), embedding=nn.Linear(5, 2),
    )  # fmt: skip
    assert len(flow.transform) == 6 and isinstance(flow.base, DiagonalNormal)
    for i, layer in enumerate(flow.transform):
        net = layer.conditioner
        assert isinstance(layer, Coupling) and layer.univariate == Affine("exp") and isinstance(net, ResidualNet)
        assert layer.split.mask.tolist() == [(i + j) % 2 == 1 for j in range(4)]
        assert len(net.blocks) == 3 and net.blocks[0].dropout.p == 0.1 and net.blocks[0].batch_norm_layers
    assert flow.log_prob(torch.randn(7, 4), torch.randn(7, 5)).shape == (7,)
    flow = CouplingFlow(4, hidden=(8, 9), activation=torch.tanh, dropout=0.2)
    net = flow.transform[0].conditioner
    assert len(flow.transform) == 5 and flow.transform[0].univariate == Affine()
    assert isinstance(net, MLP) and [layer.out_features for layer in net.hidden_layers] == [8, 9]
    assert net.activation is torch.tanh and net.dropout.p == 0.2
    assert isinstance(CouplingFlow(1).transform[0].conditioner, Constant)
    assert isinstance(CouplingFlow(4, net=nn.Linear).transform[0].conditioner, nn.Linear)


@pytest.mark.parametrize("univariate", [Affine("exp"), Affine("additive"), RQS(bins=3, order="linear")], ids=repr)
@pytest.mark.parametrize("autoregressive", [False, True])
def test_nsf_takes_any_map(univariate, autoregressive) -> None:
    flow = NSF(3, linear=None, univariate=univariate, autoregressive=autoregressive, **SMALL)
    assert all(layer.univariate is univariate for layer in flow.transform)
    flow, x = loose(flow), torch.randn(5, 3).double()
    torch.testing.assert_close(flow.decode(flow.encode(x)), x)


KEYS = {
    "residual": (lambda: NSF(2, 2, 1, hidden=8), ["initial_layer", "blocks.0.context_layer", "blocks.0.linear_layers.0",
                 "blocks.0.linear_layers.1", "final_layer"]),
    "mlp": (lambda: NSF(2, 2, 1, hidden=8, net="mlp"), ["hidden_layers.0", "final_layer"]),
    "nice": (lambda: NICE(3, 2, 1, 8), ["hidden_layers.0", "final_layer"]),
    "maf": (lambda: MAF(3, 0, 1, 8), ["initial_layer", "final_layer"]),
}  # fmt: skip


@pytest.mark.parametrize("name", KEYS)
def test_names_of_weights_stay(name) -> None:
    """Checkpoints are written under them."""
    build, layers = KEYS[name]
    start = "transform.transforms.0.conditioner"
    wanted = {f"{start}.{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    wanted |= {f"{start}.{layer}.degrees" for layer in layers if name == "maf"}
    if name == "nice":
        wanted.add("transform.transforms.1.log_scale")
    else:
        assert not isinstance(build().transform[len(build().transform) - 1], DiagonalScale)
    assert {k for k in build().state_dict() if "conditioner" in k or "log_scale" in k} == wanted


# ---- linear layers ----


@EVERY
@EVERY_LINEAR
def test_linear_layers_lie_around_every_step(build, linear) -> None:
    layers = [plain(layer) for layer in build(4, linear=linear).transform]
    assert len(layers) == 2 * 3 + 1
    assert all(isinstance(layer, LINEAR[linear]) for layer in layers[::2])
    assert all(isinstance(layer, (Coupling, Autoregressive)) for layer in layers[1::2])
    if linear == "reverse":
        assert all(layer.order.tolist() == [3, 2, 1, 0] for layer in layers[::2])


def test_inverse_layers_are_all_turned_round() -> None:
    """Samples then take the fast direction of every layer."""
    assert all(isinstance(layer, Inverse) for layer in IAF(3, linear="lu").transform)


def test_batch_norm_lies_behind_couplings_alone() -> None:
    kinds = [type(layer) for layer in RealNVP(4, transforms=2, hidden=8, batch_norm=True, linear="lu").transform]
    assert kinds == [LULinear, *(Coupling, BatchNorm, LULinear) * 2]


@EVERY
def test_lu_starts_at_the_identity(build) -> None:
    """A flow with the layers and one without them, of the same networks, are the same numbers, not only close."""
    x = torch.randn(50, 4)
    flows = []
    for linear in ("lu", None):
        torch.manual_seed(0)
        flows.append(build(4, linear=linear))
    z, ladj = flows[0].transform(x)
    wanted = flows[1].transform(x)
    torch.testing.assert_close((z, ladj), wanted, rtol=0, atol=1e-6)
    for layer in flows[0].transform:
        if isinstance(plain(layer), LULinear):
            assert torch.equal(layer(x)[0], x) and not layer(x)[1].any()


def test_lu_starts_as_a_random_permutation() -> None:
    orders = []
    for layer in NSF(6, transforms=20, hidden=8, linear="lu_permutation", seed=0).transform:
        if isinstance(layer, LULinear):
            x = torch.arange(6.0)
            y, ladj = layer(x)
            assert sorted(y.tolist()) == x.tolist() and ladj == 0
            orders.append(tuple(y.tolist()))
            assert all(p.requires_grad for p in layer.parameters())
    assert len(set(orders)) > 15


@EVERY
@EVERY_LINEAR
@pytest.mark.parametrize("features", [1, 2, 5])
def test_starts_near_a_permutation_and_alive(build, linear, features) -> None:
    torch.manual_seed(0)
    flow = build(features, context=C, linear=linear)
    x, context = torch.randn(200, features), torch.randn(200, C)
    z, ladj = flow.transform(x, context)
    assert (z.sort(-1).values - x.sort(-1).values).abs().max() < 0.1 and ladj.abs().max() < 0.1 * features
    (flow.log_prob(x, context).mean() - flow.rsample(3, context).sin().mean()).backward()
    for name, p in flow.named_parameters():
        if features == 1 and ("lower" in name or "upper" in name):
            continue  # a triangle of one feature is empty
        if features < 3 and "conditioner" in name:
            continue  # an autoregressive network of so few features has weights that no output sees
        assert p.grad is not None and (p.grad != 0).any(), name


@pytest.mark.parametrize("features", [2, 3, 4, 5])
def test_reverse_leaves_each_layer_its_features(features) -> None:
    """Seen from the data, what is transformed given what does not depend on who turns the features round."""

    def seen(linear: str | None, **settings: Any) -> list[list[int]]:
        where, found = torch.arange(features), []
        for layer in NSF(features, transforms=4, hidden=8, linear=linear, **settings).transform:
            if isinstance(layer, Permutation):
                where = layer(where)[0]
            elif isinstance(layer, Coupling):
                found.append(sorted(where[layer.split.mask].tolist()))
            else:
                found.append(where[layer.conditioner.order].tolist())
        return found

    for settings in ({}, {"autoregressive": True}):
        assert seen("reverse", **settings) == seen(None, **settings)
    assert seen(None)[0] != seen(None)[1]
    assert seen(None, autoregressive=True)[0] != seen(None, autoregressive=True)[1]


@EVERY
@EVERY_LINEAR
@pytest.mark.parametrize("context", [0, C])
def test_density_and_inverse(build, linear, context) -> None:
    flow = loose(build(3, context=context, linear=linear))
    x = torch.randn(20, 3, dtype=torch.float64)
    given = torch.randn(20, C, dtype=torch.float64) if context else None
    J = jacobian(lambda v: flow.transform(v, given)[0], x)
    wanted = flow.base.log_prob(flow.encode(x, given)) + torch.linalg.slogdet(J).logabsdet
    torch.testing.assert_close(flow.log_prob(x, given), wanted)
    torch.testing.assert_close(flow.decode(flow.encode(x, given), given), x, rtol=0, atol=1e-6)


@EVERY
def test_integrates_to_one(build) -> None:
    assert abs(integral(loose(build(2, linear="lu")), 400, 12.0) - 1) < 1e-3


@EVERY
@EVERY_LINEAR
def test_seed_sets_what_is_drawn(build, linear) -> None:
    def drawn(seed: Any) -> list[Tensor]:
        state = build(6, linear=linear, seed=seed).state_dict()
        return [t for name, t in state.items() if "conditioner" not in name and "mask" not in name]

    one, two, other = drawn(1), drawn(torch.Generator().manual_seed(1)), drawn(2)
    assert len(one) > 0 and all(map(torch.equal, one, two))
    assert all(map(torch.equal, one, other)) == (linear in ("reverse", "lu"))


@EVERY
def test_copies_and_checkpoints(build) -> None:
    """Another draw of permutations comes back with the weights."""
    flow, fresh = (loose(build(5, linear="lu_permutation", seed=seed)) for seed in (0, 1))
    x = torch.randn(6, 5, dtype=torch.float64)
    wanted = flow.log_prob(x)
    assert (fresh.log_prob(x) != wanted).any()
    fresh.load_state_dict(flow.state_dict())
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow)), fresh):
        assert torch.equal(other.log_prob(x), wanted)


def test_compiles_whole() -> None:
    flow, x = loose(NSF(3, linear="lu", **SMALL)), torch.randn(6, 3).double()
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(flow, backend="aot_eager", fullgraph=True)(x), flow(x))


@pytest.mark.filterwarnings("ignore:Inputs to the softmax")
def test_the_papers_model() -> None:
    """Layer by layer nflows' own, whose LULinear has no permutation in it; and none of them is the identity."""
    nflows = pytest.importorskip("nflows.transforms", reason="nflows is not installed")
    flow = loose(NSF(4, bins=5, linear="lu_permutation", **SMALL))
    x = torch.randn(50, 4, dtype=torch.float64)
    h, total = x, torch.zeros(50, dtype=torch.float64)
    for layer in flow.transform:
        before = h
        if isinstance(layer, LULinear):
            lu = nflows.LULinear(4).double()
            with torch.no_grad():
                lu.lower_entries.copy_(layer.lower[lu.lower_indices])
                lu.upper_entries.copy_(layer.upper[lu.upper_indices])
                lu.unconstrained_upper_diag.copy_((layer.log_s.exp() - lu.eps).expm1().log())
            h, ladj = lu(h)
            h = h[:, layer.permutation] + layer.bias
        else:
            theirs = nflows.PiecewiseRationalQuadraticCouplingTransform(
                layer.split.mask.int(), lambda *_, net=layer.conditioner: net, num_bins=5, tails="linear", tail_bound=3
            )  # fmt: skip
            h, ladj = theirs(h)
        total = total + ladj
        assert (h - before).abs().max() > 1e-3
    torch.testing.assert_close(flow.encode(x), h)
    torch.testing.assert_close(flow.transform(x)[1], total)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: CouplingFlow(0), ValueError, "flows.CouplingFlow: features must be at least 1, got 0"),
        (lambda: CouplingFlow(2, -1), ValueError, "flows.CouplingFlow: context must be at least 0, got -1"),
        (lambda: CouplingFlow(2, net="conv"), ValueError, "flows.CouplingFlow: net must be .*, got 'conv'"),
        (lambda: CouplingFlow(2, hidden=(8, 9), net="residual"), ValueError, r"equal widths .*, got \(8, 9\)"),
        (lambda: CouplingFlow(2, hidden="8"), ValueError, "flows.CouplingFlow: hidden must be .*, got '8'"),
        (lambda: CouplingFlow(2, univariate=RQS), TypeError, "flows.CouplingFlow: univariate must be .*, got RQS"),
        (lambda: CouplingFlow(2, batch_norm=1), ValueError, "flows.CouplingFlow: batch_norm must be True or False"),
        (lambda: CouplingFlow(2, seed="a"), TypeError, "flows.CouplingFlow: seed must be .*, got 'a'"),
        (lambda: MAF(2, linear="svd"), ValueError, "flows.MAF: linear must be None or one of .*, got 'svd'"),
        (lambda: IAF(2, -1), ValueError, "flows.IAF: context must be at least 0, got -1"),
        (lambda: MAF(2, residual="no"), ValueError, "flows.MAF: residual must be True or False, got 'no'"),
        (lambda: NSF(2, linear=True), ValueError, "flows.NSF: linear must be None or one of .*, got True"),
        (lambda: RealNVP(2, linear="svd"), ValueError, "flows.RealNVP: linear must be None or one of .*, got 'svd'"),
        (lambda: RealNVP((1, 4, 4), linear="lu"), ValueError, "flows.RealNVP: linear must be None on images, got 'lu'"),
        (lambda: NSF(2, univariate=Affine(), bins=4), ValueError, r"must come without .*, got both, RQS\(bins=4"),
        (lambda: NSF(2, univariate=3), TypeError, "flows.NSF: univariate must be a map of one feature, .*, got 3"),
        (lambda: NSF(2, bin=4), TypeError, "flows.NSF: keywords must be of its own settings, got bin=4"),
        (lambda: NSF(2, autoregressive=True, net=MLP), ValueError, "flows.NSF: an autoregressive net must be"),
    ],
)
def test_errors(build, error, message) -> None:
    with pytest.raises(error, match=message):
        build()
