"""Masked layers on a GPU: where products are cut, what is launched, multiplied and kept. The ops' own tests,
tests/ops/test_masked_linear.py and test_made.py, test numbers."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import backends, ops
from flowkernels.ops.net import MadePlan, blocks
from flowkernels.ops.net import cuda as net_cuda
from flowkernels.ops.net.plan import LayerPlan, layer_plan
from flowkernels.ops.net.spec import NetSpec
from tests import emulator
from tests.emulator import Emulated
from tests.numbers import assert_within_rule
from tests.ops.masked import SHAPES, Shape, draw, values_and_gradients
from tests.ops.spline import weights
from tests.ops.test_made import call
from tests.ops.test_masked_linear import degrees
from tests.ops.test_masked_linear import draw as draw_layer

pytestmark = pytest.mark.usefixtures("one_thread")
ORDERS = ("forward",) if emulator.ASAN else tuple(emulator.ORDERS)
COUNTING = layer_plan(range(1, 1025), range(1, 1025))  # degrees that count up


@pytest.fixture
def cuda(cuda_on_cpu: Emulated) -> Iterator[Emulated]:
    yield cuda_on_cpu


def layer(t: list[Tensor], plan: LayerPlan, **settings: Any) -> Tensor:
    return ops.masked_linear(t[0], t[1], t[2], plan, residual=t[3], backend="cuda", **settings)


# ---- where products are cut ----


@pytest.mark.parametrize(
    ("rows", "depths"),
    [(1, (1024,)), (2048, (1024,)), (4096, (512, 1024)), (8192, (256, 512, 768, 1024)), (65536, (256, 512, 768, 1024))],
)
def test_a_block_fills_a_wave_of_tiles_and_is_not_narrow(rows, depths) -> None:
    assert tuple(s.depth for s in blocks.blocks_of(COUNTING, rows)) == depths


def test_blocks_that_would_save_nothing_are_one() -> None:
    everything = layer_plan([0] * 1024, range(1024))
    assert blocks.blocks_of(everything, 65536) == (blocks.Block(0, 1024, 0, 1024),)
    nearly = layer_plan([0] * 900 + [1] * 124, [0] * 512 + [1] * 512)  # saves a sixteenth
    assert len(blocks.blocks_of(nearly, 65536)) == 1


@pytest.mark.usefixtures("narrow_blocks")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("K", "N"), [(1, 1), (43, 70), (300, 17), (64, 129)])
def test_every_visible_weight_is_in_one_block(K, N, seed) -> None:
    plan = LayerPlan(*degrees(K, N, seed), strict=bool(seed % 2))
    forward, backward = torch.zeros(N, K), torch.zeros(N, K)
    for s in blocks.blocks_of(plan, 130):
        forward[s.first : s.last, : s.depth] += 1
        backward[s.first :, s.before : s.depth] += 1
    seen = plan.mask(forward)[plan.out_order][:, plan.in_order]
    assert torch.equal(forward, backward) and forward.max() == 1 and (forward >= seen).all()
    assert (backward.sum(0) > 0).all()  # the gradient of every input is written


# ---- what is launched and multiplied ----


class Products:
    """The library's products: how many, and their multiply-adds."""

    def __init__(self) -> None:
        self.n = self.work = 0


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Products:
    count = Products()

    def counted(name: str, f: Any, first: int) -> None:
        def run(*args: Any, **kwargs: Any) -> Tensor:
            a, b = args[first : first + 2]
            count.n, count.work = count.n + 1, count.work + a.shape[0] * a.shape[1] * b.shape[1]
            return f(*args, **kwargs)

        monkeypatch.setattr(torch, name, run)

    for name, first in (("mm", 0), ("addmm", 1), ("matmul", 0)):
        counted(name, getattr(torch, name), first)
    return count


