"""What every transform is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowkernels._arguments import channel_dim as channel_dim_of
from flowkernels._arguments import check_tensor, count

if TYPE_CHECKING:
    from .torch_transform import TorchTransform


class Transform(nn.Module):
    r"""An invertible map of ``[..., D]``, signals ``[..., C, L]`` or images ``[..., C, H, W]``, with its determinant.

    ``forward`` goes from data to latent, ``inverse`` from latent to data. Both return ``(y, ladj)`` with
    :math:`\mathrm{ladj} = \log|\det \partial y/\partial x|` in nats, ``[...]``, float32 or wider, so that
    ``transform.inverse(y)[1]`` is ``-ladj``. ``context [..., C]`` broadcasts to the leading dims of ``x``.
    """

    rearranges: bool = False  # y holds the numbers of x, only in other places
    noisy: bool = False  # forward adds noise: no function of x

    @property
    def domain(self) -> constraints.Constraint | None:
        """Where each number of x must lie; None where that depends on the others, or is known by trying only.

        Outside of it ``forward`` gives a finite y and a ladj of -inf: a density of zero, in that row alone.
        """
        return constraints.real

    @property
    def codomain(self) -> constraints.Constraint | None:
        """Where each number of y must lie, for ``inverse``."""
        return constraints.real

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of one y, e.g. ``(D,)`` or ``(C, H, W)``, for one x of ``shape``; raises where it does not fit."""
        return tuple(shape)

    def data_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of one x for one y of ``shape``."""
        return tuple(shape)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data → latent."""
        raise NotImplementedError(f"transforms.{type(self).__name__}: forward is not defined")

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent → data."""
        raise NotImplementedError(f"transforms.{type(self).__name__}: inverse is not defined")

    def as_torch(
        self, context: Tensor | None = None, *, shape: Sequence[int] | None = None, cache_size: int = 0
    ) -> TorchTransform:
        """This transform, under ``context [..., C]``, as a `torch.distributions.Transform`, data → latent.

        A distribution over data, ``TransformedDistribution(base, flow.transform.as_torch().inv)``, has a base in the
        latent. The transform is held, not copied, and the context is what its layers see: ``flow.embed(context)``
        where a flow has an embedding. Leading dims of x and of the context broadcast.

        Args:
            context: of every call.
            shape: of one x, e.g. ``(C, H, W)``; None: x are vectors ``[D]``.
            cache_size: 1 keeps the last x and y, as variational inference with a slow direction needs, and as torch's
                own transforms do: not for calls with the same tensor before and after a change of the weights.

        Raises:
            TypeError: ``context`` is not a tensor.
            ValueError: the transform adds noise, as `Dequantize` does; it does not take ``shape``; ``cache_size`` is
                neither 0 nor 1.

        Example:
            >>> import torch
            >>> from torch.distributions import Normal, TransformedDistribution
            >>> from flowkernels.flows import NSF
            >>> flow, context = NSF(2, context=3), torch.randn(4, 3)
            >>> base = Normal(torch.zeros(2), torch.ones(2))
            >>> p = TransformedDistribution(base, flow.transform.as_torch(context).inv)
            >>> p.batch_shape, p.event_shape, p.rsample((5,)).shape, p.log_prob(torch.zeros(2)).shape
            (torch.Size([4]), torch.Size([2]), torch.Size([5, 4, 2]), torch.Size([4]))
        """
        from .torch_transform import TorchTransform

        where = f"transforms.{type(self).__name__}.as_torch"
        noisy = [m for m in self.modules() if isinstance(m, Transform) and m.noisy]
        if noisy:
            raise ValueError(f"{where}: the transform must be a bijection, got one with a {type(noisy[0]).__name__}")
        if context is not None:
            check_tensor(where, "context", context)
            if context.dim() == 0:
                raise ValueError(f"{where}: context must be [..., C], got a scalar")
        if count(where, "cache_size", cache_size, least=0) > 1:
            raise ValueError(f"{where}: cache_size must be 0 or 1, got {cache_size}")
        return TorchTransform(self, context, shape, cache_size)


def zero_ladj(x: Tensor, event_dims: int = 1) -> Tensor:
    """The ladj of a map that keeps volume: ``[...]`` zeros for ``x [..., D]``, or for images with 3 event dims."""
    return x.new_zeros(x.shape[: x.dim() - event_dims], dtype=torch.promote_types(x.dtype, torch.float32))


def check_features(name: str, x: Tensor, features: int) -> None:
    """Raises unless ``x`` is ``[..., features]``."""
    check_tensor(name, "x", x)
    if x.dim() == 0 or x.shape[-1] != features:
        raise ValueError(f"{name}: x must be [..., {features}], got {list(x.shape)}")


def check_images(name: str, x: Tensor, channels: int, event_dims: int = 3) -> None:
    """Raises unless ``x`` is ``[..., channels, H, W]``, or of signals, with 2 event dims, ``[..., channels, L]``."""
    check_tensor(name, "x", x)
    if x.dim() < event_dims or x.shape[-event_dims] != channels:
        sides = "H, W" if event_dims == 3 else "L"
        raise ValueError(f"{name}: x must be [..., {channels}, {sides}], got {list(x.shape)}")


def check_channels(name: str, x: Tensor, channels: int, channel_dim: int) -> None:
    """Raises unless ``x`` is ``[..., channels]`` (``channel_dim=-1``) or ``[N, channels, ...]`` (``channel_dim=1``)."""
    if channel_dim == -1:
        check_features(name, x, channels)
        return
    check_tensor(name, "x", x)
    if x.dim() < 2 or x.shape[1] != channels:
        raise ValueError(f"{name}: x must be [N, {channels}, ...], got {list(x.shape)}")


def check_layout(name: str, features: object, channel_dim: object) -> None:
    """Raises unless these are a number of channels and where they lie."""
    if not isinstance(features, int) or isinstance(features, bool) or features < 1:
        raise ValueError(f"{name}: features must be a positive integer, got {features!r}")
    channel_dim_of(name, "channel_dim", channel_dim)
