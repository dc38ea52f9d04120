"""Monotone networks: their derivatives, their inverse, zuko's of the same weights, kernels beside plain PyTorch."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import _native, ops
from flowkernels.ops import _triton
from flowkernels.ops.monotone_net.reference import SLOPES
from flowkernels.ops.monotone_net.spec import INCREASING, rule
from flowkernels.ops.net.activations import FUNCTIONS
from tests.device import here
from tests.numbers import assert_within_rule
from tests.ops.gate import assert_refused

Layers = list[tuple[Tensor, Tensor]]
FORMS = pytest.mark.parametrize("form", ["integral", "positive"])
WAYS = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
# The reference, what runs by itself, CUDA's kernels on the CPU.
BACKENDS = pytest.mark.parametrize("backend", ["reference", None, "cuda"], ids=["reference", "fastest", "cuda"])
# The emulator would take minutes.
WITHOUT_CUDA = pytest.mark.parametrize("backend", ["reference", None], ids=["reference", "fastest"])
SLOWLY = pytest.mark.filterwarnings("ignore::flowkernels.backends.SlowPathWarning")  # some cases have no kernel
COMPILED = pytest.mark.skipif(_native.C is None, reason="no compiled module")
f64 = torch.float64
EMULATED = True  # tests of instruction sets run on CUDA's kernels, too
pytestmark = pytest.mark.usefixtures("kernels", "one_thread")


def layers_of(*units: int, D: int | None = 3, S: int = 2, seed: int = 0, scale: float = 1.0) -> Layers:
    """Of a network for each of D features, or one for all."""
    g = torch.Generator().manual_seed(seed)
    sets = () if D is None else (D,)

    def randn(*shape: int) -> Tensor:
        return here(torch.randn(*sets, *shape, generator=g, dtype=f64, device="cpu"))

    sizes = [1 + S, *units, 1]
    return [(scale * randn(b, a) / math.sqrt(a), 0.3 * randn(b)) for a, b in itertools.pairwise(sizes)]


def drawn(*shape: int, seed: int = 1, scale: float = 1.0) -> Tensor:
    return here(scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=f64, device="cpu"))


def cast(layers: Layers, dtype: torch.dtype) -> Layers:
    return [(w.to(dtype), b.to(dtype)) for w, b in layers]


# ---- what it is ----


@FORMS
@BACKENDS
@SLOWLY
@pytest.mark.parametrize("units", [(), (5,), (7, 4), (13, 25, 6)], ids=str)
@pytest.mark.parametrize("D", [3, None], ids=["each", "shared"])
@pytest.mark.parametrize("shift", [False, True])
def test_ladj_is_the_logarithm_of_the_jacobian_and_the_inverse_its_inverse(form, backend, units, D, shift) -> None:
    if backend == "cuda" and not units:
        pytest.skip("no kernel for one layer")
    layers, x, signal = layers_of(*units, D=D), drawn(40, 3), drawn(40, 3, 2 + shift)
    settings = {"form": form, "shift": shift, "backend": backend}
    y, ladj = ops.monotone_net(x, signal, layers, **settings)
    J = torch.autograd.functional.jacobian(
        lambda v: ops.monotone_net(v, signal, layers, **settings)[0].sum(0), x
    ).movedim(1, 0)
    assert (J - torch.diag_embed(J.diagonal(dim1=1, dim2=2))).abs().max() == 0
    torch.testing.assert_close(torch.linalg.slogdet(J)[1], ladj, rtol=1e-12, atol=1e-12)
    back, negative = ops.monotone_net(y, signal, layers, **settings, inverse=True)
    torch.testing.assert_close(back, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(negative, -ladj, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("activation", SLOPES)
def test_the_slopes_are_the_derivatives_of_the_activations(activation) -> None:
    z = drawn(200, scale=3.0).requires_grad_()
    (slope,) = torch.autograd.grad(FUNCTIONS[activation](z).sum(), z)
    torch.testing.assert_close(SLOPES[activation](z), slope)


@BACKENDS
@pytest.mark.parametrize("nodes", [1, 2, 7, 32, 65, 128])
def test_the_quadrature(nodes, backend) -> None:
    layers, x, signal = layers_of(6), drawn(9, 3), drawn(9, 3, 2)
    y, _ = ops.monotone_net(x, signal, layers, nodes=nodes, activation="tanh", backend=backend)
    t, w = (torch.tensor(r, dtype=f64) for r in rule(nodes))
    assert torch.allclose(w.sum(), torch.ones((), dtype=f64))
    (w1, b1), (w2, b2) = layers
    total = torch.zeros_like(x)
    for a, b in zip(t, w, strict=True):
        z = torch.einsum("bds,dos->bdo", torch.cat(((a * x).unsqueeze(-1), signal), -1), w1) + b1
        u = ((z.tanh() * w2.squeeze(1)).sum(-1) + b2.squeeze(-1))  # fmt: skip
        total = total + b * torch.exp(u / (1 + (u / 7).abs()))
    torch.testing.assert_close(y, x * total, rtol=1e-12, atol=1e-12)


@SLOWLY
@pytest.mark.parametrize("nodes", [2, 5])
def test_the_slope_of_the_quadrature(nodes) -> None:
    """By name the ladj is that of the sum, not of the integral that it is near to."""
    layers, x, signal = layers_of(6), drawn(9, 3), drawn(9, 3, 2)
    x.requires_grad_()
    y, ladj = ops.monotone_net(x, signal, layers, nodes=nodes, slope="quadrature")
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope.log().sum(-1), ladj, rtol=1e-12, atol=1e-12)
    exact = ops.monotone_net(x, signal, layers, nodes=nodes)[1]
    assert (exact - ladj).abs().max() > 1e-6
    back, _ = ops.monotone_net(y.detach(), signal, layers, nodes=nodes, slope="quadrature", inverse=True)
    torch.testing.assert_close(back, x.detach(), rtol=1e-12, atol=1e-12)


@FORMS
@BACKENDS
def test_zukos_networks_of_the_same_weights(form, backend) -> None:
    """Values, ladj and every gradient, those of the weights too; the inverse to what bisection finds."""
    neural = pytest.importorskip("zuko.flows.neural")
    torch.manual_seed(0)
    D, S = 3, 5
    theirs = (neural.UMNN if form == "integral" else neural.MNN)(signal=S, stack=D, hidden_features=(16, 9)).double()
    layers = [(m.weight, m.bias) for m in theirs.modules() if hasattr(m, "weight")]
    x, signal, constant = (
        drawn(*shape, seed=i).requires_grad_() for i, shape in enumerate([(20, D), (20, D, S), (20, D)])
    )
    given = (signal, constant) if form == "integral" else (signal,)
    transform = theirs(*given)
    expected, ladj = transform.call_and_ladj(x)
    whole = torch.cat((signal, constant.unsqueeze(-1)), -1) if form == "integral" else signal
    settings: dict[str, Any] = {"form": form, "shift": form == "integral", "backend": backend}
    y, ours = ops.monotone_net(x, whole, layers, **settings)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(ours, ladj.sum(-1))
    leaves = [x, *given, *(t for layer in layers for t in layer)]
    weight = drawn(20, D, seed=7)
    wanted = torch.autograd.grad((expected * weight).sum() + (ladj.sum(-1) * weight[:, 0]).sum(), leaves)
    found = torch.autograd.grad((y * weight).sum() + (ours * weight[:, 0]).sum(), leaves)
    torch.testing.assert_close(found, wanted)
    inverse = transform.inv(expected.detach())
    back, _ = ops.monotone_net(expected.detach(), whole, layers, **settings, inverse=True)
    torch.testing.assert_close(back, x.detach(), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(back, inverse, rtol=0.0, atol=2e-6)
    wanted = torch.autograd.grad((inverse * weight).sum(), leaves[1:])
    found = torch.autograd.grad((back * weight).sum(), leaves[1:])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


# ---- derivatives ----


@pytest.mark.thinned(2)
@FORMS
@WAYS
@WITHOUT_CUDA
@pytest.mark.parametrize("shift", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradients(form, inverse, backend, shift) -> None:
    layers, x, signal = layers_of(3, 2, D=2), drawn(2, 2), drawn(2, 2, 2 + shift)
    layers[-1] = (0.5 * layers[-1][0], layers[-1][1] + 3)  # where u / (1 + |u|) is smooth, and so is its quadrature
    settings = {"form": form, "activation": "tanh", "inverse": inverse, "shift": shift, "backend": backend}
    if inverse:  # where an x is
        x = ops.monotone_net(x, signal, layers, **{**settings, "inverse": False})[0]
    leaves = [t.detach().requires_grad_() for t in (x, signal, *(t for layer in layers for t in layer))]

    def call(x: Tensor, signal: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return ops.monotone_net(x, signal, list(zip(tensors[::2], tensors[1::2], strict=True)), **settings)

    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=inverse)  # in full it takes ten times as long


@pytest.mark.usefixtures("machine")
@WAYS
@pytest.mark.parametrize("activation", ["gelu", "silu", "elu", "leaky_relu", "relu", "identity"])
def test_gradients_of_activations(activation, inverse) -> None:
    """Those of the kernels are those of the reference, whose activations' are torch's."""
    for form in ("integral", "positive") if activation in INCREASING else ("integral",):
        layers, x, signal = layers_of(9, 8, 13), drawn(30, 3), drawn(30, 3, 2)
        leaves = [t.requires_grad_() for t in (x, signal, *(t for layer in layers for t in layer))]
        found = []
        for backend in ("reference", None):
            y, ladj = ops.monotone_net(
                x, signal, layers, form=form, activation=activation, inverse=inverse, backend=backend
            )
            found.append(
                [y, ladj, *torch.autograd.grad((y * y.detach().cos()).sum() + (ladj * ladj.detach()).sum(), leaves)]
            )
        torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("machine")
@FORMS
@WAYS
def test_some_gradients_alone(form, inverse) -> None:
    layers, x, signal = layers_of(9, 8), drawn(30, 3), drawn(30, 3, 2)
    tensors = [x, signal, *(t for layer in layers for t in layer)]

    def run(wanted: list[int], which: int) -> list[Tensor]:
        leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
        rest = leaves[2:]
        out = ops.monotone_net(*leaves[:2], list(zip(rest[::2], rest[1::2], strict=True)), form=form, inverse=inverse)
        return list(torch.autograd.grad(out[which].sum(), [leaves[i] for i in wanted], allow_unused=True))

    for which in (0, 1):
        every = run(list(range(len(tensors))), which)
        for some in ([0], [1], [2], [3], [len(tensors) - 1], [0, 5]):
            for i, g in zip(some, run(some, which), strict=True):
                assert torch.equal(g, every[i])


@pytest.mark.thinned(2)
@FORMS
@WAYS
@WITHOUT_CUDA
def test_transforms_and_compilers(form, inverse, backend) -> None:
    layers, x, signal = layers_of(4), drawn(4, 3), drawn(4, 3, 2)

    def call(x: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
        return ops.monotone_net(x, signal, layers, form=form, inverse=inverse, backend=backend)

    expected = call(x, signal)
    torch.testing.assert_close(torch.func.vmap(call)(x, signal), expected)
    J = torch.func.jacfwd(lambda v: call(v, signal[0])[0])(x[0])
    torch.testing.assert_close(torch.linalg.slogdet(J)[1], expected[1][0])
    J = torch.func.jacrev(lambda v: call(v, signal[0])[0])(x[0])
    torch.testing.assert_close(torch.linalg.slogdet(J)[1], expected[1][0])
    torch._dynamo.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    leaves = [t.requires_grad_() for t in (x, signal)]
    y, ladj = compiled(*leaves)
    torch.testing.assert_close((y, ladj), expected)
    found = torch.autograd.grad(y.sum() + ladj.sum(), leaves)
    torch.testing.assert_close(found, torch.autograd.grad(sum(t.sum() for t in call(*leaves)), leaves))


@FORMS
@WAYS
def test_export(form, inverse) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = torch.nn.ParameterList(t for layer in layers_of(4) for t in layer)

        def forward(self, x: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
            t = list(self.weights)
            return ops.monotone_net(x, signal, list(zip(t[::2], t[1::2], strict=True)), form=form, inverse=inverse)

    x, signal, model = drawn(4, 3), drawn(4, 3, 2), Model()
    found = torch.export.export(model, (x, signal)).module()(x, signal)
    torch.testing.assert_close(found, model(x, signal))


@pytest.mark.interpreted(
    "(5,)-elu-False-forward-integral", "(5,)-elu-False-inverse-integral", "(5,)-elu-False-forward-positive",
    "(5,)-elu-False-inverse-positive", "(6, 3, 4)-gelu-True-forward-integral", "(40, 7)-tanh-True-forward-positive",
)  # fmt: skip
@FORMS
@WAYS
@pytest.mark.parametrize(
    ("units", "activation", "each"), [((5,), "elu", False), ((40, 7), "tanh", True), ((6, 3, 4), "gelu", True)], ids=str
)
def test_triton(form, inverse, units, activation, each, device) -> None:
    """Values and all gradients, in float64, beside the reference's."""
    reason = _triton.why_not((torch.empty(1, device=device),))
    if reason is not None or (form == "positive" and activation not in INCREASING):
        pytest.skip(reason or "no such network")
    layers = [t for layer in layers_of(*units, D=2 if each else None, S=3) for t in layer]
    leaves = [t.to(device).requires_grad_() for t in (drawn(19, 2), drawn(19, 2, 4), *layers)]
    found = []
    for backend in ("triton", "reference"):
        rest = leaves[2:]
        y, ladj = ops.monotone_net(
            *leaves[:2], list(zip(rest[::2], rest[1::2], strict=True)), form=form, activation=activation, nodes=4,
            shift=True, inverse=inverse, backend=backend,
        )  # fmt: skip
        found.append([y, ladj, *torch.autograd.grad([y, ladj], leaves, [y.detach().cos(), ladj.detach()])])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-10)


