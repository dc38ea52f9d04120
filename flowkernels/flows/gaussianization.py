"""Gaussianization flows."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import nn

from flowkernels._arguments import flag, widths
from flowkernels.distributions import Base, StandardNormal
from flowkernels.nets import MLP, Activation, Constant
from flowkernels.nets.degrees import Seed
from flowkernels.transforms import Composite, Coupling, LULinear, Mixture, Transform

from .coupling import check_layers, near_identity
from .flow import Flow


class Gaussianization(Flow):
    r"""The Gaussianization flow: mixtures of normals of each feature by itself, and rotations between them.

    .. math:: x \mapsto W_i\,\Phi^{-1}\Big(\sum_k \pi_k\,\Phi\big((x - m_k)\,e^{-s_k}\big)\Big)

    of each feature, and no :math:`W` behind the last;
    :math:`\log p(x) = \log p_\mathrm{base}(z) + \sum_i \mathrm{ladj}_i` in nats. The components are learned numbers of
    each feature, or come from the context alone by a network. :math:`W` is a learned matrix by its LU factors that
    starts as a random rotation. No network sees x: both directions cost the same, but for the roots of the inverse.
    Shapes, dtypes and context: see `Flow`.

    Args:
        features: D.
        context: C, the number of context features the components are made from (after ``embedding``), 0 for none.
        transforms: number of elementwise layers.
        components: K of each feature.
        hidden: widths of the hidden layers of the networks on the context, a number for one; not used without one.
        kernel: ``"normal"``, or ``"logistic"``, which needs no normal distribution function inside of the sum.
        activation: of the networks.
        rotate: False: no matrices between the layers.
        seed: of the rotations, a number or a generator on the CPU.
        base: density of the latent; standard normal by default.
        embedding: a module applied to the context first.

    Raises:
        ValueError: ``features``, ``transforms`` or ``components`` is less than 1, or ``kernel`` is unknown.

    Reference:
        Meng, Song, Song, Ermon: Gaussianization Flows, AISTATS 2020, arXiv:2003.01941. Chen, Gopinath: Gaussianization,
        NeurIPS 2000.

    Example:
        >>> import torch
        >>> from flowkernels.flows import Gaussianization
        >>> flow = Gaussianization(features=3, transforms=4, components=6)
        >>> loss = -flow.log_prob(torch.randn(10, 3)).mean()
        >>> loss.backward()
        >>> flow.sample(100).shape
        torch.Size([100, 3])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 6,
        components: int = 8,
        hidden: int | Sequence[int] = (64, 64),
        *,
        kernel: str = "normal",
        activation: Activation = F.relu,
        rotate: bool = True,
        seed: Seed = None,
        base: Base | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        univariate = Mixture(components, kernel, "probit")
        draws = check_layers("Gaussianization", features, context, transforms, univariate, False, seed)
        flag("flows.Gaussianization", "rotate", rotate)
        sizes = widths("flows.Gaussianization", "hidden", hidden)
        make = functools.partial(MLP, hidden=sizes, context=context, activation=activation) if context else Constant
        layers: list[Transform] = []
        for i in range(transforms):
            if i > 0 and rotate:
                layers.append(LULinear(features, seed=draws))
            layers.append(Coupling([1] * features, functools.partial(near_identity, make, univariate), univariate))
        super().__init__(Composite(layers), StandardNormal(features) if base is None else base, embedding)
