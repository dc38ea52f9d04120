"""The block neural autoregressive flow."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from flowkernels._arguments import count, generator
from flowkernels.distributions import Base, StandardNormal
from flowkernels.transforms import BlockAutoregressive, Composite

from .base_context import check_taken
from .coupling import Seed
from .flow import Flow
from .linear import interleaved


class BNAF(Flow):
    r"""The block neural autoregressive flow: every layer is one masked network, increasing in each feature.

    :math:`z_d = f_d(x_d; x_{<d})` in every layer, and
    :math:`\log p(x) = \log p_\mathrm{base}(z) + \sum_i \mathrm{ladj}_i` in nats, in one pass. Sampling solves the
    features one after another, each a root of one number, in one sweep per layer. Shapes and dtypes: see `Flow`;
    the layers take no context.

    The paper's last layer is without a residual, and with tanh bounded, so that most latents have no data. Here every
    layer is gated by default, and the flow maps onto all of the latent.

    Args:
        features: D.
        transforms: number of layers.
        hidden: units of each hidden layer, for every feature, a number for one layer.
        activation: between layers: ``"tanh"``, ``"sigmoid"``, ``"elu"`` or ``"leaky_relu"``.
        residual: ``"gated"``, ``"sum"`` or None; see `flowkernels.transforms.BlockAutoregressive`.
        linear: a layer before each block autoregressive one and one after the last: ``"reverse"``, the paper's,
            ``"lu"``, ``"lu_permutation"``, ``"permutation"`` or None; see `flowkernels.flows.CouplingFlow`.
        seed: of the weights and of what ``linear`` draws, a number or a generator on the CPU.
        base: density of the latent; standard normal by default.
        embedding: a module applied to the context first, for a base that takes one.

    Raises:
        ValueError: an argument breaks its contract; a context is given and the base is one without.
        TypeError: a part is of another kind.

    Reference:
        De Cao, Titov, Aziz: Block Neural Autoregressive Flow, UAI 2019, arXiv:1904.04676.

    Example:
        >>> import torch
        >>> from flowkernels.flows import BNAF
        >>> flow = BNAF(features=3, transforms=2, hidden=(4, 4))
        >>> loss = -flow.log_prob(torch.randn(10, 3)).mean()
        >>> loss.backward()
        >>> flow.sample(5).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int,
        transforms: int = 5,
        hidden: int | Sequence[int] = (8, 8),
        *,
        activation: str = "tanh",
        residual: str | None = "gated",
        linear: str | None = "reverse",
        seed: Seed = None,
        base: Base | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        count("flows.BNAF", "features", features)
        count("flows.BNAF", "transforms", transforms)
        draws = generator("flows.BNAF", seed)
        layers = [
            BlockAutoregressive(features, hidden, activation=activation, residual=residual, seed=draws)
            for _ in range(transforms)
        ]
        transform = Composite(interleaved("BNAF", linear, layers, features, draws))
        super().__init__(transform, StandardNormal(features) if base is None else base, embedding, context_to_base=True)

    def embed(self, context: Tensor | None) -> Tensor | None:
        """The context as the base sees it."""
        return check_taken("flows.BNAF", self.base, super().embed(context))