# ---- values ----


@pytest.mark.thinned(2)
@pytest.mark.interpreted("(12,)-forward-integral", "(24, 24)-forward-positive", "(12,)-inverse-positive")
@FORMS
@WAYS
@pytest.mark.parametrize("units", [(12,), (24, 24), (64, 64)], ids=str)
def test_numbers(all_isas, form, inverse, units) -> None:
    """Values and gradients in float32, on every instruction set, beside the eager reference's."""
    layers, x, signal = layers_of(*units, S=4), drawn(150, 3), drawn(150, 3, 4)
    weights = [drawn(150, 3, seed=8), drawn(150, seed=9)]
    eps = torch.finfo(torch.float32).eps
    inputs = [t.float() for t in (x, signal, *(t for layer in layers for t in layer))]

    def run(given: list[Tensor], dtype: torch.dtype, backend: str | None = "reference") -> list[Tensor]:
        x, signal, *rest = (t.to(dtype).requires_grad_() for t in given)
        y, ladj = ops.monotone_net(
            x, signal, list(zip(rest[::2], rest[1::2], strict=True)), form=form, inverse=inverse, backend=backend
        )
        grads = torch.autograd.grad([y, ladj], [x, signal, *rest], [w.to(dtype) for w in weights])
        # A layer's together: of three biases there are no percentiles.
        of_layers = [torch.cat([t.flatten() for t in grads[k : k + 2]]) for k in range(2, len(grads), 2)]
        return [t.detach().double() for t in (y, ladj, *grads[:2], *of_layers)]

    truth, eager = run(inputs, f64), run(inputs, torch.float32)
    moves = [torch.zeros_like(t) for t in truth]
    draws = [(e - t).abs() for e, t in zip(eager, truth, strict=True)]
    for seed in range(3):  # inputs rounded once more, either way, and eager's error there
        g = torch.Generator().manual_seed(seed)
        near = [t.double() * (1 + eps / 2 * torch.randn(t.shape, generator=g).sign()) for t in inputs]
        moves = [torch.maximum(m, (a - b).abs()) for m, a, b in zip(moves, run(near, f64), truth, strict=True)]
        near = [t.float() for t in near]
        pairs = zip(run(near, torch.float32), run(near, f64), strict=True)
        draws = [torch.maximum(d, (a - b).abs()) for d, (a, b) in zip(draws, pairs, strict=True)]
    names = ["y", "ladj", "grad x", "grad signal", *(f"grad layer {k}" for k in range(len(layers)))]
    for isa in all_isas:
        for i, t in enumerate(run(inputs, torch.float32, None)):
            condition = moves[i], draws[i]
            assert_within_rule(t, eager[i], truth[i], f"{isa}: {names[i]}", condition=condition, dtype=torch.float32)


