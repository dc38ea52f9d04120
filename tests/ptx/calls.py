"""Small calls of every op that has CUDA or Triton kernels, and the numbers rule for one run of each."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowkernels import ops
from tests.cases import n_params
from tests.numbers import assert_within_rule
from tests.ops import low_rank_cases as low_rank
from tests.ops import residual_cases as residual
from tests.ops import test_autoregressive_inverse as sweep
from tests.ops import test_block_made_kernel as block
from tests.ops import test_flow_layer as layer
from tests.ops import test_lu_linear as lu
from tests.ops import test_made as made
from tests.ops import test_monotone_net as monotone
from tests.ops.channels import cast
from tests.ops.masked import SHAPES, Shape, draw
from tests.ops.masked import assert_numbers as of_draws
from tests.ops.spline import weights

Tensors = list[Tensor]


@dataclass(frozen=True)
class Call:
    f: Callable[[str, Tensors], Any]  # backend, tensors → outputs
    tensors: Callable[[], Tensors]  # drawn in float64
    tf32: bool = False  # products of float32 on tensor cores


def _drawn(*shapes: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> Tensors:
    g = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]


def _map(op: Any, params: int, shape: tuple[int, ...] = (37, 7), **settings: Any) -> Call:
    return Call(
        lambda backend, t: op(*t, backend=backend, **settings), lambda: _drawn(shape, (*shape, params), scale=1.2)
    )


def _rqs(shape: tuple[int, ...] = (37, 7), **settings: Any) -> Call:
    return _map(ops.rqs, n_params(settings["bins"], settings.get("tails", "linear")), shape, **settings)


def _affine(scale: str, shape: tuple[int, ...] = (37, 7), inverse: bool = False) -> Call:
    return _map(ops.affine, 1 if scale == "additive" else 2, shape, scale=scale, inverse=inverse)


def _mixture(**settings: Any) -> Call:
    return _map(ops.mixture, ops.Mixture(**settings).n_params, (19, 5), **settings)


def _polynomial(**settings: Any) -> Call:
    return _map(ops.polynomial, ops.Polynomial(**settings).n_params, (19, 5), **settings)


def _actnorm(shape: tuple[int, ...], dim: int, inverse: bool = False) -> Call:
    def tensors() -> Tensors:
        x, log_scale, shift = _drawn(shape, (shape[dim],), (shape[dim],))
        return [x, 0.3 * log_scale, shift]

    return Call(lambda backend, t: ops.actnorm(*t, channel_dim=dim, inverse=inverse, backend=backend), tensors)


def _lu(shape: tuple[int, ...], dim: int, inverse: bool) -> Call:
    return Call(
        lambda backend, t: ops.lu_linear(*t, channel_dim=dim, inverse=inverse, backend=backend),
        lambda: lu.draw(shape, dim, scale=0.3),
    )


def _masked(shape: str | Shape, activation: str = "tanh", tf32: bool = False) -> Call:
    problem = draw(SHAPES[shape] if isinstance(shape, str) else shape)
    return Call(lambda backend, t: made.call(problem, backend, t, activation), lambda: problem.tensors, tf32)


def _sweep(shape: str, univariate: str) -> Call:
    map_ = sweep.UNIVARIATES[univariate]
    problem = sweep.make(SHAPES[shape], map_)
    return Call(lambda backend, t: sweep.solve(problem, map_, backend, t), lambda: problem.tensors)


def _monotone(form: str, inverse: bool) -> Call:
    layers = [t for layer in monotone.layers_of(9, 5, D=2) for t in layer]

    def f(backend: str, tensors: Tensors) -> Any:
        x, signal, *rest = tensors
        pairs = list(zip(rest[::2], rest[1::2], strict=True))
        return ops.monotone_net(x, signal, pairs, form=form, nodes=3, inverse=inverse, backend=backend)

    return Call(f, lambda: [monotone.drawn(35, 2), monotone.drawn(35, 2, 2), *layers])


def _low_rank(kind: str, by_row: bool, inverse: bool = False) -> Call:
    def tensors() -> Tensors:
        x, params = low_rank.drawn(kind, 37, 7, 3, lead=(37,) * by_row, layers=3, scale=0.5)
        if kind == "sylvester":
            params[0] = torch.linalg.qr(params[0])[0]
        return [f("reference", [x, *params], False)[0] if inverse else x, *params]

    def f(backend: str, t: Tensors, inverse: bool = inverse) -> Any:
        return ops.low_rank(t[0], t[1:], kind=kind, orthogonal=None, inverse=inverse, backend=backend)

    return Call(f, tensors)


def _block(inverse: bool, units: tuple[int, ...] = (5, 3), D: int = 7) -> Call:
    """A gate, rows of norms; features of several tiles and of some that are not full."""
    tensors, each = block.drawn(21, D, units, norms=True)

    def f(backend: str, t: Tensors, inverse: bool = inverse) -> Any:
        layers = [tuple(t[at : at + 2]) for at in range(1, len(t) - 1, each)]
        settings: Any = {"log_norms": t[3:-1:3], "residual": t[-1], "inverse": inverse, "backend": backend}
        return ops.block_made(t[0], layers, **settings)  # type: ignore[arg-type]

    def given() -> Tensors:
        found = [*tensors, torch.tensor(0.4, dtype=torch.float64)]
        return [f("reference", found, False)[0], *found[1:]] if inverse else found

    return Call(f, given)


def _residual(way: str, inverse: bool, draws: int = 0) -> Call:
    """One hidden layer of 20 units, of fewer nobody would miss some barriers; by so many draws of noise, or exact."""
    x, layers, settings = residual.drawn(residual.WAYS[way], 21, 5, 20)
    y = ops.residual_flow(x, layers, backend="reference", **settings)[0]
    settings |= residual.estimate(x, draws, (1.0, 2.0, 1.5)) if draws else {}
    betas = [settings.pop("betas")] if "betas" in settings else []

    def f(backend: str, tensors: Tensors) -> Any:
        x, *net = tensors
        more: dict[str, Any] = {k: v.to(x.dtype) if isinstance(v, Tensor) else v for k, v in settings.items()}
        more |= {"betas": net.pop()} if betas else {}
        pairs = list(zip(net[::2], net[1::2], strict=True))
        return ops.residual_flow(x, pairs, inverse=inverse, lipschitz=0.82, backend=backend, **more)

    return Call(f, lambda: [y if inverse else x, *(t for layer in layers for t in layer), *betas])


def _layer(**settings: Any) -> Call:
    """Two seen and three mapped of six features, by 40 units a layer: of fewer nobody would miss some barriers."""
    case = layer.Case((21,), 6, (4, 1), (0, 5, 3), 40, **settings)
    return Call(lambda backend, t: layer.call(case, t, False, backend), lambda: layer.draw(case))


_LAYERS = Shape((70,), 20, (36,), 2)
CALLS = {
    "rqs K=8": functools.partial(_rqs, (45, 8), bins=8),
    "rqs K=8 inverse": functools.partial(_rqs, (45, 8), bins=8, inverse=True),
    "rqs K=8 odd rows": functools.partial(_rqs, bins=8),
    "rqs K=10": functools.partial(_rqs, (45, 8), bins=10),
    "rqs K=16 inverse": functools.partial(_rqs, (45, 8), bins=16, inverse=True),
    "rqs K=5": functools.partial(_rqs, bins=5),
    "rqs circular": functools.partial(_rqs, bins=3, tails="circular", inverse=True),
    "rqs soft clip": functools.partial(_rqs, (45, 8), bins=8, parametrization="soft_clip"),
    "rqs long rows": functools.partial(_rqs, (2, 640), bins=3),
    "affine sigmoid": functools.partial(_affine, "sigmoid"),
    "affine sigmoid vectors": functools.partial(_affine, "sigmoid", (40, 8)),
    "affine exp inverse": functools.partial(_affine, "exp", inverse=True),
    "affine tanh": functools.partial(_affine, "tanh", (40, 8)),
    "affine additive": functools.partial(_affine, "additive"),
    "affine long rows": functools.partial(_affine, "sigmoid", (2, 1100)),
    "actnorm planes": functools.partial(_actnorm, (2, 5, 3, 3), 1),
    "actnorm rows": functools.partial(_actnorm, (37, 8), -1, True),
    "lu_linear": functools.partial(_lu, (2, 12, 5, 5), 1, False),
    "lu_linear inverse": functools.partial(_lu, (2, 12, 5, 5), 1, True),
    "lu_linear rows inverse": functools.partial(_lu, (37, 10), -1, True),
    "masked_linear": functools.partial(_masked, _LAYERS),
    "masked_linear relu": functools.partial(_masked, _LAYERS, "relu"),
    "masked_linear gelu": functools.partial(_masked, "three features", "gelu"),
    "masked_linear residual": functools.partial(_masked, "residual", "silu"),
    "masked_linear tf32": functools.partial(_masked, _LAYERS, "silu", True),
    "sweep softplus": functools.partial(_sweep, "three features", "softplus"),
    "sweep spline": functools.partial(_sweep, "three features", "spline"),
    "sweep residual softplus": functools.partial(_sweep, "residual", "softplus"),
    "sweep residual spline": functools.partial(_sweep, "residual", "spline"),
    "flow_layer spline": functools.partial(_layer, blocks=1, spline=ops.RQS(8)),
    "flow_layer affine inverse": functools.partial(_layer, blocks=1, spline=ops.Affine("sigmoid", inverse=True)),
    "flow_layer context": functools.partial(_layer, blocks=1, spline=ops.RQS(3, "circular", inverse=True), context=2),
    "mixture": functools.partial(_mixture, components=4),
    "mixture inverse": functools.partial(_mixture, components=3, kernel="normal", outer="probit", inverse=True),
    "polynomial squares": functools.partial(_polynomial),
    "polynomial squares inverse": functools.partial(_polynomial, inverse=True),
    "polynomial Bernstein": functools.partial(_polynomial, family="bernstein", tails="linear"),
    "polynomial Bernstein inverse": functools.partial(_polynomial, family="bernstein", degree=9, inverse=True),
    "monotone_net integral": functools.partial(_monotone, "integral", False),
    "monotone_net integral inverse": functools.partial(_monotone, "integral", True),
    "monotone_net positive": functools.partial(_monotone, "positive", False),
    "monotone_net positive inverse": functools.partial(_monotone, "positive", True),
    "block_made": functools.partial(_block, False),
    "block_made inverse": functools.partial(_block, True),
    "low_rank planar": functools.partial(_low_rank, "planar", False),
    "low_rank planar rows inverse": functools.partial(_low_rank, "planar", True, True),
    "low_rank radial rows": functools.partial(_low_rank, "radial", True),
    "low_rank radial inverse": functools.partial(_low_rank, "radial", False, True),
    "low_rank sylvester": functools.partial(_low_rank, "sylvester", False),
    "low_rank sylvester rows inverse": functools.partial(_low_rank, "sylvester", True, True),
    "residual_flow": functools.partial(_residual, "betas", False),
    "residual_flow inverse": functools.partial(_residual, "tanh", True),
    "residual_flow series": functools.partial(_residual, "elu", False, 3),
    "residual_flow series inverse": functools.partial(_residual, "preactivated", True, 1),
}
OF_TRITON = tuple(
    name
    for name in CALLS
    if name.startswith(("block_made", "low_rank", "flow_layer", "residual_flow")) or "tf32" in name
)  # no CUDA kernel has them


@functools.cache
def call(name: str) -> Call:
    return CALLS[name]()


# ---- numbers ----

# In a chain of features one draw of inputs says little: these are held by the median of a few.
CHAINS = tuple(name for name in CALLS if name.startswith("sweep"))


def assert_by_draws(name: str, dtype: torch.dtype, backend: str) -> None:
    """As tests/ops/test_autoregressive_inverse.py asks."""
    of = call(name)
    of_draws(of.f, of.tensors(), "autoregressive_inverse", dtype, ["ptx"], only=[backend])


@contextlib.contextmanager
def _precision(tf32: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def results(of: Call, backend: str, tensors: Sequence[Tensor]) -> Tensors:
    """Outputs, and gradients of all floating tensors for fixed weights of the outputs."""
    leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in tensors]
    with _precision(of.tf32 and backend != "reference"):
        found = of.f(backend, leaves)
        outputs = [found] if isinstance(found, Tensor) else list(found)
        used, wanted = [o for o in outputs if o.requires_grad], [t for t in leaves if t.requires_grad]
        grads = torch.autograd.grad(used, wanted, [weights(o) for o in used], allow_unused=True)
    filled = [torch.zeros_like(t) if g is None else g for g, t in zip(grads, wanted, strict=True)]
    return [o.detach() for o in outputs] + filled


@dataclass(frozen=True)
class Truth:
    """What the rule needs besides the kernel's results: of each result the truth, eager's, and the condition."""

    exact: Tensors
    eager: Tensors
    moves: Tensors
    draws: Tensors


def _tf32(t: Tensor) -> Tensor:
    """What a tensor core reads of float32."""
    return (t.contiguous().view(torch.int32) & -8192).view(torch.float32) if t.dtype is torch.float32 else t


@functools.cache
def truth(name: str, dtype: torch.dtype) -> Truth:
    """As tests/ops/test_monotone_net.py asks: a few draws of inputs that are rounded once more."""
    of = call(name)
    if dtype is torch.float64:  # the truth errs as much: float32's errors, scaled
        wide, narrow = truth_of(of, torch.float32), results(of, "reference", cast(of.tensors(), dtype))
        scaled = [e + 1.5 * 2**-29 * (a - b) for e, a, b in zip(narrow, wide.eager, wide.exact, strict=True)]
        return Truth(narrow, scaled, [2**-29 * m for m in wide.moves], [1.5 * 2**-29 * d for d in wide.draws])
    return truth_of(of, dtype)


def truth_of(of: Call, dtype: torch.dtype) -> Truth:
    given = cast(of.tensors(), dtype)
    eps = torch.finfo(torch.float16 if of.tf32 else dtype).eps

    def exactly(tensors: Tensors) -> Tensors:
        return results(of, "reference", cast(tensors, torch.float64))

    def eagerly(tensors: Tensors) -> Tensors:
        return results(of, "reference", [_tf32(t) for t in tensors] if of.tf32 else tensors)

    exact, eager = exactly(given), eagerly(given)
    moves = [torch.zeros_like(t) for t in exact]
    draws = [(e.double() - t).abs() for e, t in zip(eager, exact, strict=True)]
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)

        def near(t: Tensor, g: torch.Generator = g) -> Tensor:
            if not t.is_floating_point():
                return t
            return t.double() * (1 + eps / 2 * torch.randn(t.shape, generator=g, dtype=torch.float64).sign())

        tensors = [near(t) for t in given]
        moves = [torch.maximum(m, (a - b).abs()) for m, a, b in zip(moves, exactly(tensors), exact, strict=True)]
        rounded = cast(tensors, dtype)
        pairs = zip(eagerly(rounded), exactly(rounded), strict=True)
        draws = [torch.maximum(d, (a.double() - b).abs()) for d, (a, b) in zip(draws, pairs, strict=True)]
    return Truth(exact, eager, moves, draws)


def assert_numbers(name: str, dtype: torch.dtype, found: Tensors) -> None:
    """The rule of tests/numbers.py for every result; of some elements all are held against eager's worst, and a few,
    of which there are no quantiles, by their largest error alone."""
    right = truth(name, dtype)
    for i, mine in enumerate(found):
        exact, eager, worst = right.exact[i], right.eager[i].double(), right.draws[i]
        if exact.numel() < 16 and dtype is not torch.float64:
            assert_within_rule(mine.double(), exact + worst, exact, f"{name}, {dtype}: result {i}", dtype=dtype)
            continue
        if exact.numel() < 64:
            eager = exact + worst.max()
        kind = torch.float16 if call(name).tf32 else dtype
        assert_within_rule(
            mine.double(), eager, exact, f"{name}, {dtype}: result {i}", condition=(right.moves[i], worst), dtype=kind
        )
