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
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels._native import C
from flowkernels.nets.reading import Walk, hooked, hooked_globally
from flowkernels.ops._checks import in_autocast
from flowkernels.ops._routing import _dispatch_modes, _dual_level_active, _transforms_active
from flowkernels.ops.flow import FlowSpec, op
from flowkernels.ops.flow.spec import named
from flowkernels.ops.univariate import check_univariate

from .parts import KERNELS, Leaf, Run
from .runs import NATIVE, pieces, read_pieces

_tickets = itertools.count()
Place = tuple[str, ...]  # the names that lead to a module or a tensor, from the list of the transforms
# The name of a run, or none, and its features; places of its tensors; its layers, and which way; what can train.
Entry = tuple[str, int, tuple[Place, ...], tuple[tuple[Place, bool], ...], tuple[Place, ...]]


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
    if not any(isinstance(piece, Run) and piece.described for piece in listed) or (to_normal and len(listed) != 1):
        return ()
    if to_normal and isinstance(listed[0], Run) and listed[0].sweeps:
        return ()  # as eager calls have it
    named_tensors = (transforms.named_parameters, transforms.named_buffers)
    all_named = [pair for each in named_tensors for pair in each(remove_duplicate=False)]
    places = {id(t): tuple(name.split(".")) for name, t in [*all_named, *transforms.named_modules()]}
    watched = _that_train(walk, places)
    entries: list[Entry] = []
    at = 0
    for piece in listed:
        leaves: Sequence[Leaf] = piece.leaves if isinstance(piece, Run) else (piece,)
        name, features, tensors = "", 0, ()
        if isinstance(piece, Run) and piece.described is not None:
            # Graphs for training and for evaluation may have other runs, each found where it begins and ends.
            name, features, tensors = f"{ticket} {inverse} {at}:{at + len(leaves)}", piece.features, piece.described[1]
            name += " to the base" if to_normal else ""
            _name(name, owner, piece, inverse, has_context, to_normal)
        if any(id(t) not in places for t in (*tensors, *(leaf.transform for leaf in leaves))):
            return ()
        of_leaves = tuple((places[id(leaf.transform)], leaf.inverse) for leaf in leaves)
        entries.append((name, features, tuple(places[id(t)] for t in tensors), of_leaves, watched))
        at += len(leaves)
    return tuple(entries)


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
    described = run.with_normal.described if to_normal else run.described
    assert described is not None  # for the type checker
    spec, tensors = described
    n = len(tensors)

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
            if not isinstance(piece, Run) or piece.described is None or len(piece.leaves) != len(wanted):
                continue
            found, its = piece.with_normal.described if to_normal else piece.described  # type: ignore[misc]
            if len(its) == n and all(a.transform is b for a, b in zip(piece.leaves, wanted, strict=True)):
                for layer in found.layers:
                    check_univariate("ops.flow", layer.univariate, its[0].dtype)
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
    for name, features, places, leaves, watched in entries:
        for place in watched:
            bool(_at(transforms, place))  # read, and so guarded
        tensors = [_at(transforms, place) for place in places]
        if name and _may_run(x, tensors, features):
            x, ladj = op.library([x, *tensors], name)
            total = ladj if total is None else total + ladj
            continue
        for place, inverse in leaves:
            layer = _at(transforms, place)
            x, ladj = layer.inverse(x, context) if inverse else layer(x, context)
            total = ladj if total is None else total + ladj
    assert total is not None
    return x, total


def log_normal(transforms: nn.Module, entries: Sequence[Entry], x: Tensor, features: int) -> Tensor | None:
    """What `composite.log_normal` returns, of entries that are one run to the base."""
    if len(entries) != 1:
        return None
    name, its_features, places, _, watched = entries[0]
    for place in watched:
        bool(_at(transforms, place))  # read, and so guarded
    tensors = [_at(transforms, place) for place in places]
    if not name or its_features != features or not _may_run(x, tensors, features):
        return None
    return op.library([x, *tensors], name)[1]


def _may_run(x: Tensor, tensors: Sequence[Tensor], features: int) -> bool:
    if not x.is_cpu or x.dtype not in KERNELS or x.dim() == 0 or x.shape[-1] != features or in_autocast(x):
        return False
    if _transforms_active() or _dual_level_active():
        return False
    return all(t.dtype == x.dtype and t.is_cpu for t in tensors)