@FORMS
@WAYS
@BACKENDS
def test_dtypes(form, inverse, backend, dtype) -> None:
    layers = cast(layers_of(5, 4), dtype)
    x, signal = drawn(6, 3).to(dtype), drawn(6, 3, 2).to(dtype)
    y, ladj = ops.monotone_net(x, signal, layers, form=form, inverse=inverse, backend=backend)
    exact = ops.monotone_net(x.double(), signal.double(), cast(layers, f64), form=form, inverse=inverse)
    assert y.dtype is dtype and ladj.dtype is torch.promote_types(dtype, torch.float32)
    # What 16 roundings of 1 + |y| in float32 are in x, where the slope is small.
    at = (exact[0] if inverse else x.double()).detach().requires_grad_()
    forward, _ = ops.monotone_net(at, signal.double(), cast(layers, f64), form=form)
    (slope,) = torch.autograd.grad(forward.sum(), at)
    own = 16 * torch.finfo(torch.float32).eps * (1 + forward.abs()) / (slope if inverse else 1)
    assert ((y.double() - exact[0]).abs() <= 2 * torch.finfo(dtype).eps * exact[0].abs() + own).all()
    torch.testing.assert_close(ladj.double(), exact[1], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("machine")
@FORMS
@WAYS
@pytest.mark.parametrize("lead", [(), (0,), (1,), (2, 3), (4, 0, 2), (129,), (2, 1, 2, 1, 2, 1, 2, 1, 2)], ids=str)
def test_shapes(form, inverse, lead) -> None:
    layers, x, signal = layers_of(5), drawn(*lead, 3), drawn(*lead, 3, 2)
    found = ops.monotone_net(x, signal, layers, form=form, inverse=inverse)
    expected = ops.monotone_net(x, signal, layers, form=form, inverse=inverse, backend="reference")
    assert found[0].shape == x.shape and found[1].shape == lead
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    leaves = [t.requires_grad_() for t in (x, signal, *(t for layer in layers for t in layer))]
    y, ladj = ops.monotone_net(x, signal, layers, form=form, inverse=inverse)
    grads = torch.autograd.grad(y.sum() + ladj.sum(), leaves)
    assert all(g.shape == t.shape and g.isfinite().all() for g, t in zip(grads, leaves, strict=True))


@pytest.mark.usefixtures("machine")
@FORMS
@WAYS
def test_no_features_and_no_signal(form, inverse) -> None:
    y, ladj = ops.monotone_net(
        torch.zeros(4, 0), torch.zeros(4, 0, 2), cast(layers_of(5, D=None), torch.float32), form=form
    )
    assert y.shape == (4, 0) and torch.equal(ladj, torch.zeros(4))
    layers, x = layers_of(5, S=0), drawn(7, 3)
    settings = {"form": form, "inverse": inverse}
    leaves = [t.requires_grad_() for t in (x, *(t for layer in layers for t in layer))]
    found = [ops.monotone_net(x, drawn(7, 3, 0), layers, **settings, backend=b) for b in (None, "reference")]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*[torch.autograd.grad(y.sum() + ladj.sum(), leaves) for y, ladj in found])


