"""A kernel's launch, from its parameters as bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.ptx.dtypes import Array
from tests.ptx.machine import Machine, Settings
from tests.ptx.memory import Global
from tests.ptx.parser import Kernel
from tests.ptx.scheduler import Order, Scheduler


@dataclass
class Launched:
    """What ran: for each instruction of the kernel, how many warps issued it."""

    kernel: Kernel
    blocks: int
    block: int
    issued: Array
    tracer: Any = None


def run(
    kernel: Kernel, blocks: int, block: int, parameters: bytes, memory: Global, *,
    dynamic_shared: int = 0, settings: Settings | None = None, order: Order | None = None, tracer: Any = None,
) -> Launched:  # fmt: skip
    """Runs every thread of the grid to its end, or raises Fault or Unsupported."""
    machine = Machine(kernel, blocks, block, parameters, memory, dynamic_shared=dynamic_shared, settings=settings)
    if tracer is not None:
        tracer.threads = machine.number
    machine.tracer = tracer
    scheduler = Scheduler(machine, order)
    scheduler.run()
    return Launched(kernel, blocks, block, scheduler.issued, tracer)
