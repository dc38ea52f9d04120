"""glasflow's copy of nflows, of whose classes its own flows are made; they differ by design as nflows' do.

See `flowkernels.compat.nflows`.
"""

from __future__ import annotations

from flowkernels.compat.engine.registry import Library
from flowkernels.compat.nflows import LIBRARY as NFLOWS


class _Glasflow(Library):
    """The same classes as nflows', so that the site's table has the flows made of them."""

    def rows(self) -> list[tuple[str, str]]:
        return [
            ("CouplingNSF", "as nflows' classes of the same names"),
            ("RealNVP", "fused like nflows' class; with a custom `scale_activation` only the network is fused"),
            ("MaskedAffineAutoregressiveFlow", "the same; a `scale_activation` other than the default is left alone"),
            ("MaskedPiecewiseRationalQuadraticAutoregressiveFlow", "the same"),
            ("glasflow.nflows", "every class as under nflows"),
        ]


LIBRARY = _Glasflow(
    "glasflow.nflows",
    NFLOWS.targets,
    base=NFLOWS.base,
    left_alone=NFLOWS.left_alone,
    containers=NFLOWS.containers,
)