def both_passes(f: Any, tensors: list[Tensor], cuda: Emulated, products: Products) -> tuple[tuple[int, int], ...]:
    """Launches and products of the forward pass, and of the backward pass."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    at = cuda.launches, products.n
    y = f(leaves)
    between = cuda.launches, products.n
    torch.autograd.grad(y.sum(), leaves)
    end = cuda.launches, products.n
    return tuple((b[0] - a[0], b[1] - a[1]) for a, b in ((at, between), (between, end)))


# Packing; the products; what follows them. Back: g act' with sums, their last sum, the gradient of the weight unpacked.
@pytest.mark.parametrize(
    ("residual", "activation", "forward", "backward"), [(True, "relu", 2, 3), (False, "relu", 2, 3),
                                                        (False, "identity", 1, 3)],
)  # fmt: skip
def test_launches_of_a_layer(residual, activation, forward, backward, cuda: Emulated, products: Products) -> None:
    x, w, b, r = draw_layer((5,), 7, 11)
    plan = LayerPlan(*degrees(7, 11), strict=False)

    def f(t: list[Tensor]) -> Tensor:
        added = t[3] if residual else None
        return ops.masked_linear(*t[:3], plan, residual=added, activation=activation, backend="cuda")

    found = both_passes(f, [x, w, b, *([r] if residual else [])], cuda, products)
    assert found == ((forward, 1), (backward, 2))


@pytest.mark.usefixtures("narrow_blocks")
def test_launches_and_work_of_a_layer_in_blocks(cuda: Emulated, products: Products) -> None:
    plan = LayerPlan(*degrees(43, 70), strict=False)
    cut = blocks.blocks_of(plan, 130)
    area = sum((s.last - s.first) * s.depth for s in cut)
    assert len(cut) > 4 and area < 0.7 * 43 * 70
    tensors = draw_layer((130,), 43, 70)
    assert both_passes(lambda t: layer(t, plan), tensors, cuda, products) == ((2, len(cut)), (3, 2 * len(cut)))
    assert products.work == 3 * 130 * area


# A launch that packs, one behind every layer but the last; back: one a layer, the sums of all biases, all gradients
# unpacked.
@pytest.mark.parametrize(("name", "layers"), [("many features, wide", 2), ("residual", 6)])
def test_launches_of_a_network(name, layers, cuda: Emulated, products: Products) -> None:
    problem = draw(SHAPES[name]._replace(adds="none"))
    assert len(problem.plan.layers) == layers
    found = both_passes(lambda t: call(problem, "cuda", t), problem.tensors, cuda, products)
    assert found == ((layers, layers), (layers + 2, 2 * layers))


# ---- what every order of threads, alignment and layout agree on ----

NETS = {
    "plain": Shape((37,), 7, (23, 18), 3, order="random", adds="all"),
    "residual": Shape((12,), 7, (24, 24), 2, True, order="random", adds="first"),
}


@pytest.mark.usefixtures("narrow_blocks")
@pytest.mark.parametrize("activation", ["tanh", "silu"])
@pytest.mark.parametrize("net", NETS)
def test_same_bits_in_any_order_of_threads(net, activation, dtype, cuda: Emulated) -> None:
    problem = draw(NETS[net])
    tensors, first = [t.to(dtype) for t in problem.tensors], None
    for order in ORDERS:
        with cuda.order(order):
            found = values_and_gradients(lambda t: call(problem, "cuda", t, activation), tensors)
        assert all(t.isfinite().all() for t in found)
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(found, first, strict=True)), order


@pytest.mark.parametrize("narrow", [False, True])
def test_off_by_one_element(narrow, dtype, cuda: Emulated, request: pytest.FixtureRequest) -> None:
    """Memory that 16 bytes at a time would miss gives the same bits as aligned memory."""
    if narrow:
        request.getfixturevalue("narrow_blocks")
    plan = LayerPlan(*degrees(24, 32), strict=False)
    tensors = [t.to(dtype) for t in draw_layer((9,), 24, 32)]
    moved = [torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for t in tensors]
    assert all(t.data_ptr() % 16 for t in moved)
    a, b = (values_and_gradients(lambda t: layer(t, plan, activation="elu"), given) for given in (tensors, moved))
    for i, (mine, its) in enumerate(zip(b, a, strict=True)):  # the library's own products may differ
        tolerance = 8 * torch.finfo(dtype).eps * its.abs().max().item()
        torch.testing.assert_close(mine, its, rtol=0, atol=tolerance, msg=lambda m, i=i: f"result {i}: {m}")


@pytest.mark.parametrize("name", ["three features", "residual", "many features, wide"])
def test_networks_that_are_not_cut(name, cuda: Emulated) -> None:
    """One block a layer: nothing is put in the order of the degrees."""
    problem = draw(SHAPES[name])
    assert all(len(blocks.blocks_of(p, 130)) == 1 for p in problem.plan.layers)
    for activation in ("relu", "gelu"):
        mine, its = (
            values_and_gradients(lambda t, b=backend, a=activation: call(problem, b, t, a), problem.tensors)
            for backend in ("cuda", "reference")
        )
        for a, b in zip(mine, its, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_a_network_of_more_layers_than_one_launch_packs(cuda: Emulated) -> None:
    problem = draw(Shape((3,), 2, (3,) * 18))
    mine, its = (values_and_gradients(lambda t, b=b: call(problem, b, t, "tanh"), problem.tensors)
                 for b in ("cuda", "reference"))  # fmt: skip
    for a, b in zip(mine, its, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def gradient_of_bias(g: Tensor) -> Tensor:
    x, w, b, r = (t.float() for t in draw_layer((g.shape[0],), 3, g.shape[1]))
    plan = LayerPlan(*degrees(3, g.shape[1]), strict=False)
    return torch.autograd.grad(layer([x, w, b.requires_grad_(), r], plan), b, g)[0]


def test_gradient_of_a_bias_over_many_rows(cuda: Emulated) -> None:
    g = torch.rand(9000, 5, generator=torch.Generator().manual_seed(2))
    assert_within_rule(gradient_of_bias(g), g.sum(0), g.double().sum(0))


def test_a_chain_of_float32_sums_is_short(cuda: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is added to 2^24 is lost, so each warp may lose the 31 ones of its first chain, and no more."""
    monkeypatch.setattr(net_cuda, "_BLOCKS", 2)
    g = torch.ones(9000, 5)
    g[:16] = 2.0**24  # the first row of each of 2 x 8 warps
    truth = g.double().sum(0)
    assert ((truth - gradient_of_bias(g)).abs() <= 16 * 31 + torch.finfo(torch.float32).eps * truth).all()


