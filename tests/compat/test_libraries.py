"""What holds for every library: names that exist, subclasses left alone, copies, pickles, design, real training."""

from __future__ import annotations

import copy
import functools
import importlib
import pickle
from pathlib import Path

import glasflow.nflows.nn.nets as glasflow_nets
import nflows.nn.nets as nflows_nets
import normflows as nf
import pytest
import torch
from nflows.transforms import MultiscaleCompositeTransform
from sklearn.datasets import load_digits
from torch import nn

from bench.suites import dropin_models
from flowkernels import compat
from flowkernels.compat.engine import patch, table
from flowkernels.compat.nflows import residual as nflows_residual
from tests.compat import glasflow_models, nflows_models, normflows_models
from tests.compat.nflows_models import assert_numbers, normal
from tests.compat.parity import fuse_small_ones

pytestmark = pytest.mark.usefixtures("one_thread")
LIBRARIES = {
    name: importlib.import_module(f"flowkernels.compat.{name}").LIBRARY for name in ("nflows", "glasflow", "normflows")
}
TARGETS = [(library, name) for library, found in LIBRARIES.items() for name in found.targets]


@functools.cache
def layers() -> list[nn.Module]:
    """Every module of the cases of the other files."""
    cases = (
        nflows_models.layer_cases, nflows_models.autoregressive_cases, nflows_models.other_cases,
        glasflow_models.cases, normflows_models.cases,
    )  # fmt: skip
    found = [module for make in cases for layer, *_ in make().values() for module in layer.modules()]
    return [*found, nf.flows.Planar((3,)), nf.flows.Radial((3,)), nf.flows.Residual(nf.nets.LipschitzMLP([3, 4, 3]))]


def resolve(library, name):
    module, _, cls = f"{LIBRARIES[library].root}.{name}".rpartition(".")
    return getattr(importlib.import_module(module), cls)


def instance(library: str, name: str) -> nn.Module:
    """A module of the class, of a kind that is accelerated; glasflow's are nflows' with the class of the copy."""
    cls = resolve("nflows" if library == "glasflow" else library, name)
    fitting = (m for m in layers() if type(m) is cls)
    module = next(m for m in map(copy.deepcopy, fitting) if compat.accelerate(m).accelerated[:1] == [""])
    compat.restore(module)
    module.__class__ = resolve(library, name)
    return module


# ---- the tables ----


def test_the_page_of_all_classes_is_up_to_date():
    text = (Path(__file__).parents[2] / "docs" / "libraries" / "index.md").read_text(encoding="utf-8")
    found = text.partition(table.BEGIN)[2].partition(table.END)[0].strip()
    assert found == table.markdown(), "run `python -m flowkernels.compat.engine.table docs/libraries/index.md`"


def test_the_table_is_written_between_its_markers(tmp_path, capsys):
    file = tmp_path / "index.md"
    file.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    assert table.main([str(file)]) == 0
    assert file.read_text() == f"before\n{table.BEGIN}\n{table.markdown()}\n{table.END}\nafter\n"
    file.write_text("no markers")
    assert table.main([str(file)]) == 1
    assert "must have a line" in capsys.readouterr().err
    assert file.read_text() == "no markers"


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_name_in_a_table_is_one_of_the_library(library):
    found = LIBRARIES[library]
    for name in (*found.targets, *found.left_alone, *found.containers, found.base):
        assert issubclass(resolve(library, name), nn.Module)
    for name, entry in found.targets.items():
        assert not [method for method in entry.bypassed if not hasattr(resolve(library, name), method)]


@pytest.mark.parametrize(("library", "name"), TARGETS)
def test_a_subclass_that_overrides_what_would_be_bypassed(library, name, monkeypatch):
    fuse_small_ones(monkeypatch)
    cls = resolve(library, name)
    module = instance(library, name)
    for method in LIBRARIES[library].targets[name].bypassed:
        module.__class__ = type("Mine", (cls,), {method: vars(cls).get(method, getattr(cls, method))})
        report = compat.accelerate(module)
        assert report.left_alone[""] == f"Mine defines its own {method}"
        compat.restore(module)
    module.__class__ = type("Mine", (cls,), {"helper": lambda self: 1})
    assert compat.accelerate(module).accelerated[0] == ""


# ---- what must not change ----


