"""Networks of masked layers on the compiled kernels: describes tensors, allocates, calls. Shared by the ops on nets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowkernels import _native
from flowkernels._machine import CPU, Cpu, Cuda
from flowkernels._native import DTYPES
from flowkernels.ops._checks import why_not_multiplied
from flowkernels.ops.made.plan import LayerPlan

_threads = torch.get_num_threads
_KERNELS = (torch.float32, torch.float64)
ACTIVATIONS = ("identity", "relu", "leaky_relu", "elu", "gelu", "silu", "tanh")  # the order of csrc/net/net.h
_CODES = {name: code for code, name in enumerate(ACTIVATIONS)}
SLOPE_NEEDS_INPUT = ("gelu", "silu")
_MAX_LAYERS = 64  # kMaxLayers of csrc/net/net.h


def why_not(tensors: Sequence[Tensor], on: Cpu | Cuda = CPU) -> str | None:
    """Why these tensors (x first, all of one dtype) cannot run on the compiled kernels, or None."""
    reason = on.why_not(tensors)
    if reason is not None:
        return reason
    dtype = tensors[0].dtype
    if dtype not in DTYPES:
        return f"no kernel for {dtype}"
    if tensors[0].shape[-1] == 0:
        return "x has no features"
    if len(tensors) > 1 + 2 * _MAX_LAYERS:
        return f"the net may have more than {_MAX_LAYERS} layers"
    return why_not_multiplied(tensors)


@dataclass(slots=True)
class Layer:
    """A layer of a call, and its gradients once `bwd` has run."""

    weight: Tensor
    bias: Tensor | None
    plan: LayerPlan | None = None  # its mask
    add: Tensor | None = None  # [rows, n_out] or [1, n_out]
    gate: Tensor | None = None
    kept: Tensor | None = None  # [rows, n_in], what enters the layer
    need_weight: bool = False
    need_bias: bool = False
    need_add: bool = False
    need_gate: bool = False
    grad_weight: Tensor | None = None
    grad_bias: Tensor | None = None
    grad_add: Tensor | None = None
    grad_gate: Tensor | None = None

    def tensors(self, module: Any, device: torch.device | None) -> tuple[Any, ...]:
        """The layer as a compiled module takes it, which asks each tensor what it is."""
        return (
            None if self.plan is None else self.plan.handle(module, device), self.weight, self.bias, self.add,
            self.gate, self.kept, self.grad_weight, self.grad_bias, self.grad_add, self.grad_gate,
        )  # fmt: skip

    def allocate_grads(self, rows: int) -> None:
        """Makes room for the gradients that are wanted; zeros where no kernel will run."""
        new = self.weight.new_empty if rows else self.weight.new_zeros
        n_out, n_in = self.weight.shape
        self.grad_weight = new((n_out, n_in)) if self.need_weight else None
        self.grad_bias = new(n_out) if self.need_bias else None
        self.grad_add = new((rows, n_out)) if self.need_add else None
        self.grad_gate = new((rows, n_out)) if self.need_gate else None


def _rows_dense(t: Tensor) -> Tensor:
    """A tensor whose rows the kernels can walk: dense, at any distance, in memory as they read."""
    if t.is_neg():
        t = t.resolve_neg()
    return t if t.is_contiguous() or t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


@dataclass(slots=True)
class Net:
    """A network of a call."""

    layers: list[Layer]
    residual: bool
    activation: str
    last: str = "identity"

    def handle(self, rows: int, module: Any = _native.C, device: torch.device | None = None) -> Any:
        """The network as this compiled module takes it, in a call on so many rows; `device`: where masks are to be."""
        layers = [layer.tensors(module, device) for layer in self.layers]
        return module.Net(layers, rows, self.residual, _CODES[self.activation], _CODES[self.last])

    def keep(self, rows: int) -> list[Tensor]:
        """Makes the forward pass leave what enters hidden layers, for `reuse` in the backward pass.

        Of a residual net what enters the second layer of each block: a third of what module by module keeps, and half
        of the products that backward would do again. Where a slope needs what an activation was given, nothing.
        """
        if self.activation in SLOPE_NEEDS_INPUT:
            return []
        first, step = (2, 2) if self.residual else (1, 1)
        kept = []
        for layer in self.layers[first : len(self.layers) - self.residual : step]:
            layer.kept = layer.weight.new_empty((rows, layer.weight.shape[1]))
            kept.append(layer.kept)
        return kept

    def reuse(self, kept: Sequence[Tensor]) -> None:
        """Gives the layers what `keep` made."""
        first, step = (2, 2) if self.residual else (1, 1)
        for layer, t in zip(self.layers[first::step], kept, strict=False):
            layer.kept = t

    def grads(self, x: Tensor, tensors: Sequence[Tensor]) -> list[Tensor | None]:
        """The gradients that `bwd` left in the layers, in the order, shapes and dtype of the tensors described.

        ``x, tensors``: as they were given. A term that was expanded to the rows gets the sum over them.
        """
        lead = x.shape[:-1]
        terms = [layer.grad_add for layer in self.layers if layer.add is not None]
        terms += [layer.grad_gate for layer in self.layers if layer.gate is not None]
        out = [g for layer in self.layers for g in (layer.grad_weight, layer.grad_bias)]
        out = out[: len(tensors) - len(terms)]  # a layer without a bias was given one of zeros
        out += [None if g is None else g.view(*lead, g.shape[-1]) for g in terms]
        for i, (g, t) in enumerate(zip(out, tensors, strict=True)):
            if g is not None:
                out[i] = (g if g.shape == t.shape else g.sum_to_size(t.shape)).to(t.dtype)
        return out


def widen(*tensors: Tensor) -> Sequence[Tensor]:
    """The tensors in a dtype the kernels compute in: 16-bit ones in float32."""
    return tensors if tensors[0].dtype in _KERNELS else [t.float() for t in tensors]


def describe(
    tensors: Sequence[Tensor],
    *,
    residual: bool,
    activation: str,
    adds: Sequence[bool] = (),
    gates: Sequence[bool] = (),
    needs: Sequence[bool] | None = None,
    plans: Sequence[LayerPlan] = (),
    lead: Sequence[int] | None = None,
) -> Net:
    """A net from its tensors: (weight, bias) per layer, then the terms added in layers where `adds`, then the gates.

    ``plans``: the layers' masks, if any. ``lead``: the leading dims of x, where terms may be smaller than those.
    """
    n_terms = sum(adds) + sum(gates)
    n = (len(tensors) - n_terms) // 2
    layers = [Layer(_rows_dense(tensors[2 * i]), _rows_dense(tensors[2 * i + 1])) for i in range(n)]
    for layer, plan in zip(layers, plans, strict=False):
        layer.plan = plan
    at = 2 * n
    if needs is not None:
        for i, layer in enumerate(layers):
            layer.need_weight, layer.need_bias = needs[2 * i], needs[2 * i + 1]
    for layer, has in zip(layers, adds, strict=False):
        if has:
            add = tensors[at]
            layer.add = flat(add if lead is None else add.expand(*lead, layer.weight.shape[0]))
            layer.need_add = needs is not None and needs[at]
            at += 1
    for layer, has in zip(layers, gates, strict=False):
        if has:
            gate = tensors[at]
            layer.gate = flat(gate if lead is None else gate.expand(*lead, gate.shape[-1]))
            layer.need_gate = needs is not None and needs[at]
            at += 1
    return Net(layers, residual, activation)


def flat(x: Tensor) -> Tensor:
    """``[..., D]`` as ``[rows, D]`` with dense rows."""
    return _rows_dense(x if x.dim() == 2 else x.reshape(-1, x.shape[-1]))


def fwd(x: Tensor, net: Net) -> Tensor:
    """The net's output ``[..., n_out]``."""
    rows = flat(x)
    y = x.new_empty((*x.shape[:-1], net.layers[-1].weight.shape[0]))
    if rows.shape[0] > 0:
        _native.C.net_fwd(net.handle(rows.shape[0]), rows, y, _threads())
    return y


