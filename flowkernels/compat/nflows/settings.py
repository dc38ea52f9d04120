"""What nflows' rational-quadratic spline layers are set to, in the words of `ops.rqs`; the copies in normflows too."""

from __future__ import annotations

from typing import Any

from flowkernels.ops.rqs.spec import RqsSpec, cached_spec


def spline_settings(layer: Any, bins: int) -> dict[str, Any]:
    """The keywords of `ops.rqs`, without the scale of the logits."""
    settings = {
        "bins": bins,
        "tails": layer.tails,
        "min_bin_width": layer.min_bin_width,
        "min_bin_height": layer.min_bin_height,
        "min_derivative": layer.min_derivative,
    }
    if layer.tails is None:
        settings["box"] = (0.0, 1.0, 0.0, 1.0)
    else:
        settings["tail_bound"] = layer.tail_bound
    return settings


def n_params(layer: Any, bins: int) -> int:
    """P."""
    tails = layer.tails
    return 3 * bins + (-1 if tails == "linear" else 0 if tails == "circular" else 1)


def spline_spec(layer: Any, bins: int, logit_scale: float = 1.0, inverse: bool = False) -> RqsSpec:
    """The same as the checked settings that the kernels take."""
    s = spline_settings(layer, bins)
    return cached_spec(
        s["bins"], s["tails"], s.get("tail_bound", 1.0), s.get("box"), s["min_bin_width"], s["min_bin_height"],
        s["min_derivative"], logit_scale, "softmax", 1e-3, inverse,
    )  # fmt: skip


def spline_refusal(layer: Any, bins: int) -> str | None:
    """Why the kernel would not take the layer's settings, or None."""
    if layer.tails not in (None, "linear"):  # the kernel knows circular ones too, but nflows has no parameters for them
        return f"{layer.tails} tails are not implemented"
    try:
        spline_spec(layer, bins)
    except Exception as error:  # whatever is wrong with the settings, nflows is the one to say so when it is called
        return str(error)
    return None
