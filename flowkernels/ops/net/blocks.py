"""A masked product as a few dense ones, for a library's GEMM: units by degree, each block on the inputs it sees.

With units and inputs in the order of their degrees, a block's units see the inputs before its `depth`; what the
staircase leaves of zeros inside of a block is in the packed weight. One block is the masked dense product, and needs no
order.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkernels.ops._kept import Handled, made_to_stay
from flowkernels.ops._triton import precision

from .plan import LayerPlan, MadePlan

WAVE = 2**21  # entries of a product that keep a large GPU busy: 128 tiles of 128 x 128
WIDTH = 256  # units, from which a block does enough with an input that it reads again
MULTIPLE = 64  # of edges; a product's rows want to begin at multiples of 16 bytes
_SAVED = 0.1  # of the dense product, from which blocks pay for their launches


class Block(NamedTuple):
    """Units [first, last) by degree, which see inputs before `depth`; the blocks before it those before `before`."""

    first: int
    last: int
    before: int
    depth: int


# What hangs on a plan goes with it.
_kept: weakref.WeakKeyDictionary[LayerPlan | MadePlan, dict[Any, Any]] = weakref.WeakKeyDictionary()


def _once(plan: LayerPlan | MadePlan, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    of_plan = _kept.get(plan)
    if of_plan is None:
        of_plan = _kept.setdefault(plan, {})
    found = of_plan.get(key)
    if found is None:
        found = of_plan[key] = made_to_stay(make)
    return found


def blocks_of(plan: LayerPlan, rows: int) -> tuple[Block, ...]:
    """The blocks of a product on so many rows.

    As many as leave each of them a wave of tiles (rows x width of WAVE entries at least) and a width of WIDTH units: a
    block reads its inputs again, which narrow ones do not pay back. One where blocks would save less than a tenth.
    """
    n = _count(plan, rows)
    return _once(plan, (n, MULTIPLE), lambda: _cut(plan, n))


def is_cut(plans: Sequence[LayerPlan], rows: int) -> bool:
    """Whether any of these layers has several blocks."""
    return any(len(blocks_of(p, rows)) > 1 for p in plans)


def fastest(plans: Sequence[LayerPlan], x: Tensor) -> str:
    """The backend that `auto` tries first, of layers that begin with the last dimension of x.

    Of a GPU's, Triton where tensor cores multiply, as a pass over y of its own costs as much as the product there; else
    the library's products, in blocks where any layer is cut, plain PyTorch where none is: the same products, and less
    work for the host. Predicted; no GPU has measured it yet.
    """
    if x.is_cpu:
        return "cpu"
    if x.element_size() == 2 or precision(x.dtype) == "tf32":
        return "triton"
    return "cuda" if is_cut(plans, x.numel() // max(1, x.shape[-1])) else "reference"


def _count(plan: LayerPlan, rows: int) -> int:
    return max(1, plan.n_out // max(WIDTH, -(-WAVE // max(rows, 1))))


def _cut(plan: LayerPlan, n: int) -> tuple[Block, ...]:
    def up(size: int) -> int:
        return -(-size // MULTIPLE) * MULTIPLE

    found: list[Block] = []
    step = up(-(-plan.n_out // n))
    for first in range(0, plan.n_out, step):
        last = min(first + step, plan.n_out)
        # The last one takes in what nobody sees, so that gradients of all inputs come from products.
        depth = plan.n_in if last == plan.n_out else min(plan.n_in, up(int(plan.limit[last - 1])))
        if found and found[-1].depth == depth:
            found[-1] = found[-1]._replace(last=last)
        else:
            found.append(Block(first, last, found[-1].depth if found else 0, depth))
    dense = plan.n_out * plan.n_in
    if sum((s.last - s.first) * s.depth for s in found) > (1 - _SAVED) * dense:
        return (Block(0, plan.n_out, 0, plan.n_in),)
    return tuple(found)


# ---- the three products; W and its gradient [n_out, n_in] packed, of which only what lies in a block is touched ----


def product(x: Tensor, W: Tensor, of: Sequence[Block], out: Tensor) -> Tensor:
    """x W^T in out [rows, n_out]."""
    for s in of:
        torch.mm(x[:, : s.depth], W[s.first : s.last, : s.depth].t(), out=out[:, s.first : s.last])
    return out


def product_back(g: Tensor, W: Tensor, of: Sequence[Block], out: Tensor) -> Tensor:
    """g W in out [rows, n_in]: the inputs that a block adds to those before it are seen from its first unit on."""
    for s in of:
        torch.mm(g[:, s.first :], W[s.first :, s.before : s.depth], out=out[:, s.before : s.depth])
    return out


def outer(g: Tensor, x: Tensor, of: Sequence[Block], out: Tensor) -> Tensor:
    """g^T x in out [n_out, n_in]."""
    for s in of:
        torch.mm(g[:, s.first : s.last].t(), x[:, : s.depth], out=out[s.first : s.last, : s.depth])
    return out


# ---- plans on a device ----


class Order(Handled):
    """A permutation: on the CPU, and `there` on a device. int32."""

    def __init__(self, numbers: Tensor, device: torch.device) -> None:
        self.numbers, self.there, self._handles = numbers, numbers.to(device), {}

    def _handle(self, module: Any) -> Any:
        return module.DeviceOrder(self.numbers.tolist(), self.there)


class Layout(Handled):
    """How a layer's weight is packed: packed[j, k] = W[row[j], column[k]] where rank[k] < limit[j], else 0.

    What changes nothing is None. `width`: of each packed row, how much is in its block. All int32, on the CPU and
    `there` on a device.
    """

    def __init__(
        self, plan: LayerPlan, row: Tensor | None, column: Tensor | None, rank: Tensor | None, limit: Tensor,
        width: Tensor | None, device: torch.device,
    ) -> None:  # fmt: skip
        self.n_out, self.n_in, self.numbers = plan.n_out, plan.n_in, (row, column, rank, limit, width)
        self.there, self._handles = tuple(None if t is None else t.to(device) for t in self.numbers), {}

    def _handle(self, module: Any) -> Any:
        numbers = [[] if t is None else t.tolist() for t in self.numbers]
        return module.PackLayout(self.n_out, self.n_in, numbers, self.there)


class Orders(NamedTuple):
    """A plan's orders and their inverses; None where they change nothing."""

    in_order: Order | None
    in_rank: Order | None
    out_order: Order | None
    out_rank: Order | None


