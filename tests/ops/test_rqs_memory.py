"""Where the spline reads and writes: strides, copies, sizes beyond 2^31, devices and views that lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flowkernels import backends, ops
from tests.ops.spline import draw, run

pytestmark = pytest.mark.usefixtures("one_thread")

deterministic: Any = torch.utils.deterministic


def nine_dims(t: torch.Tensor, extra: int) -> torch.Tensor:
    """Reverses nine leading dims, so that no two of them merge."""
    return t.permute(*reversed(range(9)), *range(9, 9 + extra))


# name → (shape of the dense tensor to draw, how x is made of it, how params are)
VIEWS = {
    "x[..., ::2]": ((6, 8), lambda x: x[..., ::2], lambda p: p[..., ::2, :]),
    "x[::2]": ((12, 4), lambda x: x[::2], lambda p: p[::2]),
    "x[:, 1:]": ((12, 5), lambda x: x[:, 1:], lambda p: p[:, 1:]),
    "transposed": ((7, 5, 3), lambda x: x.transpose(0, 1), lambda p: p.transpose(0, 1)),
    "x-transposed-only": ((7, 5, 3), lambda x: x.transpose(0, 1), lambda p: p.transpose(0, 1).contiguous()),
    "params-transposed-only": ((7, 5, 3), lambda x: x, lambda p: p.transpose(0, 1).contiguous().transpose(0, 1)),
    "features-first": ((3, 40), lambda x: x.t(), lambda p: p.transpose(0, 1)),
    "expanded-params": ((1, 3), lambda x: x.expand(50, 3), lambda p: p.expand(50, 3, -1)),
    "expanded-inside": ((4, 1, 3), lambda x: x.expand(4, 6, 3), lambda p: p.expand(4, 6, 3, -1)),
    "expanded-features": ((9, 1), lambda x: x.expand(9, 5), lambda p: p.expand(9, 5, -1)),
    "one-row-of-params": ((9, 5), lambda x: x, lambda p: p[:1, :1].expand(9, 5, -1)),
    "one-feature-of-many": ((9, 5), lambda x: x[:, 2:3], lambda p: p[:, 2:3]),
    "offset": ((9, 5), lambda x: x[3:7], lambda p: p[3:7]),
    "nine-dims": ((1, 2, 1, 2, 2, 1, 2, 2, 2, 3), lambda x: nine_dims(x, 1), lambda p: nine_dims(p, 2)),
    # one more than kernels take
    "nine-real-dims": ((2,) * 10, lambda x: nine_dims(x, 1), lambda p: nine_dims(p, 2)),
}  # fmt: skip


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("bins", [1, 8, 64])
def test_a_view_gives_the_bits_of_its_copy(all_isas, view, bins, device) -> None:
    shape, of_x, of_params = view
    x, params = draw(shape, device=device, bins=bins)
    vx, vp = of_x(x), of_params(params)
    for _ in all_isas:
        assert run(vx, vp, bins=bins).same_bits(run(vx.contiguous(), vp.contiguous(), bins=bins))


@pytest.mark.parametrize("inverse", [False, True])
def test_params_inside_a_larger_tensor(isa, inverse, dtype, device) -> None:
    """A conditioner that makes the params of two layers at once; and params in the last dim's middle."""
    x, params = draw((9, 3), dtype, device=device, bins=8, inverse=inverse)
    wide = torch.full((9, 3, 40), torch.nan, dtype=dtype, device=device)
    wide[..., 5:28] = params
    dense = run(x, params, bins=8, inverse=inverse)
    assert run(x, wide[..., 5:28], bins=8, inverse=inverse).same_bits(dense)
    apart = torch.full((9, 3, 46), torch.nan, dtype=dtype, device=device)
    apart[..., ::2] = params
    assert run(x, apart[..., ::2], bins=8, inverse=inverse).same_bits(dense)


def test_negative_bit(isa, device) -> None:
    """The imaginary part of a conjugate is a view whose sign lives in a flag, not in memory."""
    x, params = draw((9, 3), device=device, bins=8)
    lazy = torch.complex(torch.zeros_like(x), -x).conj().imag
    lazy_params = torch.complex(torch.zeros_like(params), -params).conj().imag
    assert lazy.is_neg() and torch.equal(lazy, x)
    dense = run(x, params, bins=8)
    assert run(lazy, params, bins=8).same_bits(dense)
    assert run(x, lazy_params, bins=8).same_bits(dense)
    contiguous = torch.ops.aten._neg_view(-x), torch.ops.aten._neg_view(-params)  # unlike an imaginary part
    assert all(t.is_neg() and t.is_contiguous() for t in contiguous)
    assert run(*contiguous, bins=8).same_bits(dense)


