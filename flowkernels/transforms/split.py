"""How a mask splits features, and how the two parts go back together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels.ops.flow_layer import columns


class FeatureSplit(nn.Module):
    """Splits ``x [..., D]`` by a mask into the identity part (0) and the transformed part (1), and merges them.

    Channels of images ``[..., D, H, W]`` with 3 event dims. Picks the cheapest form once: two neighbouring blocks are
    split and concatenated, strided sets (alternating masks) are views written back by one scatter, anything else is
    gathered by index.
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
        self.columns = columns(len(flags), tuple(kept), tuple(moved)) if kept else None
        self._slices = (_as_slice(kept), _as_slice(moved))
        self._moved_first = flags[0]
        self._sizes = (len(moved), len(kept)) if flags[0] else (len(kept), len(moved))
        self._blocks = flags == sorted(flags) or flags == sorted(flags, reverse=True)
        self._strided = None not in self._slices
        by_index = not (self._blocks or self._strided)
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
        if self._blocks:
            first, second = x.split(self._sizes, dim=self._dim)
            return (second, first) if self._moved_first else (first, second)
        if self._strided:
            rest = (slice(None),) * (-1 - self._dim)
            kept, moved = self._slices
            return x[(..., kept, *rest)], x[(..., moved, *rest)]
        return x.index_select(self._dim, self._kept), x.index_select(self._dim, self._moved)

    @property
    def part(self) -> slice | None:
        """The slice of what is transformed, where it is one."""
        return self._slices[1]

    def merge(self, x: Tensor, identity: Tensor, transformed: Tensor) -> Tensor:
        """Puts the parts of ``x`` back in its order."""
        if self.n_identity == 0:
            return transformed
        if self._blocks:
            return torch.cat((transformed, identity) if self._moved_first else (identity, transformed), dim=self._dim)
        if self._strided:
            s = self._slices[1]
            assert s is not None  # for the type checker: _strided says so
            return x.to(transformed.dtype).slice_scatter(transformed, self._dim, s.start, s.stop, s.step)
        return torch.cat((identity, transformed), dim=self._dim).index_select(self._dim, self._back)

    def extra_repr(self) -> str:
        return "mask=" + "".join(str(int(f)) for f in self.mask.tolist())


def as_flags(name: str, mask: Any) -> Tensor:
    """A mask as a tensor, whatever its entries; a list keeps them where the default device is meta."""
    try:
        return mask if isinstance(mask, Tensor) else torch.as_tensor(mask, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        contract = "a tensor or a sequence of 0 and 1"
        raise TypeError(f"transforms.{name}: mask must be {contract}, got {mask!r:.60}") from error


def _as_slice(indices: list[int]) -> slice | None:
    """The slice that selects exactly these indices, if there is one."""
    if not indices:
        return None
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    same = indices == list(range(indices[0], indices[-1] + 1, step))
    return slice(indices[0], indices[-1] + 1, step) if same else None
