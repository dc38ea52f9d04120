"""FrEIA's containers of one module after another: neighbouring blocks of features as one op.

A `SequenceINN` is one, and a `GraphINN` whose nodes have one input and one output each. What must be called (images,
modules of the user's, GIN, learned or soft permutations, hooks) splits the run there. Blocks that are small run fused
here too: alone they would not pay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowkernels.compat.engine import thresholds
from flowkernels.compat.engine.patch import FastMethods, layer_of, or_theirs
from flowkernels.compat.engine.runs import kind, may_run, pays_with_graph
from flowkernels.nets.reading import Walk
from flowkernels.ops._kept import made_to_stay
from flowkernels.transforms.parts import Leaf, Part, Run, kept
from flowkernels.transforms.runs import Piece, read_listed

from .couplings import is_table
from .layers import Permute
from .part import Link, is_number, read, sees_conditions

KIND = kind(lambda walk, link, inverse, before: [Leaf(link, inverse)], read)
# Bytes kept for backward by one call. The blocks one by one keep as many, but in pieces that glibc has at hand: more
# than this in one piece it maps anew every time.
MOST_KEPT = 32 << 20
Outputs = Sequence[Tensor]  # of a block, which FrEIA calls with a tuple and which returns one, or a list


class Fused(NamedTuple):
    """Neighbouring modules as one op."""

    run: Run
    is_number: bool  # whether FrEIA's log-determinant of them is the number 0
    as_list: bool  # whether the last of them returns a list
    kept: int  # numbers that are kept of a row for backward

    def __call__(self, z: Outputs, context: Tensor | None) -> tuple[Outputs, Any] | None:
        x = z[0]
        if len(z) != 1 or not may_run(x) or (thresholds.may_train() and not self._pays(x)):
            return None
        found = self.run(x, context)
        if found is None:
            return None
        y, ladj = found
        return [y] if self.as_list else (y,), 0.0 if self.is_number else ladj

    def _pays(self, x: Tensor) -> bool:
        """Whether it takes less time than the blocks one by one, with a graph; without one it always does."""
        rows = x.shape[0]
        if not pays_with_graph(self.run, rows):
            return False
        return rows < thresholds.COUPLED_ROWS or rows * self.kept * x.element_size() <= MOST_KEPT


class Chain(NamedTuple):
    """What a container runs in one of its directions."""

    pieces: list[Fused | Leaf]
    columns: dict[Any, range]  # where each condition lies among those that blocks see, side by side

    def context(self, x: Tensor, c: Any) -> Tensor | None:
        """The conditions of a call, side by side; None where some are not what the blocks were made for."""
        try:
            found = [c[key] for key in self.columns]
        except (IndexError, KeyError, TypeError):
            return None
        if not all(is_table(t, x) and t.shape[1] == len(n) for t, n in zip(found, self.columns.values(), strict=True)):
            return None
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def each(
        self, z: Outputs, c: Any, call: Callable[[Link, Outputs], tuple[Outputs, Any]]
    ) -> Iterator[tuple[Outputs, Any]]:
        """What the modules make of z, and their log-determinants; ``call`` calls one of them."""
        context = self.context(z[0], c) if self.columns else None
        for piece in self.pieces:
            done = piece(z, context) if isinstance(piece, Fused) else None
            if done is not None:
                z = done[0]
                yield done
                continue
            for leaf in piece.run.leaves if isinstance(piece, Fused) else (piece,):
                done = call(leaf.transform, z)
                z = done[0]
                yield done


def _chain(walk: Walk, listed: Sequence[tuple[Any, Sequence[Any], Any]], inverse: bool) -> Chain | None:
    """How modules run, each with the keys of its conditions and its node; None: as FrEIA runs them."""
    columns: dict[Any, range] = {}
    links = [Link(module, (*keys,), _columns(module, keys, columns), node) for module, keys, node in listed]
    found = read_listed(walk, links[::-1] if inverse else links, inverse, bool(columns), KIND)
    if not any(isinstance(piece, Run) for piece in found):
        return None
    return Chain([_fused(piece) if isinstance(piece, Run) else piece for piece in found], columns)


def _fused(run: Run) -> Fused:
    layers = [part for part in run.parts if isinstance(part, Part)]
    kept = sum(run.features + sum(len(bias) for _, bias in p.conditioner.found.layers[:-1]) for p in layers)
    as_list = layer_of(run.leaves[-1].transform.module) is Permute
    return Fused(run, all(map(is_number, run.parts)), as_list, kept)


def _pieces(chain: Chain | None) -> list[Piece] | None:
    return None if chain is None else [p.run if isinstance(p, Fused) else p for p in chain.pieces]


def _columns(module: Any, keys: Sequence[Any], columns: dict[Any, range]) -> tuple[range, ...] | None:
    """Where a module's conditions lie, those that are new put behind the others; None where that is not known."""
    sizes = [shape[0] for shape in module.dims_c if len(shape) == 1] if sees_conditions(module) else []
    if len(sizes) != len(keys):
        return None
    for key, size in zip(keys, sizes, strict=True):
        at = sum(map(len, columns.values()))
        columns.setdefault(key, range(at, at + size))
    found = tuple([columns[key] for key in keys])
    return found if [*map(len, found)] == sizes else None


