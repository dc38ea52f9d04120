"""The spline in float64, of many elements, against numpy's widest floats: its knots lose no digits that eager keeps.

The numbers rule holds float64 against eager in float64, whose errors are as large; a loss of a third hides in them
until on some platform the two add up.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowkernels import ops

L = np.longdouble
ROWS, BINS, LEFT, RIGHT, LEAST = 60_000, 5, -5.0, 5.0, 1e-3
Array = np.ndarray
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(np.finfo(L).nmant <= np.finfo(float).nmant, reason="numpy's longdouble is no wider than double"),
]
# Of eager's errors. Products and sums that round apart, on the smallest instruction set, make 1.25, and a percentile of
# so many elements scatters by 0.05. A rounding that all knots share, of one constant and of their sums, made 1.45.
MOST = 1.3


def sizes_and_knots(logits: Array) -> tuple[Array, Array]:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    sizes = (L(RIGHT) - L(LEFT)) * (L(LEAST) + (1 - BINS * L(LEAST)) * e / e.sum(-1, keepdims=True))
    return sizes, L(LEFT) + np.concatenate([0 * sizes[:, :1], sizes.cumsum(-1)], -1)


def exact(v: Array, params: Array, inverse: bool) -> tuple[Array, Array]:
    """The value and ladj of one feature without tails: Durkan et al. 2019, equations 4, 5 and 6 to 8."""
    (w, x), (h, y) = (sizes_and_knots(params[:, i * BINS : (i + 1) * BINS]) for i in range(2))
    d = L(LEAST) + np.logaddexp(0, params[:, 2 * BINS :])
    bin_ = (v[:, None] >= (y if inverse else x)[:, 1:-1]).sum(-1)

    def at(t: Array, plus: int = 0) -> Array:
        return np.take_along_axis(t, bin_[:, None] + plus, -1)[:, 0]

    w, h, x0, y0, d0, d1 = at(w), at(h), at(x), at(y), at(d), at(d, 1)
    s = h / w
    bend = d0 + d1 - 2 * s
    if inverse:
        rise = v - y0
        a, b, c = h * (s - d0) + rise * bend, h * d0 - rise * bend, -s * rise
        theta = 2 * c / (-b - np.sqrt(b * b - 4 * a * c))
    else:
        theta = (v - x0) / w
    t = theta * (1 - theta)
    den = s + bend * t
    ladj = np.log(s * s * (d1 * theta**2 + 2 * s * t + d0 * (1 - theta) ** 2) / den**2)
    return (x0 + w * theta, -ladj) if inverse else (y0 + h * (s * theta**2 + d0 * t) / den, ladj)


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_numbers_of_many_elements(all_isas, inverse) -> None:
    g = torch.Generator().manual_seed(0)
    v, params = (torch.randn(ROWS, 1, *n, generator=g, dtype=torch.float64) for n in ((), (3 * BINS + 1,)))
    settings = {"bins": BINS, "tails": None, "box": (LEFT, RIGHT, LEFT, RIGHT), "inverse": inverse}
    truth = exact(v.numpy()[:, 0].astype(L), params.numpy()[:, 0].astype(L), inverse)

    def errors(backend: str) -> list[tuple[float, float]]:
        """The 90th and the 99th percentile, of the value and of ladj."""
        found = ops.rqs(v, params, backend=backend, **settings)
        off = (abs(f.numpy().reshape(-1) - t).astype(float) for f, t in zip(found, truth, strict=True))
        return [tuple(np.quantile(o, (0.9, 0.99))) for o in off]

    of_eager = errors("reference")
    for isa in all_isas:
        for mine, its in zip(errors("cpu"), of_eager, strict=True):
            assert all(m <= MOST * e for m, e in zip(mine, its, strict=True)), (isa, mine, its)
