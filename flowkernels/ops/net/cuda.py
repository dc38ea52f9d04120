"""Networks of masked layers on a GPU: products in blocks by the library, what lies between them by kernels of our own.

Hidden units stay in the order of their degrees from layer to layer where any layer is cut, so that no activation is
ever moved; where none has, nothing is ordered. Launches forward: one that packs all weights, the products, one per
layer after them (none after a last layer that adds its bias alone and is not cut). Backward: per layer its two
products and one launch, one that packs the gradients of all weights, and one that adds up those of all biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels._backend import Grads, Inputs, Needs
from flowkernels._machine import CUDA

from .activations import CODES, SLOPE_NEEDS_INPUT
from .blocks import Order, frame, outer, product, product_back
from .native import flat, why_not_run
from .spec import NetSpec, unpack

_BLOCKS = 1024  # of a launch that sums over rows
_WARPS, _STEPS = 8, 32  # of csrc/net/net_cuda.cu: rows of a block at a time, and vectors of columns
_NO_MATRIX = (None, None)


def why_not(spec: NetSpec, *tensors: Tensor) -> str | None:
    return "no kernel for gates" if spec.gates else why_not_run(tensors, CUDA)


def _matrix(t: Tensor | None, at: Order | None = None) -> tuple[Tensor | None, Any]:
    """A matrix as the kernels take it, with its c-th column at at[c]."""
    return t, None if at is None else at.handle(CUDA.module)


def _rows_aligned(like: Tensor, rows: int, n: int) -> Tensor:
    """Room for [rows, n], each row at a multiple of 16 bytes."""
    if n % 8 == 0:
        return like.new_empty((rows, n))
    return like.new_empty((rows, -(-n // 8) * 8))[:, :n]


def _term(t: Tensor, lead: Sequence[int], n: int) -> Tensor:
    """What is added to a layer as [rows, n] or, of one row for all, [n]: dense rows."""
    if t.numel() == n:
        t = t.reshape(n).resolve_neg()
        return t if t.stride(0) == 1 or n == 1 else t.contiguous()
    return flat(t.expand(*lead, n))


class _Call:
    """A network of a call: its layers' masks, tensors and blocks, and how what enters and leaves each is ordered."""

    def __init__(self, spec: NetSpec, tensors: Sequence[Tensor]) -> None:
        x, parts = unpack(spec, tensors)
        assert spec.plan is not None  # an op whose layers have no masks has no such backend
        self.plans, self.residual, self.closes_block = spec.masks(), spec.residual, spec.closes_block
        self.lead, self.x, self.n = x.shape[:-1], flat(x), spec.n
        self.rows, self.activation, self.last = self.x.shape[0], spec.activation, spec.last
        self.weights = [flat(w) for w in parts.weights]
        self.biases = [None if b is None else _term(b, (), b.numel()) for b in parts.biases]
        self.adds = [
            None if a is None else _term(a, self.lead, p.n_out) for a, p in zip(parts.adds, self.plans, strict=True)
        ]
        self.blocks, self.sorted, self.layouts, self.orders = frame(spec.plan, self.rows, x.device)
        self.where = CUDA.where(x)

    # ---- the shape of the network ----

    def makes_stream(self, i: int) -> bool:
        return self.residual and (i == 0 or self.closes_block(i))

    def enters(self, i: int) -> str:
        """The activation of what enters layer i; for the output, `last`."""
        if i == self.n:
            return self.last
        return "identity" if i == 0 or (self.residual and i == self.n - 1) else self.activation

    def n_kept(self) -> int:
        """How many tensors `fwd` keeps: what enters each hidden layer, and what slopes need besides."""
        slopes = [i == self.n or self.enters(i) in SLOPE_NEEDS_INPUT for i in range(1, self.n + 1)]
        return self.n - 1 + sum(s and self.enters(i + 1) != "identity" for i, s in enumerate(slopes))

    # ---- room and calls ----

    def empty(self) -> Tensor:
        """The output of no rows."""
        return self.x.new_empty((*self.lead, self.plans[-1].n_out))

    def room(self, n: int) -> Tensor:
        return _rows_aligned(self.x, self.rows, n)

    def call(self, entry: Any, activation: str, matrices: Sequence[Any], *more: Any) -> None:
        entry(CODES[activation], matrices, *more, *self.where)

    def _pack(self, weights: Sequence[Tensor], packed: Sequence[Tensor], which: Sequence[int], unpack: bool) -> None:
        """Weights into packed ones, or gradients of these into those of weights; of the layers `which`."""
        layouts = [self.layouts[i].handle(CUDA.module) for i in which]
        CUDA.module.masked_pack(unpack, list(zip(weights, packed, layouts, strict=True)), *self.where)

    def pack(self) -> list[Tensor]:
        packed = [_rows_aligned(w, *w.shape) for w in self.weights]
        self._pack(self.weights, packed, range(self.n), unpack=False)
        return packed

    def first_input(self) -> Tensor:
        """x in the order of the first layer's products."""
        order = self.orders[0].in_order if self.sorted[0] else None
        return self.x if order is None else self.x.index_select(1, order.there)

    # ---- forward ----

    def fwd(self, packed: Sequence[Tensor], keep: bool) -> tuple[Tensor, list[Tensor]]:
        """The output [..., n_out], and what `bwd` takes: what enters layers 1 …, then what slopes need besides."""
        a, inputs, arguments, stream = self.first_input(), [], [], None
        for i in range(self.n - 1):
            z, act = self.room(self.plans[i].n_out), self.enters(i + 1)
            product(a, packed[i], self.blocks[i], z)
            apart = act != "identity" and (self.makes_stream(i) or (keep and act in SLOPE_NEEDS_INPUT))
            a = self.room(self.plans[i].n_out) if apart else z
            to = [z, a] if apart else [z, None] if act == "identity" else [None, a]
            self._epilogue(i, z, stream if self.closes_block(i) else None, act, to)
            if self.makes_stream(i):
                stream = z
            if keep:
                inputs.append(a)
                arguments += [z] if act in SLOPE_NEEDS_INPUT else []
        y, z = self._last(a, packed[-1], keep)
        if keep and self.last != "identity":
            arguments.append(y.view(-1, y.shape[-1]) if z is None else z)
        return y, [*inputs, *arguments]

    def _last(self, a: Tensor, packed: Tensor, keep: bool) -> tuple[Tensor, Tensor | None]:
        """The output, and the last activation's argument where its slope wants that."""
        i, n = self.n - 1, self.plans[-1].n_out
        y = self.x.new_empty((self.rows, n))
        bias, one = self.biases[i], len(self.blocks[i]) == 1
        z = torch.empty_like(y) if keep and self.last in SLOPE_NEEDS_INPUT else None
        if one and self.last == "identity" and self.adds[i] is None:  # the library adds a bias by itself
            torch.mm(a, packed.t(), out=y) if bias is None else torch.addmm(bias, a, packed.t(), out=y)
        else:
            rank = None if one else self.orders[i].out_rank
            p = product(a, packed, self.blocks[i], y if rank is None else self.room(n))
            if rank is not None or bias is not None or self.adds[i] is not None or self.last != "identity":
                operands = [_matrix(p, rank), _matrix(bias), _matrix(self.adds[i]), _NO_MATRIX]
                self.call(CUDA.module.epilogue_fwd, self.last, [*operands, _matrix(z), _matrix(y)])
        return y.view(*self.lead, n), z

    def _epilogue(self, i: int, z: Tensor, stream: Tensor | None, activation: str, to: Sequence[Tensor | None]) -> None:
        """Behind a hidden layer's product: to = z, act(z)."""
        at = self.orders[i].out_order if self.sorted[i + 1] else None
        given = [_matrix(z), _matrix(self.biases[i], at), _matrix(self.adds[i], at), _matrix(stream)]
        self.call(CUDA.module.epilogue_fwd, activation, [*given, *map(_matrix, to)])

    # ---- backward ----

    def bwd(
        self,
        packed: Sequence[Tensor],
        kept: Sequence[Tensor],
        grad_y: Tensor,
        need_x: bool,
        need_weights: Sequence[bool],
        need_biases: Sequence[bool],
        need_adds: Sequence[bool],
    ) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None], list[Tensor | None]]:
        """The gradients of x, of the weights, of the biases and, [rows, n], of what was added."""
        n, inputs, slopes = self.n, [None, *kept[: self.n - 1]], self._slopes(kept)
        wanted = [a or b or c for a, b, c in zip(need_weights, need_biases, need_adds, strict=True)]
        lowest = 0 if need_x else wanted.index(True)
        sums = _Sums(self, need_biases)
        found_adds: list[Tensor | None] = [None] * n
        outers: list[tuple[Tensor, Tensor]] = []
        g = self._gradient_of_output(grad_y, slopes[n], sums)
        stream = None
        for i in reversed(range(lowest, n)):
            if need_adds[i]:
                rank = self.orders[i].out_rank if self.sorted[i + 1] else None
                found_adds[i] = g if rank is None else g.index_select(1, rank.there)
            if need_weights[i]:
                a = self.first_input() if i == 0 else inputs[i]
                outers.append(self._outer(i, g, a))
            if i > lowest:
                if self.closes_block(i):
                    stream = g
                p = product_back(g, packed[i], self.blocks[i], self.room(self.plans[i].n_in))
                opens = self.residual and i % 2 == 1 and i < n - 1
                g = self._behind(i - 1, p, slopes[i], stream if opens else None, sums)
        grad_x = self._gradient_of_x(g, packed[0]) if need_x else None
        grad_weights: list[Tensor | None] = [None] * n
        which = [i for i in reversed(range(lowest, n)) if need_weights[i]]
        if which:
            self._pack([w for w, _ in outers], [p for _, p in outers], which, unpack=True)
            for i, (w, _) in zip(which, outers, strict=True):
                grad_weights[i] = w
        return grad_x, grad_weights, sums.add_up(), found_adds

    def _slopes(self, kept: Sequence[Tensor]) -> list[Tensor | None]:
        """What tells the slope of what enters each layer, and of the output; None where that is 1."""
        rest = iter(kept[self.n - 1 :])
        found: list[Tensor | None] = [None]
        for i in range(1, self.n + 1):
            act = self.enters(i)
            if act == "identity":
                found.append(None)
            elif i == self.n or act in SLOPE_NEEDS_INPUT:
                found.append(next(rest))
            else:
                found.append(kept[i - 1])
        return found

    def _gradient_of_output(self, grad_y: Tensor, slope: Tensor | None, sums: _Sums) -> Tensor:
        """The gradient of what the last activation was given, in the order of the last layer's products."""
        i = self.n - 1
        at = self.orders[i].out_order if self.sorted[self.n] else None
        if slope is None and at is None:
            sums.add(i, grad_y, None, None, "identity", None)
            return grad_y
        g = self.room(grad_y.shape[1])
        sums.add(i, grad_y, slope, None, self.last, g, at)
        return g

    def _behind(self, i: int, p: Tensor, slope: Tensor | None, stream: Tensor | None, sums: _Sums) -> Tensor:
        """The gradient of layer i's z, p being that of what it becomes; in place."""
        sums.add(i, p, slope, stream, self.enters(i + 1), None if slope is None and stream is None else p)
        return p

    def _outer(self, i: int, g: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Room for the gradient of a weight, and the gradient of its packed form: the same where none is moved."""
        (row, column, *_), weight = self.layouts[i].numbers, self.weights[i]
        grad = weight.new_empty(weight.shape)
        packed = grad if row is None and column is None else torch.empty_like(grad)
        return grad, outer(g, a, self.blocks[i], packed)

    def _gradient_of_x(self, g: Tensor, packed: Tensor) -> Tensor:
        grad = product_back(g, packed, self.blocks[0], self.x.new_empty(self.x.shape))
        rank = self.orders[0].in_rank if self.sorted[0] else None
        grad = grad if rank is None else grad.index_select(1, rank.there)
        return grad.view(*self.lead, grad.shape[1])


class _Sums:
    """Sums over rows of the gradients of every layer's z: those of the biases, added up in one launch."""

    def __init__(self, net: _Call, needs: Sequence[bool]) -> None:
        self.net, self.needs = net, needs
        self.first, self.columns = [], 0
        for plan, need in zip(net.plans, needs, strict=True):
            self.first.append(self.columns)
            self.columns += plan.n_out if need else 0
        # Enough blocks to fill a GPU in layers of the usual width, and some rows for each of their warps.
        width = max(plan.n_out for plan in net.plans) * (2 if net.x.element_size() == 8 else 1)
        parts = -(-width // (4 * _STEPS))
        self.slices = max(1, min(_BLOCKS // parts, -(-net.rows // (4 * _WARPS))))
        self.sums = net.x.new_empty((self.slices, self.columns), dtype=torch.float64)

    def add(
        self, i: int, g: Tensor, kept: Tensor | None, stream: Tensor | None, activation: str, out: Tensor | None,
        columns: Order | None = None,
    ) -> None:  # fmt: skip
        """out = g act'(kept) + stream, and its sums where the bias of layer i wants them."""
        net = self.net
        if not self.needs[i] and out is None:
            return
        at = net.orders[i].out_order if net.sorted[i + 1] else None
        matrices = [_matrix(g, columns), _matrix(kept, columns), _matrix(stream), _NO_MATRIX, _matrix(out), _NO_MATRIX]
        sums, sums_at = (self.sums, None if at is None else at.handle(CUDA.module)) if self.needs[i] else (None, None)
        net.call(CUDA.module.epilogue_bwd, activation, matrices, sums, self.first[i], sums_at, self.slices)

    def add_up(self) -> list[Tensor | None]:
        """The gradient of every bias, or None."""
        net = self.net
        if self.columns == 0:
            return [None] * net.n
        out = net.x.new_empty(self.columns)
        CUDA.module.epilogue_sums(self.sums, out, *net.where)
        return [
            out[first : first + plan.n_out] if need else None
            for first, plan, need in zip(self.first, net.plans, self.needs, strict=True)
        ]


# ---- the op ----


def fwd(spec: NetSpec, *tensors: Tensor) -> tuple[Tensor]:
    net = _Call(spec, tensors)
    return (net.fwd(net.pack(), keep=False)[0] if net.rows else net.empty(),)


def fwd_saving(spec: NetSpec, *tensors: Tensor) -> tuple[tuple[Tensor], list[Tensor]]:
    """Keeps the packed weights, what enters each hidden layer and, for gelu and silu, what they were given."""
    net = _Call(spec, tensors)
    if net.rows == 0:
        return (net.empty(),), []
    packed = net.pack()
    y, kept = net.fwd(packed, keep=True)
    return (y,), [*packed, *kept]


def saved_of(spec: NetSpec, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return [y.view(-1, y.shape[-1]) for y in outputs]


def bwd(spec: NetSpec, grads: Grads, tensors: Inputs, needs: Needs, saved: Inputs = ()) -> Grads:
    g = grads[0]
    if g is None:
        return [None] * len(tensors)
    net = _Call(spec, tensors)
    if net.rows == 0:
        return [torch.zeros_like(t) if need else None for t, need in zip(tensors, needs, strict=True)]
    if len(saved) < net.n_kept():  # a compiler's graph keeps inputs alone,
        saved = fwd_saving(spec, *tensors)[1]
    elif len(saved) == net.n_kept():  # or an output besides
        saved = [*net.pack(), *saved]
    need_x, wanted = unpack(spec, needs)
    weights, biases, adds = ([bool(n) for n in part] for part in wanted[:3])
    found = net.bwd(saved[: net.n], saved[net.n :], flat(g), need_x, weights, biases, adds)
    out = [found[0]]
    for w, b in zip(found[1], found[2], strict=True):
        out += [w, b] if spec.has_bias else [w]
    terms = [t for t, add in zip(found[3], net.adds, strict=True) if add is not None]
    for t, like in zip(terms, tensors[len(out) :], strict=True):  # one that was expanded gets the sum over the rows
        out.append(None if t is None else t.reshape(*net.lead, t.shape[-1]).sum_to_size(like.shape))
    return out
