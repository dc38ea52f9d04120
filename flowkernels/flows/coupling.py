"""Flows of coupling layers, and NICE."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from flowkernels._arguments import count, flag, generator, widths
from flowkernels.distributions import Base, StandardLogistic, StandardNormal
from flowkernels.nets import MLP, Activation, Constant, ResidualNet
from flowkernels.nets.degrees import Seed
from flowkernels.transforms import Affine, Composite, Coupling, DiagonalScale, Transform, Univariate
from flowkernels.transforms.univariate import check_univariate

from .flow import Flow
from .linear import interleaved

Net = Callable[[int, int], nn.Module]


def check_layers(
    flow: str, features: int, context: int, transforms: int, univariate: Univariate, batch_norm: bool, seed: Seed
) -> torch.Generator | None:
    """Raises unless a flow can have such layers, of features; and what they draw from."""
    for name, value, least in (("features", features, 1), ("context", context, 0), ("transforms", transforms, 1)):
        count(f"flows.{flow}", name, value, least)
    flag(f"flows.{flow}", "batch_norm", batch_norm)
    check_univariate(f"flows.{flow}", univariate)
    return generator(f"flows.{flow}", seed)


def coupling_layers(
    flow: str,
    features: int,
    context: int,
    transforms: int,
    hidden: int | Sequence[int],
    univariate: Univariate,
    *,
    net: str | Net = "mlp",
    activation: Activation = F.relu,
    dropout: float = 0.0,
    batch_norm: bool = False,
    linear: str | None = None,
    seed: Seed = None,
) -> list[Transform]:
    """Layers with alternating masks that start near the identity; layer i transforms the features j with i + j odd."""
    draws = check_layers(flow, features, context, transforms, univariate, batch_norm, seed)
    make = conditioner(flow, net, features, context, hidden, activation, dropout, batch_norm)
    factory = functools.partial(near_identity, make, univariate)
    # An even number of features, turned round, change sides by themselves: under one mask all along.
    one_mask = linear == "reverse" and features % 2 == 0
    masks = [_alternating(features, 1 if one_mask else i) for i in range(transforms)]
    return interleaved(flow, linear, [Coupling(mask, factory, univariate) for mask in masks], features, draws)


def conditioner(
    flow: str,
    net: str | Net,
    features: int,
    context: int,
    hidden: int | Sequence[int],
    activation: Activation,
    dropout: float,
    batch_norm: bool,
) -> Net:
    """What makes the networks of a flow's layers."""
    sizes = widths(f"flows.{flow}", "hidden", hidden)
    if not isinstance(net, str) and callable(net):
        return net
    if features == 1 and context == 0:
        return Constant
    settings = {"context": context, "activation": activation, "dropout": dropout}
    if net == "mlp":
        return functools.partial(MLP, hidden=sizes, **settings)
    if net != "residual":
        raise ValueError(f'flows.{flow}: net must be "residual", "mlp" or a function, got {net!r}')
    if len(set(sizes)) != 1:
        raise ValueError(f"flows.{flow}: hidden must be equal widths for net='residual', got {sizes}")
    return functools.partial(ResidualNet, hidden=sizes[0], blocks=len(sizes), batch_norm=batch_norm, **settings)


def _alternating(features: int, i: int) -> list[bool]:
    return [True] if features == 1 else [(i + j) % 2 == 1 for j in range(features)]


def near_identity(net: Net, univariate: Univariate, in_features: int, out_features: int) -> nn.Module:
    """The conditioner, started where the map of a feature is nearly the identity."""
    module = net(in_features, out_features)
    start_at = getattr(module, "start_at", None)
    if start_at is not None:
        start_at(torch.tensor(univariate.identity).repeat(out_features // len(univariate.identity)))
    return module


class CouplingFlow(Flow):
    r"""Coupling layers of any map of one feature, with alternating masks.

    :math:`\log p(x) = \log p_\mathrm{base}(z) + \sum_i \mathrm{ladj}_i` in nats; layer i transforms the features
    j with i + j odd, given the others. An untrained model is nearly the identity, or, with other ``linear`` layers than
    ``"lu"``, nearly a permutation of the features. Shapes, dtypes and context: see `Flow`.

    `flowkernels.flows.NSF` is this flow with splines and residual networks, `RealNVP` the one with bounded affine maps,
    `NICE` the one with shifts and a scale at the end; `flowkernels.flows.MAF` is its autoregressive sister.

    Args:
        features: D. With D = 1 the networks see the context only; without a context they are learned constants.
        context: C, the number of context features the layers see (after ``embedding``), 0 for none.
        transforms: number of coupling layers; from two on every feature is transformed.
        hidden: widths of the hidden layers, a number for one; for ``net="residual"`` one equal width per block.
        univariate: the map of one feature: `flowkernels.transforms.Affine` by default, or ``RQS``.
        net: ``"mlp"``, ``"residual"``, or a function ``(in_features, out_features) -> module`` of your own (started
            near the identity if it has ``start_at(values)``).
        activation, dropout: of the networks, and ``batch_norm`` of the residual ones; see `flowkernels.nets`.
        linear: a layer before each coupling and one after the last. ``"lu"`` is a learned
            `flowkernels.transforms.LULinear` that starts at the identity; ``"lu_permutation"`` one that starts as a
            random permutation (the inverse of both keeps what it returns: write to no draws of ``rsample`` before
            backward); ``"permutation"`` is a random order, drawn once; ``"reverse"`` turns the features round, and each
            coupling still transforms the features that it transforms without such layers (None).
        seed: of what ``linear`` draws, a number or a generator on the CPU.
        base: density of the latent; standard normal by default.
        embedding: a module applied to the context first.

    Raises:
        ValueError: ``features`` or ``transforms`` is less than 1, ``net`` or ``linear`` is unknown, or ``hidden`` does
            not fit the network.
        TypeError: a part is of another kind.

    Reference:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, ICLR 2017, arXiv:1605.08803; ``linear`` as in
        Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, NeurIPS 2019, arXiv:1906.04032.

    Example:
        >>> import torch
        >>> from flowkernels.flows import CouplingFlow
        >>> from flowkernels.transforms import RQS
        >>> flow = CouplingFlow(features=3, transforms=4, hidden=(64, 64), univariate=RQS(bins=10), linear="lu")
        >>> loss = -flow.log_prob(torch.randn(10, 3)).mean()
        >>> loss.backward()
        >>> flow.sample(100).shape
        torch.Size([100, 3])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 5,
        hidden: int | Sequence[int] = (128, 128),
        *,
        univariate: Univariate | None = None,
        net: str | Net = "mlp",
        activation: Activation = F.relu,
        dropout: float = 0.0,
        batch_norm: bool = False,
        linear: str | None = None,
        seed: Seed = None,
        base: Base | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        layers = coupling_layers(
            type(self).__name__, features, context, transforms, hidden,
            Affine() if univariate is None else univariate,
            net=net, activation=activation, dropout=dropout, batch_norm=batch_norm, linear=linear, seed=seed,
        )  # fmt: skip
        super().__init__(Composite(layers), StandardNormal(features) if base is None else base, embedding)


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
        base: Base | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        univariate = Affine("additive")
        layers = coupling_layers(
            "NICE", features, context, transforms, hidden, univariate, activation=activation, dropout=dropout
        )
        base = StandardLogistic(features) if base is None else base
        super().__init__(Composite([*layers, DiagonalScale(features)]), base, embedding)
