"""Wrong arguments of the ops on networks: a TypeError or ValueError of three parts, the same on every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from flowkernels import ops
from flowkernels.ops.flow_layer import Split, flow_layer, run_autoregressive_layer, run_layer, split_of
from flowkernels.ops.net import LayerPlan, MadePlan, layer_plan
from flowkernels.ops.net.net import dense_net, made_net
from flowkernels.transforms import RQS, Affine

R = torch.zeros
META = torch.device("meta")
B, D, C, H = 5, 3, 2, 8
AFFINE, PLAN = Affine("exp"), MadePlan([[1, 2, 3], [1, 2, 1, 2], [1, 1, 2, 2, 3, 3]])


def pairs(*sizes: tuple[int, int]) -> list[Any]:
    return [(R(s), R(s[0])) for s in sizes]


def changed(layers: list[Any], i: int, weight: Any = None, bias: Any = None) -> list[Any]:
    """The layers with a weight or a bias replaced."""
    w, b = layers[i]
    return [*layers[:i], (w if weight is None else weight, b if bias is None else bias), *layers[i + 1 :]]


RESIDUAL = pairs((H, D), (H, H), (H, H), (4, H))
GATED = pairs((H, D + C), (H, H), (H, H), (H, C), (4, H))
COUPLING = pairs((H, 1), (H, H), (H, H), (4, H))  # of the features 1 and 2 given 0, by affine maps
GATED_COUPLING = pairs((H, 1 + C), (H, H), (H, H), (H, C), (4, H))
PLAIN = pairs((H, 1), (4, H))
MADE = [(R(p.n_out, p.n_in), R(p.n_out)) for p in PLAN.layers]
X, CONTEXT = R(B, D), R(B, C)

Call = tuple[Callable[..., Any], dict[str, Any]]
# name → the op and arguments that it takes
CALLS: dict[str, Call] = {
    "residual_net": (ops.residual_net, {"x": X, "layers": RESIDUAL, "blocks": 1}),
    "residual_net, context": (ops.residual_net, {"x": X, "layers": GATED, "blocks": 1, "context": CONTEXT}),
    "flow_layer": (
        flow_layer, {"x": X, "layers": COUPLING, "univariate": AFFINE, "split": split_of(D, (0,), (1, 2))}
    ),
    "flow_layer, context": (
        flow_layer,
        {"x": X, "layers": GATED_COUPLING, "univariate": AFFINE, "split": split_of(D, (0,), (1, 2)),
         "context": CONTEXT},
    ),
    "flow_layer, plain": (
        flow_layer,
        {"x": X, "layers": PLAIN, "univariate": AFFINE, "split": split_of(D, (0,), (1, 2)), "residual": False},
    ),
    "masked_linear": (
        ops.masked_linear,
        {"x": X, "weight": R(4, D), "bias": R(4), "degrees_in": [1, 2, 3], "degrees_out": [1, 2, 1, 2]},
    ),
    "made": (ops.made, {"x": X, "layers": MADE, "plan": PLAN}),
    "autoregressive_inverse": (
        ops.autoregressive_inverse, {"z": X, "layers": MADE, "plan": PLAN, "univariate": AFFINE}
    ),
}  # fmt: skip
BACKENDS = {name: ("cpu", *(["fused_torch"] if name.startswith("residual_net") else []), "reference") for name in CALLS}

NO_TENSORS = {
    "None": None, "a number": 1.0, "text": "x", "a list": [0.0, 1.0], "an object": object(), "integers": R(B, D).long(),
    "complex": R(B, D).cfloat(), "sparse": R(B, D).to_sparse(), "a scalar": R(()),
}  # fmt: skip
WRONG_LAYERS = {
    "None": None, "a number": 3, "text": "layers", "a generator": iter(()), "a slice": slice(None), "a tensor": R(4, 4),
    "none": [], "Nones": [None] * 4, "tensors": [R(3, 3)] * 4, "triples": [(R(H, D), R(H), R(H))] * 4,
    "a dict": {0: 1},
}  # fmt: skip


def odd_parts(layers: list[Any], i: int) -> dict[str, Any]:
    """Layers of which one has an odd weight or bias."""
    (weight, bias), n = layers[i], len(layers[i][1])
    odd = {"weight" + k: {"weight": v} for k, v in {
        " is text": "w", " is a vector": R(n), " has three dims": weight[:, :, None], " of integers": weight.long(),
        " is sparse": weight.to_sparse(), " of doubles": weight.double(), " on meta": weight.to(META),
        " has an input more": R(n, weight.shape[1] + 1), " has an input less": R(n, weight.shape[1] - 1),
        " has an output more": R(n + 1, weight.shape[1]), " has no output": R(0, weight.shape[1]),
    }.items()}  # fmt: skip
    odd |= {"bias" + k: {"bias": v} for k, v in {
        " is text": "b", " is short": R(n - 1), " of one": R(1), " of rows": R(B, n), " of one row": R(1, n),
        " of no rows": R(0, n), " of halves": bias.half(), " on meta": bias.to(META), " is a scalar": R(()),
    }.items()}  # fmt: skip
    return {name: changed(layers, i, **what) for name, what in odd.items()}


def cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """name → the call, and what of it is wrong."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}

    def add(call: str, what: str, **wrong: Any) -> None:
        found[f"{call}: {what}"] = call, wrong

    for call, (_, arguments) in CALLS.items():
        x = "z" if "z" in arguments else "x"
        for name, value in NO_TENSORS.items():
            add(call, f"{x} is {name}", **{x: value})
        add(call, "narrow", **{x: R(B, D - 1)})
        add(call, "wide", **{x: R(B, D + 1)})
        add(call, "doubles", **{x: X.double()})
        if "layers" in arguments:
            for name, value in WRONG_LAYERS.items():
                add(call, f"layers are {name}", layers=value)
            for i in range(len(arguments["layers"])):
                for name, value in odd_parts(arguments["layers"], i).items():
                    add(call, f"layer {i}: {name}", layers=value)
            add(call, "a layer more", layers=[*arguments["layers"], arguments["layers"][-1]])
        if "context" in arguments:
            for name, value in NO_TENSORS.items():
                if value is not None:
                    add(call, f"context is {name}", context=value)
            for shape in ((B, C + 1), (B, C - 1), (B + 1, C), (2, B, C)):
                add(call, f"context of {shape}", context=R(shape))
        if "univariate" in arguments:
            for name, value in {
                "None": None, "an object": object(), "a class": Affine, "text": "exp",
                "of other parameters": RQS(bins=4), "additive": Affine("additive"),
            }.items():  # fmt: skip
                add(call, f"univariate is {name}", univariate=value)
        if "plan" in arguments:
            for name, value in {"None": None, "text": "plan", "of a layer": PLAN.layers[0]}.items():
                add(call, f"plan is {name}", plan=value)
            for terms in ("adds", "gates"):
                for name, value in {
                    "a slice": slice(None), "a number": 1, "text": "ab", "too few": [None],
                    "an object": [object(), None], "of other widths": [R(B, 9), None],
                    "of other rows": [R(B + 1, 4), None], "of dims": [R(2, B, 4), None],
                    "of a column": [R(B, 1), None],
                    "a gate that closes nothing" if terms == "gates" else "of doubles":
                        [R(B, 4) if terms == "gates" else R(B, 4).double(), None],
                }.items():  # fmt: skip
                    add(call, f"{terms} are {name}", **{terms: value})
        if "activation" in CALLS[call][0].__kwdefaults__:
            for value in ("softmax", None, 3, torch.relu):
                add(call, f"activation {getattr(value, '__name__', value)}", activation=value)
    for call in ("residual_net", "residual_net, context"):
        for value in (-1, 0, 2, 1.0, True, "1", None, R(())):
            add(call, f"blocks {value!r}", blocks=value)
    for call in ("flow_layer", "flow_layer, plain"):
        for value in (None, object(), float("nan"), (0, 1), split_of(4, (0,), (1, 2)), split_of(D, (0,), (1,))):
            add(call, f"split {type(value).__name__} {getattr(value, 'features', '')}", split=value)
        for value in ("yes", 2, None, torch.tensor([1.0, 1.0])):
            add(call, f"residual {value!r}", residual=value)
    for name, value in {"yes": "yes", "nan": float("nan"), "a list": [1], "a tensor": torch.tensor(True)}.items():
        add("masked_linear", f"strict {name}", strict=value)
    add("autoregressive_inverse", "the inverse", univariate=AFFINE.inverted())
    for value in (R(D, 4), R(D + 1, 5), "periodic_features", R(D, 5).double()):
        add(
            "autoregressive_inverse",
            f"periodic_features {getattr(value, 'shape', value)} {getattr(value, 'dtype', '')}",
            periodic_features=value,
        )
    for name, value in NO_TENSORS.items():
        add("masked_linear", f"weight is {name}", weight=value)
        if value is not None:
            add("masked_linear", f"bias is {name}", bias=value)
            add("masked_linear", f"residual is {name}", residual=value)
    for shape in ((4, D, 1), (4,), (3, D), (4, D + 1)):
        add("masked_linear", f"weight of {shape}", weight=R(shape))
    for shape in ((3,), (1,), (1, 4), (B, 4)):
        add("masked_linear", f"bias of {shape}", bias=R(shape))
    for name in ("degrees_in", "degrees_out"):
        n = D if name == "degrees_in" else 4
        for what, value in {
            "meta": R(n, device=META).long(), "sparse": R(n).long().to_sparse(), "floats": R(n), "text": "abc"[:n],
            "negative": [-1] * n, "None": None, "complex": R(n).cfloat(), "short": [1], "a number": 3,
        }.items():  # fmt: skip
            add("masked_linear", f"{name}, {what}", **{name: value})
    return found


