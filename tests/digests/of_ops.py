"""Every op: its settings, its forms of input, in the dtypes it has."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from flowkernels import ops, transforms

from .case import DTYPES, WIDE, Case, Results, draw, leaf, with_gradients

ROWS, D, H = 37, 5, 24  # no multiples of a vector's lanes, all of them together more than one block of rows
ACTIVATIONS = ("identity", "relu", "leaky_relu", "elu", "gelu", "silu", "tanh")
SCALES = ("exp", "softplus", "sigmoid", "tanh", "atan", "soft_clip", "clip", "reciprocal_sigmoid", "additive")
# `ops.flow_layer` is a package where no attribute of that name is exported.
_flow_layer: Any = importlib.import_module("flowkernels.ops.flow_layer")


def _ways(*choices: Any) -> Iterator[tuple[Any, ...]]:
    return itertools.product(*choices)


def _way(inverse: bool) -> str:
    return "inverse" if inverse else "forward"


# ---- maps ----


def _rqs(dtype: str, params_dtype: str, lead: tuple[int, ...], **settings: Any) -> Results:
    bins, tails = settings["bins"], settings.get("tails", "linear")
    P = 3 * bins + {"linear": -1, "circular": 0, None: 1}[tails] + bins * (settings.get("order") == "linear")
    x = leaf("x", *lead, D, scale=1.2, dtype=DTYPES[dtype])
    params = leaf("params", *lead, D, P, dtype=DTYPES[params_dtype])
    inside = x.clamp(-2.9, 2.9) if tails is None else x
    y, ladj = ops.rqs(inside, params, **settings)
    return with_gradients({"y": y, "ladj": ladj}, {"x": x, "params": params})


def rqs() -> Iterator[Case]:
    for order, tails, way, inverse, dtype in _ways(
        ("quadratic", "linear"), ("linear", "circular", None), ("softmax", "soft_clip"), (False, True), DTYPES
    ):
        settings = {"order": order, "tails": tails, "parametrization": way, "inverse": inverse}
        yield Case(
            f"rqs {order} {tails} {way} {_way(inverse)} {dtype}",
            functools.partial(_rqs, dtype, dtype, (ROWS,), bins=8, **settings),
        )
    more: dict[str, dict[str, Any]] = {
        "box": {"bins": 8, "box": (-2.0, 3.0, -1.0, 4.0)},
        "circular box": {"bins": 6, "tails": "circular", "box": (-4.0, 4.0, -4.0, 4.0)},
        "1 bin": {"bins": 1},
        "33 bins": {"bins": 33},
        "128 bins": {"bins": 128, "min_bin_width": 1e-4, "min_bin_height": 1e-4},
        "minima": {"bins": 8, "min_bin_width": 0.02, "min_bin_height": 0.03, "min_derivative": 0.1},
        "logit_scale": {"bins": 8, "logit_scale": 0.125},
        "slope": {"bins": 8, "parametrization": "soft_clip", "slope": 0.01},
        "edge_slope": {"bins": 8, "edge_slope": 0.999},
        "linear edge_slope": {"bins": 8, "edge_slope": 0.999, "order": "linear"},
    }
    for (name, settings), inverse, dtype in _ways(more.items(), (False, True), WIDE):
        yield Case(
            f"rqs {name} {_way(inverse)} {dtype}",
            functools.partial(_rqs, dtype, dtype, (3, 7), inverse=inverse, **settings),
        )
    for params_dtype, inverse in _ways(("bf16", "f16"), (False, True)):
        yield Case(
            f"rqs f32 with params {params_dtype} {_way(inverse)}",
            functools.partial(_rqs, "f32", params_dtype, (ROWS,), bins=8, inverse=inverse),
        )


def _mixture(dtype: str, params_dtype: str, lead: tuple[int, ...], **settings: Any) -> Results:
    x = leaf("x", *lead, D, scale=1.2, dtype=DTYPES[dtype])
    params = leaf("params", *lead, D, ops.Mixture(**settings).n_params, dtype=DTYPES[params_dtype])
    value = torch.sigmoid(x) if settings["inverse"] and settings["outer"] == "unit" else x
    y, ladj = ops.mixture(value, params, **settings)
    return with_gradients({"y": y, "ladj": ladj}, {"x": x, "params": params})


def mixture() -> Iterator[Case]:
    for kernel, outer, inverse, dtype in _ways(
        ("logistic", "normal"), ("logit", "probit", "unit"), (False, True), DTYPES
    ):
        settings = {"kernel": kernel, "outer": outer, "inverse": inverse}
        yield Case(
            f"mixture {kernel} {outer} {_way(inverse)} {dtype}",
            functools.partial(_mixture, dtype, dtype, (ROWS,), components=5, **settings),
        )
    for components, inverse, dtype in _ways((1, 128), (False, True), WIDE):
        settings = {"kernel": "logistic", "outer": "logit", "inverse": inverse}
        yield Case(
            f"mixture of {components} {_way(inverse)} {dtype}",
            functools.partial(_mixture, dtype, dtype, (3, 7), components=components, **settings),
        )
    for shrink, inverse, dtype in _ways((0.0, 1e-6), (False, True), WIDE):
        settings = {"kernel": "normal", "outer": "probit", "parametrization": "shifts", "inverse": inverse}
        yield Case(
            f"mixture of shifts shrunk {shrink:g} {_way(inverse)} {dtype}",
            functools.partial(_mixture, dtype, dtype, (ROWS,), components=5, shrink=shrink, **settings),
        )


POLYNOMIALS: dict[str, dict[str, Any]] = {
    "squares": {},
    "squares of degree 0": {"degree": 0, "terms": 1},
    "sums of squares": {"degree": 3, "squares": "sum", "bound": 4.0, "slope": 1e-8, "shift": False},
    "bounded squares": {"degree": 7, "terms": 2, "bounded": True},
    "Bernstein": {"family": "bernstein"},
    "Bernstein with edges": {"family": "bernstein", "degree": 5, "edge": 1e-6, "bound": 2.0},
    "Bernstein of degree 64": {"family": "bernstein", "degree": 64},
    "Bernstein with linear tails": {"family": "bernstein", "degree": 8, "tails": "linear"},
}


def _polynomial(dtype: str, params_dtype: str, lead: tuple[int, ...], **settings: Any) -> Results:
    x = leaf("x", *lead, D, scale=2.5, dtype=DTYPES[dtype])
    params = leaf("params", *lead, D, ops.Polynomial(**settings).n_params, dtype=DTYPES[params_dtype])
    y, ladj = ops.polynomial(x, params, **settings)
    return with_gradients({"y": y, "ladj": ladj}, {"x": x, "params": params})


def polynomial() -> Iterator[Case]:
    for (name, settings), inverse, dtype in _ways(POLYNOMIALS.items(), (False, True), DTYPES):
        yield Case(
            f"polynomial {name} {_way(inverse)} {dtype}",
            functools.partial(_polynomial, dtype, dtype, (ROWS,), inverse=inverse, **settings),
        )
    for params_dtype, inverse in _ways(("bf16", "f16"), (False, True)):
        yield Case(
            f"polynomial f32 with params {params_dtype} {_way(inverse)}",
            functools.partial(_polynomial, "f32", params_dtype, (3, 7), inverse=inverse),
        )


def _affine(dtype: str, form: str, **settings: Any) -> Results:
    shape = (6, 4, 3, 3) if form in ("image", "image mask") else (ROWS, D)
    if form.startswith("image"):
        settings["event_dims"] = 3
    x, settings["mask"] = leaf("x", *shape, dtype=DTYPES[dtype]), None
    mapped = list(shape)
    if form in ("part", "later part"):
        settings["part"] = slice(1, None, 2) if form == "part" else slice(2, 5)
        mapped[1] = len(range(shape[1])[settings["part"]])
    if form.endswith("mask"):
        settings["mask"] = draw("mask", *shape[1:]) > 0
    P = 1 if settings["scale"] == "additive" else 2
    leaves = {"x": x}
    if form == "two":
        leaves |= {n: leaf(n, *mapped, scale=0.5, dtype=DTYPES[dtype]) for n in ("logit", "shift")}
        params: Any = (leaves["logit"], leaves["shift"])
    elif form == "strided":  # as a network of images gives them
        leaves["params"] = leaf("params", mapped[0], P, *mapped[1:], scale=0.5, dtype=DTYPES[dtype])
        params = leaves["params"].movedim(1, -1)
    else:
        leaves["params"] = params = leaf("params", *mapped, P, scale=0.5, dtype=DTYPES[dtype])
    y, ladj = ops.affine(x, params, **settings)
    return with_gradients({"y": y, "ladj": ladj}, leaves)


def affine() -> Iterator[Case]:
    forms = ("one", "two", "strided", "part", "later part", "mask", "image", "image mask")
    floors = {"softplus": 1e-3, "sigmoid": 1e-3}
    for scale, form, inverse, dtype in _ways(SCALES, forms, (False, True), DTYPES):
        if dtype not in WIDE and form not in ("one", "image"):
            continue
        if (scale, form) == ("additive", "two"):
            continue
        settings = {"scale": scale, "min_scale": floors.get(scale, 0.0), "inverse": inverse}
        yield Case(
            f"affine {scale} {form} {_way(inverse)} {dtype}", functools.partial(_affine, dtype, form, **settings)
        )
    more: dict[str, dict[str, Any]] = {
        "clamp tanh": {"scale": "tanh", "clamp": 0.7},
        "clamp atan": {"scale": "atan", "clamp": 0.7},
        "clamp soft_clip": {"scale": "soft_clip", "clamp": 0.7},
        "log_bounds": {"scale": "clip", "log_bounds": (-0.3, 0.2)},
        "shift_first": {"scale": "sigmoid", "shift_first": True},
    }
    for (name, settings), inverse, dtype in _ways(more.items(), (False, True), WIDE):
        yield Case(
            f"affine {name} {_way(inverse)} {dtype}",
            functools.partial(_affine, dtype, "one", inverse=inverse, **settings),
        )


# ---- networks ----


def _layers(sizes: list[tuple[int, int]], dtype: torch.dtype) -> tuple[list[tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """(weight, bias) of the sizes (out, in), and both by name."""
    layers = [
        (
            leaf(f"weight {i}", *size, scale=size[1] ** -0.5, dtype=dtype),
            leaf(f"bias {i}", size[0], scale=0.3, dtype=dtype),
        )
        for i, size in enumerate(sizes)
    ]
    return layers, {
        f"{n} {i}": t for i, pair in enumerate(layers) for n, t in zip(("weight", "bias"), pair, strict=True)
    }


def _masked_linear(dtype: str, strict: bool, bias: bool, residual: bool, activation: str) -> Results:
    kind, n_in, n_out = DTYPES[dtype], 40, 70
    (pair,), leaves = _layers([(n_out, n_in)], kind)
    leaves["x"] = leaf("x", ROWS, n_in, dtype=kind)
    if residual:
        leaves["residual"] = leaf("residual", ROWS, n_out, dtype=kind)
    if not bias:
        del leaves["bias 0"]
    y = ops.masked_linear(
        leaves["x"], pair[0], pair[1] if bias else None, [1 + i % 7 for i in range(n_in)],
        [1 + i % 9 for i in range(n_out)], strict=strict, activation=activation, residual=leaves.get("residual"),
    )  # fmt: skip
    return with_gradients({"y": y}, leaves)


def masked_linear() -> Iterator[Case]:
    for activation, strict, dtype in _ways(ACTIVATIONS, (False, True), WIDE):
        name = f"masked_linear {activation}{' strict' if strict else ''} {dtype}"
        yield Case(name, functools.partial(_masked_linear, dtype, strict, True, False, activation))
    for dtype in WIDE:
        yield Case(
            f"masked_linear no bias {dtype}", functools.partial(_masked_linear, dtype, False, False, False, "relu")
        )
        yield Case(
            f"masked_linear residual {dtype}", functools.partial(_masked_linear, dtype, False, True, True, "elu")
        )


def _plan(P: int, residual: bool, depth: int = 2) -> Any:
    inputs = [2, 1, 4, 3, 5]
    hidden = [1 + (i * 3) % (D - 1) for i in range(H)]
    n_hidden = 1 + 2 * depth if residual else depth
    return ops.MadePlan([inputs, *[hidden] * n_hidden, [d for d in inputs for _ in range(P)]], residual=residual)


def _net(P: int, dtype: torch.dtype, residual: bool, terms: str) -> tuple[Any, Any, dict[str, Tensor], dict[str, Any]]:
    """A plan, its layers, all that needs gradients, and the keywords of the terms."""
    plan = _plan(P, residual)
    layers, leaves = _layers([(p.n_out, p.n_in) for p in plan.layers], dtype)
    keywords: dict[str, Any] = {}
    if "adds" in terms:
        adds: list[Tensor | None] = [None] * len(layers)
        adds[0] = leaves["add 0"] = leaf("add 0", ROWS, H, dtype=dtype)
        adds[1] = leaves["add 1"] = leaf("add 1", H, dtype=dtype)
        keywords["adds"] = adds
    if "gates" in terms:
        gates: list[Tensor | None] = [None] * len(layers)
        for i in range(2, len(layers) - 1, 2):
            gates[i] = leaves[f"gate {i}"] = leaf(f"gate {i}", ROWS, H, dtype=dtype)
        keywords["gates"] = gates
    return plan, layers, leaves, keywords


def _nets() -> Iterator[tuple[str, bool, str]]:
    """activation, residual, terms"""
    for activation, residual in _ways(ACTIVATIONS, (False, True)):
        yield activation, residual, ""
    yield "relu", False, "adds"
    yield "elu", True, "adds"
    yield "relu", True, "gates"
    yield "silu", True, "adds gates"


def _name_of(activation: str, residual: bool, terms: str) -> str:
    return " ".join(w for w in (activation, "residual" if residual else "plain", terms) if w)


def _made(dtype: str, activation: str, residual: bool, terms: str) -> Results:
    plan, layers, leaves, keywords = _net(3, DTYPES[dtype], residual, terms)
    leaves["x"] = leaf("x", ROWS, D, dtype=DTYPES[dtype])
    return with_gradients({"y": ops.made(leaves["x"], layers, plan, activation=activation, **keywords)}, leaves)


def made() -> Iterator[Case]:
    for net, dtype in _ways(list(_nets()), WIDE):
        yield Case(f"made {_name_of(*net)} {dtype}", functools.partial(_made, dtype, *net))


def _dense_sizes(n_in: int, n_out: int, blocks: int, context: int) -> list[tuple[int, int]]:
    block = [(H, H), (H, H), *([(H, context)] if context else [])]
    return [(H, n_in + context), *block * blocks, (n_out, H)]


def _residual_net(dtype: str, blocks: int, context: int) -> Results:
    layers, leaves = _layers(_dense_sizes(D, 9, blocks, context), DTYPES[dtype])
    leaves["x"] = leaf("x", ROWS, D, dtype=DTYPES[dtype])
    if context:
        leaves["context"] = leaf("context", ROWS, context, dtype=DTYPES[dtype])
    y = ops.residual_net(leaves["x"], layers, blocks=blocks, context=leaves.get("context"))
    return with_gradients({"y": y}, leaves)


def _normed(dtype: str, activation: str, context: int) -> Results:
    layers, leaves = _layers(_dense_sizes(D, 9, 2, context), DTYPES[dtype])
    leaves["x"] = leaf("x", ROWS, D, dtype=DTYPES[dtype])
    if context:
        leaves["context"] = leaf("context", ROWS, context, dtype=DTYPES[dtype])
    for i in range(8):
        leaves[f"norm {i}"] = leaf(f"norm {i}", H, dtype=DTYPES[dtype])
    norms = [(leaves[f"norm {i}"], leaves[f"norm {i + 1}"]) for i in range(0, 8, 2)]
    more = {"context": leaves.get("context"), "norms": norms, "activation": activation}
    return with_gradients({"y": ops.residual_net(leaves["x"], layers, blocks=2, **more)}, leaves)


def _batch_norm(dtype: str, activation: str) -> Results:
    leaves = {"x": leaf("x", ROWS, H, dtype=DTYPES[dtype])}
    leaves |= {name: leaf(name, H, dtype=DTYPES[dtype]) for name in ("weight", "bias")}
    y, mean, var = ops.batch_norm(*leaves.values(), activation=activation)
    return with_gradients({"y": y, "mean": mean, "var": var}, leaves)


def batch_norm() -> Iterator[Case]:
    for activation, dtype in _ways(ACTIVATIONS, DTYPES):
        yield Case(f"batch_norm {activation} {dtype}", functools.partial(_batch_norm, dtype, activation))


def _block_made(dtype: str, residual: str, norms: bool, **settings: Any) -> Results:
    leaves = {"x": leaf("x", ROWS, D, dtype=DTYPES[dtype])}
    units = (1, 3, 2, 1)
    for k, (a, b) in enumerate(itertools.pairwise(units)):
        leaves[f"weight {k}"] = leaf(f"weight {k}", D * b, D * a, scale=0.5, dtype=DTYPES[dtype])
        leaves[f"bias {k}"] = leaf(f"bias {k}", D * b, scale=0.5, dtype=DTYPES[dtype])
        if norms:
            leaves[f"log_norm {k}"] = leaf(f"log_norm {k}", D * b, scale=0.5, dtype=DTYPES[dtype])
    if residual == "gated":
        leaves["gate"] = leaf("gate", 1, dtype=DTYPES[dtype])
    layers = [(leaves[f"weight {k}"], leaves[f"bias {k}"]) for k in range(3)]
    log_norms = [leaves[f"log_norm {k}"] for k in range(3)] if norms else None
    of_y = leaves["gate"] if residual == "gated" else residual == "sum"
    settings["eps"] = 1e-8 if norms else 0.0
    y, ladj = ops.block_made(leaves["x"], layers, log_norms=log_norms, residual=of_y, **settings)
    return with_gradients({"y": y, "ladj": ladj}, leaves)


def block_made() -> Iterator[Case]:
    for activation, residual, inverse, dtype in _ways(
        ("tanh", "sigmoid", "elu", "leaky_relu"), ("none", "sum", "gated"), (False, True), DTYPES
    ):
        if inverse and residual == "none":  # not every y has an x
            continue
        norms = residual == "gated"
        yield Case(
            f"block_made {activation} {residual} {_way(inverse)} {dtype}",
            functools.partial(_block_made, dtype, residual, norms, activation=activation, inverse=inverse),
        )


def _low_rank(dtype: str, by_row: bool, **settings: Any) -> Results:
    n, M = 3, 4
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "planar": {"u": (n, D), "w": (n, D), "b": (n,)}, "radial": {"center": (n, D), "alpha": (n,), "beta": (n,)},
        "sylvester": {"q": (n, 2, D), "r": (n, M, M), "s": (n, M, M), "b": (n, M)},
    }  # fmt: skip
    lead = (ROWS,) * by_row
    leaves = {"x": leaf("x", ROWS, D, dtype=DTYPES[dtype])}
    for name, shape in shapes[settings["kind"]].items():
        leaves[name] = leaf(name, *lead, *shape, scale=0.5, dtype=DTYPES[dtype])
    params = [t for name, t in leaves.items() if name != "x"]
    y, ladj = ops.low_rank(leaves["x"], params, orthogonal="householder", **settings)
    return with_gradients({"y": y, "ladj": ladj}, leaves)


def low_rank() -> Iterator[Case]:
    for kind, how, by_row, inverse, dtype in _ways(
        ("planar", "radial", "sylvester"), (0, 1), (False, True), (False, True), DTYPES
    ):
        name, settings = ("alpha", ("softplus", "abs")) if kind == "radial" else ("activation", ("tanh", "leaky_relu"))
        yield Case(
            f"low_rank {kind} {settings[how]} {'by row ' * by_row}{_way(inverse)} {dtype}",
            functools.partial(_low_rank, dtype, by_row, kind=kind, inverse=inverse, **{name: settings[how]}),
        )


def _residual_flow(dtype: str, preactivated: bool, estimate: bool, **settings: Any) -> Results:
    leaves = {"x": leaf("x", ROWS, D, dtype=DTYPES[dtype])}
    units = (D, 13, 20, D)
    for k, (a, b) in enumerate(itertools.pairwise(units)):
        leaves[f"weight {k}"] = leaf(f"weight {k}", b, a, scale=0.4 * (a + b) ** -0.5, dtype=DTYPES[dtype])
        leaves[f"bias {k}"] = leaf(f"bias {k}", b, scale=0.5, dtype=DTYPES[dtype])
    layers = [(leaves[f"weight {k}"], leaves[f"bias {k}"]) for k in range(3)]
    if preactivated:
        settings["betas"] = leaves["betas"] = leaf("betas", 3, dtype=DTYPES[dtype])
    if estimate:
        settings |= {"log_det": "series", "terms": 4, "noise": draw("noise", 2, ROWS, D, dtype=DTYPES[dtype])}
    y, ladj = ops.residual_flow(leaves["x"], layers, preactivated=preactivated, lipschitz=0.8, **settings)
    return with_gradients({"y": y, "ladj": ladj}, leaves)


def residual_flow() -> Iterator[Case]:
    ways = {"lipswish": False, "lipswish betas": True, "elu": False, "tanh": False}
    for (way, preactivated), estimate, inverse, dtype in _ways(
        tuple(ways.items()), (False, True), (False, True), DTYPES
    ):
        run = functools.partial(
            _residual_flow, dtype, preactivated, estimate, activation=way.split()[0], inverse=inverse, backend="cpu"
        )
        yield Case(f"residual_flow {way} {'series ' * estimate}{_way(inverse)} {dtype}", run)


def _ode_flow(dtype: str, hidden: int, **settings: Any) -> Results:
    units = [D + {"concat": 1, "sinusoidal": 6, "none": 0}[settings["time"]] + 2, *[H] * hidden, D]
    leaves = {name: leaf(name, ROWS, n, dtype=DTYPES[dtype]) for name, n in (("x", D), ("context", 2))}
    for k, (a, b) in enumerate(itertools.pairwise(units)):
        leaves[f"weight {k}"] = leaf(f"weight {k}", b, a, scale=0.5, dtype=DTYPES[dtype])
        leaves[f"bias {k}"] = leaf(f"bias {k}", b, scale=0.3, dtype=DTYPES[dtype])
    if settings["trace"] == "hutchinson":
        leaves["noise"] = leaf("noise", ROWS, D, dtype=DTYPES[dtype])
    layers = [(leaves[f"weight {k}"], leaves[f"bias {k}"]) for k in range(hidden + 1)]
    y, ladj = ops.ode_flow(
        leaves["x"], layers, context=leaves["context"], noise=leaves.get("noise"), steps=3, **settings
    )
    return with_gradients({"y": y, "ladj": ladj}, leaves)


def ode_flow() -> Iterator[Case]:
    for hidden, trace, (time, activation), inverse, dtype in _ways(
        (0, 1, 2), ("exact", "hutchinson"), (("concat", "tanh"), ("sinusoidal", "elu")), (False, True), WIDE
    ):
        yield Case(
            f"ode_flow {hidden} hidden {trace} {time} {activation}{_way(inverse)} {dtype}",
            functools.partial(
                _ode_flow, dtype, hidden, trace=trace, time=time, activation=activation, inverse=inverse, solver="rk4"
            ),
        )


def residual_net() -> Iterator[Case]:
    for activation, context, dtype in _ways(("elu", "silu"), (0, 3), WIDE):
        name = f"residual_net norms {activation}{', context' if context else ''} {dtype}"
        yield Case(name, functools.partial(_normed, dtype, activation, context))
    for blocks, context, dtype in _ways((0, 1, 2), (0, 3), WIDE):
        name = f"residual_net {blocks} blocks{', context' if context else ''} {dtype}"
        yield Case(name, functools.partial(_residual_net, dtype, blocks, context))


def _conv_net(dtype: str, backend: str, activation: str, sides: tuple[int, ...]) -> Results:
    channels = (*(2, H, 7)[: len(sides)], 3)
    sizes = [(b, a, k, k) for k, (a, b) in zip(sides, itertools.pairwise(channels), strict=True)]
    leaves = {"x": leaf("x", 3, 2, 6, 7, dtype=DTYPES[dtype])}
    for i, size in enumerate(sizes):
        scale = (size[1] * size[2] ** 2) ** -0.5
        leaves[f"weight {i}"] = leaf(f"weight {i}", *size, scale=scale, dtype=DTYPES[dtype])
        leaves[f"bias {i}"] = leaf(f"bias {i}", size[0], dtype=DTYPES[dtype])
    layers = [(leaves[f"weight {i}"], leaves[f"bias {i}"]) for i in range(len(sizes))]
    y = ops.conv_net(leaves["x"], layers, activation=activation, backend=backend)
    return with_gradients({"y": y}, leaves)


def conv_net() -> Iterator[Case]:
    """Pixels as rows: torch's own convolutions are no business of ours."""
    for activation, sides, dtype in _ways(("relu", "gelu"), ((3, 1, 3), (1, 3)), WIDE):
        name = f"conv_net {activation} {'x'.join(map(str, sides))} {dtype}"
        yield Case(name, functools.partial(_conv_net, dtype, "cpu", activation, sides))


