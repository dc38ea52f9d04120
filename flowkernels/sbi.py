"""Native flows as density estimators of sbi.

    from sbi.inference import NPE
    import flowkernels.sbi
    inference = NPE(prior, density_estimator=flowkernels.sbi.estimator("nsf", hidden=(50, 50)))

This module may have the name of the package: imports are absolute, so ``import sbi`` in it means sbi.
To keep sbi's own networks and make them fast, see `flowkernels.accelerate_library`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels._arguments import check_tensor, count, widths
from flowkernels.flows import MAF, NSF, Flow
from flowkernels.transforms import Composite, Standardize, Transform

try:
    from sbi.neural_nets.estimators import ConditionalDensityEstimator
except ImportError as error:  # of what sbi itself imports as well, so its own words stay
    raise ImportError(f"flowkernels.sbi: the package sbi must be installed (pip install sbi), got {error}") from error

__all__ = ["FlowEstimator", "FlowEstimatorBuilder", "estimator"]

FLOWS: dict[str, Callable[..., Flow]] = {"maf": MAF, "nsf": NSF}
Z_SCORES = ("independent", "structured", "none")
MakeFlow = Callable[..., Flow]


class FlowEstimator(ConditionalDensityEstimator):
    r"""A `flowkernels.flows.Flow` as sbi's trainers and posteriors call a density estimator.

    :math:`\log p(\mathrm{input} \mid \mathrm{condition})`, in nats, in the units of ``input``: for NPE the input is
    theta and the condition x, for NLE the other way round. Dtypes and errors on values are the flow's.

    Args:
        net: a flow whose features are the ``input_shape``, flattened, and whose embedding takes conditions
            ``[..., *condition_shape]``, with any leading dims, to ``[..., C]``.
        input_shape: of one input, without batch dims.
        condition_shape: of one condition.

    Raises:
        TypeError: ``net`` is not a `flowkernels.flows.Flow`.
        ValueError: its features are not as many as ``input_shape`` has numbers.

    Reference:
        Tejero-Cantero et al.: sbi: A toolkit for simulation-based inference, JOSS 2020, doi:10.21105/joss.02505.

    Example:
        >>> import torch
        >>> from flowkernels.flows import MAF
        >>> from flowkernels.sbi import FlowEstimator
        >>> q = FlowEstimator(MAF(2, context=3), (2,), (3,))
        >>> q.sample((10,), torch.zeros(4, 3)).shape, q.log_prob(torch.zeros(10, 4, 2), torch.zeros(4, 3)).shape
        (torch.Size([10, 4, 2]), torch.Size([10, 4]))
    """

    net: Flow

    def __init__(self, net: Flow, input_shape: Sequence[int], condition_shape: Sequence[int]) -> None:
        if not isinstance(net, Flow):
            raise TypeError(f"sbi.FlowEstimator: net must be a flowkernels.flows.Flow, got {type(net).__name__}")
        features = math.prod(input_shape)
        if net.event_shape != (features,):
            raise ValueError(
                f"sbi.FlowEstimator: net must be of the {features} features of input_shape {list(input_shape)}, got "
                f"one of {list(net.event_shape)}"
            )
        super().__init__(net, torch.Size(input_shape), torch.Size(condition_shape))

    @property
    def embedding_net(self) -> nn.Module:
        """What the condition goes through before the flow sees it."""
        return nn.Identity() if self.net.embedding is None else self.net.embedding

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Of ``input [S, B, *input_shape]`` or ``[B, *input_shape]`` → ``[S, B]``, in nats.

        ``condition [B, *condition_shape]``, or with S in front; batch dims broadcast.
        ``[B]`` is embedded once, not S times.
        """
        x, condition = self._aligned(input, condition)
        return self.net.log_prob(x.flatten(2), condition)

    def loss(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """The negative log-probability of ``input [B, *input_shape]`` → ``[B]``, in nats."""
        return -self.log_prob(input.unsqueeze(0), condition)[0]

    def sample(self, sample_shape: Sequence[int], condition: Tensor, **kwargs: Any) -> Tensor:
        """Draws ``[*sample_shape, B, *input_shape]`` for ``condition [B, *condition_shape]``, without gradients."""
        self._check_condition_shape(condition)
        return self.net.sample(torch.Size(sample_shape), condition).unflatten(-1, self.input_shape)

    def sample_and_log_prob(
        self, sample_shape: Sequence[int], condition: Tensor, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Draws and their log-probabilities ``[*sample_shape, B]`` in one pass; gradients flow through both."""
        self._check_condition_shape(condition)
        x, log_prob = self.net.sample_and_log_prob(torch.Size(sample_shape), condition)
        return x.unflatten(-1, self.input_shape), log_prob

    def inverse_transform(self, input: Tensor, condition: Tensor) -> Tensor:
        """The latent ``[..., D]`` of ``input [..., *input_shape]``; leading dims of both broadcast."""
        self._check_input_shape(input)
        self._check_condition_shape(condition)
        x = input.flatten(input.dim() - len(self.input_shape))
        leads = x.shape[:-1], condition.shape[: condition.dim() - len(self.condition_shape)]
        return self.net.encode(x.expand(*torch.broadcast_shapes(*leads), x.shape[-1]), condition)

    def _aligned(self, input: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """``input [S, B, ...]``, and a condition whose leading dims broadcast to ``[S, B]``."""
        self._check_input_shape(input)
        self._check_condition_shape(condition)
        x, wide, batch = self._broadcast_and_align(input, condition)
        if condition.dim() > len(self.condition_shape) + 1:
            return x, wide
        return x, condition.expand(batch, *self.condition_shape)


class _Condition(nn.Module):
    """Standardises conditions ``[..., *shape]``, embeds them and makes each a vector."""

    def __init__(self, shape: Sequence[int], standardize: Transform | None, net: nn.Module | None) -> None:
        super().__init__()
        self.dims, self.standardize, self.net = len(shape), standardize, net

    def forward(self, condition: Tensor) -> Tensor:
        lead = condition.shape[: condition.dim() - self.dims]
        if self.standardize is not None:
            condition = self.standardize(condition.flatten(len(lead)))[0].view(condition.shape)
        if self.net is None:
            return condition.flatten(len(lead))
        # An embedding takes one batch dim, as sbi's own do.
        embedded = self.net(condition.reshape(-1, *condition.shape[len(lead) :]))
        return embedded.reshape(*lead, math.prod(embedded.shape[1:]))


@dataclasses.dataclass(frozen=True)
class FlowEstimatorBuilder:
    """What `estimator` returns: called with theta and x of the simulations, it builds a `FlowEstimator` for them.

    The data say shapes, dtype and what is standardised; nothing else is learned from them. It can be pickled.

    Args:
        flow, target, embedding_net, z_score_theta, z_score_x: as given to `estimator`.
        settings: those of the flow.

    Raises:
        TypeError: theta or x is not a tensor, or a function of your own returns no flow.
        ValueError: theta and x are not as many rows.

    Example:
        >>> import torch, flowkernels.sbi
        >>> builder = flowkernels.sbi.estimator("maf", hidden=(16,), transforms=2)
        >>> q = builder(torch.randn(50, 2), torch.randn(50, 3, 4))
        >>> q.input_shape, q.condition_shape, q.loss(torch.zeros(5, 2), torch.zeros(5, 3, 4)).shape
        (torch.Size([2]), torch.Size([3, 4]), torch.Size([5]))
    """

    flow: str | MakeFlow
    target: str
    embedding_net: nn.Module | None
    z_score_theta: str
    z_score_x: str
    settings: dict[str, Any]

    def __call__(self, theta: Tensor, x: Tensor) -> FlowEstimator:
        for name, value in (("theta", theta), ("x", x)):
            check_tensor("sbi.estimator", name, value)
            if value.dim() < 2 or not value.is_floating_point():
                given = f"{list(value.shape)}, {value.dtype}"
                raise ValueError(f"sbi.estimator: {name} must be [N, ...] of a floating-point dtype, got {given}")
        if len(theta) != len(x):
            raise ValueError(f"sbi.estimator: theta and x must be of as many rows, got {len(theta)} and {len(x)}")
        scores = self.z_score_theta, self.z_score_x
        if self.target == "likelihood":
            theta, x, scores = x, theta, scores[::-1]
        first, condition = (_standardizing(data, score) for data, score in zip((theta, x), scores, strict=True))
        embedding = _Condition(x.shape[1:], condition, self.embedding_net).to(x.device, x.dtype)
        with torch.no_grad():
            training, _ = embedding.training, embedding.eval()  # batch norm cannot see one row in training
            C = embedding(x[:1]).shape[-1]
            embedding.train(training)
        flow = self._flow(theta[0].numel(), C).to(theta.device, theta.dtype)
        if flow.embedding is not None:
            raise ValueError(
                f"sbi.estimator: the flow must come without an embedding, which is embedding_net, "
                f"got {flow.embedding!r:.60}"
            )
        flow.embedding = embedding
        if first is not None:  # the user's units outside, unit size inside
            flow.transform = Composite([first, *_parts(flow.transform)])
        return FlowEstimator(flow, theta.shape[1:], x.shape[1:])

    def _flow(self, features: int, context: int) -> Flow:
        if isinstance(self.flow, str):
            return FLOWS[self.flow](features, context, **self.settings)
        made = self.flow(features, context, **self.settings)
        if not isinstance(made, Flow):
            raise TypeError(f"sbi.estimator: flow must make a flowkernels.flows.Flow, got {type(made).__name__}")
        return made


def estimator(
    flow: str | MakeFlow = "nsf",
    *,
    target: str = "posterior",
    hidden: int | Sequence[int] = (50, 50),
    transforms: int = 5,
    embedding_net: nn.Module | None = None,
    z_score_theta: str | None = "independent",
    z_score_x: str | None = "independent",
    **settings: Any,
) -> FlowEstimatorBuilder:
    """A builder of native flows for sbi's ``NPE(prior, density_estimator=...)``, or NLE's with ``target="likelihood"``.

    The simulations that the trainer hands over say shapes and dtype. What is modelled is standardised by the first
    layer of the flow, whose ladj is counted, so densities are in the user's units; what it is conditioned on is
    standardised before ``embedding_net``. Widths and numbers of layers are sbi's defaults.

    Args:
        flow: ``"nsf"``, a coupling flow of splines (``autoregressive=True``: sbi's ``maf_rqs``), ``"maf"``, or a
            function ``(features, context) -> Flow`` of your own, which then must not be given an embedding.
        target: ``"posterior"``: theta given x, for NPE; ``"likelihood"``: x given theta, for NLE.
        hidden, transforms: of the flow; not handed to a function of your own.
        embedding_net: a module ``[B, *shape] -> [B, C]`` for the condition.
        z_score_theta, z_score_x: ``"independent"``: each number has a mean and a deviation; ``"structured"``: all of
            them share both, as for a series or an image; ``"none"`` or None: as they are.
        settings: further arguments of `flowkernels.flows.NSF` or `flowkernels.flows.MAF`, or of your function.

    Raises:
        TypeError: a part is of another kind; an argument that the flow does not have (when it is built).
        ValueError: ``flow``, ``target`` or a z-score is unknown; ``hidden`` or ``transforms`` is less than 1.
        ImportError: at the import of this module, where sbi is not installed.

    Reference:
        Papamakarios, Murray: Fast ε-free Inference of Simulation Models with Bayesian Conditional Density Estimation,
        NeurIPS 2016, arXiv:1605.06376; Greenberg, Nonnenmacher, Macke: Automatic Posterior Transformation for
        Likelihood-Free Inference, ICML 2019, arXiv:1905.07488.

    Example:
        >>> import torch, flowkernels.sbi
        >>> builder = flowkernels.sbi.estimator("nsf", hidden=(16, 16), transforms=2, bins=5)
        >>> theta, x = torch.randn(100, 2), 1000 + torch.randn(100, 3)
        >>> q = builder(theta, x)  # NPE(prior, density_estimator=builder) does so with its simulations
        >>> q.sample((20,), x[:4]).shape
        torch.Size([20, 4, 2])
    """
    where = "sbi.estimator"
    if flow not in FLOWS if isinstance(flow, str) else isinstance(flow, nn.Module) or not callable(flow):
        raise ValueError(f'{where}: flow must be "maf", "nsf" or a function that makes a flow, got {flow!r:.60}')
    if target not in ("posterior", "likelihood"):
        raise ValueError(f'{where}: target must be "posterior" or "likelihood", got {target!r:.60}')
    if embedding_net is not None and not isinstance(embedding_net, nn.Module):
        raise TypeError(f"{where}: embedding_net must be a torch.nn.Module or None, got {embedding_net!r:.60}")
    scores = {}
    for name, value in (("z_score_theta", z_score_theta), ("z_score_x", z_score_x)):
        scores[name] = "none" if value is None else value
        if scores[name] not in Z_SCORES:
            listed = ", ".join(f'"{score}"' for score in Z_SCORES)
            raise ValueError(f"{where}: {name} must be one of {listed} or None, got {value!r:.60}")
    sizes, n = widths(where, "hidden", hidden, layers=1), count(where, "transforms", transforms)
    if isinstance(flow, str):
        settings = {"hidden": sizes, "transforms": n, **settings}
    return FlowEstimatorBuilder(flow, target, embedding_net, settings=settings, **scores)


def _standardizing(data: Tensor, score: str) -> Standardize | None:
    """Of the numbers of each row, flattened."""
    return None if score == "none" else Standardize.from_data(data.flatten(1), shared=score == "structured")


def _parts(transform: Transform) -> list[Transform]:
    return list(transform) if type(transform) is Composite else [transform]
