"""The rows of the spline benchmark: each library's own function, called as its own layers call it.

Every row maps (x [B, D], params [B, D, 3K-1], bins, inverse) to (y [B, D], ladj [B]) on the box [-3, 3]: a user of
a flow needs the row sum, so it is inside every row.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.suites.rqs import MIN_SIZE, TAIL_BOUND, Spline, spec_of
from flowkernels import ops
from flowkernels.ops.rqs import reference


def _nflows(x: Tensor, params: Tensor, bins: int, inverse: bool) -> tuple[Tensor, Tensor]:
    from nflows.transforms.splines.rational_quadratic import unconstrained_rational_quadratic_spline

    y, ladj = unconstrained_rational_quadratic_spline(
        x, params[..., :bins], params[..., bins : 2 * bins], params[..., 2 * bins :],
        inverse=inverse, tails="linear", tail_bound=TAIL_BOUND,
    )  # fmt: skip
    return y, ladj.sum(-1)


def _normflows(x: Tensor, params: Tensor, bins: int, inverse: bool) -> tuple[Tensor, Tensor]:
    from normflows.utils.splines import unconstrained_rational_quadratic_spline

    y, ladj = unconstrained_rational_quadratic_spline(
        x, params[..., :bins], params[..., bins : 2 * bins], params[..., 2 * bins :],
        inverse=inverse, tails="linear", tail_bound=TAIL_BOUND,
    )  # fmt: skip
    return y, ladj.sum(-1)


def _zuko(x: Tensor, params: Tensor, bins: int, inverse: bool) -> tuple[Tensor, Tensor]:
    from zuko.transforms import MonotonicRQSTransform

    transform: Any = MonotonicRQSTransform(*params.split([bins, bins, bins - 1], -1), bound=TAIL_BOUND, slope=MIN_SIZE)
    y, ladj = transform.inv.call_and_ladj(x) if inverse else transform.call_and_ladj(x)
    return y, ladj.sum(-1)


def _plain(x: Tensor, params: Tensor, bins: int, inverse: bool) -> tuple[Tensor, Tensor]:
    return reference.fwd(spec_of(bins, "softmax", inverse), x, params)


def _plain_soft_clip(x: Tensor, params: Tensor, bins: int, inverse: bool) -> tuple[Tensor, Tensor]:
    return reference.fwd(spec_of(bins, "soft_clip", inverse), x, params)


def _ours(x: Tensor, params: Tensor, bins: int, inverse: bool) -> tuple[Tensor, Tensor]:
    return ops.rqs(x, params, bins=bins, tail_bound=TAIL_BOUND, inverse=inverse, backend="cpu")


def _ours_soft_clip(x: Tensor, params: Tensor, bins: int, inverse: bool) -> tuple[Tensor, Tensor]:
    return ops.rqs(
        x, params, bins=bins, tail_bound=TAIL_BOUND, parametrization="soft_clip", slope=MIN_SIZE, inverse=inverse,
        backend="cpu",
    )  # fmt: skip


def fresh_compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` with its defaults, from no compiled code, so that every row is compiled for its own shape."""
    torch.compiler.reset()
    _counters().clear()
    return torch.compile(function)


def graph_breaks() -> int:
    """Graph breaks since `fresh_compile`."""
    return sum(_counters()["graph_break"].values())


def _counters() -> dict[str, Any]:
    from torch._dynamo.utils import counters  # seconds to import, and eager rows need none of it

    return counters


def row_id(*words: str) -> str:
    """A test's name of letters, digits and underscores only, so that `-k` can select any part of it."""
    return re.sub(r"[^A-Za-z0-9]+", "_", " ".join(words).replace("=", ""))


class Row(NamedTuple):
    """One line of a table: `truth` is the float64 definition of the same parametrisation."""

    name: str
    spline: Spline
    truth: Spline
    package: str | None = None
    compiled: bool = False

    def missing(self) -> str | None:
        """Why the row cannot run, or None."""
        if self.package is None or importlib.util.find_spec(self.package):
            return None
        return f"{self.package} is not installed"

    def ready(self) -> Spline:
        """The function to time."""
        return fresh_compile(self.spline) if self.compiled else self.spline


ROWS = {
    row.name: row
    for row in (
        Row("nflows eager", _nflows, _plain, "nflows"),
        Row("normflows eager", _normflows, _plain, "normflows"),
        Row("zuko eager", _zuko, _plain_soft_clip, "zuko"),
        Row("nflows compiled", _nflows, _plain, "nflows", compiled=True),
        Row("normflows compiled", _normflows, _plain, "normflows", compiled=True),
        Row("zuko compiled", _zuko, _plain_soft_clip, "zuko", compiled=True),
        Row("plain torch compiled", _plain, _plain, compiled=True),
        Row("flowkernels", _ours, _plain),
        Row("flowkernels soft_clip", _ours_soft_clip, _plain_soft_clip),
    )
}
