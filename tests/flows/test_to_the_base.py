"""`log_prob` of a flow whose layers are one run: its standard normal is one more step of that run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowkernels import flows
from flowkernels.distributions import StandardLogistic, StandardNormal
from flowkernels.flows import Flow
from flowkernels.ops.flow import op
from flowkernels.ops.flow.steps import NormalSpec
from flowkernels.transforms import Composite, Inverse
from tests.runs import WHERE_THEY_RUN, drawn

pytestmark = [pytest.mark.usefixtures("one_thread"), WHERE_THEY_RUN]
D, B = 5, 37
SMALL: dict[str, Any] = {"transforms": 3, "hidden": (16, 16)}
MODELS: dict[str, Callable[[], Any]] = {
    "Real NVP": lambda: flows.RealNVP(D, **SMALL),
    "NSF, LU layers": lambda: flows.NSF(D, **SMALL, linear="lu"),
    "NSF, a context": lambda: flows.NSF(D, context=2, **SMALL),
    "MAF": lambda: flows.MAF(D, **SMALL),
    "an order at the end": lambda: flows.MAF(D, **SMALL, linear="reverse"),
}


@pytest.fixture
def bases(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each run of the op ended in the base."""
    found: list[bool] = []
    run = op.run

    def seen(backend: Any, spec: Any, tensors: Any) -> Any:
        found.append(isinstance(spec.steps[-1], NormalSpec))
        return run(backend, spec, tensors)

    monkeypatch.setattr(op, "run", seen)
    return found


def built(name: str = "Real NVP") -> Any:
    torch.manual_seed(0)
    flow = MODELS[name]()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return flow


def context_of(flow: Any, rows: int = B) -> Tensor | None:
    return drawn(rows, 2, seed=2) if any(getattr(m, "context_features", 0) for m in flow.modules()) else None


def in_parts(flow: Any, x: Tensor, context: Tensor | None = None) -> Tensor:
    z, ladj = flow.transform(x, context)
    return flow.base.log_prob(z) + ladj


def results(call: Any, flow: Any, x: Tensor, context: Tensor | None) -> list[Tensor]:
    x = x.detach().requires_grad_()
    leaves = [x, *flow.parameters()]
    log_p = call(x, context)
    grads = torch.autograd.grad(log_p.cos().sum(), leaves, allow_unused=True)
    return [log_p.detach(), *(g for g in grads if g is not None)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_numbers(name, precision, bases) -> None:
    """As exact as the parts, values and gradients: an error of at most twice theirs, and a few ulp."""
    exact = built(name).double()
    flow = copy.deepcopy(exact).to(precision)
    c = context_of(flow)
    truth = results(lambda *a: in_parts(exact, *a), exact, drawn(B, D).double(), None if c is None else c.double())
    bases.clear()
    x, c = drawn(B, D).to(precision), None if c is None else c.to(precision)
    mine = results(flow.log_prob, flow, x, c)
    assert bases == [True]
    theirs = results(lambda *a: in_parts(flow, *a), flow, x, c)
    assert bases == [True, False]
    if precision is torch.float64:  # in which the truth itself is rounded
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
        return
    for a, b, t in zip(mine, theirs, truth, strict=True):
        few_ulp = 8 * torch.finfo(precision).eps * max(1.0, t.abs().max().item())
        assert (a - t).abs().max() <= 2 * (b - t).abs().max() + few_ulp


@pytest.mark.parametrize("lead", [(), (1,), (0,), (3, 7)])
def test_leading_dims(lead, bases) -> None:
    flow, x = built(), drawn(*lead, D)
    torch.testing.assert_close(flow.log_prob(x), in_parts(flow, x))
    assert flow.log_prob(x).shape == lead and bases[0]


def test_rows_that_are_far_out(bases) -> None:
    flow = built()
    x = drawn(6, D)
    x[1], x[3, 0], x[4] = 1e30, float("inf"), float("nan")
    mine, parts = flow.log_prob(x), in_parts(flow, x)
    torch.testing.assert_close(mine, parts, equal_nan=True)
    assert bases[0] and mine[[0, 2, 5]].isfinite().all()


def test_flat_memory(bases) -> None:
    flow, x = built("NSF, LU layers"), drawn(300, D)
    fast = results(flow.log_prob, flow, x, None)
    flow.memory = "flat"
    for a, b in zip(results(flow.log_prob, flow, x, None), fast, strict=True):
        assert torch.equal(a, b)
    assert bases == [True, True]


def test_second_derivatives_and_transforms() -> None:
    """By the reference, which has the base, too."""
    flow, x = built("NSF, LU layers").double(), drawn(4, D).double()
    expected = torch.func.hessian(lambda v: in_parts(flow, v))(x[0])
    torch.testing.assert_close(torch.func.hessian(flow.log_prob)(x[0]), expected)
    torch.testing.assert_close(torch.func.vmap(flow.log_prob)(x), in_parts(flow, x))
    leaf = x[:1].clone().requires_grad_()
    (grad,) = torch.autograd.grad(flow.log_prob(leaf).sum(), leaf, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(grad[0, 0], leaf)[0][0], expected[0])


# ---- where it is asked for what only the parts can do ----


def test_a_hook_on_the_transform_is_called(bases) -> None:
    flow, x, seen = built(), drawn(B, D), []
    expected = flow.log_prob(x)
    handle = flow.transform.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(flow.log_prob(x), expected)
    assert seen == [1] and bases == [True, False]
    handle.remove()
    assert torch.equal(flow.log_prob(x), expected) and bases == [True, False, True]


def test_a_hook_of_all_modules_is_called(bases) -> None:
    flow, x, seen = built(), drawn(B, D), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(m))
    try:
        flow.log_prob(x)
    finally:
        handle.remove()
    assert flow.transform in seen and True not in bases