CASES = cases()


def check(name: str, backend: str | None, compiled: bool = False) -> None:
    call, wrong = CASES[name]
    op, arguments = CALLS[call]
    if compiled:
        op = torch.compile(op, backend="eager", dynamic=False)
    with pytest.raises((TypeError, ValueError), match=r"(?s)^.+ must .+, got .+") as raised:
        op(**{**arguments, **wrong}, backend=backend)
    assert str(raised.value).startswith(("ops.", "LayerPlan", "MadePlan")), raised.value


@pytest.mark.parametrize("name", CALLS)
def test_what_is_right_is_taken(name) -> None:
    op, arguments = CALLS[name]
    for backend in BACKENDS[name]:
        op(**arguments, backend=backend)


@pytest.mark.parametrize("name", CASES)
def test_every_backend_refuses(name) -> None:
    for backend in (None, *BACKENDS[CASES[name][0]]):
        check(name, backend)


# One of each kind: a compiler takes half a second for each.
COMPILED = [
    "residual_net: narrow", "residual_net: layer 1: bias of one row", "residual_net, context: context of (5, 3)",
    "flow_layer: wide", "flow_layer: univariate is a class", "made: narrow", "masked_linear: bias of (1, 4)",
    "autoregressive_inverse: univariate is of other parameters", "residual_net: layer 2: weight has an output more",
]  # fmt: skip


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiler_refuses(name) -> None:
    torch._dynamo.reset()
    check(name, None, compiled=True)