@pytest.mark.usefixtures("machine")
@FORMS
@WAYS
def test_strides(form, inverse) -> None:
    layers, x, signal = layers_of(5), drawn(6, 3), drawn(6, 3, 2)
    expected = ops.monotone_net(x, signal, layers, form=form, inverse=inverse)
    spread = [t.repeat_interleave(2, -1)[..., ::2] for t in (x, signal)]
    turned = [(w.mT.contiguous().mT, b.repeat_interleave(2, -1)[..., ::2]) for w, b in layers]
    found = ops.monotone_net(*spread, turned, form=form, inverse=inverse)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    expanded = signal[:1].expand(6, 3, 2)
    torch.testing.assert_close(
        ops.monotone_net(x, expanded, layers, form=form, inverse=inverse),
        ops.monotone_net(x, expanded.contiguous(), layers, form=form, inverse=inverse),
    )


@pytest.mark.interpreted("fastest-forward-positive", "fastest-inverse-positive")
@FORMS
@WAYS
@BACKENDS
def test_a_bad_value_stays_in_its_row(form, inverse, backend) -> None:
    layers, x, signal = layers_of(9, 8), drawn(40, 3), drawn(40, 3, 2)
    clean = ops.monotone_net(x, signal, layers, form=form, inverse=inverse, backend=backend)
    x[2, 0], signal[4, 1, 0] = torch.nan, torch.nan
    seen = ops.monotone_net(x, signal, layers, form=form, inverse=inverse, backend=backend)
    rest = [i for i in range(40) if i not in (2, 4)]
    for a, b in zip(seen, clean, strict=True):
        assert torch.equal(a[rest], b[rest])
    assert seen[0][2, 0].isnan() and seen[0][4, 1].isnan() and seen[1][[2, 4]].isnan().all()
    assert torch.equal(seen[0][2, 1:], clean[0][2, 1:])


