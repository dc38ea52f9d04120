"""The sum-of-squares polynomial flow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from flowkernels.transforms import Autoregressive, Composite, Polynomial, Softclip

from .autoregressive import MAF


class SOS(MAF):
    r"""The sum-of-squares flow: a `MAF` whose maps are increasing polynomials of degree 2L+1.

    .. math:: z_d = c + \int_0^{x_d} \tfrac1K \sum_k p_k(u)^2 + \epsilon\; du,

    c and the coefficients of K polynomials :math:`p_k` of degree L from :math:`x_{<d}`, and :math:`\log p(x) = \log
    p_\mathrm{base}(z) + \sum_i \mathrm{ladj}_i` in nats. An untrained model is nearly the identity. Sampling is one
    sweep per layer, with the root of a polynomial per feature. Shapes, dtypes and context: see `Flow`.

    Args:
        features, context, transforms, hidden: as of `MAF`, as are the others.
        degree: L; 0 is an affine flow.
        terms: K.
        bound, slope: the unit of the polynomials and the smallest slope, see `flowkernels.ops.polynomial`. Data are
            expected within a few units; far outside, a polynomial of degree 2L+1 runs away.
        softclip: what each but the first layer sees is drawn into (-softclip, softclip) by a
            `flowkernels.transforms.Softclip`, as zuko has it with 11, so that five layers of degree 9 do not overflow
            at an outlier; None: as it is.

    Raises:
        ValueError: as `MAF` and `flowkernels.ops.polynomial`.
        TypeError: a part is of another kind.

    Reference:
        Jaini, Selby, Yu: Sum-of-Squares Polynomial Flow, ICML 2019, arXiv:1905.02325.

    Example:
        >>> import torch
        >>> from flowkernels.flows import SOS
        >>> flow = SOS(features=3, transforms=2, hidden=(32,), degree=3)
        >>> -flow.log_prob(torch.randn(10, 3)).mean() > 0
        tensor(True)
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 5,
        hidden: Any = (128, 128),
        *,
        degree: int = 4,
        terms: int = 3,
        bound: float = 10.0,
        slope: float = 1e-3,
        softclip: float | None = None,
        **settings: Any,
    ) -> None:
        if "univariate" in settings:
            raise TypeError("flows.SOS: univariate must not be given, as degree and terms are its settings")
        sos = Polynomial(degree=degree, terms=terms, bound=bound, slope=slope)
        super().__init__(features, context, transforms, hidden, univariate=sos, **settings)
        if softclip is not None:
            self.transform = Composite(_clipped(self.transform, softclip))


def _clipped(layers: Iterable[Any], bound: float) -> Iterator[Any]:
    seen = False
    for layer in layers:
        if seen and isinstance(layer, Autoregressive):
            yield Softclip(bound)
        yield layer
        seen |= isinstance(layer, Autoregressive)
