"""Neighbouring layers in another library's container as one op: the bits of the layers one by one, whatever becomes of
their modules meanwhile."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import nflows.transforms as nf
import pytest
import torch
from nflows.nn.nets import ResidualNet
from torch import Tensor, nn
from torch.nn.utils import prune

from flowkernels import compat, use_backend
from flowkernels.compat.engine import patch
from flowkernels.transforms import parts
from tests.compat.nflows_models import assert_numbers, results, shaken
from tests.runs import WHERE_THEY_RUN, drawn, ran

__all__ = ["ran"]  # a fixture
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),
    WHERE_THEY_RUN,
]
B, D, C, H = 64, 5, 3, 12
WAYS = ["forward", "inverse"]
SPLINE = {"num_bins": 4, "tails": "linear", "tail_bound": 2.0}


# ---- models ----


def net(context: int | None, **more: Any) -> Callable[[int, int], nn.Module]:
    return lambda i, o: ResidualNet(i, o, H, context_features=context, num_blocks=1, **more)


def spline(mask: list[int], context: int | None = None, **more: Any) -> nn.Module:
    return nf.PiecewiseRationalQuadraticCouplingTransform(mask, net(context, **more), **SPLINE)


def affine(mask: list[int], context: int | None = None, **more: Any) -> nn.Module:
    return nf.AffineCouplingTransform(mask, net(context, **more))


MASK, OTHER = [0, 1, 0, 1, 1], [1, 0, 1, 0, 0]


def mixed(context: int | None = None, dropout: float = 0.0) -> nn.Module:
    """Three couplings, permutations, and two autoregressive layers, one of which is turned round."""
    torch.manual_seed(0)
    more = {"dropout_probability": dropout}
    layers = nf.MaskedAffineAutoregressiveTransform, nf.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
    maf, ar = (cls(D, H, context, **more, **s) for cls, s in zip(layers, ({}, SPLINE), strict=True))
    inner = [nf.RandomPermutation(D), spline(MASK, context, **more), nf.ReversePermutation(D), maf]
    outer = [nf.InverseTransform(affine(OTHER, context, **more)), ar, nf.AdditiveCouplingTransform(MASK, net(context))]
    return shaken(nf.CompositeTransform([nf.CompositeTransform(inner), *outer]), 0.05)


def couplings(context: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    parts = [spline(MASK, context), nf.RandomPermutation(D), affine(OTHER, context), spline(OTHER, context)]
    return shaken(nf.CompositeTransform(parts), 0.1)


def masked(context: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    more = {"use_residual_blocks": False, "activation": torch.tanh}
    parts = [nf.MaskedAffineAutoregressiveTransform(D, H, context, **more) for _ in range(3)]
    return shaken(nf.CompositeTransform([parts[0], nf.RandomPermutation(D), *parts[1:]]), 0.1)


MODELS = {"mixed": mixed, "couplings": couplings, "masked": masked}
# Layers of each run forward, and of each backwards.
LAYERS = {"mixed": ([5], [1] * 5), "couplings": ([3], [3]), "masked": ([3], [3])}


def one_by_one(model: nn.Module) -> nn.Module:
    """The same accelerated layers without their container."""
    twin = copy.deepcopy(model)
    for m in twin.modules():
        if patch.is_fast(m) and not patch.is_fast_layer(m):
            patch.unswap(m)
    return twin


def fast(model: nn.Module) -> nn.Module:
    assert compat.accelerate(model).accelerated
    return model


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, t in expected.items():
        assert torch.equal(found[name], t), name


def assert_as_one_by_one(model: Any, x: Tensor, c: Tensor | None = None, way: str = "forward") -> dict[str, Tensor]:
    """Returns what the model gives."""
    found = results(model, x, c, way, x.dtype)
    assert_same(found, results(one_by_one(model), x, c, way, x.dtype))
    return found


# ---- numbers ----


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("context", [None, C])
@pytest.mark.parametrize("name", MODELS)
def test_numbers_of_the_library(name, context, way) -> None:
    def theirs(model: Any, x: Tensor, c: Any, dtype: torch.dtype) -> dict[str, Tensor]:
        return results(model, x, c, way, dtype)

    def ours(model: Any, *rest: Any) -> dict[str, Tensor]:
        return theirs(fast(copy.deepcopy(model)), *rest)

    model, x, c = MODELS[name](context), drawn(B, D), drawn(B, context or C, seed=2)
    if context is None:
        assert_numbers(lambda m, x, d: theirs(m, x, None, d), lambda m, x, d: ours(m, x, None, d), model, x)
    else:
        assert_numbers(theirs, ours, model, x, c)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 3, B, 200])
@pytest.mark.parametrize("context", [None, C])
@pytest.mark.parametrize("name", MODELS)
def test_bits_of_the_layers_one_by_one(name, context, rows, precision, ran) -> None:
    model = fast(MODELS[name](context)).to(precision)
    c = None if context is None else drawn(rows, context, seed=2).to(precision)
    for way, expected in zip(WAYS, LAYERS[name], strict=True):
        ran.clear()
        assert_as_one_by_one(model, drawn(rows, D).to(precision), c, way)
        assert ran == expected


@pytest.mark.parametrize("context", [None, C])
def test_one_node(context, ran) -> None:
    model, c = fast(mixed(context)), None if context is None else drawn(B, context)
    y, ladj = model(drawn(B, D), c)
    assert type(y.grad_fn).__name__ == "flowkernels::flowBackward" and y.grad_fn is ladj.grad_fn
    seen, todo, nodes = set(), [y.grad_fn], []
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes.append(type(node).__name__)
            todo += [parent for parent, _ in node.next_functions]
    assert [n for n in nodes if n.startswith("flowkernels")] == ["flowkernels::flowBackward"] and ran == [5]


def test_a_sum_inside_of_a_sum_has_its_bits(ran) -> None:
    """A composite that is not the first adds up its layers alone."""
    torch.manual_seed(0)
    parts = [spline(MASK), nf.CompositeTransform([spline(OTHER), affine(MASK)]), nf.CompositeTransform([affine(OTHER)])]
    model = fast(shaken(nf.CompositeTransform(parts), 0.3))
    for way, expected in (("forward", [1, 2, 1]), ("inverse", [1, 2, 1])):
        ran.clear()
        assert_as_one_by_one(model, drawn(B, D), way=way)
        assert ran == expected


def with_own_steps(context: int | None = None) -> nn.Module:
    """Between couplings and an autoregressive layer those without a network; ActNorm has had its first batch."""
    torch.manual_seed(0)
    z_score = nf.PointwiseAffineTransform(torch.linspace(-1, 1, D), torch.linspace(0.5, 2, D))
    unconditional = nf.PiecewiseRationalQuadraticCouplingTransform(
        MASK, net(context), apply_unconditional_transform=True, **SPLINE
    )
    lu = nf.LULinear(D, identity_init=False)
    maf = nf.MaskedAffineAutoregressiveTransform(D, H, context)
    inner = [unconditional, lu, affine(OTHER, context), nf.RandomPermutation(D), nf.ActNorm(D), maf]
    model = nf.CompositeTransform([z_score, nf.CompositeTransform([*inner, nf.InverseTransform(nf.LULinear(D))])])
    model(drawn(99, D, seed=3), None if context is None else drawn(99, context, seed=4))
    return shaken(model, 0.05)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("context", [None, C])
def test_layers_without_a_network_are_steps_of_the_run(context, way, ran) -> None:
    def theirs(model: Any, x: Tensor, *rest: Any) -> dict[str, Tensor]:
        *c, dtype = rest
        return results(model, x, c[0] if c else None, way, dtype)

    model, x, c = with_own_steps(context), drawn(B, D), [drawn(B, C, seed=2)] * (context is not None)
    assert_numbers(theirs, lambda m, *rest: theirs(fast(copy.deepcopy(m)), *rest), model, x, *c)
    assert ran == ([3] if way == "forward" else [1, 2]) * 2  # a sweep is a run of its own
    model = fast(model)
    for rows in (1, 3, 200):
        for precision in (torch.float32, torch.float64):
            given = drawn(rows, D), *([drawn(rows, C, seed=2)] * (context is not None))
            found = theirs(model.to(precision), *(t.to(precision) for t in given), precision)
            expected = theirs(one_by_one(model), *(t.to(precision) for t in given), precision)
            for name, t in expected.items():
                torch.testing.assert_close(found[name], t, rtol=1e-3, atol=1e-3)


def test_what_is_no_step_splits_the_run(ran) -> None:
    torch.manual_seed(0)
    kinds: list[Any] = [nf.BatchNorm(D).eval(), nf.PointwiseAffineTransform(torch.tensor(0.5), torch.tensor(2.0)),
                        nf.LULinear(D, using_cache=True).eval(), nf.QRLinear(D, 2)]  # fmt: skip
    for between in kinds:
        model = fast(nf.CompositeTransform([spline(MASK), affine(OTHER), between, spline(OTHER)]))
        model.train(between.training)
        plain = compat_restored(model)
        ran.clear()
        torch.testing.assert_close(model(drawn(B, D)), plain(drawn(B, D)), rtol=1e-4, atol=1e-4)
        assert ran == [2, 1]


def compat_restored(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    compat.restore(twin)
    return twin


# ---- what asks to be called ----


def _step(model: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(drawn(B, D).double())[1].mean().backward()
    optimizer.step()
    model.zero_grad()


def _load(model: Any) -> None:
    other = shaken(mixed(), 0.2)
    _inner(other)[0]._permutation.copy_(torch.tensor([1, 0, 2, 4, 3]))
    model.load_state_dict(other.state_dict())


def _inner(model: Any) -> Any:
    return model._transforms[0]._transforms


def _spline(model: Any) -> Any:
    return _inner(model)[1]


def _maf(model: Any) -> Any:
    return _inner(model)[3]


def _linear(model: Any) -> Any:
    return _spline(model).transform_net.blocks[0].linear_layers[0]


def _write(model: Any) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)


def _replace_data(model: Any) -> None:
    for p in model.parameters():
        p.data = p.data * 0.5


def _replace_parameter(model: Any) -> None:
    _linear(model).weight = nn.Parameter(_linear(model).weight.detach() * 2)


def _replace_module(model: Any) -> None:
    _spline(model).transform_net.blocks[0].linear_layers[0] = nn.Linear(H, H)


def _replace_net(model: Any) -> None:
    _spline(model).transform_net = net(None)(2, 3 * 11)


def _replace_net_by_another(model: Any) -> None:
    class Other(nn.Linear):
        def forward(self, x: Tensor, context: Any = None) -> Tensor:
            return super().forward(x)

    _spline(model).transform_net = Other(2, 3 * 11)


def _replace_layer(model: Any) -> None:
    _inner(model)[1] = affine(MASK)


def _append(model: Any) -> None:
    model._transforms.append(spline(OTHER))


def _other_permutation(model: Any) -> None:
    _inner(model)[0] = nf.RandomPermutation(D)


def _write_permutation(model: Any) -> None:
    _inner(model)[0]._permutation.copy_(torch.tensor([1, 0, 2, 4, 3]))


def _assign_permutation(model: Any) -> None:
    _inner(model)[2]._permutation = torch.tensor([1, 0, 2, 4, 3])


def _write_split(model: Any) -> None:
    _spline(model).identity_features.copy_(torch.tensor([1, 3]))
    _spline(model).transform_features.copy_(torch.tensor([0, 2, 4]))


def _write_mask(model: Any) -> None:
    _maf(model).autoregressive_net.final_layer.mask.mul_(0)


def _other_bound(model: Any) -> None:
    _spline(model).tail_bound = 1.0


def _other_least_slope(model: Any) -> None:
    _spline(model).min_derivative = 0.2


def _other_epsilon(model: Any) -> None:
    _maf(model)._epsilon = 0.3


def _other_activation(model: Any) -> None:
    for block in _spline(model).transform_net.blocks:
        block.activation = torch.tanh


def _unknown_activation(model: Any) -> None:
    for block in _spline(model).transform_net.blocks:
        block.activation = torch.sin


def _freeze(model: Any) -> None:
    _spline(model).requires_grad_(False)


def _hook(model: Any) -> None:
    _linear(model).register_forward_hook(lambda m, i, o: 2 * o)


def _hook_of_layer(model: Any) -> None:
    _maf(model).register_forward_hook(lambda m, i, o: (2 * o[0], o[1]))


def _hook_of_permutation(model: Any) -> None:
    _inner(model)[2].register_forward_hook(lambda m, i, o: (2 * o[0], o[1]))


def _hook_of_composite(model: Any) -> None:
    model._transforms[0].register_forward_hook(lambda m, i, o: (2 * o[0], o[1]))


def _hook_of_inverse(model: Any) -> None:
    model._transforms[1].register_forward_hook(lambda m, i, o: (2 * o[0], o[1]))


def _hook_of_all(model: Any) -> None:
    model.register_forward_hook(lambda m, i, o: (2 * o[0], o[1]))


def _hook_of_masked_net(model: Any) -> None:
    _maf(model).autoregressive_net.register_forward_hook(lambda m, i, o: 2 * o)


def _pre_hook(model: Any) -> None:
    _maf(model).autoregressive_net.final_layer.register_forward_pre_hook(lambda m, i: (i[0] * 0.5,))


def _weight_norm(model: Any) -> None:
    torch.nn.utils.parametrizations.weight_norm(_linear(model)).parametrizations.weight.original0.data.mul_(2)


def _prune(model: Any) -> None:
    prune.l1_unstructured(_linear(model), "weight", amount=0.5)


def _unconditional(model: Any) -> None:
    _spline(model).unconditional_transform = nf.PiecewiseRationalQuadraticCDF([2], **SPLINE)


def _batch_norm(model: Any) -> None:
    _inner(model)[1] = spline(MASK, use_batch_norm=True)


def _own_forward(model: Any) -> None:
    layer = _spline(model)
    layer.forward = lambda x, context=None: (2 * x, x.new_zeros(len(x)))


def _own_inverse(model: Any) -> None:
    _inner(model)[2].inverse = lambda x, context=None: (2 * x, x.new_zeros(len(x)))


def _own_way_of_the_composite(model: Any) -> None:
    model._transforms[0].forward = lambda x, context=None: (2 * x, x.new_zeros(len(x)))
    model._transforms[0].inverse = lambda x, context=None: (3 * x, x.new_zeros(len(x)))


def _restore_one(model: Any) -> None:
    compat.restore(_spline(model))


def _own_class(model: Any) -> None:
    class Doubled(nf.ReversePermutation):
        def forward(self, inputs, context=None):
            return 2 * inputs, inputs.new_zeros(len(inputs))

        inverse = forward

    _inner(model)[2].__class__ = Doubled


# ---- of layers without a network ----


def _z_score(model: Any) -> Any:
    return model._transforms[0]


def _own(model: Any, i: int) -> Any:
    return model._transforms[1]._transforms[i]


def _write_z_score(model: Any) -> None:
    _z_score(model)._shift.add_(0.5)


def _assign_z_score(model: Any) -> None:
    _z_score(model)._scale = 2 * _z_score(model)._scale


def _z_score_of_one_number(model: Any) -> None:
    _z_score(model)._scale, _z_score(model)._shift = torch.tensor(2.0), torch.tensor(0.5)


def _hook_of_z_score(model: Any) -> None:
    _z_score(model).register_forward_hook(lambda m, i, o: (2 * o[0], o[1]))
    _z_score(model).inverse = lambda x, context=None: (2 * x, x.new_zeros(len(x)))


def _hook_of_lu(model: Any) -> None:
    _own(model, 1).register_forward_hook(lambda m, i, o: (2 * o[0], o[1]))
    _own(model, 1).inverse_no_cache = lambda x: (2 * x, x.new_zeros(len(x)))


def _replace_entries(model: Any) -> None:
    _own(model, 1).lower_entries = nn.Parameter(0.3 + _own(model, 1).lower_entries.detach())


def _write_diagonal(model: Any) -> None:
    _own(model, 1).unconstrained_upper_diag.data.add_(0.5)


def _other_eps(model: Any) -> None:
    _own(model, 1).eps = 0.5


def _cache(model: Any) -> None:
    """A matrix that is kept, of other numbers than the factors have by then."""
    lu = _own(model, 1)
    lu.use_cache()
    lu.eval()
    lu.cache.weight = lu.cache.inverse = 2 * torch.eye(D).double()
    lu.cache.logabsdet = torch.tensor(0.7).double()


def _first_batch_again(model: Any) -> None:
    _own(model, 4).initialized.data = torch.tensor(False)
    _own(model, 4).log_scale.data.add_(0.5)


def _other_log_scale(model: Any) -> None:
    _own(model, 4).log_scale = nn.Parameter(0.3 + _own(model, 4).log_scale.detach())


def _write_spline_of_the_seen(model: Any) -> None:
    _own(model, 0).unconditional_transform.unnormalized_widths.data[0, 0] += 2


def _bound_of_the_seen(model: Any) -> None:
    _own(model, 0).unconditional_transform.tail_bound = 1.0


def _hook_of_the_seen(model: Any) -> None:
    _own(model, 0).unconditional_transform.register_forward_hook(lambda m, i, o: (2 * o[0], o[1]))
    _own(model, 0).unconditional_transform.inverse = lambda x, context=None: (2 * x, x.new_zeros(len(x)))


def _none_of_the_seen(model: Any) -> None:
    _own(model, 0).unconditional_transform = None


def _restore_lu(model: Any) -> None:
    compat.restore(_own(model, 1))


def _lu_of_a_users(model: Any) -> None:
    class Doubled(nf.LULinear):
        def forward(self, inputs, context=None):
            return 2 * inputs, inputs.new_zeros(len(inputs))

        inverse = forward

    _own(model, 1).__class__ = Doubled


OWN_CHANGES = {
    f.__name__.strip("_"): f
    for f in (
        _step, _write_z_score, _assign_z_score, _z_score_of_one_number, _hook_of_z_score, _hook_of_lu,
        _replace_entries, _write_diagonal, _other_eps, _cache, _first_batch_again, _other_log_scale,
        _write_spline_of_the_seen, _bound_of_the_seen, _hook_of_the_seen, _none_of_the_seen, _restore_lu,
        _lu_of_a_users,
    )
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("change", OWN_CHANGES)
def test_a_change_of_a_layer_without_a_network_is_seen(change, way, ran) -> None:
    model, x = fast(with_own_steps()).double(), drawn(B, D).double()
    before = called(model, x, way)
    model.zero_grad()
    plain = compat_restored(model)
    found = []
    for one in (model, plain):
        OWN_CHANGES[change](one.double())
        found.append(called(one.double(), x, way))
        found[-1] += called(one, x, way)  # an ActNorm's first batch is behind it
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    is_same = all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(found[0][:2], before[:2], strict=True))
    assert is_same == (change == "restore_lu")
    assert ran


CHANGES = {
    f.__name__.strip("_"): f
    for f in (
        _step, _load, _write, _replace_data, _replace_parameter, _replace_module, _replace_net,
        _replace_net_by_another, _replace_layer, _append, _other_permutation, _write_permutation, _assign_permutation,
        _write_split, _write_mask, _other_bound, _other_least_slope, _other_epsilon, _other_activation,
        _unknown_activation, _freeze, _hook, _hook_of_layer, _hook_of_permutation, _hook_of_composite,
        _hook_of_inverse, _hook_of_all, _hook_of_masked_net, _pre_hook, _weight_norm, _prune, _unconditional,
        _batch_norm, _own_forward, _own_inverse, _own_way_of_the_composite, _restore_one, _own_class,
    )
}  # fmt: skip
# What changes nothing in a direction.
_SAME = {
    "forward": ("freeze", "own_inverse", "restore_one"),
    "inverse": ("freeze", "hook_of_layer", "hook_of_permutation", "hook_of_composite", "hook_of_inverse", "hook_of_all",
                "own_forward", "restore_one"),
}  # fmt: skip


def called(model: Any, x: Tensor, way: str) -> list[Tensor]:
    """y, ladj and gradients of the model itself: of some models there is no copy."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    y, ladj = model(x) if way == "forward" else model.inverse(x)
    (y.sin().sum() + ladj.sum()).backward()
    return [y.detach(), ladj.detach(), x.grad, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]  # type: ignore[list-item]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change, way, ran, monkeypatch) -> None:
    """After a call the run is kept; what the modules became since is what runs."""
    model, x = fast(mixed()).double(), drawn(B, D).double()
    before = called(model, x, way)
    CHANGES[change](model.double())
    model.double()
    after = called(model, x, way)
    with monkeypatch.context() as alone:
        alone.setattr(compat.nflows.composite, "pieces", lambda *_: None)
        expected = called(model, x, way)
    compat.restore(model)
    theirs = called(model, x, way)
    for a, b, c in zip(after, expected, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(a, c, rtol=1e-6, atol=1e-6)
    is_same = all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(after[:2], before[:2], strict=True))
    assert is_same == (change in _SAME[way])
    assert ran


