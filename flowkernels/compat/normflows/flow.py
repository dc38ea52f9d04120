"""normflows' `NormalizingFlow`: neighbouring couplings, autoregressive layers, and what stands between them, as one op.

`forward` samples here, and its layers' inverses, from the last one to the first, give the density. Layers that are
small run fused here too: alone they would not pay.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels.compat.engine.patch import FastMethods, layer_of, or_theirs
from flowkernels.compat.engine.runs import kind, may_run
from flowkernels.compat.nflows import composite, own_steps
from flowkernels.compat.reading.halves import parts_of
from flowkernels.nets.reading import Walk
from flowkernels.ops.flow import Order, Scale
from flowkernels.transforms import own_steps as steps
from flowkernels.transforms.own_steps import AS_IT_IS, OwnPart
from flowkernels.transforms.parts import Leaf, Run
from flowkernels.transforms.runs import Piece, Said, each, pieces

from . import affine, describe

_SPLINES = "normflows.flows.neural_spline.wrapper."
# Wrappers, whose forward is the inverse of the layer of this name.
_WRAPPERS = {
    f"{_SPLINES}{name}RationalQuadraticSpline": part
    for name, part in (
        ("Coupled", "prqct"), ("CircularCoupled", "prqct"),
        ("Autoregressive", "mprqat"), ("CircularAutoregressive", "mprqat"),
    )
}  # fmt: skip


def _name(module: nn.Module) -> str:
    cls = type(module)
    return f"{cls.__module__}.{cls.__qualname__}"


class _Leaf(Leaf):
    """A layer, called as normflows calls it."""

    def run(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(x) if self.inverse else self.transform(x)


def leaves(walk: Walk, transform: Any, inverse: bool, before: Sequence[Leaf]) -> Sequence[Leaf]:
    """What a part of a flow runs: what a wrapper holds, in the other direction, or itself."""
    part = "flow" if _name(transform) == "normflows.flows.base.Reverse" else _WRAPPERS.get(_name(transform))
    inner = None if part is None else transform._modules.get(part)
    if inner is not None and "inverse" not in transform.__dict__ and walk.enter(transform, attributes=("inverse",)):
        return leaves(walk, inner, not inverse, before)
    return [_Leaf(transform, inverse)]


# ---- one layer ----


def _permutation(walk: Walk, layer: Any, inverse: bool) -> Order | None:
    own = layer.__dict__
    buffers = ("perm", "inv_perm") if own.get("mode") == "shuffle" else ()
    if "inverse" in own or not walk.enter(layer, attributes=("mode", "num_channels", "inverse"), buffers=buffers):
        return None
    n = own["num_channels"]
    if own["mode"] == "swap":
        middle = (n + 1) // 2 if inverse else n // 2
        return Order((*range(middle, n), *range(middle)))
    order = own["_buffers"].get("inv_perm" if inverse else "perm")
    if not buffers or order is None or not order.is_cpu or order.dim() != 1:
        return None
    found = order.tolist()
    return Order(tuple(found)) if sorted(found) == list(range(len(found))) else None


def _net_of(walk: Walk, net: Any) -> Any:
    """What normflows' MLP calls, with the MLP looked at; or the network."""
    inner = describe.layers_of(net)
    return None if inner is not net and not walk.enter(net) else inner


def _block(walk: Walk, block: Any, inverse: bool) -> Said:
    """A coupling block of features. Where its network returns a shift and a scale each, it tells how many there are."""
    listed = block._modules["flows"]
    split, coupling, merge = listed._modules.values()
    if not (walk.enter(block) and walk.enter(listed) and walk.enter(split, attributes=("mode",))):
        return None
    if not walk.enter(merge, attributes=("mode",)) or not walk.enter(coupling, attributes=("scale", "scale_map")):
        return None
    if not split.mode == merge.mode in ("channel", "channel_inv") or layer_of(coupling) is not affine.AffineCoupling:
        return None
    what = describe.coupling(coupling)
    net = None if isinstance(what, str) else _net_of(walk, what.net)
    if net is None or isinstance(what, str):
        return None
    weights = [m._parameters["weight"] for m in net._modules.values() if m._parameters.get("weight") is not None]
    if not weights or any(w.dim() != 2 for w in weights):
        return None
    features = weights[0].shape[1] + weights[-1].shape[0] // 2
    return parts_of(walk, describe.half(what, *describe.sides(split, features)), features, inverse)


def _masked(walk: Walk, layer: Any, inverse: bool) -> Said:
    if not walk.enter(layer, attributes=("s", "t"), buffers=("b",)):
        return None
    mask = describe.mask_of(layer)
    if not isinstance(mask, describe.Mask) or any(_net_of(walk, net) is None for net in layer._modules.values()):
        return None
    half = describe.masked(layer, mask)
    return None if half is None else parts_of(walk, half, layer.b.shape[1], inverse)


def _lu(walk: Walk, layer: Any, inverse: bool) -> Said:
    """A linear map and a permutation, of which the wrapper's inverse is that of neither."""
    if not own_steps.enter(walk, layer):
        return None
    linear = own_steps.lu(walk, layer._modules["linear"], not inverse)
    order = composite.permutation(walk, layer._modules["permutation"], not inverse)
    if order is None or not isinstance(linear, OwnPart):
        return linear if order is not None else None
    return [order, linear] if inverse else [linear, order]


