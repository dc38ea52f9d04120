"""`python -m flowkernels.benchmark model.py:make`: before and after of the model that a function of yours returns."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from typing import Any

import torch
from torch import Tensor

from flowkernels.benchmark import WHAT, benchmark

_WHERE = "python -m flowkernels.benchmark"


def main(arguments: list[str] | None = None) -> int:
    """0; 1 where the accelerated model computes something else; 2, with a sentence, where arguments are wrong."""
    parser = argparse.ArgumentParser(prog=_WHERE, description=__doc__)
    parser.add_argument(
        "model", metavar="FILE.py:FUNCTION", help="or PACKAGE.MODULE:FUNCTION; the function takes nothing and returns "
        "a model, (model, x) or (model, x, context)",
    )  # fmt: skip
    parser.add_argument("--rows", type=int, help="of the data; default: all that the function returns, or 4096")
    parser.add_argument("--features", type=int, help="of normal data, where the function returns a model alone")
    parser.add_argument("--context", type=int, help="features of a normal context, where it returns a model alone")
    parser.add_argument("--threads", type=int, help="of torch; default: as many as it takes")
    parser.add_argument("--seconds", type=float, default=2.0, help="that each row takes; default: %(default)s")
    parser.add_argument("--what", default=",".join(WHAT), help="rows, with commas; default: %(default)s")
    parser.add_argument("--plot", metavar="OUT.png", help="draws the times")
    args = parser.parse_args(arguments)
    try:
        for name in ("rows", "features", "context", "threads"):
            value = getattr(args, name)
            if value is not None and value < 1:
                raise ValueError(f"{_WHERE}: --{name} must be at least 1, got {value}")
        if args.plot is not None:
            from flowkernels.plot._style import matplotlib_of

            matplotlib_of(f"{_WHERE} --plot")  # said before minutes are spent
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        model, x, context = _parts(_made(args.model), args.model, args.rows, args.features, args.context)
        found = benchmark(model, x, context, seconds=args.seconds, what=args.what.split(","))
        print(found)
        if args.plot is not None:
            found.plot(args.plot)
            print(f"drawn: {args.plot}")
    except (ValueError, TypeError, ImportError) as error:
        if not str(error).startswith((_WHERE, "flowkernels.benchmark")):
            raise  # of the user's function or model: with its traceback
        print(error, file=sys.stderr)
        return 2
    return 0 if found.close else 1


def _made(target: str) -> Any:
    """What the function that ``target`` names returns; what is raised inside of it is raised here."""
    place, _, name = target.rpartition(":")
    if not place or not name.isidentifier():
        raise ValueError(f"{_WHERE}: model must be FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION, got {target!r}")
    if place.endswith(".py"):
        if not os.path.isfile(place):
            raise ValueError(f"{_WHERE}: model must name a file that exists, got {place!r}")
        sys.path.insert(0, os.path.dirname(os.path.abspath(place)))  # what stands beside the file can be imported
        stem = os.path.basename(place)[:-3]
        spec = importlib.util.spec_from_file_location(f"_{stem}" if stem in sys.modules else stem, place)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses and pickles of its classes look
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{place}.".startswith(f"{error.name}."):
                raise  # one that it imports
            raise ValueError(f"{_WHERE}: model must name a module that can be imported, got {place!r}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(
            f"{_WHERE}: model must name a function of {place}, got {name!r}, "
            f"{'which is none' if hasattr(module, name) else 'which it lacks'}"
        )
    return function()


def _parts(
    made: Any, target: str, rows: int | None, features: int | None, context_features: int | None
) -> tuple[Any, Tensor, Tensor | None]:
    """Model, data and context of what a function returned."""
    given = made if isinstance(made, tuple) else (made,)
    if not 1 <= len(given) <= 3:
        raise ValueError(
            f"{_WHERE}: {target} must return a model, (model, x) or (model, x, context), got {len(given)} values"
        )
    model = given[0]
    if len(given) > 1:
        for flag, value in (("--features", features), ("--context", context_features)):
            if value is not None:
                raise ValueError(f"{_WHERE}: {flag} must be left out where {target} returns data, got {value}")
        x, context = given[1], given[2] if len(given) > 2 else None
        if rows is not None and isinstance(x, Tensor):
            if x.dim() and rows > x.shape[0]:
                raise ValueError(f"{_WHERE}: --rows must be at most {x.shape[0]}, which {target} returns, got {rows}")
            x, context = x[:rows], context[:rows] if isinstance(context, Tensor) else context
        return model, x, context
    if features is None:
        raise ValueError(f"{_WHERE}: --features must be given, as {target} returns a model and no data, got none")
    weight = next(iter(model.parameters()), torch.empty(0)) if isinstance(model, torch.nn.Module) else torch.empty(0)
    draw = torch.Generator().manual_seed(0)
    x, context = (
        None if n is None else torch.randn(rows or 4096, n, generator=draw).to(weight.device, weight.dtype)
        for n in (features, context_features)
    )
    assert x is not None
    return model, x, context


if __name__ == "__main__":
    sys.exit(main())
