"""What an op asks of the machine that its compiled kernels run on: the CPU, or an NVIDIA GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from flowkernels import _native
from flowkernels._backend import Backend

_threads = torch.get_num_threads
_HUGE = 4 << 20  # bytes from which large pages pay


class Cpu:
    """Kernels of `flowkernels._C`, on torch's threads."""

    module: Any = _native.C

    why_not = staticmethod(_native.why_not)

    def where(self, x: torch.Tensor) -> tuple[int, ...]:
        """The last arguments of every entry point: here, how many threads."""
        return (_threads(),)

    def like(self, t: torch.Tensor) -> torch.Tensor:
        """A tensor to be filled by a kernel, in the memory order of t, backed by large pages where it is large."""
        out = torch.empty_like(t)
        return out if out.nbytes < _HUGE else self._advised(out)

    def empty_like(self, t: torch.Tensor) -> torch.Tensor:
        """A contiguous tensor to be filled by a kernel, backed by large pages where it is large."""
        dense = t.is_contiguous()
        out = torch.empty_like(t) if dense else torch.empty(t.shape, dtype=t.dtype, device="cpu")
        return out if out.nbytes < _HUGE else self._advised(out)

    def room(self, like: torch.Tensor, *shape: int) -> torch.Tensor:
        """A contiguous tensor of this shape to be filled by a kernel, backed by large pages where it is large.

        Beyond 32 MB glibc maps fresh pages in every call, whatever it was given back: of 4 kB, they take a training
        step of wide layers a quarter of its time.
        """
        out = like.new_empty(shape)
        return out if out.nbytes < _HUGE else self._advised(out)

    def _advised(self, out: torch.Tensor) -> torch.Tensor:
        self.module.advise_huge(out.data_ptr(), out.nbytes)
        return out


class Cuda:
    """Kernels of `flowkernels._cuda`, on the current stream of the tensors' device. Nothing here waits for a device."""

    def __init__(self, module: Any, why_missing: str | None) -> None:
        self.why_missing = why_missing
        self.become(module)

    def become(self, module: Any, device_type: str = "cuda") -> None:
        """Takes a module in place of the one before; the tests' emulator is one for tensors of the CPU."""
        self.module, self.device_type = module, device_type
        self._why_no_kernel: dict[int, str] = {}
        self.__dict__.pop("devices", None)

    @functools.cached_property
    def devices(self) -> tuple[int, str]:
        """How many there are, and why there is none."""
        return self.module.devices()

    def why_no_kernel(self, device: int) -> str:
        """Why the device has none of the module's kernels, or nothing; asked once, as it loads them there."""
        if device not in self._why_no_kernel:
            self._why_no_kernel[device] = self.module.why_no_kernel(device)
        return self._why_no_kernel[device]

    def why_not(self, tensors: Sequence[torch.Tensor | None]) -> str | None:
        """Why these tensors cannot run on this machine, whatever their dtypes, or None."""
        if self.module is None:
            return self.why_missing
        count, why = self.devices
        if count == 0:
            return why
        for t in tensors:
            if t is None:
                continue
            if t.device.type != self.device_type:
                return f"a tensor is on {t.device}"
            if why := self.why_no_kernel(t.device.index or 0):
                return why
        return None

    def where(self, x: torch.Tensor) -> tuple[int, ...]:
        """The last arguments of every entry point: here, device and stream."""
        device = x.device.index or 0
        return device, torch.cuda.current_stream(device).cuda_stream if x.is_cuda else 0

    def like(self, t: torch.Tensor) -> torch.Tensor:
        """A tensor to be filled by a kernel, in the memory order of t."""
        return torch.empty_like(t)

    def empty_like(self, t: torch.Tensor) -> torch.Tensor:
        """A contiguous tensor to be filled by a kernel."""
        return torch.empty(t.shape, dtype=t.dtype, device=t.device)


def backend(
    machine: Cpu | Cuda,
    fwd: Callable[..., Any],
    bwd: Callable[..., Any] | None,
    why_not: Callable[..., str | None],
    fwd_saving: Callable[..., Any] | None = None,
    saved_of: Callable[..., Any] | None = None,
) -> Backend:
    """Binds an op's functions, which take the machine first, to a machine; `saved_of` asks nothing of it."""

    def bound(function: Callable[..., Any]) -> Any:
        return functools.partial(function, machine)

    return Backend(
        bound(fwd), bound(why_not), None if bwd is None else bound(bwd),
        None if fwd_saving is None else bound(fwd_saving), saved_of,
    )  # fmt: skip


CPU, CUDA = Cpu(), Cuda(_native.CUDA, _native.why_cuda_missing)