def _factor(layer: Any, inverse: bool) -> Scale:
    return Scale(layer.s[0], layer.t[0], inverse)


def _norm(walk: Walk, layer: Any, inverse: bool) -> Said:
    if layer_of(layer) is not affine.Norm or not own_steps.enter(
        walk, layer, parameters=("s", "t"), buffers=("data_dep_init_done",)
    ):
        return None
    if layer.s.dim() != 2 or len(layer.s) != 1 or not layer.data_dep_init_done:  # the first batch sets it
        return AS_IT_IS
    return steps.made(functools.partial(_factor, layer, inverse), layer.s.shape[1])


def read(walk: Walk, layer: Any, inverse: bool, has_context: bool) -> Said:
    """A layer, the layers that it is made of, or a permutation; None where it must be called."""
    methods = layer_of(layer)
    if methods is affine.CouplingBlock:
        return _block(walk, layer, inverse)
    if methods is affine.MaskedAffine:
        return _masked(walk, layer, inverse)
    reader = _READERS.get(_name(layer))
    if reader is not None:
        return reader(walk, layer, inverse)
    return composite.read(walk, layer, inverse, has_context)


_READERS: dict[str, Callable[[Walk, Any, bool], Said]] = {
    "normflows.flows.mixing.Permute": _permutation,
    "normflows.flows.mixing.LULinearPermute": _lu,
    "normflows.flows.normalization.ActNorm": _norm,
}
KIND = kind(leaves, read)

# ---- the container ----


def _pieces(flow: Any, inverse: bool, has_context: bool) -> Sequence[Piece] | None:
    listed = flow._modules.get("flows")
    return pieces(flow, listed, inverse, has_context, KIND) if type(listed) is nn.ModuleList else None


def _each(flow: Any, x: Any, inverse: bool) -> Iterator[tuple[Tensor, Tensor]] | None:
    """What the layers make of x, and their log-determinants; None where none of them run as one op."""
    found = _pieces(flow, inverse, False) if may_run(x) else None
    if found is None or not any(isinstance(piece, Run) for piece in found):
        return None
    return each(found, x, None)


def _values(flow: Any, x: Any, inverse: bool) -> Tensor | None:
    """y alone."""
    found = _each(flow, x, inverse)
    if found is None:
        return None
    for x, _ in found:  # noqa: B007
        pass
    return x


def _through(flow: Any, x: Any, inverse: bool, total: Any) -> tuple[Any, Tensor] | None:
    """y, and `total` with the log-determinants added in place, as normflows has it."""
    found = _each(flow, x, inverse)
    if found is None:
        return None
    for x, ladj in found:  # noqa: B007
        total += ladj
    return x, total


class NormalizingFlow(FastMethods):
    """The methods of an accelerated NormalizingFlow."""

    is_container = True
    pieces = staticmethod(_pieces)

    @or_theirs
    def forward(self: Any, z: Any) -> Any:
        return _values(self, z, False)

    @or_theirs
    def inverse(self: Any, x: Any) -> Any:
        return _values(self, x, True)

    @or_theirs
    def forward_and_log_det(self: Any, z: Any) -> Any:
        return _through(self, z, False, torch.zeros(len(z), device=z.device)) if may_run(z) else None

    @or_theirs
    def inverse_and_log_det(self: Any, x: Any) -> Any:
        return _through(self, x, True, torch.zeros(len(x), device=x.device)) if may_run(x) else None

    @or_theirs
    def log_prob(self: Any, x: Any) -> Any:
        found = _through(self, x, True, torch.zeros_like(x[..., 0])) if may_run(x) else None
        if found is None:
            return None
        z, log_q = found
        log_q += self.q0.log_prob(z)
        return log_q

    @or_theirs
    def forward_kld(self: Any, x: Any) -> Any:
        found = _through(self, x, True, torch.zeros(len(x), device=x.device)) if may_run(x) else None
        if found is None:
            return None
        z, log_q = found
        log_q += self.q0.log_prob(z)
        return -torch.mean(log_q)

    @or_theirs
    def sample(self: Any, num_samples: int = 1) -> Any:
        if torch.compiler.is_compiling():
            return None
        z, log_q = self.q0(num_samples)
        found = _each(self, z, False) or each([_Leaf(layer, False) for layer in self.flows], z, None)
        for z, ladj in found:  # noqa: B007
            log_q -= ladj
        return z, log_q

    @or_theirs
    def reverse_kld(self: Any, num_samples: int = 1, beta: float = 1.0, score_fn: bool = True) -> Any:
        if not score_fn or torch.compiler.is_compiling():
            return None
        z, of_base = self.q0(num_samples)
        log_q = torch.zeros_like(of_base) + of_base
        found = _each(self, z, False) or each([_Leaf(layer, False) for layer in self.flows], z, None)
        for z, ladj in found:  # noqa: B007
            log_q -= ladj
        return torch.mean(log_q) - beta * torch.mean(self.p.log_prob(z))