def test_a_gradient_with_the_negative_bit(isa, device) -> None:
    x, params = draw((9, 3), device=device, bins=8)
    x.requires_grad_()
    y, _ = ops.rqs(x, params, bins=8)
    g = torch.rand_like(y)
    lazy = torch.ops.aten._neg_view(-g)  # contiguous, unlike the imaginary part
    assert lazy.is_neg() and lazy.is_contiguous()
    a, b = (torch.autograd.grad(y, x, t, retain_graph=True)[0] for t in (g, lazy))
    assert torch.equal(a, b)


def test_another_default_device(isa) -> None:
    """set_default_device("cuda") is common: outputs belong on the device of the inputs."""
    x, params = draw((9, 3), bins=8)
    expected = run(x, params, bins=8)
    x.requires_grad_()
    params.requires_grad_()
    with torch.device("meta"):
        y, ladj = ops.rqs(x, params, bins=8)
        (y.sum() + ladj.sum()).backward()
    assert torch.equal(y, expected.y) and x.grad is not None and x.grad.device.type == "cpu"


def test_another_default_dtype() -> None:
    x, params = draw((9, 3), bins=8)
    expected = run(x, params, bins=8)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert run(x, params, bins=8).same_bits(expected)
    finally:
        torch.set_default_dtype(before)


# ---- no hidden copies ----


def allocated(x: torch.Tensor, params: torch.Tensor) -> int:
    """Bytes that a call without gradients allocates."""
    with torch.profiler.profile(profile_memory=True) as prof:
        ops.rqs(x, params, bins=8)
    return sum(e.self_cpu_memory_usage for e in prof.key_averages() if e.self_cpu_memory_usage > 0)


DENSE = ("x[..., ::2]", "x[::2]", "x[:, 1:]", "transposed", "features-first", "expanded-params", "expanded-inside")


@pytest.mark.parametrize("name", DENSE)
def test_dense_params_are_not_copied(name, device) -> None:
    if device.type != "cpu":
        pytest.skip("counts bytes on the CPU")
    shape, of_x, of_params = VIEWS[name]
    x, params = draw(shape, bins=8)
    x, params = of_x(x), of_params(params)
    outputs = 4 * (x.numel() + x.numel() // x.shape[-1])
    # An allocation is rounded up to 64 bytes; a copy of params would be 23 times x.
    assert allocated(x, params) <= outputs + 2 * 64


# ---- large ----


def available_bytes() -> int:
    with open("/proc/meminfo") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("MemAvailable"))


@pytest.mark.slow
def test_more_params_than_an_int32_counts() -> None:
    """2^31 elements of bfloat16. Pages nobody writes are the kernel's one page of zeros, so that
    only the outputs cost memory."""
    rows, features = 2**31 // (23 * 64) + 9, 64
    if available_bytes() < 6 << 30:
        pytest.skip(f"needs 6 GiB of free memory, has {available_bytes() >> 30}")
    # Without poison: filling 4 GiB with NaN would make the pages real.
    deterministic.fill_uninitialized_memory = False
    params = torch.empty(rows, features, 23, dtype=torch.bfloat16)
    assert params.numel() > 2**31
    x = torch.zeros(rows, features, dtype=torch.bfloat16)
    small_x, small_params = draw((5, features), torch.bfloat16, bins=8)
    x[-5:], params[-5:] = small_x, small_params
    expected = run(small_x, small_params, bins=8)
    y, ladj = ops.rqs(x, params, bins=8)
    assert torch.equal(y[-5:], expected.y) and torch.equal(ladj[-5:], expected.ladj)


@pytest.mark.slow
def test_gradients_beyond_an_int32() -> None:
    """The backward writes as many elements as it reads: stride 0 keeps the reading small. Called
    below autograd, which would write the sum over the expanded rows too."""
    rows, features = 2**31 // (23 * 64) + 9, 64
    need = 2 * 23 * rows * features + (2 << 30)
    if available_bytes() < need:
        pytest.skip(f"needs {need >> 30} GiB of free memory, has {available_bytes() >> 30}")
    deterministic.fill_uninitialized_memory = False
    x, params = draw((1, features), torch.bfloat16, bins=8)
    spec = ops.RQS(8)
    cpu = backends.pick("rqs", "cpu", spec, (x, params))

    def gradient(n: int) -> torch.Tensor:
        given = torch.ones(1, 1, dtype=x.dtype).expand(n, features), torch.ones(1).expand(n)
        inputs = x.expand(n, features), params.expand(n, features, 23)
        return cpu.bwd(spec, given, inputs, (True, True))[1]

    small, large = gradient(1), gradient(rows)
    assert large.numel() > 2**31
    for row in (0, rows // 2, rows - 1):
        assert torch.equal(large[row], small[0])
