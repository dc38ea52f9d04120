"""Parameters that lie one after another, each for all rows, more than 2^31 numbers apart: products of indices and
strides in 32 bits would read elsewhere. In a sparse file, of which a few pages exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import ops

CASES: dict[str, tuple[Callable[..., Any], int]] = {
    "affine": (ops.affine, 2),
    "rqs": (lambda x, params: ops.rqs(x, params, bins=2), 5),
    "mixture": (lambda x, params: ops.mixture(x, params, components=1), 3),
    "polynomial": (ops.polynomial, ops.Polynomial().n_params),
}


def results(f: Callable[..., Any], x: Tensor, params: Tensor) -> list[Tensor]:
    x, params = x.detach().requires_grad_(), params.detach().requires_grad_()
    y, ladj = f(x, params)
    return [t.detach() for t in (y, ladj, *torch.autograd.grad((y.sum() + ladj.sum()), (x, params)))]


@pytest.mark.interpreted
@pytest.mark.parametrize("along", ["params", "features"])
@pytest.mark.parametrize("name", CASES)
def test_strides_have_64_bits(name, along, tmp_path, device, machine) -> None:
    if device.type != "cpu":
        pytest.skip("memory of a file is the CPU's")
    f, n = CASES[name]
    rows, features = 2, 3
    far = 2**31 // ((n if along == "params" else features) - 1) + 8
    strides = (n * features, n, far) if along == "params" else (n, far, 1)
    size = 1 + sum((k - 1) * s for k, s in zip((rows, features, n), strides, strict=True))
    assert size > 2**31
    memory = torch.from_file(str(tmp_path / "sparse"), shared=True, size=size, dtype=torch.float16)
    params = memory.as_strided((rows, features, n), strides)
    draws = torch.Generator().manual_seed(0)
    params.copy_(torch.randn(rows, features, n, generator=draws))
    x = torch.randn(rows, features, generator=draws)
    for found, near in zip(results(f, x, params), results(f, x, params.contiguous()), strict=True):
        assert torch.equal(found, near)