def test_a_hook_that_goes_is_seen(ran) -> None:
    model, x = fast(mixed()), drawn(B, D)
    model(x)
    handle = _linear(model).register_forward_hook(lambda m, i, o: o)
    model(x)
    model(x)
    handle.remove()
    model(x)
    assert ran == [5, 4, 4, 5]


def test_hooks_of_all_modules_are_called(ran) -> None:
    model, x, seen = fast(mixed()), drawn(B, D), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: seen.append(type(m).__name__))
    model(x)
    handle.remove()
    assert {"CompositeTransform", "ResidualNet", "MADE", "RandomPermutation"} <= {*seen} and not ran
    model(x)
    assert ran == [5]


@pytest.mark.parametrize("context", [None, C])
def test_dropout(context, ran) -> None:
    model, x = fast(mixed(context, dropout=0.5)), drawn(B, D)
    c = None if context is None else drawn(B, context)
    for train in (True, False, True, False):
        model.train(train)
        ran.clear()
        outputs = []
        for one in (model, one_by_one(model)):
            torch.manual_seed(0)
            outputs.append(results(one, x, c, "forward", x.dtype))
        assert_same(*outputs)
        assert ran == ([1] if train else [5])  # of the one without dropout


def test_a_context_where_there_is_none_and_none_where_there_is_one(ran) -> None:
    """The library says what is wrong, or goes without it."""
    plain, x, c = mixed(C), drawn(B, D), drawn(B, C)
    model = fast(copy.deepcopy(plain))
    for given in (None, drawn(B - 1, C), drawn(B, C + 1), drawn(1, C), drawn(C)):
        with pytest.raises((RuntimeError, ValueError, AttributeError, IndexError)):
            plain(x, given)
        with pytest.raises((RuntimeError, ValueError, AttributeError, IndexError)):
            model(x, given)
    with pytest.raises((RuntimeError, ValueError, AttributeError)):
        fast(mixed())(x, c)
    assert not ran
    torch.testing.assert_close(fast(masked(C))(x), compat_restored(masked(C))(x), rtol=1e-4, atol=1e-4)
    assert ran == [3]


