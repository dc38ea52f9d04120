"""What flows of coupling layers share, and NICE."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from flowkernels._arguments import count, widths
from flowkernels.distributions import Distribution, StandardLogistic
from flowkernels.nets import MLP, Activation, Constant
from flowkernels.transforms import Affine, Composite, Coupling, DiagonalScale, Univariate
from flowkernels.transforms.univariate import check_univariate

from .flow import Flow

Net = Callable[[int, int], nn.Module]


def coupling_layers(
    flow: str, features: int, context: int, transforms: int, univariate: Univariate, net: Net
) -> list[Coupling]:
    """Layers with alternating masks that start near the identity; layer i transforms the features j with i + j odd."""
    for name, value in (("features", features), ("transforms", transforms)):
        count(f"flows.{flow}", name, value)
    check_univariate(f"flows.{flow}", univariate)
    factory = functools.partial(near_identity, net, univariate)
    return [Coupling(_alternating(features, i), factory, univariate) for i in range(transforms)]


def _alternating(features: int, i: int) -> list[bool]:
    return [True] if features == 1 else [(i + j) % 2 == 1 for j in range(features)]


def near_identity(net: Net, univariate: Univariate, in_features: int, out_features: int) -> nn.Module:
    """The conditioner, started where the map of a feature is nearly the identity."""
    module = net(in_features, out_features)
    start_at = getattr(module, "start_at", None)
    if start_at is not None:
        start_at(torch.tensor(univariate.identity).repeat(out_features // len(univariate.identity)))
    return module


class NICE(Flow):
    r"""The non-linear independent components of Dinh et al.: additive coupling layers and one diagonal scale.

    :math:`\log p(x) = \log p_\mathrm{base}(z) + \sum_D s_d` in nats; layer i adds a function of the features j with
    i + j even to the others, and a `flowkernels.transforms.DiagonalScale` :math:`e^{s_d}` comes last. An untrained
    model is nearly the identity. Shapes, dtypes and context: see `Flow`.

    The defaults are those of the paper for MNIST, which models pixels scaled to [0, 1] with uniform noise.

    Args:
        features: D. With D = 1 the networks see the context only; without a context they are learned constants.
        context: C, the number of context features the layers see (after ``embedding``), 0 for none.
        transforms: number of coupling layers.
        hidden: widths of the hidden layers of each, a number for one.
        activation, dropout: of the networks; see `flowkernels.nets.MLP`.
        base: density of the latent; standard logistic by default, `flowkernels.distributions.StandardNormal` is the
            paper's other choice.
        embedding: a module applied to the context first.

    Raises:
        ValueError: ``features`` or ``transforms`` is less than 1.

    Reference:
        Dinh, Krueger, Bengio: NICE: Non-linear Independent Components Estimation, ICLR workshop 2015,
        arXiv:1410.8516.

    Example:
        >>> import torch
        >>> from flowkernels.flows import NICE
        >>> flow = NICE(features=16, hidden=(64, 64))
        >>> loss = -flow.log_prob(torch.rand(10, 16)).mean()
        >>> loss.backward()
        >>> flow.sample(5, temperature=0.7).shape
        torch.Size([5, 16])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 4,
        hidden: int | Sequence[int] = (1000,) * 5,
        *,
        activation: Activation = F.relu,
        dropout: float = 0.0,
        base: Distribution | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        count("flows.NICE", "context", context, least=0)
        hidden = widths("flows.NICE", "hidden", hidden)
        net = functools.partial(MLP, hidden=hidden, context=context, activation=activation, dropout=dropout)
        if features == 1 and context == 0:
            net = Constant
        layers = coupling_layers("NICE", features, context, transforms, Affine("additive"), net)
        base = StandardLogistic(features) if base is None else base
        super().__init__(Composite([*layers, DiagonalScale(features)]), base, embedding)
