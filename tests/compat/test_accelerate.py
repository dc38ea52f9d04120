"""`accelerate` changes how a model runs and nothing else, and `restore` changes it back."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from nflows.transforms import (
    CompositeTransform,
    InverseTransform,
    LULinear,
    MaskedPiecewiseQuadraticAutoregressiveTransform,
    MultiscaleCompositeTransform,
    PiecewiseRationalQuadraticCDF,
    PiecewiseRationalQuadraticCouplingTransform,
)
from torch import nn

from flowkernels import compat
from flowkernels.compat.engine import patch
from tests.compat import nflows_models as models

Coupling = PiecewiseRationalQuadraticCouplingTransform


def fast_modules(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if patch.is_fast_layer(module)]


def types_of(model: nn.Module) -> list[type]:
    return [type(m) for m in model.modules()]


def pickled(model: nn.Module, protocol: int = pickle.DEFAULT_PROTOCOL) -> bytes:
    return pickle.dumps(model, protocol)


def saved(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return buffer.getvalue()


# ---- what must not change ----


def test_state_and_repr_do_not_change():
    flow = models.flow(context=3)
    before = copy.deepcopy(flow)
    parameters, buffers = dict(flow.named_parameters()), dict(flow.named_buffers())
    report = compat.accelerate(flow)
    parts = ("{}", "{}", "{}.transform_net")
    expected = [part.format(i + j) for i in (0, 3, 6) for part, j in zip(parts, (1, 2, 2), strict=True)]
    assert report.accelerated == fast_modules(flow) == [f"_transform._transforms.{name}" for name in expected]
    assert patch.is_fast(flow._transform)  # a container, which is in no report
    flow.log_prob(models.normal(6).float(), models.normal(3).float())
    assert repr(flow) == repr(before)
    assert list(flow.state_dict()) == list(before.state_dict())
    assert all(p is parameters[n] for n, p in flow.named_parameters())
    assert all(b is buffers[n] for n, b in flow.named_buffers())
    for ours, theirs in zip(flow.modules(), before.modules(), strict=True):
        assert isinstance(ours, type(theirs))
        assert vars(ours).keys() == vars(theirs).keys()
        assert type(ours).__name__ == type(theirs).__name__
        assert type(ours).__qualname__ == type(theirs).__qualname__
        assert type(ours).__module__ == type(theirs).__module__
        assert type(ours).__doc__ == type(theirs).__doc__


def test_restore_gives_the_original_classes_back():
    flow = models.flow()
    x, before = models.normal(6).float(), types_of(flow)
    theirs = flow.log_prob(x)
    compat.accelerate(flow)
    assert types_of(flow) != before
    compat.restore(flow)
    assert types_of(flow) == before
    assert torch.equal(flow.log_prob(x), theirs)
    compat.restore(flow)
    assert types_of(flow) == before


def test_accelerate_twice_is_as_once():
    flow = models.flow()
    first = compat.accelerate(flow)
    once = types_of(flow)
    second = compat.accelerate(flow)
    assert types_of(flow) == once
    assert first.accelerated == second.accelerated
    assert str(first) == str(second)
    compat.restore(flow)
    assert not fast_modules(flow)


def test_context_manager_undoes_only_what_it_did():
    flow = models.flow()
    part = flow._transform._transforms[2]
    compat.accelerate(part)
    with pytest.raises(ZeroDivisionError), compat.accelerated(flow) as report:
        assert len(report.accelerated) == len(fast_modules(flow)) == 9
        raise ZeroDivisionError
    assert fast_modules(flow) == ["_transform._transforms.2", "_transform._transforms.2.transform_net"]


def test_hooks_fire():
    layer, seen = models.coupling(), []
    layer.register_forward_pre_hook(lambda m, a: seen.append("pre"))
    layer.register_forward_hook(lambda m, a, o: seen.append("post"))
    layer.transform_net.register_forward_hook(lambda m, a, o: seen.append("conditioner"))
    layer.register_full_backward_hook(lambda m, i, o: seen.append("backward"))
    compat.accelerate(layer)
    layer(models.normal(6).float().requires_grad_())[1].sum().backward()
    assert seen == ["pre", "conditioner", "post", "backward"]


def test_to_float64_and_training_mode_after_accelerate():
    flow = models.flow().eval()
    reference = copy.deepcopy(flow).double()
    compat.accelerate(flow)
    flow.log_prob(models.normal(6).float())
    flow.double()
    assert not flow.training
    assert not any(m.training for m in flow.modules())
    x = models.normal(6)
    torch.testing.assert_close(flow.log_prob(x), reference.log_prob(x), rtol=1e-10, atol=1e-10)
    assert all(m.training for m in flow.train().modules())


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


def test_parametrised_after_accelerate():
    """Torch then derives a class from the module's."""
    torch.manual_seed(0)
    layer = LULinear(5, identity_init=False).double()
    fast = copy.deepcopy(layer)
    compat.accelerate(fast)
    for module in (layer, fast):
        nn.utils.parametrize.register_parametrization(module, "lower_entries", Twice())
    assert compat.accelerate(fast).accelerated == [""]
    for x in (models.normal(5), models.normal(5).repeat(20, 1)):  # nflows' own product, and the kernel
        for module in (fast, copy.deepcopy(fast)):
            torch.testing.assert_close(module(x), layer(x))
            torch.testing.assert_close(module.inverse(x), layer.inverse(x))
    compat.restore(fast)
    torch.testing.assert_close(fast(x), layer(x))
    nn.utils.parametrize.remove_parametrizations(fast, "lower_entries")
    compat.restore(fast)
    assert type(fast) is LULinear


