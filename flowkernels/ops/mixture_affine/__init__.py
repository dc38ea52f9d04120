"""Flow++'s map: a mixture of logistics, the logit of its distribution function, and an affine map behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flowkernels._arguments import flag
from flowkernels.ops.affine import Affine
from flowkernels.ops.mixture import Mixture
from flowkernels.ops.univariate import Map

__all__ = ["MixtureAffine"]


@dataclass(frozen=True)
class MixtureAffine(Map):
    r"""The coupling function of Flow++: the distribution function of K logistics, its logit, a scale and a shift.

    .. math:: y = e^{a} \operatorname{logit}\Big(\sum_k \pi_k\,\sigma\big((x - m_k)\,e^{-s_k}\big)\Big) + b

    ``ladj`` is :math:`\sum_D \log |dy/dx|` in nats; the inverse is the mixture's root, see `flowkernels.ops.mixture`.
    ``x [..., D]``, float32, float64, bfloat16 or float16; ``params [..., D, 3K + 2]``, the mixture's weight logits,
    means and log-scales, then a's logit and b. Frozen, hashable, equal by value. It runs as two ops, each on the
    fastest backend that can.

    Args:
        components: K, from 1 to 128.
        scale: how a comes of its logit, as in `flowkernels.ops.affine`; ``"tanh"`` bounds it by ``clamp``.
        clamp: see `flowkernels.ops.Affine`; None stands for 2 where the scale has bounds.
        min_log_scale, max_log_scale: see `flowkernels.ops.mixture`.
        inverse: this is the map y → x.

    Raises:
        TypeError: an input is not a floating-point tensor.
        ValueError: a setting or shape breaks the contract of `flowkernels.ops.mixture` or `flowkernels.ops.affine`.

    Reference:
        Ho, Chen, Srinivas, Duan, Abbeel: Flow++, ICML 2019, arXiv:1902.00275, section 3.2.

    Example:
        >>> import torch
        >>> from flowkernels.ops import MixtureAffine
        >>> f = MixtureAffine(4)
        >>> x, params = torch.randn(5, 2), torch.randn(5, 2, f.n_params)
        >>> y, ladj = f(x, params)
        >>> back, neg = f.inverted()(y, params)
        >>> torch.allclose(back, x, atol=1e-4), torch.allclose(ladj, -neg, atol=1e-3)
        (True, True)
    """

    components: int = 8
    scale: str = "tanh"
    clamp: float | None = None
    min_log_scale: float = -7.0
    max_log_scale: float = 7.0
    inverse: bool = False

    def _settle(self) -> None:
        mixture, affine = self._parts()
        values = mixture.components, affine.scale, affine.clamp, mixture.min_log_scale, mixture.max_log_scale
        self._set(("components", "scale", "clamp", "min_log_scale", "max_log_scale"), values)
        object.__setattr__(self, "n_params", mixture.n_params + affine.n_params)

    def _derived(self) -> dict[str, Any]:
        mixture, affine = self._parts()
        return {"identity": mixture.identity + affine.identity}

    def _parts(self) -> tuple[Mixture, Affine]:
        """The two maps, in the direction of this one."""
        inverse = flag("ops.MixtureAffine", "inverse", self.inverse)
        mixture = Mixture.kept(
            components=self.components, min_log_scale=self.min_log_scale, max_log_scale=self.max_log_scale,
            inverse=inverse,
        )  # fmt: skip
        return mixture, Affine.kept(scale=self.scale, clamp=self.clamp, inverse=inverse)

    def reference(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(x, params, "reference")

    def _run(self, x: Tensor, params: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
        mixture, affine = self._parts()
        n = mixture.n_params
        steps = [(mixture, params[..., :n]), (affine, params[..., n:])]
        (first, its_params), (second, of_second) = reversed(steps) if self.inverse else steps
        x, ladj = first(x, its_params, backend=backend)
        y, more = second(x, of_second, backend=backend)
        return y, ladj + more