def test_wrong_inputs_are_the_layers_business(ran) -> None:
    model = fast(mixed())
    for wrong in (drawn(B, D + 1), drawn(B, D).double(), drawn(D)):
        with pytest.raises((RuntimeError, ValueError, IndexError)):
            model(wrong)
    assert not ran
    assert model(drawn(0, D))[0].shape == (0, D)


def test_where_the_op_cannot_run(ran) -> None:
    model, x = fast(mixed()), drawn(B, D)
    with torch.no_grad():
        expected = model(x)
        assert len(ran) == 1
        with use_backend("reference"):
            torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            y, ladj = model(x)
        assert y.isfinite().all() and ladj.isfinite().all()
        assert copy.deepcopy(model).to(torch.bfloat16)(x.to(torch.bfloat16))[0].dtype == torch.bfloat16
        assert copy.deepcopy(model).to("meta")(x.to("meta"))[0].is_meta
    stacked = torch.func.vmap(model)(x.view(4, -1, D))
    torch.testing.assert_close(stacked[0].flatten(0, 1), expected[0], rtol=1e-4, atol=1e-4)
    assert len(ran) == 1


def test_what_is_read_inside_of_a_transform_is_not_kept(ran) -> None:
    """Where buffers cannot be read that can be read later."""
    model, x = fast(mixed()), drawn(B, D)
    parts.forget()
    torch.func.vmap(model)(x.view(4, -1, D))
    assert not ran
    model(x)
    assert ran == [5]