def test_lu_of_more_dims_has_their_ladj():
    torch.manual_seed(0)
    layer = LULinear(5, identity_init=False).double()
    fast, x = copy.deepcopy(layer), models.normal(5).view(4, 16, 5)
    compat.accelerate(fast)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), layer(x))


def test_load_state_dict_both_ways():
    source, target = models.flow().double(), models.flow().double()
    with torch.no_grad():
        for p in source.parameters():
            p.add_(0.01)
    compat.accelerate(target)
    target.load_state_dict(source.state_dict())
    x = models.normal(6)
    torch.testing.assert_close(target.log_prob(x), source.log_prob(x))
    models.flow().load_state_dict(target.state_dict())


# ---- copies and pickles ----


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy])
def test_copies_are_accelerated(duplicate):
    flow = models.flow()
    compat.accelerate(flow)
    x = models.normal(6).float()
    before = flow.log_prob(x)
    layer = flow._transform._transforms[2]
    other = duplicate(layer)
    assert type(other) is type(layer)
    assert vars(other).keys() == vars(layer).keys()
    assert torch.equal(other(x)[0], layer(x)[0])
    assert (other.transform_net is layer.transform_net) == (duplicate is copy.copy)
    whole = duplicate(flow)
    assert fast_modules(whole) == fast_modules(flow)
    assert torch.equal(whole.log_prob(x), before)
    if duplicate is copy.deepcopy:
        with torch.no_grad():
            for p in whole.parameters():
                p.zero_()
        assert torch.equal(flow.log_prob(x), before)


def test_deepcopy_keeps_shared_layers_shared():
    layer = models.coupling()
    model = nn.ModuleList([layer, layer])
    compat.accelerate(model)
    other = copy.deepcopy(model)
    assert other[0] is other[1]
    assert other[0] is not layer


@pytest.mark.parametrize(
    "write", [*(lambda m, p=p: pickled(m, p) for p in range(pickle.HIGHEST_PROTOCOL + 1)), saved],
    ids=[*(f"protocol {p}" for p in range(pickle.HIGHEST_PROTOCOL + 1)), "torch.save"],
)  # fmt: skip
def test_a_pickle_is_that_of_the_original(write: Callable[[nn.Module], bytes]):
    flow = models.flow()
    x, types, theirs = models.normal(6).float(), types_of(flow), flow.log_prob(models.normal(6).float())
    compat.accelerate(flow)
    flow.log_prob(x)
    data = write(flow)
    assert b"flowkernels" not in data  # so it loads where flowkernels is not installed
    loaded = torch.load(io.BytesIO(data), weights_only=False) if write is saved else pickle.loads(data)
    assert types_of(loaded) == types
    assert torch.equal(loaded.log_prob(x), theirs)
    assert fast_modules(flow)


