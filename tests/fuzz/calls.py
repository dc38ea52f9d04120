"""A call as a value: its arguments as a tree, which can be changed in one place and run on any backend."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowkernels import ops
from flowkernels._arguments import flag
from flowkernels.backends import BackendUnavailableError
from flowkernels.ops.flow import LU, Elementwise, Layer, Normal, Order, Scale, Sweep
from flowkernels.ops.flow_layer import flow_layer
from flowkernels.ops.net.activations import check_activation
from flowkernels.ops.net.checks import check_dense, check_net, check_sequence, check_tensor
from flowkernels.ops.net.net import dense_net, made_net

Path = tuple[Any, ...]
Arguments = dict[str, Any]


OWN: dict[str, Any] = {"LU": LU, "Scale": Scale, "Elementwise": Elementwise}


def _flow(
    x: Any,
    nets: Any,
    own: Any,
    maps: Any,
    splits: Any,
    order: Any,
    activation: Any,
    memory: Any,
    base: Any,
    backend: Any,
    context: Any = None,
) -> Any:
    """`ops.flow` of layers with plain nets that may see a context, before each a step of its `own` or none, after each
    a reordering."""
    check_tensor("ops.flow", "x", x)
    flag("ops.flow", "base", base)
    parts = (("nets", nets), ("own", own), ("maps", maps), ("splits", splits))
    for name, given in parts:
        check_sequence("ops.flow", name, given, "a list")
        if len(given) != len(nets):
            raise ValueError(f"ops.flow: {name} must be {len(nets)}, got {len(given)}")
    steps: list[Any] = []
    for net, before, recipe, split in zip(nets, own, maps, splits, strict=True):
        if before is not None:
            steps.append(_own_step(x, before))
        f, s = (made({"it": r})["it"] for r in (recipe, split))
        seen = len(getattr(s, "inputs", ()))
        check_dense("ops.flow", x, seen, net, context, residual=False)
        check_activation("ops.flow", activation)
        steps.append(Layer(f, dense_net(net, False, activation, seen, x.shape[:-1], context), s))
        if order is not None:
            steps.append(Order(order))
    steps += [Normal()] if base else []
    return ops.flow(x, steps, memory=memory, backend=backend)


def _own_step(x: Tensor, given: Any) -> Any:
    if isinstance(given, dict) and given.get("kind") == "Sweep":
        found = made(given)
        net = found["layers"], found["plan"], found["activation"]
        check_net("ops.flow", x, *net, None, None, "x")
        return Sweep(found["univariate"], made_net(*net))
    if not isinstance(given, dict) or not isinstance(given.get("kind"), str) or given["kind"] not in OWN:
        raise TypeError(f"ops.flow: own must be a step, got {given!r:.60}")
    return OWN[given["kind"]](**{name: value for name, value in made(given).items() if name != "kind"})


def _conv_net(backend: Any, **arguments: Any) -> Any:
    """`ops.conv_net`, by pixels as rows wherever that can be: small images would never take that way by themselves."""
    if backend is not None:
        return ops.conv_net(**arguments, backend=backend)
    try:
        return ops.conv_net(**arguments, backend="cpu")
    except BackendUnavailableError:
        return ops.conv_net(**arguments)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: f for name in ops.__all__ if not isinstance(f := getattr(ops, name), type) and name != "layer_plan"},
    "flow_layer": flow_layer,
    "flow": _flow,
    "conv_net": _conv_net,
}


class Recipe(NamedTuple):
    """An argument that is made of others when the call is: what its maker refuses, the call refuses."""

    make: Callable[..., Any]
    settings: dict[str, Any]


@dataclass
class Call:
    op: str
    arguments: Arguments
    # Tensors that hold a row for each leading index, and their dims behind those.
    rows: dict[Path, int] = field(default_factory=dict)
    # Of tensors whose roundings count beside something else: of x beside the box of its spline.
    sizes: dict[Path, float] = field(default_factory=dict)
    extreme: bool = False  # rounding decides on the values, which must still be numbers
    at_rounded: bool = False  # gradients are taken at what is returned, rounded: more, in a steep bin, than of inputs
    exact: bool = False  # no sum or product rounds: all backends agree, also where a slope jumps
    made_of: float = 0.0  # the numbers that cancel in results that may be far smaller


class Results(NamedTuple):
    """Outputs, then one gradient (or None) for each tensor that was to have one."""

    outputs: list[Tensor]
    grads: list[Tensor | None]


# ---- the tree ----


def walk(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every node and leaf, by path."""
    if path:
        yield path, tree
    children = tree.settings if isinstance(tree, Recipe) else tree
    if isinstance(children, dict):
        for key, child in children.items():
            yield from walk(child, (*path, key))
    elif isinstance(children, (list, tuple)):
        for i, child in enumerate(children):
            yield from walk(child, (*path, i))


