"""PixelCNN."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels import nets
from flowkernels._arguments import count
from flowkernels.distributions import Base, StandardLogistic
from flowkernels.nets import Activation
from flowkernels.transforms import Mixture, PixelAutoregressive, Transform

from .flow import Flow
from .images import check_image, multi_scale


class PixelCNN(Flow):
    r"""PixelCNN: every number of an image given the pixels before it, as a flow of one layer.

    .. math:: \log p(x) = \sum_{cij} \log p(x_{cij} \mid x_{\text{before}}), \quad
        p = \sum_k \pi_k\,\mathrm{logistic}(x; m_k, e^{s_k})

    in nats, in one pass of a `flowkernels.nets.PixelCNN`. The layer (`flowkernels.transforms.PixelAutoregressive`) is
    the logit of each conditional distribution function, in front of a standard logistic base. With ``levels`` the data
    are whole numbers 0 … levels - 1, and ``log_prob`` is their log-probability itself, not a bound: what the mixture
    has within half a level of each, as in PixelCNN++. Samples are drawn number by number, the arithmetic of one pass in
    all, as each layer keeps what it has computed. Shapes, dtypes and context: see `Flow`; a context is a vector.

    An untrained model of real numbers is near the standard logistic; they should have that order of size.

    Args:
        shape: (C, H, W) of an image.
        context: C, the number of context features the network sees (after ``embedding``), 0 for none.
        hidden: channels of the blocks.
        blocks: their number.
        components: K.
        levels: how many whole numbers there are, e.g. 256; 0: the data are real numbers.
        kernel_size, first_kernel_size: of the masked convolutions, odd numbers.
        block: ``"residual"`` or ``"gated"``.
        activation: of the network.
        preprocessing: transforms that come first.
        base: density of the latent; standard logistic by default.
        embedding: a module applied to the context first.

    Raises:
        ValueError: a number is less than 1 where there must be one, ``levels`` is 1, a kernel is even, or ``block`` is
            unknown.

    Reference:
        van den Oord, Kalchbrenner, Kavukcuoglu: Pixel Recurrent Neural Networks, ICML 2016, arXiv:1601.06759; van den
        Oord et al.: Conditional Image Generation with PixelCNN Decoders, NeurIPS 2016, arXiv:1606.05328; Salimans,
        Karpathy, Chen, Kingma: PixelCNN++, ICLR 2017, arXiv:1701.05517.

    Example:
        >>> import torch
        >>> from flowkernels.flows import PixelCNN
        >>> flow = PixelCNN((1, 4, 4), hidden=8, blocks=1, components=4, levels=16)
        >>> loss = -flow.log_prob(torch.randint(16, (10, 1, 4, 4))).mean()
        >>> loss.backward()
        >>> flow.sample(5).shape
        torch.Size([5, 1, 4, 4])
    """

    def __init__(
        self,
        shape: Sequence[int],
        context: int = 0,
        hidden: int = 64,
        blocks: int = 4,
        components: int = 10,
        *,
        levels: int = 0,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        block: str = "residual",
        activation: Activation = F.relu,
        preprocessing: Sequence[Transform] = (),
        base: Base | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        event = check_image("PixelCNN", shape)
        count("flows.PixelCNN", "levels", levels, least=0)
        mixture = Mixture(components)
        net = functools.partial(
            nets.PixelCNN, hidden=hidden, blocks=blocks, kernel_size=kernel_size, first_kernel_size=first_kernel_size,
            block=block, context=context, activation=activation,
        )  # fmt: skip
        layer = PixelAutoregressive(net, mixture, event[0], levels=levels)
        layer.conditioner.start_at(_start(mixture, levels).repeat(event[0]))
        base = StandardLogistic(math.prod(event)) if base is None else base
        super().__init__(multi_scale(preprocessing, [[layer]], event), base, embedding)


def _start(mixture: Mixture, levels: int) -> Tensor:
    """Logits, means and log-scales of the untrained model: of levels, which the network sees from -1 to 1, all over."""
    if not levels:
        return torch.tensor(mixture.identity)
    start = torch.zeros(3, mixture.components)
    start[1] = torch.linspace(-1, 1, mixture.components) if mixture.components > 1 else 0.0
    start[2] = -1.0
    return start.flatten()
