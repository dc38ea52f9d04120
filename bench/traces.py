"""Exact traces of a continuous map beside Hutchinson's estimates, over features: `python -m bench.traces`.

One map, 20 steps of RK4 of a field with two hidden layers, by the kernel, both traces turn by turn; figures are the
least processor time of its turns, in seconds, which other work on the machine does not add to.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from flowkernels import ops

FEATURES = (2, 4, 8, 16, 32, 64, 128)
ROWS, HIDDEN, TURNS = 256, 64, 15
TRACES = ("exact", "hutchinson")
OPS = ("forward", "forward + backward")
COLOURS = {"exact": "#1b6ca8", "hutchinson": "#d95f02"}

Figures = dict[str, dict[str, dict[int, float]]]  # by op, trace and features


def _call(features: int, rows: int, trace: str, op: str) -> Callable[[], Any]:
    draw = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    sizes = [features + 1, HIDDEN, HIDDEN, features]
    layers = [(randn(b, a) / a**0.5, randn(b)) for a, b in itertools.pairwise(sizes)]
    x = randn(rows, features)
    noise = None if trace == "exact" else randn(rows, features).sign()
    leaves = [x, *(t for pair in layers for t in pair)]
    if op == OPS[1]:
        leaves = [t.requires_grad_() for t in leaves]

    def call() -> Any:
        y, ladj = ops.ode_flow(x, layers, trace=trace, noise=noise, backend="cpu")
        return torch.autograd.grad(y.sum() + ladj.sum(), leaves) if op == OPS[1] else ladj

    return call


def measure(features: int, op: str, rows: int = ROWS, turns: int = TURNS) -> dict[str, float]:
    """Seconds of the processor by trace."""
    calls = {trace: _call(features, rows, trace, op) for trace in TRACES}
    found = dict.fromkeys(TRACES, float("inf"))
    for _ in range(turns + 1):  # the first is not better than the others
        for trace, call in calls.items():
            begun = time.process_time()
            call()
            found[trace] = min(found[trace], time.process_time() - begun)
    return found


def plot(figures: Figures, path: Path) -> None:
    figure, axes = plt.subplots(1, len(OPS), figsize=(9, 3.6), layout="constrained")
    for ax, op in zip(axes, OPS, strict=True):
        for trace in TRACES:
            curve = figures[op][trace]
            ax.plot([*curve], [1e3 * s for s in curve.values()], "o-", color=COLOURS[trace], label=trace)
        ax.set(xscale="log", yscale="log", xlabel="features", ylabel="ms of the processor", title=op)
        ax.set_xticks([*curve], [str(n) for n in curve])
        ax.minorticks_off()
        ax.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.traces", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("."), help="for traces.json and plot-traces.png")
    parser.add_argument("--most", type=int, default=max(FEATURES), help="of features")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures: Figures = {op: {trace: {} for trace in TRACES} for op in OPS}
    for op in OPS:
        for features in (n for n in FEATURES if n <= given.most):
            for trace, seconds in measure(features, op).items():
                figures[op][trace][features] = seconds
            exact, estimate = (figures[op][trace][features] for trace in TRACES)
            print(f"{op}, {features} features: {1e3 * exact:.2f} ms exact, {1e3 * estimate:.2f} ms estimated")
    given.folder.mkdir(parents=True, exist_ok=True)
    (given.folder / "traces.json").write_text(json.dumps(figures, indent=1) + "\n")
    plot(figures, given.folder / "plot-traces.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
