"""What a first call does besides its work, done before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowkernels._arguments import check_tensor

_WHERE = "warm_up"


def warm_up(flow: nn.Module, x: Tensor, context: Tensor | None = None) -> None:
    r"""Calls a flow once, so that later calls find its kernels compiled and loaded.

    :math:`\log p(x \mid c)`, its gradients and a sample are computed and thrown away. The first call of an op loads
    CUDA's kernels, and compiles and tunes Triton's, which takes seconds and is not allowed while a CUDA graph is
    captured: call this before a capture, or before a first request is served. The flow is called in evaluation mode and
    is as before afterwards, and so are gradients and torch's generators. What is tuned for a shape (Triton's products)
    is tuned for that of ``x``.

    Args:
        flow: a `flowkernels.flows.Flow`, or a model of another library with ``log_prob(x)`` or ``log_prob(x, context)``
            and, if it has it, ``sample``.
        x: a batch ``[B, ...]`` of data like those to come; only read.
        context: ``[B, C]`` beside it.

    Raises:
        TypeError: ``flow`` is no module with ``log_prob``, or ``x`` no tensor.

    Example:
        >>> import torch, flowkernels
        >>> flow = flowkernels.flows.NSF(2, transforms=1, bins=4, hidden=(8,))
        >>> flowkernels.warm_up(flow, torch.randn(16, 2))
    """
    if not isinstance(flow, nn.Module) or not callable(getattr(flow, "log_prob", None)):
        raise TypeError(f"{_WHERE}: flow must be a torch.nn.Module with log_prob, got {type(flow).__name__}")
    check_tensor(_WHERE, "x", x)
    modes = {module: module.training for module in flow.modules()}
    batch = (x,) if context is None else (x, context)
    parameters = [p for p in flow.parameters() if p.requires_grad]
    of_flow: Any = flow
    flow.eval()
    try:
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            with torch.no_grad():
                of_flow.log_prob(*batch)
                if callable(getattr(flow, "sample", None)):
                    of_flow.sample(1, *batch[1:])
            with torch.enable_grad():
                total = of_flow.log_prob(*batch).sum()
                if parameters and total.requires_grad:
                    torch.autograd.grad(total, parameters, allow_unused=True)
    finally:
        for module, training in modes.items():
            module.training = training