@FORMS
@WAYS
@pytest.mark.parametrize("wide", [torch.float32, f64], ids=["f32", "f64"])
def test_a_row_does_not_depend_on_its_batch(all_isas, form, inverse, wide) -> None:
    layers = cast(layers_of(9, 8), wide)
    x, signal = drawn(70, 3).to(wide), drawn(70, 3, 2).to(wide)
    for _ in all_isas:
        y, ladj = ops.monotone_net(x, signal, layers, form=form, inverse=inverse)
        for at in (slice(5, 6), slice(33, 70), slice(3, 40)):
            part = ops.monotone_net(x[at], signal[at], layers, form=form, inverse=inverse)
            assert torch.equal(part[0], y[at]) and torch.equal(part[1], ladj[at])


@pytest.mark.interpreted("f32-fastest-integral", "f64-fastest-positive")
@FORMS
@BACKENDS
@pytest.mark.parametrize("wide", [torch.float32, f64], ids=["f32", "f64"])
def test_beyond_the_bound_is_its_end(form, backend, wide) -> None:
    layers, signal = cast(layers_of(6), wide), drawn(8, 3, 2).to(wide)
    end = torch.full((8, 3), 2.0, dtype=wide)
    settings = {"form": form, "bound": 2.0, "backend": backend}
    high, _ = ops.monotone_net(end, signal, layers, **settings)
    low, ladj = ops.monotone_net(-end, signal, layers, **settings)
    x, _ = ops.monotone_net(high + 1, signal, layers, **settings, inverse=True)
    assert torch.equal(x, end)
    x, negative = ops.monotone_net(low - 1e3, signal, layers, **settings, inverse=True)
    assert torch.equal(x, -end)
    torch.testing.assert_close(negative, -ladj)


@BACKENDS
@pytest.mark.parametrize("wide", [torch.float32, f64], ids=["f32", "f64"])
def test_beyond_the_bound_is_its_end_where_the_map_is_flat(backend, wide) -> None:
    """One unit of tanh, which has no digit left to grow by long before the bound."""
    layers = [(torch.tensor([[0.8]], dtype=wide), torch.zeros(1, dtype=wide))]
    layers += [(torch.tensor([[0.02]], dtype=wide), torch.zeros(1, dtype=wide))]
    y = torch.linspace(0.021, 0.3, 64, dtype=wide).view(64, 1)
    y, signal = torch.cat([-y, y]), torch.zeros(128, 1, 0, dtype=wide)
    x, _ = ops.monotone_net(y, signal, layers, form="positive", activation="tanh", inverse=True, backend=backend)
    assert torch.equal(x, 10 * y.sign())


