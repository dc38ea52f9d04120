"""A network of convolutions as one op: values and gradients against the definition, and which way it takes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flowkernels import ops
from flowkernels.ops.conv_net import _first, fused_torch, native
from flowkernels.ops.conv_net.spec import ConvSpec
from tests.numbers import assert_within_rule

# kernel of each layer, channels, images, height, width
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, int, int]]] = {
    "Glow": ((3, 1, 3), (2, 24, 17, 6), (3, 6, 5)),
    "two layers": ((3, 3), (3, 9, 4), (2, 4, 7)),
    "four layers": ((3, 1, 1, 3), (2, 9, 8, 7, 4), (2, 4, 4)),
    "all of 1 x 1": ((1, 1, 1), (5, 9, 8, 3), (2, 3, 4)),
    "5 x 5": ((5, 1, 1), (2, 8, 7, 3), (2, 6, 4)),
    "a last layer of 5 x 5": ((1, 5), (2, 8, 3), (2, 6, 4)),
    "an image that the kernel covers": ((5, 1, 3), (2, 8, 7, 3), (2, 2, 1)),
    "one of everything": ((3, 1, 3), (1, 1, 1, 1), (1, 1, 1)),
    "no images": ((3, 1, 3), (2, 8, 7, 3), (0, 4, 4)),
}
ROWS_ONLY = {"a middle layer of 3 x 3": ((3, 3, 3), (2, 8, 7, 3), (2, 4, 5)), "one layer": ((3,), (2, 3), (2, 4, 5))}
BACKENDS = ("cpu", "fused_torch")


@pytest.fixture(autouse=True)
def one_thread(threads) -> None:
    threads(1)


def leaves_of(kernels, channels, images, dtype=torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()

    leaves = [draw(images[0], channels[0], *images[1:])]
    for k, (a, b) in zip(kernels, itertools.pairwise(channels), strict=True):
        leaves += [draw(b, a, k, k, scale=(a * k * k) ** -0.5), draw(b)]
    return leaves


def layers_of(leaves) -> list[tuple[Tensor, Tensor]]:
    return list(zip(leaves[1::2], leaves[2::2], strict=True))


def found(leaves, backend, activation="relu", dtype=None) -> list[Tensor]:
    """Values and every gradient; `dtype`: of the arithmetic."""
    if dtype is not None:
        leaves = [t.detach().to(dtype).requires_grad_() for t in leaves]
    y = ops.conv_net(leaves[0], layers_of(leaves), activation=activation, backend=backend)
    g = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, g)]


def test_it_is_its_formula() -> None:
    leaves = leaves_of(*CASES["Glow"])
    h = leaves[0]
    for i, (weight, bias) in enumerate(layers_of(leaves)):
        h = F.conv2d(torch.tanh(h) if i else h, weight, bias, padding=weight.shape[-1] // 2)
    for backend in (*BACKENDS, "reference"):
        y = ops.conv_net(leaves[0], layers_of(leaves), activation="tanh", backend=backend)
        torch.testing.assert_close(y, h, rtol=1e-12, atol=1e-12)
        assert y.is_contiguous()


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_within_the_rule(case, dtype) -> None:
    leaves = leaves_of(*CASES[case], dtype=dtype)
    truth, eager = found(leaves, "reference", dtype=torch.float64), found(leaves, "reference")
    for backend in BACKENDS:
        mine = found(leaves, backend)
        for name, *values in zip(["y", *map(str, range(len(leaves)))], mine, eager, truth, strict=True):
            assert values[0].dtype is dtype
            # The reference in float64 is its own truth: of it sums in another order may differ by some roundings.
            assert_within_rule(*values, f"{case}, {backend}: {name}", ulps=64 if dtype is torch.float64 else 4)


def test_every_instruction_set(isa, dtype) -> None:
    test_values_and_gradients_within_the_rule("Glow", dtype)


@pytest.mark.parametrize("activation", ["identity", "leaky_relu", "elu", "gelu", "silu", "tanh"])
@pytest.mark.parametrize("case", ["Glow", *ROWS_ONLY])
def test_every_activation(case, activation) -> None:
    leaves = leaves_of(*{**CASES, **ROWS_ONLY}[case])
    wanted = found(leaves, "reference", activation)
    for backend in BACKENDS if case in CASES else ("fused_torch",):
        for mine, right in zip(found(leaves, backend, activation), wanted, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_what_is_computed_again_for_backward_is_what_would_be_kept(activation, monkeypatch) -> None:
    """To the bit; and nothing but the inputs is held where it is computed again."""
    leaves = leaves_of((3, 1, 3), (2, 40, 33, 6), (3, 8, 5), torch.float32)
    both, held = [], list[Tensor]()
    for kept in (1 << 30, 0):
        monkeypatch.setattr(native, "_KEPT_BYTES", kept)
        held.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
            y = ops.conv_net(leaves[0], layers_of(leaves), activation=activation, backend="cpu")
        both.append([y.detach(), *torch.autograd.grad(y.square().sum(), leaves)])
        more = [t for t in held if not any(t is leaf for leaf in leaves)]
        assert len(more) == (2 if kept and activation == "relu" else 0)
    assert all(torch.equal(*pair) for pair in zip(*both, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_some_gradients_wanted(backend) -> None:
    leaves = leaves_of(*CASES["four layers"])
    everything = found(leaves, "reference")[1:]
    for wanted in ([0], [1], [2], [3, 6], [7], [8], [0, 8]):
        for i, t in enumerate(leaves):
            t.requires_grad_(i in wanted)
        y = ops.conv_net(leaves[0], layers_of(leaves), backend=backend)
        g = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)
        grads = torch.autograd.grad(y, [leaves[i] for i in wanted], g)
        for i, grad in zip(wanted, grads, strict=True):
            torch.testing.assert_close(grad, everything[i], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_and_gradgradcheck(backend) -> None:
    leaves = leaves_of((3, 1, 3), (1, 3, 2, 2), (1, 3, 2))

    def f(*leaves: Tensor) -> Tensor:
        return ops.conv_net(leaves[0], layers_of(leaves), activation="tanh", backend=backend)

    torch.autograd.gradcheck(f, leaves)
    torch.autograd.gradgradcheck(f, leaves)


def test_transforms_compile_and_autocast() -> None:
    leaves = [t.detach() for t in leaves_of(*CASES["Glow"])]
    x, layers = leaves[0], layers_of(leaves)

    def f(v: Tensor) -> Tensor:
        return ops.conv_net(v, layers)

    y = f(x)
    torch.testing.assert_close(torch.func.vmap(f)(x), y)
    jac = torch.func.jacrev(f)(x[0])
    torch.testing.assert_close(torch.func.jacfwd(f)(x[0]), jac)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(x), y)
    narrow = [t.float() for t in leaves]
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.conv_net(narrow[0], layers_of(narrow)).dtype is torch.bfloat16


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_leading_dims_and_layouts(backend) -> None:
    leaves = [t.detach() for t in leaves_of(*CASES["Glow"])]
    x, layers = leaves[0], layers_of(leaves)
    y = ops.conv_net(x, layers, backend=backend)
    torch.testing.assert_close(ops.conv_net(x.view(3, 1, *x.shape[1:]), layers, backend=backend)[:, 0], y)
    torch.testing.assert_close(ops.conv_net(x[1], layers, backend=backend), y[1])
    assert ops.conv_net(x.view(3, 1, *x.shape[1:])[:, :0], layers, backend=backend).shape == (3, 0, 6, 6, 5)
    last = x.contiguous(memory_format=torch.channels_last)
    across = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    for other in (last, across, torch._neg_view(-x)):
        torch.testing.assert_close(ops.conv_net(other, layers, backend=backend), y)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bad_value_stays_in_its_image(backend) -> None:
    leaves = [t.detach() for t in leaves_of(*CASES["Glow"], dtype=torch.float32)]
    bad = leaves[0].clone()
    bad[1, 0, 2, 2] = math.nan
    y, clean = (ops.conv_net(v, layers_of(leaves), backend=backend) for v in (bad, leaves[0]))
    assert torch.equal(y[::2], clean[::2])
    assert y[1].isnan().any()


# ---- memory ----


def test_activations_overwrite_what_convolutions_return() -> None:
    """Of a forward pass that records a graph torch allocates what each convolution returns, and no more."""
    leaves = leaves_of((3, 1, 3), (2, 64, 64, 4), (8, 16, 16), torch.float32)
    hidden = 8 * 64 * 16 * 16 * 4

    def large(backend: str) -> int:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            ops.conv_net(leaves[0], layers_of(leaves), backend=backend)
        freed = [-e.cpu_memory_usage for e in profile.events() if e.name == "[memory]"]
        return sum(size >= hidden for size in freed)

    assert large("fused_torch") == 2
    assert large("reference") == 4


def test_pieces_of_a_batch_have_the_numbers_of_the_whole(monkeypatch) -> None:
    leaves = [t.detach() for t in leaves_of((3, 1, 3), (2, 32, 32, 4), (7, 8, 8), torch.float32)]
    with torch.no_grad():
        whole = ops.conv_net(leaves[0], layers_of(leaves), backend="fused_torch")
        ran: list[int] = []
        run = fused_torch._run
        monkeypatch.setattr(fused_torch, "_run", lambda spec, x, tensors: ran.append(len(x)) or run(spec, x, tensors))
        monkeypatch.setattr(fused_torch, "_WHOLE", 4 * 32 * 64 * 6)
        monkeypatch.setattr(fused_torch, "_PIECE", 4 * 32 * 64 * 3)
        parts = ops.conv_net(leaves[0], layers_of(leaves), backend="fused_torch")
    assert ran == [3, 3, 1]
    torch.testing.assert_close(parts, whole, rtol=0, atol=4 * torch.finfo(torch.float32).eps * whole.abs().max().item())
    leaves[1].requires_grad_()  # a graph would hold all pieces at once
    ran.clear()
    ops.conv_net(leaves[0], layers_of(leaves), backend="fused_torch")
    assert ran == [7]


def test_which_way_is_taken() -> None:
    """Pixels as rows where hidden layers are large, and wide beside what a pixel sees."""

    def way(channels: tuple[int, ...], images: tuple[int, int, int], kernels: tuple[int, ...] = (3, 1, 3)) -> str:
        tensors: list[Any] = [torch.empty(images[0], channels[0], *images[1:], device="meta")]
        for k, (a, b) in zip(kernels, itertools.pairwise(channels), strict=True):
            tensors += [torch.empty(b, a, k, k, device="meta"), torch.empty(b, device="meta")]
        tensors[0] = torch.empty(1).expand(tensors[0].shape)
        return _first(ConvSpec(len(kernels), "relu"), tensors)

    assert way((2, 128, 128, 2), (64, 32, 32)) == "cpu"
    assert way((2, 128, 128, 2), (1, 32, 32)) == "fused_torch"
    assert way((6, 128, 128, 12), (64, 16, 16)) == "fused_torch"
    assert way((6, 512, 512, 12), (64, 16, 16)) == "cpu"
    assert way((2, 128), (64, 32, 32), (3,)) == "fused_torch"


# ---- arguments ----

X = torch.zeros(2, 3, 4, 4)
ONE = (torch.zeros(5, 3, 3, 3), torch.zeros(5))


@pytest.mark.parametrize(
    ("x", "layers", "message"),
    [
        (X[0, 0], [ONE], r"x must be \[\.\.\., C, H, W\] with a pixel at least, got \[4, 4\]"),
        (X[..., :0], [ONE], r"with a pixel at least, got \[2, 3, 4, 0\]"),
        (X, [], "layers must be one at least, got none"),
        (X, [ONE[0]], r"layers\[0\] must be \(weight, bias\), got Tensor"),
        (X, [(torch.zeros(5, 4, 3, 3), ONE[1])], r"layers\[0\] weight must be \[out, 3, k, k\] with k odd"),
        (X, [(torch.zeros(5, 3, 2, 2), ONE[1])], r"with k odd, got \[5, 3, 2, 2\]"),
        (X, [(torch.zeros(5, 3, 3, 1), ONE[1])], r"with k odd, got \[5, 3, 3, 1\]"),
        (X, [ONE, ONE], r"layers\[1\] weight must be \[out, 5, k, k\] with k odd, got \[5, 3, 3, 3\]"),
        (X, [(ONE[0], torch.zeros(4))], r"layers\[0\] bias must be \[5\], got \[4\]"),
        (X.double(), [ONE], "weight must be of the dtype of x = torch.float64, got torch.float32"),
    ],
)
def test_errors(x, layers, message) -> None:
    with pytest.raises((TypeError, ValueError), match=f"ops.conv_net: {message}" if message[0] != "w" else message):
        ops.conv_net(x, layers)


def test_what_rows_of_pixels_cannot_be() -> None:
    for kernels, channels, images in ROWS_ONLY.values():
        leaves = leaves_of(kernels, channels, images)
        with pytest.raises(RuntimeError, match=r"conv_net cannot run on backend 'cpu': (there is no|a layer between)"):
            ops.conv_net(leaves[0], layers_of(leaves), backend="cpu")
