"""zuko's classes; `flowkernels.compat.zuko` states where accelerated ones differ by design."""

from __future__ import annotations

from flowkernels.compat.library import Entry, Library
from flowkernels.compat.zuko_layers import (
    ElementWise,
    GeneralCoupling,
    MaskedAutoregressive,
    elementwise_refusal,
    refusal,
)

_BYPASSED = frozenset({"forward", "meta"})

LIBRARY = Library(
    "zuko",
    {
        "flows.autoregressive.MaskedAutoregressiveTransform": Entry(
            MaskedAutoregressive,
            _BYPASSED,
            "spline (circular ones too) or affine map and network as one op; inverse in one sweep",
            refusal,
        ),
        "flows.coupling.GeneralCouplingTransform": Entry(
            GeneralCoupling, _BYPASSED, "spline or affine map, columns and network as one op", refusal
        ),
        "flows.gaussianization.ElementWiseTransform": Entry(
            ElementWise, frozenset({"forward"}), "spline", elementwise_refusal
        ),
    },
    base="lazy.LazyTransform",
    containers={"lazy.LazyComposedTransform": "", "lazy.LazyInverse": ""},
)
