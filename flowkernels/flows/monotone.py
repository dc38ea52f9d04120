"""Masked autoregressive flows of monotone networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from flowkernels.distributions import Base, StandardNormal
from flowkernels.nets import Activation
from flowkernels.nets.degrees import Seed
from flowkernels.transforms import Composite, MonotoneNet, Softclip, Transform

from .autoregressive import MAF, autoregressive_layers
from .flow import Flow


class UMNN(MAF):
    r"""The unconstrained monotonic neural network flow: a `MAF` whose maps are integrals of positive networks.

    .. math:: z_d = \int_0^{x_d} g_d(t; s_d(x_{<d}))\,dt + c_d(x_{<d})

    in every layer, s and c from its masked network, and :math:`\log p(x) = \log p_\mathrm{base}(z) + \sum_i
    \mathrm{ladj}_i` in nats. An untrained model is nearly the identity. Between layers a `Softclip` keeps what the next
    one sees within 1.1 ``bound``, as zuko has it; data are expected within ``bound``, standardised. Sampling solves the
    features one after another, each root once. Shapes, dtypes and context: see `Flow`.

    Args:
        features, context, transforms, hidden: as of `MAF`, as are activation, dropout, order, seed, base and embedding.
        signal: S, the size of s.
        network: widths of the hidden layers of the small networks.
        nodes: of the quadrature.
        bound: where an inverse stops looking for x.

    Raises:
        ValueError: as `MAF` and `flowkernels.transforms.MonotoneNet`.
        TypeError: a part is of another kind.

    Reference:
        Wehenkel, Louppe: Unconstrained Monotonic Neural Networks, NeurIPS 2019, arXiv:1908.05164.

    Example:
        >>> import torch
        >>> from flowkernels.flows import UMNN
        >>> flow = UMNN(features=3, transforms=2, hidden=(32,), signal=8, network=(16, 16))
        >>> -flow.log_prob(torch.randn(10, 3)).mean() > 0
        tensor(True)
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 3,
        hidden: int | Sequence[int] = (64, 64),
        *,
        signal: int = 16,
        network: int | Sequence[int] = (64, 64),
        nodes: int = 32,
        bound: float = 10.0,
        **settings: Any,
    ) -> None:
        _build(
            self, features, context, transforms, hidden,
            {"form": "integral", "signal": signal, "hidden": network, "nodes": nodes, "bound": bound}, **settings,
        )  # fmt: skip


class NAF(MAF):
    r"""The neural autoregressive flow with monotone networks: a `MAF` whose maps are networks of positive weights.

    :math:`z_d = u_d(x_d; s_d(x_{<d}))` in every layer, u increasing in x, s from its masked network, and
    :math:`\log p(x) = \log p_\mathrm{base}(z) + \sum_i \mathrm{ladj}_i` in nats. (The paper's deep sigmoid flow is
    ``MAF(univariate=Mixture(8))``.) Arguments, the `Softclip` between layers, sampling and errors: see `UMNN`.

    Raises:
        ValueError: as `UMNN`.

    Reference:
        Huang, Krueger, Lacoste, Courville: Neural Autoregressive Flows, ICML 2018, arXiv:1804.00779.

    Example:
        >>> import torch
        >>> from flowkernels.flows import NAF
        >>> flow = NAF(features=3, transforms=2, hidden=(32,), signal=8, network=(16, 16))
        >>> -flow.log_prob(torch.randn(10, 3)).mean() > 0
        tensor(True)
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 3,
        hidden: int | Sequence[int] = (64, 64),
        *,
        signal: int = 16,
        network: int | Sequence[int] = (64, 64),
        bound: float = 10.0,
        **settings: Any,
    ) -> None:
        _build(
            self, features, context, transforms, hidden,
            {"form": "positive", "signal": signal, "hidden": network, "bound": bound}, **settings,
        )  # fmt: skip


def _build(
    flow: MAF,
    features: int,
    context: int,
    transforms: int,
    hidden: int | Sequence[int],
    own: dict[str, Any],
    *,
    activation: Activation = "relu",
    dropout: float = 0.0,
    order: str = "reversed",
    seed: Seed = None,
    base: Base | None = None,
    embedding: nn.Module | None = None,
) -> None:
    """The layers of a flow whose maps have these settings, a network for each feature of each layer."""

    def univariate(draws: Any) -> MonotoneNet:
        return MonotoneNet(features, **own, seed=draws)

    layers = autoregressive_layers(
        type(flow).__name__, features, context, transforms, hidden, univariate,
        activation=activation, dropout=dropout, order=order, seed=seed,
    )  # fmt: skip
    found: list[Transform] = []
    for layer in layers:
        found += [Softclip(1.1 * own["bound"]), layer] if found else [layer]
    Flow.__init__(flow, Composite(found), StandardNormal(features) if base is None else base, embedding)
