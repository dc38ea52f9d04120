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
_AMX = 32  # numbers of bfloat16 in a row of AMX's tiles


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
        spec = NetSpec(s.n, s.plan, s.residual, s.activation, s.last, s.adds, s.gates, s.has_bias, True, s.scales)
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
    layers: Layers, residual: bool, activation: str, features: int, lead: Sequence[int], context: Tensor | None,
    norms: Layers = (),
) -> Net:  # fmt: skip
    """A net without masks, of so many features of an x with these leading dims, and of a context.

    A context is often shared by many rows: its products are torch's, one per context and not per row. They add to the
    first layer and, in a residual net, multiply each block.

    ``norms``: (scale, shift) before each activation of a residual net's blocks, two per block, or none. The second pair
    of a block goes into the weight and bias of the layer before it; the first scales a stream that goes on without it.
    """
    per_block = 2 if context is None else 3
    if norms:
        layers = _scaled(layers, norms[1::2], per_block)
    scales = _opens(2 + 2 * (len(layers) - 2) // per_block) if norms else ()
    if context is None:
        spec = NetSpec(len(layers), None, residual, activation, scales=scales)
        return Net(spec, (*_flat(layers), *_flat(norms[::2])))
    first, bias = layers[0]
    terms, kept = [_product(context, first[:, features:])], [(first[:, :features], bias), *layers[1:]]
    gates: tuple[bool, ...] = ()
    if residual:
        terms += [torch.sigmoid(_product(context, *layer)) for layer in layers[3:-1:3]]
        kept = [kept[0], *(layer for i, layer in enumerate(layers[1:-1]) if i % 3 != 2), layers[-1]]
        gates = tuple([i % 2 == 0 and 0 < i < len(kept) - 1 for i in range(len(kept))])
    adds = (True, *[False] * (len(kept) - 1))
    gates = gates if True in gates else ()
    spec = NetSpec(len(kept), None, residual, activation, "identity", adds, gates, scales=scales)
    return Net(spec, (*_flat(kept), *[t.expand(*lead, t.shape[-1]) for t in terms], *_flat(norms[::2])))


def _product(context: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch's linear layer. Of bfloat16 on a CPU with AMX it multiplies what lies next to a row's last numbers by 0, so
    that NaN there is NaN here, unless both sizes fill its tiles."""
    N, K = weight.shape
    if context.device.type != "cpu" or context.dtype is not torch.bfloat16:
        return F.linear(context, weight, bias)
    k, n = -K % _AMX, -N % _AMX
    bias = None if bias is None else F.pad(bias, (0, n))
    return F.linear(F.pad(context, (0, k)), F.pad(weight, (0, k, 0, n)), bias)[..., :N]


def _opens(n: int) -> tuple[bool, ...]:
    """Which of n layers of a residual net open a block."""
    return tuple([i % 2 == 1 and i < n - 1 for i in range(n)])


def _scaled(layers: Layers, norms: Layers, per_block: int) -> Layers:
    """Layers of which the first of each block returns what it did, times a scale, plus a shift."""
    found = list(layers)
    for block, (scale, shift) in enumerate(norms):
        weight, bias = found[1 + per_block * block]
        found[1 + per_block * block] = weight * scale[:, None], torch.addcmul(shift, bias, scale)
    return found
