"""Actnorm: one scale and one shift per channel, for rows of features or images."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkernels.ops import _channels
from flowkernels.ops._channels import ChannelSpec
from flowkernels.ops._routing import Op

from . import native, reference, triton

__all__ = ["actnorm"]

_NAME = "ops.actnorm"

op = Op(
    "actnorm",
    spec_type=ChannelSpec,
    reference=reference.fwd,
    table={"cpu": native.cpu, "cuda": native.cuda, "triton": triton, "reference": reference},
    inputs=("x", "log_scale", "shift"),
    n_outputs=2,
    fake=lambda spec, *tensors: _channels.outputs(tensors[0], spec.channel_dim, tensors),
    sample=lambda: (ChannelSpec(-1, False), (torch.zeros(1, 1), torch.zeros(1), torch.zeros(1))),
)


def actnorm(
    x: Tensor,
    log_scale: Tensor,
    shift: Tensor,
    *,
    channel_dim: int = -1,
    inverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Scales and shifts every channel by numbers of its own, the same for every row or pixel.

    .. math:: y = x\,e^{\mathrm{log\_scale}} + \mathrm{shift}, \qquad
              \mathrm{ladj} = \mathrm{pixels} \cdot \sum_C \mathrm{log\_scale}

    in nats; inverse :math:`x = (y - \mathrm{shift})\,e^{-\mathrm{log\_scale}}`. The shift comes after the scale.

    Args:
        x: ``[..., C]``, or ``[N, C, ...]`` with ``channel_dim=1``; float32, float64, bfloat16 or float16. Images lie as
            they are, channels first or ``torch.channels_last``: nothing is copied, and y lies as x does.
        log_scale, shift: ``[C]``.
        channel_dim: -1 for features, 1 for images with any number of trailing dims.
        inverse: evaluate y → x; ``ladj`` is then that of the inverse.
        backend: run on this one or raise; default: the fastest that can.

    Returns:
        ``y`` of the shape of ``x`` in the promoted dtype of the inputs, and ``ladj``, ``[...]`` for features (one pixel
        each), ``[N]`` for images, in float32 (float64 for float64).

    Raises:
        TypeError: an input is not a floating-point tensor.
        ValueError: a shape or setting breaks its contract.

    Reference:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1×1 Convolutions, NeurIPS 2018, arXiv:1807.03039.

    Example:
        >>> import torch
        >>> from flowkernels import ops
        >>> ops.actnorm(torch.tensor([[1.0, 2.0]]), torch.zeros(2), torch.tensor([0.5, -1.0]))
        (tensor([[1.5000, 1.0000]]), tensor([0.]))
    """
    spec = _channels.spec_of(_NAME, x, channel_dim, inverse)
    shape = (x.shape[channel_dim],)
    _channels.check_parameter(_NAME, "log_scale", log_scale, shape, x)
    _channels.check_parameter(_NAME, "shift", shift, shape, x)
    return op(spec, backend, x, log_scale, shift)  # type: ignore[return-value]
