"""nflows' two spline functions, fused, with nflows' signatures, for code that calls them itself."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import Any

from nflows.transforms.splines import rational_quadratic as _theirs
from torch import Tensor

from flowkernels.compat.copies import unconstrained_rational_quadratic_spline
from flowkernels.compat.reading.spline_of_parts import spline_of_parts


def rational_quadratic_spline(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    unnormalized_derivatives: Tensor,
    inverse: bool = False,
    left: float = 0.0,
    right: float = 1.0,
    bottom: float = 0.0,
    top: float = 1.0,
    min_bin_width: float = _theirs.DEFAULT_MIN_BIN_WIDTH,
    min_bin_height: float = _theirs.DEFAULT_MIN_BIN_HEIGHT,
    min_derivative: float = _theirs.DEFAULT_MIN_DERIVATIVE,
) -> tuple[Tensor, Tensor]:
    r"""nflows' function of this name: the spline of `flowkernels.ops.rqs` from [left, right] to [bottom, top].

    Arguments, results and errors are those of `unconstrained_rational_quadratic_spline`, but for these.

    Args:
        inputs: outside the box y = x and logabsdet = 0, where nflows reads the values and raises InputOutsideDomain.
        unnormalized_derivatives: ``[..., K+1]``.
        left, right, bottom, top: the box.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, NeurIPS 2019, arXiv:1906.04032.

    Example:
        >>> import torch
        >>> from flowkernels.compat.nflows import rational_quadratic_spline
        >>> x, w, h, d = torch.full((2,), 0.5), torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(2, 5)
        >>> rational_quadratic_spline(x, w, h, d)[0]
        tensor([0.5000, 0.5000])
    """
    parts = (unnormalized_widths, unnormalized_heights, unnormalized_derivatives)
    return spline_of_parts(
        inputs, parts, tails=None, box=(left, right, bottom, top), min_bin_width=min_bin_width,
        min_bin_height=min_bin_height, min_derivative=min_derivative, inverse=inverse,
    )  # fmt: skip


# ---- putting them in nflows' place ----

_PAIRS = (
    (_theirs.rational_quadratic_spline, rational_quadratic_spline),
    (_theirs.unconstrained_rational_quadratic_spline, unconstrained_rational_quadratic_spline),
)
_lock = threading.Lock()
_active = 0


def _replace(pairs: Any) -> None:
    """Rebinds functions wherever a loaded module of nflows has them under their own name."""
    for name, module in list(sys.modules.items()):
        if name == "nflows" or name.startswith("nflows."):
            for old, new in pairs:
                if vars(module).get(old.__name__) is old:
                    setattr(module, old.__name__, new)


class patch_functions:
    """Puts the fused functions in place of nflows' own, everywhere in nflows, until `restore` or the block's end.

    It reaches what `accelerate` does not: layers of your own that call
    `splines.unconstrained_rational_quadratic_spline`. Names that your modules imported with `from ... import` keep
    nflows' functions. Patches nest: nflows' functions come back when the last one is restored.

    Example:
        >>> from nflows.transforms import splines
        >>> from flowkernels.compat import nflows
        >>> with nflows.patch_functions():
        ...     splines.rational_quadratic_spline is nflows.rational_quadratic_spline
        True
        >>> patch = nflows.patch_functions()
        >>> patch.restore()
        >>> splines.rational_quadratic_spline is nflows.rational_quadratic_spline
        False
    """

    def __init__(self) -> None:
        global _active
        self._on = True
        with _lock:
            _active += 1
            _replace(_PAIRS)

    def restore(self) -> None:
        """Ends this patch; a second call does nothing."""
        global _active
        with _lock:
            if self._on:
                self._on = False
                _active -= 1
                if _active == 0:
                    _replace([(new, old) for old, new in _PAIRS])

    def __enter__(self) -> patch_functions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
