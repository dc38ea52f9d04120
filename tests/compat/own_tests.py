"""Runs a library's own unit tests with `accelerate` on; `python own_tests.py LIBRARY [FOLDER OF ITS SDIST]`.

Every module of a class that is accelerated is accelerated as soon as it is built. The tests run twice, without and with
that: what fails without says nothing about us. Prints JSON: how many ran, which classes were built accelerated, and the
names of the tests that fail only with it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import sys
import unittest
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from flowkernels import compat
from flowkernels.compat import pays, swap

SUITES = {
    "nflows": [
        f"tests.transforms.{name}_test"
        for name in ("autoregressive", "conv", "coupling", "lu", "made", "nonlinearities", "normalization")
    ] + ["tests.flows.realnvp_test", "tests.flows.autoregressive_test"],
    "normflows": [
        *(f"normflows.flows.{name}_test" for name in ("mixing", "affine.autoregressive", "affine.coupling",
          "affine.glow", "neural_spline.autoregressive", "neural_spline.coupling", "neural_spline.wrapper")),
        "normflows.nets.made_test", "normflows.core_test",
    ],
}  # fmt: skip


def _resolve(root: str, name: str) -> type:
    module, _, cls = f"{root}.{name}".rpartition(".")
    return getattr(importlib.import_module(module), cls)


@contextlib.contextmanager
def accelerated_when_built(library: str) -> Iterator[set[str]]:
    """Wraps the constructors of a library's accelerated classes; gives the names of those that were built so."""
    LIBRARY = importlib.import_module(f"flowkernels.compat.adapters.{library}").LIBRARY
    built, undo = set(), []

    def wrap(cls: type) -> None:
        original = cls.__init__

        @functools.wraps(original)
        def init(self, *args, **kwargs):
            original(self, *args, **kwargs)
            if type(self) is cls:
                compat.accelerate(self)
                if swap.is_fast(self):
                    built.add(cls.__name__)

        undo.append((cls, "__init__" in vars(cls), original))
        cls.__init__ = init

    for name in LIBRARY.entries:
        wrap(_resolve(LIBRARY.root, name))
    try:
        yield built
    finally:
        for cls, own, original in reversed(undo):
            if own:
                cls.__init__ = original
            else:
                del cls.__init__


def run(names: list[str]) -> tuple[int, set[str]]:
    """How many tests ran, and which failed."""
    result = unittest.TestResult()
    for name in names:
        for case in unittest.defaultTestLoader.loadTestsFromModule(importlib.import_module(name)):
            for test in case:
                torch.manual_seed(0)  # they draw their inputs, and a test must not depend on those before it
                with contextlib.redirect_stdout(io.StringIO()):
                    test.run(result)
    return result.testsRun, {getattr(test, "test_case", test).id() for test, _ in (*result.failures, *result.errors)}


def main(library: str, *folders: str) -> int:
    # Its tests may be called `tests`, as ours are; flowkernels is loaded, and finds its own modules without the path.
    sys.path[:] = [*folders, *(p for p in sys.path if not Path(p, "tests", "__init__.py").exists())]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for size in filter(str.isupper, vars(pays)):  # small inputs too
        setattr(pays, size, 0)
    _, before = run(SUITES[library])
    with accelerated_when_built(library) as built:
        count, after = run(SUITES[library])
    print(json.dumps({
        "tests": count, "fail without": len(before), "built": sorted(built), "fail only with": sorted(after - before),
    }))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
