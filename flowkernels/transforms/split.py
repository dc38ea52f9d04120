"""How a mask splits features, and how the two parts go back together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels.ops.split import split_of


class FeatureSplit(nn.Module):
    """Splits ``x [..., D]`` by a mask into the identity part (0) and the transformed part (1), and merges them.

    Channels of images ``[..., D, H, W]`` with 3 event dims. The mask is stored with the weights; how it parts a tensor
    is its ``value``, a `flowkernels.ops.split.Split` (None where nothing is left to see).
    """

    mask: Tensor
    _kept: Tensor
    _moved: Tensor
    _back: Tensor

    def __init__(
        self, mask: Sequence[bool] | Sequence[int] | Tensor, event_dims: int = 1, name: str = "Coupling"
    ) -> None:
        super().__init__()
        self._dim = -event_dims
        dims = as_flags(name, mask).dim()
        if dims != 1:
            raise ValueError(f"transforms.{name}: mask must have 1 dimension, got {dims}")
        values = mask.tolist() if isinstance(mask, Tensor) else list(mask)
        if any(v not in (0, 1) for v in values):
            raise ValueError(f"transforms.{name}: mask must hold only 0 and 1 (False and True), got {values}")
        flags = [bool(v) for v in values]
        if not any(flags):
            raise ValueError(f"transforms.{name}: mask must transform at least one feature, got {values}")
        self.features = len(flags)
        # Stored with the weights: the same weights under another mask are another density, silently.
        self.register_buffer("mask", torch.tensor(flags))
        self._plan(flags)

    def _plan(self, flags: list[bool]) -> None:
        kept, moved = [i for i, f in enumerate(flags) if not f], [i for i, f in enumerate(flags) if f]
        self.n_identity, self.n_transformed = len(kept), len(moved)
        self.value = split_of(len(flags), tuple(kept), tuple(moved)) if kept else None
        by_index = self.value is not None and self.value.by_index
        back = sorted(range(len(flags)), key=(kept + moved).__getitem__)
        for name, indices in (("_kept", kept), ("_moved", moved), ("_back", back)):
            index = torch.tensor(indices, device=self.mask.device) if by_index else None
            self.register_buffer(name, index, persistent=False)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        stored = state_dict.get(prefix + "mask")
        if stored is not None and stored.shape == (self.features,):
            self._plan([bool(f) for f in stored.tolist()])

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[..., D]`` → ``[..., n_identity]``, ``[..., n_transformed]``."""
        if self.value is None:
            return x.narrow(self._dim, 0, 0), x
        return self.value.split(x, self._dim, (self._kept, self._moved))

    @property
    def part(self) -> slice | None:
        """The slice of what is transformed, where it is one."""
        return slice(0, self.features, 1) if self.value is None else self.value.part

    def merge(self, identity: Tensor, transformed: Tensor) -> Tensor:
        """Puts the two parts back in order."""
        if self.value is None:
            return transformed
        return self.value.merge(identity, transformed, self._dim, (self._kept, self._moved, self._back))

    def extra_repr(self) -> str:
        return "mask=" + "".join(str(int(f)) for f in self.mask.tolist())


def as_flags(name: str, mask: Any) -> Tensor:
    """A mask as a tensor, whatever its entries; a list keeps them where the default device is meta."""
    try:
        return mask if isinstance(mask, Tensor) else torch.as_tensor(mask, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        contract = "a tensor or a sequence of 0 and 1"
        raise TypeError(f"transforms.{name}: mask must be {contract}, got {mask!r:.60}") from error
