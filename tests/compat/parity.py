"""One comparison for every library: y, ladj and all gradients of a module, accelerated and not, in two dtypes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels import compat
from flowkernels.compat.engine import thresholds
from tests.compat.nflows_models import B, assert_numbers

Run = Callable[..., tuple[Tensor, Tensor]]

__all__ = [
    "B", "accelerated_copy", "assert_parity", "assert_same_training", "fuse_small_ones", "table",
    "values_and_gradients", "watch",
]  # fmt: skip


def fuse_small_ones(monkeypatch: Any) -> None:
    """Layers that leave small inputs to their library run them fused, until the test ends."""
    for name in filter(str.isupper, vars(thresholds)):
        monkeypatch.setattr(thresholds, name, 0)


def accelerated_copy(module: nn.Module, expected: int | None = None) -> Any:
    """A copy in which something, or a number of modules, is accelerated."""
    module = copy.deepcopy(module)
    report = compat.accelerate(module)
    assert len(report.accelerated) == expected if expected is not None else report.accelerated, report
    return module


def values_and_gradients(run: Run, module: Any, tensors: tuple[Tensor, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """What `run(module, *tensors)` returns, y and ladj, and the gradients of the tensors and the parameters."""
    module = copy.deepcopy(module).to(dtype)
    leaves = [t.to(dtype, copy=True).requires_grad_() for t in tensors]
    y, ladj = run(module, *leaves)
    of_y, of_ladj = torch.linspace(-1, 1, y.numel(), dtype=dtype), torch.linspace(0.5, 1.5, ladj.numel(), dtype=dtype)
    ((y * of_y.view_as(y)).sum() + (ladj * of_ladj.view_as(ladj)).sum()).backward()
    found = {"y": y.detach(), "ladj": ladj.detach()}
    found |= {f"grad of input {i}": t.grad for i, t in enumerate(leaves) if t.grad is not None}
    return found | {f"grad of {n}": p.grad for n, p in module.named_parameters() if p.grad is not None}


def assert_parity(run: Run, module: nn.Module, *tensors: Tensor, accelerated: int | None = None) -> None:
    """The numbers rule for an accelerated copy, in float32 and float64."""

    def theirs(module: nn.Module, *rest: Any) -> dict[str, Tensor]:
        *tensors, dtype = rest
        return values_and_gradients(run, module, tuple(tensors), dtype)

    def ours(module: nn.Module, *rest: Any) -> dict[str, Tensor]:
        return theirs(accelerated_copy(module, accelerated), *rest)

    assert_numbers(theirs, ours, module, *(t.float() for t in tensors))


def watch(monkeypatch: Any, names: list[str], module: Any, op: str, called: str | None = None) -> None:
    """Appends `called`, or else the op's own name, to `names` when a function of a module does the work."""
    plain = getattr(module, op)

    def watched(*args: Any, **kwargs: Any) -> Any:
        found = plain(*args, **kwargs)
        if found is not None:  # None: it left the work to others
            names.append(called or op)
        return found

    monkeypatch.setattr(module, op, watched)


@functools.cache
def table(features: int = 6) -> Tensor:
    """Measurements of 178 wines, standardised; real data that comes with scikit-learn."""
    from sklearn.datasets import load_wine

    loaded: Any = load_wine()
    x = torch.tensor(loaded.data[:, :features])
    return (x - x.mean(0)) / x.std(0)


def assert_same_training(log_prob: Callable[[Any, Tensor], Tensor], module: nn.Module, steps: int = 20) -> None:
    """The loss curve of Adam on real data, in float64, and that it falls."""
    curves = []
    for model in (copy.deepcopy(module).double(), accelerated_copy(module).double()):
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(steps):
            loss = -log_prob(model, table()).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(torch.tensor(losses))
    assert curves[0][-1] < curves[0][0] - 0.3
    # Adam divides by the root of a squared gradient: where that is nearly 0, rounding grows.
    torch.testing.assert_close(*curves, rtol=1e-7, atol=1e-7)