# ---- network and map ----

MAPS: dict[str, Any] = {
    "rqs": transforms.RQS(bins=6, tail_bound=2.0),
    "rqs circular": transforms.RQS(bins=6, tails="circular", tail_bound=2.0),
    "rqs linear order": transforms.RQS(bins=6, tail_bound=2.0, order="linear"),
    "rqs soft_clip": transforms.RQS(bins=6, tail_bound=2.0, parametrization="soft_clip"),
    "squares": transforms.Polynomial(degree=3, terms=2, bound=4.0),
    "Bernstein": transforms.Polynomial("bernstein", 6, bound=2.0),
    **{f"affine {scale}": transforms.Affine(scale) for scale in SCALES},
}


def _flow(dtype: str, name: str, inverse: bool, residual: bool, activation: str, context: int) -> Results:
    univariate, kind = MAPS[name], DTYPES[dtype]
    seen, mapped = (0, 2), (1, 3, 4)
    n_out = len(mapped) * univariate.n_params
    sizes = _dense_sizes(2, n_out, 2, context) if residual else [(H, 2 + context), (H, H), (n_out, H)]
    layers, leaves = _layers(sizes, kind)
    leaves["x"] = leaf("x", ROWS, D, dtype=kind)
    if context:
        leaves["context"] = leaf("context", ROWS, context, dtype=kind)
    y, ladj = _flow_layer.flow_layer(
        leaves["x"], layers, univariate.inverted() if inverse else univariate, _flow_layer.split_of(D, seen, mapped),
        context=leaves.get("context"), residual=residual, activation=activation,
    )  # fmt: skip
    return with_gradients({"y": y, "ladj": ladj}, leaves)