def test_under_a_compiler() -> None:
    model, x = fast(couplings()).double(), drawn(B, D).double()
    expected = model(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-9, atol=1e-9)


def test_inference_first_then_training(ran) -> None:
    with torch.inference_mode():
        expected = fast(mixed())(drawn(B, D))
    model = mixed()
    with torch.inference_mode():
        fast(model)  # which reads it
        torch.testing.assert_close(model(drawn(B, D)), expected, rtol=1e-4, atol=1e-4)
    assert_as_one_by_one(model, drawn(B, D))
    assert ran[-2:] == [5, 5]


# ---- copies, reports and the way back ----


def test_copies_and_pickles(ran) -> None:
    model, x = fast(mixed()), drawn(B, D)
    expected = model(x)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x)[0], expected[0]) and ran == [5, 5]
    state = pickle.dumps(model)
    assert b"flowkernels" not in state
    plain = pickle.loads(state)
    assert type(plain) is nf.CompositeTransform
    torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-4)
    _write(twin)
    assert not torch.equal(twin(x)[0], expected[0]) and torch.equal(model(x)[0], expected[0])


def test_what_is_kept_keeps_nothing_alive() -> None:
    model = fast(mixed())
    for way in WAYS:
        results(model, drawn(B, D), None, way, torch.float32)
        called(model, drawn(B, D), way)
    gone = [weakref.ref(model), weakref.ref(_maf(model)), weakref.ref(next(model.parameters()))]
    del model
    gc.collect()
    assert [r() for r in gone] == [None] * 3


