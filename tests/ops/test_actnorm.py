"""Actnorm as an op: its definition, its inverse, the numbers rule, layouts, gradients, every way PyTorch calls it."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from flowkernels import ops
from tests.device import here
from tests.ops.channels import (
    SHAPES,
    assert_compiles,
    assert_numbers,
    assert_sums_in_double,
    layouts,
    rows_of,
    values_and_gradients,
)
from tests.ops.masked import backends_of

pytestmark = pytest.mark.usefixtures("one_thread", "kernels")
BACKENDS = pytest.mark.parametrize("backend", backends_of("actnorm"))
EVERY = pytest.mark.parametrize(("shape", "channel_dim"), SHAPES.values(), ids=SHAPES.keys())
BOTH = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


def draw(shape: tuple[int, ...], channel_dim: int, seed: int = 0) -> list[Tensor]:
    """x, log_scale, shift in float64."""
    g = torch.Generator().manual_seed(seed)
    shapes = (shape, shape[channel_dim : channel_dim + 1 or None], shape[channel_dim : channel_dim + 1 or None])
    return [here(torch.randn(s, generator=g, dtype=torch.float64, device="cpu")) for s in shapes]


def exact(tensors: list[Tensor], grad_y: Tensor, grad_ladj: Tensor, *, channel_dim: int, inverse: bool) -> list:
    """Values and gradients in longdouble."""
    x, g = rows_of(tensors[0], channel_dim), rows_of(grad_y, channel_dim)
    log_scale, shift = (t.cpu().numpy().astype(np.longdouble) for t in tensors[1:])
    sign = -1 if inverse else 1
    pixels = sign * (1 if channel_dim == -1 else math.prod(tensors[0].shape[2:]))
    scale = np.exp(sign * log_scale)
    y = (x - shift) * scale if inverse else x * scale + shift
    of_scale = sign * (g * (x - shift if inverse else x) * scale).sum(0)
    of_ladj = pixels * grad_ladj.cpu().numpy().astype(np.longdouble).sum()
    grad_shift = -(g * scale).sum(0) if inverse else g.sum(0)
    return [y, np.full(grad_ladj.shape, pixels * log_scale.sum()), g * scale, of_scale + of_ladj, grad_shift]


@pytest.mark.interpreted("triton-one", "triton-no features", "triton-sequence")
@EVERY
@BACKENDS
def test_is_its_definition(shape, channel_dim, backend) -> None:
    x, log_scale, shift = draw(shape, channel_dim)
    y, ladj = ops.actnorm(x, log_scale, shift, channel_dim=channel_dim, backend=backend)
    moved = [x.select(channel_dim, c) * math.exp(a) + b for c, (a, b) in enumerate(zip(log_scale, shift, strict=True))]
    wanted = torch.stack(moved, channel_dim) if moved else x
    torch.testing.assert_close(y, wanted, rtol=1e-14, atol=1e-14)
    pixels = 1 if channel_dim == -1 else math.prod(shape[2:])
    total = pixels * math.fsum(log_scale.tolist())
    torch.testing.assert_close(ladj, torch.full_like(ladj, total), rtol=1e-12, atol=1e-12)
    assert ladj.shape == (shape[:-1] if channel_dim == -1 else shape[:1])
    back, neg = ops.actnorm(y, log_scale, shift, channel_dim=channel_dim, inverse=True, backend=backend)
    torch.testing.assert_close(back, x, rtol=1e-13, atol=1e-13)
    assert torch.equal(neg, -ladj)


@pytest.mark.interpreted(
    "float32-forward-vector",
    "float32-forward-no rows",
    "float32-forward-rows",
    "float32-forward-a chain and more",
    "float32-forward-no pixels",
    "float32-forward-odd images",
    "float32-inverse-vector",
    "float32-inverse-no rows",
    "float32-inverse-rows",
    "float32-inverse-a chain and more",
    "float32-inverse-no pixels",
    "float32-inverse-odd images",
    "float64-inverse-rows",
    "float16-forward-odd images",
    "float32-inverse-threads",
)
@EVERY
@BOTH
def test_numbers(shape, channel_dim, inverse, dtype, all_isas) -> None:
    draws = [draw(shape, channel_dim, seed) for seed in range(4)]
    names = ("y", "ladj", "x", "log_scale", "shift")
    settings = {"channel_dim": channel_dim, "inverse": inverse}
    assert_numbers("actnorm", ops.actnorm, exact, draws, names, dtype, all_isas, **settings)


@pytest.mark.parametrize(("shape", "channel_dim"), [((9001, 24), -1), ((5, 24, 41, 43), 1)])
@BOTH
def test_gradients_are_those_of_all_threads(shape, channel_dim, inverse, threads, isa) -> None:
    tensors = draw(shape, channel_dim)
    settings = {"channel_dim": channel_dim, "inverse": inverse}
    wanted = values_and_gradients(ops.actnorm, tensors, backend="reference", **settings)
    for n in (1, 2):
        threads(n)
        found = values_and_gradients(ops.actnorm, tensors, backend="cpu", **settings)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_ladj_and_its_gradient_are_summed_in_double(isa) -> None:
    x, log_scale, shift = draw((37, 70), -1)
    assert_sums_in_double("actnorm", ops.actnorm, [0 * x, log_scale, 0 * shift], 1)


@BACKENDS
@BOTH
def test_long_sums(backend, inverse) -> None:
    """A channel's gradient is the sum over a million pixels: it must not lose digits with their number."""
    for shape, channel_dim in (((1 << 20, 2), -1), ((64, 2, 128, 128), 1)):
        x = torch.full(shape, 0.1)
        a, b = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
        y, _ = ops.actnorm(x, a, b, channel_dim=channel_dim, inverse=inverse, backend=backend)
        y.backward(torch.full_like(y, 0.1))
        n = 1 << 20
        exact = torch.tensor(0.1).double() * n * (-1 if inverse else 1)
        assert b.grad is not None and a.grad is not None
        torch.testing.assert_close(b.grad.double(), exact.expand(2), rtol=2e-6, atol=0)
        torch.testing.assert_close(a.grad.double(), (exact * torch.tensor(0.1).double()).expand(2), rtol=2e-6, atol=0)


