"""What a call holds for its backward pass, and the most it ever holds: exact counts, not samples of the process."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, UntypedStorage
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile


class _Saved:
    """A storage that autograd holds; it goes when the graph lets go of it.

    Not the tensor: a saved output knows the node that saved it, and the two would hold each other for ever.
    """

    __slots__ = ("__weakref__", "storage")

    def __init__(self, storage: UntypedStorage) -> None:
        self.storage = storage


def _no_backward(saved: _Saved) -> Tensor:
    raise RuntimeError("memory.saved_bytes: the call must be a forward pass, got a backward pass in it")


def saved_bytes(forward: Callable[[], Any], resident: Iterable[Tensor] = ()) -> int:
    """Bytes that the graph of `forward`'s result keeps alive, each storage once and those of `resident` not at all.

    Counted by saved-tensor hooks when `forward` has returned, so what was saved and dropped on the way is not in it.
    """
    held: list[weakref.ref[_Saved]] = []

    def pack(tensor: Tensor) -> _Saved:
        saved = _Saved(tensor.untyped_storage())
        held.append(weakref.ref(saved))
        return saved

    with saved_tensors_hooks(pack, _no_backward):
        result = forward()
    skip = {t.untyped_storage().data_ptr() for t in resident}
    alive = [saved.storage for ref in held if (saved := ref()) is not None]
    sizes = {s.data_ptr(): s.nbytes() for s in alive if s.data_ptr() not in skip}
    del result
    return sum(sizes.values())


def peak_bytes(call: Callable[[], Any]) -> int:
    """Most bytes that `call` holds at once in torch's allocator, beyond what was held before it.

    The running sum of the profiler's allocation events. Compiled code allocates through the same allocator. Not in it:
    fragmentation of the heap, and the stack buffers of kernels, ours (a few tiles per thread) and inductor's.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        call()
    results: Any = recorded.profiler
    results = results.kineto_results  # the public `events()` folds allocations into operators
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    held = most = 0
    for event in events:
        held += event.nbytes()
        most = max(most, held)
    return most