class Shifted(StandardNormal):
    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().log_prob(x - 1, context)


@pytest.mark.parametrize("base", [StandardLogistic(D), Shifted(D)], ids=["logistic", "a subclass"])
def test_another_base(base, bases) -> None:
    flow, x = built(), drawn(B, D)
    flow.base = base
    assert torch.equal(flow.log_prob(x), in_parts(flow, x)) and True not in bases


def test_a_method_of_the_users_own(bases) -> None:
    flow, x = built(), drawn(B, D)
    flow.base.log_prob = lambda z, context=None: z.sum(-1)
    assert torch.equal(flow.log_prob(x), in_parts(flow, x)) and True not in bases


def test_a_base_of_other_features_says_so() -> None:
    flow = built()
    flow.base = StandardNormal(D + 1)
    with pytest.raises(ValueError, match=r"StandardNormal: x must be \[..., 6\], got \[37, 5\]"):
        flow.log_prob(drawn(B, D))


def test_other_transforms(bases) -> None:
    """A transform that is not one run: a sweep, several runs, none."""
    x = drawn(B, D)
    inner = built("MAF").transform
    for transform in (Inverse(inner), Composite([Inverse(inner)]), Composite([])):
        flow = Flow(transform, StandardNormal(D))
        assert torch.equal(flow.log_prob(x), in_parts(flow, x))
    assert True not in bases


def test_what_changes_is_seen(bases) -> None:
    flow, x = built(), drawn(B, D)
    before = flow.log_prob(x)
    with torch.no_grad():
        next(flow.parameters()).mul_(2)
    assert not torch.equal(flow.log_prob(x), before)
    torch.testing.assert_close(flow.log_prob(x), in_parts(flow, x))
    flow.double()
    torch.testing.assert_close(flow.log_prob(x.double()), in_parts(flow, x.double()))
    flow.transform.transforms[0] = built("MAF").double().transform[0]
    torch.testing.assert_close(flow.log_prob(x.double()), in_parts(flow, x.double()))
    assert bases.count(True) == 5


def test_compiled_it_is_one_node_to_the_base() -> None:
    torch._dynamo.reset()
    flow, x, seen = built("NSF, LU layers"), drawn(B, D), []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.extend(str(n.target) for n in graph.graph.nodes if n.op == "call_function")
        return graph.forward

    compiled: Any = torch.compile(flow.log_prob, backend=backend, fullgraph=True)
    assert torch.equal(compiled(x), flow.log_prob(x))
    assert sum("flowkernels.flow" in s for s in seen) == 1 and not any("square" in s for s in seen)
    flow.transform.register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="a compiled flow must have the layers with which it was compiled"):
        compiled(x)


def test_a_method_that_all_bases_are_given(bases, monkeypatch) -> None:
    flow, x = built(), drawn(B, D)
    monkeypatch.setattr(StandardNormal, "log_prob", lambda self, z, context=None: z.sum(-1))
    assert torch.equal(flow.log_prob(x), in_parts(flow, x)) and True not in bases
