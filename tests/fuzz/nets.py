"""Valid calls of networks, and of maps with the networks that give their parameters."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from flowkernels.ops import LayerPlan, MadePlan
from flowkernels.ops.flow_layer import split_of
from flowkernels.ops.net.activations import FUNCTIONS

from .calls import Call, Path, Recipe
from .draw import DTYPES, Draw
from .maps import in_box, of_step, sizes_of, univariate

ACTIVATIONS = tuple(FUNCTIONS)
EXACT = ("identity", "relu")


def _degrees(draw: Draw, n: int, low: int, top: int) -> list[int]:
    """n degrees: all of one kind, of a few kinds, in order, or any."""
    any_of = [draw.int(low, top) for _ in range(n)]
    pool = draw.choice(([draw.int(low, top)], [low, top], any_of))
    return draw.choice(([draw.choice(pool) for _ in range(n)], sorted(any_of), any_of, any_of))


def _layer(draw: Draw, n_in: int, n_out: int, seen: float | None = None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer whose units see this many inputs each, of a size that keeps that of what comes in."""
    scale = 0.7 * max(seen or n_in, 1.0) ** -0.5
    if draw.kind == "large":  # what a network sees, not what it is: with every layer rounding would grow
        scale /= 10
    return draw.values(n_out, n_in, scale=scale), draw.values(n_out, scale=0.3)


