"""The processes that train together, of which there is often one."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Ranks(NamedTuple):
    """Which of how many processes this is."""

    rank: int
    size: int

    def wrap(self, flow: nn.Module) -> nn.Module:
        """What averages gradients over the ranks; weights and buffers become those of the first one."""
        if self.size == 1:
            return flow
        device = next(flow.parameters()).device
        # The same parameters are used in every step, so those that never are need no search.
        return nn.parallel.DistributedDataParallel(
            flow, device_ids=[device] if device.type == "cuda" else None, static_graph=True
        )

    def sum(self, value: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def from_first(self, value: Any) -> Any:
        """What the first rank has, on all."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def same_buffers(self, flow: nn.Module) -> None:
        """Running statistics become those of the first rank, as a checkpoint has them."""
        if self.size > 1:
            for buffer in flow.buffers():
                dist.broadcast(buffer, 0)


# Where the ranks find each other, by process and address: kept, as it ends with the first rank's last reference. One
# that is quicker than the first would else look for its next group in what is about to end, and wait for ever.
_found: dict[tuple[int, str, str], tuple[Any, int, int]] = {}
_groups = itertools.count()


def _place() -> dict[str, Any]:
    """The store of one group, which the ranks make in the same order, this rank and how many there are."""
    stores: Any = dist  # which says of neither that it is exported
    address = os.getpid(), os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if address not in _found:
        _found[address] = next(stores.rendezvous("env://"))
    store, rank, size = _found[address]
    return {"store": stores.PrefixStore(f"flowkernels {next(_groups)}", store), "rank": rank, "world_size": size}


@contextlib.contextmanager
def ranks(device: torch.device) -> Iterator[Ranks]:
    """Those of a group that stands, or of one that torchrun's environment describes and that ends with the block."""
    if not dist.is_available():
        yield Ranks(0, 1)
    elif dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", **_place())
        try:
            yield Ranks(dist.get_rank(), dist.get_world_size())
        finally:
            dist.destroy_process_group()
    else:
        yield Ranks(0, 1)
