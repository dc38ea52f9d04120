"""Data and context brought to zero mean and unit variance, inside of the flow."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowkernels.flows import Flow
from flowkernels.transforms import ActNorm, Composite

from .data import checked

F = TypeVar("F", bound=Flow)


def standardised(flow: F, x: Tensor, context: Tensor | None = None) -> F:
    r"""A flow of the same weights whose first layer brings ``x`` to zero mean and unit variance.

    .. math:: \log p(x) = \log p_\mathrm{flow}\!\left(\frac{x - \mu}{\sigma}\right) - \sum_D \log \sigma_d

    in nats: densities and samples are of ``x`` as it was given, in its units. The layer is a
    `flowkernels.transforms.ActNorm` set from these rows and frozen; images have one mean and one deviation per channel.
    The context, if there is one, is standardised too, by a frozen `torch.nn.Linear` in front of the embedding, and
    ``flow.save`` stores both. A feature that is constant in these rows is shifted to zero and keeps its scale. With
    ``torch.distributed`` initialised the numbers are those of the rows of all ranks together.

    Call it on training rows alone, or let `fit` do so (``standardise=True``).

    Args:
        flow: of any kind whose data may be any real numbers; its parts are used, not copied, so training the new flow
            trains it. Evaluate and sample the new one.
        x: rows ``[N, D]``, or images ``[N, C, H, W]``, in the dtype of the weights.
        context: ``[N, C]`` beside them.

    Returns:
        A flow of the same class, with the same base, on the device of the given one.

    Raises:
        TypeError: ``flow`` is not a `flowkernels.flows.Flow`; ``x`` or ``context`` is no tensor or of another dtype.
        ValueError: their shapes do not fit, a value is not finite, or the flow takes some numbers only, e.g. levels.

    Reference:
        Papamakarios, Pavlakou, Murray: Masked Autoregressive Flow for Density Estimation, NeurIPS 2017,
        arXiv:1705.07057 (whose data are so prepared, outside of the flow).

    Example:
        >>> import torch
        >>> from flowkernels.flows import MAF
        >>> from flowkernels.training import standardised
        >>> x = 1000 + 5 * torch.randn(512, 3)
        >>> flow = standardised(MAF(3, hidden=(16,)), x)
        >>> z, ladj = flow.transform.transforms[0](x)
        >>> torch.allclose(z.mean(0), torch.zeros(3), atol=1e-2), torch.allclose(z.std(0), torch.ones(3), atol=1e-2)
        (True, True)
    """
    where = "training.standardised"
    if not isinstance(flow, Flow):
        raise TypeError(f"{where}: flow must be a flowkernels.flows.Flow, got {type(flow).__name__}")
    if flow.transform.domain is not constraints.real:
        raise ValueError(
            f"{where}: flow must take any real numbers, got one whose data lie in {flow.transform.domain} (its first "
            "layer brings them where the others want them)"
        )
    rows = checked(where, flow, x, context)
    if rows.context is not None and rows.context.dim() != 2:
        raise ValueError(f"{where}: context must be [N, C] to be standardised, got {list(rows.context.shape)}")
    made = copy.copy(flow)
    # The tables of its parts and hooks are its own, so that the given flow stays as it is.
    made.__dict__ = {k: copy.copy(v) if isinstance(v, dict) else v for k, v in flow.__dict__.items()}
    made.transform = Composite([_layer(rows.x, flow, -1 if rows.x.dim() == 2 else 1), flow.transform])
    if rows.context is not None:
        linear = _linear(rows.context, flow)
        made.embedding = linear if flow.embedding is None else nn.Sequential(linear, flow.embedding)
    made.transform.train(flow.training)
    return made


@torch.no_grad()
def _layer(x: Tensor, flow: Flow, channel_dim: int) -> ActNorm:
    """Set by these rows, and frozen; statistics are sums over many rows, so of float64."""
    layer = ActNorm(x.shape[channel_dim], channel_dim=channel_dim).to(_like(flow, x))
    layer._initialise(x.to(layer.shift.device, torch.float64), False)
    return layer.requires_grad_(False)


@torch.no_grad()
def _linear(context: Tensor, flow: Flow) -> nn.Linear:
    layer = _layer(context, flow, -1)
    linear = nn.Linear(layer.features, layer.features).to(layer.shift)
    linear.weight.copy_(layer.log_scale.exp().diag())
    linear.bias.copy_(layer.shift)
    return linear.requires_grad_(False)


def _like(flow: Flow, x: Tensor) -> Tensor:
    """A tensor of the device and dtype of the new layers."""
    found = next((p for p in flow.parameters() if p.is_floating_point()), None)
    if found is None:
        found = x if x.is_floating_point() else x.new_empty((), dtype=torch.get_default_dtype())
    return found
