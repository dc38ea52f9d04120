"""Planar, radial and Sylvester flows, those of variational inference: samples with their densities are one pass."""

from __future__ import annotations

from typing import Any

from torch import nn

from flowkernels._arguments import count, flag, generator
from flowkernels.distributions import Base, StandardNormal
from flowkernels.transforms import Inverse, Transform, low_rank

from .coupling import Seed
from .flow import Flow


def _chain(
    of: type[low_rank.LowRank], features: int, transforms: int, seed: Seed, fast_sampling: bool, **settings: Any
) -> Transform:
    """Layers of a class, by whose name a flow is called too, in the direction in which they sample or in the other."""
    name = f"flows.{of.__name__}"
    count(name, "features", features)
    count(name, "transforms", transforms)
    layers: Any = of(features, layers=transforms, seed=generator(name, seed), **settings)
    return Inverse(layers) if flag(name, "fast_sampling", fast_sampling) else layers


class Planar(Flow):
    r"""The planar flow: a chain of layers :math:`x = z + \hat u\,h(w^\top z + b)` from the latent to the data.

    ``rsample`` and ``sample_and_log_prob`` are one pass, as a posterior or a reverse KL needs them; ``log_prob`` of
    given points is exact as well, a root of one number a layer. :math:`\log p(x) = \log p_\mathrm{base}(z) +
    \mathrm{ladj}` in nats. Shapes and dtypes: see `Flow`.

    Args:
        features: D.
        context: C; above 0 every row has parameters of its own, made from its context by a linear layer, behind the
            embedding if there is one: an encoder's posterior.
        transforms: number of layers, all of one call.
        activation: ``"tanh"`` or ``"leaky_relu"``.
        fast_sampling: False: the formula goes from the data to the latent, and samples are the roots.
        seed: of the parameters, a number or a generator on the CPU.
        base: density of the latent; standard normal by default.
        embedding: a module applied to the context first.

    Raises:
        ValueError: an argument breaks its contract.
        TypeError: a part is of another kind.

    Reference:
        Rezende, Mohamed: Variational Inference with Normalizing Flows, ICML 2015, arXiv:1505.05770.

    Example:
        >>> import torch
        >>> from flowkernels.flows import Planar
        >>> flow = Planar(features=3, seed=0)
        >>> x, log_q = flow.sample_and_log_prob(5)
        >>> torch.allclose(flow.log_prob(x), log_q, atol=1e-4)
        True
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 10,
        *,
        activation: str = "tanh",
        fast_sampling: bool = True,
        seed: Seed = None,
        base: Base | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        transform = _chain(
            low_rank.Planar, features, transforms, seed, fast_sampling, activation=activation, context=context
        )
        super().__init__(transform, StandardNormal(features) if base is None else base, embedding)


class Radial(Flow):
    r"""The radial flow: a chain of layers :math:`x = z + \beta (z - c) / (\alpha + \lVert z - c \rVert)`.

    ``rsample`` and ``sample_and_log_prob`` are one pass; ``log_prob`` of given points is one too, a quadratic a layer.
    :math:`\log p(x) = \log p_\mathrm{base}(z) + \mathrm{ladj}` in nats. Shapes and dtypes: see `Flow`.

    Args:
        features, context, transforms, fast_sampling, seed, base, embedding: as of `Planar`.
        alpha: what makes it positive: ``"softplus"`` or ``"abs"``.

    Raises:
        ValueError: an argument breaks its contract.
        TypeError: a part is of another kind.

    Reference:
        Rezende, Mohamed: Variational Inference with Normalizing Flows, ICML 2015, arXiv:1505.05770.

    Example:
        >>> import torch
        >>> from flowkernels.flows import Radial
        >>> flow = Radial(features=3, seed=0)
        >>> x, log_q = flow.sample_and_log_prob(5)
        >>> torch.allclose(flow.log_prob(x), log_q, atol=1e-4)
        True
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 10,
        *,
        alpha: str = "softplus",
        fast_sampling: bool = True,
        seed: Seed = None,
        base: Base | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        transform = _chain(low_rank.Radial, features, transforms, seed, fast_sampling, alpha=alpha, context=context)
        super().__init__(transform, StandardNormal(features) if base is None else base, embedding)


class Sylvester(Flow):
    r"""The Sylvester flow: a chain of layers :math:`x = z + Q R\,h(S Q^\top z + b)` from the latent to the data.

    ``rsample`` and ``sample_and_log_prob`` are one pass; ``log_prob`` of given points is exact as well, M roots of one
    number a layer. :math:`\log p(x) = \log p_\mathrm{base}(z) + \mathrm{ladj}` in nats. Shapes and dtypes: see `Flow`.

    Args:
        features, context, transforms, activation, fast_sampling, seed, base, embedding: as of `Planar`; the paper has
            4 layers.
        width: M, the columns of Q; None: 32, the paper's bottleneck, or D where that is less.
        reflections: H of the product of Householder reflections that Q is made of (the paper's H-SNF has 8); 0: by QR.

    Raises:
        ValueError: an argument breaks its contract.
        TypeError: a part is of another kind.

    Reference:
        van den Berg, Hasenclever, Tomczak, Welling: Sylvester Normalizing Flows for Variational Inference, UAI 2018,
        arXiv:1803.05649.

    Example:
        >>> import torch
        >>> from flowkernels.flows import Sylvester
        >>> flow = Sylvester(features=5, width=3, context=2, seed=0)
        >>> x, log_q = flow.sample_and_log_prob(4, torch.randn(2))
        >>> x.shape, log_q.shape
        (torch.Size([4, 5]), torch.Size([4]))
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 4,
        *,
        width: int | None = None,
        reflections: int = 8,
        activation: str = "tanh",
        fast_sampling: bool = True,
        seed: Seed = None,
        base: Base | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        most = min(32, count("flows.Sylvester", "features", features))
        transform = _chain(
            low_rank.Sylvester, features, transforms, seed, fast_sampling, width=most if width is None else width,
            reflections=reflections, activation=activation, context=context,
        )  # fmt: skip
        super().__init__(transform, StandardNormal(features) if base is None else base, embedding)
