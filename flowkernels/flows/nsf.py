"""The neural spline flow, in its coupling and in its autoregressive form."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import nn

from flowkernels._arguments import count, flag, widths
from flowkernels.distributions import Distribution, StandardNormal
from flowkernels.nets import MLP, Activation, Constant, ResidualNet
from flowkernels.nets.degrees import Seed
from flowkernels.transforms import RQS, Composite, Transform

from .autoregressive import autoregressive_layers
from .coupling import Net, coupling_layers
from .flow import Flow


class NSF(Flow):
    r"""The neural spline flow: coupling layers of rational-quadratic splines, with alternating masks.

    :math:`\log p(x) = \log p_\mathrm{base}(z) + \sum_i \mathrm{ladj}_i` in nats; layer i transforms the features
    j with i + j odd, given the others, or, where ``autoregressive``, every feature given those before it.
    Outside [-tail_bound, tail_bound] a layer leaves a feature as it is, so scale the data to unit size first. An
    untrained model is nearly the identity. Shapes, dtypes and context: see `Flow`.

    Args:
        features: D. With D = 1 the networks see the context only; without a context they are learned constants.
        context: C, the number of context features the layers see (after ``embedding``), 0 for none.
        transforms: number of coupling layers; from two on every feature is transformed.
        bins: K, bins of each spline.
        hidden: widths of the hidden layers, a number for one; for ``net="residual"`` one equal width per block.
        tail_bound: half the width of the box.
        net: ``"residual"`` (the paper's), ``"mlp"``, or a function ``(in_features, out_features) -> module`` of your
            own (started near the identity if it has ``start_at(values)``; coupling layers only).
        activation, dropout: of the networks, and ``batch_norm`` of the residual ones (coupling layers only).
        autoregressive: autoregressive layers instead of coupling layers; see `flowkernels.flows.MAF`, also for
            ``order`` (``"reversed"`` or ``"random"``) and ``seed``, which are theirs.
        min_bin_width, min_bin_height, min_derivative, parametrization: see `flowkernels.ops.rqs`.
        base: density of the latent; standard normal by default.
        embedding: a module applied to the context first.

    Raises:
        ValueError: ``features`` or ``transforms`` is less than 1, ``net`` or ``order`` is unknown or not possible, or
            ``hidden`` does not fit it.

    Reference:
        Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, NeurIPS 2019, arXiv:1906.04032.

    Example:
        >>> import torch
        >>> from flowkernels.flows import NSF
        >>> flow = NSF(features=3, context=2, transforms=4, hidden=(64, 64))
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
        bins: int = 8,
        hidden: int | Sequence[int] = (128, 128),
        tail_bound: float = 3.0,
        *,
        net: str | Net = "residual",
        activation: Activation = F.relu,
        dropout: float = 0.0,
        batch_norm: bool = False,
        min_bin_width: float = 1e-3,
        min_bin_height: float = 1e-3,
        min_derivative: float = 1e-3,
        parametrization: str = "softmax",
        autoregressive: bool = False,
        order: str = "reversed",
        seed: Seed = None,
        base: Distribution | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        count("flows.NSF", "context", context, least=0)
        for name, value in (("autoregressive", autoregressive), ("batch_norm", batch_norm)):
            flag("flows.NSF", name, value)
        univariate = RQS(
            bins=bins,
            tail_bound=tail_bound,
            min_bin_width=min_bin_width,
            min_bin_height=min_bin_height,
            min_derivative=min_derivative,
            parametrization=parametrization,
        )
        sizes = widths("flows.NSF", "hidden", hidden)
        layers: list[Transform]
        if autoregressive:
            if net not in ("residual", "mlp") or batch_norm:
                given = f"{net!r}, batch_norm={batch_norm}"
                raise ValueError(
                    f'flows.NSF: an autoregressive net must be "residual" or "mlp", no batch_norm, got {given}'
                )
            layers = [
                *autoregressive_layers(
                    "NSF", features, context, transforms, sizes, univariate, residual=net == "residual",
                    activation=activation, dropout=dropout, order=order, seed=seed,
                )
            ]  # fmt: skip
        else:
            factory = _factory(net, features, sizes, context, activation, dropout, batch_norm)
            layers = [*coupling_layers("NSF", features, context, transforms, univariate, factory)]
        super().__init__(Composite(layers), StandardNormal(features) if base is None else base, embedding)


def _factory(
    net: str | Net,
    features: int,
    hidden: Sequence[int],
    context: int,
    activation: Activation,
    dropout: float,
    batch_norm: bool,
) -> Net:
    if not isinstance(net, str) and callable(net):
        return net
    if features == 1 and context == 0:
        return Constant
    if net == "mlp":
        return functools.partial(MLP, hidden=hidden, context=context, activation=activation, dropout=dropout)
    if net != "residual":
        raise ValueError(f'flows.NSF: net must be "residual", "mlp" or a function, got {net!r}')
    if len(set(hidden)) != 1:
        raise ValueError(f"flows.NSF: hidden must be equal widths for net='residual', got {tuple(hidden)}")
    return functools.partial(
        ResidualNet,
        hidden=hidden[0],
        blocks=len(hidden),
        context=context,
        activation=activation,
        dropout=dropout,
        batch_norm=batch_norm,
    )
