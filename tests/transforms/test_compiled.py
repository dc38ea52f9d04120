"""Runs of layers under torch.compile: one node of a graph, the bits of eager calls, and what became of the modules."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowkernels import _native, backends, flows
from flowkernels.nets import MLP
from flowkernels.ops.flow import native as flow_native
from flowkernels.ops.flow.spec import named
from flowkernels.transforms import RQS, ActNorm, Affine, BatchNorm, Composite, Coupling, Mixture, Permutation
from tests.transforms.test_runs import drawn, filled

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        _native.C is None or backends.default() not in ("auto", "cpu"), reason="runs are of the CPU's kernels"
    ),
]
D, B = 5, 37
SIX: dict[str, Any] = {"transforms": 6, "hidden": (12, 12)}
MODELS: dict[str, Callable[[], Any]] = {
    "NSF": lambda: flows.NSF(D, **SIX),
    "NSF, LU layers": lambda: flows.NSF(D, **SIX, linear="lu", seed=0),
    "NSF, random orders": lambda: flows.NSF(D, **SIX, linear="permutation", seed=0),
    "Real NVP": lambda: flows.RealNVP(D, **SIX),
    "MAF": lambda: flows.MAF(D, **SIX),
    "NICE": lambda: flows.NICE(D, **SIX),
    "SOS": lambda: flows.SOS(D, transforms=2, hidden=(12, 12)),
    "MAF of mixtures": lambda: flows.MAF(D, **SIX, univariate=Mixture(2)),
    "IAF": lambda: flows.IAF(D, **SIX),
}
C = 2
GIVEN: dict[str, Callable[[], Any]] = {
    "NSF": lambda: flows.NSF(D, C, **SIX),
    "NSF of plain nets": lambda: flows.NSF(D, C, **SIX, net="mlp"),
    "NSF, LU layers": lambda: flows.NSF(D, C, **SIX, linear="lu", seed=0),
    "Real NVP": lambda: flows.RealNVP(D, C, **SIX),
    "MAF": lambda: flows.MAF(D, C, **SIX),
    "MAF of blocks": lambda: flows.MAF(D, C, **SIX, residual=True),
    "autoregressive NSF": lambda: flows.NSF(D, C, **SIX, autoregressive=True),
    "IAF": lambda: flows.IAF(D, C, **SIX),
}


@pytest.fixture(autouse=True)
def _anew() -> None:
    torch._dynamo.reset()


def compiled(f: Any, seen: list[str] | None = None) -> Any:
    """Compiled whole, by way of autograd's graphs; `seen`: the nodes of what was traced."""

    def backend(graph: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.debugging import aot_eager

        if seen is not None:
            seen.extend(str(n.target) for n in graph.graph.nodes if n.op == "call_function")
        return aot_eager(graph, inputs)

    return torch.compile(f, backend=backend, fullgraph=True)


def runs_in(seen: list[str]) -> int:
    return sum(name in ("flowkernels.flow.default", "flowkernels.flow_saving.default") for name in seen)


def assert_same(a: list[Tensor], b: list[Tensor]) -> None:
    for i, (s, t) in enumerate(zip(a, b, strict=True)):
        assert torch.equal(s, t), f"result {i}"


def step(flow: Any, call: Any, x: Tensor) -> list[Tensor]:
    flow.zero_grad()
    log_p = call(x)
    log_p.mean().backward()
    return [log_p.detach(), *(p.grad.clone() for p in flow.parameters())]


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_is_one_node_with_the_bits_of_eager(name) -> None:
    flow, seen = filled(MODELS[name]()), []
    found = step(flow, compiled(flow, seen), drawn(B, D))
    assert runs_in(seen) == 1 and not any("flowkernels.rqs" in s or "affine" in s for s in seen)
    assert_same(found, step(flow, flow, drawn(B, D)))


def test_what_backward_needs_is_kept_where_a_gradient_is_wanted() -> None:
    """It computes nothing of forward again; a graph for values alone returns nothing more."""
    layer, x, seen = composite(), drawn(B, D), []
    call = compiled(layer, seen)
    calls: list[bool] = []
    bwd = flow_native.bwd

    def watched(*args: Any, saved: Any = ()) -> Any:
        calls.append(len(saved) == 1)
        return bwd(*args, saved=saved)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            backends.table()["flow"], "cpu", dataclasses.replace(backends.table()["flow"]["cpu"], bwd=watched)
        )
        call(x)[1].sum().backward()
    assert calls == [True] and "flowkernels.flow_saving.default" in seen
    for quiet in (torch.no_grad(), torch.inference_mode(), contextlib.nullcontext()):
        seen.clear()
        torch._dynamo.reset()
        layer.requires_grad_(not isinstance(quiet, contextlib.nullcontext))
        with quiet:
            assert_same([*call(x)], [*layer(x)])
        assert seen.count("flowkernels.flow.default") == 1 and "flowkernels.flow_saving.default" not in seen


