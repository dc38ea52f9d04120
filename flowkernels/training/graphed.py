"""A training step as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from flowkernels._arguments import positive

_WHERE = "graphed"
# Taken one operation at a time before the graph is made: kernels are compiled and loaded, activations are normalised by
# the first batch, the optimizer makes its state. Three, as torch recommends.
_EAGER_STEPS = 3

Loss = Callable[..., Tensor]


class GraphedStep:
    """A step of training that is called with a batch and returns its loss; made by `graphed`.

    Attributes:
        reason: why steps are not taken by a graph, or None where they are.
    """

    def __init__(
        self, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, example: tuple[Tensor, ...], loss: Loss,
        clip: float | None,
    ) -> None:  # fmt: skip
        self._parameters, self._optimizer, self._loss, self._clip = parameters, optimizer, loss, clip
        self._device = parameters[0].device
        self._like = [(t.shape, t.dtype) for t in example]
        self._machine = _Cuda(self._device)
        self._eager_left = _EAGER_STEPS
        self._replay: Callable[[], None] | None = None
        self._given: list[Tensor] = []
        self._found = torch.empty(0)
        self.reason = _why_not(parameters, optimizer)
        self._rates: list[Any] = []
        self._settings: list[dict[str, Any]] = []  # of the optimizer, as they are in the graph
        if self.reason is None:
            self._rates = [self._own_rate(group) for group in optimizer.param_groups]

    def __call__(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Takes a step; the loss before it, a scalar on the device."""
        given = [t for t in (x, context) if t is not None]
        if self.reason is not None or [(t.shape, t.dtype) for t in given] != self._like:
            return self._step(*(t.to(self._device) for t in given))
        if self._eager_left:
            self._eager_left -= 1
            return self._machine.apart(lambda: self._step(*(t.to(self._device) for t in given)))
        self._take_rates()
        if self._replay is not None and self._settings != self._numbers():
            self._replay = None  # momentum, betas, …, which cycles change too: numbers are part of the graph
        if self._replay is None and not self._capture():
            return self(x, context)
        assert self._replay is not None
        for to, t in zip(self._given, given, strict=True):
            to.copy_(t, non_blocking=True)
        self._replay()
        # Nothing of Python saw that the parameters changed, and what is kept for one version of them must not be taken.
        increment_version(self._parameters)
        return self._found.clone()

    def _step(self, *given: Tensor) -> Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss(*given)
        loss.backward()
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._optimizer.step()
        return loss.detach()

    def _capture(self) -> bool:
        self._settings = self._numbers()
        self._given = [torch.zeros(shape, dtype=dtype, device=self._device) for shape, dtype in self._like]
        self._optimizer.zero_grad(set_to_none=True)
        try:
            self._replay, self._found = self._machine.captured(lambda: self._step(*self._given))
        except RuntimeError as e:  # nothing has run: the parameters are as they were
            self.reason = f"the step cannot be captured: {str(e).strip().partition(chr(10))[0]}"
            return False
        return True

    def _numbers(self) -> list[dict[str, Any]]:
        """The optimizer's settings but for tensors, which a graph reads where they lie."""
        settings = ({k: v for k, v in group.items() if k != "params"} for group in self._optimizer.param_groups)
        return [{k: v for k, v in group.items() if not isinstance(v, Tensor)} for group in settings]

    # ---- learning rates: as numbers they would be part of the graph ----

    def _own_rate(self, group: dict[str, Any]) -> Any:
        if group.get("capturable") and not isinstance(group["lr"], Tensor):
            group["lr"] = torch.tensor(float(group["lr"]), device=self._device)
        return group["lr"]

    def _take_rates(self) -> None:
        """Schedulers fill the tensor; who writes a number into the group means the same."""
        for i, group in enumerate(self._optimizer.param_groups):
            rate, own = group["lr"], self._rates[i]
            if rate is own:
                continue
            if isinstance(own, Tensor):
                own.fill_(float(rate))
                group["lr"] = own


