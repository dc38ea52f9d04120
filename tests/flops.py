"""How often a call multiplies, without the hooks on modules that torch's own counter registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        of = flop_registry.get(func._overloadpacket)
        if of is not None:
            self.total += of(*args, **(kwargs or {}), out_val=out)
        return out


def flops(run: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products and convolutions."""
    with _Counter() as counter:
        run()
    return counter.total