# ---- what is not called by users, and what is called once ----


@pytest.mark.parametrize("univariate", [None, Affine, RQS(bins=4)])
def test_those_that_try(univariate) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^ops.flow_layer: .+ must .+, got .+"):
        run_layer(X, dense_net(COUPLING, True, "relu", 1, (B,), None), univariate, split_of(D, (0,), (1, 2)))
    with pytest.raises((TypeError, ValueError), match=r"^ops.flow_layer: .+ must .+, got .+"):
        run_autoregressive_layer(X, made_net(MADE, PLAN, "relu"), univariate)


@pytest.mark.parametrize("seen", [R(B, D + 1), R(B + 1, D), R(B, D).double(), "seen"])
def test_what_is_seen_in_place_of_x(seen) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^ops.flow_layer: seen must .+, got .+"):
        run_autoregressive_layer(X, made_net(MADE, PLAN, "relu"), AFFINE, seen)


@pytest.mark.parametrize(
    ("features", "inputs", "outputs"),
    [
        (3, (0, None), (1,)), (3, 0.5, (1,)), (3, "", (1,)), (3, (0,), None), (3, [0], [[1]]), (0, (0,), (1,)),
        (3.0, (0,), (1,)), ("3", (0,), (1,)), (None, (0,), (1,)), (3, (0.5,), (1,)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("make", [split_of, Split])
def test_columns(make, features, inputs, outputs) -> None:
    with pytest.raises(ValueError, match=r"^ops.flow_layer: (features|inputs|outputs) must be .+, got .+"):
        make(features, inputs, outputs)


def test_columns_are_no_flags() -> None:
    with pytest.raises(ValueError, match=r"outputs must be distinct features below 3, at least one, got \(True,\)"):
        Split(3, (0,), (True,))


@pytest.mark.parametrize(
    "make",
    [
        lambda: MadePlan(None), lambda: MadePlan(3), lambda: MadePlan([None, [1]]), lambda: MadePlan(R(2, 2)),
        lambda: MadePlan([[1], [1], [1]], residual=2), lambda: MadePlan([[1], [1], [1]], residual=None),
        lambda: LayerPlan(None, [1], strict=False), lambda: LayerPlan([1], [1], strict="no"),
        lambda: LayerPlan([1], R(1).long().to(META), strict=False), lambda: layer_plan([1], [1], 2),
        lambda: layer_plan(R(1).long(), R(1).long(), torch.tensor([1.0, 1.0])),
    ],
)  # fmt: skip
def test_plans(make: Callable[[], Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^(Made|Layer)Plan.* must be .+, got .+"):
        make()
