"""What nflows' rational-quadratic spline layers are set to, in the words of `ops.rqs`; the copies in normflows too."""

from __future__ import annotations

from typing import Any

from flowkernels.ops import RQS


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


def spline_of(layer: Any, bins: int, logit_scale: float = 1.0, inverse: bool = False) -> RQS:
    """The same as a map."""
    return RQS.kept(**spline_settings(layer, bins), logit_scale=logit_scale, inverse=inverse)


def spline_refusal(layer: Any, bins: int) -> str | None:
    """Why the kernel would not take the layer's settings, or None."""
    if layer.tails not in (None, "linear"):  # the kernel knows circular ones too, but nflows has no parameters for them
        return f"{layer.tails} tails are not implemented"
    try:
        spline_of(layer, bins)
    except Exception as error:  # whatever is wrong with the settings, nflows is the one to say so when it is called
        return str(error)
    return None