@pytest.mark.usefixtures("narrow_blocks")
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_numbers_of_16_bits(activation, precision, cuda: Emulated) -> None:
    """Products are rounded once, and what follows them once more: no more often than in plain PyTorch."""
    plan = LayerPlan(*degrees(43, 70), strict=False)
    tensors = [t.to(precision) for t in draw_layer((130,), 43, 70)]

    def results(backend: str, t: list[Tensor]) -> list[Tensor]:
        return values_and_gradients(
            lambda t: ops.masked_linear(*t[:3], plan, residual=t[3], activation=activation, backend=backend), t
        )

    exact = results("reference", [t.double() for t in tensors])
    for i, parts in enumerate(zip(results("cuda", tensors), results("reference", tensors), exact, strict=True)):
        assert parts[0].dtype == precision
        assert_within_rule(*parts, f"result {i}")


# ---- what is kept ----


@pytest.mark.usefixtures("narrow_blocks")
def test_tensors_of_a_plan_are_made_once_and_go_with_it(cuda: Emulated) -> None:
    plans = [LayerPlan(*degrees(43, 70), strict=False)]
    tensors = draw_layer((13,), 43, 70)
    gc.collect()
    others = len(blocks._kept)
    values_and_gradients(lambda t: layer(t, plans[0]), tensors)
    made = dict(blocks._kept[plans[0]])
    values_and_gradients(lambda t: layer(t, plans[0]), tensors)
    again = blocks._kept[plans[0]]
    assert made.keys() == again.keys() and all(again[k] is v for k, v in made.items())
    assert len(blocks._kept) == others + 1
    del plans[:]
    gc.collect()
    assert len(blocks._kept) == others


