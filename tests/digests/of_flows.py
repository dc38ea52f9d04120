"""Networks, transforms and flows of our own: in the forms a constructor's arguments give them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from flowkernels import distributions, flows, nets, transforms
from flowkernels.transforms import RQS, Affine

from .case import DTYPES, WIDE, Case, Results, draw, leaf, leaves_of, set_parameters, with_gradients

ROWS, D, C, H = 19, 4, 3, 16  # C: size of contexts
IMAGE = (4, 4, 4)
Maker = Callable[[], nn.Module]


@functools.lru_cache(maxsize=1)  # the second run of a case, which is profiled, makes nothing
def _ready(make: Maker, dtype: str, train: bool = False) -> nn.Module:
    """A module with drawn parameters; layers that a first batch sets are as after it."""
    torch.manual_seed(0)  # of permutations and random masks
    module = make().train(train)
    set_parameters(module)
    for name, buffer in module.named_buffers():
        if name.rpartition(".")[2].startswith("initiali"):
            buffer.fill_(True)
    return module.to(DTYPES[dtype])


def _context(dtype: str, context: int) -> dict[str, Tensor]:
    return {"context": leaf("context", ROWS, context, dtype=DTYPES[dtype])} if context else {}


# ---- networks ----


def _net(make: Maker, dtype: str, shape: tuple[int, ...], context: int) -> Results:
    net = _ready(make, dtype)
    leaves = {"x": leaf("x", ROWS, *shape, dtype=DTYPES[dtype])} | _context(dtype, context)
    y = net(leaves["x"], leaves["context"]) if context else net(leaves["x"])
    return with_gradients({"y": y}, leaves | leaves_of(net))


def networks() -> Iterator[Case]:
    named = ("relu", "leaky_relu", "elu", "gelu", "silu", "tanh")
    of_torch: dict[str, Any] = {
        "nn.ReLU": nn.ReLU, "nn.LeakyReLU": nn.LeakyReLU, "nn.ELU": nn.ELU, "nn.GELU": nn.GELU, "nn.SiLU": nn.SiLU,
        "nn.Tanh": nn.Tanh, "F.elu": nn.functional.elu, "F.silu": nn.functional.silu, "torch.tanh": torch.tanh,
    }  # fmt: skip
    makers: dict[str, tuple[Maker, tuple[int, ...], int]] = {}
    for context in (0, C):
        more = ", context" if context else ""
        for name, activation in {**{n: n for n in named}, **of_torch}.items():
            sizes = {"context": context, "activation": activation}
            makers[f"nets.MLP {name}{more}"] = (functools.partial(nets.MLP, D, 7, (H, H), **sizes), (D,), context)
            for residual in (False, True):
                label = f"nets.MADE {name}{' residual' if residual else ''}{more}"
                made = functools.partial(nets.MADE, D, 3, (H, H), residual=residual, **sizes)
                makers[label] = (made, (D,), context)
        for name in ("relu", "elu", "tanh"):
            sizes = {"context": context, "activation": name}
            makers[f"nets.ResidualNet {name}{more}"] = (
                functools.partial(nets.ResidualNet, D, 7, H, **sizes),
                (D,),
                context,
            )
            makers[f"nets.ConvNet {name}{more}"] = (
                functools.partial(nets.ConvNet, 4, 6, (H, H), **sizes),
                IMAGE,
                context,
            )
            makers[f"nets.ConvResNet {name}{more}"] = (
                functools.partial(nets.ConvResNet, 4, 6, H, 1, **sizes), IMAGE, context,
            )  # fmt: skip
    makers["nets.MADE zuko's context"] = (
        functools.partial(nets.MADE, D, 3, (H, H), context=C, context_activation=False), (D,), C,
    )  # fmt: skip
    makers["nets.MADE random degrees"] = (functools.partial(nets.MADE, D, 3, (H, H), degrees="random", seed=1), (D,), 0)
    makers["nets.MADE given order"] = (functools.partial(nets.MADE, D, 3, (H, H), order=[2, 0, 3, 1]), (D,), 0)
    makers["nets.ResidualNet batch_norm"] = (functools.partial(nets.ResidualNet, D, 7, H, batch_norm=True), (D,), 0)
    makers["nets.Constant"] = (functools.partial(nets.Constant, D, 7), (D,), 0)
    for (name, (make, shape, context)), dtype in _ways(makers, WIDE):
        yield Case(f"{name} {dtype}", functools.partial(_net, make, dtype, shape, context))


def _ways(makers: dict[str, Any], dtypes: tuple[str, ...]) -> Iterator[tuple[Any, str]]:
    return ((item, dtype) for item in makers.items() for dtype in dtypes)


# ---- transforms ----


def _transform(make: Maker, dtype: str, shape: tuple[int, ...], context: int, inverse: bool) -> Results:
    transform: Any = _ready(make, dtype)
    squash = isinstance(transform, transforms.Logit) and not inverse
    x = leaf("x", ROWS, *shape, dtype=DTYPES[dtype])
    leaves = {"x": x} | _context(dtype, context)
    given = [x.tanh() * 0.4 + 0.5 if squash else x, *([leaves["context"]] if context else [])]
    run = transform.inverse if inverse else transform
    with torch.no_grad():
        alone = run(*given)
    y, ladj = run(*given)
    found = with_gradients({"y": y, "ladj": ladj}, leaves | leaves_of(transform))
    return found | {"y, no_grad": alone[0], "ladj, no_grad": alone[1]}


MAPS: dict[str, Any] = {
    "RQS": RQS(bins=5, tail_bound=2.0),
    "RQS circular": RQS(bins=5, tail_bound=2.0, tails="circular"),
    "RQS shifted circle": RQS(bins=5, tail_bound=4.0, tails="circular", circle_shift=True),
    "RQS linear order": RQS(bins=5, tail_bound=2.0, order="linear"),
    "RQS soft_clip": RQS(bins=5, tail_bound=2.0, parametrization="soft_clip"),
    **{
        f"Affine {s}": Affine(s)
        for s in ("exp", "softplus", "sigmoid", "tanh", "atan", "soft_clip", "reciprocal_sigmoid", "additive")
    },
}


def layers() -> Iterator[Case]:
    alternating, halves, irregular = [0, 1, 0, 1], [0, 0, 1, 1], [1, 0, 1, 1]
    pixels = transforms.checkerboard(*IMAGE)
    makers: dict[str, tuple[Maker, tuple[int, ...], int]] = {}
    for name, univariate in MAPS.items():
        residual = functools.partial(nets.ResidualNet, hidden=H)
        P = univariate.n_params
        for mask_name, mask in (("alternating", alternating), ("irregular", irregular)):
            makers[f"Coupling {name} {mask_name}"] = (
                functools.partial(transforms.Coupling, mask, residual, univariate), (D,), 0,
            )  # fmt: skip
        makers[f"Autoregressive {name}"] = (
            lambda P=P, u=univariate: transforms.Autoregressive(nets.MADE(D, P, (H, H)), u), (D,), 0,
        )  # fmt: skip
        makers[f"Autoregressive {name} residual, context"] = (
            lambda P=P, u=univariate: transforms.Autoregressive(nets.MADE(D, P, (H,) * 3, residual=True, context=C), u),
            (D,), C,
        )  # fmt: skip
        conv = functools.partial(nets.ConvNet, hidden=(H, H))
        for mask_name, mask in (("channels", halves), ("pixels", pixels)):
            makers[f"ImageCoupling {name} {mask_name}"] = (
                functools.partial(transforms.ImageCoupling, mask, conv, univariate), IMAGE, 0,
            )  # fmt: skip
    for name in ("RQS", "Affine softplus"):
        for activation in ("relu", "silu", "tanh"):
            mlp = functools.partial(nets.MLP, hidden=(H, H), activation=activation, context=C)
            makers[f"Coupling {name} MLP {activation}, context"] = (
                functools.partial(transforms.Coupling, halves, mlp, MAPS[name]), (D,), C,
            )  # fmt: skip
        contextual = functools.partial(nets.ResidualNet, hidden=H, context=C)
        makers[f"Coupling {name} residual, context"] = (
            functools.partial(transforms.Coupling, halves, contextual, MAPS[name]), (D,), C,
        )  # fmt: skip
    of: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
        "ActNorm": (lambda: transforms.ActNorm(D), (D,)),
        "ActNorm image": (lambda: transforms.ActNorm(4, channel_dim=1), IMAGE),
        "BatchNorm": (lambda: transforms.BatchNorm(D), (D,)),
        "BatchNorm image": (lambda: transforms.BatchNorm(4, channel_dim=1), IMAGE),
        "DiagonalScale": (lambda: transforms.DiagonalScale(D), (D,)),
        "LULinear": (lambda: transforms.LULinear(D, seed=1), (D,)),
        "LULinear image": (lambda: transforms.LULinear(4, channel_dim=1, seed=1), IMAGE),
        "LUConv1x1": (lambda: transforms.LUConv1x1(4, bias=True, seed=1), IMAGE),
        "Logit": (lambda: transforms.Logit(), (D,)),
        "Permutation": (lambda: transforms.Permutation([2, 0, 3, 1]), (D,)),
        "Squeeze": (lambda: transforms.Squeeze(), IMAGE),
        "Inverse": (lambda: transforms.Inverse(transforms.LULinear(D, seed=1)), (D,)),
        "Composite": (
            lambda: transforms.Composite(
                [transforms.ActNorm(D), transforms.LULinear(D, seed=1), transforms.Permutation.reverse(D)]
            ),
            (D,),
        ),
    }  # fmt: skip
    makers |= {name: (make, shape, 0) for name, (make, shape) in of.items()}
    for (name, (make, shape, context)), dtype in _ways(makers, WIDE):
        for inverse in (False, True):
            way = "inverse" if inverse else "forward"
            run = functools.partial(_transform, make, dtype, shape, context, inverse)
            yield Case(f"transforms.{name} {way} {dtype}", run)


# ---- flows ----


def _log_prob(make: Maker, dtype: str, shape: tuple[int, ...], context: int, train: bool) -> Results:
    flow: Any = _ready(make, dtype, train)
    leaves = {"x": leaf("x", ROWS, *shape, dtype=DTYPES[dtype])} | _context(dtype, context)
    with torch.no_grad():
        alone = flow.log_prob(leaves["x"], leaves.get("context"))
    outputs = {"log_prob": flow.log_prob(leaves["x"], leaves.get("context"))}
    return with_gradients(outputs, leaves | leaves_of(flow)) | {"log_prob, no_grad": alone}


def _decode(make: Maker, dtype: str, shape: tuple[int, ...], context: int) -> Results:
    """Data of a fixed latent, as a sample is made."""
    flow: Any = _ready(make, dtype)
    with torch.no_grad():  # whose shape is not always the data's
        z = flow.encode(
            draw("x", ROWS, *shape, dtype=DTYPES[dtype]),
            draw("context", ROWS, context, dtype=DTYPES[dtype]) if context else None,
        )
    leaves = {"z": leaf("z", *z.shape, dtype=DTYPES[dtype])} | _context(dtype, context)
    with torch.no_grad():
        alone = flow.transform.inverse(leaves["z"], leaves.get("context"))
    x, ladj = flow.transform.inverse(leaves["z"], leaves.get("context"))
    found = with_gradients({"x": x, "ladj": ladj}, leaves | leaves_of(flow.transform))
    return found | {"x, no_grad": alone[0], "ladj, no_grad": alone[1]}


def models() -> Iterator[Case]:
    small: dict[str, Any] = {"transforms": 2, "hidden": (H, H)}
    spline = RQS(bins=5, tail_bound=2.0)
    bare = functools.partial(flows.NSF, linear=None)
    forms: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "NSF": (bare, {}),
        "NSF mlp": (bare, {"net": "mlp"}),
        "NSF elu": (bare, {"activation": "elu"}),
        "NSF soft_clip": (bare, {"parametrization": "soft_clip"}),
        "NSF batch_norm": (bare, {"batch_norm": True}),
        "NSF autoregressive": (bare, {"autoregressive": True}),
        "NSF lu": (flows.NSF, {"linear": "lu_permutation", "seed": 0}),
        "MAF": (flows.MAF, {}),
        "MAF residual": (flows.MAF, {"residual": True}),
        "MAF tanh": (flows.MAF, {"activation": "tanh"}),
        "MAF exp": (flows.MAF, {"univariate": Affine("exp")}),
        "MAF RQS": (flows.MAF, {"univariate": spline}),
        "IAF": (flows.IAF, {}),
        "IAF RQS": (flows.IAF, {"univariate": spline}),
        "NICE": (flows.NICE, {}),
        "RealNVP": (flows.RealNVP, {}),
        "RealNVP batch_norm": (flows.RealNVP, {"batch_norm": True}),
        "RealNVP RQS": (flows.RealNVP, {"univariate": spline}),
    }
    makers: dict[str, tuple[Maker, tuple[int, ...], int]] = {}
    for name, (kind, settings) in forms.items():
        for context in (0, C):
            label = f"flows.{name}{', context' if context else ''}"
            makers[label] = (functools.partial(kind, D, context, **small, **settings), (D,), context)
    makers["flows.MAF mixture base"] = (
        lambda: flows.MAF(D, **small, base=flows.MixtureMADE(nets.MADE(D, 6, (H,)))), (D,), 0,
    )  # fmt: skip
    makers["flows.NSF logistic base"] = (
        lambda: bare(D, **small, base=distributions.DiagonalLogistic(D)), (D,), 0,
    )  # fmt: skip
    images: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "Glow": (flows.Glow, {"levels": 2, "steps": 2, "hidden": (H, H), "seed": 1}),
        "Glow RQS": (flows.Glow, {"levels": 1, "steps": 1, "hidden": (H, H), "seed": 1, "univariate": spline}),
        "Glow reverse": (flows.Glow, {"levels": 1, "steps": 1, "hidden": (H, H), "permutation": "reverse"}),
        "FlowPP": (flows.FlowPP, {"transforms": (1, 1, 1), "hidden": H, "components": 2, "attention": 1, "seed": 1}),
        "RealNVP": (flows.RealNVP, {"hidden": H}),
        "RealNVP batch_norm": (flows.RealNVP, {"hidden": H, "batch_norm": True}),
    }
    for name, (kind, settings) in images.items():
        makers[f"flows.{name} image"] = (functools.partial(kind, IMAGE, **settings), IMAGE, 0)
    for (name, (make, shape, context)), dtype in _ways(makers, WIDE):
        yield Case(f"{name} log_prob {dtype}", functools.partial(_log_prob, make, dtype, shape, context, False))
        yield Case(f"{name} decode {dtype}", functools.partial(_decode, make, dtype, shape, context))
        if "batch_norm" in name:
            yield Case(f"{name} train {dtype}", functools.partial(_log_prob, make, dtype, shape, context, True))
    for components, dtype in ((n, d) for n in (1, 4) for d in WIDE):
        make = functools.partial(flows.MADE, D, components, hidden=(H, H))
        name = f"flows.MADE {components} components log_prob {dtype}"
        yield Case(name, functools.partial(_log_prob, make, dtype, (D,), 0, False))


def cases() -> Iterator[Case]:
    for some in (networks, layers, models):
        yield from some()
