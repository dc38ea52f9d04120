"""The LU linear map: its definition, its inverse, the numbers rule, layouts, gradients, every way PyTorch calls it."""

from collections.abc import Iterable

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
    cast,
    layouts,
    rows_of,
    values_and_gradients,
)
from tests.ops.masked import backends_of

pytestmark = pytest.mark.usefixtures("one_thread", "kernels")
BACKENDS = pytest.mark.parametrize("backend", backends_of("lu_linear"))
EVERY = pytest.mark.parametrize(("shape", "channel_dim"), SHAPES.values(), ids=SHAPES.keys())
BOTH = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


def draw(shape: tuple[int, ...], channel_dim: int, seed: int = 0, scale: float = 1.0) -> list[Tensor]:
    """x, lower, upper, log_s, sign_s, permutation, bias in float64: a matrix as learned ones are, near a rotation."""
    g = torch.Generator().manual_seed(seed)
    C = shape[channel_dim]

    def randn(*s: int) -> Tensor:
        return here(torch.randn(*s, generator=g, dtype=torch.float64, device="cpu"))

    lower, upper = (scale * randn(C, C) / max(C, 1) ** 0.5 for _ in range(2))
    sign_s = torch.where(randn(C) < 0, -1.0, 1.0).double()
    x, log_s, permutation = randn(*shape), 0.3 * randn(C), torch.randperm(C, generator=g, device="cpu")
    return [x, lower, upper, log_s, sign_s, here(permutation), randn(C)]


def dense(tensors: list[Tensor]) -> Tensor:
    """W, element by element."""
    _, lower, upper, log_s, sign_s, permutation, _ = (t.cpu() for t in tensors)
    C = log_s.shape[0]
    L, U, P = (torch.zeros(C, C, dtype=torch.float64, device="cpu") for _ in range(3))
    for i in range(C):
        P[i, permutation[i]] = 1
        L[i, i], U[i, i] = 1.0, sign_s[i] * log_s[i].exp()
        for j in range(C):
            if j < i:
                L[i, j] = lower[i, j]
            if j > i:
                U[i, j] = upper[i, j]
    return here(P @ L @ U)


def exact(tensors: list[Tensor], grad_y: Tensor, grad_ladj: Tensor, *, channel_dim: int, inverse: bool) -> list:
    """Values and gradients step by step, in longdouble."""
    C = tensors[0].shape[channel_dim]
    x, g = rows_of(tensors[0], channel_dim), rows_of(grad_y, channel_dim)
    lower, upper, log_s, sign_s, p, bias = (t.cpu().numpy() for t in tensors[1:])
    s = sign_s * np.exp(log_s.astype(np.longdouble))
    L, U = np.tril(lower.astype(np.longdouble), -1) + np.eye(C), np.triu(upper.astype(np.longdouble), 1) + np.diag(s)

    def solve(T: np.ndarray, rows: np.ndarray, order: Iterable[int]) -> np.ndarray:
        """T^-1 of every row, by substitution in this order."""
        found = np.zeros_like(rows)
        for i in order:
            found[:, i] = (rows[:, i] - found @ T[i]) / T[i, i]
        return found

    pixels = 1 if channel_dim == -1 else tensors[0].shape[2:].numel()
    total = (-pixels if inverse else pixels) * log_s.astype(np.longdouble).sum()
    back = np.argsort(p)
    if inverse:
        h = solve(L, (x - bias)[:, back], range(C))
        y = solve(U, h, reversed(range(C)))
        gh = solve(U.T, g, range(C))
        gr = solve(L.T, gh, reversed(range(C)))
        grad_x, sign, inner = gr[:, p], -1, y
    else:
        h = x @ U.T
        y = (h @ L.T)[:, p] + bias
        gr = g[:, back]
        gh = gr @ L
        grad_x, sign, inner = gh @ U, 1, x
    grad_U = sign * gh.T @ inner
    of_ladj = sign * pixels * grad_ladj.cpu().numpy().astype(np.longdouble).sum()
    return [
        y, np.full(grad_ladj.shape, total), grad_x, sign * np.tril(gr.T @ h, -1), np.triu(grad_U, 1),
        np.diag(grad_U) * s + of_ladj, np.diag(grad_U) * s / sign_s, sign * gr.sum(0)[p],
    ]  # fmt: skip


