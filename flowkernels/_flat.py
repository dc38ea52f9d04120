"""All parameters of a module as one, for optimizers, clipping and all-reduces, which take their time by the tensor."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels._arguments import flag

_NAME = "flows.flatten_parameters"
# id of a view -> the parameter that it is a view of, which keeps it: so no other tensor has that id meanwhile. On the
# view itself this would be copied, and saved, with it.
_OWNERS: weakref.WeakValueDictionary[int, FlatParameter] = weakref.WeakValueDictionary()


class FlatParameter(nn.Parameter):
    """One parameter of which those of a module are views, one behind another: what is written to it they are.

    Gradients are theirs until `collect` puts them together.
    """

    _views: tuple[nn.Parameter, ...]
    _direct: bool

    def collect(self) -> None:
        """Moves the gradients of the views into its own, to which they add where there is one; missing ones are zero.

        Raises:
            RuntimeError: the module was moved or cast since, and its parameters are views of this one no longer.
        """
        at, size = self.data_ptr(), self.element_size()
        for p in self._views:
            if p.data_ptr() != at:
                raise RuntimeError(
                    f"{_NAME}: parameters must still be views of the flat one, got a module that was moved or cast; "
                    "flatten it again, and make the optimizer again"
                )
            at += p.numel() * size
        found = [p.grad for p in self._views]
        if all(g is None for g in found):
            return
        flat = [(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in zip(self._views, found, strict=True)]
        total = torch.cat(flat)
        self.grad = total if self.grad is None else self.grad + total
        for p in self._views:
            p.grad = None


def flatten_parameters(module: nn.Module, direct: bool) -> FlatParameter:
    """Replaces every learned parameter of a module by a view of one, in their order; → that one."""
    flag(_NAME, "direct", direct)
    places: dict[nn.Parameter, list[tuple[dict[str, Any], str]]] = {}
    for owner, name, p in _learned(module):
        places.setdefault(p, []).append((owner, name))  # one that two modules share stays one
    kinds = {(p.dtype, p.device) for p in places}
    if len(kinds) != 1:
        given = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds)) or "none"
        raise ValueError(f"{_NAME}: there must be parameters to learn, of one dtype and device, got {given}")
    flat = FlatParameter(torch.cat([p.detach().reshape(-1) for p in places]))
    views, at = [], 0
    for p, of in places.items():
        # Of a detached tensor: it shares the flat one's version, so that backward notices a step taken before it.
        view = nn.Parameter(flat.detach()[at : at + p.numel()].view(p.shape))
        at += p.numel()
        views.append(view)
        for owner, name in of:
            owner[name] = view
    flat._views, flat._direct = tuple(views), direct
    for view in views:
        _OWNERS[id(view)] = flat
    return flat


def all_in_one(tensors: Sequence[Tensor]) -> tuple[FlatParameter, tuple[int, ...]] | None:
    """The flat parameter whose views are all among these, and where each begins, -1 of others; or None."""
    flats = {id(flat): flat for t in tensors if (flat := _OWNERS.get(id(t))) is not None}
    if len(flats) != 1:
        return None
    (flat,) = flats.values()
    starts = itertools.accumulate((p.numel() for p in flat._views), initial=0)
    places = {id(view): at for view, at in zip(flat._views, starts, strict=False)}
    found = tuple([places.get(id(t), -1) for t in tensors])
    used = [at for at in found if at >= 0]
    return (flat, found) if flat._direct and len(used) == len(set(used)) == len(places) else None


def _learned(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, nn.Parameter]]:
    for m in module.modules():
        for name, p in m._parameters.items():
            if p is not None and p.requires_grad:
                yield m._parameters, name, p
