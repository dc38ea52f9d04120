"""`Flow.memory = "flat"`: what is kept for backward does not grow with depth, and gradients are what they were."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from flowkernels import flows, transforms
from flowkernels.transforms import reversible

CONTEXT = 3
FEATURES: dict[str, Callable[[int], flows.Flow]] = {
    "NSF with LU": lambda n: flows.NSF(5, transforms=n, hidden=(16, 16), linear="lu"),
    "Real NVP": lambda n: flows.RealNVP(5, transforms=n, hidden=(16,)),
    "MAF": lambda n: flows.MAF(5, transforms=n, hidden=(16,)),
    "NICE": lambda n: flows.NICE(5, transforms=n, hidden=(16,)),
    "MAF with a context": lambda n: flows.MAF(5, context=CONTEXT, transforms=n, hidden=(16,)),
}
IMAGES: dict[str, Callable[[int], flows.Flow]] = {
    "Glow": lambda n: flows.Glow((2, 8, 8), levels=2, steps=n, hidden=(16, 16)),
    "Glow with a context": lambda n: flows.Glow((2, 8, 8), context=CONTEXT, levels=2, steps=n, hidden=(16, 16)),
    "Glow, shuffled": lambda n: flows.Glow((2, 8, 8), levels=2, steps=n, hidden=(16, 16), permutation="shuffle"),
    "FloWaveNet": lambda n: flows.FloWaveNet((2, 32), CONTEXT, blocks=2, steps=n, hidden=8, leave_every=1),
    "Real NVP": lambda n: flows.RealNVP((2, 8, 8), levels=2, transforms=n, hidden=(16, 16)),
    "Real NVP with batch norm": lambda n: flows.RealNVP(
        (2, 8, 8), levels=2, transforms=n, hidden=(16, 16), batch_norm=True
    ).eval(),
}
DTYPES = {torch.float32: 2e-5, torch.float64: 1e-12}  # how far gradients are of their 2-norm


def made(make: Callable[[int], flows.Flow], n: int = 3, dtype: torch.dtype = torch.float32) -> flows.Flow:
    """A flow that is not the identity, and whose actnorms have had their batch."""
    torch.manual_seed(0)
    flow = make(n).to(dtype)
    flow.log_prob(*given(flow, 6))
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return flow


def given(flow: flows.Flow, batch: int) -> tuple[Tensor, Tensor | None]:
    dtype, draws = next(flow.parameters()).dtype, torch.Generator().manual_seed(1)
    x = torch.randn(batch, *flow.event_shape, generator=draws, dtype=dtype)
    has_context = any(getattr(m, "context_features", 0) for m in flow.modules())
    return x, torch.randn(batch, CONTEXT, generator=draws, dtype=dtype) if has_context else None


class Found(NamedTuple):
    values: list[Tensor]
    grads: list[Tensor | None]
    kept: int  # bytes, but for parameters


def run(flow: flows.Flow, memory: str, batch: int = 9, sample: bool = False) -> Found:
    """log_prob or draws, gradients of x, context and parameters, and what was kept for them."""
    flow.memory = memory
    x, context = given(flow, batch)
    leaves = [t.requires_grad_() for t in (x, context) if t is not None]
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if not isinstance(t, nn.Parameter):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        if sample:
            y, ladj = flow.transform.inverse(x.flatten(1), context)
            values = [y, ladj]
        else:
            values = [flow.log_prob(x, context)]
        loss = sum(v.square().sum() for v in values)
    wanted = [*leaves, *flow.parameters()]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True)  # type: ignore[arg-type]
    return Found([v.detach() for v in values], list(grads), sum(kept.values()))


def assert_same_bits(a: Found, b: Found) -> None:
    for s, t in zip([*a.values, *a.grads], [*b.values, *b.grads], strict=True):
        assert (s is None) == (t is None)
        assert s is None or torch.equal(s, t)


def assert_close(a: Found, b: Found, rtol: float) -> None:
    for s, t in zip([*a.values, *a.grads], [*b.values, *b.grads], strict=True):
        assert (s is None) == (t is None)
        assert s is None or t is None or (s - t).norm() <= rtol * (1 + t.norm())


# ---- features: one op, which goes forward again ----


@pytest.mark.parametrize("precision", DTYPES, ids=str)
@pytest.mark.parametrize("name", FEATURES)
def test_flows_of_features_have_the_same_bits(name, precision) -> None:
    flow = made(FEATURES[name], dtype=precision)
    for batch in (1, 4, 5, 40):
        assert_same_bits(run(flow, "flat", batch), run(flow, "fast", batch))


@pytest.mark.parametrize("name", ["NSF with LU", "MAF", "MAF with a context"])
def test_draws_have_the_same_bits(name) -> None:
    flow = made(FEATURES[name])
    for batch in (1, 9, 40):
        assert_same_bits(run(flow, "flat", batch, sample=True), run(flow, "fast", batch, sample=True))


@pytest.mark.parametrize("sample", [False, True], ids=["log_prob", "draws"])
@pytest.mark.parametrize("name", FEATURES)
def test_what_flows_of_features_keep_does_not_grow(name, sample) -> None:
    if "context" in name:
        pytest.skip("what a context adds to a hidden layer is an input of the op, one of each network")
    few, many = (made(FEATURES[name], n) for n in (2, 8))
    of_layers = run(many, "fast", 200, sample).kept - run(few, "fast", 200, sample).kept
    assert run(many, "flat", 200, sample).kept - run(few, "flat", 200, sample).kept <= 0.05 * of_layers


# ---- images: layers are inverted ----


@pytest.mark.parametrize("precision", DTYPES, ids=str)
@pytest.mark.parametrize("sample", [False, True], ids=["log_prob", "draws"])
@pytest.mark.parametrize("name", IMAGES)
def test_flows_of_images_have_the_same_gradients(name, sample, precision) -> None:
    flow = made(IMAGES[name], dtype=precision)
    assert_close(run(flow, "flat", sample=sample), run(flow, "fast", sample=sample), DTYPES[precision])


@pytest.mark.parametrize("name", IMAGES)
def test_what_flows_of_images_keep_does_not_grow(name) -> None:
    few, many = (run(made(IMAGES[name], n), "flat").kept for n in (2, 6))
    assert few == many < run(made(IMAGES[name], 2), "fast").kept / 2


def test_inverses_that_lose_too_much_give_way_to_a_run_that_keeps_everything(monkeypatch) -> None:
    flow = made(IMAGES["Glow"])
    monkeypatch.setattr(reversible, "FAR", {torch.float32: -1.0})
    with pytest.warns(UserWarning, match="must find the input of layers by inverses within"):
        flat = run(flow, "flat")
    assert_same_bits(flat, run(flow, "fast"))


def test_a_scale_that_loses_digits_is_seen() -> None:
    """One channel is mapped onto almost nothing: what comes back is not what went in."""
    flow = made(IMAGES["Glow"])
    with torch.no_grad():
        norm = next(m for m in flow.modules() if isinstance(m, transforms.ActNorm))
        norm.log_scale.fill_(-25.0)
        norm.shift.fill_(1.0)
    with pytest.warns(UserWarning, match="computed again with everything kept"):
        flat = run(flow, "flat")
    assert_close(flat, run(flow, "fast"), DTYPES[torch.float32])


def test_a_nan_is_the_gradients_alone() -> None:
    flow = made(IMAGES["Glow"])
    flow.memory = "flat"
    x = given(flow, 3)[0]
    x[1] = float("nan")
    with pytest.warns(UserWarning, match="got nan"):
        flow.log_prob(x)[[0, 2]].sum().backward()


def test_what_asks_to_be_called_keeps_what_it_keeps() -> None:
    """Hooks are called once forward, dropout draws once: such a layer is not run a second time."""
    torch.manual_seed(0)
    calls: list[int] = []
    layers = [transforms.ActNorm(2, channel_dim=1) for _ in range(4)]
    layers[1].register_forward_hook(lambda *_: calls.append(1))
    flow = transforms.Composite(layers)
    flow.memory = "flat"
    x = torch.randn(3, 2, 4, 4, requires_grad=True)
    y, ladj = flow(x)
    (y.sum() + ladj.sum()).backward()
    assert len(calls) == 1


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_is_run_again_in_evaluation_alone(training) -> None:
    flow = made(lambda n: flows.RealNVP((2, 4, 4), levels=1, transforms=n, hidden=(8,), batch_norm=True))
    flow.train(training)
    other = copy.deepcopy(flow)
    assert_close(run(flow, "flat"), run(other, "fast"), DTYPES[torch.float32])
    for a, b in zip(flow.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b)  # statistics were updated once


def test_the_first_batch_of_actnorm_is_seen_once() -> None:
    torch.manual_seed(0)
    flow = IMAGES["Glow"](2)
    other = copy.deepcopy(flow)
    assert_close(run(flow, "flat"), run(other, "fast"), DTYPES[torch.float32])
    for a, b in zip(flow.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("make", [FEATURES["Real NVP"], IMAGES["Glow"]], ids=["features", "images"])
def test_a_parameter_written_to_before_backward_is_noticed(make) -> None:
    flow = made(make)
    flow.memory = "flat"
    loss = flow.log_prob(*given(flow, 6)).sum()
    with torch.no_grad():
        next(iter(flow.parameters())).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_only_one_of_the_outputs_used() -> None:
    flow = made(IMAGES["Glow"])
    for i in (0, 1):
        grads = []
        for flow.memory in ("flat", "fast"):
            x = given(flow, 4)[0].requires_grad_()
            grads.append(torch.autograd.grad(flow.transform(x)[i].square().sum(), x)[0])
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


# ---- the setting ----


def test_it_is_set_on_every_composite_and_stays_with_copies() -> None:
    flow = IMAGES["Glow"](2)
    assert flow.memory == "fast"
    flow.memory = "flat"
    assert all(m.memory == "flat" for m in flow.modules() if isinstance(m, transforms.Composite))
    assert copy.deepcopy(flow).memory == pickle.loads(pickle.dumps(flow)).memory == "flat"
    flow.memory = "fast"
    assert flow.memory == "fast"


def test_a_composite_of_an_older_file_is_fast() -> None:
    old = transforms.Composite([transforms.Permutation.reverse(3)])
    state = {name: value for name, value in old.__dict__.items() if name != "memory"}
    new: Any = object.__new__(transforms.Composite)
    new.__setstate__(state)
    assert new.memory == "fast" and torch.equal(new(torch.arange(3.0))[0], torch.tensor([2.0, 1.0, 0.0]))


@pytest.mark.parametrize("wrong", ["reversible", None, 1, True])
def test_errors(wrong) -> None:
    flow = FEATURES["NICE"](1)
    with pytest.raises(ValueError, match=r'flows\.Flow: memory must be "fast" or "flat", got'):
        flow.memory = wrong


@pytest.mark.slow
def test_compiled_it_is_the_same() -> None:
    flow = made(FEATURES["Real NVP"])
    flow.memory = "flat"
    x = given(flow, 9)[0]
    expected = run(flow, "flat")
    compiled = torch.compile(flow.log_prob)(x)
    assert torch.equal(compiled, expected.values[0])
    grads = torch.autograd.grad(compiled.square().sum(), list(flow.parameters()))
    for a, b in zip(grads, expected.grads[1:], strict=True):
        assert torch.equal(a, b)
