"""Before and after of a user's own model; `python -m flowkernels.benchmark` for a terminal.

`flowkernels.benchmark` is the function, as `flowkernels.ops.rqs` is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from .result import Benchmark

WHAT = ("log_prob", "sample", "train")


def benchmark(
    model: Any, x: Tensor, context: Tensor | None = None, *, seconds: float = 2.0, what: str | Iterable[str] = WHAT
) -> Benchmark:
    """Times a model of yours as its library runs it and as `flowkernels.accelerate` makes it run, turn by turn.

    Both are copies: the model given, torch's random numbers and its settings stay as they are, whatever happens. First
    the two must agree in log_prob, in the log-determinant where a transform of the model is known, and in the gradients
    by weights and by ``x``: the accelerated error at most twice the original's own, both against the original in
    float64, plus a few ulp (`flowkernels.benchmark.closeness.Check` has the whole rule). Where they do not, nothing is
    timed, and the result says so. Then each of ``what`` is called in one process, original, accelerated, original, ...,
    so that a busy machine slows both; on as many threads as torch has now. Samples are timed, not compared.

    Densities and samples are taken in evaluation mode without gradients, ``"train"`` in training mode: forward,
    backward and a step of Adam (fused, where torch has it) at a learning rate of 0, so that no step changes the next.

    Args:
        model: all that `flowkernels.accelerate` takes and that has ``log_prob(x, context)`` and ``sample``: flows of
            nflows, glasflow, normflows, zuko, FrEIA, Pyro's distributions; or a transform that returns ``(z, ladj)``,
            whose density then is that of a standard normal in z. If it is accelerated already, "before" is not.
        x: ``[B, ...]``, data as the model takes it, on its device; B samples are drawn, too.
        context: ``[B, ...]`` or None.
        seconds: that the rounds of each of ``what`` take; three rounds are timed at least.
        what: of ``"log_prob"``, ``"sample"`` and ``"train"``.

    Returns:
        A frozen value, which prints as a table: ``rows`` (seconds, ratios), ``checks`` (differences), ``notes`` (what
        could not be done, and why), ``close``; ``plot(path)`` draws it.

    Raises:
        TypeError: the model cannot be copied, is none that `accelerate` takes, or gives no density; ``x`` or
            ``context`` is no tensor of floating-point numbers.
        ValueError: ``x`` has no rows, or ``context`` others; ``seconds`` or ``what`` is none of the above.

    Example:
        >>> import torch, flowkernels
        >>> from nflows.transforms import MaskedAffineAutoregressiveTransform
        >>> made = MaskedAffineAutoregressiveTransform(features=4, hidden_features=16)
        >>> found = flowkernels.benchmark(made, torch.randn(64, 4), seconds=0.01, what="log_prob")
        >>> found.close, [row.what for row in found.rows], found.rows[0].before.median > 0
        (True, ['log_prob'], True)
    """
    from .comparison import compare  # when it is asked for: who imports flowkernels waits for none of it

    return compare(model, x, context, seconds=seconds, what=what)