def flow_layer() -> Iterator[Case]:
    for name, inverse, dtype in _ways(MAPS, (False, True), WIDE):
        yield Case(
            f"flow_layer {name} residual {_way(inverse)} {dtype}",
            functools.partial(_flow, dtype, name, inverse, True, "relu", 0),
        )
    for name, inverse, context, dtype in _ways(("rqs", "affine softplus"), (False, True), (0, 3), WIDE):
        more = ", context" if context else ""
        for activation in ACTIVATIONS:
            yield Case(
                f"flow_layer {name} plain {activation}{more} {_way(inverse)} {dtype}",
                functools.partial(_flow, dtype, name, inverse, False, activation, context),
            )
        if context:
            yield Case(
                f"flow_layer {name} residual{more} {_way(inverse)} {dtype}",
                functools.partial(_flow, dtype, name, inverse, True, "relu", context),
            )


def _sweep(
    dtype: str, name: str, net: tuple[str, bool, str], flags: dict[str, bool] | None = None, **settings: Any
) -> Results:
    univariate, kind = dataclasses.replace(MAPS[name], **(flags or {})), DTYPES[dtype]
    activation, residual, terms = net
    plan, layers, leaves, keywords = _net(univariate.n_params, kind, residual, terms)
    leaves["z"] = leaf("z", ROWS, D, dtype=kind)
    if settings.pop("sinusoids", False):
        settings["periodic_features"] = leaves["sinusoids"] = leaf("sinusoids", D, 5, dtype=kind)
    x, ladj = ops.autoregressive_inverse(
        leaves["z"], layers, plan, univariate, activation=activation, **keywords, **settings
    )
    return with_gradients({"x": x, "ladj": ladj}, leaves)


