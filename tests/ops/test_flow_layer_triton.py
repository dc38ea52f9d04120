"""Whole flow layers on Triton: the cases of `test_flow_layer`, what they launch, and what has no kernel there."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flowkernels import backends, compat, use_backend
from flowkernels.backends import BackendUnavailableError
from flowkernels.nets import ResidualNet
from flowkernels.ops import _triton
from flowkernels.ops.affine.scales import SCALES
from flowkernels.ops.flow_layer import FlowLayerSpec, flow_layer, split_of, triton
from flowkernels.ops.net.net import dense_net
from flowkernels.transforms import RQS, Affine, Coupling
from tests.ops.masked import ACTIVATIONS, assert_numbers, values_and_gradients
from tests.ops.spline import weights
from tests.ops.test_flow_layer import CASES, VIEWS, Case, assert_computes_in_float32, assert_same_bits, call, draw

pytestmark = pytest.mark.interpreted
LACKING = ("order linear", "normed", "normed, context")
HAD = [name for name in CASES if name not in LACKING]
DIRECTIONS = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


@pytest.fixture(autouse=True)
def can_run(device: torch.device) -> None:
    reason = _triton.why_not((torch.empty(1, device=device),))
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def on(device: torch.device) -> Any:
    """A case's tensors where they are tested, in a dtype."""
    return lambda c, dtype=torch.float32: [t.to(device, dtype) for t in draw(c)]


def found(c: Case, tensors: list[Tensor], inverse: bool = False, backend: str = "triton") -> list[Tensor]:
    """Values and every gradient."""
    return values_and_gradients(lambda t: call(c, t, inverse, backend), tensors)


# ---- numbers ----


MANY_BINS = ("more bins than are scanned", "any order, some neither seen nor mapped")  # each 30 s of the interpreter's
PRECISIONS = [("float32", name) for name in HAD if name not in MANY_BINS]
PRECISIONS += [("float64", name) for name in ("usual", "circular, context", "sees what it maps", "deep")]