def _cast(arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    def of(tree: Any) -> Any:
        if isinstance(tree, Tensor):
            return tree.to(dtype)
        if type(tree) is dict:
            return {name: of(value) for name, value in tree.items()}
        return type(tree)(of(t) for t in tree) if type(tree) in (list, tuple) else tree

    return {name: of(value) for name, value in arguments.items()}


def _term(draw: Draw, lead: tuple[int, ...], n: int, rows: dict[Path, int], path: Path) -> Tensor:
    """What is added to a layer or multiplies it: a row for each of x, or fewer, which broadcast."""
    kind = draw.choice(("each", "each", "one", "behind"))
    if kind == "each":
        rows[path] = 1
        return draw.values(*lead, n, scale=0.5)
    return draw.values(*((1,) * len(lead) if kind == "one" else lead[1:]), n, scale=0.5)


def masked_linear(draw: Draw) -> Call:
    lead, n_in, n_out = draw.lead(), draw.size(1), draw.size(1)
    ins, outs = _degrees(draw, n_in, 0, 5), _degrees(draw, n_out, 0, 6)
    strict = draw.chance(0.3)
    weight, bias = _layer(draw, n_in, n_out)
    activation = draw.choice(ACTIVATIONS)
    arguments: dict[str, Any] = {
        "x": draw.values(*lead, n_in), "weight": weight, "bias": bias if draw.chance(0.7) else None,
    }  # fmt: skip
    rows: dict[Path, int] = {("x",): 1}
    if draw.chance(0.3):
        arguments["residual"] = _term(draw, lead, n_out, rows, ("residual",))
    arguments = _cast(arguments, draw.choice(DTYPES))
    if draw.chance(0.3):
        plan = Recipe(LayerPlan, {"degrees_in": ins, "degrees_out": outs, "strict": strict})
        arguments |= {"degrees_in": plan, "degrees_out": None}
    else:
        as_tensors = draw.chance(0.3)
        both = [torch.tensor(d) if as_tensors else d for d in (ins, outs)]
        arguments |= {"degrees_in": both[0], "degrees_out": both[1], "strict": strict}
    exact = draw.kind == "halves" and activation in (*EXACT, "leaky_relu")
    return Call("masked_linear", {**arguments, "activation": activation}, rows if lead else {}, exact=exact)


def _made_plan(draw: Draw, P: int, D: int | None = None) -> tuple[Recipe, MadePlan]:
    D = draw.choice((1, 1, 2, 3, 4, 5, 7, draw.int(1, 20))) if D is None else D
    natural = list(range(1, D + 1))
    inputs = draw.choice((natural, natural, draw.shuffled(natural), _degrees(draw, D, 1, D), [3 * d for d in natural]))
    residual = draw.chance(0.4)
    n, top = 1 + 2 * draw.choice((0, 1, 1, 2)) if residual else draw.choice((0, 1, 1, 2, 3)), max(inputs) + 1
    hidden = [_degrees(draw, draw.size(1, 33), 0, top) for _ in range(n)]
    if residual:
        hidden[2::2] = [hidden[0]] * (n // 2)  # a block adds to the stream; inside, it is as wide as it likes
    degrees = [inputs, *hidden, [d for d in inputs for _ in range(P)]]
    recipe = Recipe(MadePlan, {"degrees": degrees, "residual": residual})
    return recipe, MadePlan(degrees, residual=residual)


def _made_layers(draw: Draw, plan: MadePlan) -> list[tuple[Tensor, Tensor]]:
    seen = [max(1.0, float(layer.limit.sum()) / layer.n_out) for layer in plan.layers]
    return [_layer(draw, p.n_in, p.n_out, s) for p, s in zip(plan.layers, seen, strict=True)]


def _masked_net(draw: Draw, P: int, lead: tuple[int, ...]) -> tuple[MadePlan, dict[str, Any], dict[Path, int]]:
    """The plan; layers, terms and settings of a MADE; which of them hold rows."""
    recipe, plan = _made_plan(draw, P)
    layers = _made_layers(draw, plan)
    arguments: dict[str, Any] = {"layers": layers}
    rows: dict[Path, int] = {}
    last = len(layers) - 1
    if draw.chance(0.3):
        arguments["adds"] = [
            _term(draw, lead, p.n_out, rows, ("adds", i)) if draw.chance(0.5) else None
            for i, p in enumerate(plan.layers)
        ]
    if plan.residual and draw.chance(0.3):
        arguments["gates"] = [
            _term(draw, lead, p.n_out, rows, ("gates", i)) if 0 < i < last and i % 2 == 0 and draw.chance(0.7) else None
            for i, p in enumerate(plan.layers)
        ]
    return plan, {**arguments, "plan": recipe, "activation": draw.choice(ACTIVATIONS)}, rows


def made(draw: Draw) -> Call:
    lead = draw.lead()
    plan, arguments, rows = _masked_net(draw, draw.choice((1, 2, 2, 3, 5)), lead)
    arguments = _cast({"x": draw.values(*lead, plan.features), **arguments}, draw.choice(DTYPES))
    exact = draw.kind == "halves" and arguments["activation"] in EXACT and len(plan.layers) < 4
    return Call("made", arguments, {("x",): 1, **rows} if lead else {}, exact=exact)


def autoregressive_inverse(draw: Draw) -> Call:
    lead, (of_map, P) = draw.lead(), univariate(draw)
    plan, arguments, rows = _masked_net(draw, P, lead)
    backwards = {**of_map.settings, "inverse": True}
    arguments["z"] = in_box(draw, backwards, *lead, plan.features)
    if "bins" in of_map.settings:
        for name in ("circle_shift", "zero_outside"):
            if draw.chance(0.15):
                of_map.settings[name] = True
    if draw.chance(0.15):
        arguments["periodic_features"] = draw.values(plan.features, 5, scale=0.5)
    arguments = _cast(arguments, draw.choice(DTYPES))
    arguments["univariate"] = of_map
    at_rounded = "bins" in arguments["univariate"].settings
    sizes = sizes_of("autoregressive_inverse", arguments)
    return Call("autoregressive_inverse", arguments, {("z",): 1, **rows} if lead else {}, sizes, at_rounded=at_rounded)


def recurrent_inverse(draw: Draw) -> Call:
    """A GRU of a few units; where it starts and what it reads in every step belong to a row, or to several."""
    lead, (of_map, P) = draw.lead(), univariate(draw)
    D, H = draw.size(1, 4), draw.size(1, 20)
    rows: dict[Path, int] = {("z",): 1}
    arguments: dict[str, Any] = {"z": in_box(draw, {**of_map.settings, "inverse": True}, *lead, D)}
    for name, n in (("state", H), ("gates", 3 * H)):
        arguments[name] = _term(draw, lead, n, rows, (name,))
    arguments["value"] = draw.values(3 * H, scale=0.5)
    arguments |= {"cell": _layer(draw, H, 3 * H), "last": _layer(draw, H, P)}
    arguments = _cast(arguments, draw.choice(DTYPES))
    arguments["univariate"] = of_map
    at_rounded, sizes = "bins" in of_map.settings, sizes_of("recurrent_inverse", arguments)
    return Call("recurrent_inverse", arguments, rows if lead else {}, sizes, at_rounded=at_rounded)


def _dense_net(draw: Draw, n_in: int, n_out: int, context: int | None, residual: bool) -> list[tuple[Tensor, Tensor]]:
    """Layers of a residual or plain net, that sees a context of this width after its features."""
    of_context = context or 0
    if not residual:
        widths = [n_in + of_context, *(draw.size(1, 33) for _ in range(draw.choice((0, 1, 1, 2, 3)))), n_out]
        return [_layer(draw, a, b) for a, b in itertools.pairwise(widths)]
    hidden, blocks = draw.size(1, 33), draw.choice((0, 1, 1, 2, 3))
    layers = [_layer(draw, n_in + of_context, hidden)]
    for _ in range(blocks):
        inside = draw.choice((hidden, hidden, draw.size(1)))
        layers += [_layer(draw, hidden, inside), _layer(draw, inside, hidden)]
        if context is not None:
            layers.append(_layer(draw, of_context, hidden))
    return [*layers, _layer(draw, hidden, n_out)]


def _norms(draw: Draw, layers: list[tuple[Tensor, Tensor]], blocks: int, per_block: int) -> list[tuple[Tensor, Tensor]]:
    """(scale, shift) before each activation of a residual net's blocks."""
    widths = [len(layers[at][1]) for i in range(blocks) for at in (0, 1 + per_block * i)]
    return [(draw.values(n), draw.values(n, scale=0.5)) for n in widths]


def _context(draw: Draw, lead: tuple[int, ...], rows: dict[Path, int]) -> Tensor | None:
    return _term(draw, lead, draw.size(1, 6), rows, ("context",)) if draw.chance(0.3) else None


def residual_net(draw: Draw) -> Call:
    lead, rows = draw.lead(), {("x",): 1}
    context, n_in = _context(draw, lead, rows), draw.size(1)
    layers = _dense_net(draw, n_in, draw.size(1), None if context is None else context.shape[-1], True)
    per_block = 2 if context is None else 3
    arguments: dict[str, Any] = {"x": draw.values(*lead, n_in), "layers": layers}
    if context is not None:
        arguments["context"] = context
    blocks = (len(layers) - 2) // per_block
    if draw.chance(0.3):
        arguments["norms"] = _norms(draw, layers, blocks, per_block)
    arguments = _cast(arguments, draw.choice(DTYPES))
    arguments["blocks"] = blocks
    exact = draw.kind == "halves" and context is None and len(layers) < 5 and "norms" not in arguments
    return Call("residual_net", arguments, rows if lead else {}, exact=exact)


def batch_norm(draw: Draw) -> Call:
    rows, columns = draw.int(2, 200) if draw.chance(0.3) else draw.int(2, 9), draw.size(1)
    arguments = {"x": draw.values(rows, columns), "weight": draw.values(columns), "bias": draw.values(columns)}
    arguments = _cast(arguments, draw.choice(DTYPES))
    # Where a column's values are equal a small eps would multiply the rounding of their mean.
    arguments |= {"eps": draw.choice((0.1, 1.0)), "activation": draw.choice(ACTIVATIONS)}
    return Call("batch_norm", arguments, {})


def conv_net(draw: Draw) -> Call:
    lead, channels = draw.lead(), [draw.size(1, 20) for _ in range(draw.choice((2, 3, 3, 4)))]
    sides = [draw.choice((1, 1, 3, 3, 5)) for _ in channels[1:]]
    if draw.chance(0.6):
        sides[1:-1] = [1] * len(sides[1:-1])  # as pixels in rows have it
    layers = []
    for k, (a, b) in zip(sides, itertools.pairwise(channels), strict=True):
        weight, bias = _layer(draw, a * k * k, b)
        layers.append((weight.view(b, a, k, k), bias))
    image = (channels[0], draw.choice((1, 2, 3, 5, 8)), draw.choice((1, 2, 3, 5, 8)))
    arguments = _cast({"x": draw.values(*lead, *image), "layers": layers}, draw.choice(DTYPES))
    arguments["activation"] = draw.choice(ACTIVATIONS)
    exact = draw.kind == "halves" and arguments["activation"] in EXACT and len(layers) < 3
    return Call("conv_net", arguments, {("x",): 3} if lead else {}, exact=exact)


def flow_layer(draw: Draw) -> Call:
    lead, rows = draw.lead(), {("x",): 1}
    D, (of_map, P) = draw.size(1, 12), univariate(draw)
    of_map.settings["inverse"] = draw.chance(0.5)
    inputs, outputs = (tuple(draw.shuffled(range(D))[: draw.int(1, D)]) for _ in range(2))
    context, residual = _context(draw, lead, rows), draw.chance(0.5)
    width = None if context is None else context.shape[-1]
    arguments: dict[str, Any] = {
        "x": in_box(draw, of_map.settings, *lead, D),
        "layers": _dense_net(draw, len(inputs), len(outputs) * P, width, residual),
    }
    if context is not None:
        arguments["context"] = context
    arguments = _cast(arguments, draw.choice(DTYPES))
    arguments["univariate"] = of_map
    arguments["split"] = Recipe(split_of, {"features": D, "inputs": inputs, "outputs": outputs})
    if not residual:
        arguments |= {"residual": False, "activation": draw.choice(ACTIVATIONS)}
    at_rounded = "bins" in of_map.settings and of_map.settings["inverse"]
    sizes = sizes_of("flow_layer", arguments)
    return Call("flow_layer", arguments, rows if lead else {}, sizes, at_rounded=at_rounded)


def _own_step(draw: Draw, D: int) -> dict[str, Any]:
    """A step of a flow that has tensors and no net, or a sweep."""
    kind = draw.choice(("LU", "Scale", "Elementwise", "Sweep", "Sweep"))
    if kind == "Sweep":
        of_map, P = univariate(draw)
        recipe, plan = _made_plan(draw, P, D)
        settings = {"plan": recipe, "activation": draw.choice(ACTIVATIONS), "univariate": of_map}
        return {"kind": kind, "layers": _made_layers(draw, plan), **settings}
    if kind == "LU":
        return {
            "kind": kind, "lower": draw.values(D, D, scale=1 / D), "upper": draw.values(D, D, scale=1 / D),
            "log_s": draw.values(D, scale=0.3), "sign_s": draw.among((-1.0, 1.0), (D,)),
            "permutation": draw.shuffled(range(D)) if draw.chance(0.6) else None,
            "bias": draw.values(D) if draw.chance(0.6) else None, "inverse": draw.chance(0.5),
        }  # fmt: skip
    if kind == "Scale":
        is_log = draw.chance(0.5)
        scale = draw.values(D, scale=0.3) if is_log else draw.among((-2.0, -0.7, 0.9, 1.6), (D,))
        shift = draw.values(D) if draw.chance(0.6) else None
        return {"kind": kind, "scale": scale, "shift": shift, "inverse": draw.chance(0.5), "is_log": is_log}
    of_map, P = univariate(draw)
    of_map.settings["inverse"] = draw.chance(0.5)
    outputs = draw.shuffled(range(D))[: draw.int(1, D)] if draw.chance(0.5) else None
    params = draw.values(D if outputs is None else len(outputs), P, scale=0.5)
    return {"kind": kind, "univariate": of_map, "params": params, "outputs": outputs}


def flow(draw: Draw) -> Call:
    """One to three layers, whose maps may be of several kinds, all given one context or none, one reordering between
    them all, and in front of some a step without a net or a sweep."""
    lead, D = draw.lead(), draw.size(1, 12)
    rows: dict[Path, int] = {("x",): 1}
    context = _context(draw, lead, rows)
    width = None if context is None else context.shape[-1]
    found: list[tuple[list[Any], Recipe, Recipe]] = []
    for _ in range(draw.int(1, 3)):
        of_map, P = univariate(draw)
        of_map.settings["inverse"] = draw.chance(0.5)
        inputs, outputs = (tuple(draw.shuffled(range(D))[: draw.int(1, D)]) for _ in range(2))
        layers = _dense_net(draw, len(inputs), len(outputs) * P, width, False)
        found.append((layers, of_map, Recipe(split_of, {"features": D, "inputs": inputs, "outputs": outputs})))
    nets, maps, splits = (list(part) for part in zip(*found, strict=True))
    own = [_own_step(draw, D) if draw.chance(0.5) else None for _ in nets]
    given = {"x": in_box(draw, maps[0].settings, *lead, D), "nets": nets, "own": own}
    given |= {} if context is None else {"context": context}
    arguments = _cast(given, draw.choice(DTYPES))
    arguments |= {"maps": maps, "splits": splits, "order": draw.shuffled(range(D)) if draw.chance(0.5) else None}
    arguments["activation"] = draw.choice(ACTIVATIONS)
    arguments["memory"] = "flat" if draw.chance(0.3) else "fast"
    arguments["base"] = draw.chance(0.3)
    of_own = [of_step(step) for step in own if step is not None and "univariate" in step]
    turned = any("bins" in s and s["inverse"] for s in (*(m.settings for m in maps), *of_own))
    return Call("flow", arguments, rows if lead else {}, sizes_of("flow", arguments), at_rounded=turned)


def block_made(draw: Draw) -> Call:
    """One to three layers, some with rows of given norms; the blocks' logarithms are moderate, and what lies above them
    is anything."""
    lead, D, n = draw.lead(), draw.size(1, 7), draw.int(1, 3)
    units = [1, *(draw.int(1, 4) for _ in range(n - 1)), 1]
    layers = [
        (draw.values(D * b, D * a, scale=0.5), draw.values(D * b, scale=0.3)) for a, b in itertools.pairwise(units)
    ]
    residual = draw.choice((True, False, draw.values(1, scale=0.5)))
    arguments: dict[str, Any] = {"x": draw.values(*lead, D), "layers": layers, "residual": residual}
    if draw.chance(0.4):
        arguments["log_norms"] = [draw.values(D * b, scale=0.5) for b in units[1:]]
    arguments = _cast(arguments, draw.choice(DTYPES))
    arguments |= {"activation": draw.choice(("tanh", "sigmoid", "elu", "leaky_relu")), "inverse": draw.chance(0.3)}
    arguments["eps"] = draw.choice((0.0, 0.0, 1e-8, 0.1))
    rows: dict[Path, int] = {("x",): 1} if lead else {}
    sizes, inverse = sizes_of("block_made", arguments), arguments["inverse"]
    # Of weights of e^20 the features of an inverse are differences of differences, each far larger than the last.
    extreme = inverse and draw.kind == "large"
    # ladj adds up logarithms of slopes, which are known to a rounding of 1.
    return Call("block_made", arguments, rows, sizes, extreme, at_rounded=inverse, made_of=1.0)


def low_rank(draw: Draw) -> Call:
    """One to three layers of a kind, shared by the rows or some tensors for each; slopes that do not all but vanish."""
    lead, D, n = draw.lead(), draw.size(1, 9), draw.int(1, 3)
    kind, M = draw.choice(("planar", "radial", "sylvester")), draw.int(1, min(D, 5))
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {
        "planar": ((n, D), (n, D), (n,)), "radial": ((n, D), (n,), (n,)),
        "sylvester": ((n, D, M), (n, M, M), (n, M, M), (n, M)),
    }  # fmt: skip
    scale = 0.05 if draw.kind == "large" else 0.5
    arguments: dict[str, Any] = {"x": draw.values(*lead, D), "params": []}
    rows: dict[Path, int] = {("x",): 1} if lead else {}
    for i, shape in enumerate(shapes[kind]):
        by_row = bool(lead) and draw.chance(0.4)
        arguments["params"].append(draw.values(*lead * by_row, *shape, scale=scale))
        if by_row:
            rows[("params", i)] = len(shape)
    settings: dict[str, Any] = {"kind": kind, "inverse": draw.chance(0.4)}
    if kind == "radial":
        settings["alpha"] = draw.choice(("softplus", "softplus", "abs"))
    elif kind == "planar":
        arguments["params"][1] = arguments["params"][1] + 0.5 * scale  # of a w that is all but 0, u' is anything
        settings |= {"activation": draw.choice(("tanh", "tanh", "leaky_relu")), "negative_slope": draw.choice((0.2, 1))}
    else:  # reflections at what is all but 0 go anywhere, and so does a QR
        settings["orthogonal"] = None
        arguments["params"][0] = torch.linalg.qr(draw.noise((n, D, M)))[0]
        rows.pop(("params", 0), None)
    arguments = _cast(arguments, draw.choice(DTYPES)) | settings
    # Logarithms of determinants near 1; of a radial layer D - 1 times the difference of two.
    made_of = float(n * max(D - 1, 1)) if kind == "radial" else 1.0
    return Call("low_rank", arguments, rows, at_rounded=settings["inverse"], made_of=made_of)


def residual_flow(draw: Draw) -> Call:
    """One to three layers, whose norms are bounded as a module bounds them, both directions, estimates too."""
    lead, D, n = draw.lead(), draw.size(1, 9), draw.int(1, 3)
    units = [D, *(draw.size(1, 20) for _ in range(n - 1)), D]
    layers = []
    for a, b in itertools.pairwise(units):
        weight = draw.noise((b, a))
        layers.append((0.9 * weight / torch.linalg.matrix_norm(weight).clamp(min=1.0), draw.values(b, scale=0.3)))
    settings: dict[str, Any] = {
        "activation": draw.choice(("lipswish", "lipswish", "elu", "tanh")), "preactivated": draw.chance(0.3),
        "inverse": draw.chance(0.4), "lipschitz": 0.92**n,
    }  # fmt: skip
    arguments: dict[str, Any] = {"x": draw.values(*lead, D), "layers": layers}
    if settings["activation"] == "lipswish" and draw.chance(0.5):
        arguments["betas"] = 0.5 + draw.noise((n - 1 + settings["preactivated"],)).abs()
    if draw.chance(0.4):
        arguments["noise"] = draw.among((-1.0, 1.0), (draw.choice((1, 1, 3, 5)), *lead, D))
        arguments["weights"] = draw.among((0.0, 1.0, 2.0), (draw.int(1, 6),))
        settings |= {"log_det": "roulette", "neumann": draw.chance(0.8)}
    rows: dict[Path, int] = {("x",): 1} if lead else {}
    # Logarithms of determinants near 1.
    return Call("residual_flow", _cast(arguments, draw.choice(DTYPES)) | settings, rows, made_of=1.0)


def ode_flow(draw: Draw) -> Call:
    """One to three equal steps along a field of one to four layers; by the choice of other steps rounding decides."""
    lead, D = draw.lead(), draw.size(1, 9)
    rows: dict[Path, int] = {("x",): 1}
    context = _context(draw, lead, rows)
    time, frequencies = draw.choice(("concat", "sinusoidal", "none")), draw.int(1, 3)
    of_time = {"concat": 1, "none": 0}.get(time, 2 * frequencies)
    hidden = [draw.size(1, 20) for _ in range(draw.int(0, 3))]
    units = [D + of_time + (0 if context is None else context.shape[-1]), *hidden, D]
    scale = 0.05 if draw.kind == "large" else 0.5
    layers = [(draw.values(b, a, scale=scale), draw.values(b, scale=0.3)) for a, b in itertools.pairwise(units)]
    arguments: dict[str, Any] = {"x": draw.values(*lead, D), "layers": layers}
    if context is not None:
        arguments["context"] = context
    if len(hidden) > 2 or draw.chance(0.3):
        arguments["noise"] = draw.among((-1.0, 1.0), (*lead, D))
        rows["noise",] = 1
    arguments = _cast(arguments, draw.choice(DTYPES))
    activation = draw.choice(("tanh", "softplus", "elu", "silu", "gelu"))
    arguments |= {
        "time": time, "frequencies": frequencies, "activation": activation,
        "solver": draw.choice(("euler", "rk4")), "steps": draw.int(1, 3), "inverse": draw.chance(0.4),
        "t0": draw.choice((0.0, -0.5)), "trace": "hutchinson" if "noise" in arguments else "exact",
    }  # fmt: skip
    return Call("ode_flow", arguments, rows if lead else {}, made_of=1.0)  # traces are sums that may cancel


def monotone_net(draw: Draw) -> Call:
    """A network for each feature or one for all, of two to four layers; x and y well within where an inverse looks."""
    lead, D, S = draw.lead(), draw.size(1, 7), draw.choice((0, 1, 2, 5, draw.int(0, 17)))
    form, shift = draw.choice(("integral", "integral", "positive")), S > 0 and draw.chance(0.3)
    sets = draw.choice(((D,), ()))
    units = [1 + S - shift, *(draw.size(1, 33) for _ in range(draw.choice((1, 1, 2, 3)))), 1]
    layers = [
        (
            draw.values(*sets, b, a, scale=(0.1 if draw.kind == "large" else 0.7) * a**-0.5),
            draw.values(*sets, b, scale=0.3),
        )
        for a, b in itertools.pairwise(units)
    ]
    arguments: dict[str, Any] = {"x": draw.values(*lead, D), "signal": draw.values(*lead, D, S), "layers": layers}
    arguments = _cast(arguments, draw.choice(DTYPES))
    names = ("elu", "tanh") if form == "positive" else ACTIVATIONS
    arguments |= {
        "form": form, "activation": draw.choice(names), "nodes": draw.choice((1, 8, 32, 33)), "shift": shift,
        "log_bound": draw.choice((7.0, 2.0)), "inverse": draw.chance(0.3),
    }  # fmt: skip
    if arguments["inverse"]:  # of few nodes what is inverted need not be increasing
        arguments["nodes"] = 32
    if draw.chance(0.1) and form == "integral" and not arguments["inverse"]:
        arguments["slope"] = "quadrature"
    rows: dict[Path, int] = {("x",): 1, ("signal",): 2}
    # The gradient of the last bias through ladj: a slope of 1 at every element, by weights whose sum may be 0.
    made_of = arguments["x"].numel() ** 0.5
    return Call("monotone_net", arguments, rows if lead else {}, sizes_of("monotone_net", arguments), made_of=made_of)
