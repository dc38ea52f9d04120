"""Linear map by its LU factors: rows of features, or every pixel of an image (the invertible 1×1 convolution)."""

from __future__ import annotations

import torch
from torch import Tensor

from flowkernels import _native, backends
from flowkernels.ops import _channels
from flowkernels.ops._channels import ChannelSpec
from flowkernels.ops._checks import check_device, check_shape
from flowkernels.ops._routing import Op, in_transform

from . import native, reference, triton

__all__ = ["lu_linear"]

_NAME = "ops.lu_linear"


def _sample() -> tuple[ChannelSpec, tuple[Tensor, ...]]:
    square, vector = torch.zeros(1, 1), torch.zeros(1)
    return ChannelSpec(-1, False), (square, square, square, vector, vector, torch.zeros(1).long(), vector)


op = Op(
    "lu_linear",
    spec_type=ChannelSpec,
    reference=reference.fwd,
    table={"cpu": native.cpu, "cuda": native.cuda, "triton": triton, "reference": reference},
    inputs=("x", "lower", "upper", "log_s", "sign_s", "permutation", "bias"),
    n_outputs=2,
    fake=lambda spec, *tensors: _channels.outputs(tensors[0], spec.channel_dim, reference.numbers(tensors)),
    sample=_sample,
)


def lu_linear(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    log_s: Tensor,
    sign_s: Tensor,
    permutation: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    channel_dim: int = -1,
    inverse: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Invertible linear map of the channels, the same for every row or pixel.

    .. math:: y = W x + b, \qquad W = P\,L\,(U + \mathrm{diag}(\mathrm{sign\_s} \cdot e^{\mathrm{log\_s}}))

    with L unit lower and U strictly upper triangular, :math:`(P v)_i = v_{\mathrm{permutation}_i}`, and

    .. math:: \mathrm{ladj} = \mathrm{pixels} \cdot \sum_C (\mathrm{log\_s} + \log |\mathrm{sign\_s}|)

    in nats; inverse :math:`x = W^{-1}(y - b)` by two triangular solves. No determinant and no inverse is formed.

    Args:
        x: ``[..., C]``, or ``[N, C, ...]`` with ``channel_dim=1``; float32, float64, bfloat16 or float16. Images lie as
            they are, channels first or ``torch.channels_last``: nothing is copied, and y lies as x does.
        lower: ``[C, C]``, of which the strictly lower triangle is read. Gradients of the rest are exactly zero.
        upper: ``[C, C]``, of which the strictly upper triangle is read.
        log_s: ``[C]``, logarithms of the diagonal's absolute values.
        sign_s: ``[C]``, its signs, 1 or -1. Any other value is a factor of the diagonal like another, that ``ladj`` and
            gradients contain: of a 0, W has no inverse and ``ladj`` is -inf.
        permutation: int64 ``[C]``, each of 0 to C-1 once; None: P is the identity. On a GPU, and inside compilers and
            torch.func, nobody looks at the values first: of one that is no permutation all of ``y`` and of the
            gradients is NaN.
        bias: ``[C]`` or None.
        channel_dim: -1 for features, 1 for images with any number of trailing dims.
        inverse: evaluate y → x; ``ladj`` is then that of the inverse.
        backend: run on this one or raise; default: the fastest that can.

    Returns:
        ``y`` of the shape of ``x`` in the promoted dtype of the inputs, and ``ladj``, ``[...]`` for features (one pixel
        each), ``[N]`` for images, in float32 (float64 for float64).

    Raises:
        TypeError: an input is not a floating-point tensor, or ``permutation`` not int64.
        ValueError: a shape or setting breaks its contract, or ``permutation`` is not one.

    Reference:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1×1 Convolutions, NeurIPS 2018, arXiv:1807.03039.

    Example:
        >>> import torch
        >>> from flowkernels import ops
        >>> x, lower, upper = torch.randn(5, 3, 4, 4), torch.randn(3, 3), torch.randn(3, 3)
        >>> log_s, sign_s = torch.tensor([0.5, 0.0, -1.0]), torch.tensor([1.0, -1.0, 1.0])
        >>> y, ladj = ops.lu_linear(x, lower, upper, log_s, sign_s, channel_dim=1)
        >>> back, neg = ops.lu_linear(y, lower, upper, log_s, sign_s, channel_dim=1, inverse=True)
        >>> torch.allclose(back, x, atol=1e-4), ladj[0].item(), neg[0].item()
        (True, -8.0, 8.0)
    """
    spec = _channels.spec_of(_NAME, x, channel_dim, inverse)
    C = x.shape[channel_dim]
    for name, t, shape in (("lower", lower, (C, C)), ("upper", upper, (C, C)), ("log_s", log_s, (C,)),
                           ("sign_s", sign_s, (C,))):  # fmt: skip
        _channels.check_parameter(_NAME, name, t, shape, x)
    # The op has one signature, also for compilers: what is absent is empty.
    if permutation is None:
        permutation = x.new_empty(0, dtype=torch.int64)
    else:
        _check_permutation(permutation, C, x)
        _check_values(permutation, x, backend)
    if bias is None:
        bias = log_s.new_empty(0)
    else:
        _channels.check_parameter(_NAME, "bias", bias, (C,), x)
    return op(spec, backend, x, lower, upper, log_s, sign_s, permutation, bias)  # type: ignore[return-value]


def _check_permutation(permutation: object, C: int, x: Tensor) -> None:
    if not isinstance(permutation, Tensor):
        raise TypeError(f"{_NAME}: permutation must be a tensor or None, got {type(permutation).__name__}")
    if permutation.dtype is not torch.int64:
        raise TypeError(f"{_NAME}: permutation must be int64, got {permutation.dtype}")
    if permutation.layout is not torch.strided:
        raise TypeError(f"{_NAME}: permutation must be a dense tensor, got layout {permutation.layout}")
    check_device(_NAME, "permutation", permutation, x)
    check_shape(_NAME, "permutation", permutation, (C,))


def _check_values(permutation: Tensor, x: Tensor, backend: str | None) -> None:
    """Raises where the values of a permutation on a CPU are none, unless the CPU's kernel is to do that."""
    name = backends.default() if backend is None else backend
    if (name in ("auto", "cpu") and _native.C is not None and x.numel() > 0) or not permutation.is_cpu:
        return
    if in_transform((x, permutation)):
        return
    if _native.C is not None:
        _native.C.check_permutation(permutation)
    elif permutation.sort().values.tolist() != list(range(permutation.shape[0])):
        raise ValueError(f"{_NAME}: permutation must hold each of 0 to C-1 once, got {permutation.tolist()}")