def _rows(x_or_z: Any) -> Outputs | None:
    """What a container is called with, if that is rows of features in a CPU's memory. Of none blocks may raise."""
    z = (x_or_z,) if isinstance(x_or_z, Tensor) else x_or_z
    if not isinstance(z, (tuple, list)) or len(z) != 1 or not may_run(z[0]):
        return None
    return z if z[0].is_cpu and len(z[0]) > 0 else None


# ---- one module after another ----


def _of_sequence(inn: Any, rev: bool) -> Chain | None:
    conditions = tuple(inn.conditions)
    return kept(inn, (rev, conditions), _read_sequence, inn, conditions, rev)


def _read_sequence(inn: Any, conditions: Sequence[Any], rev: bool) -> tuple[Walk, Chain | None]:
    walk, listed = Walk(), inn._modules["module_list"]
    walk.enter(inn, is_called=True)
    walk.enter(listed, is_called=True)
    modules = [*listed._modules.values()]
    if type(listed) is not nn.ModuleList or len(modules) != len(conditions):
        return walk, None
    return walk, made_to_stay(
        _chain, walk, [(m, () if k is None else (k,), None) for m, k in zip(modules, conditions, strict=True)], rev
    )


def _sequence(inn: Any, x_or_z: Any, c: Any, rev: Any, jac: Any) -> tuple[Any, Any] | None:
    z = _rows(x_or_z)
    if z is None:
        return None
    chain = _of_sequence(inn, bool(rev))
    if chain is None:
        return None

    def call(link: Link, z: Outputs) -> Any:
        given = {"c": [c[link.keys[0]]]} if link.keys else {}
        return link.module(z, **given, jac=jac, rev=rev)

    total: Any = 0
    for z, ladj in chain.each(z, c, call):  # noqa: B007, B020
        total = ladj if type(total) is int else ladj + total
    return z if inn.force_tuple_output else z[0], total


class SequenceINN(FastMethods):
    """The methods of an accelerated SequenceINN."""

    is_container = True

    @or_theirs
    def forward(self: Any, x_or_z: Any, c: Any = None, rev: bool = False, jac: bool = True) -> Any:
        return _sequence(self, x_or_z, c, rev, jac)

    @staticmethod
    def pieces(inn: Any, inverse: bool, has_context: bool) -> Sequence[Piece] | None:
        return _pieces(_of_sequence(inn, inverse))


# ---- a graph that is a chain ----


def _of_graph(inn: Any, rev: bool) -> Chain | None:
    modules = tuple([node.module for node in inn.node_list])
    return kept(inn, (rev, modules), _read_graph, inn, rev)


def _read_graph(inn: Any, rev: bool) -> tuple[Walk, Chain | None]:
    walk, nodes, conditions = Walk(), _nodes(inn), inn.condition_nodes
    walk.enter(inn, is_called=True)
    if nodes is None:
        return walk, None
    keys = [[conditions.index(given) for given in node.conditions] for node in nodes]
    return walk, made_to_stay(_chain, walk, [(node.module, k, node) for node, k in zip(nodes, keys, strict=True)], rev)


def _nodes(inn: Any) -> list[Any] | None:
    """A graph's nodes between its input and its output, one after another; None where it is no chain."""
    if len(inn.in_nodes) != 1 or len(inn.out_nodes) != 1:
        return None
    nodes = [n for n in inn.node_list if n not in [*inn.in_nodes, *inn.out_nodes, *inn.condition_nodes]]
    row = [inn.in_nodes[0], *nodes, inn.out_nodes[0]]
    for before, after in pairwise(row):
        if [*after.inputs] != [(before, 0)] or [*before.outputs] != [(after, 0)]:
            return None
    return nodes


def _graph(inn: Any, x_or_z: Any, c: Any, rev: Any, jac: Any) -> tuple[Any, Any] | None:
    z = _rows(x_or_z)
    given = (c,) if isinstance(c, Tensor) else () if c is None else c
    if z is None or not isinstance(given, (tuple, list)) or len(given) != len(inn.condition_nodes):
        return None
    chain = _of_graph(inn, bool(rev))
    if chain is None:
        return None

    def call(link: Link, z: Outputs) -> Any:
        of_node = {"c": tuple([given[key] for key in link.keys])} if link.keys else {}
        try:
            found = link.module(tuple(z), **of_node, rev=rev, jac=jac)
        except Exception as error:
            raise RuntimeError(f"{link.node} encountered an error.") from error
        return inn._check_output(link.node, found, jac, rev)

    total = None
    x = z[0]
    for z, ladj in chain.each(z, given, call):  # noqa: B007, B020
        if jac and not isinstance(ladj, float):
            total = ladj if total is None else total + ladj
    total = torch.zeros(len(x)).to(x) if total is None else total
    return tuple(z) if inn.force_tuple_output else z[0], total


class GraphINN(FastMethods):
    """The methods of an accelerated GraphINN."""

    is_container = True

    @or_theirs
    def forward(
        self: Any,
        x_or_z: Any,
        c: Any = None,
        rev: bool = False,
        jac: bool = True,
        intermediate_outputs: bool = False,
        x: Any = None,
    ) -> Any:
        return None if intermediate_outputs or x is not None else _graph(self, x_or_z, c, rev, jac)

    @staticmethod
    def pieces(inn: Any, inverse: bool, has_context: bool) -> Sequence[Piece] | None:
        return _pieces(_of_graph(inn, inverse))