def autoregressive_inverse() -> Iterator[Case]:
    for name, residual, dtype in _ways(MAPS, (False, True), WIDE):
        net = ("relu", residual, "")
        yield Case(
            f"autoregressive_inverse {name} {_name_of(*net)} {dtype}", functools.partial(_sweep, dtype, name, net)
        )
    for name, net, dtype in _ways(("rqs", "affine exp"), list(_nets()), WIDE):
        if net[0] == "relu" and not net[2]:
            continue
        yield Case(
            f"autoregressive_inverse {name} {_name_of(*net)} {dtype}", functools.partial(_sweep, dtype, name, net)
        )
    for (label, name, settings), dtype in _ways(
        (
            ("shifted circle", "rqs circular", {"flags": {"circle_shift": True}}),
            ("zero outside", "rqs", {"flags": {"zero_outside": True}}),
            ("sinusoids", "rqs circular", {"sinusoids": True}),
        ),
        WIDE,
    ):
        yield Case(
            f"autoregressive_inverse {label} {dtype}",
            functools.partial(_sweep, dtype, name, ("relu", True, ""), **settings),
        )


# ---- channels ----


def _x_of(form: str, dtype: torch.dtype) -> Tensor:
    if form == "features":
        return leaf("x", ROWS, D, dtype=dtype)
    x = draw("x", 3, D, 4, 3, dtype=dtype)
    return (x.to(memory_format=torch.channels_last) if form == "channels last" else x).requires_grad_()


