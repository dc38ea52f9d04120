"""The residual flow."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from flowkernels._arguments import count, flag, generator
from flowkernels.distributions import Base, StandardNormal
from flowkernels.transforms import ActNorm, Composite, Residual, Transform

from .base_context import check_taken
from .coupling import Seed
from .flow import Flow


class ResidualFlow(Flow):
    r"""The residual flow: blocks :math:`z = x + g(x)` of networks that are contractions, an `ActNorm` before each.

    :math:`\log p(x) = \log p_\mathrm{base}(z) + \sum_i \mathrm{ladj}_i` in nats, each ladj a full determinant, exact by
    default: no feature is treated apart, none is left as it is. Samples are a fixed-point iteration a block. Shapes and
    dtypes: see `Flow`; the layers take no context.

    Args:
        features: D.
        transforms: number of blocks.
        hidden: units of each hidden layer, a number for one layer.
        activation: ``"lipswish"``, ``"elu"`` or ``"tanh"``.
        lipschitz: bound of the slope of every g, below 1: a block can stretch or squeeze space by 1 ± as much.
        log_det, terms, samples: ``"exact"``, ``"series"`` or ``"roulette"``, the estimate that images need; see
            `flowkernels.transforms.Residual`.
        actnorm: a learned scale and shift before every block, set by the first batch.
        seed: of the weights, a number or a generator on the CPU.
        base: density of the latent; standard normal by default.
        embedding: a module applied to the context first, for a base that takes one.

    Raises:
        ValueError: an argument breaks its contract; a context is given and the base is one without.
        TypeError: a part is of another kind.

    Reference:
        Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen: Invertible Residual Networks, ICML 2019, arXiv:1811.00995; Chen,
        Behrmann, Duvenaud, Jacobsen: Residual Flows for Invertible Generative Modeling, NeurIPS 2019, arXiv:1906.02735.

    Example:
        >>> import torch
        >>> from flowkernels.flows import ResidualFlow
        >>> flow = ResidualFlow(features=3, transforms=2, hidden=(8, 8))
        >>> loss = -flow.log_prob(torch.randn(10, 3)).mean()
        >>> loss.backward()
        >>> flow.eval().sample(5).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int,
        transforms: int = 8,
        hidden: int | Sequence[int] = (128, 128),
        *,
        activation: str = "lipswish",
        lipschitz: float = 0.9,
        log_det: str = "exact",
        terms: int | None = None,
        samples: int = 1,
        actnorm: bool = True,
        seed: Seed = None,
        base: Base | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        count("flows.ResidualFlow", "features", features)
        count("flows.ResidualFlow", "transforms", transforms)
        flag("flows.ResidualFlow", "actnorm", actnorm)
        draws = generator("flows.ResidualFlow", seed)
        layers: list[Transform] = []
        for _ in range(transforms):
            if actnorm:
                layers.append(ActNorm(features))
            layers.append(
                Residual(
                    features,
                    hidden,
                    activation=activation,
                    lipschitz=lipschitz,
                    log_det=log_det,
                    terms=terms,
                    samples=samples,
                    seed=draws,
                )
            )
        transform = Composite(layers)
        super().__init__(transform, StandardNormal(features) if base is None else base, embedding, context_to_base=True)

    def embed(self, context: Tensor | None) -> Tensor | None:
        """The context as the base sees it."""
        return check_taken("flows.ResidualFlow", self.base, super().embed(context))
