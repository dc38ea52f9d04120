"""Learned linear maps, by their LU factors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowkernels import ops
from flowkernels._arguments import choice, flag, generator

from .base import Transform, check_channels, check_layout

INITS = ("rotation", "permutation", "identity")


class LULinear(Transform):
    r"""Learned invertible matrix: :math:`y = W x + b` with :math:`W = P L (U + \mathrm{diag}\,s)`.

    Starts as a random rotation, or as ``init`` says; ``ladj`` starts at 0. P and the signs of s stay as they
    started; L, U, log \|s\| and the bias are learned, and W stays invertible whatever they become. ``x [..., D]``,
    ``ladj [...]`` in nats; ``channel_dim=1``: ``x [N, D, ...]``, ``ladj [N]``, as in `LUConv1x1`. ``context`` is
    ignored.

    Args:
        features: D.
        channel_dim: -1 for features, 1 for the channels of images.
        bias: learn b too; it starts at 0.
        init: ``"rotation"``, random and uniform; ``"permutation"``, a random one, with L = U + diag s = 1, as Durkan et
            al. have it in front of their splines; ``"identity"``, which leaves features as they are.
        seed: of what ``init`` draws; a number, a generator on the CPU, or None for torch's global one.

    Raises:
        ValueError: ``features``, ``channel_dim`` or ``init`` breaks its contract; ``x`` does not have D features.

    Reference:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1×1 Convolutions, NeurIPS 2018, arXiv:1807.03039;
        Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, NeurIPS 2019, arXiv:1906.04032.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import LULinear
        >>> layer, x = LULinear(4, seed=0), torch.randn(7, 4)
        >>> y, ladj = layer(x)
        >>> torch.allclose(y.norm(dim=-1), x.norm(dim=-1)), torch.allclose(layer.inverse(y)[0], x, atol=1e-5)
        (True, True)
        >>> torch.equal(LULinear(4, init="identity")(x)[0], x)
        True
    """

    permutation: Tensor
    sign_s: Tensor

    def __init__(
        self,
        features: int,
        *,
        channel_dim: int = -1,
        bias: bool = True,
        init: str = "rotation",
        seed: int | torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self._name = f"transforms.{type(self).__name__}"
        check_layout(self._name, features, channel_dim)
        self.features, self.channel_dim = features, channel_dim
        flag(self._name, "bias", bias)
        P, L, U = _factors(features, choice(self._name, "init", init, INITS), generator(self._name, seed))
        like = torch.empty(())  # the default dtype and device
        s = U.diagonal()
        self.lower, self.upper, self.log_s = (nn.Parameter(t.to(like)) for t in (L.tril(-1), U.triu(1), s.abs().log()))
        self.bias = nn.Parameter(like.new_zeros(features)) if bias else None
        # Stored with the weights: under another P or other signs they are another matrix.
        self.register_buffer("sign_s", s.sign().to(like))
        self.register_buffer("permutation", P.argmax(1).to(like.device))

    def _run(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        check_channels(self._name, x, self.features, self.channel_dim)
        return ops.lu_linear(
            x, self.lower, self.upper, self.log_s, self.sign_s, self.permutation, self.bias,
            channel_dim=self.channel_dim, inverse=inverse,
        )  # fmt: skip

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(x, False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(y, True)

    def extra_repr(self) -> str:
        return f"{self.features}, channel_dim={self.channel_dim}, bias={self.bias is not None}"


def _factors(features: int, init: str, draws: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    """P, L and U of a matrix of determinant ±1."""
    one = torch.eye(features, dtype=torch.float64, device="cpu")
    if init == "identity":
        return one, one, one
    noise = torch.randn(features, features, generator=draws, dtype=torch.float64, device="cpu")
    P, L, U = torch.linalg.lu(torch.linalg.qr(noise).Q)
    # The P of a random rotation is a random permutation: its rows could have come in any order.
    return (P, L, U) if init == "rotation" else (P, one, one)


class LUConv1x1(LULinear):
    r"""Glow's invertible 1×1 convolution: every pixel's channels through one learned matrix, by its LU factors.

    `LULinear` on ``x [N, C, ...]``, ``ladj [N] = pixels · Σ log|s|`` in nats; images channels first or
    ``torch.channels_last``. Starts as a random rotation, or as ``init`` says. ``context`` is ignored.

    Args:
        channels: C.
        bias: learn a bias too; Glow has none here, its `ActNorm` before the convolution has.
        init: as of `LULinear`.
        seed: of what ``init`` draws; a number, a generator on the CPU, or None for torch's global one.

    Raises:
        ValueError: ``channels`` or ``init`` breaks its contract; ``x`` does not have C channels.

    Reference:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1×1 Convolutions, NeurIPS 2018, arXiv:1807.03039.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import LUConv1x1
        >>> layer, x = LUConv1x1(12, seed=0), torch.randn(2, 12, 4, 4)
        >>> y, ladj = layer(x)
        >>> y.shape, ladj.shape, torch.allclose(layer.inverse(y)[0], x, atol=1e-5)
        (torch.Size([2, 12, 4, 4]), torch.Size([2]), True)
    """

    def __init__(
        self,
        channels: int,
        *,
        bias: bool = False,
        init: str = "rotation",
        seed: int | torch.Generator | None = None,
    ) -> None:
        super().__init__(channels, channel_dim=1, bias=bias, init=init, seed=seed)

    def extra_repr(self) -> str:
        return f"{self.features}, bias={self.bias is not None}"
