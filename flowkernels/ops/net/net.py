"""A network of a call, as a value: what it is, and its tensors. What readers of modules return, and ops take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .plan import MadePlan
from .spec import NetSpec

Layers = Sequence[tuple[Tensor, Tensor]]
Terms = Sequence[Tensor | None]


class Net(NamedTuple):
    """A spec, and the tensors behind x in its order: weights and biases, what is added, gates, periodic features."""

    spec: NetSpec
    tensors: tuple[Tensor, ...]

    def n_in(self) -> int:
        """How many features the first layer sees."""
        return self.tensors[0].shape[1]

    def n_out(self) -> int:
        """How many numbers the last layer returns."""
        return self.tensors[self.spec.n_weights() - 1].shape[0]

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """(weight, bias) of each layer."""
        at = self.spec.n_weights()
        return list(zip(self.tensors[:at:2], self.tensors[1:at:2], strict=True))

    def with_last(self, weight: Tensor, bias: Tensor) -> Net:
        """The same network with another last layer."""
        at = self.spec.n_weights()
        return Net(self.spec, (*self.tensors[: at - 2], weight, bias, *self.tensors[at:]))

    def with_layers(self, layers: Layers) -> Net:
        """The same network with other weights and biases."""
        return Net(self.spec, (*_flat(layers), *self.tensors[self.spec.n_weights() :]))

    def with_periodic(self, periodic: Tensor | None) -> Net:
        """The same network, which sees periodic features ``[D, 5]`` of x; see `ops.autoregressive_inverse`."""
        if periodic is None:
            return self
        s = self.spec
        spec = NetSpec(s.n, s.plan, s.residual, s.activation, s.last, s.adds, s.gates, s.has_bias, periodic=True)
        return Net(spec, (*self.tensors, periodic))


def _flat(layers: Layers) -> list[Tensor]:
    return [t for layer in layers for t in layer]


def _given(terms: Terms | None) -> tuple[tuple[bool, ...], list[Tensor]]:
    """Which layers have a term (empty: none has), and the terms."""
    has = tuple([t is not None for t in terms or ()])
    return (has if True in has else ()), [t for t in terms or () if t is not None]


def made_net(
    layers: Layers, plan: MadePlan, activation: str, adds: Terms | None = None, gates: Terms | None = None
) -> Net:
    """A whole MADE: arguments as for `ops.made`."""
    (has_add, added), (has_gate, gating) = _given(adds), _given(gates)
    spec = NetSpec(len(layers), plan, plan.residual, activation, "identity", has_add, has_gate)
    return Net(spec, (*_flat(layers), *added, *gating))


def fitting(net: Net) -> Net | None:
    """A masked network, or None where a weight or a bias is not of its mask's size: called, its modules say so."""
    spec, tensors = net.spec, net.tensors
    for i, mask in enumerate(spec.masks()):
        if tensors[2 * i].shape != (mask.n_out, mask.n_in) or tensors[2 * i + 1].shape != (mask.n_out,):
            return None
    return net


def dense_net(
    layers: Layers, residual: bool, activation: str, features: int, lead: Sequence[int], context: Tensor | None
) -> Net:
    """A net without masks, of so many features of an x with these leading dims, and of a context.

    A context is often shared by many rows: its products are torch's, one per context and not per row. They add to the
    first layer and, in a residual net, multiply each block.
    """
    if context is None:
        return Net(NetSpec(len(layers), None, residual, activation), tuple(_flat(layers)))
    first, bias = layers[0]
    terms, kept = [F.linear(context, first[:, features:])], [(first[:, :features], bias), *layers[1:]]
    gates: tuple[bool, ...] = ()
    if residual:
        terms += [torch.sigmoid(F.linear(context, *layer)) for layer in layers[3:-1:3]]
        kept = [kept[0], *(layer for i, layer in enumerate(layers[1:-1]) if i % 3 != 2), layers[-1]]
        gates = tuple([i % 2 == 0 and 0 < i < len(kept) - 1 for i in range(len(kept))])
    adds = (True, *[False] * (len(kept) - 1))
    spec = NetSpec(len(kept), None, residual, activation, "identity", adds, gates if True in gates else ())
    return Net(spec, (*_flat(kept), *[t.expand(*lead, t.shape[-1]) for t in terms]))
