"""ActNorm: set by the first batch, and never again, whatever happens to the layer in between."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

from flowkernels.transforms import ActNorm
from tests.process import python

KINDS = pytest.mark.parametrize("channel_dim", [-1, 1], ids=["features", "images"])


@pytest.fixture(autouse=True)
def small(threads) -> None:
    threads(1)


def batch(channel_dim: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Channels of other means and spreads."""
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x * torch.tensor([0.01, 1.0, 50.0]) + torch.tensor([3.0, -1.0, 100.0])
    return (x if channel_dim == -1 else x.reshape(16, 2, 2, 3).movedim(-1, 1)).to(dtype)


def moments(y: Tensor, channel_dim: int) -> tuple[Tensor, Tensor]:
    rows = y.detach().double().movedim(channel_dim, -1).flatten(0, -2)
    return rows.mean(0), rows.var(0, correction=0)


@KINDS
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_the_first_batch_leaves_normalised(channel_dim, direction) -> None:
    layer = ActNorm(3, channel_dim=channel_dim)
    x = batch(channel_dim)
    y, ladj = getattr(layer, direction)(x)
    mean, variance = moments(y, channel_dim)
    torch.testing.assert_close(mean, torch.zeros(3).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(variance, torch.ones(3).double(), rtol=1e-4, atol=0)
    assert layer.initialised.item()
    other = "inverse" if direction == "forward" else "forward"
    back, neg = getattr(layer, other)(y)
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(neg, -ladj)
    assert ladj.shape == x.shape[: -1 if channel_dim == -1 else 1] and ladj.abs().min() > 0.1


@KINDS
def test_the_second_batch_changes_nothing(channel_dim) -> None:
    layer = ActNorm(3, channel_dim=channel_dim)
    layer(batch(channel_dim))
    before = [p.clone() for p in layer.parameters()]
    for seed in (1, 2):
        layer(100 * batch(channel_dim, seed))
        layer.inverse(100 * batch(channel_dim, seed))
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))


@KINDS
def test_evaluation_sets_nothing(channel_dim) -> None:
    layer, x = ActNorm(3, channel_dim=channel_dim).eval(), batch(channel_dim)
    y, ladj = layer(x)
    assert torch.equal(y, x) and (ladj == 0).all() and not layer.initialised.item()


def loaded(layer: ActNorm) -> ActNorm:
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = ActNorm(layer.features, channel_dim=layer.channel_dim)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


def assigned(layer: ActNorm) -> ActNorm:
    other = ActNorm(layer.features, channel_dim=layer.channel_dim)
    other.load_state_dict(copy.deepcopy(layer.state_dict()), assign=True)
    return other


def written_in_place(layer: ActNorm) -> ActNorm:
    """As averaged models and distributed wrappers copy: tensor by tensor, past load_state_dict."""
    other = ActNorm(layer.features, channel_dim=layer.channel_dim)
    with torch.no_grad():
        for a, b in zip((*other.parameters(), *other.buffers()), (*layer.parameters(), *layer.buffers()), strict=True):
            a.copy_(b)
    return other


WAYS = {
    "state_dict": loaded,
    "assign": assigned,
    "in place": written_in_place,
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "to": lambda layer: copy.deepcopy(layer).double().float(),
}


@KINDS
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_trained_layer_is_not_set_again(channel_dim, way, compiled) -> None:
    """normflows#2: a flag that is not saved makes the first batch after loading overwrite what was learned."""
    layer = ActNorm(3, channel_dim=channel_dim)
    layer(batch(channel_dim))
    with torch.no_grad():
        for p in layer.parameters():
            p += 0.5
    x = 7 * batch(channel_dim, 1) + 3
    wanted = layer(x)
    other = way(layer).train()
    torch._dynamo.reset()
    f = torch.compile(other, backend="aot_eager", fullgraph=True) if compiled else other
    for _ in range(2):
        found = f(x)
        assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), other.parameters(), strict=True))