@pytest.mark.parametrize("library", ["glasflow", "normflows"])
def test_state_copies_pickles_and_restoring(library):
    make = {"glasflow": functools.partial(glasflow_models.flow, "nsf, lu"), "normflows": normflows_models.flow}
    model = make[library]().double()
    before, x = copy.deepcopy(model), normal(6)
    expected = before.log_prob(x)
    types = [type(m) for m in model.modules()]
    first = compat.accelerate(model)
    assert str(compat.accelerate(model)) == str(first)
    assert list(model.state_dict()) == list(before.state_dict())
    assert repr(model) == repr(before)
    torch.testing.assert_close(model.log_prob(x), expected)
    twin = copy.deepcopy(model)
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    torch.testing.assert_close(twin.log_prob(x), expected)
    data = pickle.dumps(model)
    assert b"flowkernels" not in data
    assert [type(m) for m in pickle.loads(data).modules()] == types
    compat.restore(model)
    assert [type(m) for m in model.modules()] == types
    with compat.accelerated(model) as report:
        assert report.accelerated == first.accelerated
    assert not any(map(patch.is_fast, model.modules()))


def test_hooks_fire_in_normflows_layers(monkeypatch):
    fuse_small_ones(monkeypatch)
    block = normflows_models.cases()["affine block, exp"][0].double()
    x, seen = normal(7), []
    compat.accelerate(block)
    for part in block.flows:
        part.register_forward_hook(lambda m, a, o: seen.append(type(m).__name__))
    block(x)
    assert seen == ["Split", "AffineCoupling", "Merge"]


@pytest.mark.parametrize("large", [False, True])
def test_small_inputs_stay_with_the_library(monkeypatch, large):
    """And large ones do not: the thresholds, not the kernels, are what is tested."""
    called = []
    for module, name in (("nflows.linear", "lu_linear"), ("nflows.linear", "actnorm"), ("normflows.affine", "affine"),
                         ("normflows.affine", "actnorm")):  # fmt: skip
        found = importlib.import_module(f"flowkernels.compat.{module}")
        original = getattr(found, name)

        def spy(*args, original=original, **kwargs):
            called.append(original.__name__)
            return original(*args, **kwargs)

        monkeypatch.setattr(found, name, spy)
    if large:
        fuse_small_ones(monkeypatch)
    for cases, name in (
        (nflows_models.other_cases, "LU"), (nflows_models.other_cases, "actnorm"),
        (normflows_models.cases, "affine block, net called"), (normflows_models.cases, "masked affine, nets called"),
        (normflows_models.cases, "actnorm"),
    ):  # fmt: skip
        layer, x, _ = cases()[name]
        layer = copy.deepcopy(layer).double()
        compat.accelerate(layer)
        called.clear()
        layer(x)
        layer.inverse(x)
        assert len(called) == (2 if large else 0)


def test_compile_without_a_graph_break(monkeypatch):
    fuse_small_ones(monkeypatch)
    theirs, x = nflows_models.other_cases(), normal(6)
    circular = normflows_models.cases()["spline circular coupling, bounds"][0]
    for module in (theirs["affine, mask alternating"][0], theirs["LU"][0], circular):
        module = copy.deepcopy(module).double()
        compat.accelerate(module)
        expected = module(x)
        torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), expected)
        torch.compiler.reset()


@pytest.mark.parametrize("case", ["LU", "LU convolution"])
def test_a_matrix_that_is_kept(monkeypatch, case):
    """`using_cache` in evaluation: as nflows, and up to date after training."""
    fuse_small_ones(monkeypatch)
    layer, x, _ = nflows_models.other_cases()[case]
    layer = copy.deepcopy(layer).double()
    layer.use_cache()
    fast = copy.deepcopy(layer)
    compat.accelerate(fast)
    for module in (layer.eval(), fast.eval()):
        module(x)
        module.train()
        with torch.no_grad():
            module.lower_entries.mul_(2)
        module.eval()
    torch.testing.assert_close(fast(x), layer(x))
    assert fast.cache.weight is not None


# ---- left alone, and why ----


def refused(module) -> str:
    return compat.accelerate(module).left_alone[""]


