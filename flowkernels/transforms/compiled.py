"""Runs of layers under `torch.compile`, each one node of the graph.

A compiler cannot trace what reads modules, and what it is told once it believes for ever. So a graph holds no
description of a flow: it holds the name of a run, and the parameters, which are its inputs. When the graph runs, the op
looks the run up and asks, as eager calls do, whether its modules are as they were; a permutation that was loaded
meanwhile is seen.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowkernels._native import C
from flowkernels.nets.reading import Walk, hooked, hooked_globally
from flowkernels.ops._checks import expands, in_autocast
from flowkernels.ops._routing import _dispatch_modes, _dual_level_active, _transforms_active
from flowkernels.ops.flow import FlowSpec, op
from flowkernels.ops.flow.spec import named
from flowkernels.ops.univariate import check_univariate

from .parts import KERNELS, Leaf, Run, Source
from .runs import NATIVE, pieces, read_pieces

_tickets = itertools.count()
Place = tuple[str, ...]  # the names that lead to a module or a tensor, from the list of the transforms
# Where tensors of a part are, what a context adds to them (nothing, or what it adds to such a network), and where that
# network is, if it is a MADE.
Tensors = tuple[tuple[Place, ...], Literal["", "plain", "residual", "made"], Place]
# The name of a run, or none, its features and those of its context; tensors of its parts; its layers, and which way;
# what can train.
Entry = tuple[str, int, int, tuple[Tensors, ...], tuple[tuple[Place, bool], ...], tuple[Place, ...]]


def new_ticket() -> str:
    """What tells one container from another in a graph: a guard compares it on every call."""
    return f"run {next(_tickets)}"


# ---- when a graph is made ----


def plan(owner: nn.Module, ticket: str, inverse: bool, has_context: bool, to_normal: bool = False) -> tuple[Entry, ...]:
    """What a graph is told of the owner's transforms; nothing where no run would be in it.

    ``to_normal``: of all of them and the standard normal behind them, which is nothing where that is not one run.
    """
    if C is None or hooked_globally() or _exports():  # a file has no modules
        return ()
    if to_normal and hooked(owner):
        return ()
    transforms: Any = owner._modules["transforms"]
    walk, listed = read_pieces(owner, transforms, inverse, has_context, NATIVE)
    if not any(isinstance(p, Run) and _spec_of(p) for p in listed):
        return ()
    if to_normal and (len(listed) != 1 or (isinstance(listed[0], Run) and listed[0].sweeps)):
        return ()  # as eager calls have it
    named_tensors = (transforms.named_parameters, transforms.named_buffers)
    all_named = [pair for each in named_tensors for pair in each(remove_duplicate=False)]
    places = {id(t): tuple(name.split(".")) for name, t in [*all_named, *transforms.named_modules()]}
    watched = _that_train(walk, places)
    entries: list[Entry] = []
    at = 0
    for piece in listed:
        leaves: Sequence[Leaf] = piece.leaves if isinstance(piece, Run) else (piece,)
        name, sizes, sources = "", (0, 0), ()
        if isinstance(piece, Run) and _spec_of(piece) is not None:
            # Graphs for training and for evaluation may have other runs, each found where it begins and ends.
            name, sources = f"{ticket} {inverse} {at}:{at + len(leaves)}", piece.sources
            sizes = piece.features, 0 if piece.of_context is None else piece.of_context[0]
            name += f"{' given' if has_context else ''}{' to the base' if to_normal else ''}"
            _name(name, owner, piece, inverse, has_context, to_normal)
        try:
            found = tuple(_tensors_of(source, places) for source in sources)
            of_leaves = tuple((places[id(leaf.transform)], leaf.inverse) for leaf in leaves)
        except KeyError:  # what has no name in the owner
            return ()
        entries.append((name, *sizes, found, of_leaves, watched))
        at += len(leaves)
    return tuple(entries)


def _spec_of(run: Run) -> FlowSpec | None:
    """What a run is, if a graph can hold it."""
    if run.described is not None:
        return run.described[0]
    return None if run.of_context is None else run.of_context[1]


def _dtype_of(run: Run) -> torch.dtype:
    source = run.sources[0]
    return (source.tensors if isinstance(source, Source) else source)[0].dtype


def _tensors_of(source: Source | Sequence[Tensor], places: dict[int, Place]) -> Tensors:
    if not isinstance(source, Source):
        return tuple(places[id(t)] for t in source), "", ()
    own = tuple(places[id(t)] for t in source.tensors)
    if source.made is not None:
        return own, "made", places[id(source.made)]
    return own, "residual" if source.residual else "plain", ()


def _exports() -> bool:
    """Whether a graph is made that is to leave the process."""
    from torch._dynamo.symbolic_convert import InstructionTranslator  # there where this is called

    exporting = getattr(torch.compiler, "is_exporting", lambda: False)
    return bool(exporting() or getattr(InstructionTranslator.current_tx(), "export", True))


def _that_train(walk: Walk, places: dict[int, Place]) -> tuple[Place, ...]:
    """Where the modules are of which a reader asked whether they train."""
    found = []
    for reference, _, _, _, attributes, _, _ in walk.modules:
        place = places.get(id(reference()))
        if place is not None and any(name == "training" for name, _ in attributes):
            found.append((*place, "training"))
    return tuple(found)


def _name(name: str, owner: nn.Module, run: Run, inverse: bool, has_context: bool, to_normal: bool) -> None:
    """Lets the op find a run of this owner by its name, as it is when it is asked."""
    of, leaves = weakref.ref(owner), [weakref.ref(leaf.transform) for leaf in run.leaves]
    spec = _spec_of(run.with_normal if to_normal else run)
    assert spec is not None  # for the type checker
    counts = spec.counts

    def now() -> FlowSpec:
        if _dispatch_modes() > 0:  # of tensors without numbers: nothing runs
            return spec
        owner = of()
        wanted = [leaf() for leaf in leaves]
        given: Any = (owner, None if owner is None else owner._modules["transforms"], inverse, has_context, NATIVE)
        # A compiler calls no hooks of all modules: they keep an eager flow from its runs, not a graph.
        listed = None if owner is None else read_pieces(*given)[1] if hooked_globally() else pieces(*given)
        if to_normal and owner is not None and hooked(owner):
            listed = None
        for piece in listed or ():
            if not isinstance(piece, Run) or len(piece.leaves) != len(wanted):
                continue
            found = _spec_of(piece.with_normal if to_normal else piece)
            if found is None or found.counts != counts:
                continue
            if all(a.transform is b for a, b in zip(piece.leaves, wanted, strict=True)):
                for layer in found.layers:
                    check_univariate("ops.flow", layer.univariate, _dtype_of(piece))
                return found
        raise RuntimeError(
            "flowkernels: a compiled flow must have the layers with which it was compiled, got others, or hooks; call "
            "torch.compiler.reset() and compile it again"
        )

    if name not in named:
        weakref.finalize(owner, named.pop, name, None).atexit = False
    named[name] = now


# ---- what is traced ----


def _at(module: Any, place: Place) -> Any:
    for name in place:
        module = getattr(module, name)
    return module


def run(transforms: nn.Module, entries: Sequence[Entry], x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    total = None
    for entry in entries:
        done = _as_one(transforms, entry, x, context)
        if done is not None:
            x, ladj = done
            total = ladj if total is None else total + ladj
            continue
        for place, inverse in entry[4]:
            layer = _at(transforms, place)
            x, ladj = layer.inverse(x, context) if inverse else layer(x, context)
            total = ladj if total is None else total + ladj
    assert total is not None
    return x, total


def log_normal(
    transforms: nn.Module, entries: Sequence[Entry], x: Tensor, context: Tensor | None, features: int
) -> Tensor | None:
    """What `composite.log_normal` returns, of entries that are one run to the base."""
    if len(entries) != 1 or entries[0][1] != features:
        return None
    done = _as_one(transforms, entries[0], x, context)
    return None if done is None else done[1]


def _as_one(transforms: nn.Module, entry: Entry, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """y and ladj of a run as one node; None where its layers are to be called."""
    name, features, width, parts, _, watched = entry
    for place in watched:
        bool(_at(transforms, place))  # read, and so guarded
    listed = [[_at(transforms, place) for place in places] for places, _, _ in parts]
    if not name or not _may_run(x, [t for tensors in listed for t in tensors], features):
        return None
    if width > 0 and (context is None or not _may_add(x, context, width)):
        return None
    given = []
    for (_, kind, made), tensors in zip(parts, listed, strict=True):
        if context is None or kind == "":
            given += tensors
        else:
            module = _at(transforms, made) if kind == "made" else None
            # Of any activation: what is given are tensors alone.
            given += Source(tuple(tensors), width, kind == "residual", "relu", module).given(x.shape[:-1], context)
    done = op.library([x, *given], name)
    return done[0], done[1]


def _may_run(x: Tensor, tensors: Sequence[Tensor], features: int) -> bool:
    if not x.is_cpu or x.dtype not in KERNELS or x.dim() == 0 or x.shape[-1] != features or in_autocast(x):
        return False
    if _transforms_active() or _dual_level_active():
        return False
    return all(t.dtype == x.dtype and t.is_cpu for t in tensors)


def _may_add(x: Tensor, context: Tensor, width: int) -> bool:
    if not context.is_cpu or context.dtype != x.dtype or context.dim() == 0 or context.shape[-1] != width:
        return False
    return expands(context.shape[:-1], x.shape[:-1])