@pytest.mark.usefixtures("narrow_blocks")
@pytest.mark.parametrize("net", NETS)
def test_a_call_reads_nothing_back(net, cuda: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second one on nothing is copied to the device either: a graph can capture it."""
    problem = draw(NETS[net])
    run = functools.partial(values_and_gradients, lambda t: call(problem, "cuda", t, "gelu"))
    first = run(problem.tensors)
    wanted = weights(first[0])

    def fails(*_: object, **__: object) -> None:
        raise AssertionError("a host waits for this")

    leaves = [t.detach().requires_grad_() for t in problem.tensors]
    with monkeypatch.context() as patched:
        for name in ("item", "tolist", "numpy", "cpu", "to", "__bool__", "__int__", "__float__", "__index__"):
            patched.setattr(Tensor, name, fails)
        y = call(problem, "cuda", leaves, "gelu")
        found = torch.autograd.grad(y, leaves, wanted)
    assert all(torch.equal(a, b) for a, b in zip((y, *found), first, strict=True))


def test_a_weight_that_changes_is_packed_again(cuda: Emulated) -> None:
    plan = LayerPlan([1, 2], [1, 2], strict=False)
    x, w = torch.ones(3, 2), torch.ones(2, 2)
    with torch.no_grad():
        first = ops.masked_linear(x, w, None, plan, backend="cuda")
        w.data.mul_(2)
        assert torch.equal(ops.masked_linear(x, w, None, plan, backend="cuda"), 2 * first)


def test_its_reason_is_said(cuda: Emulated) -> None:
    x, w = torch.ones(3, 2), torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="autocast chooses the dtype"):
        ops.masked_linear(x, w, None, [1, 2], [1, 2], backend="cuda")


# ---- which backend auto tries first ----


def test_which_backend_is_first_on_a_gpu() -> None:
    """A rule of dtypes and sizes, which needs no GPU to be asked."""
    layer_first, net_first = (backends._firsts[op] for op in ("masked_linear", "made"))
    layer_spec = NetSpec(1, COUNTING, False, "identity", "relu")
    net_spec = NetSpec(2, MadePlan([range(1, 65), [i % 64 for i in range(1024)], range(1, 65)]), False, "relu")

    def asked(first: Any, spec: Any, rows: int, features: int, dtype: torch.dtype = torch.float32) -> str:
        return first(spec, [torch.empty(rows, features, dtype=dtype, device="meta")])

    before = torch.get_float32_matmul_precision()
    try:
        for precision, wanted in (("highest", "cuda"), ("high", "triton")):
            torch.set_float32_matmul_precision(precision)
            assert asked(layer_first, layer_spec, 8192, 1024) == wanted
            assert asked(layer_first, layer_spec, 8192, 1024, torch.float64) == "cuda"
            assert asked(layer_first, layer_spec, 8192, 1024, torch.bfloat16) == "triton"
    finally:
        torch.set_float32_matmul_precision(before)
    assert asked(layer_first, layer_spec, 64, 1024, torch.float64) == "reference"
    assert asked(net_first, net_spec, 65536, 64) == "reference"  # 64 inputs are one block
    deep = MadePlan([range(1, 65), *[[i % 64 for i in range(1024)]] * 2, range(1, 65)])
    assert asked(net_first, net_spec._replace(plan=deep), 65536, 64) == "cuda"
    assert layer_first(layer_spec, [torch.empty(1)]) == net_first(net_spec, [torch.empty(1)]) == "cpu"


def test_auto_takes_the_first_that_can(cuda: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = torch.ones(3, 2), torch.ones(2, 2)
    before = cuda.launches
    for name, launches in (("cuda", 1), ("triton", 0)):  # Triton cannot, and the CPU's comes next
        monkeypatch.setitem(backends._firsts, "masked_linear", lambda *_, n=name: n)
        ops.masked_linear(x, w, None, [1, 2], [1, 2], backend="auto")
        assert cuda.launches == before + launches
        before = cuda.launches