def test_normflows_left_alone():
    F = nf.flows
    assert "dense" in refused(F.Invertible1x1Conv(4, use_lu=False))
    assert "its scale map is 'tanh', none of" in refused(F.AffineCoupling(nn.Identity(), scale_map="tanh"))
    assert "one addition" in refused(F.AffineCoupling(nn.Identity(), scale=False))
    assert "one addition" in refused(F.AffineCouplingBlock(nn.Identity(), scale=False))
    assert "not one of channels" in refused(F.AffineCouplingBlock(nn.Identity(), split_mode="checkerboard"))
    assert "not of 0 and 1" in refused(F.MaskedAffineFlow(torch.tensor([0.0, 0.5])))
    assert "not one number per channel" in refused(F.ActNorm((3, 4, 4)))
    assert "no fused path" in refused(F.BatchNorm())
    assert "one copy" in refused(F.Permute(4))


def test_glasflow_left_alone():
    flow = glasflow_models.flow("maf, scale of nflows")
    reasons = compat.accelerate(flow).left_alone.values()
    assert sum("scale_activation is not the default" in reason for reason in reasons) == 2


# ---- networks alone ----

NETWORKS = {"nflows": nflows_nets.ResidualNet, "glasflow": glasflow_nets.ResidualNet, "normflows": nf.nets.ResidualNet}


@pytest.mark.parametrize("library", NETWORKS)
def test_a_residual_network_alone(library):
    x, context = normal(5), normal(3)
    for settings, shape in (({}, (64, 5)), ({"context_features": 3}, (64, 5)), ({"num_blocks": 0}, (64, 5)),
                            ({"use_batch_norm": True, "activation": nn.functional.elu}, (64, 5)),
                            ({"use_batch_norm": True, "context_features": 3}, (64, 5)),
                            ({}, (4, 16, 5)), ({"dropout_probability": 0.5}, (64, 5))):  # fmt: skip
        torch.manual_seed(0)
        net = NETWORKS[library](5, 4, hidden_features=16, **settings).double()
        inputs = (x.view(shape), context) if "context_features" in settings else (x.view(shape),)
        runs = []
        for module in (net, copy.deepcopy(net)):
            if module is not net:
                assert compat.accelerate(module).accelerated == [""]
            torch.manual_seed(1)
            y = module(*inputs)
            y.square().sum().backward()
            runs.append([y, *(p.grad for p in module.parameters()), *module.buffers(), module.eval()(*inputs)])
        torch.testing.assert_close(*runs)
    net = NETWORKS[library](5, 4, hidden_features=16, activation=nn.functional.softsign)
    assert refused(net) == "its activation is softsign, which no kernel has"


def test_a_residual_network_is_one_op(monkeypatch):
    called = []
    monkeypatch.setattr(nflows_residual, "run_residual_net", lambda x, *args, **kwargs: called.append(1) or x)
    for library, cls in NETWORKS.items():
        net = cls(5, 4, hidden_features=16)
        compat.accelerate(net)
        net(normal(5).float())
        assert called, library
        called.clear()


# ---- what differs by design ----


def test_masked_affine_flow_where_a_network_is_not_finite(monkeypatch):
    fuse_small_ones(monkeypatch)

    class Given(nn.Module):
        def forward(self, z):
            return torch.tensor([[torch.nan, 0.5], [torch.inf, 0.5], [0.0, torch.inf]], dtype=z.dtype).expand(3, 2)

    layer = nf.flows.MaskedAffineFlow(torch.tensor([1.0, 0.0]), nf.nets.MLP([2, 4, 2]), Given()).double()
    z = torch.ones(3, 2, dtype=torch.float64)
    theirs = layer(z)
    compat.accelerate(layer)
    z_, ladj = layer(z)
    assert theirs[1].isnan().all()  # NaN times 0 is NaN, and infinities were made NaN
    assert ladj.tolist() == [0.5, 0.5, torch.inf]  # where the mask is 1 nothing is mapped
    assert torch.equal(z_[:, 0], z[:, 0])
    assert z_[2, 1] > 1e300  # the kernels' exponential saturates


def test_normflows_spline_inverse_where_normflows_asserts():
    torch.manual_seed(0)
    layer = nf.flows.neural_spline.coupling.PiecewiseRationalQuadraticCDF([60], num_bins=8, tails="linear")
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(10 * torch.randn_like(p))
    x = 2 * torch.rand(4000, 60) - 1
    y, _ = layer(x)
    with pytest.raises(AssertionError):
        layer.inverse(y)
    compat.accelerate(layer)
    back, ladj = layer.inverse(y)
    assert back.isfinite().all()
    assert ladj.isfinite().all()


