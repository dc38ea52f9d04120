"""What the network sees in place of the features, l x + a sin(s x) + b cos(s x) + c, and its derivatives.

A sweep back is given the values and the slopes and returns the gradient of the values: the rest is one sum over rows.
"""

from __future__ import annotations

import torch
from torch import Tensor


def periodic_features(x: Tensor, periodic: Tensor) -> Tensor:
    """What the network sees of x ``[..., D]``, by their five numbers ``[D, 5]``."""
    linear, of_sin, of_cos, frequency, offset = periodic.unbind(-1)
    angle = frequency * x
    return linear * x + of_sin * angle.sin() + of_cos * angle.cos() + offset


def slope(x: Tensor, periodic: Tensor) -> Tensor:
    """The derivative of what the network sees by x."""
    linear, of_sin, of_cos, frequency, _ = periodic.unbind(-1)
    angle = frequency * x
    return linear + frequency * (of_sin * angle.cos() - of_cos * angle.sin())


def gradient(x: Tensor, periodic: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the periodic features from that of what the network sees, both ``[rows, D]``."""
    angle = periodic[:, 3] * x
    sin, cos = angle.sin(), angle.cos()
    of_frequency = x * (periodic[:, 1] * cos - periodic[:, 2] * sin)
    return torch.stack([(grad * by).sum(0) for by in (x, sin, cos, of_frequency)] + [grad.sum(0)], -1)
