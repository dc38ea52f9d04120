"""torch.set_default_device moves nothing of ours: what is made without a device would lie apart from the tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flowkernels import ops
from flowkernels.ops.autoregressive_inverse import triton as sweep_triton
from flowkernels.ops.net import triton as masked_triton
from flowkernels.transforms import RQS, Permutation
from tests.ops import test_lu_linear
from tests.ops.masked import SHAPES, draw, plan_of

pytestmark = pytest.mark.usefixtures("one_thread")


ELSEWHERE = torch.device("meta")  # a GPU as far as devices go: tensors there and on the CPU do not mix
# Of no other test: what hangs on a plan is made by its first call.
SHAPE = SHAPES["residual"]._replace(D=11, P=RQS(bins=4).n_params)


def _network(f: Callable[..., Any]) -> tuple[Callable[..., Any], list[Tensor]]:
    problem = draw(SHAPE)

    def call(*tensors: Tensor, backend: str) -> Any:
        x, layers, adds = problem.split(list(tensors))
        return f(x, layers, problem.plan, adds, backend)

    return call, problem.tensors


def problems() -> dict[str, tuple[Callable[..., Any], list[Tensor]]]:
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device="cpu")

    def sweep(x: Tensor, layers: Any, plan: Any, adds: Any, backend: str) -> Any:
        return ops.autoregressive_inverse(x, layers, plan, RQS(bins=4), adds=adds, backend=backend)

    def made(x: Tensor, layers: Any, plan: Any, adds: Any, backend: str) -> Any:
        return ops.made(x, layers, plan, adds=adds, backend=backend)

    return {
        "rqs": (lambda x, p, backend: ops.rqs(x, p, bins=4, backend=backend), [randn(5, 3, 4).mT, randn(5, 4, 3, 11)]),
        "affine": (lambda x, p, backend: ops.affine(x, p, backend=backend), [randn(4, 3).t(), randn(3, 4, 2)]),
        "lu_linear": (ops.lu_linear, test_lu_linear.draw((7, 5), -1)),
        "made": _network(made),
        "autoregressive_inverse": _network(sweep),
    }


def results(f: Callable[..., Any], tensors: list[Tensor], backend: str) -> list[Tensor]:
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
    found = f(*leaves, backend=backend)
    outputs = [found] if isinstance(found, Tensor) else list(found)
    wanted = [t for t in leaves if t.requires_grad]
    return [*outputs, *torch.autograd.grad(outputs, wanted, [torch.ones_like(o) for o in outputs])]


@pytest.mark.usefixtures("narrow_blocks")
@pytest.mark.parametrize("backend", ["cpu", "cuda"])
@pytest.mark.parametrize("op", ["rqs", "affine", "lu_linear", "made", "autoregressive_inverse"])
def test_ops_run_where_their_tensors_are(op, backend, cuda_on_cpu) -> None:
    f, tensors = problems()[op]
    with ELSEWHERE:
        found = results(f, tensors, backend)
    assert all(t.is_cpu and not t.isnan().any() for t in found)


def test_what_triton_keeps_of_a_plan_is_where_it_is_asked_for() -> None:
    cpu, plan = torch.device("cpu"), plan_of(SHAPE)
    with ELSEWHERE:
        stairs = [masked_triton._stairs(layer, cpu) for layer in plan.layers]
        sweep = sweep_triton._sweep(plan, (False,) * len(plan.layers), cpu)
    assert all(t is None or t.device == cpu for s in stairs for t in s)
    assert sweep.steps.device == sweep.packed.device == cpu


def test_a_permutation_is_drawn_where_its_generator_is() -> None:
    with ELSEWHERE:
        order = torch.randperm(5, generator=torch.Generator().manual_seed(0), device="cpu").tolist()
        assert Permutation.random(5, seed=0).order.device == ELSEWHERE
    assert Permutation.random(5, seed=0).order.tolist() == order
