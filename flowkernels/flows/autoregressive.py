"""Masked and inverse autoregressive flows."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from flowkernels._arguments import flag, is_whole, widths
from flowkernels.distributions import Base, StandardNormal
from flowkernels.nets import MADE, Activation
from flowkernels.nets.degrees import Seed, is_grouped
from flowkernels.nets.degrees import parts as parts_of
from flowkernels.ops.univariate import n_params_of
from flowkernels.transforms import Affine, Autoregressive, Composite, Inverse, Transform, Univariate

from .coupling import Net, check_layers
from .flow import Flow
from .linear import interleaved


def autoregressive_layers(
    flow: str,
    features: int,
    context: int,
    transforms: int,
    hidden: int | Sequence[int],
    univariate: Univariate | Callable[[torch.Generator | None], Univariate],
    *,
    net: str | Net = "mlp",
    activation: Activation = "relu",
    dropout: float = 0.0,
    batch_norm: bool = False,
    order: str = "reversed",
    groups: int | Sequence[Sequence[int]] | None = None,
    linear: str | None = None,
    seed: Seed = None,
) -> list[Transform]:
    """Layers that start near the identity, each with another order of the features, or of their groups.

    ``univariate``: the map of all layers, or what makes one for each, with weights of its own.
    """
    is_made = isinstance(univariate, types.FunctionType)
    checked: Any = Affine() if is_made else univariate
    draws = check_layers(flow, features, context, transforms, checked, batch_norm, seed)
    if net not in ("residual", "mlp") or batch_norm:
        given = f"{net!r}, batch_norm={batch_norm}"
        raise ValueError(f'flows.{flow}: an autoregressive net must be "residual" or "mlp", no batch_norm, got {given}')
    sizes = widths(f"flows.{flow}", "hidden", hidden)
    kinds = orders(flow, order, linear, transforms)
    parts = None if groups is None else _parts(flow, groups, features)
    levels = features if parts is None else len(parts)
    layers = []
    for kind in kinds:
        of_layer: Any = univariate(draws) if is_made else univariate  # type: ignore[operator]
        made = MADE(
            features,
            n_params_of(of_layer),
            sizes,
            residual=net == "residual",
            context=context,
            activation=activation,
            dropout=dropout,
            order=kind if parts is None else _ordered(parts, kind, draws),
            # nflows' degrees, except where they would hide most features from the last ones.
            degrees="sequential" if min(sizes, default=0) >= levels - 1 else "even",
            seed=draws,
        )
        made.start_at(torch.tensor(of_layer.identity).repeat(features))
        layers.append(Autoregressive(made, of_layer))
    return interleaved(flow, linear, layers, features, draws)


def orders(flow: str, order: str, linear: str | None, transforms: int) -> list[str]:
    """The order of the features in each layer."""
    if order not in ("reversed", "random"):
        raise ValueError(f'flows.{flow}: order must be "reversed" or "random", got {order!r}')
    # Under layers that turn the features round, one order all along is the natural one and the other by turns.
    turns = ("reversed" if linear == "reverse" else "natural", "reversed")
    return ["random" if order == "random" else turns[i % 2] for i in range(transforms)]


def _parts(flow: str, groups: Any, features: int) -> list[list[int]]:
    """Groups as they are given, or so many of neighbours."""
    if is_whole(groups):
        if not 1 <= groups <= features:
            raise ValueError(f"flows.{flow}: groups must be from 1 to {features} or lists of features, got {groups!r}")
        ends = [features * i // int(groups) for i in range(int(groups) + 1)]
        return [list(range(*ends[i : i + 2])) for i in range(int(groups))]
    if not is_grouped(groups):
        raise ValueError(f"flows.{flow}: groups must be a number or lists of features, got {groups!r:.60}")
    return parts_of(f"flows.{flow}", "groups", groups, features)


def _ordered(parts: list[list[int]], kind: str, draws: torch.Generator | None) -> list[list[int]]:
    if kind == "random":
        return [parts[i] for i in torch.randperm(len(parts), generator=draws, device="cpu").tolist()]
    return parts if kind == "natural" else parts[::-1]


class MAF(Flow):
    r"""The masked autoregressive flow: densities in one pass of the networks.

    :math:`z_d = s_d(x_{<d})\,x_d + t_d(x_{<d})` in every layer, and
    :math:`\log p(x) = \log p_\mathrm{base}(z) + \sum_i \mathrm{ladj}_i` in nats. The order of the features changes
    from layer to layer. An untrained model is nearly the identity, or, with other ``linear`` layers than ``"lu"``,
    nearly a permutation of the features. Sampling solves the features one after another, in one sweep per layer.
    Shapes, dtypes and context: see `Flow`.

    Args:
        features: D. With D = 1 the networks see the context only.
        context: C, the number of context features the layers see (after ``embedding``), 0 for none.
        transforms: number of layers.
        hidden: widths of the hidden layers, a number for one; with ``residual`` one equal width per residual block.
        univariate: the map of one feature: `flowkernels.transforms.Affine` by default (``Affine("exp")`` is the
            paper's), or ``RQS``.
        residual: residual blocks, as nflows has them, instead of plain layers.
        activation, dropout: of the networks; see `flowkernels.nets.MADE`.
        order: ``"reversed"``: natural in the first layer, then turned round from layer to layer; ``"random"``.
        groups: features of a group do not see each other: a K-way split, between a coupling (K = 2) and a feature after
            another, whose sampling has K levels. K, of neighbours; or lists of features, whose order ``order`` turns.
        linear: a layer before each autoregressive one and one after the last: ``"lu"``, ``"lu_permutation"``,
            ``"permutation"``, ``"reverse"`` or None; see `flowkernels.flows.CouplingFlow`.
        seed: of the random orders and of what ``linear`` draws, a number or a generator on the CPU.
        base: density of the latent; standard normal by default, `flowkernels.flows.MixtureMADE` for a MAF MoG.
        embedding: a module applied to the context first.

    Raises:
        ValueError: ``features`` or ``transforms`` is less than 1, ``order`` or ``linear`` is unknown, or ``hidden``
            does not fit.
        TypeError: a part is of another kind.

    Reference:
        Papamakarios, Pavlakou, Murray: Masked Autoregressive Flow for Density Estimation, NeurIPS 2017,
        arXiv:1705.07057.

    Example:
        >>> import torch
        >>> from flowkernels.flows import MAF
        >>> flow = MAF(features=3, context=2, transforms=4, hidden=(64, 64))
        >>> x, context = torch.randn(10, 3), torch.randn(10, 2)
        >>> loss = -flow.log_prob(x, context).mean()
        >>> loss.backward()
        >>> flow.sample(100, context).shape
        torch.Size([100, 10, 3])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 5,
        hidden: int | Sequence[int] = (128, 128),
        *,
        univariate: Univariate | None = None,
        residual: bool = False,
        activation: Activation = "relu",
        dropout: float = 0.0,
        order: str = "reversed",
        groups: int | Sequence[Sequence[int]] | None = None,
        linear: str | None = None,
        seed: Seed = None,
        base: Base | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        flow = type(self).__name__
        layers = autoregressive_layers(
            flow, features, context, transforms, hidden, Affine() if univariate is None else univariate,
            net="residual" if flag(f"flows.{flow}", "residual", residual) else "mlp",
            activation=activation, dropout=dropout, order=order, groups=groups, linear=linear,
            seed=seed,
        )  # fmt: skip
        super().__init__(Composite(self._turned(layers)), StandardNormal(features) if base is None else base, embedding)

    @staticmethod
    def _turned(layers: list[Transform]) -> list[Transform]:
        """The layers, in the direction whose data → latent is ``forward``."""
        return layers


class IAF(MAF):
    r"""The inverse autoregressive flow: samples in one pass of the networks.

    :math:`x_d = s_d(z_{<d})\,z_d + t_d(z_{<d})` in every layer: a `MAF` whose layers are turned round, for variational
    inference, where samples and the densities of these samples are wanted
    (``sample_and_log_prob`` is one pass, ``log_prob`` of other points one sweep per layer). Formula in nats, arguments,
    errors, shapes, dtypes and context: see `MAF`.

    Raises:
        ValueError: as `MAF`.

    Reference:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling: Improving Variational Inference with Inverse
        Autoregressive Flow, NeurIPS 2016, arXiv:1606.04934.

    Example:
        >>> import torch
        >>> from flowkernels.flows import IAF
        >>> flow = IAF(features=3, transforms=2, hidden=(32,))
        >>> x, log_q = flow.sample_and_log_prob(64)
        >>> (log_q + 0.5 * (x - 1).square().sum(-1)).mean().backward()
    """

    @staticmethod
    def _turned(layers: list[Transform]) -> list[Transform]:
        return [Inverse(layer) for layer in layers]
