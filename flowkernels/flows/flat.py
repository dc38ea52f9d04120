"""All parameters of a module as one, for optimizers, clipping and all-reduces, which take their time by the tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

_NAME = "flows.flatten_parameters"


class FlatParameter(nn.Parameter):
    """One parameter of which those of a module are views, one behind another: what is written to it they are.

    Gradients are theirs until `collect` puts them together.
    """

    _views: tuple[nn.Parameter, ...]

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


def flatten_parameters(module: nn.Module) -> FlatParameter:
    """Replaces every learned parameter of a module by a view of one, in their order; → that one."""
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
    flat._views = tuple(views)
    return flat


def _learned(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, nn.Parameter]]:
    for m in module.modules():
        for name, p in m._parameters.items():
            if p is not None and p.requires_grad:
                yield m._parameters, name, p