def _inverse(order: Tensor) -> Tensor:
    return order.argsort().int()


def orders(plan: LayerPlan, device: torch.device) -> Orders:
    """The same tensors for every call: a copy to a GPU made in each would wait for it, and no graph could hold it."""

    def make() -> Orders:
        ins, outs = plan.in_order, plan.out_order
        on = [None if fits else Order(t, device) for fits, t in (
            (plan.in_sorted, ins), (plan.in_sorted, _inverse(ins)), (plan.out_sorted, outs),
            (plan.out_sorted, _inverse(outs)),
        )]  # fmt: skip
        return Orders(*on)

    return _once(plan, (device,), make)


def layout(plan: LayerPlan, of: tuple[Block, ...], in_sorted: bool, out_sorted: bool, device: torch.device) -> Layout:
    """`in_sorted`, `out_sorted`: whether what enters and leaves the product is in the order of the degrees."""

    def make() -> Layout:
        limit = plan.limit if out_sorted or plan.out_sorted else plan.limit[_inverse(plan.out_order)]
        width = torch.empty(plan.n_out, dtype=torch.int32, device="cpu")
        for s in of:
            width[s.first : s.last] = s.depth
        return Layout(
            plan,
            plan.out_order if out_sorted and not plan.out_sorted else None,
            plan.in_order if in_sorted and not plan.in_sorted else None,
            None if in_sorted or plan.in_sorted else _inverse(plan.in_order),
            limit,
            width if len(of) > 1 else None,
            device,
        )

    return _once(plan, (of, in_sorted, out_sorted, device), make)


class Frame(NamedTuple):
    """What a network's masks and the number of rows say of its layers."""

    blocks: tuple[tuple[Block, ...], ...]
    sorted: tuple[bool, ...]  # of what enters each layer, and of the output: whether it is in the order of the degrees
    layouts: tuple[Layout, ...]
    orders: tuple[Orders, ...]


def frame(plan: LayerPlan | MadePlan, rows: int, device: torch.device) -> Frame:
    """Hidden units are in the order of their degrees where any layer is cut, x and the output where theirs is."""
    layers = plan.layers if isinstance(plan, MadePlan) else (plan,)

    def make() -> Frame:
        cuts = tuple(blocks_of(p, rows) for p in layers)
        cut = [len(c) > 1 for c in cuts]
        inside = (cut[0], *(any(cut),) * (len(layers) - 1), cut[-1])
        layouts = (
            layout(p, c, inside[i], inside[i + 1], device) for i, (p, c) in enumerate(zip(layers, cuts, strict=True))
        )
        return Frame(cuts, inside, tuple(layouts), tuple(orders(p, device) for p in layers))

    return _once(plan, (Frame, *(_count(p, rows) for p in layers), MULTIPLE, device), make)