@pytest.mark.parametrize("name", ["NSF", "NSF, LU layers", "NICE", "MAF", "MAF of mixtures", "IAF"])
def test_samples(name) -> None:
    flow, seen = filled(MODELS[name]()), []
    z = drawn(B, D)
    with torch.no_grad():
        assert_same([*compiled(flow.transform.inverse, seen)(z)], [*flow.transform.inverse(z)])
    assert runs_in(seen) == 1


@pytest.mark.parametrize("rows", [(1,), (0,), (), (3, 7)])
def test_rows(rows) -> None:
    layer = filled(MODELS["NSF, LU layers"]()).transform
    given = [drawn(*rows, D)]
    assert_same([*compiled(layer)(*given)], [*layer(*given)])


def test_of_changing_sizes() -> None:
    flow = filled(MODELS["MAF"]())
    call = torch.compile(flow, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in (5, 9, 64):
        assert torch.equal(call(drawn(n, D)), flow(drawn(n, D)))


@pytest.mark.parametrize("most", [None, 20_000])
def test_of_changing_sizes_in_training(most, monkeypatch) -> None:
    """How much is kept depends on how many rows there are."""
    if most is not None:
        monkeypatch.setattr(flow_native, "_KEEP_ALL", most)
    flow = filled(flows.NSF(D, **SIX, net="residual"))
    call = torch.compile(flow, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in (5, 9, 2, 64, 200, 3):
        assert_same(step(flow, call, drawn(n, D)), step(flow, flow, drawn(n, D)))


def test_float64_and_what_no_kernel_takes() -> None:
    flow, seen = filled(MODELS["Real NVP"]()).double(), []
    x = drawn(B, D).double()
    assert torch.equal(compiled(flow, seen)(x), flow(x)) and runs_in(seen) == 1
    seen.clear()
    half, x = copy.deepcopy(flow).bfloat16(), x.bfloat16()
    torch.testing.assert_close(compiled(half, seen)(x), half(x), rtol=0.1, atol=0.5)
    assert runs_in(seen) == 0


# ---- with a context ----


def our_ops(seen: list[str]) -> list[str]:
    return [s for s in seen if s.startswith("flowkernels.")]


def given_step(flow: Any, call: Any, x: Tensor, c: Tensor) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (x, c)]
    found = step(flow, lambda x: call(x, leaves[1]), leaves[0])
    return [*found, *(t.grad for t in leaves)]  # type: ignore[list-item]


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", GIVEN)
def test_a_training_step_with_a_context_is_one_node_with_the_bits_of_eager(name) -> None:
    """The context's gradient too."""
    flow, seen = filled(GIVEN[name]()), []
    x, c = drawn(B, D), drawn(B, C, seed=3)
    found = given_step(flow, compiled(flow.log_prob, seen), x, c)
    assert our_ops(seen) == ["flowkernels.flow_saving.default"]
    assert_same(found, given_step(flow, flow.log_prob, x, c))


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", GIVEN)
def test_samples_with_a_context(name) -> None:
    flow, seen = filled(GIVEN[name]()), []
    z, c = drawn(B, D), drawn(B, C, seed=3)
    with torch.no_grad():
        assert_same([*compiled(flow.transform.inverse, seen)(z, c)], [*flow.transform.inverse(z, c)])
    assert our_ops(seen) == ["flowkernels.flow.default"]


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", ["NSF", "MAF"])
@pytest.mark.parametrize("draw", ["sample", "rsample", "sample_and_log_prob"])
def test_draws_with_a_context(draw, name) -> None:
    flow, seen = filled(GIVEN[name]()), []
    c = drawn(4, C, seed=3)

    def drawn_by(call: Any) -> list[Tensor]:
        torch.manual_seed(0)
        leaf = c.clone().requires_grad_()
        found = call(3, leaf)
        found = [found] if isinstance(found, Tensor) else [*found]
        if draw != "sample":
            torch.stack([t.sum() for t in found]).sum().backward()
        return [*(t.detach() for t in found), *([] if leaf.grad is None else [leaf.grad])]

    assert_same(drawn_by(compiled(getattr(flow, draw), seen)), drawn_by(getattr(flow, draw)))
    assert len(our_ops(seen)) == 1


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", ["NSF", "MAF of blocks"])
@pytest.mark.parametrize("lead", [(), (1,), (B,)])
def test_a_context_of_many_rows(lead, name) -> None:
    flow, seen = filled(GIVEN[name]()), []
    x, c = drawn(3, B, D), drawn(*lead, C, seed=3)
    found = given_step(flow, compiled(flow, seen), x, c)
    assert_same(found, given_step(flow, flow, x, c))
    assert len(our_ops(seen)) == 1


def test_an_embedding() -> None:
    torch.manual_seed(0)
    made = flows.NSF(D, C, **SIX)
    embedding = nn.Sequential(nn.Linear(7, 9), nn.SiLU(), nn.Linear(9, C))
    flow, seen = filled(flows.Flow(made.transform, made.base, embedding)), []
    x, c = drawn(B, D), drawn(B, 7, seed=3)
    found = given_step(flow, compiled(flow, seen), x, c)
    assert our_ops(seen) == ["flowkernels.flow_saving.default"]
    assert_same(found, given_step(flow, flow, x, c))


@pytest.mark.parametrize("name", ["NSF", "MAF"])
def test_changing_sizes_with_a_context(name) -> None:
    flow = filled(GIVEN[name]())
    call = torch.compile(flow, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in (5, 9, 2, 64):
        x, c = drawn(n, D), drawn(n, C, seed=3)
        assert_same(given_step(flow, call, x, c), given_step(flow, flow, x, c))


def _of_context(flow: Any) -> Any:
    return flow.transform.transforms[-1].conditioner.context_layer


def _rewrite(flow: Any) -> None:
    with torch.no_grad():
        _of_context(flow).weight.mul_(1.5)


def _other_context_layer(flow: Any) -> None:
    _of_context(flow).weight = nn.Parameter(2 * _of_context(flow).weight.detach())


def _other_net(flow: Any) -> None:
    flow.transform.transforms[-1].conditioner.activation = "tanh"


def _without_activation(flow: Any) -> None:
    flow.transform.transforms[-1].conditioner.context_activation = False


@pytest.mark.parametrize("change", [_rewrite, _other_context_layer, _other_net, _without_activation])
def test_a_change_is_seen_with_a_context(change) -> None:
    flow, x, c = filled(GIVEN["MAF"]()), drawn(B, D), drawn(B, C, seed=3)
    call = compiled(flow)
    before = call(x, c)
    change(flow)
    after = call(x, c)
    assert torch.equal(after, flow(x, c)) and not torch.equal(after, before)


def test_dropout_with_a_context() -> None:
    flow, seen = filled(flows.MAF(D, C, **SIX, dropout=0.5)), []
    call, x, c = compiled(flow, seen), drawn(B, D), drawn(B, C, seed=3)
    for train, n in ((False, 1), (True, 0), (False, 1)):
        flow.train(train)
        assert torch.equal(call(x, c), flow(x, c)) is not train
        assert n == 0 or runs_in(seen) >= 1


def test_a_batch_norm_with_a_context_runs_layer_by_layer() -> None:
    """What it has learned is made a scale in every call, which no graph does."""
    flow, seen = filled(flows.NSF(D, C, **SIX, batch_norm=True)).eval(), []
    x, c = drawn(B, D), drawn(B, C, seed=3)
    torch.testing.assert_close(compiled(flow, seen)(x, c), flow(x, c), rtol=1e-4, atol=1e-4)
    assert runs_in(seen) == 0


# ---- what splits it ----


def _coupling(mask: list[int], univariate: Any = None, dropout: float = 0.0) -> Coupling:
    return Coupling(mask, lambda a, b: MLP(a, b, hidden=(12,), dropout=dropout), univariate or Affine("tanh"))


def composite(**more: Any) -> Composite:
    torch.manual_seed(0)
    return filled(
        Composite([_coupling([0, 1, 0, 1, 1], **more), Permutation.random(D, seed=1), _coupling([1, 0, 1, 0, 0])])
    )


def test_what_is_no_step_splits_the_run() -> None:
    parts: list[Any] = [*composite()]
    layer, seen = Composite([*parts[:2], BatchNorm(D).eval(), *parts[2:]]), []
    mine = [*compiled(layer, seen)(drawn(B, D))]
    torch.testing.assert_close(mine, [*layer(drawn(B, D))], rtol=1e-5, atol=1e-5)
    assert runs_in(seen) == 2


def test_actnorm() -> None:
    """Its first batch in training is its module's; then it is in the run."""
    parts: list[Any] = [*composite()]
    layer, seen = Composite([*parts[:2], ActNorm(D), *parts[2:]]), []
    twin = copy.deepcopy(layer)
    call, x = compiled(layer, seen), drawn(B, D)
    torch.testing.assert_close([*call(x)], [*twin(x)], rtol=1e-5, atol=1e-5)
    assert runs_in(seen) == 2 and layer.transforms[2].initialised
    seen.clear()
    torch.testing.assert_close([*call(x)], [*twin(x)], rtol=1e-5, atol=1e-5)
    assert runs_in(seen) == 1


# ---- what became of the modules ----


def _write(layer: Any) -> None:
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(1.5)


def _replace_parameter(layer: Any) -> None:
    net = layer.transforms[0].conditioner
    net.hidden_layers[0].weight = nn.Parameter(2 * net.hidden_layers[0].weight.detach())


def _write_order(layer: Any) -> None:
    order = torch.tensor([1, 0, 2, 4, 3])
    layer.transforms[1].order.copy_(order)
    layer.transforms[1].inverse_order.copy_(order)


def _load(layer: Any) -> None:
    other = filled(composite(), seed=7)
    other.transforms[1] = Permutation.random(D, seed=9)
    layer.load_state_dict(other.state_dict())


def _other_map(layer: Any) -> None:
    layer.transforms[0].univariate = Affine("exp")


def _other_activation(layer: Any) -> None:
    layer.transforms[0].conditioner.activation = torch.tanh


def _to_double(layer: Any) -> None:
    layer.double()


CHANGES = {f.__name__.strip("_"): f for f in (_write, _replace_parameter, _write_order, _load, _other_map,
                                              _other_activation, _to_double)}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change) -> None:
    layer, x = composite(), drawn(B, D)
    call = compiled(layer)
    before = [*call(x)]
    CHANGES[change](layer)
    x = x.to(next(layer.parameters()).dtype)
    after = [*call(x)]
    assert_same(after, [*layer(x)])
    assert not torch.equal(after[0], before[0])


def test_dropout_comes_and_goes() -> None:
    layer, x, seen = composite(dropout=0.5), drawn(B, D), []
    call = compiled(layer, seen)
    for train, n in ((False, 1), (True, 0), (False, 1)):
        layer.train(train)
        y, _ = call(x)
        assert torch.equal(y, layer(x)[0]) is not train
        assert torch.equal(y, call(x)[0]) is not train
        assert n == 0 or runs_in(seen) >= 1


def test_runs_of_other_lengths_take_turns() -> None:
    """Of the graph for training and that for evaluation: a run begins in one place in both, and ends in two."""
    torch.manual_seed(0)
    layer: Any = filled(Composite([_coupling([0, 1, 0, 1, 1]), _coupling([1, 0, 1, 0, 0], dropout=0.5)]))
    call, x = compiled(layer), drawn(B, D)
    for train in (False, True, False, True, False):
        layer.train(train)
        y, _ = call(x)
        assert torch.equal(y, layer(x)[0]) is not train


def test_hooks_of_all_modules_are_not_called() -> None:
    """As a compiler has it; they are no reason to stop."""
    layer, x = composite(), drawn(B, D)
    call, expected = compiled(layer), layer(x)[0]
    call(x)
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: seen.append(type(m).__name__))
    try:
        assert torch.equal(call(x)[0], expected)
    finally:
        handle.remove()


