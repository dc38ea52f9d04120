"""What is done with a trained flow: bits per dimension, directions in the latent, in-painting."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flowkernels._arguments import check_tensor, count
from flowkernels.ops._checks import expands

from .flow import Flow


def bits_per_dim(log_prob: Tensor, dims: int, bins: int = 256) -> Tensor:
    r"""Bits that each dimension costs under a density, ``[...]`` of ``log_prob [...]`` in nats.

    .. math:: b = \log_2 \mathrm{bins} - \frac{\log p(x)}{D \log 2}

    where p is a density of data that was scaled to [0, 1], which makes :math:`p(x)/\mathrm{bins}^D` the one of data in
    [0, bins], with noise of unit width on every whole number: averaged over data and noise, b bounds from above what a
    code of the whole numbers needs. So ``bins`` is the number by which the data was divided, whatever the highest
    level.

    - With a `flowkernels.transforms.Logit` in the flow, log p holds its ladj already. Where the flow was trained on
      logits y made outside of it, add that ladj, :math:`\log p(x) = \log p(y) + \mathrm{Logit}(x)_\mathrm{ladj}`; then

      .. math:: b = -\frac{\log p(y)}{D \log 2}
          + \frac1D \sum_D \left[\log_2 \sigma(y) + \log_2 (1 - \sigma(y))\right]
          + \log_2 \mathrm{bins} - \log_2(\beta - \alpha)

    - With a `flowkernels.transforms.Dequantize` in the flow, log p is that of the whole numbers: ``bins=1``.

    Raises:
        ValueError: ``dims`` or ``bins`` is less than 1.

    Reference:
        Theis, van den Oord, Bethge: A note on the evaluation of generative models, ICLR 2016, arXiv:1511.01844; Dinh,
        Sohl-Dickstein, Bengio: Density estimation using Real NVP, ICLR 2017, arXiv:1605.08803.

    Example:
        >>> import torch
        >>> from flowkernels.flows import bits_per_dim
        >>> bits_per_dim(torch.zeros(2), dims=784)  # the uniform density says nothing about 256 levels
        tensor([8., 8.])
    """
    for name, value in (("dims", dims), ("bins", bins)):
        count("flows.bits_per_dim", name, value)
    return math.log2(bins) - log_prob / (dims * math.log(2))


@torch.no_grad()
def attribute_vector(flow: Flow, having: Tensor, lacking: Tensor, context: Tensor | None = None) -> Tensor:
    r"""The direction in the latent from data that lacks an attribute to data that has it, ``[L]``.

    .. math:: v = \overline{f(x)}_{x \in \mathrm{having}} - \overline{f(x)}_{x \in \mathrm{lacking}}

    the difference of the mean latents; ``flow.decode(flow.encode(x) + w * v)`` gives an x more of it, or with w < 0
    less.

    Args:
        flow: the flow.
        having, lacking: data ``[..., D]`` (or images) with and without the attribute, means over all leading dims.
        context: for both.

    Reference:
        Kingma, Dhariwal: Glow, NeurIPS 2018, arXiv:1807.03039, section 6.

    Example:
        >>> import torch
        >>> from flowkernels.flows import NICE, attribute_vector
        >>> flow = NICE(4, hidden=(8,))
        >>> attribute_vector(flow, torch.rand(20, 4), torch.rand(30, 4)).shape
        torch.Size([4])
    """
    a, b = (flow.encode(x, context) for x in (having, lacking))
    return a.reshape(-1, a.shape[-1]).mean(0) - b.reshape(-1, b.shape[-1]).mean(0)


def papers_step(i: int) -> float:
    """NICE's step size, 10/(100 + i)."""
    return 10 / (100 + i)


def inpaint(
    flow: Flow,
    x: Tensor,
    known: Tensor,
    steps: int = 500,
    *,
    step_size: Callable[[int], float] = papers_step,
    noise: float = 1.0,
    low: float = 0.0,
    high: float = 1.0,
    context: Tensor | None = None,
) -> Tensor:
    r"""Fills in the unknown part of ``x``, by projected gradient ascent on the likelihood; ``[..., D]`` like ``x``.

    For i = 0 … steps - 1, on the unknown elements only,

    .. math:: x \leftarrow \mathrm{clamp}\!\left(x + \alpha_i \left(\frac{\partial \log p(x)}{\partial x}
        + \mathrm{noise} \cdot \varepsilon\right), \mathrm{low}, \mathrm{high}\right), \qquad
        \varepsilon \sim \mathcal N(0, 1)

    The known elements come back bit for bit. Put the flow in evaluation mode first. No gradient reaches its parameters.

    Args:
        flow: a flow on data in [low, high].
        x: ``[..., D]`` or images: data where it is known, anywhere else the point to start from, e.g. uniform noise.
        known: True where an element is known; broadcasts to ``x``.
        steps: how many.
        step_size: :math:`\alpha_i`; NICE's 10/(100 + i) by default. Where the density is steep that overshoots and the
            likelihood falls: after training on images, steps that fall from 1e-3 to 0 climb
            (``examples/nice_mnist.py``).
        noise: 1 is NICE's; 0 climbs straight.
        low, high: the box that is projected on.
        context: of the flow.

    Raises:
        TypeError: ``known`` is not a bool tensor.
        ValueError: it does not broadcast to ``x``.

    Reference:
        Dinh, Krueger, Bengio: NICE: Non-linear Independent Components Estimation, ICLR workshop 2015,
        arXiv:1410.8516, section 5.2.

    Example:
        >>> import torch
        >>> from flowkernels.flows import NICE, inpaint
        >>> x, known = torch.rand(5, 4), torch.tensor([True, True, False, False])
        >>> filled = inpaint(NICE(4, hidden=(8,)), x, known, steps=10)
        >>> torch.equal(filled[:, :2], x[:, :2]), filled.shape
        (True, torch.Size([5, 4]))
    """
    if not isinstance(known, Tensor) or known.dtype is not torch.bool:
        given = known.dtype if isinstance(known, Tensor) else type(known).__name__
        raise TypeError(f"flows.inpaint: known must be a bool tensor, got {given}")
    check_tensor("flows.inpaint", "x", x)
    count("flows.inpaint", "steps", steps, least=0)
    if not expands(known.shape, x.shape):
        raise ValueError(f"flows.inpaint: known must broadcast to {list(x.shape)}, got {list(known.shape)}")
    x = x.detach()
    for i in range(steps):
        with torch.enable_grad():
            at = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(flow.log_prob(at, context).sum(), at)
        if noise:
            slope = slope + noise * torch.randn_like(x)
        x = torch.where(known, x, (x + step_size(i) * slope).clamp(low, high))
    return x
