"""One of two processes of `test_distributed`: `python -m tests.flows.distributed FOLDER RANK`."""

from __future__ import annotations

import copy
import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.tensor import DTensor

from flowkernels.distributed import shard
from flowkernels.flows import IAF, MAF, NSF, Flow, Glow

SIZE, ROWS = 2, 12
FLOWS = {
    "nsf": lambda: NSF(3, 2, transforms=2, hidden=(8, 8), bins=3, linear="lu", embedding=nn.Linear(4, 2)),
    "maf": lambda: MAF(3, transforms=2, hidden=(8, 8)),
    "iaf": lambda: IAF(3, transforms=2, hidden=(8, 8)),
    "glow": lambda: Glow((2, 4, 4), levels=2, steps=1, hidden=(4, 4)).eval(),
}


def build(name: str) -> Flow:
    torch.manual_seed(0)
    flow = FLOWS[name]()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return flow


def inputs(flow: Flow, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    torch.manual_seed(1)
    return torch.randn(ROWS, *flow.event_shape), torch.randn(ROWS, 4) if name == "nsf" else None


def step(flow: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, context: torch.Tensor | None) -> None:
    optimizer.zero_grad()
    loss = -flow.log_prob(x, context).mean() if isinstance(flow, Flow) else -flow(x, context).mean()
    loss.backward()
    optimizer.step()


def check(name: str, rank: int, folder: str) -> None:
    """Sharded and replicated flows take the steps of one process on all rows."""
    plain = build(name)
    sharded = shard(copy.deepcopy(plain))
    replicated = nn.parallel.DistributedDataParallel(copy.deepcopy(plain), find_unused_parameters=True)
    assert all(isinstance(p, DTensor) for p in sharded.parameters())
    x, context = inputs(plain, name)
    mine = x[rank::SIZE], None if context is None else context[rank::SIZE]
    optimizers = [torch.optim.SGD(m.parameters(), 0.01) for m in (plain, sharded, replicated)]
    for _ in range(2):
        step(plain, optimizers[0], x, context)
        step(sharded, optimizers[1], *mine)
        step(replicated, optimizers[2], *mine)
    for (at, p), q, r in zip(plain.named_parameters(), sharded.parameters(), replicated.parameters(), strict=True):
        for other in (q.full_tensor(), r):
            torch.testing.assert_close(other, p, rtol=1e-4, atol=1e-5, msg=lambda m, at=at: f"{name}, {at}: {m}")

    # Every method gathers, from weights that a step has left sharded.
    x, context = mine
    calls = {
        "sample": lambda f: f.sample(3, context),
        "rsample": lambda f: f.rsample(3, context),
        "sample_and_log_prob": lambda f: f.sample_and_log_prob(3, context)[1],
        "encode": lambda f: f.encode(x, context),
        "decode": lambda f: f.decode(f.encode(x, context), context),
        "interpolate": lambda f: f.interpolate(x, x + 1, 3, context),
        "forward": lambda f: f(x, context),
    }
    for call in calls.values():
        for flow in (sharded, plain):
            torch.manual_seed(2)
            found = call(flow)
            if flow is sharded:
                got = found
        torch.testing.assert_close(got, found, rtol=1e-3, atol=1e-3)

    dcp.save(get_model_state_dict(sharded), checkpoint_id=f"{folder}/{name}")
    if rank == 0:
        torch.save(plain.state_dict(), f"{folder}/{name}.pt")


def main(folder: str, rank: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=int(rank), world_size=SIZE)
    for name in FLOWS:
        check(name, int(rank), folder)
    dist.destroy_process_group()
    print("done: " + ", ".join(FLOWS))


if __name__ == "__main__":
    main(*sys.argv[1:])
