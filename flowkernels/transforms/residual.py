"""Residual layers x + g(x), invertible as their networks are contractions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels import ops
from flowkernels._arguments import choice, count, flag, generator, is_number, widths
from flowkernels.nets.common import check_dtypes
from flowkernels.ops._kept import made_to_stay
from flowkernels.ops.residual_flow import LOG_DETS
from flowkernels.ops.residual_flow.reference import ACTIVATIONS

from .base import Transform, check_features

_NAME = "transforms.Residual"
_SURE = {"exact": 0, "series": 10, "roulette": 2}  # terms, unless something is said of them
_MOST = 40  # drawn terms where a compiler wants a number; more have the probability 2^-40
_AT_FIRST = 50  # power iterations of new weights


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _unit(t: Tensor) -> Tensor:
    """A vector of length 1 along t, which it overwrites; 0 where t is."""
    return t.div_(torch.linalg.vector_norm(t).clamp_(min=1e-12))


def _norm_of(weight: Tensor) -> Tensor:
    """The largest singular value; NaN of weights that are no numbers, which a decomposition would refuse."""
    weight = _wide(weight)
    fine = weight.isfinite().all()
    return torch.where(fine, torch.linalg.matrix_norm(torch.where(fine, weight, 0.0), 2), torch.nan)


class SpectralLinear(nn.Module):
    r"""Holds one layer of a network whose norm is bounded: :math:`W = V / \max(1, \lVert V \rVert_2 / c)`.

    V is ``weight``. In training the norm is :math:`u^\top V v`, with u and v, two buffers, from power iterations, a few
    more in every call; it comes from below, by less as weights change slowly. In evaluation it is the largest singular
    value itself, so that the bound holds.

    Args:
        n_in, n_out: width in front of the layer and behind it.
        bound: c.
        iterations: of the power method in every call of training.
        draws: a generator on the CPU, or None for torch's global one.
    """

    u: Tensor
    v: Tensor

    def __init__(
        self, n_in: int, n_out: int, bound: float, iterations: int, draws: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.bound, self.iterations = bound, iterations
        like, edge = torch.empty(()), 1 / math.sqrt(n_in)  # the default dtype and device; nn.Linear's weights

        def uniform(*shape: int) -> Tensor:
            return 2 * torch.rand(*shape, generator=draws, device="cpu", dtype=torch.float64) - 1

        self.weight = nn.Parameter((edge * uniform(n_out, n_in)).to(like))
        self.bias = nn.Parameter((edge * uniform(n_out)).to(like))
        self.register_buffer("u", F.normalize(uniform(n_out), dim=0).to(like))
        self.register_buffer("v", F.normalize(uniform(n_in), dim=0).to(like))
        self._iterate(_wide(self.weight.detach()), _AT_FIRST)
        self._known: tuple[object, Tensor] | None = None

    def _iterate(self, weight: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """u and v after n more iterations, at least one, of a weight without a gradient; tensors of their own."""
        kept_u, kept_v = self._buffers["u"], self._buffers["v"]
        assert kept_u is not None and kept_v is not None  # for the type checker
        u, v, transposed = kept_u, _wide(kept_v), weight.mT
        for _ in range(n):
            u = _unit(torch.mv(weight, v))
            v = _unit(torch.mv(transposed, u))
        kept_u.copy_(u)
        kept_v.copy_(v)
        return u, v

    def _norm(self, w: Tensor) -> Tensor:
        if self.training:
            wide = _wide(w)
            u, v = self._iterate(wide.detach(), self.iterations)
            return torch.dot(u, torch.mv(wide, v))
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or type(w) is not nn.Parameter or w.is_inference():
            return _norm_of(w)
        # Samples and densities one after another need no decomposition each.
        key = w.data_ptr(), w._version, w.dtype, w.device
        if self._known is None or self._known[0] != key:
            self._known = key, made_to_stay(_norm_of, w.detach())
        return self._known[1]

    def bounded(self) -> tuple[Tensor, Tensor]:
        """W and the bias."""
        weight = self.weight
        return (_wide(weight) / (self._norm(weight) / self.bound).clamp(min=1)).to(weight.dtype), self.bias

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_known": None}

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, bound={self.bound:.4g}"


class Residual(Transform):
    r"""Maps all features by a residual block, a network g whose slope is bounded: :math:`y = x + g(x)`.

    The weights' spectral norms are bounded by :math:`L^{1/n}` each, n layers, so that the slope of g is at most L < 1:
    by power iteration in training, by their largest singular value in evaluation. ``forward`` is one pass and ``ladj =
    log det(I + J)``, ``inverse`` the iteration :math:`x \leftarrow y - g(x)`, as `flowkernels.ops.residual_flow` has
    them. ``x [..., D]``, ``ladj [...]`` in nats. ``context`` is ignored.

    Args:
        features: D.
        hidden: units of each hidden layer.
        activation: ``"lipswish"``, with a learned :math:`\beta` for each activation, ``"elu"`` or ``"tanh"``.
        lipschitz: L, above 0 and below 1.
        log_det: ``"exact"``, about D passes, for tables; ``"series"``, a number of ``terms`` of the power series; or
            ``"roulette"``, as many and those that are drawn behind them (the next with probability 1/2), without bias.
            Both with noise, by torch's generator: one vector of signs a row and call, or ``samples``.
        terms: of a series (None: 10), or the sure ones of a roulette (None: 2).
        samples: vectors of noise for every row.
        preactivated: an activation in front of the first layer, too.
        iterations: of the power method, in each call of training.
        seed: of the weights; a number, a generator on the CPU, or None for torch's global one.

    Raises:
        ValueError: an argument breaks its contract; ``x`` does not have D features.

    Reference:
        Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen: Invertible Residual Networks, ICML 2019, arXiv:1811.00995; Chen,
        Behrmann, Duvenaud, Jacobsen: Residual Flows for Invertible Generative Modeling, NeurIPS 2019, arXiv:1906.02735.

    Example:
        >>> import torch
        >>> from flowkernels.transforms import Residual
        >>> layer, x = Residual(3, hidden=(8, 8), seed=0).eval(), torch.randn(7, 3)
        >>> y, ladj = layer(x)
        >>> back, neg = layer.inverse(y)
        >>> torch.allclose(back, x, atol=1e-4), torch.allclose(neg, -ladj, atol=1e-4)
        (True, True)
    """

    def __init__(
        self,
        features: int,
        hidden: int | Sequence[int] = (128, 128),
        *,
        activation: str = "lipswish",
        lipschitz: float = 0.9,
        log_det: str = "exact",
        terms: int | None = None,
        samples: int = 1,
        preactivated: bool = False,
        iterations: int = 2,
        seed: int | torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.features, self.hidden = count(_NAME, "features", features), widths(_NAME, "hidden", hidden)
        self.activation = choice(_NAME, "activation", activation, ACTIVATIONS)
        if not is_number(lipschitz) or not 0 < lipschitz < 1:
            raise ValueError(f"{_NAME}: lipschitz must be above 0 and below 1, got {lipschitz!r:.60}")
        self.lipschitz = float(lipschitz)
        self.log_det = choice(_NAME, "log_det", log_det, LOG_DETS)
        self.terms = _SURE[log_det] if terms is None else count(_NAME, "terms", terms, 1)
        self.samples = count(_NAME, "samples", samples)
        self.preactivated = flag(_NAME, "preactivated", preactivated)
        self.iterations = count(_NAME, "iterations", iterations)
        draws = generator(_NAME, seed)
        sizes = [features, *self.hidden, features]
        bound = self.lipschitz ** (1 / (len(sizes) - 1))
        self.layers = nn.ModuleList(
            [SpectralLinear(a, b, bound, self.iterations, draws) for a, b in itertools.pairwise(sizes)]
        )
        n = len(self.hidden) + self.preactivated
        # The paper's: softplus of it is beta.
        self.raw_betas = nn.Parameter(torch.full((n,), 0.5)) if activation == "lipswish" and n > 0 else None

    def _estimate(self, x: Tensor) -> dict[str, Any]:
        """What an estimate of the determinant takes: weights or a number of terms, and noise."""
        if self.log_det == "exact":
            return {}
        with torch.no_grad():
            noise = torch.randint(0, 2, (self.samples, *x.shape), dtype=x.dtype, device=x.device).mul_(2).sub_(1)
        if self.log_det == "series":
            return {"terms": self.terms, "noise": noise}
        return {"weights": _drawn(self.terms, torch.compiler.is_compiling()).to(x), "noise": noise}

    def _run(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        check_features(_NAME, x, self.features)
        parts: list[SpectralLinear] = [*self.layers]  # type: ignore[assignment]
        check_dtypes(_NAME, self, parts[0]._parameters.get("weight"), x, None)
        betas = None if self.raw_betas is None else F.softplus(self.raw_betas)
        return ops.residual_flow(
            x, [part.bounded() for part in parts], activation=self.activation, betas=betas,
            preactivated=self.preactivated, log_det=self.log_det, lipschitz=self.lipschitz, inverse=inverse,
            **self._estimate(x),
        )  # fmt: skip

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(x, False)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(y, True)

    def extra_repr(self) -> str:
        text = f"{self.features}, hidden={self.hidden}, activation={self.activation!r}, lipschitz={self.lipschitz:g}"
        return f"{text}, log_det={self.log_det!r}" + f", terms={self.terms}" * (self.log_det != "exact")


@torch.no_grad()
def _drawn(sure: int, at_most: bool) -> Tensor:
    """1 / P(N >= k) of the sure terms and of those drawn behind them, at least one: P is 1 of it, then halves.

    ``at_most``: all terms that might be, 0 where they were not drawn, as a graph wants their number to be the same.
    """
    n = torch.empty((), dtype=torch.float64, device="cpu").geometric_(0.5)
    if not at_most:
        return torch.tensor([1.0] * sure + [2.0**k for k in range(int(n))], dtype=torch.float64, device="cpu")
    behind = torch.arange(1, _MOST + 1, dtype=torch.float64, device="cpu")
    weights = torch.where(behind <= n, 2.0 ** (behind - 1), 0.0)
    return torch.cat((torch.ones(sure, dtype=torch.float64, device="cpu"), weights))
