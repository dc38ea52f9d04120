"""Every CUDA kernel on tensors small enough for compute-sanitizer, under which `make gpu-check` runs this file with
`--device cuda`; on the CPU, in the emulator. Asks that all outputs are written: numbers have tests of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import ops
from tests.cuda.test_bounds import CASES, SETTINGS
from tests.cuda.test_channels import OPS
from tests.ops import test_autoregressive_inverse as sweep
from tests.ops import test_made as made
from tests.ops import test_monotone_net as monotone
from tests.ops.channels import cast
from tests.ops.masked import SHAPES, draw

pytestmark = pytest.mark.usefixtures("kernels", "one_thread")
# Kernels are compiled for both; what is stored in 16 bits is converted at the edges.
DTYPES = pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])


def assert_written(f: Callable[..., Any], tensors: list[Tensor]) -> None:
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
    found = list(f(*leaves))
    outputs, wanted = ([t for t in of if t.requires_grad] for of in (found, leaves))
    found += torch.autograd.grad(outputs, wanted, [torch.ones_like(t) for t in outputs])
    assert all(t.isfinite().all() for t in found)


# Rows that 16 bytes divide, and rows that they do not.
@pytest.mark.parametrize("shape", [(3, 32), (5, 7)], ids=str)
@pytest.mark.parametrize(
    ("op", "settings"), [(op, s) for op, all_of in SETTINGS.items() for s in all_of if "mask" not in s], ids=str
)
@DTYPES
def test_elementwise(op, settings, shape, precision) -> None:
    torch.manual_seed(0)
    f, tensors = CASES[op](shape, precision, **settings)
    assert_written(lambda *t: f(*t, backend="cuda", **settings), tensors)


@pytest.mark.parametrize(("shape", "dim"), [((2, 5, 3, 3), 1), ((37, 10), -1)], ids=["planes", "rows"])
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("op", OPS)
@DTYPES
def test_channels(op, shape, dim, inverse, precision) -> None:
    f, draw = OPS[op]
    tensors = cast(draw(shape, dim), precision)
    assert_written(lambda *t: f(*t, channel_dim=dim, inverse=inverse, backend="cuda"), tensors)


@pytest.mark.parametrize("shape", ["three features", "residual"])
@pytest.mark.parametrize("name", ["softplus", "spline", "soft clip"])
@DTYPES
def test_sweep(name, shape, precision) -> None:
    univariate = sweep.UNIVARIATES[name]
    problem = sweep.make(sweep.SHAPES[shape], univariate)
    tensors = [t.to(precision) for t in problem.tensors]
    assert_written(lambda *t: sweep.solve(problem, univariate, "cuda", list(t)), tensors)


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("form", ["integral", "positive"])
@DTYPES
def test_monotone_net(form, inverse, precision) -> None:
    layers = [t for layer in monotone.layers_of(9, 5, D=2) for t in layer]
    tensors = [t.to(precision) for t in (monotone.drawn(35, 2), monotone.drawn(35, 2, 2), *layers)]

    def call(x: Tensor, signal: Tensor, *rest: Tensor) -> Any:
        pairs = list(zip(rest[::2], rest[1::2], strict=True))
        return ops.monotone_net(x, signal, pairs, form=form, nodes=3, inverse=inverse, backend="cuda")

    assert_written(call, tensors)


@pytest.mark.usefixtures("narrow_blocks")
@pytest.mark.parametrize("shape", ["two features", "three features", "residual"])
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
@DTYPES
def test_masked_layers(activation, shape, precision, device) -> None:
    problem = draw(SHAPES[shape])
    tensors = [t.to(device, precision) for t in problem.tensors]
    assert_written(lambda *t: [made.call(problem, "cuda", list(t), activation)], tensors)
