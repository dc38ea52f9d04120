"""Continuous normalizing flows: of plain networks, which kernels run, and of any vector field."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import nn

from flowkernels._arguments import count, generator
from flowkernels.distributions import Base, StandardNormal
from flowkernels.nets import Activation, ConcatSquash
from flowkernels.transforms import Composite, Continuous, FreeForm

from .coupling import Seed
from .flow import Flow


class CNF(Flow):
    r"""The continuous normalizing flow (FFJORD): data move to the latent along vector fields that are networks.

    :math:`\log p(x) = \log p_\mathrm{base}(z) + \int \mathrm{tr}\, \frac{\partial f}{\partial x}\,dt` in nats. A
    density and a sample cost the same. The trace is exact by default: of a network with one or two hidden layers it
    costs about one more product. Shapes and dtypes: see `Flow`.

    Args:
        features: D.
        context: C of the context that the fields see, behind the embedding if there is one; 0 for none.
        transforms: number of fields, one after another, each with weights of its own.
        hidden: widths of the hidden layers of each.
        activation, solver, steps, rtol, atol, trace, noise, time, frequencies, t1: of each; see
            `flowkernels.transforms.Continuous`. Time begins at 0.
        seed: of the weights, a number or a generator on the CPU.
        base: density of the latent; standard normal by default.
        embedding: a module applied to the context first.

    Raises:
        ValueError: an argument breaks its contract.
        TypeError: a part is of another kind.

    Reference:
        Chen, Rubanova, Bettencourt, Duvenaud: Neural Ordinary Differential Equations, NeurIPS 2018, arXiv:1806.07366;
        Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud: FFJORD, ICLR 2019, arXiv:1810.01367.

    Example:
        >>> import torch
        >>> from flowkernels.flows import CNF
        >>> flow = CNF(features=3, hidden=(16, 16), solver="rk4", steps=8, seed=0)
        >>> loss = -flow.log_prob(torch.randn(10, 3)).mean()
        >>> loss.backward()
        >>> flow.sample(5).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 1,
        hidden: int | Sequence[int] = (64, 64),
        *,
        activation: str = "tanh",
        solver: str = "dopri5",
        steps: int | None = None,
        rtol: float = 1e-5,
        atol: float = 1e-6,
        trace: str = "exact",
        noise: str = "rademacher",
        time: str = "concat",
        frequencies: int = 3,
        t1: float = 1.0,
        seed: Seed = None,
        base: Base | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        count("flows.CNF", "features", features)
        count("flows.CNF", "transforms", transforms)
        draws = generator("flows.CNF", seed)
        layers = [
            Continuous(
                features, hidden, context=context, activation=activation, solver=solver, steps=steps, rtol=rtol,
                atol=atol, trace=trace, noise=noise, time=time, frequencies=frequencies, t1=t1, seed=draws,
            )
            for _ in range(transforms)
        ]  # fmt: skip
        super().__init__(Composite(layers), StandardNormal(features) if base is None else base, embedding)


class FFJORD(Flow):
    r"""FFJORD as its paper has it: gated vector fields, Hutchinson's estimate in training, adaptive steps, the adjoint.

    :math:`\log p(x) = \log p_\mathrm{base}(z) + \int \mathrm{tr}\, \frac{\partial f}{\partial x}\,dt` in nats, an
    unbiased estimate in training mode and exact in evaluation. For a vector field of your own too. `CNF` is the faster
    one: its fields are plain networks, whose exact trace costs one more product. Shapes and dtypes: see `Flow`.

    Args:
        features: D.
        context: C of the context that the fields see, behind the embedding if there is one; 0 for none.
        transforms: number of fields, one after another, each with weights of its own.
        hidden: widths of the hidden layers of each.
        activation: of each.
        field: a module in the place of `nets.ConcatSquash` (see `flowkernels.transforms.FreeForm`), or one for each
            transform; ``hidden`` and ``activation`` are then not looked at.
        solver, steps, rtol, atol, trace, noise, adjoint, t1: of each; see `flowkernels.transforms.FreeForm`.
        base: density of the latent; standard normal by default.
        embedding: a module applied to the context first.

    Raises:
        ImportError: torchdiffeq, which solves, is not installed.
        ValueError: an argument breaks its contract.
        TypeError: a part is of another kind.

    Reference:
        Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud: FFJORD, ICLR 2019, arXiv:1810.01367.

    Example:
        >>> import torch
        >>> from flowkernels.flows import FFJORD
        >>> flow = FFJORD(features=2, hidden=(16, 16))
        >>> (-flow.log_prob(torch.randn(10, 2)).mean()).backward()
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        transforms: int = 1,
        hidden: int | Sequence[int] = (64, 64, 64),
        *,
        activation: Activation = F.softplus,
        field: nn.Module | Sequence[nn.Module] | None = None,
        solver: str = "dopri5",
        steps: int | None = None,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        trace: str = "training",
        noise: str = "gaussian",
        adjoint: bool = True,
        t1: float = 1.0,
        base: Base | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        count("flows.FFJORD", "features", features)
        count("flows.FFJORD", "transforms", transforms)
        if field is None:
            fields = [ConcatSquash(features, hidden, context, activation) for _ in range(transforms)]
        else:
            fields = [field] if isinstance(field, nn.Module) else list(field)
        if len(fields) != transforms:
            raise ValueError(f"flows.FFJORD: field must be one module for each of {transforms}, got {len(fields)}")
        layers = [
            FreeForm(
                features, f, context=context, solver=solver, steps=steps, rtol=rtol, atol=atol, trace=trace,
                noise=noise, adjoint=adjoint, t1=t1,
            )
            for f in fields
        ]  # fmt: skip
        super().__init__(Composite(layers), StandardNormal(features) if base is None else base, embedding)
