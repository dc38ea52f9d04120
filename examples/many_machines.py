"""Trains a neural spline flow on two moons over many processes or machines, by DDP or with sharded weights (FSDP2).

    torchrun --nproc-per-node 2 examples/many_machines.py
    torchrun --nproc-per-node 2 examples/many_machines.py --shard --checkpoint out/moons

On several machines give torchrun ``--nnodes`` and ``--rdzv-endpoint`` as well. GPUs are used where each process has
one. A checkpoint is a folder of torch.distributed.checkpoint with the weights: any number of processes loads it,
sharded or not.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.nn.parallel import DistributedDataParallel

from flowkernels.distributed import shard
from flowkernels.flows import NSF


def two_moons(n: int, generator: torch.Generator) -> Tensor:
    """``[n, 2]``, of about unit size."""
    angle = math.pi * torch.rand(n, generator=generator)
    lower = (torch.rand(n, generator=generator) < 0.5).float()
    x = torch.stack([angle.cos() + lower - 0.5, (1 - 2 * lower) * (angle.sin() - 0.25)], -1)
    return x + 0.05 * torch.randn(n, 2, generator=generator)


def main(arguments: list[str] | None = None) -> float:
    """The mean log-probability of fresh data at the end, over all processes, in nats."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shard", action="store_true", help="shard the weights (FSDP2) instead of replicating them (DDP)"
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=256, help="rows of each process")
    parser.add_argument("--checkpoint", type=Path, help="a folder to start from, where there is one, and to save to")
    args = parser.parse_args(arguments)

    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)

    torch.manual_seed(0)  # the same weights everywhere
    flow = NSF(2, transforms=4, hidden=(64, 64)).to(device)
    if args.shard:
        shard(flow)
    # The loss goes through forward, which is log_prob: that is what DDP watches.
    model = flow if args.shard else DistributedDataParallel(flow)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    if args.checkpoint is not None and args.checkpoint.exists():
        state = get_model_state_dict(flow)
        dcp.load(state, checkpoint_id=args.checkpoint)
        set_model_state_dict(flow, state)

    rows = torch.Generator().manual_seed(1 + rank)  # other data in every process
    for step in range(args.steps):
        optimizer.zero_grad()
        loss = -model(two_moons(args.batch, rows).to(device)).mean()
        loss.backward()
        optimizer.step()
        if rank == 0 and step % 100 == 0:
            print(f"step {step}: {loss.item():.3f} nats", flush=True)

    with torch.no_grad():
        total = model(two_moons(2000, rows).to(device)).mean()
    dist.all_reduce(total)
    found = total.item() / size
    samples = flow.sample(1000)  # every process takes part, and draws its own
    if args.checkpoint is not None:
        dcp.save(get_model_state_dict(flow), checkpoint_id=args.checkpoint)
    if rank == 0:
        print(f"{size} processes: {found:.3f} nats on fresh data, samples {list(samples.shape)}", flush=True)
    del model  # DDP first: as the group's last owner it would wait for gloo's threads, and they for Python's lock
    dist.destroy_process_group()
    return found


if __name__ == "__main__":
    main()