def _actnorm(dtype: str, form: str, inverse: bool) -> Results:
    kind = DTYPES[dtype]
    leaves = {"x": _x_of(form, kind)} | {n: leaf(n, D, scale=0.3, dtype=kind) for n in ("log_scale", "shift")}
    y, ladj = ops.actnorm(*leaves.values(), channel_dim=-1 if form == "features" else 1, inverse=inverse)
    return with_gradients({"y": y, "ladj": ladj}, leaves)


def _lu(dtype: str, form: str, inverse: bool, whole: bool) -> Results:
    kind = DTYPES[dtype]
    leaves = {"x": _x_of(form, kind)} | {n: leaf(n, D, D, scale=0.4, dtype=kind) for n in ("lower", "upper")}
    leaves["log_s"] = leaf("log_s", D, scale=0.3, dtype=kind)
    sign = torch.tensor([1, -1, 1, 1, -1], dtype=kind)
    bias = leaf("bias", D, dtype=kind) if whole else None
    permutation = torch.tensor([3, 0, 4, 1, 2]) if whole else None
    y, ladj = ops.lu_linear(
        *leaves.values(), sign, permutation, bias, channel_dim=-1 if form == "features" else 1, inverse=inverse
    )
    return with_gradients({"y": y, "ladj": ladj}, leaves | ({} if bias is None else {"bias": bias}))


