"""Levels of a flow of images or signals, some of the channels leaving at each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowkernels._arguments import check_tensor, count, widths
from flowkernels.nets.common import check_context

from .base import Transform
from .composite import first_domain, parts


class MultiScale(Transform):
    r"""Levels one after another; after each but the last, the second half of the channels is done, or the last few.

    .. math:: (h^{(i+1)}, z^{(i+1)}) = f^{(i+1)}(h^{(i)}), \qquad z^{(L)} = f^{(L)}(h^{(L-1)}), \qquad
        z = (z^{(1)}, \dots, z^{(L)})

    and ``ladj`` is the sum of the levels', in nats. The latent is one row of numbers, ``[..., C*H*W]``: the channels
    done after the first level, in the order channel, row, column; then those after the second; and so on. So every base
    distribution of `flowkernels.distributions` fits, and a latent can be averaged or moved along as any other.
    ``x [..., C, H, W]``, or signals ``[..., C, L]``, of any dtype the levels take; ``ladj [...]``. ``context`` goes to
    every level.

    Args:
        levels: the levels, the first one nearest to the data, often a `Composite` that starts with `Squeeze`.
        shape: ``(C, H, W)`` of one image, or ``(C, L)`` of one signal.
        leave: how many channels are done after a level; None: half of them.

    Raises:
        ValueError: there is no level; ``shape``, or what a level makes of it, is not images or signals with an even
            number of channels wherever they are to be halved, or with more than ``leave``; ``x`` is not of that shape.

    Reference:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, ICLR 2017, arXiv:1605.08803, section 3.6.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import MultiScale, Squeeze
        >>> levels = MultiScale([Squeeze(), Squeeze()], shape=(1, 4, 4))
        >>> z, ladj = levels(torch.arange(16.0).view(1, 4, 4))
        >>> z.shape, z[:8].tolist()
        (torch.Size([16]), [4.0, 6.0, 12.0, 14.0, 5.0, 7.0, 13.0, 15.0])
        >>> levels.inverse(z)[0].shape
        torch.Size([1, 4, 4])
    """

    def __init__(self, levels: Iterable[Transform], shape: Sequence[int], leave: int | None = None) -> None:
        super().__init__()
        self.levels = nn.ModuleList(parts("MultiScale", levels))
        self.shape = widths("transforms.MultiScale", "shape", shape, layers=1)
        self.leave = None if leave is None else count("transforms.MultiScale", "leave", leave)
        if not self.levels or len(self.shape) not in (2, 3):
            given = f"{len(self.levels)} and {self.shape}"
            raise ValueError(
                f"transforms.MultiScale: there must be a level and a shape (C, H, W) or (C, L), got {given}"
            )
        self._done: list[tuple[int, ...]] = []  # what leaves after each level
        for i, level in enumerate(self.levels):
            shape = tuple(level.latent_shape(shape))  # type: ignore[operator]
            last = i + 1 == len(self.levels)
            done = shape[0] if last else self._leaving(shape, i + 1)
            self._done.append(shape if last else (done, *shape[1:]))
            shape = (shape[0] - done, *shape[1:])
        self._sizes = [torch.Size(s).numel() for s in self._done]

    def _leaving(self, shape: tuple[int, ...], level: int) -> int:
        """How many of the channels are done after a level."""
        halved = self.leave is None
        n = shape[0] // 2 if self.leave is None else self.leave
        if len(shape) != len(self.shape) or n >= shape[0] or (halved and shape[0] % 2):
            what = "images" if len(self.shape) == 3 else "signals"
            must = "to be halved must have even C" if halved else f"must have more than {n} channels"
            raise ValueError(f"transforms.MultiScale: {what} {must}, got {list(shape)} after level {level}")
        return n

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_tensor("transforms.MultiScale", "x", x)
        dims = len(self.shape)
        if x.shape[-dims:] != self.shape:
            expected = str(list(self.shape))[1:]
            raise ValueError(f"transforms.MultiScale: x must be [..., {expected}, got {list(x.shape)}")
        lead = x.shape[:-dims]
        x, context = x.reshape(-1, *self.shape), _rows(context, lead)
        done, total = [], None
        for i, level in enumerate(self.levels):
            x, ladj = level(x, context)
            total = ladj if total is None else total + ladj
            if i + 1 < len(self.levels):
                n = self._done[i][0]
                x, z = x.split([x.shape[1] - n, n], dim=1)
                done.append(z.flatten(1))
        assert total is not None  # for the type checker: there is a level
        return torch.cat([*done, x.flatten(1)], dim=1).reshape(*lead, sum(self._sizes)), total.reshape(lead)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_tensor("transforms.MultiScale", "y", y)
        if y.dim() == 0 or y.shape[-1] != sum(self._sizes):
            raise ValueError(f"transforms.MultiScale: y must be [..., {sum(self._sizes)}], got {list(y.shape)}")
        lead = y.shape[:-1]
        context = _rows(context, lead)
        parts = y.reshape(-1, y.shape[-1]).split(self._sizes, dim=1)
        parts = [z.unflatten(1, s) for z, s in zip(parts, self._done, strict=True)]
        x, total = parts.pop(), None
        for level in reversed(self.levels):
            x, ladj = level.inverse(x, context)  # type: ignore[operator]
            total = ladj if total is None else total + ladj
            if parts:
                x = torch.cat((x, parts.pop().to(x.dtype)), dim=1)
        assert total is not None  # for the type checker: there is a level
        return x.reshape(*lead, *self.shape), total.reshape(lead)

    @property
    def domain(self) -> constraints.Constraint | None:
        return first_domain(self.levels)  # type: ignore[arg-type]

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (sum(self._sizes),)

    def data_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return self.shape

    def extra_repr(self) -> str:
        return f"shape={self.shape}" + ("" if self.leave is None else f", leave={self.leave}")


def _rows(context: Tensor | None, lead: Sequence[int]) -> Tensor | None:
    """One row of the context per image: some layers know images, and signals, of one leading dim only."""
    if context is None:
        return None
    check_tensor("transforms.MultiScale", "context", context)
    check_context("transforms.MultiScale", context, context.shape[-1] if context.dim() else 0, lead)
    return context.expand(*lead, context.shape[-1]).reshape(-1, context.shape[-1])