@pytest.mark.parametrize("name", ["rows", "few rows, wide", "two leading", "small images", "odd images", "volume"])
@BOTH
@BACKENDS
def test_layouts(name, inverse, backend, dtype) -> None:
    shape, channel_dim = SHAPES[name]
    x, *rest = (t.to(dtype) for t in draw(shape, channel_dim))
    settings = {"channel_dim": channel_dim, "inverse": inverse, "backend": backend}
    for layout, form in layouts(x, channel_dim).items():
        wanted = values_and_gradients(ops.actnorm, [form.contiguous(), *rest], **settings)
        found = values_and_gradients(ops.actnorm, [form, *rest], **settings)
        for a, b in zip(found[:3], wanted[:3], strict=True):
            assert torch.equal(a, b), layout
        torch.testing.assert_close(found[3:], wanted[3:], msg=lambda m, layout=layout: f"{layout}: {m}")
        if layout in ("contiguous", "turned", "channels_last"):
            assert ops.actnorm(form, *rest, **settings)[0].stride() == form.stride(), layout


@pytest.mark.parametrize("shape", [(37, 10), (33, 3), (5, 24)])
@BOTH
@BACKENDS
def test_rows_of_gradients_may_lie_apart(shape, inverse, backend, isa) -> None:
    x, log_scale, shift = (t.float().requires_grad_() for t in draw(shape, -1))
    y, _ = ops.actnorm(x, log_scale, shift, inverse=inverse, backend=backend)
    wide = torch.arange(2.0 * y.numel()).view(shape[0], -1)
    apart = wide[:, : shape[1]]
    found, wanted = (
        torch.autograd.grad(y, [x, log_scale, shift], g, retain_graph=True) for g in (apart, apart.contiguous())
    )
    torch.testing.assert_close(found, wanted)


@pytest.mark.interpreted
@BACKENDS
@BOTH
@pytest.mark.parametrize("wanted", [[0], [1], [2], [1, 2]])
@pytest.mark.parametrize("output", [0, 1], ids=["y", "ladj"])
def test_some_gradients_of_one_output(backend, wanted, output, inverse) -> None:
    def grads(backend: str) -> list[Tensor | None]:
        tensors = [t.requires_grad_(i in wanted) for i, t in enumerate(draw((3, 5, 2, 2), 1))]
        value = ops.actnorm(*tensors, channel_dim=1, inverse=inverse, backend=backend)[output]
        if value.requires_grad:
            value.sin().sum().backward()
        return [t.grad for t in tensors]

    for i, (a, b) in enumerate(zip(grads(backend), grads("reference"), strict=True)):
        zero = torch.zeros((), dtype=torch.float64)
        torch.testing.assert_close(*torch.broadcast_tensors(zero if a is None else a, zero if b is None else b))
        assert i in wanted or a is None