def apply(W: Tensor, x: Tensor, bias: Tensor, channel_dim: int) -> Tensor:
    moved = x.movedim(channel_dim, -1)
    return (moved @ W.T + bias).movedim(-1, channel_dim)


@pytest.mark.interpreted(
    "triton-one", "triton-vector", "triton-rows", "triton-odd images", "triton-wide images", "triton-no rows"
)
@EVERY
@BACKENDS
def test_is_its_definition(shape, channel_dim, backend) -> None:
    tensors = draw(shape, channel_dim)
    W = dense(tensors)
    y, ladj = ops.lu_linear(*tensors, channel_dim=channel_dim, backend=backend)
    torch.testing.assert_close(y, apply(W, tensors[0], tensors[6], channel_dim), rtol=1e-12, atol=1e-12)
    pixels = 1 if channel_dim == -1 else tensors[0][0, 0].numel() if shape[0] else 0
    wanted = pixels * torch.linalg.slogdet(W).logabsdet
    torch.testing.assert_close(ladj, wanted.expand(ladj.shape), rtol=1e-11, atol=1e-11)
    assert ladj.shape == (shape[:-1] if channel_dim == -1 else shape[:1])
    back, neg = ops.lu_linear(y, *tensors[1:], channel_dim=channel_dim, inverse=True, backend=backend)
    torch.testing.assert_close(back, tensors[0], rtol=1e-9, atol=1e-9)
    assert torch.equal(neg, -ladj)


@pytest.mark.interpreted
@BACKENDS
def test_without_permutation_and_bias(backend) -> None:
    x, lower, upper, log_s, sign_s, _, bias = draw((5, 7, 3, 3), 1)
    same, none = torch.arange(7), torch.zeros(7, dtype=torch.float64)
    for inverse in (False, True):
        settings = {"channel_dim": 1, "inverse": inverse, "backend": backend}
        both = ops.lu_linear(x, lower, upper, log_s, sign_s, same, none, **settings)
        assert torch.equal(ops.lu_linear(x, lower, upper, log_s, sign_s, **settings)[0], both[0])
        assert torch.equal(ops.lu_linear(x, lower, upper, log_s, sign_s, None, none, **settings)[0], both[0])
        biased = ops.lu_linear(x, lower, upper, log_s, sign_s, same, bias, **settings)[0]
        assert torch.equal(ops.lu_linear(x, lower, upper, log_s, sign_s, None, bias, **settings)[0], biased)
        assert not torch.equal(biased, both[0])


@pytest.mark.interpreted
@BACKENDS
@BOTH
def test_only_the_triangles_are_read(backend, inverse) -> None:
    """Whatever lies elsewhere has no effect, be it NaN, and no gradient."""
    tensors = draw((6, 30), -1)
    clean = values_and_gradients(ops.lu_linear, tensors, inverse=inverse, backend=backend)
    nan = torch.full((30, 30), torch.nan, dtype=torch.float64)
    tensors[1], tensors[2] = tensors[1].tril(-1) + nan.triu(), tensors[2].triu(1) + nan.tril()
    found = values_and_gradients(ops.lu_linear, tensors, inverse=inverse, backend=backend)
    for a, b in zip(found, clean, strict=True):
        assert torch.equal(a, b)
    assert (found[3].triu() == 0).all() and (found[4].tril() == 0).all()
    assert (found[3].tril(-1) != 0).sum() == (found[4].triu(1) != 0).sum() == 15 * 29