def test_the_report_says_it() -> None:
    assert compat.accelerate(mixed()).notes == ("5 layers in one call (at the model)",)
    torch.manual_seed(0)
    many = nf.CompositeTransform([spline(MASK), affine(OTHER), nf.BatchNorm(D), spline(MASK), affine(OTHER, C)])
    flow = nn.ModuleDict({"flow": many, "other": couplings(C)})
    assert compat.accelerate(flow).notes == ("2, 3 layers each in one call (at flow)",)
    assert str(compat.accelerate(couplings())).splitlines()[-1] == "note: 3 layers in one call (at the model)"
    assert compat.accelerate(nf.CompositeTransform([spline(MASK), nf.LULinear(D)])).notes == ()


def test_what_holds_nothing_known_is_unchanged() -> None:
    model = nf.CompositeTransform([nn.Identity()])
    assert "so it is unchanged" in compat.accelerate(model).notes[0]
    assert type(model) is nf.CompositeTransform


def test_restore_undoes_it(ran) -> None:
    model, x = mixed(), drawn(B, D)
    before, expected = [type(m) for m in model.modules()], model(x)
    fast(model)(x)
    assert ran == [5]
    compat.restore(model)
    assert [type(m) for m in model.modules()] == before and torch.equal(model(x)[0], expected[0])
    with compat.accelerated(model):
        model(x)
    assert [type(m) for m in model.modules()] == before and ran == [5, 5]


def test_a_mask_written_to_in_secret_is_read_after_restore() -> None:
    """`data` is a way to write that torch does not count."""
    model, x = fast(masked()), drawn(B, D)
    model(x)
    layer = model._transforms[0].autoregressive_net.final_layer
    layer.mask.data.zero_()
    compat.restore(model)
    fast(model)
    torch.testing.assert_close(model(x), compat_restored(model)(x), rtol=1e-4, atol=1e-4)


def test_composites_made_while_the_library_is_switched_on(ran) -> None:
    with compat.accelerate_library("nflows"):
        model = mixed()
    model(drawn(B, D))
    assert ran == [5]
    assert type(mixed()) is nf.CompositeTransform


def test_subclasses_that_go_their_own_way_are_left() -> None:
    class Halved(nf.CompositeTransform):
        def forward(self, inputs, context=None):
            return super().forward(0.5 * inputs, context)

    class Named(nf.CompositeTransform):
        name = "mine"

    halved, named = Halved([spline(MASK), spline(OTHER)]), Named([spline(MASK), spline(OTHER)])
    assert compat.accelerate(halved).notes == () and not patch.is_fast(halved)
    assert compat.accelerate(named).notes and isinstance(named, Named) and patch.is_fast(named)
