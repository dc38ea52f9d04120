"""Valid calls of the maps: ops.rqs, affine, actnorm, lu_linear; and univariate maps for layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkernels.ops import RQS, Affine, Polynomial
from flowkernels.ops.affine.scales import CLAMPED, FLOORED, SCALES
from flowkernels.ops.mixture.spec import KERNELS, OUTERS
from flowkernels.ops.rqs.spec import count_params

from .calls import Call, Path, Recipe
from .draw import DTYPES, Draw

# Logits at which exponentials stop, or would be inf.
EXTREME = (-1e30, -1e4, -710.0, -100.0, -88.0, -20.0, -1.0, 0.0, 0.5, 20.0, 88.0, 100.0, 710.0, 1e4, 1e30)
BOUNDS = (0.1, 1, 5.0, 10.0, 1e-4, 1e4)
BOXES: tuple[Any, ...] = ((-1.0, 2.0, 0.5, 3.0), (0.0, 1.0, 0.0, 1.0), (-5, -4, 10, 30), [-3.0, 3.0, -1.0, 1.0])
INVERSES = ("autoregressive_inverse", "recurrent_inverse")
MAPPED = {"rqs": "x", "flow_layer": "x", **dict.fromkeys(INVERSES, "z")}  # what a univariate map takes
PAIRS = (
    *((d, d) for d in DTYPES),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.float32, torch.float64),
    (torch.float64, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.bfloat16),
)


def _logits(draw: Draw, dtype: torch.dtype, *shape: int) -> Tensor:
    if draw.kind == "usual" and draw.chance(0.06):
        return finite(draw.among(EXTREME, shape), dtype)
    return draw.values(*shape).to(dtype)


def finite(t: Tensor, dtype: torch.dtype) -> Tensor:
    """`t.to(dtype)`, of floats, where what is too large becomes the largest."""
    limits = torch.finfo(dtype)
    return t.double().clamp(limits.min, limits.max).to(dtype)


# ---- splines ----


def spline_settings(
    draw: Draw, most_bins: int = 12, bounds: Sequence[float] = BOUNDS, vanish: bool = True
) -> dict[str, Any]:
    """Settings of a spline, without a direction; whether its bins and slopes may vanish."""
    bins = draw.choice((1, 2, 3, 5, 8, 8, 10, draw.int(1, most_bins)))
    found: dict[str, Any] = {"bins": bins, "tails": draw.choice(("linear", "linear", "circular", None))}
    if draw.chance(0.15):
        found["order"] = "linear"
    if draw.chance(0.3):
        found["parametrization"] = "soft_clip"
        found["slope"] = draw.choice((1e-3, 0.1, 1e-6))
    elif draw.chance(0.4):
        # Bins and slopes that may vanish only where logits are usual: beyond, the truth is its own rounding.
        least = (1e-3,) if draw.kind == "large" or "order" in found or not vanish else (0.0,)
        found["min_bin_width"] = draw.choice((*least, 1e-2, 0.5, 1.0)) / bins
        found["min_bin_height"] = draw.choice((*least, 1e-2, 0.5, 1.0)) / bins
        found["min_derivative"] = draw.choice((*least, 1e-3, 1e-5, 0.1))
        if found["tails"] == "linear" and draw.chance(0.3):
            found["edge_slope"] = draw.choice((0.5, 0.999, 2.0))
    if draw.chance(0.3):
        found["logit_scale"] = draw.choice((0.25, 2.0))
    if draw.chance(0.3):
        found["tail_bound"] = draw.choice(bounds)
    elif draw.chance(0.15):
        found["box"] = draw.choice(BOXES)
    return found


def box(settings: dict[str, Any]) -> tuple[float, float]:
    """Where the spline takes x from."""
    bound = settings.get("tail_bound", 3.0)
    left, right, bottom, top = settings.get("box") or (-bound, bound, -bound, bound)
    return (bottom, top) if settings.get("inverse") else (left, right)


def in_box(draw: Draw, settings: dict[str, Any], *shape: int) -> Tensor:
    """Most of x in the box, some outside; off the knots of equal bins, where the slope of ladj has two right values."""
    low, high = box(settings)
    return (low + high) / 2 + (high - low) / 2 * (0.61 * draw.values(*shape) + 0.03)


def of_step(step: dict[str, Any]) -> dict[str, Any]:
    """The settings of the map of a step of a flow, in the direction in which it runs."""
    settings = step["univariate"].settings
    return {**settings, "inverse": True} if step["kind"] == "Sweep" else settings


def sizes_of(op: str, arguments: dict[str, Any]) -> dict[Path, float]:
    """How large x counts beside the box of its map; asked again of a call with a fault, which may be another box."""
    if op == "flow":  # beside the largest of all
        of_own = [of_step(step) for step in arguments["own"] if step is not None and "univariate" in step]
        settings = [*(f.settings for f in arguments["maps"]), *of_own]
        return {("x",): max(max(map(abs, box(s))) for s in settings)}
    if op not in MAPPED:
        return {}
    settings = arguments if op == "rqs" else arguments["univariate"].settings
    if op in INVERSES:
        settings = {**settings, "inverse": True}
    return {(MAPPED[op],): max(map(abs, box(settings)))}


def rqs(draw: Draw) -> Call:
    settings = spline_settings(draw, 128 if draw.chance(0.05) else 12)
    settings["inverse"] = draw.chance(0.5)
    half_ends = settings["bins"] > 1 and "parametrization" not in settings and draw.chance(0.1)
    if half_ends:  # not of layers, which have no kernel for it
        settings["parametrization"] = "half_ends"
    P = count_params(settings["bins"], settings["tails"], settings.get("order") == "linear", half_ends)
    lead, D = draw.lead(), draw.size()
    of_x, of_params = draw.choice(PAIRS)
    vanishing = 0.0 in [settings.get(f"min_{name}") for name in ("bin_width", "bin_height", "derivative")]
    extreme = draw.kind == "usual" and not vanishing and draw.chance(0.06)
    params = (
        finite(draw.among(EXTREME, (*lead, D, P)), of_params) if extreme else draw.values(*lead, D, P).to(of_params)
    )
    if not extreme and draw.chance(0.1):
        low, high = box(settings)
        x = draw.among((low, high, (low + high) / 2, 2 * low - high, 2 * high - low), (*lead, D)).to(of_x)
    else:
        x = in_box(draw, settings, *lead, D).to(of_x)
    rows = {("x",): 1, ("params",): 2} if lead else {}
    arguments = {"x": x, "params": params, **settings}
    return Call("rqs", arguments, rows, sizes_of("rqs", arguments), extreme)


# ---- mixtures ----


def mixture(draw: Draw) -> Call:
    settings: dict[str, Any] = {
        "components": draw.choice((1, 2, 3, 5, 8, draw.int(1, 128) if draw.chance(0.1) else 4)),
        "kernel": draw.choice(KERNELS),
        "outer": draw.choice(OUTERS),
        "inverse": draw.chance(0.5),
    }
    if draw.chance(0.3):
        settings["min_log_scale"], settings["max_log_scale"] = draw.choice(((-1.0, 1.0), (-3, 0.5), (0.0, 2.0)))
    if draw.chance(0.2):
        settings["parametrization"] = "shifts"
    if settings["outer"] == "probit" and draw.chance(0.3):
        settings["shrink"], settings["bound"] = draw.choice((1e-6, 1e-3)), draw.choice((10.0, 1e3))
    shifts = "parametrization" in settings
    lead, D = draw.lead(), draw.size()
    of_x, of_params = draw.choice(PAIRS)
    x = draw.values(*lead, D)
    if settings["inverse"] and settings["outer"] == "unit":
        x = torch.sigmoid(x.clamp(-4, 4))
    params = draw.values(*lead, D, (2 if shifts else 3) * settings["components"])
    rows = {("x",): 1, ("params",): 2} if lead else {}
    # Far out, a probit's ladj bends by the difference of two nearly equal numbers: the truth is its own rounding.
    extreme = draw.kind == "large" and settings["outer"] == "probit"
    arguments = {"x": x.to(of_x), "params": params.to(of_params), **settings}
    # A logit or probit of 0 is that of a half, of masses whose roundings stay; and of one component alone ladj does not
    # move, by what cancels between the kernel's density and the outer one's: slopes by its scale. Of every feature.
    log_scale = params[..., -settings["components"] :].double() * (-1 if shifts else 1)
    log_scale = log_scale.clamp(settings.get("min_log_scale", -7.0), settings.get("max_log_scale"))
    made_of = float((-log_scale).exp().clamp(min=1.0).max()) if log_scale.numel() else 1.0
    made_of *= max(D, 1) ** 0.5
    return Call("mixture", arguments, rows, {}, extreme, at_rounded=settings["inverse"], made_of=made_of)


# ---- polynomials ----


def polynomial_settings(draw: Draw) -> dict[str, Any]:
    """Settings of a polynomial, without a direction."""
    if draw.chance(0.5):
        found: dict[str, Any] = {"degree": draw.choice((0, 1, 2, 4, 4, 7)), "terms": draw.choice((1, 2, 3, 5))}
        if draw.chance(0.3):
            found |= {"squares": "sum", "slope": draw.choice((1e-2, 0.5))}
        if draw.chance(0.3):
            found["bound"] = draw.choice((5.0, 20))
        if draw.chance(0.3):
            found["shift"] = False
        return found
    found = {"family": "bernstein", "degree": draw.choice((1, 2, 4, 8, 16, 30))}
    if draw.chance(0.4):
        found["tails"] = "linear"
    if draw.chance(0.3):
        found["bound"] = draw.choice((2.0, 10))
    if draw.chance(0.3):
        found["edge"] = 1e-6
    return found


def polynomial(draw: Draw) -> Call:
    settings = {**polynomial_settings(draw), "inverse": draw.chance(0.5)}
    lead, D, P = draw.lead(), draw.size(), Polynomial(**settings).n_params
    of_x, of_params = draw.choice(PAIRS)
    # No copies of one element: their roundings are alike and add up, and eager's do not show how far.
    params = draw.values(*lead, D, P) + 0.1 * draw.noise((*lead, D, P))
    arguments = {"x": draw.values(*lead, D).to(of_x), "params": params.to(of_params), **settings}
    return Call("polynomial", arguments, {("x",): 1, ("params",): 2} if lead else {})


# ---- affine maps ----


def affine_settings(draw: Draw) -> dict[str, Any]:
    """Settings of the scale, without a direction."""
    scale = draw.choice(SCALES)
    found: dict[str, Any] = {"scale": scale}
    if scale in FLOORED and draw.chance(0.5):
        found["min_scale"] = draw.choice((1e-3, 0.1, 2, 0))
    if scale in CLAMPED and draw.chance(0.5):
        found["clamp"] = draw.choice((0.5, 1, 5.0, 100.0))
    if scale == "clip" and draw.chance(0.5):
        found["log_bounds"] = draw.choice(((-1.0, 1.0), (0, 0.5), (-7.0, -2.0)))
    return found


def affine(draw: Draw) -> Call:
    settings = affine_settings(draw)
    settings["inverse"] = draw.chance(0.5)
    event_dims = draw.choice((1, 1, 1, 2, 3))
    lead, event = draw.lead(), [draw.size(most=20) if event_dims == 1 else draw.size(most=6) for _ in range(event_dims)]
    if event_dims > 1:
        lead, event = lead[:2], [min(n, 6) for n in event]
        settings["event_dims"] = event_dims
    mapped = list(event)
    if event[0] > 0 and draw.chance(0.4):
        start, stop, step = draw.int(0, event[0] - 1), draw.int(0, event[0] + 1), draw.choice((1, 1, 2, 2, 3))
        if draw.chance(0.2):
            start, stop = start - event[0], None
        if len(range(event[0])[start:stop:step]) > 0:
            settings["part"] = slice(start, stop, step)
            mapped[0] = len(range(event[0])[start:stop:step])
    of_x, of_params = draw.choice(PAIRS)
    x = draw.values(*lead, *event).to(of_x)
    P = 1 if settings["scale"] == "additive" else 2
    rows = {("x",): event_dims}
    if P == 2 and draw.chance(0.4):
        params: Any = tuple(_logits(draw, of_params, *lead, *mapped) for _ in range(2))
        params = list(params) if draw.chance(0.3) else params
        rows |= {("params", 0): event_dims, ("params", 1): event_dims}
    else:
        params = _logits(draw, of_params, *lead, *mapped, P)
        rows |= {("params",): event_dims + 1}
    if P == 2 and draw.chance(0.3):
        settings["shift_first"] = True
    if draw.chance(0.3):
        shape = [draw.choice((1, n, n)) for n in mapped][draw.int(0, event_dims) :]
        mask = draw.noise(shape) > 0
        settings["mask"] = mask.to(draw.choice((torch.bool, torch.bool, torch.uint8, torch.int64)))
    return Call("affine", {"x": x, "params": params, **settings}, rows if lead else {})


def univariate(draw: Draw) -> tuple[Recipe, int]:
    """The map of a layer, and its parameters per feature; forward."""
    if draw.chance(0.5):
        settings = {
            "bins": 8, "tails": "linear", "tail_bound": 3.0, "box": None, "min_bin_width": 1e-3, "min_bin_height": 1e-3,
            "min_derivative": 1e-3, "logit_scale": 1.0, "parametrization": "softmax", "slope": 1e-3, "inverse": False,
            # A net sees what lies in the box, and returns logits of any size.
            **spline_settings(draw, bounds=BOUNDS[:4], vanish=False),
        }  # fmt: skip
        P = count_params(settings["bins"], settings["tails"], settings.get("order") == "linear")
        return Recipe(RQS, settings), P
    settings = {"min_scale": 0.0, "inverse": False, **affine_settings(draw)}
    if settings["scale"] != "additive" and draw.chance(0.2):
        settings["shift_first"] = True
    return Recipe(Affine, settings), 1 if settings["scale"] == "additive" else 2


# ---- maps of channels ----


def _channels(draw: Draw, most: int) -> tuple[Tensor, int, int, dict[str, Any], int]:
    """x, its channels, the trailing dims of a row, the settings, and leading rows (0: none)."""
    C = draw.size(most=most)
    if draw.chance(0.5):
        lead = draw.lead()
        return draw.values(*lead, C), C, 1, {} if draw.chance(0.5) else {"channel_dim": -1}, len(lead)
    trailing = [draw.choice((0, 1, 2, 3, 4, 5)) for _ in range(draw.choice((0, 1, 2, 2, 2, 3)))]
    return draw.values(draw.size(most=5) % 9, C, *trailing), C, 1 + len(trailing), {"channel_dim": 1}, 1


def _mixed(draw: Draw, n: int) -> list[torch.dtype]:
    """Dtypes of n tensors: alike, or any."""
    first = draw.choice(DTYPES)
    return [first] * n if draw.chance(0.7) else [draw.choice(DTYPES) for _ in range(n)]


def actnorm(draw: Draw) -> Call:
    x, C, behind, settings, has_rows = _channels(draw, 60)
    of_x, *of_rest = _mixed(draw, 3)
    arguments: dict[str, Any] = {"x": x.to(of_x)}
    for name, dtype in zip(("log_scale", "shift"), of_rest, strict=True):
        arguments[name] = draw.values(C).to(dtype)
    arguments |= settings | {"inverse": draw.chance(0.5)}
    return Call("actnorm", arguments, {("x",): behind} if has_rows else {})


def lu_linear(draw: Draw) -> Call:
    x, C, behind, settings, has_rows = _channels(draw, 150 if draw.chance(0.03) else 24)
    dtypes = _mixed(draw, 6)
    small = 1 / max(C, 1)
    arguments: dict[str, Any] = {
        "x": x, "lower": draw.values(C, C, scale=small), "upper": draw.values(C, C, scale=small),
        "log_s": draw.values(C, scale=0.3), "sign_s": draw.among((-1.0, 1.0), (C,)),
    }  # fmt: skip
    if draw.chance(0.6):
        arguments["bias"] = draw.values(C)
    arguments = {name: t.to(d) for (name, t), d in zip(arguments.items(), dtypes, strict=False)}
    if draw.chance(0.6):
        arguments["permutation"] = torch.tensor(draw.shuffled(range(C)), dtype=torch.int64)
    arguments |= settings | {"inverse": draw.chance(0.5)}
    return Call("lu_linear", arguments, {("x",): behind} if has_rows else {})