@FORMS
@pytest.mark.parametrize("D", [3, None], ids=["each", "shared"])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.filterwarnings("ignore::flowkernels.backends.SlowPathWarning")
def test_autocast_takes_no_digits(form, D, inverse) -> None:
    layers, x, signal = cast(layers_of(8, D=D), torch.float32), drawn(9, 3).float(), drawn(9, 3, 2).float()
    wanted = ops.monotone_net(x, signal, layers, form=form, inverse=inverse)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        found = ops.monotone_net(x, signal, layers, form=form, inverse=inverse)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@BACKENDS
@pytest.mark.parametrize("wide", [torch.float32, f64], ids=["f32", "f64"])
def test_a_search_ends_in_its_bracket_where_the_map_is_flat(backend, wide) -> None:
    """Networks of steps, whose plateaus are flatter than a rounding: a step of Newton's there is any number."""
    for seed in (0, 1, 49):
        torch.manual_seed(seed)
        layers = [
            (torch.randint(-6, 6, (4, b, a)).to(wide) / 2 + 0.25, torch.randint(-6, 7, (4, b)).to(wide) / 2)
            for a, b in ((6, 1), (1, 19), (19, 2), (2, 1))
        ]
        signal, x = torch.randint(-7, 8, (64, 4, 5)).to(wide) / 2, torch.randint(-10, 11, (64, 4)).to(wide)
        settings = {"form": "positive", "activation": "tanh", "backend": backend}
        on, _ = ops.monotone_net(x, signal, layers, **settings)
        few = 4 * torch.finfo(wide).eps * on.abs()
        for y in (on, on + few, on - few):
            x, ladj = ops.monotone_net(y, signal, layers, inverse=True, **settings)
            again, _ = ops.monotone_net(x, signal, layers, **settings)
            assert bool((x.abs() <= 10).all()) and not bool(ladj.isnan().any())
            low, high = (
                ops.monotone_net(x + k * torch.finfo(wide).eps * (x.abs() + 1), signal, layers, **settings)[0]
                for k in (-8, 8)
            )
            terms = 64 * torch.finfo(wide).eps * (y.abs() + 10)  # of which y is made
            inside = (low - terms <= y) & (y <= high + terms)
            assert bool((inside | ((x.abs() == 10) & ((y - again) * x >= 0))).all())


@FORMS
@BACKENDS
@pytest.mark.parametrize("wide", [torch.float32, f64], ids=["f32", "f64"])
@pytest.mark.parametrize("size", [0.3, 1.0, 2.0, 4.0])
def test_what_was_found_is_a_root(form, backend, wide, size) -> None:
    """Of steep networks too, whose quadrature is rough: of what forward returns, to the last ulps."""
    if form == "integral" and size > 2:
        pytest.skip("a quadrature of 32 nodes of what is so rough is not increasing")
    layers = cast(layers_of(16, 16, S=4, scale=size), wide)
    x, signal = drawn(300, 3, scale=3.0).clamp(-9, 9).to(wide), drawn(300, 3, 4).to(wide)
    y, _ = ops.monotone_net(x, signal, layers, form=form, backend=backend)
    back, ladj = ops.monotone_net(y, signal, layers, form=form, backend=backend, inverse=True)
    near = back * (1 + 8 * torch.finfo(wide).eps) + 8 * torch.finfo(wide).eps
    far = back * (1 - 8 * torch.finfo(wide).eps) - 8 * torch.finfo(wide).eps
    again, above, below = (
        ops.monotone_net(t, signal, layers, form=form, backend="reference")[0] for t in (back, near, far)
    )
    assert ladj.isfinite().all()
    # What few ulps of x, and of the terms of y, are in y.
    size_of_terms = 1 + y.abs() + (layers[-1][0].abs().sum() if form == "positive" else 0)
    allowed = (above - below).abs() + 32 * torch.finfo(wide).eps * size_of_terms
    assert ((again - y).abs() <= allowed).all(), ((again - y).abs() / allowed).max()


def test_same_bits_twice_and_the_memory_kept() -> None:
    layers, x, signal = layers_of(9, 8), drawn(300, 3).requires_grad_(), drawn(300, 3, 2)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y, ladj = ops.monotone_net(x, signal, layers)
    assert sum(t.numel() for t in kept) == x.numel() + signal.numel() + sum(
        t.numel() for layer in layers for t in layer
    )
    again = ops.monotone_net(x, signal, layers)
    assert torch.equal(y, again[0]) and torch.equal(ladj, again[1])


# ---- what is refused ----

