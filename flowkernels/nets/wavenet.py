"""WaveNet: gated, dilated convolutions of signals, all samples at once or one after another."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkernels._arguments import check_tensor, count, event_dims, flag
from flowkernels.ops._checks import expands

from .common import check_context, check_dtypes
from .reading import hooked, hooked_globally

_NAME = "nets.WaveNet"
_MOST_DOUBLINGS = 16  # of a dilation: room for zeros in front of a signal is made as long


class WaveNet(nn.Module):
    r"""Gated convolutions of signals with growing dilations, residual and skip paths; the last one starts at zero.

    With :math:`h_0 = W_\mathrm{in} * x`, layer i of n, of dilation :math:`d_i = 2^{i \bmod \mathrm{cycle}}`,

    .. math:: [a, b] = W_i *_{d_i} h_i + V_i * c, \quad u = \tanh(a) \odot \sigma(b), \quad
        h_{i+1} = h_i + R_i * u, \quad s_{i+1} = s_i + S_i * u

    and the output is :math:`W * s_n`, with biases; :math:`W_\mathrm{in}`, V, R, S and W are of one tap. The untrained
    net returns zero whatever its input. ``forward(x, context=None)``: signals ``x [..., in_channels, L]`` →
    ``[..., out_channels, L]``, in the dtype of the weights. Every convolution sees zeros where the signal has ended;
    with ``causal`` the output at t is a function of the samples up to t. ``context [..., C]`` broadcasts to the leading
    dims of x, and adds the same to every sample (a speaker); with ``context_dims=2`` it is a signal at the rate of x
    (a mel spectrogram), ``[..., C, L]``, or that as a row ``[..., L * C]``, sample after sample, as `Upsampler` has it.

    The papers' layers have weight normalisation besides. WaveGlow's nets are ``hidden=512, skip=256, layers=8``,
    FloWaveNet's ``hidden=256, layers=2, head=True``; WaveNet's are causal, with ``kernel_size=2, cycle=10, head=True``.

    Args:
        in_channels, out_channels: of x and of the output.
        hidden: channels of the residual path, and of each gate.
        layers: n.
        context: C, channels of the context, 0 for none.
        context_dims: 1 for features, 2 for signals.
        skip: channels of the skip path; 0: as many as ``hidden``.
        kernel_size: taps of the dilated convolutions; odd, unless they are causal.
        cycle: after how many layers the dilation is 1 again, at most 17; 0: it doubles to the end.
        causal: look back alone.
        head: a ReLU, a convolution of one tap and a ReLU come before the last one, as in WaveNet and FloWaveNet.

    Raises:
        ValueError: ``x`` does not have ``in_channels``; the context is missing, not wanted, or of another shape; a
            setting is none of these.
        TypeError: ``x`` or the context is not in the dtype of the weights, outside of autocast.

    Reference:
        van den Oord et al.: WaveNet: A Generative Model for Raw Audio, 2016, arXiv:1609.03499; Prenger, Valle,
        Catanzaro: WaveGlow: A Flow-based Generative Network for Speech Synthesis, ICASSP 2019, arXiv:1811.00002.

    Example:
        >>> import torch
        >>> from flowkernels.nets import WaveNet
        >>> net = WaveNet(4, 8, hidden=16, layers=3, context=5, context_dims=2)
        >>> net(torch.randn(7, 4, 32), torch.randn(7, 5, 32)).shape
        torch.Size([7, 8, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int = 64,
        layers: int = 8,
        context: int = 0,
        context_dims: int = 1,
        *,
        skip: int = 0,
        kernel_size: int = 3,
        cycle: int = 0,
        causal: bool = False,
        head: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "hidden": hidden, "layers": layers}
        for name, value in {**sizes, "kernel_size": kernel_size}.items():
            count(_NAME, name, value)
        for name, value in {"context": context, "skip": skip, "cycle": cycle}.items():
            count(_NAME, name, value, least=0)
        event_dims(_NAME, "context_dims", context_dims, (1, 2))
        flag(_NAME, "head", head)
        if not flag(_NAME, "causal", causal) and kernel_size % 2 == 0:
            raise ValueError(f"{_NAME}: kernel_size must be odd where causal is False, got {kernel_size}")
        doublings = min(cycle or layers, layers) - 1
        if doublings > _MOST_DOUBLINGS:
            most = _MOST_DOUBLINGS + 1
            raise ValueError(
                f"{_NAME}: cycle must be 1 to {most} where layers are more, got {cycle} for {layers} layers"
            )
        self.in_channels, self.out_channels, self.causal, self.cycle = in_channels, out_channels, causal, cycle
        self.context_features, self.context_dims = context, context_dims
        skip = skip or hidden
        # A part for every layer: V of all of them is one product.
        self.context_layer = nn.Conv1d(context, 2 * hidden * layers, 1, bias=False) if context else None
        self.initial_layer = nn.Conv1d(in_channels, hidden, 1)
        dilations = [2 ** (i % (cycle or layers)) for i in range(layers)]
        pads = [0 if causal else d * (kernel_size // 2) for d in dilations]
        self.gate_layers = nn.ModuleList(
            nn.Conv1d(hidden, 2 * hidden, kernel_size, dilation=d, padding=p)
            for d, p in zip(dilations, pads, strict=True)
        )
        # Residual and skip side by side; nothing comes behind the last layer's residual.
        outs = [hidden] * (layers - 1) + [0]
        self.mix_layers = nn.ModuleList(nn.Conv1d(hidden, out + skip, 1) for out in outs)
        self.head_layer = nn.Conv1d(skip, skip, 1) if head else None
        self.final_layer = nn.Conv1d(skip, out_channels, 1)
        nn.init.zeros_(self.final_layer.weight)
        nn.init.zeros_(self.final_layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self._check(x, context)
        adds = self._adds(context, x.shape[:-2], x.shape[-1])
        parts = [None] * len(self.gate_layers) if adds is None else adds.chunk(len(self.gate_layers), 1)
        h, total = self.initial_layer(x.reshape(-1, *x.shape[-2:])), None
        for gate, mix, add in zip(self.gate_layers, self.mix_layers, parts, strict=True):
            g = gate(F.pad(h, (_reach(gate), 0)) if self.causal else h)
            h, total = _gated(g if add is None else g + add, mix, h, total, self.final_layer.in_channels)
        y = _ended(total, self.head_layer, self.final_layer)
        return y.reshape(*x.shape[:-2], *y.shape[1:])

    def steps(self, like: Tensor, context: Tensor | None = None) -> Callable[[Tensor], Tensor] | None:
        """The causal net as a function of one sample, to be called with those at 0, 1, 2, ... in turn.

        ``like [..., in_channels, L]`` is of the shape of the whole signal; the function takes ``[..., in_channels]``
        and returns ``[..., out_channels]``, what ``forward`` has at that place. Each layer keeps as many of its inputs
        as it will see again, and is applied to one sample a step. Gradients flow through all steps.

        Returns:
            The function; None where ``forward`` must be called, because of hooks, layers that somebody put in place of
            others, or a compiler.

        Raises:
            ValueError: the net is not causal; or as ``forward``.

        Example:
            >>> import torch
            >>> from flowkernels.nets import WaveNet
            >>> net, x = WaveNet(1, 2, hidden=8, layers=2, kernel_size=2, causal=True), torch.randn(5, 1, 9)
            >>> step = net.steps(x)
            >>> torch.allclose(torch.stack([step(x[..., t]) for t in range(9)], -1), net(x))
            True
        """
        if not self.causal:
            raise ValueError(f"{_NAME}: causal must be True for steps, got False")
        self._check(like, context)
        if torch.compiler.is_compiling() or hooked_globally() or type(self).forward is not WaveNet.forward:
            return None
        inner = [m for m in self.modules() if m is not self]
        if hooked(self) or any(hooked(m) or type(m) not in (nn.Conv1d, nn.ModuleList) for m in inner):
            return None
        return _Steps(self, self._adds(context, like.shape[:-2], like.shape[-1]))

    @torch.no_grad()
    def start_at(self, values: Tensor) -> None:
        """Makes the untrained net return ``values [out_channels]`` at every sample."""
        self.final_layer.bias.copy_(values)  # type: ignore[union-attr]

    def _check(self, x: Tensor, context: Tensor | None) -> None:
        check_tensor(_NAME, "x", x)
        check_dtypes(_NAME, self.final_layer, self.final_layer._parameters.get("bias"), x, context)
        if x.dim() < 2 or x.shape[-2] != self.in_channels or x.shape[-1] < 1:
            raise ValueError(f"{_NAME}: x must be [..., {self.in_channels}, L] with samples, got {list(x.shape)}")

    def _adds(self, context: Tensor | None, lead: Sequence[int], length: int) -> Tensor | None:
        """What the context adds to the gates of all layers, ``[N, 2 * hidden * layers, L]``, or 1 in place of L."""
        C = self.context_features
        if context is None or self.context_layer is None or self.context_dims == 1:
            check_context(_NAME, context, C, lead)
            if context is None or self.context_layer is None:
                return None
            seen = context.unsqueeze(-1)
        elif context.shape[-2:] == (C, length) and expands(context.shape[:-2], lead):
            seen = context
        elif context.shape[-1:] == (length * C,) and expands(context.shape[:-1], lead):
            seen = context.unflatten(-1, (length, C)).transpose(-1, -2)
        else:
            expected = f"{[*lead, C, length]}, or as rows to {[*lead, length * C]}"
            raise ValueError(f"{_NAME}: context must broadcast to {expected}, got {list(context.shape)}")
        own = seen.shape[:-2]
        adds = self.context_layer(seen.reshape(-1, *seen.shape[-2:]))  # once per context, however many signals share it
        if own == tuple(lead):
            return adds
        return adds.reshape(*own, *adds.shape[1:]).expand(*lead, *adds.shape[1:]).reshape(-1, *adds.shape[1:])


# ---- a layer, of whole signals [N, C, L] or of single samples [N, C] ----


def _gated(
    g: Tensor, mix: Callable[[Tensor], Tensor], h: Tensor, total: Tensor | None, skip: int
) -> tuple[Tensor, Tensor]:
    """What a layer makes of its gates: the next residual path, and the sum of the skips."""
    a, b = g.chunk(2, 1)
    both = mix(torch.tanh(a) * torch.sigmoid(b))
    residual = both.shape[1] - skip  # 0 in the last layer
    more = both.narrow(1, residual, skip)
    return h + both.narrow(1, 0, residual) if residual else h, more if total is None else total + more


def _ended(total: Any, head: Callable[[Tensor], Tensor] | None, final: Callable[[Tensor], Tensor]) -> Tensor:
    return final(total if head is None else F.relu(head(F.relu(total))))


# ---- one sample after another ----


def _reach(gate: Any) -> int:
    """How many samples a causal layer looks back."""
    return gate.dilation[0] * (gate.kernel_size[0] - 1)


def _on_samples(conv: Any) -> Callable[[Tensor], Tensor]:
    """A convolution where its taps are side by side, ``[N, taps * C]``, the oldest first."""
    weight = conv.weight.transpose(1, 2).reshape(conv.weight.shape[0], -1)
    return functools.partial(F.linear, weight=weight, bias=conv.bias)


class _Ring:
    """The inputs that a layer will see again: the place of the oldest is that of the next."""

    def __init__(self, gate: Any) -> None:
        self.dilation = gate.dilation[0]
        self.kept: list[Any] = [None] * _reach(gate)

    def seen(self, h: Tensor, t: int) -> Tensor:
        """What the taps see at t: h, behind what lies before it."""
        size = len(self.kept)
        if t == 0:
            self.kept = [torch.zeros_like(h)] * size
        before = [self.kept[(t + past) % size] for past in range(0, size, self.dilation)]
        if size:
            self.kept[t % size] = h
        return torch.cat([*before, h], 1)


class _Steps:
    """A causal `WaveNet` at one sample after another."""

    def __init__(self, net: WaveNet, adds: Tensor | None) -> None:
        layers = zip(net.gate_layers, net.mix_layers, strict=True)
        self.layers = [(_on_samples(gate), _on_samples(mix), _Ring(gate)) for gate, mix in layers]
        self.first, self.final = _on_samples(net.initial_layer), _on_samples(net.final_layer)
        self.head = None if net.head_layer is None else _on_samples(net.head_layer)
        self.skip, self.t = net.final_layer.in_channels, 0
        self.adds = None if adds is None else [at.chunk(len(self.layers), 1) for at in adds.unbind(-1)]

    def __call__(self, x: Tensor) -> Tensor:
        t, total = self.t, None
        h = self.first(x.reshape(-1, x.shape[-1]))
        for i, (gate, mix, ring) in enumerate(self.layers):
            g = gate(ring.seen(h, t))
            # Of features there is one for all samples.
            g = g if self.adds is None else g + self.adds[t % len(self.adds)][i]
            h, total = _gated(g, mix, h, total, self.skip)
        self.t += 1
        y = _ended(total, self.head, self.final)
        return y.reshape(*x.shape[:-1], y.shape[-1])