def test_dtypes_of_lu_layers(monkeypatch):
    fuse_small_ones(monkeypatch)
    for case in (nflows_models.other_cases()["LU"], normflows_models.cases()["1x1 LU"]):
        layer, x, _ = case
        fast = copy.deepcopy(layer)
        compat.accelerate(fast)
        with pytest.raises(RuntimeError):
            layer(x)  # float64
        assert fast(x)[0].dtype == torch.float64
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x.float())[0].dtype == torch.bfloat16
            assert fast(x.float())[0].dtype == torch.float32


@pytest.mark.parametrize("case", ["1x1 LU", "actnorm, image", "affine block, exp", "masked affine", "spline coupling"])
def test_no_rows(case, monkeypatch):
    fuse_small_ones(monkeypatch)
    layer, x, _ = normflows_models.cases()[case]
    layer = copy.deepcopy(layer)
    compat.accelerate(layer)
    for run in (layer, layer.inverse):
        y, ladj = run(x[:0].float())
        assert y.shape == (0, *x.shape[1:])
        assert ladj.isfinite().all()


def test_nflows_softplus_is_cut_off_at_20():
    layer = nflows_models.affine().double()
    with torch.no_grad():
        layer.autoregressive_net.final_layer.bias[::2] = 21.0
        layer.autoregressive_net.final_layer.weight.zero_()
    x = normal(5)
    theirs = layer(x)[1]
    compat.accelerate(layer)
    ours = layer(x)[1]
    exact = 5 * torch.log(torch.log1p(torch.exp(torch.tensor(21.0, dtype=torch.float64))) + 1e-3)
    assert (theirs - exact).abs().max() > 1e-10
    torch.testing.assert_close(ours, exact.expand(len(x)), rtol=1e-15, atol=0)


# ---- whole models ----


def test_multiscale_models():
    model, image = normflows_models.multiscale(), normal(1, 8, 8)
    model.log_prob(image.float(), None)  # sets actnorm
    model = model.double()
    expected = model.log_prob(image, None)
    assert len(compat.accelerate(model).accelerated) == 10
    torch.testing.assert_close(model.log_prob(image, None), expected)

    model = MultiscaleCompositeTransform(2)
    shape = model.add_transform(copy.deepcopy(nflows_models.other_cases()["LU convolution"][0]), (6, 3, 4))
    model.add_transform(nflows_models.ActNorm(shape[0]), shape)
    model, x = model.double(), normal(6, 3, 4)
    expected = model(x)
    assert len(compat.accelerate(model).accelerated) == 2
    torch.testing.assert_close(model(x), expected)


@functools.cache
def digits() -> torch.Tensor:
    """Eight coarse pixels of scikit-learn's digits, standardised."""
    images = torch.tensor(load_digits().images[:256])
    pixels = images.unfold(1, 4, 2).unfold(2, 2, 2).mean((3, 4)).flatten(1)[:, 1:9]
    noise = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0), dtype=pixels.dtype) / 8
    return ((pixels + noise) - pixels.mean(0)) / (pixels.std(0) + 0.1)


@pytest.mark.thinned(2)
@pytest.mark.parametrize(
    "name",
    ["nflows spline coupling", "glasflow CouplingNSF", "glasflow RealNVP", "normflows spline coupling",
     "normflows autoregressive spline", "normflows circular autoregressive", "FrEIA GLOW", "FrEIA RNVP",
     "FrEIA all-in-one"],
)  # fmt: skip
def test_training_on_digits_gives_the_same_loss_curve(name, monkeypatch):
    pytest.importorskip(dropin_models.MODELS[name].library)
    fuse_small_ones(monkeypatch)

    def theirs(model, data, dtype, fast=False):
        model = copy.deepcopy(model).to(dtype)
        if fast:
            compat.accelerate(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(12):
            loss = -model.log_prob(data.to(dtype)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        assert losses[-1] < losses[0] - 0.1  # it does learn
        return {"loss": torch.stack(losses)}

    model = dropin_models.build(name, "before", 8, hidden=16, layers=2).module
    assert_numbers(theirs, functools.partial(theirs, fast=True), model, digits().float(), draws=2)