def channels() -> Iterator[Case]:
    for form, inverse, dtype in _ways(("features", "image", "channels last"), (False, True), WIDE):
        yield Case(f"actnorm {form} {_way(inverse)} {dtype}", functools.partial(_actnorm, dtype, form, inverse))
        for whole in (False, True):
            more = ", permuted, bias" if whole else ""
            yield Case(
                f"lu_linear {form}{more} {_way(inverse)} {dtype}", functools.partial(_lu, dtype, form, inverse, whole)
            )


# ---- monotone networks ----


def _monotone(dtype: str, lead: tuple[int, ...], each: bool, **settings: Any) -> Results:
    kind = DTYPES[dtype]
    sizes = [(9, 4), (14, 9), (1, 14)]
    leaves = {"x": leaf("x", *lead, D, scale=1.2, dtype=kind), "signal": leaf("signal", *lead, D, 3, dtype=kind)}
    for i, (n_out, n_in) in enumerate(sizes):
        sets = (D,) if each else ()
        leaves[f"weight {i}"] = leaf(f"weight {i}", *sets, n_out, n_in, scale=n_in**-0.5, dtype=kind)
        leaves[f"bias {i}"] = leaf(f"bias {i}", *sets, n_out, scale=0.3, dtype=kind)
    x, signal, *rest = leaves.values()
    layers = list(zip(rest[::2], rest[1::2], strict=True))
    y, ladj = ops.monotone_net(x, signal, layers, **settings)
    return with_gradients({"y": y, "ladj": ladj}, leaves)


def monotone() -> Iterator[Case]:
    for form, inverse, dtype in _ways(("integral", "positive"), (False, True), DTYPES):
        run = functools.partial(_monotone, dtype, (ROWS,), True, form=form, inverse=inverse)
        yield Case(f"monotone {form} {_way(inverse)} {dtype}", run)
    for activation, inverse, dtype in _ways(("relu", "leaky_relu", "gelu", "silu", "tanh"), (False, True), WIDE):
        run = functools.partial(_monotone, dtype, (3, 7), False, activation=activation, inverse=inverse, nodes=9)
        yield Case(f"monotone {activation} for all {_way(inverse)} {dtype}", run)


def cases() -> Iterator[Case]:
    for some in (
        rqs, mixture, polynomial, affine, batch_norm, masked_linear, made, residual_net, conv_net, flow_layer,
        autoregressive_inverse, block_made, channels, low_rank, monotone, ode_flow, residual_flow,
    ):  # fmt: skip
        yield from some()