@BACKENDS
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@BOTH
def test_a_bad_value_stays_alone(backend, bad, inverse, isa) -> None:
    for shape, channel_dim in (((70, 13), -1), ((3, 13, 7, 5), 1)):
        x, *rest = (t.float() for t in draw(shape, channel_dim))
        settings = {"channel_dim": channel_dim, "inverse": inverse, "backend": backend}
        clean = ops.actnorm(x, *rest, **settings)
        x.view(-1)[37] = bad
        y, ladj = ops.actnorm(x, *rest, **settings)
        others = torch.arange(x.numel()) != 37
        assert torch.equal(y.view(-1)[others], clean[0].view(-1)[others]) and torch.equal(ladj, clean[1])
        assert not y.view(-1)[37].isfinite()


@BACKENDS
@pytest.mark.parametrize(("shape", "channel_dim"), [((3, 4), -1), ((2, 3, 2, 2), 1)])
@BOTH
def test_gradcheck_and_gradgradcheck(backend, shape, channel_dim, inverse) -> None:
    leaves = [t.requires_grad_() for t in draw(shape, channel_dim)]

    def f(*tensors):
        return ops.actnorm(*tensors, channel_dim=channel_dim, inverse=inverse, backend=backend)

    assert torch.autograd.gradcheck(f, leaves, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, leaves)


@pytest.mark.parametrize(("shape", "channel_dim"), [((5, 4), -1), ((2, 3, 2, 2), 1)])
@BOTH
def test_torch_func(shape, channel_dim, inverse) -> None:
    tensors = draw(shape, channel_dim)

    def f(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return ops.actnorm(*tensors, channel_dim=channel_dim, inverse=inverse)

    def plain(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return ops.actnorm(*tensors, channel_dim=channel_dim, inverse=inverse, backend="reference")

    func = torch.func
    torch.testing.assert_close(func.vmap(f)(*(t[None] for t in tensors)), tuple(t[None] for t in f(*tensors)))
    ones = tuple(torch.ones_like(t) for t in tensors)
    torch.testing.assert_close(func.jvp(f, tuple(tensors), ones), func.jvp(plain, tuple(tensors), ones))
    every = (0, 1, 2)
    for transform in (func.jacrev, func.jacfwd):
        torch.testing.assert_close(transform(f, argnums=every)(*tensors), func.jacrev(plain, argnums=every)(*tensors))


@pytest.mark.interpreted("inverse-shape1-1")
@pytest.mark.parametrize(("shape", "channel_dim"), [((5, 4), -1), ((2, 3, 2, 2), 1), ((2, 3, 4, 2), "last")])
@BOTH
def test_compile_export_and_opcheck(shape, channel_dim, inverse) -> None:
    last = channel_dim == "last"
    channel_dim = 1 if last else channel_dim
    tensors = draw(shape, channel_dim)
    if last:
        tensors[0] = tensors[0].contiguous(memory_format=torch.channels_last)
    assert_compiles("actnorm", ops.actnorm, tensors, channel_dim, inverse)


def test_same_bits_twice(threads, isa) -> None:
    for shape, channel_dim in (((4000, 24), -1), ((16, 24, 16, 16), 1)):
        tensors = [t.float() for t in draw(shape, channel_dim)]
        outputs = []
        for n in (1, 2):
            threads(n)
            runs = [values_and_gradients(ops.actnorm, tensors, channel_dim=channel_dim) for _ in range(2)]
            assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
            outputs.append(runs[0][:3])
        assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


X, V = torch.zeros(4, 3), torch.zeros(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.actnorm([0.0], V, V), TypeError, "x must be a tensor, got list"),
        (lambda: ops.actnorm(X, V.int(), V), TypeError, "log_scale must be float32, .*, got torch.int32"),
        (lambda: ops.actnorm(X[0, 0], V, V), ValueError, r"x must be \[..., C\], got a scalar"),
        (lambda: ops.actnorm(X, V, V[:2]), ValueError, r"shift must be \[3\], got \[2\]"),
        (lambda: ops.actnorm(X, V, V, channel_dim=2), ValueError, "channel_dim must be -1 .* or 1 .*, got 2"),
        (lambda: ops.actnorm(X, V.to("meta"), V), ValueError, "log_scale must be on the device of x = cpu, got meta"),
    ],
)
def test_errors(call, error, message) -> None:
    with pytest.raises(error, match="ops.actnorm: " + message):
        call()
