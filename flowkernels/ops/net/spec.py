"""What a network is, apart from its tensors; and how the tensors of a call stand in a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .plan import LayerPlan, MadePlan


class NetSpec(NamedTuple):
    """Linear layers, masked or not, with an activation between them: plain, or residual blocks of two.

    Equal and hashed by value (plans by identity: equal degrees have one plan). The tensors of a call are x, then weight
    (and bias) of each layer, what is added in layers that have it, the gates, scale and shift of layers that have them,
    and the periodic features. It has methods and no property, as other tuples that are made inside of a call have: the
    compiler of torch 2.6 knows no property of a NamedTuple, no `_replace` and no slice.
    """

    n: int  # layers
    plan: MadePlan | LayerPlan | None  # their masks; None: nothing is masked
    residual: bool
    activation: str
    last: str = "identity"  # the activation of the output
    adds: tuple[bool, ...] = ()  # which layers have a term added; empty: none
    gates: tuple[bool, ...] = ()  # which have a gate, layers that close a residual block; empty: none
    has_bias: bool = True
    periodic: bool = False  # the net sees `periodic_features` of x
    scales: tuple[bool, ...] = ()  # what enters which is act(z * scale + shift): layers that open a residual block

    def masks(self) -> tuple[LayerPlan, ...]:
        """One per layer; empty where nothing is masked."""
        plan = self.plan
        return () if plan is None else plan.layers if isinstance(plan, MadePlan) else (plan,)

    def n_weights(self) -> int:
        """How many of the tensors behind x are weights and biases."""
        return 2 * self.n if self.has_bias else self.n

    def n_terms(self) -> int:
        """How many are what is added, gates, scales and shifts."""
        return sum(self.adds) + sum(self.gates) + 2 * sum(self.scales)

    def closes_block(self, i: int) -> bool:
        """Whether layer i is the second of a residual block."""
        return self.residual and 0 < i < self.n - 1 and i % 2 == 0


class Parts(NamedTuple):
    """The tensors of a network by their roles (or what is told of each of them)."""

    weights: list[Any]
    biases: list[Any]  # None where there are none
    adds: list[Any]  # None in layers that have none
    gates: list[Any]
    periodic: Any
    scales: list[Any]  # (scale, shift), or None


def unpack(spec: NetSpec, tensors: Sequence[Any]) -> tuple[Any, Parts]:
    """x, and the tensors behind it by their roles."""
    x, *rest = tensors  # of which torch 2.11 traces no pop
    n, at = spec.n, spec.n_weights()
    weights = rest[:at:2] if spec.has_bias else rest[:at]
    biases = rest[1:at:2] if spec.has_bias else [None] * n
    terms = iter(rest[at:])
    adds = [next(terms) if has else None for has in spec.adds] or [None] * n
    gates = [next(terms) if has else None for has in spec.gates] or [None] * n
    scales = [(next(terms), next(terms)) if has else None for has in spec.scales] or [None] * n
    return x, Parts(weights, biases, adds, gates, rest[-1] if spec.periodic else None, scales)


def without_periodic(spec: NetSpec, tensors: Sequence[Any]) -> tuple[Sequence[Any], Any]:
    """The tensors of the layers, x first, and the periodic features or None."""
    return (tensors[:-1], tensors[-1]) if spec.periodic else (tensors, None)