class _Cuda:
    """The streams and graphs of a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def apart(self, run: Callable[[], Tensor]) -> Tensor:
        """What it returns, run beside the current stream, as what comes before a capture must."""
        with torch.cuda.device(self.device):
            here, there = torch.cuda.current_stream(), torch.cuda.Stream()
            there.wait_stream(here)
            with torch.cuda.stream(there):
                found = run()
            here.wait_stream(there)
            found.record_stream(here)
            return found

    def captured(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """What runs it again, and where each run leaves what it returns. Nothing runs here."""
        with torch.cuda.device(self.device):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found = run()
        return graph.replay, found


def graphed(
    flow: nn.Module,
    optimizer: torch.optim.Optimizer,
    example: Tensor | tuple[Tensor, Tensor],
    *,
    loss: Loss | None = None,
    clip: float | None = None,
) -> GraphedStep:
    r"""Makes a training step of a flow one CUDA graph: forward pass, backward pass and optimizer in one launch.

    .. math:: \theta \leftarrow \mathrm{step}\Big(\theta, \nabla_\theta \frac1B \sum_b -\log p_\theta(x_b \mid c_b)\Big)

    A step of a small flow is some hundreds of launches, and a GPU waits for Python between them; a graph has the same
    kernels and one launch. The first three steps are taken one operation at a time, then the graph is made; losses and
    weights are those of the loop by hand, up to the rounding of one learning rate kept as a tensor.

    What is part of the graph is what PyTorch does in a step; what Python does besides (printing, drawing masks anew) is
    done once. A batch of another shape than ``example``, as the last of an epoch often is, is a step without the graph.
    Without a GPU, with an optimizer that cannot be captured, or where a step cannot (it reads a number of the GPU's,
    say) all steps are taken so, and ``reason`` says why.

    Args:
        flow: a `flowkernels.flows.Flow`, or a model of another library, accelerated or not.
        optimizer: of its parameters; Adam and its kin need ``capturable=True``, and are fastest with ``fused=True``.
            Their learning rates become tensors, which ``torch.optim.lr_scheduler`` fills. Every other number of theirs
            is part of the graph, which is made anew when one changes (as OneCycleLR does in every step).
        example: a batch ``x [B, ...]``, or ``(x, context)``; only shapes and dtypes are read.
        loss: from a batch (``x`` or ``x, context``) to a scalar in nats; ``-flow.log_prob(...).mean()`` by default.
        clip: the largest norm of the gradient, to which it is scaled down; None: any.

    Returns:
        A function of a batch, ``step(x)`` or ``step(x, context)``, on any device, that returns the loss before the step
        as a scalar on the flow's device; ``step.reason``.

    Raises:
        TypeError: ``flow`` is no module, ``optimizer`` is none or asks for a function, ``example`` holds no tensors,
            ``loss`` is no function.
        ValueError: no parameter of the flow requires gradients, or ``clip`` is no positive number.

    Reference:
        Nguyen et al.: Accelerating PyTorch with CUDA Graphs, 2021, pytorch.org.

    Example:
        >>> import torch
        >>> from flowkernels import graphed
        >>> from flowkernels.flows import MAF
        >>> flow, x = MAF(2, transforms=1, hidden=(8,)), torch.randn(64, 2)
        >>> step = graphed(flow, torch.optim.Adam(flow.parameters(), 1e-3, capturable=x.is_cuda), x)
        >>> losses = [step(x) for _ in range(5)]
        >>> bool(losses[4] < losses[0]), step.reason
        (True, 'a parameter is on cpu')
    """
    if not isinstance(flow, nn.Module):
        raise TypeError(f"{_WHERE}: flow must be a torch.nn.Module, got {type(flow).__name__}")
    if not isinstance(optimizer, torch.optim.Optimizer) or isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError(
            f"{_WHERE}: optimizer must be a torch.optim.Optimizer whose step needs no function, "
            f"got {type(optimizer).__name__}"
        )
    batch = example if isinstance(example, tuple) else (example,)
    if not 1 <= len(batch) <= 2 or not all(isinstance(t, Tensor) for t in batch):
        said = ", ".join(type(t).__name__ for t in batch)
        raise TypeError(f"{_WHERE}: example must be a tensor, or a tuple of x and context, got {said or 'nothing'}")
    parameters = [p for p in flow.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"{_WHERE}: flow must have parameters that require gradients, got none")
    clip = None if clip is None else positive(_WHERE, "clip", clip)
    if loss is not None and not callable(loss):
        raise TypeError(f"{_WHERE}: loss must be a function of a batch, got {loss!r:.60}")
    return GraphedStep(parameters, optimizer, batch, _negative_log_prob(flow) if loss is None else loss, clip)


def _negative_log_prob(flow: nn.Module) -> Loss:
    def loss(*batch: Tensor) -> Tensor:
        log_prob: Any = flow.log_prob
        return -log_prob(*batch).mean()

    return loss


def _why_not(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> str | None:
    for p in parameters:
        if not p.is_cuda:
            return f"a parameter is on {p.device}"
        if p.device != parameters[0].device:
            return f"parameters are on {parameters[0].device} and {p.device}"
    if any(not group.get("capturable", True) for group in optimizer.param_groups):
        return f"{type(optimizer).__name__} was made without capturable=True"
    return None
