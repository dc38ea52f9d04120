"""Flows on many machines."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from flowkernels.flows import Flow
from flowkernels.transforms import Composite, Inverse, MultiScale, Transform

__all__ = ["shard"]

F = TypeVar("F", bound=Flow)
METHODS = ("log_prob", "sample", "rsample", "sample_and_log_prob", "encode", "decode", "interpolate")


def shard(flow: F, mesh: Any = None, **settings: Any) -> F:
    """Shards a flow's weights over the processes of a mesh, in place, by torch's FSDP2; returns it.

    Each layer is one group of weights, gathered when the layer runs, in either direction, and what is left is another.
    ``log_prob``, ``sample``, ``rsample``, ``sample_and_log_prob``, ``encode``, ``decode`` and ``interpolate`` gather as
    ``forward`` does, which torch leaves to the user (``register_fsdp_forward_method``). Every process must call them,
    each with rows of its own. Make the optimizer afterwards. For data alone, use
    `torch.nn.parallel.DistributedDataParallel`, whose ``forward`` is ``log_prob``.

    ``torch.distributed.checkpoint`` saves and loads the weights, sharded or not, for any number of processes:
    ``examples/many_machines.py``.

    Args:
        flow: a flow, on the device where it shall run.
        mesh: a `torch.distributed.device_mesh.DeviceMesh`, by default of all processes.
        settings: further arguments of ``torch.distributed.fsdp.fully_shard``, such as ``mp_policy``.

    Raises:
        TypeError: ``flow`` is not a `flowkernels.flows.Flow`.
        RuntimeError: this torch has no FSDP2, or no process group was started (``torchrun`` and
            ``torch.distributed.init_process_group()``).

    Reference:
        Zhao et al.: PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, VLDB 2023, arXiv:2304.11277.

    Example:
        >>> from flowkernels.distributed import shard
        >>> shard(3)
        Traceback (most recent call last):
            ...
        TypeError: distributed.shard: flow must be a flowkernels.flows.Flow, got int
    """
    where = "distributed.shard"
    if not isinstance(flow, Flow):
        raise TypeError(f"{where}: flow must be a flowkernels.flows.Flow, got {type(flow).__name__}")
    import torch.distributed as dist

    try:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    except ImportError as error:
        raise RuntimeError(f"{where}: torch must have FSDP2, got one without ({error})") from error
    if mesh is None and not dist.is_initialized():
        raise RuntimeError(
            f"{where}: torch.distributed must have been started, got no process group (run under torchrun and call "
            "torch.distributed.init_process_group() first)"
        )
    settings = settings if mesh is None else {"mesh": mesh, **settings}
    for layer in _layers(flow.transform):
        if any(True for _ in layer.parameters()):
            fully_shard(layer, **settings)
            register_fsdp_forward_method(layer, "inverse")
    fully_shard(flow, **settings)
    for method in METHODS:
        register_fsdp_forward_method(flow, method)
    return flow


def _layers(transform: Transform) -> list[nn.Module]:
    """The innermost transforms that are no more than a list of others, each once."""
    found: dict[nn.Module, None] = {}
    if isinstance(transform, (Composite, Inverse, MultiScale)):
        for part in transform.children():
            for inner in part if isinstance(part, nn.ModuleList) else [part]:
                found.update(dict.fromkeys(_layers(inner)))  # type: ignore[arg-type]
    else:
        found[transform] = None
    return list(found)
