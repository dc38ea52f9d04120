"""What the tests of the C++ gate share: entry points called by themselves, with one number broken at a time."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

Break = Callable[[dict[str, Any]], None]


def told(t: Tensor, **instead: Any) -> Any:
    """What a tensor says of itself, with some of it replaced."""
    says = {"data_ptr": t.data_ptr(), "shape": tuple(t.shape), "stride": t.stride(), "dtype": t.dtype, **instead}
    return SimpleNamespace(
        data_ptr=lambda: says["data_ptr"], shape=says["shape"], stride=lambda: says["stride"], dtype=says["dtype"], of=t
    )


def assert_refused(call: Callable[..., Any], arguments: dict[str, Any], broken: dict[str, Any], message: str) -> None:
    """Raises a ValueError of three parts with this message, where without the broken arguments it does not."""
    assert set(broken) <= set(arguments), broken
    with pytest.raises(ValueError, match=r".+ must be .+, got .+") as raised:
        call(*{**arguments, **broken}.values())
    assert message in str(raised.value)


_OF_LAYER = (
    "mask", "weight", "bias", "add", "gate", "kept", "grad_weight", "grad_bias", "grad_add", "grad_gate", "scale",
    "shift", "grad_scale", "grad_shift",
)  # fmt: skip


def layer(weight: Tensor | None, **more: Any) -> tuple[Any, ...]:
    """A layer of a net as the compiled modules take it."""
    given = {"weight": weight, **more}
    assert set(given) <= set(_OF_LAYER)
    return tuple(given.get(name) for name in _OF_LAYER)


def layers(*sizes: tuple[int, int], dtype: torch.dtype = torch.float32) -> list[tuple[Any, ...]]:
    """Layers of these sizes with a bias."""
    return [layer(torch.zeros(s, dtype=dtype), bias=torch.zeros(s[0], dtype=dtype)) for s in sizes]


def net_of(module: Any, layers: Any, rows: int, residual: bool, activation: int, last: int) -> Any:
    """A net of such layers, as Python hands it to a compiled module: a spec, then tensors, kept ones and gradients."""
    masks, weights, biases, adds, gates, kept, *grads = zip(*layers, strict=True) if layers else [()] * len(_OF_LAYER)
    *grads, scales, shifts, grad_scales, grad_shifts = grads
    grad_adds, grad_gates = grads[2:]
    adds, gates = (
        [
            _like(g, rows, w) if t is None and g is not None else t
            for t, g, w in zip(terms, of_terms, weights, strict=True)
        ]
        for terms, of_terms in ((adds, grad_adds), (gates, grad_gates))
    )
    spec = module.NetSpec(
        masks=list(masks), residual=residual, activation=activation, last=last, has_bias=True,
        adds=[t is not None for t in adds], gates=[t is not None for t in gates],
        scales=[t is not None for t in scales],
    )  # fmt: skip

    def in_order(w: Any, b: Any, terms: Any, of_gates: Any, *of_scales: Any) -> list[Any]:
        given = [t for t, has in zip(terms, adds, strict=True) if has is not None]
        given += [t for t, has in zip(of_gates, gates, strict=True) if has is not None]
        given += [t for *pair, has in zip(*of_scales, scales, strict=True) if has is not None for t in pair]
        return [*(t for pair in zip(w, b, strict=True) for t in pair), *given]

    grads += [grad_scales, grad_shifts]
    some = any(t is not None for part in grads for t in part)
    return module.Net(
        spec, rows, in_order(weights, biases, adds, gates, scales, shifts),
        kept if any(t is not None for t in kept) else (), in_order(*grads) if some else (),
    )  # fmt: skip


def _like(grad: Any, rows: int, weight: Any) -> Tensor:
    """A term beside a gradient that is tested."""
    return torch.zeros(rows, weight.shape[0], dtype=weight.dtype)