class CountsCopies(PiecewiseRationalQuadraticCDF):
    """Has its own way of being copied and pickled, which must be respected."""

    def __deepcopy__(self, memo):
        twin = CountsCopies([4], num_bins=5, tails="linear")
        twin.load_state_dict(self.state_dict())
        twin.copies = getattr(self, "copies", 0) + 1
        return twin

    def __reduce__(self):
        return CountsCopies, ([4], 5, "linear")


def test_the_modules_own_copy_and_pickle_methods_are_used():
    module = CountsCopies([4], num_bins=5, tails="linear")
    compat.accelerate(module)
    assert patch.is_fast(module)
    assert copy.deepcopy(module).copies == 1
    assert type(pickle.loads(pickle.dumps(module))) is CountsCopies
    assert type(copy.copy(module)).__name__ == "CountsCopies"


# ---- containers and wrappers ----


def test_nested_containers_and_shared_children():
    layer = models.coupling()
    inner = CompositeTransform([layer, InverseTransform(layer), models.cdf([6], tails="linear", tail_bound=2.0)])
    model = nn.Sequential(InverseTransform(inner)).double()
    x = models.normal(6)
    theirs = model[0](x)
    report = compat.accelerate(model)
    first = "0._transform._transforms.0"
    assert report.accelerated == [first, f"{first}.transform_net", "0._transform._transforms.2"]
    assert not report.left_alone
    torch.testing.assert_close(model[0](x), theirs)
    compat.restore(model)
    assert not fast_modules(model)


def test_multiscale():
    model = MultiscaleCompositeTransform(2)
    shape = model.add_transform(models.coupling("irregular", models.conv), (6, 2, 2))
    model.add_transform(models.coupling(torch.tensor([0, 1, 0]), models.conv), shape)
    x = models.normal(6, 2, 2)
    theirs = model.double()(x)
    assert len(compat.accelerate(model).accelerated) == 4
    torch.testing.assert_close(model(x), theirs)
    torch.testing.assert_close(model.inverse(theirs[0])[0], x)


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_distributed_data_parallel(process_group):
    class Loss(nn.Module):  # DDP goes through forward
        def __init__(self):
            super().__init__()
            self.flow = models.flow().double()

        def forward(self, x):
            return -self.flow.log_prob(x).mean()

    plain = Loss()
    wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(plain))
    report = compat.accelerate(wrapped)
    assert all(path.startswith("module.flow.") for path in report.accelerated)
    assert len(report.accelerated) == 9
    x = models.normal(6)
    for _ in range(2):  # buffers are broadcast, so written to, on every call
        theirs, ours = plain(x), wrapped(x)
        torch.testing.assert_close(ours, theirs)
    theirs.backward()
    ours.backward()
    for p, q in zip(plain.parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad)


# ---- torch's machinery ----