def test_an_unset_state_unsets() -> None:
    """Loading a state from before the first batch makes the next batch the first."""
    fresh = ActNorm(3).state_dict()
    layer = ActNorm(3)
    layer(batch(-1))
    layer.load_state_dict(fresh)
    y, _ = layer(batch(-1, 1))
    torch.testing.assert_close(moments(y, -1)[1], torch.ones(3).double(), rtol=1e-4, atol=0)


@KINDS
def test_constant_channels_and_a_batch_of_one(channel_dim) -> None:
    x = batch(channel_dim)
    x.select(channel_dim, 1).fill_(0.1)  # whose mean is not exact
    for given in (x, x[:1, ..., :1, :1] if channel_dim == 1 else x[:1], torch.zeros_like(x)):
        for direction in ("forward", "inverse"):
            layer = ActNorm(3, channel_dim=channel_dim)
            y, ladj = getattr(layer, direction)(given)
            assert y.isfinite().all() and ladj.isfinite().all() and layer.initialised.item()
            assert layer.log_scale[1] == 0
            torch.testing.assert_close(moments(y, channel_dim)[0], torch.zeros(3).double(), rtol=0, atol=1e-4)


def test_a_channel_without_statistics_keeps_its_parameters() -> None:
    x = batch(-1)
    x[3, 1] = torch.nan
    layer = ActNorm(3)
    layer(x)
    assert layer.log_scale[1] == layer.shift[1] == 0
    assert layer.log_scale[[0, 2]].abs().min() > 0.1 and layer.shift.isfinite().all()


@KINDS
def test_an_empty_batch_is_not_the_first(channel_dim) -> None:
    layer = ActNorm(3, channel_dim=channel_dim)
    layer(batch(channel_dim)[:0])
    assert not layer.initialised.item() and all((p == 0).all() for p in layer.parameters())
    y, _ = layer(batch(channel_dim))
    torch.testing.assert_close(moments(y, channel_dim)[1], torch.ones(3).double(), rtol=1e-4, atol=0)


@KINDS
@pytest.mark.parametrize("fullgraph", [False, True])
def test_first_batch_under_compile(channel_dim, fullgraph) -> None:
    x = batch(channel_dim).requires_grad_()
    grads = []
    for compiled in (False, True):
        layer = ActNorm(3, channel_dim=channel_dim)
        torch._dynamo.reset()
        f = torch.compile(layer, backend="aot_eager", fullgraph=fullgraph) if compiled else layer
        y, ladj = f(x)
        torch.testing.assert_close(moments(y, channel_dim)[1], torch.ones(3).double(), rtol=1e-4, atol=0)
        assert layer.initialised.item()
        loss = y.sin().sum() + ladj.sum()
        grads.append(torch.autograd.grad(loss, (x, *layer.parameters())))
        before = layer.shift.detach().clone()
        f(10 * x)
        assert torch.equal(layer.shift, before)
    torch.testing.assert_close(*grads)


def test_the_buffer_is_read_once(monkeypatch) -> None:
    """Reading it makes a GPU's queue run dry: once is enough."""
    layer, reads, item = ActNorm(3), [], Tensor.item
    monkeypatch.setattr(Tensor, "item", lambda t: reads.append(t) or item(t))
    for _ in range(3):
        layer(batch(-1))
    assert len(reads) == 1


def test_dtypes(dtype) -> None:
    layer = ActNorm(3).to(dtype)
    y, ladj = layer(batch(-1, dtype=dtype))
    assert y.dtype == dtype and layer.initialised.dtype == torch.bool
    assert ladj.dtype == torch.promote_types(dtype, torch.float32)
    mean, variance = moments(y, -1)
    assert (mean.abs() < 0.5)[1:].all() and ((variance - 1).abs() < 0.05)[1:].all()