@pytest.mark.parametrize(("precision", "case"), PRECISIONS)
@DIRECTIONS
def test_numbers(precision, case, inverse, on) -> None:
    c = CASES[case]

    def f(backend: str, tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
        return call(c, tensors, inverse, backend)

    tensors, dtype = on(c, torch.float64), getattr(torch, precision)
    assert_numbers(f, tensors, "flow_layer", dtype, ["triton"], shared=True, only=["triton"])


@pytest.mark.parametrize("case", MANY_BINS)
@DIRECTIONS
def test_many_bins(case, inverse, on) -> None:
    c = CASES[case]
    tensors = on(c, torch.float64)
    mine, wanted = (found(c, tensors, inverse, b) for b in ("triton", "reference"))
    for i, (a, b) in enumerate(zip(mine, wanted, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * b.abs().max().item(), msg=lambda m, i=i: f"{i}: {m}")


@pytest.mark.parametrize("case", ["usual", "circular, context", "no rows"])
@DIRECTIONS
def test_16_bits_compute_in_float32(case, inverse, dtype, on) -> None:
    c = CASES[case]
    assert_computes_in_float32(c, on(c, dtype), inverse, "triton")


def layer_of(
    f: Any, widths: tuple[int, ...], residual: bool, activation: str, rows: int = 37, context: int = 0
) -> tuple[Any, list[Tensor]]:
    """(backend, tensors) -> results of a layer that sees two of six features and maps three; its float64 tensors."""
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    sizes = [*itertools.pairwise((2 + context * (not residual), *widths, 3 * f.n_params))]
    tensors = [randn(rows, 6)] + [randn(rows, context)] * bool(context)
    for n_in, n_out in sizes:
        tensors += [randn(n_out, n_in) / n_in**0.5, 0.5 * randn(n_out)]

    def run(backend: str, t: list[Tensor]) -> tuple[Tensor, Tensor]:
        at = 1 + bool(context)
        pairs = list(zip(t[at::2], t[at + 1 :: 2], strict=True))
        return flow_layer(
            t[0], pairs, f, split_of(6, (4, 1), (0, 5, 3)), context=t[1] if context else None, residual=residual,
            activation=activation, backend=backend,
        )  # fmt: skip

    return run, tensors


def assert_the_reference(run: Any, tensors: list[Tensor], device: torch.device, rtol: float = 1e-9) -> None:
    given = [t.to(device) for t in tensors]
    mine, wanted = (values_and_gradients(functools.partial(run, b), given) for b in ("triton", "reference"))
    for i, (a, b) in enumerate(zip(mine, wanted, strict=True)):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item(), msg=lambda m, i=i: f"{i}: {m}")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shift_first", [False, True], ids=["scale | shift", "shift | scale"])
@DIRECTIONS
def test_affine_maps(scale, shift_first, inverse, device) -> None:
    settings = {"log_bounds": (-0.2, 0.3)} if scale == "clip" else {}
    f = Affine(scale, shift_first=shift_first, inverse=inverse, **settings)
    assert_the_reference(*layer_of(f, (9, 9, 9), True, "relu"), device)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_activations(activation, residual, device) -> None:
    assert_the_reference(*layer_of(RQS(bins=4), (17,) * 5, residual, activation), device)


@pytest.mark.parametrize("widths", [(5,), (33, 7, 18), (1, 40)])
@pytest.mark.parametrize("context", [0, 3])
@DIRECTIONS
def test_plain_nets(widths, context, inverse, device) -> None:
    f = RQS(bins=9, tails="circular", inverse=inverse)
    assert_the_reference(*layer_of(f, widths, False, "tanh", context=context), device)


def test_features_that_are_not_mapped_keep_their_bits(on) -> None:
    c = CASES["any order, some neither seen nor mapped"]
    tensors = on(c)
    y, _ = call(c, tensors, backend="triton")
    kept = [i for i in range(c.D) if i not in c.outputs]
    assert torch.equal(y[:, kept], tensors[0][:, kept]) and not (y[:, c.outputs] == tensors[0][:, c.outputs]).all()


# ---- where it reads and writes ----


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_gives_the_bits_of_its_copy(view, on) -> None:
    c = CASES["usual"]
    tensors = on(c)
    dense = found(c, tensors)
    for i, t in enumerate(tensors):
        if t.dim() == 2 or view == "negative bit":
            seen = VIEWS[view](t)
            assert torch.equal(seen, t)
            assert_same_bits(found(c, [*tensors[:i], seen, *tensors[i + 1 :]]), dense)


def test_gradients_of_any_layout(on) -> None:
    c = CASES["usual"]
    tensors = on(c)
    x = tensors[0].requires_grad_()
    y, ladj = call(c, tensors, backend="triton")
    g, gl = torch.randn_like(y), torch.randn_like(ladj)
    (wanted,) = torch.autograd.grad([y, ladj], x, [g, gl], retain_graph=True)
    for view in ("transposed", "every second column", "negative bit"):
        (grad,) = torch.autograd.grad([y, ladj], x, [VIEWS[view](g), gl], retain_graph=True)
        assert torch.equal(grad, wanted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@DIRECTIONS
def test_a_bad_value_stays_in_its_row(bad, inverse, on) -> None:
    c = CASES["more units than a tile has rows"]
    tensors = on(c)
    clean = found(c, tensors, inverse)
    for row, column in ((0, 0), (64, 30)):
        wrong = [tensors[0].clone(), *tensors[1:]]
        wrong[0][row, column] = bad
        others = [i for i in range(65) if i != row]
        seen = found(c, wrong, inverse)
        for i in (0, 1, 2):  # y, ladj, the gradient of x
            assert torch.equal(seen[i][others], clean[i][others])
        if column in c.inputs and bad != bad:
            assert seen[1][row].isnan() and seen[0][row].isnan().any()


def test_a_bad_weight_reaches_every_row_and_raises_nothing(on) -> None:
    c = CASES["usual"]
    tensors = on(c)
    tensors[1][0, 0] = float("nan")
    y, ladj = call(c, tensors, backend="triton")
    assert ladj.isnan().all() and torch.equal(y[:, ::2], tensors[0][:, ::2])


def test_same_bits_twice(on) -> None:
    for name in ("usual", "circular, context"):
        c = CASES[name]
        tensors = on(c)
        assert_same_bits(found(c, tensors), found(c, tensors))


def test_only_some_gradients_wanted(on) -> None:
    c = CASES["circular, context"]
    tensors = on(c)
    every = found(c, tensors)
    for wanted in [[i] for i in range(len(tensors))] + [[0, 3], [2, len(tensors) - 1]]:
        leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
        outputs = call(c, leaves, backend="triton")
        grads = torch.autograd.grad(outputs, [leaves[i] for i in wanted], [weights(o) for o in outputs])
        assert_same_bits([*grads], [every[2 + i] for i in wanted])


@pytest.mark.parametrize("used", [0, 1], ids=["y only", "ladj only"])
def test_only_one_output_used(used, on) -> None:
    c, grads = CASES["circular, context"], []
    for backend in ("triton", "reference"):
        leaves = [t.requires_grad_() for t in on(c, torch.float64)]
        grads.append(torch.autograd.grad(call(c, leaves, backend=backend)[used].square().sum(), leaves))
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


# ---- launches ----


class Launches(list[str]):
    """The kernels that are launched, by name; where they are only `noted`, none runs."""

    noted = False


@pytest.fixture
def launches(monkeypatch) -> Launches:
    names, launch = Launches(), _triton.launch

    def note(kernel: Any, *args: Any, **kwargs: Any) -> None:
        names.append(kernel.__name__)
        if not names.noted:
            launch(kernel, *args, **kwargs)

    monkeypatch.setattr(_triton, "launch", note)
    return names


class Noted(TorchDispatchMode):
    """Names of torch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


ROOM = {"empty", "new_empty", "view", "split", "split_with_sizes", "promote_types"}
FORWARD, BACKWARD = ["layer_fwd"], ["layer_bwd", "layer_weights"]


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@DIRECTIONS
def test_one_launch_forward_and_two_or_three_backward(residual, inverse, device, launches, monkeypatch) -> None:
    """And torch launches nothing: it makes room and views."""
    _, tensors = layer_of(RQS(bins=8, inverse=inverse), (9,) * 5, residual, "relu")
    x, *rest = [t.to(device, torch.float32) for t in tensors]
    net = dense_net(list(zip(rest[::2], rest[1::2], strict=True)), residual, "relu", 2, x.shape[:-1], None)
    spec, every = FlowLayerSpec(split_of(6, (4, 1), (0, 5, 3)), RQS(bins=8, inverse=inverse), net.spec), (x, *rest)
    y, ladj = triton.fwd(spec, *every)  # tables are made
    wanted = triton.bwd(spec, (y, ladj), every, [True] * len(every))
    launches.clear()
    launches.noted = True
    torch.use_deterministic_algorithms(False)  # or torch fills what it makes room for
    with torch.no_grad(), Noted() as noted:
        triton.fwd(spec, *every)
        triton.bwd(spec, (y, ladj), every, [True] * len(every))
    assert launches == FORWARD + BACKWARD and noted.names <= ROOM
    launches.clear()
    launches.noted = False
    monkeypatch.setattr(triton, "_OF_SPLIT", 10)
    of_shares = triton.bwd(spec, (y, ladj), every, [True] * len(every))
    assert launches == [*BACKWARD, "layer_sums"]
    for a, b in zip(of_shares, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_many_rows_are_several_launches_of_the_same_numbers(device, launches, monkeypatch) -> None:
    monkeypatch.setattr(triton, "_LAUNCHED", 2 * triton._ROWS)
    rows = 4 * triton._ROWS + 5
    run, tensors = layer_of(RQS(bins=3), (5, 5, 5), True, "relu", rows=rows)
    given = [t.to(device, torch.float32) for t in tensors]
    y, ladj = run("triton", given)
    assert launches == FORWARD * 3
    monkeypatch.undo()
    assert_same_bits([y, ladj], [*run("triton", given)])


def test_only_x_wants_a_gradient(device, launches) -> None:
    run, tensors = layer_of(RQS(bins=8), (9, 9, 9), True, "relu")
    x, *rest = [t.to(device, torch.float32) for t in tensors]
    y, ladj = run("triton", [x.requires_grad_(), *rest])
    (y.sum() + ladj.sum()).backward()
    assert launches == ["layer_fwd", "layer_bwd"]


# ---- layers on the op ----


@pytest.mark.parametrize("context", [0, 3])
@DIRECTIONS
def test_a_coupling_is_one_launch(context, inverse, device, launches) -> None:
    torch.manual_seed(0)
    layer = Coupling((0, 1, 1, 0, 1), lambda i, o: ResidualNet(i, o, hidden=24, context=context), RQS()).to(device)
    given = [torch.randn(37, 5, device=device)] + [torch.randn(37, context, device=device)] * bool(context)

    def run(t: list[Tensor]) -> tuple[Tensor, Tensor]:
        return layer.inverse(*t) if inverse else layer(*t)

    with use_backend("triton"):
        mine = values_and_gradients(run, given)
    assert launches == ["layer_fwd", "layer_bwd", "layer_weights"]
    with use_backend("reference"):
        torch.testing.assert_close(mine, values_and_gradients(run, given), rtol=1e-3, atol=1e-4)
    assert len(launches) == 3


@pytest.mark.parametrize("kind", ["PiecewiseRationalQuadraticCouplingTransform", "AffineCouplingTransform"])
def test_an_accelerated_coupling_is_one_launch(kind, device, launches) -> None:
    """Of the affine one the last layer's rows are turned before."""
    transforms = pytest.importorskip("nflows.transforms")
    from nflows.nn.nets import ResidualNet as TheirNet

    settings = {"num_bins": 8, "tails": "linear", "tail_bound": 3.0} if "Quadratic" in kind else {}
    layer: Any = getattr(transforms, kind)([0, 1] * 3, lambda i, o: TheirNet(i, o, hidden_features=16), **settings)
    layer, x = layer.to(device), torch.randn(37, 6, device=device)
    with torch.no_grad():
        wanted = layer(x), layer.inverse(x)
        assert compat.accelerate(layer).accelerated
        with use_backend("triton"):
            torch.testing.assert_close((layer(x), layer.inverse(x)), wanted, rtol=1e-3, atol=1e-4)
    assert launches == ["layer_fwd"] * 2


def test_large_calls_are_the_librarys() -> None:
    """On a GPU, by default, the parts run where products take longer than launches."""
    given = of_net(128)
    layers = [(a.to("meta"), b.to("meta")) for a, b in given["layers"]]
    net = dense_net(layers, True, "relu", 1, (1,), None)
    spec = FlowLayerSpec(given["split"], given["univariate"], net.spec)
    firsts = {rows: backends._firsts["flow_layer"](spec, (torch.empty(rows, 2, device="meta"), *net.tensors))
              for rows in (1, 1000, 1 << 20)}  # fmt: skip
    assert firsts == {1: "triton", 1000: "triton", 1 << 20: "reference"}
    assert backends._firsts["flow_layer"](spec, (torch.empty(1, 2), *net.tensors)) == "cpu"


# ---- what has no kernel there ----


def of_net(hidden: int = 8, n: int = 4, **more: Any) -> dict[str, Any]:
    sizes = [*itertools.pairwise((1, *[hidden] * (n - 1), 8))]
    layers = [(torch.zeros(b, a), torch.zeros(b)) for a, b in sizes]
    return {"layers": layers, "univariate": RQS(bins=3), "split": split_of(2, (0,), (1,)), **more}


REFUSED = {
    "a layer has more than 256 units": of_net(257),
    "the net has 18 layers, not from 2 to 16": of_net(n=18),
    "no kernel for norms": of_net(norms=[(torch.ones(8), torch.ones(8))] * 2),
    "no kernel for circle_shift": of_net(univariate=RQS(bins=3, tails="circular", circle_shift=True)),
    "no kernel for splines of order": of_net(univariate=RQS(bins=3, order="linear")),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_it_refuses(why, device) -> None:
    given = dict(REFUSED[why])
    if given["univariate"].n_params != 8:
        (weight, bias), n = given["layers"][-1], given["univariate"].n_params
        given["layers"] = [*given["layers"][:-1], (weight.new_zeros(n, weight.shape[1]), bias.new_zeros(n))]
    given["layers"] = [(a.to(device), b.to(device)) for a, b in given["layers"]]
    if "norms" in given:
        given["norms"] = [(a.to(device), b.to(device)) for a, b in given["norms"]]
    x = torch.randn(5, 2, device=device)
    with pytest.raises(BackendUnavailableError, match=f"cannot run on backend 'triton': {why}"):
        flow_layer(x, **given, backend="triton")


def test_doubles_have_fewer_units(device) -> None:
    given = of_net(triton.MOST_UNITS_OF_DOUBLES + 1)
    layers = [(a.to(device).double(), b.to(device).double()) for a, b in given.pop("layers")]
    with pytest.raises(BackendUnavailableError, match="a layer has more than 64 units"):
        flow_layer(torch.zeros(5, 2, device=device).double(), layers, **given, backend="triton")


def test_an_older_triton_is_refused(device, monkeypatch) -> None:
    monkeypatch.setattr(_triton, "version", lambda: (3, 3))
    given = of_net()
    layers = [(a.to(device), b.to(device)) for a, b in given.pop("layers")]
    with pytest.raises(BackendUnavailableError, match=r"a flow layer needs Triton 3.4 or newer, and this is 3.3"):
        flow_layer(torch.zeros(5, 2, device=device), layers, **given, backend="triton")