@pytest.mark.parametrize("change", ["hook", "layer"])
def test_other_layers_than_were_compiled_are_refused_or_run(change) -> None:
    layer, x = composite(), drawn(B, D)
    call = compiled(layer)
    before = call(x)[0]
    if change == "hook":
        layer.transforms[0].register_forward_hook(lambda m, i, o: (2 * o[0], o[1]))
    else:
        layer.transforms[2] = filled(_coupling([0, 0, 1, 1, 1], RQS(bins=4)), seed=3)
    try:
        after = call(x)[0]
    except RuntimeError as error:
        assert "must have the layers with which it was compiled, got others" in str(error)
        torch._dynamo.reset()
        after = compiled(layer)(x)[0]
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, layer(x)[0], rtol=1e-5, atol=1e-5)


def test_flows_of_one_class_do_not_take_each_other() -> None:
    """A compiler uses a graph again for another module of the same structure."""
    layers: list[Any] = [composite(univariate=RQS(bins=4, tail_bound=b)) for b in (1.0, 3.0)]
    layers.append(copy.deepcopy(layers[0]))
    layers[2].transforms[1] = Permutation.random(D, seed=8)
    for layer in layers:
        assert_same([*compiled(layer)(drawn(B, D))], [*layer(drawn(B, D))])


def test_a_name_goes_with_its_flow() -> None:
    layer = composite()
    before = set(named)
    compiled(layer)(drawn(B, D))
    mine = set(named) - before
    assert len(mine) == 1
    torch._dynamo.reset()
    del layer
    gc.collect()
    assert not mine & set(named)


# ---- other tracers ----


def test_an_exported_program_holds_no_name() -> None:
    flow = MODELS["NSF, LU layers"]().eval()
    for strict in (False, True):
        program = torch.export.export(flow, (drawn(B, D),), strict=strict)
        assert runs_in([str(n.target) for n in program.graph.nodes]) == 0
        torch.testing.assert_close(program.module()(drawn(B, D)), flow(drawn(B, D)), rtol=1e-4, atol=1e-4)


def test_vmap_inside() -> None:
    layer, seen = composite().double(), []
    x = drawn(B, D).double()

    def f(row: Tensor) -> tuple[Tensor, Tensor]:
        return layer(row)

    found = compiled(torch.func.vmap(f), seen)(x)
    torch.testing.assert_close(found, layer(x), rtol=1e-9, atol=1e-9)
    assert runs_in(seen) == 0
