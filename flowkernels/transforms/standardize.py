"""Data of any units as data of unit size."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkernels._arguments import check_tensor, event_dims

from .base import Transform


class Standardize(Transform):
    r"""Subtracts a mean and divides by a standard deviation, fixed numbers of every feature.

    .. math:: y_d = \frac{x_d - \mu_d}{\sigma_d}, \qquad \mathrm{ladj} = -\sum_D \log \sigma_d

    in nats. As the first layer of a flow it lets users keep their units: the density is that of the data as it is.
    ``x [..., *shape]`` of any floating-point dtype, ``y`` in the promoted dtype of ``x`` and the buffers,
    ``ladj [...]``. ``context`` is ignored. Both numbers are buffers: they move, cast and save with the flow, and do not
    train.

    Args:
        mean: :math:`\mu`, a tensor ``[D]``, or of the shape of one x, e.g. ``[C, H, W]``.
        std: :math:`\sigma`, of the same shape, positive.

    Raises:
        TypeError: ``mean`` or ``std`` is not a tensor.
        ValueError: they are not of one shape; a number is not finite, or a ``std`` not positive; ``x`` is not
            ``[..., *shape]``.

    Reference:
        LeCun, Bottou, Orr, Müller: Efficient BackProp, in Neural Networks: Tricks of the Trade, 1998, section 4.3.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import Standardize
        >>> layer = Standardize.from_data(torch.tensor([[1.0, 10.0], [3.0, 50.0]]))
        >>> layer.mean.tolist(), layer(layer.mean)[0].tolist()
        ([2.0, 30.0], [0.0, 0.0])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        name = "transforms.Standardize"
        check_tensor(name, "mean", mean)
        check_tensor(name, "std", std)
        if mean.dim() == 0 or mean.shape != std.shape:
            raise ValueError(
                f"{name}: mean and std must be of one shape, [D] or that of an x, got {list(mean.shape)} and "
                f"{list(std.shape)}"
            )
        dtype = torch.promote_types(torch.promote_types(mean.dtype, std.dtype), torch.float16)
        if dtype.is_complex:
            raise ValueError(f"{name}: mean and std must be real, got {mean.dtype} and {std.dtype}")
        if not bool(mean.isfinite().all() and (std > 0).all() and std.isfinite().all()):
            raise ValueError(
                f"{name}: mean must be finite and std positive and finite, got {mean!r:.60} and {std!r:.60}"
            )
        self.register_buffer("mean", mean.detach().to(dtype).clone())
        self.register_buffer("std", std.detach().to(dtype).clone())

    @classmethod
    def from_data(cls, x: Tensor, dims: int = 1, *, shared: bool = False) -> Standardize:
        """The mean and deviation of data ``[..., *shape]`` with ``dims`` dims of shape: 1 for features, 3 for images.

        Rows with a NaN or an infinity are left out. A feature that is the same in all rows, and every one where there
        is one row, is not scaled. ``shared``: one mean and one deviation for all features together, e.g. of a series.

        Raises:
            TypeError: ``x`` is not a tensor.
            ValueError: it has fewer dims, no number of a floating-point dtype, or no row that is finite.
        """
        name = "transforms.Standardize.from_data"
        check_tensor(name, "x", x)
        dims = event_dims(name, "dims", dims)
        if x.dim() <= dims or not x.is_floating_point():
            contract = f"x must be [..., {', '.join(['D'] if dims == 1 else ['C', 'H', 'W'])}] of a floating dtype"
            raise ValueError(f"{name}: {contract}, got {list(x.shape)}, {x.dtype}")
        shape = x.shape[-dims:]
        # In float64: of features around 1e6 the squares hold nothing of a deviation of 1 in float32.
        wide = torch.float64 if x.device.type == "cpu" else torch.float32  # MPS has no float64
        rows = x.detach().reshape(-1, shape.numel()).to(wide)
        rows = rows[rows.isfinite().all(-1)]
        if rows.numel() == 0:
            raise ValueError(f"{name}: x must hold a finite row, got {x.shape[:-dims].numel()} rows and none of them")
        if shared:
            mean, std = (t.expand(shape) for t in (rows.mean(), rows.std(correction=0)))
        else:
            mean, std = (t.view(shape) for t in (rows.mean(0), rows.std(0, correction=0)))
        mean, std = mean.to(x.dtype), std.to(x.dtype)
        # What is left of a constant feature is the rounding of its mean.
        constant = std <= 4 * torch.finfo(x.dtype).eps * mean.abs()
        return cls(mean, torch.where(constant, torch.ones_like(std), std))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x)
        return (x - self.mean) / self.std, -self._ladj(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("y", y)
        return y * self.std + self.mean, self._ladj(y)

    def _ladj(self, x: Tensor) -> Tensor:
        """Of the inverse."""
        dtype = torch.promote_types(torch.promote_types(x.dtype, self.std.dtype), torch.float32)
        return self.std.to(dtype).log().sum().expand(x.shape[: x.dim() - self.std.dim()])

    def _check(self, name: str, x: Tensor) -> None:
        check_tensor("transforms.Standardize", name, x)
        shape = self.mean.shape
        if x.dim() < len(shape) or x.shape[x.dim() - len(shape) :] != shape:
            expected = ", ".join(str(n) for n in shape)
            raise ValueError(f"transforms.Standardize: {name} must be [..., {expected}], got {list(x.shape)}")

    def extra_repr(self) -> str:
        return f"shape={tuple(self.mean.shape)}"