@pytest.mark.interpreted(
    "float32-forward-odd images",
    "float32-forward-two panels",
    "float32-inverse-two panels",
    "float64-inverse-two leading",
    "float64-forward-volume",
)
@EVERY
@BOTH
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_numbers(shape, channel_dim, inverse, precision, all_isas) -> None:
    draws = [draw(shape, channel_dim, seed) for seed in range(4)]
    names = ("y", "ladj", "x", "lower", "upper", "log_s", "sign_s", "bias")
    settings = {"channel_dim": channel_dim, "inverse": inverse}
    assert_numbers("lu_linear", ops.lu_linear, exact, draws, names, precision, all_isas, **settings)


@EVERY
@BOTH
def test_sixteen_bits(shape, channel_dim, inverse) -> None:
    """Arithmetic in float32, rounded once: the result is the rounded float32 one."""
    for dtype in (torch.bfloat16, torch.float16):
        tensors = cast(draw(shape, channel_dim), dtype)
        wide = cast(tensors, torch.float32)
        for backend in backends_of("lu_linear"):
            settings = {"channel_dim": channel_dim, "inverse": inverse, "backend": backend}
            y, ladj = ops.lu_linear(*tensors, **settings)
            y32, ladj32 = ops.lu_linear(*wide, **settings)
            assert y.dtype == dtype and ladj.dtype == torch.float32
            assert torch.equal(y, y32.to(dtype)) and torch.equal(ladj, ladj32)
            mixed = ops.lu_linear(tensors[0], *wide[1:], **settings)[0]
            assert mixed.dtype == torch.float32 and torch.equal(mixed, y32)
            assert all(g.dtype == dtype for g in values_and_gradients(ops.lu_linear, tensors, **settings)[2:])


@pytest.mark.interpreted("triton-forward-two leading")
@pytest.mark.parametrize("name", ["rows", "few rows, wide", "two leading", "small images", "odd images", "volume"])
@BOTH
@BACKENDS
def test_layouts(name, inverse, backend) -> None:
    shape, channel_dim = SHAPES[name]
    x, *rest = draw(shape, channel_dim)
    settings = {"channel_dim": channel_dim, "inverse": inverse, "backend": backend}
    for layout, form in layouts(x, channel_dim).items():
        wanted = values_and_gradients(ops.lu_linear, [form.contiguous(), *rest], **settings)
        found = values_and_gradients(ops.lu_linear, [form, *rest], **settings)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11, msg=lambda m, layout=layout: f"{layout}: {m}")
        y = ops.lu_linear(form, *rest, **settings)[0]
        if backend != "reference" and layout in ("contiguous", "turned", "channels_last"):
            assert y.stride() == form.stride(), layout
    strided = [torch.stack([t, t], -1)[..., 0] for t in rest]  # parameters that are not dense
    torch.testing.assert_close(ops.lu_linear(x, *strided, **settings), ops.lu_linear(x, *rest, **settings))


@pytest.mark.interpreted
@BACKENDS
@BOTH
@pytest.mark.parametrize("output", [0, 1], ids=["y", "ladj"])
def test_gradients_of_one_output_alone(backend, inverse, output) -> None:
    leaves = [t.requires_grad_(t.is_floating_point()) for t in draw((3, 5, 2, 2), 1)]
    wanted = [t for t in leaves if t.requires_grad]
    found, truth = (
        torch.autograd.grad(
            ops.lu_linear(*leaves, channel_dim=1, inverse=inverse, backend=b)[output].sin().sum(),
            wanted,
            allow_unused=True,
            materialize_grads=True,
        )
        for b in (backend, "reference")
    )
    torch.testing.assert_close(found, truth, rtol=1e-11, atol=1e-11)


