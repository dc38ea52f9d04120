"""Transforms made of transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowkernels._arguments import check_tensor
from flowkernels.nets.reading import hooked

from . import compiled
from .base import Transform, zero_ladj
from .parts import Leaf, Run
from .runs import NATIVE, pieces, run_pieces


class Composite(Transform):
    r"""Applies transforms one after another, the first one nearest to the data.

    :math:`y = f_n(\dots f_1(x))`, and ``ladj`` is the sum of theirs, in nats. Every part gets the same ``context``.
    ``x`` of any shape and dtype its parts take; ``ladj [...]``. No parts: the identity of ``[..., D]``.

    Args:
        transforms: the parts, in the order of ``forward``.

    Attributes:
        memory: what is kept for backward, ``"fast"`` or ``"flat"``; `flowkernels.flows.Flow.memory` sets it.

    Raises:
        TypeError: a part is not a `Transform`.

    Reference:
        Rezende, Mohamed: Variational Inference with Normalizing Flows, ICML 2015, arXiv:1505.05770.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import Composite, Permutation
        >>> twice = Composite([Permutation.reverse(3), Permutation.reverse(3)])
        >>> twice(torch.tensor([1.0, 2.0, 3.0]))
        (tensor([1., 2., 3.]), tensor(0.))
    """

    def __init__(self, transforms: Iterable[Transform]) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(parts("Composite", transforms))
        self.memory = "fast"
        self._ticket = compiled.new_ticket()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"memory": "fast", **state})  # which older files have not
        self._ticket = compiled.new_ticket()  # of a copy or a pickle: another one's

    def __len__(self) -> int:
        return len(self.transforms)

    def __iter__(self) -> Iterator[Transform]:
        return iter(self.transforms)  # type: ignore[arg-type]

    def __getitem__(self, i: int) -> Transform:
        return self.transforms[i]  # type: ignore[return-value]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_tensor("transforms.Composite", "x", x)  # without a part nobody else would look
        return self._run(x, context, False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_tensor("transforms.Composite", "y", y)
        return self._run(y, context, True)

    def _run(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        found = None
        if not torch.compiler.is_compiling():
            found = pieces(self, self._modules["transforms"], inverse, context is not None, NATIVE)  # type: ignore[arg-type]
        elif torch.compiler.is_dynamo_compiling():
            entries = self._plan(self._ticket, inverse, context is not None)
            if len(entries) > 0:
                return compiled.run(self.transforms, entries, x, context)
        if found is None:
            listed = reversed(self.transforms) if inverse else self.transforms
            found = [Leaf(t, inverse) for t in listed]
        elif len(found) == 1 and isinstance(found[0], Run):
            done = found[0](x, context)
            if done is not None:
                return done
            found = found[0].leaves
        x, total = self._pieces_runner()(found, x, context)
        return x, zero_ladj(x) if total is None else total

    def _pieces_runner(self) -> Callable[..., tuple[Tensor, Tensor | None]]:
        if self.memory != "flat":
            return run_pieces
        from .reversible import run_flat  # which knows layers that import this

        return run_flat

    def _plan(
        self, ticket: str, inverse: bool, has_context: bool, to_normal: bool = False
    ) -> tuple[compiled.Entry, ...]:
        return compiled.plan(self, ticket, inverse, has_context, to_normal)

    # A compiler calls it where it makes a graph, and puts the result there. `torch.compiler.assume_constant_result`
    # says the same, and imports all of a compiler to say it.
    _plan._dynamo_marked_constant = True  # type: ignore[attr-defined]

    @property
    def rearranges(self) -> bool:  # type: ignore[override]
        return all(transform.rearranges for transform in self)

    @property
    def domain(self) -> constraints.Constraint | None:
        return first_domain(self)

    @property
    def codomain(self) -> constraints.Constraint | None:
        return first_domain([Inverse(transform) for transform in reversed(self.transforms)])  # type: ignore[arg-type]

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        for transform in self:
            shape = transform.latent_shape(shape)
        return tuple(shape)

    def data_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        for transform in reversed(self.transforms):
            shape = transform.data_shape(shape)  # type: ignore[operator]
        return tuple(shape)


def log_normal(composite: Composite, x: Tensor, context: Tensor | None, features: int) -> Tensor | None:
    """The log-density of x where `composite` leads to a standard normal of so many features, in nats, in one call.

    None where that is several calls now, or where a hook wants to see the composite called.
    """
    if torch.compiler.is_compiling():
        if not torch.compiler.is_dynamo_compiling():
            return None
        entries = composite._plan(composite._ticket, False, context is not None, True)
        return compiled.log_normal(composite.transforms, entries, x, context, features)
    if hooked(composite):
        return None
    found = pieces(composite, composite._modules["transforms"], False, context is not None, NATIVE)  # type: ignore[arg-type]
    if found is None or len(found) != 1 or not isinstance(found[0], Run) or found[0].features != features:
        return None
    if found[0].sweeps:  # whose densities keep the digits that they have with the base behind them
        return None
    done = found[0].with_normal(x, context)
    return None if done is None else done[1]


class Inverse(Transform):
    r"""Swaps the two directions of a transform.

    ``Inverse(t).forward`` is ``t.inverse`` and the other way round, with the same shapes, dtypes and context;
    ``ladj`` is in nats. Use it where the fast direction of a layer must be the other one.

    Args:
        transform: the one to turn round.

    Raises:
        TypeError: ``transform`` is not a `Transform`.

    Reference:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling: Improving Variational Inference with Inverse
        Autoregressive Flow, NeurIPS 2016, arXiv:1606.04934 (an inverse used as a layer).

    Example:
        >>> import torch
        >>> from flowkernels.transforms import Inverse, Permutation
        >>> Inverse(Permutation([2, 0, 1]))(torch.tensor([30.0, 10.0, 20.0]))[0]
        tensor([10., 20., 30.])
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = checked("Inverse", transform)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.transform(y, context)

    @property
    def rearranges(self) -> bool:  # type: ignore[override]
        return self.transform.rearranges

    @property
    def domain(self) -> constraints.Constraint | None:
        return self.transform.codomain

    @property
    def codomain(self) -> constraints.Constraint | None:
        return self.transform.domain

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return self.transform.data_shape(shape)

    def data_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return self.transform.latent_shape(shape)


def first_domain(transforms: Iterable[Transform]) -> constraints.Constraint | None:
    """Where each number of x must lie for transforms one after another; None where only trying can tell."""
    found, moved = constraints.real, True
    for transform in transforms:
        if transform.domain is not constraints.real:
            if found is not constraints.real or not moved:
                return None
            found = transform.domain
        moved = moved and transform.rearranges
    return found


def parts(name: str, transforms: object) -> list[Transform]:
    """The transforms of a sequence, which hold nothing else."""
    if not isinstance(transforms, Iterable):
        raise TypeError(f"transforms.{name}: there must be a sequence of Transform, got {transforms!r:.60}")
    return [checked(name, transform) for transform in transforms]


def checked(name: str, transform: object) -> Transform:
    if not isinstance(transform, Transform):
        raise TypeError(f"transforms.{name}: every part must be a Transform, got {type(transform).__name__}")
    return transform
