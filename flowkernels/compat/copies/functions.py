"""VITS' spline function of either name, fused, with its signature; the second is nflows' too."""

from __future__ import annotations

from torch import Tensor

from flowkernels.compat.reading.spline_of_parts import spline_of_parts


def piecewise_rational_quadratic_transform(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    unnormalized_derivatives: Tensor,
    inverse: bool = False,
    tails: str | None = None,
    tail_bound: float = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    r"""VITS' function of this name: the spline of `flowkernels.ops.rqs`, of every element with its own parameters.

    Arguments, results and errors are those of `flowkernels.compat.nflows.unconstrained_rational_quadratic_spline`, but
    for ``tails``: ``"linear"``, where the box is [-tail_bound, tail_bound] and ``unnormalized_derivatives`` are
    ``[..., K-1]``; or None, where it is [0, 1] and they are ``[..., K+1]``.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, NeurIPS 2019, arXiv:1906.04032; Kim, Kong, Son:
        VITS, ICML 2021, arXiv:2106.06103.

    Example:
        >>> import torch
        >>> from flowkernels.compat.copies import piecewise_rational_quadratic_transform
        >>> x, w, h, d = torch.zeros(5), torch.zeros(5, 4), torch.zeros(5, 4), torch.zeros(5, 3)
        >>> piecewise_rational_quadratic_transform(x, w, h, d, tails="linear")[0]
        tensor([0., 0., 0., 0., 0.])
    """
    if tails not in (None, "linear"):
        raise RuntimeError(f"{tails} tails are not implemented.")
    parts = (unnormalized_widths, unnormalized_heights, unnormalized_derivatives)
    box = (0.0, 1.0, 0.0, 1.0) if tails is None else None
    return spline_of_parts(
        inputs, parts, tails=tails, tail_bound=tail_bound, box=box, min_bin_width=min_bin_width,
        min_bin_height=min_bin_height, min_derivative=min_derivative, inverse=inverse,
    )  # fmt: skip


def unconstrained_rational_quadratic_spline(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    unnormalized_derivatives: Tensor,
    inverse: bool = False,
    tails: str = "linear",
    tail_bound: float = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    r"""nflows' function of this name: the spline of `flowkernels.ops.rqs` in [-tail_bound, tail_bound], x outside.

    .. math:: y_i = f(x_i; \text{widths}_i, \text{heights}_i, \text{derivatives}_i), \quad
        \text{logabsdet}_i = \log |dy_i/dx_i|

    Args:
        inputs: ``[...]``; float32, float64, bfloat16 or float16.
        unnormalized_widths, unnormalized_heights: ``[..., K]``.
        unnormalized_derivatives: ``[..., K-1]``.
        inverse: evaluate y → x. Never raises: nflows asserts where rounding makes the discriminant negative.
        tails: ``"linear"``.
        tail_bound: half the side of the box.
        min_bin_width, min_bin_height: smallest bin sizes as a fraction of the box.
        min_derivative: smallest slope at a knot.

    Returns:
        outputs ``[...]`` and logabsdet ``[...]`` in nats, per element (float32 for 16-bit inputs).

    Raises:
        RuntimeError: other tails, as nflows.
        ValueError: a shape or setting breaks its contract.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, NeurIPS 2019, arXiv:1906.04032.

    Example:
        >>> import torch
        >>> from flowkernels.compat.nflows import unconstrained_rational_quadratic_spline
        >>> x, w, h, d = torch.zeros(5), torch.zeros(5, 4), torch.zeros(5, 4), torch.zeros(5, 3)
        >>> unconstrained_rational_quadratic_spline(x, w, h, d)[0]
        tensor([0., 0., 0., 0., 0.])
    """
    if tails != "linear":
        raise RuntimeError(f"{tails} tails are not implemented.")
    return piecewise_rational_quadratic_transform(
        inputs, unnormalized_widths, unnormalized_heights, unnormalized_derivatives, inverse, tails, tail_bound,
        min_bin_width, min_bin_height, min_derivative,
    )  # fmt: skip