def bwd(x: Tensor, net: Net, grad_y: Tensor, need_x: bool, y: Tensor | None = None) -> Tensor | None:
    """The gradient of x; those of the layers land in them. `y` saves computing the output again for its slope."""
    rows, grad_y = flat(x), grad_y.contiguous().resolve_neg()
    for layer in net.layers:
        layer.allocate_grads(rows.shape[0])
    grad_x = x.new_empty(x.shape) if need_x else None
    if rows.shape[0] > 0:
        y = None if y is None else y.contiguous()
        _native.C.net_bwd(net.handle(rows.shape[0]), rows, y, grad_y, grad_x, _threads())
    return grad_x


# ---- an op whose output is that of a net: describe(spec, tensors, needs) is all that differs ----

Describe = Callable[..., Net]


def op_fwd(describe: Describe, spec: Any, tensors: Sequence[Tensor]) -> tuple[Tensor]:
    wide = widen(*tensors)
    return (fwd(wide[0], describe(spec, wide)).to(tensors[0].dtype),)


def op_fwd_saving(describe: Describe, spec: Any, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor], list[Tensor]]:
    wide = widen(*tensors)
    net = describe(spec, wide)
    kept = net.keep(wide[0].numel() // wide[0].shape[-1])
    return (fwd(wide[0], net).to(tensors[0].dtype),), kept


def op_bwd(
    describe: Describe,
    spec: Any,
    grads: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    needs: Sequence[bool],
    kept: Sequence[Tensor] = (),
    y: Tensor | None = None,
) -> list[Tensor | None]:
    g = grads[0]
    if g is None:
        return [None] * len(tensors)
    wide = widen(*tensors)
    net = describe(spec, wide, needs[1:])
    net.reuse(kept)
    grad_x = bwd(wide[0], net, g.to(wide[0].dtype), needs[0], y)
    return [None if grad_x is None else grad_x.to(g.dtype), *net.grads(tensors[0], tensors[1:])]