@pytest.mark.parametrize("dynamic", [None, True])
def test_compile_without_a_graph_break(dynamic):
    flow = models.flow(layers=2).double()
    compat.accelerate(flow)
    x = models.normal(6)
    log_prob = torch.compile(flow.log_prob, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    expected, found = flow.log_prob(x), log_prob(x)
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad(found.sum(), flow.parameters())
    for a, b in zip(ours, torch.autograd.grad(expected.sum(), flow.parameters()), strict=True):
        torch.testing.assert_close(a, b)
    torch.compiler.reset()


def test_compile_inverse_of_an_image_and_of_no_tails():
    for layer, x in (
        (models.coupling("irregular", models.conv).double(), models.normal(6, 2, 2)),
        (models.coupling(tails=None, apply_unconditional_transform=True).double(), models.uniform(6)),
    ):
        compat.accelerate(layer)
        run = torch.compile(layer.inverse, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(run(x), layer.inverse(x))
        torch.compiler.reset()


@pytest.mark.parametrize("mask", ["alternating", "alternating, odd", "first half", "irregular"])
def test_function_transforms(mask):
    layer = models.coupling(mask).double()
    x = models.normal(len(models.MASKS[mask]))[:4]
    theirs = torch.func.jacrev(lambda v: layer(v)[0])(x)
    compat.accelerate(layer)
    torch.testing.assert_close(torch.func.jacrev(lambda v: layer(v)[0])(x), theirs)
    y, tangent = torch.func.jvp(lambda v: layer(v)[0], (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, theirs.sum((2, 3)))
    parameters = dict(layer.named_parameters())
    stacked = {n: torch.stack([p, 2 * p]).detach() for n, p in parameters.items()}
    both = torch.func.vmap(lambda p: torch.func.functional_call(layer, p, (x,))[0])(stacked)
    torch.testing.assert_close(both[0], y)


def test_second_derivatives():
    layer = models.coupling().double()
    compat.accelerate(layer)
    x = models.normal(6)[:3].requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))


def test_layers_made_in_inference_mode():
    with torch.inference_mode():
        layer, x = models.coupling().double(), models.normal(6)
        theirs = layer(x)
        compat.accelerate(layer)
        torch.testing.assert_close(layer(x), theirs)


def test_threads():
    flow = models.flow().double()
    x = models.normal(6)
    expected, failures = flow.log_prob(x), []

    def work(switch):
        try:
            for _ in range(20):
                switch(flow)
                torch.testing.assert_close(flow.log_prob(x), expected)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f,)) for f in (compat.accelerate, compat.restore) * 2]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    compat.restore(flow)
    assert not fast_modules(flow)


# ---- what is left alone ----


def coupling_subclass(**methods) -> Coupling:
    class Mine(Coupling):
        pass

    for name, method in methods.items():
        setattr(Mine, name, method)
    return Mine(models.MASKS["alternating"], models.dense(), tails="linear")


@pytest.mark.parametrize(
    "name",
    ["forward", "inverse", "_coupling_transform", "_coupling_transform_forward", "_coupling_transform_inverse",
     "_piecewise_cdf", "_transform_dim_multiplier"],
)  # fmt: skip
def test_a_subclass_that_overrides_what_would_be_bypassed(name):
    original = getattr(Coupling, name)
    module = coupling_subclass(**{name: lambda self, *args, **kwargs: original(self, *args, **kwargs)})
    report = compat.accelerate(nn.Sequential(module))
    assert type(module).__qualname__.endswith("Mine")
    assert not patch.is_fast(module)
    assert report.left_alone == {"0": f"{type(module).__qualname__} defines its own {name}"}


def test_a_cdf_subclass_that_overrides_spline():
    class Mine(PiecewiseRationalQuadraticCDF):
        def _spline(self, inputs, inverse=False):
            return inputs, inputs.sum(1)

    assert "defines its own _spline" in str(compat.accelerate(Mine([4])))


def test_a_subclass_that_overrides_nothing_relevant_is_accelerated():
    module = coupling_subclass(extra_repr=lambda self: "mine", helper=lambda self: 7).double()
    x = models.normal(6)
    theirs, shown = module(x), repr(module)
    assert compat.accelerate(module).accelerated == ["", "transform_net"]
    assert module.helper() == 7
    assert repr(module) == shown
    torch.testing.assert_close(module(x), theirs)


def test_an_instance_with_its_own_forward():
    module = models.coupling()
    module.forward = lambda inputs, context=None: (inputs, inputs.sum(1))
    assert compat.accelerate(module).left_alone == {"": "the instance has its own forward"}


