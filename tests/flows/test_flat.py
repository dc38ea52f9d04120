"""`Flow.flatten_parameters`: the parameters are views of one, and training with that one is training with them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flowkernels
from flowkernels import flows


def made(**more: Any) -> flows.Flow:
    torch.manual_seed(0)
    return flows.NSF(3, transforms=2, hidden=(8,), linear="lu", **more)


X = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))


def test_names_values_and_the_state_dict_stay() -> None:
    flow = made()
    before, y = {k: v.clone() for k, v in flow.state_dict().items()}, flow.log_prob(X)
    flat = flow.flatten_parameters()
    after = flow.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[k], v) for k, v in before.items())
    assert torch.equal(flow.log_prob(X), y)
    assert flat.numel() == sum(p.numel() for p in flow.parameters())
    flow.load_state_dict({k: v + 1 for k, v in before.items() if v.is_floating_point()}, strict=False)
    assert torch.equal(flat, torch.cat([p.detach().flatten() for p in flow.parameters()]))


def _train(flow: flows.Flow, flat: Any, steps: int, parts: int = 1) -> None:
    optimizer = torch.optim.Adam(flow.parameters() if flat is None else [flat], lr=1e-2, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        for x in X.chunk(parts):
            (-flow.log_prob(x).mean()).backward()
            if flat is not None:
                flat.collect()
        optimizer.step()


@pytest.mark.parametrize("parts", [1, 3])
def test_training_is_the_same(parts) -> None:
    one, other = made(), made()
    flat = one.flatten_parameters()
    _train(one, flat, 5, parts)
    _train(other, None, 5, parts)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)  # Adam rounds the last numbers of a tensor otherwise
        assert a.grad is None  # it is the flat one's now


def test_clipping_sees_the_norm_of_all() -> None:
    flow, other = made(), made()
    flat = flow.flatten_parameters()
    for model in (flow, other):
        (-model.log_prob(X).sum()).backward()
    flat.collect()
    norm = torch.nn.utils.clip_grad_norm_([flat], 1.0)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0))
    expected = torch.cat([p.grad.flatten() for p in other.parameters() if p.grad is not None])
    torch.testing.assert_close(flat.grad, expected)


def test_missing_gradients_are_zero_and_none_at_all_is_none() -> None:
    flow = made()
    flat = flow.flatten_parameters()
    flat.collect()
    assert flat.grad is None
    first = next(flow.parameters())
    first.grad = torch.ones_like(first)
    flat.collect()
    assert isinstance(flat.grad, Tensor) and flat.grad[: first.numel()].eq(1).all() and flat.grad.sum() == first.numel()


def test_a_step_before_backward_is_noticed() -> None:
    flow = made()
    flat = flow.flatten_parameters()
    loss = flow.log_prob(X).sum()
    with torch.no_grad():
        flat.add_(1e-3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_warm_flow_sees_every_step() -> None:
    """What is kept of its layers does not outlive the values it was read from."""
    flow = made()
    flow.log_prob(X)
    flat = flow.flatten_parameters()
    before = flow.log_prob(X)
    with torch.no_grad():
        flat.mul_(1.5)
    fresh = made()
    fresh.load_state_dict(flow.state_dict())
    assert torch.equal(flow.log_prob(X), fresh.log_prob(X)) and not torch.equal(flow.log_prob(X), before)


def test_what_is_not_learned_is_left_alone_and_what_is_shared_stays_shared() -> None:
    flow = made()
    frozen = next(flow.parameters()).requires_grad_(False)
    flow.embedding = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    a, b = flow.embedding
    b.weight = a.weight
    flat = flow.flatten_parameters()
    assert next(flow.parameters()) is frozen and a.weight is b.weight
    assert flat.numel() == sum(p.numel() for p in flow.parameters() if p.requires_grad)


def test_copies_and_files_are_of_their_own(tmp_path: Path) -> None:
    flow = made()
    flat = flow.flatten_parameters()
    other = copy.deepcopy(flow)
    flow.save(tmp_path / "flow.safetensors")
    y = flow.log_prob(X)
    with torch.no_grad():
        flat.mul_(1.5)
    assert torch.equal(other.log_prob(X), y)
    assert torch.equal(flowkernels.load(tmp_path / "flow.safetensors").log_prob(X), y)


def test_errors() -> None:
    flow = made()
    flat = flow.flatten_parameters()
    flow.double()
    with pytest.raises(
        RuntimeError, match="parameters must still be views of the flat one, got a module that was moved"
    ):
        flat.collect()
    next(flow.parameters()).data = next(flow.parameters()).data.float()
    with pytest.raises(ValueError, match=r"of one dtype and device, got torch\.float32 on cpu, torch\.float64 on cpu"):
        flow.flatten_parameters()
    with pytest.raises(ValueError, match="got none"):
        made().requires_grad_(False).flatten_parameters()


# ---- direct ----


def _learned(y: Tensor) -> int:
    """How many tensors autograd sends gradients to."""
    found, left = set(), [y.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [n for n, _ in node.next_functions]
    return sum(type(n).__name__ == "AccumulateGrad" for n in found)


@pytest.mark.parametrize("kind", ["NSF", "lu", "MAF", "flat memory"])
@pytest.mark.parametrize("rows", [0, 1, 3, 20])
def test_direct_gradients_are_those_of_the_views(kind, dtype, rows) -> None:
    if dtype.itemsize < 4:
        pytest.skip("layers of 16 bits run one by one")

    def flow() -> flows.Flow:
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"transforms": 2, "hidden": (8,)}
        made = flows.MAF(3, **sizes) if kind == "MAF" else flows.NSF(3, **sizes, linear="lu" if kind == "lu" else None)
        if kind == "flat memory":
            made.memory = "flat"
        return made.to(dtype)

    one, other = flow(), flow()
    flat = one.flatten_parameters(direct=True)
    indirect = other.flatten_parameters()
    x = X[:rows].to(dtype)
    xs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    y = one.log_prob(xs[0])
    assert _learned(y) == 2  # x and the flat one
    y.exp().sum().backward()
    other.log_prob(xs[1]).exp().sum().backward()
    assert all(p.grad is None for p in one.parameters())
    flat.collect()
    indirect.collect()
    assert flat.grad is not None and torch.equal(flat.grad, indirect.grad) and torch.equal(xs[0].grad, xs[1].grad)


def test_direct_training_is_the_same() -> None:
    one, other = made(), made()
    flat, indirect = one.flatten_parameters(direct=True), other.flatten_parameters()
    _train(one, flat, 5, 3)
    _train(other, indirect, 5, 3)
    assert torch.equal(flat, indirect)


def test_direct_second_derivatives() -> None:
    one, other = made().double(), made().double()
    flat, indirect = one.flatten_parameters(direct=True), other.flatten_parameters()
    x = X.double()
    (g,) = torch.autograd.grad(one.log_prob(x).sum(), flat, create_graph=True)
    gs = torch.autograd.grad(other.log_prob(x).sum(), list(other.parameters()), create_graph=True)
    torch.testing.assert_close(g, torch.cat([p.reshape(-1) for p in gs]))
    g.square().sum().backward()
    sum(p.square().sum() for p in gs).backward()
    flat.collect()
    indirect.collect()
    torch.testing.assert_close(flat.grad, indirect.grad)


def test_direct_where_it_cannot_be() -> None:
    """A frozen view, a module that was moved, hooks on a layer, a part that no call has: as without."""
    for change in ("frozen", "moved", "hooked", "more"):
        flow = made()
        if change == "more":
            flow.register_parameter("temperature", nn.Parameter(torch.ones(3)))
        flat = flow.flatten_parameters(direct=True)
        x = X
        if change == "frozen":
            next(flow.parameters()).requires_grad_(False)
        if change == "moved":
            flow.double()
            x = X.double()
        if change == "hooked":
            next(m for m in flow.modules() if isinstance(m, nn.Linear)).register_forward_hook(lambda *_: None)
        flow.log_prob(x).sum().backward()
        learned = [p for n, p in flow.named_parameters() if p.requires_grad and n != "temperature"]
        assert flat.grad is None and all(p.grad is not None for p in learned), change


def test_direct_notices_a_step_before_backward_and_knows_copies() -> None:
    flow = made()
    flat = flow.flatten_parameters(direct=True)
    other = copy.deepcopy(flow)
    other.log_prob(X).sum().backward()
    assert flat.grad is None and all(p.grad is not None for p in other.parameters())
    loss = flow.log_prob(X).sum()
    with torch.no_grad():
        flat.add_(1e-3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with pytest.raises(ValueError, match="direct must be True or False, got 'no'"):
        made().flatten_parameters(direct="no")  # type: ignore[arg-type]


def test_flattened_again() -> None:
    flow, other = made(), made()
    for _ in range(2):
        flow.log_prob(X)
        flat = flow.flatten_parameters(direct=True)
    flow.log_prob(X).sum().backward()
    indirect = other.flatten_parameters()
    other.log_prob(X).sum().backward()
    indirect.collect()
    assert torch.equal(flat.grad, indirect.grad)