def at(tree: Any, path: Path) -> Any:
    for key in path:
        tree = (tree.settings if isinstance(tree, Recipe) else tree)[key]
    return tree


def replaced(tree: Any, path: Path, value: Any) -> Any:
    """The tree with another value at this path; what is not on the way is shared."""
    if not path:
        return value
    key, rest = path[0], path[1:]
    if isinstance(tree, Recipe):
        return tree._replace(settings=replaced(tree.settings, path, value))
    if isinstance(tree, dict):
        return {**tree, key: replaced(tree[key], rest, value)}
    items = list(tree)
    items[key] = replaced(items[key], rest, value)
    return items if isinstance(tree, list) else tuple(items)


def mapped(tree: Any, f: Callable[[Path, Tensor], Any], path: Path = ()) -> Any:
    """The tree with f of each tensor."""
    if isinstance(tree, Tensor):
        return f(path, tree)
    if type(tree) is dict:
        return {key: mapped(child, f, (*path, key)) for key, child in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(mapped(child, f, (*path, i)) for i, child in enumerate(tree))
    return tree


def floating(arguments: Arguments) -> list[Path]:
    """The paths of tensors that may have a gradient."""
    return [path for path, t in walk(arguments) if isinstance(t, Tensor) and t.is_floating_point()]


def cast(arguments: Arguments, dtype: torch.dtype) -> Arguments:
    return mapped(arguments, lambda _, t: t.to(dtype) if t.is_floating_point() else t)


# ---- running ----


def made(arguments: Arguments) -> Arguments:
    """The arguments with what their recipes make."""
    return {
        name: value.make(**value.settings) if isinstance(value, Recipe) else value for name, value in arguments.items()
    }


def call(op: str, arguments: Arguments, backend: Any = None) -> list[Tensor]:
    """The outputs."""
    found = FUNCTIONS[op](**{"backend": backend, **made(arguments)})
    return [found] if isinstance(found, Tensor) else list(found)


@functools.lru_cache(maxsize=4096)
def weights(shape: torch.Size, which: int) -> Tensor:
    """Fixed gradients for an output, float64: different from element to element, exact in every dtype."""
    n = np.arange(shape.numel())
    found = (np.mod(n * 5 + 3 * which, 7) + 1) / 4 * np.where(np.mod(n * 3 + which, 5) < 2, -1, 1)
    return torch.from_numpy(found.reshape(shape))


def run(
    op: str,
    arguments: Arguments,
    backend: str | None,
    wanted: Sequence[Path],
    of: Sequence[int],
    lay_out: Callable[[Tensor], Tensor] = lambda t: t,
) -> Results:
    """The outputs of a call, and the gradients of the `wanted` tensors through the outputs `of` these indices.

    ``lay_out`` puts the gradients of the outputs into memory.
    """
    if not wanted:
        return Results(call(op, arguments, backend), [])
    leaves: dict[Path, Tensor] = {}
    chosen = set(wanted)

    def leaf(path: Path, t: Tensor) -> Tensor:
        if path not in chosen:
            return t
        leaves[path] = t.detach().requires_grad_()
        return leaves[path]

    outputs = call(op, mapped(arguments, leaf), backend)
    used = [(i, o) for i, o in enumerate(outputs) if i in of and o.requires_grad]
    given = [lay_out(weights(o.shape, i).to(o.dtype)) for i, o in used]
    inputs = [leaves[path] for path in wanted]
    grads = (
        torch.autograd.grad([o for _, o in used], inputs, given, allow_unused=True) if used else [None] * len(inputs)
    )
    return Results([o.detach() for o in outputs], list(grads))