@pytest.mark.interpreted
@BACKENDS
@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [6], [1, 6], [0, 2, 3]])
@BOTH
def test_only_some_gradients_wanted(backend, wanted, inverse) -> None:
    tensors = draw((3, 14, 2, 2), 1)
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
    y, _ = ops.lu_linear(*leaves, channel_dim=1, inverse=inverse, backend="reference")
    y.sin().sum().backward()
    some = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
    y, _ = ops.lu_linear(*some, channel_dim=1, inverse=inverse, backend=backend)
    y.sin().sum().backward()
    for i, t in enumerate(some):
        assert (t.grad is not None) == (i in wanted)
        if i in wanted:
            torch.testing.assert_close(t.grad, leaves[i].grad, rtol=1e-11, atol=1e-11)


@pytest.mark.interpreted
@BACKENDS
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("shape", "channel_dim"), [((70, 13), -1), ((3, 13, 7, 5), 1), ((3, 12, 4, 8), 1)])
@BOTH
def test_a_bad_pixel_stays_alone(backend, bad, shape, channel_dim, inverse, isa) -> None:
    x, *rest = cast(draw(shape, channel_dim), torch.float32)
    settings = {"channel_dim": channel_dim, "inverse": inverse, "backend": backend}
    clean, clean_ladj = ops.lu_linear(x, *rest, **settings)
    broken = x.clone()
    at = (40, 2) if channel_dim == -1 else (1, 2, 3, 3)
    broken[at] = bad
    y, ladj = ops.lu_linear(broken, *rest, **settings)
    touched = torch.zeros_like(x, dtype=torch.bool)
    (touched if channel_dim == -1 else touched.movedim(1, -1))[(40,) if channel_dim == -1 else (1, 3, 3)] = True
    assert torch.equal(y[~touched], clean[~touched]) and torch.equal(ladj, clean_ladj)
    assert not y[touched].isfinite().all()


@BACKENDS
@pytest.mark.parametrize(("shape", "channel_dim"), [((2300, 13), -1), ((3, 13, 29, 31), 1)])
@BOTH
def test_a_bad_gradient_stays_alone(backend, shape, channel_dim, inverse, isa) -> None:
    """The rows that fill up a panel would keep a NaN for the next tile of pixels."""
    x, *rest = cast(draw(shape, channel_dim), torch.float32)
    at = 2 if channel_dim == -1 else (0, slice(None), 1, 3)
    for bad in ("grad_y", "x"):  # of x, for what a backward pass computes again
        found = []
        for value in (1.0, float("nan")):
            leaf, grad = x.clone(), torch.ones_like(x)
            (leaf if bad == "x" else grad)[at] = value
            y, _ = ops.lu_linear(
                leaf.requires_grad_(), *rest, channel_dim=channel_dim, inverse=inverse, backend=backend
            )
            found.append(torch.autograd.grad(y, leaf, grad)[0])
        for grad in found:
            grad[at] = 0
        assert torch.equal(*found), bad


# Many pixels: several tiles a thread, the last of which ends within a vector.
@pytest.mark.parametrize(
    ("shape", "channel_dim"), [((4001, 24), -1), ((3, 5, 19, 23), 1), ((6, 24, 16, 16), 1), ((2001, 150), -1)]
)
@BOTH
def test_gradients_are_those_of_all_pixels(shape, channel_dim, inverse, threads, isa) -> None:
    """Whichever thread summed them, and nothing of what a buffer held before."""
    tensors = draw(shape, channel_dim)
    settings = {"channel_dim": channel_dim, "inverse": inverse}
    wanted = values_and_gradients(ops.lu_linear, tensors, backend="reference", **settings)
    for n in (1, 2):
        threads(n)
        found = values_and_gradients(ops.lu_linear, tensors, backend="cpu", **settings)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_the_gradient_of_a_bias_is_summed_in_double(isa) -> None:
    """Pixels so far apart that they share a lane, whatever its vectors are: in float 4 would be lost."""
    x, lower, upper, log_s, sign_s, permutation, bias = cast(draw((160 + 32, 5), -1), torch.float32)
    grad = torch.zeros_like(x)
    grad[::32] = 1
    grad[0], grad[160] = 2.0**25, -(2.0**25)
    for inverse in (False, True):
        leaf = bias.clone().requires_grad_()
        y, _ = ops.lu_linear(
            x, 0 * lower, 0 * upper, 0 * log_s, sign_s.abs(), permutation, leaf, inverse=inverse, backend="cpu"
        )
        (found,) = torch.autograd.grad(y, leaf, grad)
        assert torch.equal(found, torch.full_like(found, -4.0 if inverse else 4.0)), found