def test_meta() -> None:
    layer = ActNorm(3).to("meta")
    y, ladj = layer(torch.empty(4, 3, device="meta"))
    assert y.shape == (4, 3) and ladj.shape == (4,)


def test_repr_and_errors() -> None:
    assert repr(ActNorm(3, channel_dim=1)) == "ActNorm(3, channel_dim=1)"
    for call, message in (
        (lambda: ActNorm(0), "ActNorm: features must be a positive integer, got 0"),
        (lambda: ActNorm(2, channel_dim=3), "ActNorm: channel_dim must be"),
        (lambda: ActNorm(2)(torch.zeros(3, 4)), r"ActNorm: x must be \[..., 2\], got \[3, 4\]"),
        (lambda: ActNorm(2, channel_dim=1)(torch.zeros(3, 4, 1)), r"ActNorm: x must be \[N, 2, ...\], got \[3, 4, 1\]"),
    ):
        with pytest.raises(ValueError, match="transforms." + message):
            call()


DDP = """
    import socket, sys
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from flowkernels.transforms import ActNorm

    def work(rank, port):
        torch.set_num_threads(1)
        dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"tcp://127.0.0.1:{port}")
        torch.manual_seed(rank)
        everything = torch.randn(30, 3, generator=torch.Generator().manual_seed(9)) * 5 + 2
        mine = everything[:10] if rank == 0 else everything[10:]  # ranks of unequal size and unlike moments
        layer = ActNorm(3)
        model = DistributedDataParallel(layer)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(3):
            y, ladj = model(mine)
            if step == 0:
                parts = [torch.empty(10, 3), torch.empty(20, 3)]
                dist.broadcast(parts[0].copy_(y) if rank == 0 else parts[0], 0)
                dist.broadcast(parts[1].copy_(y) if rank == 1 else parts[1], 1)
                whole = torch.cat(parts).detach().double()
                assert whole.mean(0).abs().max() < 1e-5 and (whole.var(0, correction=0) - 1).abs().max() < 1e-5
            optimiser.zero_grad()
            (0.5 * y.square().sum(-1) - ladj).mean().backward()
            optimiser.step()
            own = torch.cat([p.detach() for p in layer.parameters()])
            others = [torch.empty_like(own) for _ in range(2)]
            dist.all_gather(others, own)
            assert torch.equal(others[0], others[1]) and own.isfinite().all(), (step, others)
        # One rank has loaded a checkpoint, and wrapping hands its buffers to the other: nobody waits for anybody.
        fresh = ActNorm(3)
        if rank == 0:
            fresh.load_state_dict(layer.state_dict())
        model = DistributedDataParallel(fresh)
        model(mine * 9)
        assert torch.equal(fresh.shift, layer.shift)
        # Compiled, and without rows on one rank: both come together once, and neither waits for the other again.
        late = ActNorm(3)
        compiled = torch.compile(late, backend="eager")
        for step in range(3):
            compiled(everything[:0] if rank == 0 and step == 0 else mine)
        assert late.initialised and torch.equal(late.shift, -(everything[10:].mean(0) * late.log_scale.exp()))
        del model  # before the group, which must not end with it
        dist.destroy_process_group()

    if __name__ == "__main__":
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        torch.multiprocessing.spawn(work, (port,), nprocs=2)
        print("equal")
"""


@pytest.mark.slow
def test_first_batch_over_two_processes(tmp_path) -> None:
    done = python(DDP, tmp_path / "ddp.py", timeout=180)
    assert done.stdout.strip() == "equal", done.stderr


def test_in_a_model_under_swa() -> None:
    """An averaged model is copied before training and its buffers are written in place."""
    model = nn.Sequential()
    model.norm = ActNorm(3)
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=False)
    model.norm(batch(-1))
    average.update_parameters(model)
    assert average.module.norm.initialised.item()
    before = average.module.norm.shift.detach().clone()
    average.train()
    average.module.norm(9 * batch(-1, 1))
    assert torch.equal(average.module.norm.shift, before)