@pytest.mark.parametrize("name", ["forward", "_coupling_transform_forward", "_piecewise_cdf"])
def test_a_method_set_on_an_accelerated_instance_is_called(name):
    plain, fast = models.coupling().double(), models.coupling().double()
    report = compat.accelerate(fast)
    x = models.normal(6)
    assert report.accelerated == ["", "transform_net"]
    for module in (plain, fast):
        own = getattr(Coupling, name)
        setattr(module, name, lambda *args, own=own, module=module, **kwargs: twice(own(module, *args, **kwargs)))
    assert not patch.is_fast(fast)
    for a, b, c in zip(fast(x), plain(x), models.coupling().double()(x), strict=True):
        torch.testing.assert_close(a, b)
        assert not torch.equal(b, c)
    assert compat.accelerate(fast).left_alone == {"": f"the instance has its own {name}"}
    delattr(fast, name)
    assert compat.accelerate(fast).accelerated == ["", "transform_net"]
    fast.helper, fast.tail_bound = 3, 2.5  # anything else
    assert patch.is_fast(fast)


def twice(pair):
    return tuple(2 * t for t in pair)


def test_a_mask_written_to_where_nobody_counts():
    """As `accelerate` says: it takes a `restore` and another `accelerate`."""
    layers = [models.spline().double() for _ in range(2)]
    compat.accelerate(layers[1])
    x = models.normal(5)
    layers[1](x)
    for layer in layers:
        for name, mask in layer.named_buffers():
            if name.endswith("mask"):
                mask.data.zero_()
    assert not torch.allclose(layers[1](x)[0], layers[0](x)[0])
    compat.restore(layers[1])
    compat.accelerate(layers[1])
    torch.testing.assert_close(layers[1](x), layers[0](x))


def test_a_class_that_cannot_be_extended():
    class Final(Coupling):
        def __init_subclass__(cls):
            raise RuntimeError("this class is final")

    module = nn.Sequential(Final(models.MASKS["alternating"], models.dense(), tails="linear"), models.coupling())
    report = compat.accelerate(module)
    assert report.left_alone == {"0": "its class cannot be extended: this class is final"}
    assert report.accelerated == ["0.transform_net", "1", "1.transform_net"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"tails": "circular"}, "circular tails are not implemented"),
        ({"num_bins": 129}, "bins must be an integer from 1 to 128, got 129"),
        ({"min_bin_width": 0.5}, "min_bin_width must be"),
        ({"tail_bound": 0.0}, "tail_bound must be positive"),
    ],
)
def test_settings_that_the_kernel_does_not_take(settings, reason):
    module = models.coupling(**settings)
    (found,) = compat.accelerate(module).left_alone.values()
    assert reason in found
    assert not patch.is_fast(module)


def test_layers_without_a_fused_path_are_named():
    report = compat.accelerate(MaskedPiecewiseQuadraticAutoregressiveTransform(4, 8))
    assert report.left_alone == {"": "no fused path for this class"}
    assert report.accelerated == ["autoregressive_net"]
    assert set(compat.accelerate(models.flow()).left_alone) == {f"_transform._transforms.{i}" for i in (0, 3, 6)}


def test_an_unknown_model_is_unchanged_and_the_report_says_so():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    before = types_of(model)
    report = compat.accelerate(model)
    assert types_of(model) == before
    assert not report.rows
    assert str(report) == (
        "flowkernels: 0 of 0 modules accelerated\n"
        f"note: nothing in Sequential is of a supported library ({', '.join(sorted(compat._LIBRARIES))}), "
        "so it is unchanged"
    )
    compat.restore(model)


@pytest.mark.parametrize("function", [compat.accelerate, compat.restore])
def test_not_a_module(function):
    with pytest.raises(TypeError, match=f"{function.__name__}: model must be a torch.nn.Module, .*, got int"):
        function(3)


def test_no_library_is_imported_that_the_user_has_not():
    code = (
        "import sys, torch; from flowkernels import compat; r = compat.accelerate(torch.nn.Linear(2, 2)); "
        "assert not {'nflows', 'normflows', 'zuko'} & set(sys.modules); print(r)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "nothing in Linear is of a supported library" in out


def test_tables_load_without_their_libraries():
    code = (
        "import sys, importlib; from flowkernels import compat\n"
        "for name in compat._LIBRARIES:\n"
        "    assert importlib.import_module(f'flowkernels.compat.{name}').LIBRARY.rows()\n"
        "    assert name not in {m.lower() for m in sys.modules}, name"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