def test_ladj_and_its_gradient_are_summed_in_double(isa) -> None:
    x, lower, upper, log_s, sign_s, permutation, bias = draw((37, 70), -1)
    tensors = [0 * x, 0 * lower, 0 * upper, log_s, sign_s, permutation, 0 * bias]
    assert_sums_in_double("lu_linear", ops.lu_linear, tensors, 3)


@pytest.mark.interpreted
@BACKENDS
@BOTH
def test_extreme_scales(backend, inverse) -> None:
    """Scales that a determinant or 1/s^2 would overflow."""
    tensors = cast(draw((9, 8), -1), torch.float32)
    tensors[3] = torch.tensor([-80.0, 80.0, -60, 60, -70, 70, 0, 0])
    tensors[2] = torch.zeros(8, 8)
    y, ladj = ops.lu_linear(*tensors, inverse=inverse, backend=backend)
    wide = cast(tensors, torch.float64)
    exact, exact_ladj = ops.lu_linear(*wide, inverse=inverse, backend="reference")
    assert y.isfinite().all()
    torch.testing.assert_close(ladj.double(), exact_ladj, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(y.double(), exact, rtol=1e-3, atol=0)


@BACKENDS
@pytest.mark.parametrize(("shape", "channel_dim"), [((3, 4), -1), ((2, 3, 2, 2), 1)])
@BOTH
def test_gradcheck_and_gradgradcheck(backend, shape, channel_dim, inverse) -> None:
    *tensors, permutation, bias = draw(shape, channel_dim)
    leaves = [t.requires_grad_() for t in (*tensors, bias)]

    def f(x, lower, upper, log_s, sign_s, bias):
        return ops.lu_linear(
            x, lower, upper, log_s, sign_s, permutation, bias, channel_dim=channel_dim, inverse=inverse, backend=backend
        )

    assert torch.autograd.gradcheck(f, leaves, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, leaves, fast_mode=True)


@pytest.mark.parametrize(("shape", "channel_dim"), [((5, 4), -1), ((2, 3, 2, 2), 1)])
@BOTH
def test_torch_func(shape, channel_dim, inverse) -> None:
    x, *rest = draw(shape, channel_dim)

    def f(x: Tensor, lower: Tensor, dim: int = channel_dim) -> tuple[Tensor, Tensor]:
        return ops.lu_linear(x, lower, *rest[1:], channel_dim=dim, inverse=inverse)

    def plain(x: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
        return ops.lu_linear(x, lower, *rest[1:], channel_dim=channel_dim, inverse=inverse, backend="reference")

    func, lower = torch.func, rest[0]
    stacked = torch.stack([x, 2 * x])
    torch.testing.assert_close(
        func.vmap(f, (0, None))(stacked, lower), tuple(map(torch.stack, zip(f(x, lower), f(2 * x, lower), strict=True)))
    )
    one = (torch.ones_like(x), torch.ones_like(lower))
    torch.testing.assert_close(func.jvp(f, (x, lower), one), func.jvp(plain, (x, lower), one))
    for transform in (func.jacrev, func.jacfwd):
        torch.testing.assert_close(transform(f, argnums=(0, 1))(x, lower), func.jacrev(plain, argnums=(0, 1))(x, lower))
    leaf = lower.clone().requires_grad_()
    y, _ = f(x, leaf)
    eye = torch.eye(y.numel(), dtype=y.dtype).reshape(-1, *y.shape)
    (batched,) = func.vmap(lambda v: torch.autograd.grad(y, (leaf,), v, retain_graph=True))(eye)
    wanted = func.jacrev(lambda m: plain(x, m)[0])(lower)
    torch.testing.assert_close(batched.reshape(wanted.shape), wanted)


@pytest.mark.interpreted("forward-shape1-1")
@pytest.mark.parametrize(("shape", "channel_dim"), [((5, 4), -1), ((2, 3, 2, 2), 1), ((2, 3, 4, 2), "last")])
@BOTH
def test_compile_export_and_opcheck(shape, channel_dim, inverse) -> None:
    last = channel_dim == "last"
    channel_dim = 1 if last else channel_dim
    tensors = draw(shape, channel_dim)
    if last:
        tensors[0] = tensors[0].contiguous(memory_format=torch.channels_last)
    assert_compiles("lu_linear", ops.lu_linear, tensors, channel_dim, inverse)


def test_same_bits_twice_and_any_layout_of_threads(threads, isa) -> None:
    tensors = cast(draw((6, 24, 16, 16), 1), torch.float32)
    for inverse in (False, True):
        for n in (1, 2):
            threads(n)
            runs = [values_and_gradients(ops.lu_linear, tensors, channel_dim=1, inverse=inverse) for _ in range(2)]
            assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
            first = runs[0][:3] if n == 1 else first  # noqa: F821
        # What is not summed over pixels does not depend on who computed it.
        assert all(torch.equal(a, b) for a, b in zip(first, runs[0][:3], strict=True))


X, M, V, TWO = torch.zeros(4, 3), torch.zeros(3, 3), torch.zeros(3), torch.arange(2)  # on the CPU


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.lu_linear([0.0], M, M, V, V), TypeError, "x must be a tensor, got list"),
        (lambda: ops.lu_linear(X.int(), M, M, V, V), TypeError, "x must be float32, .*, got torch.int32"),
        (lambda: ops.lu_linear(X.to_sparse(), M, M, V, V), TypeError, "x must be a dense tensor"),
        (lambda: ops.lu_linear(X[0, 0], M, M, V, V), ValueError, r"x must be \[..., C\], got a scalar"),
        (lambda: ops.lu_linear(X[0], M, M, V, V, channel_dim=1), ValueError, r"x must be \[N, C, ...\].*got \[3\]"),
        (lambda: ops.lu_linear(X, M, M, V, V, channel_dim=0), ValueError, "channel_dim must be -1 .* or 1 .*, got 0"),
        (lambda: ops.lu_linear(X, M[:2], M, V, V), ValueError, r"lower must be \[3, 3\], got \[2, 3\]"),
        (lambda: ops.lu_linear(X, M, V, V, V), ValueError, r"upper must be \[3, 3\], got \[3\]"),
        (lambda: ops.lu_linear(X, M, M, V[:1], V), ValueError, r"log_s must be \[3\], got \[1\]"),
        (lambda: ops.lu_linear(X, M, M, V, V.to("meta")), ValueError, "sign_s must be on the device of x = cpu"),
        (lambda: ops.lu_linear(X, M, M, V, V.int()), TypeError, "sign_s must be float32, .*, got torch.int32"),
        (lambda: ops.lu_linear(X, M, M, V, V, [0, 1, 2]), TypeError, "permutation must be a tensor or None, got list"),
        (lambda: ops.lu_linear(X, M, M, V, V, V), TypeError, "permutation must be int64, got torch.float32"),
        (lambda: ops.lu_linear(X, M, M, V, V, TWO), ValueError, r"permutation must be \[3\], got \[2\]"),
        (lambda: ops.lu_linear(X, M, M, V, V, bias=M), ValueError, r"bias must be \[3\], got \[3, 3\]"),
    ],
)  # fmt: skip
def test_errors(call, error, message) -> None:
    with pytest.raises(error, match="ops.lu_linear: " + message):
        call()