ONE = torch.zeros(3, 1, 3), torch.zeros(3, 1)
GIVEN = {"x": torch.zeros(2, 3), "signal": torch.zeros(2, 3, 2), "layers": [ONE]}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": 3}, TypeError, "x must be a tensor"),
        ({"x": torch.zeros(())}, ValueError, r"x must be \[..., D\], got a scalar"),
        ({"signal": 3}, TypeError, "signal must be a tensor"),
        ({"signal": torch.zeros(2, 2)}, ValueError, r"signal must be \[..., D, S\] = \[2, 3, 'S'\], got \[2, 2\]"),
        ({"signal": torch.zeros(2, 3, 2).double()}, TypeError, "signal must be of the dtype of x"),
        ({"signal": torch.zeros(2, 3, 0), "shift": True}, ValueError, r"signal must be \[..., D, S from 1 on\]"),
        ({"layers": []}, ValueError, "layers must be at least one, got 0"),
        ({"layers": 3}, TypeError, r"layers must be a list of \(weight, bias\), got int"),
        ({"layers": [3]}, TypeError, r"layers\[0\] must be \(weight, bias\), got int"),
        ({"layers": [(torch.zeros(3, 1, 4), torch.zeros(3, 1))]}, ValueError, r"\[1, 3\] or \[3, 1, 3\]"),
        ({"layers": [(torch.zeros(2, 1, 3), torch.zeros(2, 1))]}, ValueError, r"\[1, 3\] or \[3, 1, 3\]"),
        ({"layers": [(torch.zeros(1), torch.zeros(1))]}, ValueError, r"weight must be \[1, 3\]"),
        ({"layers": [(torch.zeros(3, 4, 3), torch.zeros(3, 4)), (torch.zeros(1, 4), torch.zeros(1))]}, ValueError,
         r"layers\[1\] weight must be \[1, 4\] or \[3, 1, 4\], all alike, got \[1, 4\]"),
        ({"layers": [(torch.zeros(3, 1, 3), torch.zeros(1))]}, ValueError, r"bias must be \[3, 1\], got \[1\]"),
        ({"form": "sum"}, ValueError, "form must be one of integral, positive, got 'sum'"),
        ({"activation": "selu"}, ValueError, "activation must be one of identity, relu, .*, got 'selu'"),
        ({"activation": "silu", "form": "positive"}, ValueError, "must be one of identity, leaky_relu, elu, tanh, got"),
        ({"slope": "exact"}, ValueError, "slope must be one of integrand, quadrature, got 'exact'"),
        ({"nodes": 0}, ValueError, "nodes must be an integer from 1 to 128, got 0"),
        ({"nodes": 129}, ValueError, "nodes must be an integer from 1 to 128, got 129"),
        ({"log_bound": 81}, ValueError, "log_bound must be a number from 1e-3 to 80, got 81"),
        ({"bound": 0.0}, ValueError, "bound must be a number from 1e-3 to 1e\\+06, got 0.0"),
        ({"shift": 1}, ValueError, "shift must be"),
        ({"inverse": 1}, ValueError, "inverse must be"),
    ],
)  # fmt: skip
def test_errors(change, error, message) -> None:
    with pytest.raises(error, match=rf"^ops\.monotone_net: .*{message}"):
        ops.monotone_net(**{**GIVEN, **change})


def _layers(i: int = 0, t: Tensor | None = None) -> list[Tensor]:
    """Tensors of layers, one of them replaced."""
    found = [torch.zeros(3, 4, 3), torch.zeros(3, 4), torch.zeros(3, 1, 4), torch.zeros(3, 1)]
    return found if t is None else [*found[:i], t, *found[i + 1 :]]


def _calls() -> tuple[dict[str, Any], dict[str, Any]]:
    spec = _native.C.MonotoneSpec(False, 3, [0.5], [1.0], 7.0, 10.0, True, True)
    x, signal = torch.zeros(5, 3), torch.zeros(5, 3, 3)
    layers = _layers()
    fwd = {"spec": spec, "x": x, "signal": signal, "layers": layers}
    bwd = {
        **fwd, "root": x.clone(), "grad_y": x.clone(), "grad_ladj": torch.zeros(5), "grad_x": x.clone(),
        "grad_signal": signal.clone(), "grads": [t.clone() for t in layers], "threads": 1,
    }  # fmt: skip
    return {**fwd, "y": x.clone(), "ladj": torch.zeros(5), "threads": 1}, bwd


@COMPILED
@pytest.mark.parametrize(
    ("broken", "message"),
    {
        "x": ({"x": torch.zeros(5, 3, dtype=torch.int16)}, "monotone: x must be float32 or float64, got another dtype"),
        "dims": ({"x": torch.zeros(15)}, "monotone: x must be [rows, D], got [15]"),
        "dense": ({"x": torch.zeros(3, 5).T}, "monotone: x must be contiguous, got strides"),
        "signal": ({"signal": torch.zeros(5, 3)}, "monotone: signal must be [rows, D, S], got [5, 3]"),
        "rows": ({"signal": torch.zeros(4, 3, 3)}, "monotone: signal must be [5, 3, 3], got [4, 3, 3]"),
        "shift": ({"signal": torch.zeros(5, 3, 0)}, "monotone: signal must be from 1 to"),
        "few": ({"layers": [torch.zeros(3, 1, 3), torch.zeros(3, 1)]}, "monotone: layers must be from 4 to 32, got 2"),
        "odd": ({"layers": [*([torch.zeros(3, 4, 3)] * 5)]}, "monotone: layers must be weight and bias of each, got 5"),
        "matrix": ({"layers": _layers(0, torch.zeros(4, 3))}, "monotone: weight must be [sets, out, in], got [4, 3]"),
        "later": ({"layers": _layers(2, torch.zeros(1, 4))}, "monotone: weight must be [sets, out, in], got [1, 4]"),
        "sets": ({"layers": _layers(0, torch.zeros(2, 4, 3))}, "monotone: weight must be of 1 set or 3, got 2"),
        "none": ({"layers": _layers(0, torch.zeros(3, 0, 3))}, "monotone: units must be from 1 to"),
        "in": ({"layers": _layers(0, torch.zeros(3, 4, 5))}, "monotone: weight must be [3, 4, 3], got [3, 4, 5]"),
        "last": ({"layers": _layers(2, torch.zeros(3, 2, 4))}, "monotone: weight must be [3, 1, 4], got [3, 2, 4]"),
        "bias": ({"layers": _layers(1, torch.zeros(3, 5))}, "monotone: bias must be [3, 4], got [3, 5]"),
        "type": ({"layers": _layers(3, torch.zeros(3, 1).double())}, "monotone: bias must be float32, got float64"),
        "y": ({"y": torch.zeros(5, 4)}, "monotone: y must be [5, 3], got [5, 4]"),
        "ladj": ({"ladj": torch.zeros(4)}, "monotone: ladj must be [5], got [4]"),
    }.values(),
)
def test_the_gate_of_forward(broken, message) -> None:
    assert_refused(_native.C.monotone_fwd, _calls()[0], broken, message)


@COMPILED
@pytest.mark.parametrize(
    ("broken", "message"),
    {
        "root": ({"root": None}, "monotone: root must be a tensor, got None"),
        "grad_y": ({"grad_y": torch.zeros(5, 4)}, "monotone: grad_y must be [5, 3], got [5, 4]"),
        "grad_ladj": ({"grad_ladj": torch.zeros(5).double()}, "monotone: grad_ladj must be float32, got float64"),
        "grad_x": ({"grad_x": torch.zeros(3, 5).T}, "monotone: grad_x must be contiguous, got strides"),
        "grad_signal": ({"grad_signal": torch.zeros(5, 3, 2)}, "grad_signal must be [5, 3, 3], got [5, 3, 2]"),
        "grads": ({"grads": [None] * 3}, "monotone: grads must be from 4 to 4, got 3"),
        "grad_weight": ({"grads": _layers(2, torch.zeros(3, 4))}, "grad_weight must be [3, 1, 4], got [3, 4]"),
        "grad_bias": ({"grads": _layers(1, torch.zeros(3))}, "monotone: grad_bias must be [3, 4], got [3]"),
    }.values(),
)
def test_the_gate_of_backward(broken, message) -> None:
    assert_refused(_native.C.monotone_bwd, _calls()[1], broken, message)


@COMPILED
def test_the_gate_of_settings() -> None:
    names = {
        "positive": False, "activation": 3, "nodes": [0.5], "weights": [1.0], "log_bound": 7.0, "bound": 10.0,
        "shift": False, "inverse": False,
    }  # fmt: skip
    for broken, message in (
        ({"activation": 7}, "MonotoneSpec: activation must be from 0 to 6, got 7"),
        ({"nodes": []}, "MonotoneSpec: nodes must be from 1 to 128, got 0"),
        ({"weights": [0.5, 0.5]}, "MonotoneSpec: weights must be from 1 to 1, got 2"),
    ):
        assert_refused(_native.C.MonotoneSpec, names, broken, message)


@FORMS
@WAYS
def test_what_comes_out_may_be_written_to(form, inverse) -> None:
    layers, x, signal = layers_of(5), drawn(2, 4, 3).requires_grad_(), drawn(2, 4, 3, 2)
    y, ladj = ops.monotone_net(x, signal, layers, form=form, inverse=inverse)
    (expected,) = torch.autograd.grad(2 * y.sum() + ladj.sum(), x, retain_graph=True)
    y.mul_(2)
    ladj.add_(1)
    torch.testing.assert_close(torch.autograd.grad(y.sum() + ladj.sum(), x)[0], expected)
