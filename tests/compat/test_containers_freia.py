"""Neighbouring blocks of FrEIA's SequenceINN, and of a GraphINN that is a chain, as one op."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("FrEIA", reason="FrEIA is not installed: see requirements/dev.txt")
from FrEIA import framework
from FrEIA import modules as freia

from flowkernels import compat
from flowkernels.compat.engine import patch, thresholds
from flowkernels.compat.freia import chain
from tests.compat.parity import B, assert_parity, assert_same_training, fuse_small_ones, values_and_gradients
from tests.runs import WHERE_THEY_RUN, drawn, ran

__all__ = ["ran"]  # a fixture
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),
    WHERE_THEY_RUN,
]
D, H, C = 5, 12, 2


def dense(n_in: int, n_out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(n_in, H), nn.ReLU(), nn.Linear(H, H), nn.ReLU(), nn.Linear(H, n_out))


class Tripled(freia.InvertibleModule):
    """A module of the user's, whose log-determinant is a number."""

    def forward(self, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> Any:
        return (x[0] / 3 if rev else x[0] * 3,), (-1 if rev else 1) * D * float(np.log(3))

    def output_dims(self, dims: Any) -> Any:
        return dims


GLOW, RNVP, NICE = freia.GLOWCouplingBlock, freia.RNVPCouplingBlock, freia.NICECouplingBlock
ONE, ALL, PERMUTE = freia.AffineCouplingOneSided, freia.AllInOneBlock, freia.PermuteRandom

# Blocks and settings → layers of each run of the op forward, and backwards. A half with a network each for scale and
# shift is two.
MODELS: dict[str, tuple[list[Any], list[int]]] = {
    "glow": ([GLOW, PERMUTE, (GLOW, {"clamp_activation": "TANH", "split_len": 1}), PERMUTE], [4]),
    "rnvp": ([PERMUTE, RNVP, (RNVP, {"clamp_activation": "SIGMOID", "clamp": 3})], [8]),
    "nice": ([NICE, PERMUTE, NICE, PERMUTE], [4]),
    "one-sided": ([ONE, PERMUTE, ONE], [2]),
    "all in one": (
        [ALL, (ALL, {"reverse_permutation": True, "global_affine_type": "EXP", "global_affine_init": 0.6}),
         (ALL, {"global_affine_type": "SOFTPLUS", "affine_clamping": 0.8})], [3],
    ),
    "of all kinds": ([GLOW, NICE, PERMUTE, ALL, ONE, RNVP], [10]),
    "split": (
        [GLOW, PERMUTE, (ALL, {"permute_soft": True}), NICE, Tripled, PERMUTE, ONE, (ALL, {"gin_block": True}), RNVP],
        [2, 2, 1, 4],
    ),
    "learned": ([GLOW, (ALL, {"learned_householder_permutation": 2}), NICE], [2, 2]),
}  # fmt: skip


def seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # FrEIA draws its permutations from it


def shaken(inn: Any) -> Any:
    with torch.no_grad():
        for p in inn.parameters():
            if p.requires_grad:
                p.mul_(1.8).add_(0.1 * torch.randn_like(p))
    return inn


def listed(name: str) -> list[tuple[Any, dict[str, Any]]]:
    given = [block if isinstance(block, tuple) else (block, {}) for block in MODELS[name][0]]
    return [(b, k if b in (PERMUTE, Tripled) else {"subnet_constructor": dense, **k}) for b, k in given]


def make(name: str, conditions: int = 0, **settings: Any) -> Any:
    """Blocks see one condition each, in turns."""
    seeded()
    inn = framework.SequenceINN(D, **settings)
    for i, (block, given) in enumerate(listed(name)):
        sees = conditions and block is not PERMUTE
        inn.append(block, **({"cond": i % conditions, "cond_shape": (C + i % conditions,)} if sees else {}), **given)
    return shaken(inn)


def graph(name: str, conditions: int = 0, **settings: Any) -> Any:
    """Blocks see all conditions, the last first."""
    seeded()
    nodes = [framework.InputNode(D, name="in")]
    seen = [framework.ConditionNode(C + i, name=f"condition {i}") for i in range(conditions)]
    for i, (block, given) in enumerate(listed(name)):
        sees = [] if block is PERMUTE else seen[::-1]
        nodes.append(framework.Node(nodes[-1], block, given, conditions=sees, name=f"block {i}"))
    return shaken(framework.GraphINN([*nodes, *seen, framework.OutputNode(nodes[-1], name="out")], **settings))


def fast(inn: Any) -> Any:
    inn = copy.deepcopy(inn)
    assert compat.accelerate(inn).accelerated
    return inn


def conditions_of(n: int, rows: int = B) -> list[Tensor]:
    return [drawn(rows, C + i, seed=5 + i) for i in range(n)]


def run(inn: Any, x: Tensor, *c: Tensor, rev: bool = False) -> tuple[Tensor, Tensor]:
    y, ladj = inn(x, [*c] if c else None, rev=rev)
    return y, ladj if isinstance(ladj, Tensor) else y.new_full(y.shape[:1], ladj).requires_grad_()


DIRECTIONS = pytest.mark.parametrize("rev", [False, True], ids=["forward", "inverse"])
CONTAINERS = pytest.mark.parametrize("container", [make, graph])


@CONTAINERS
@DIRECTIONS
@pytest.mark.parametrize("name", MODELS)
def test_numbers(name, rev, container, ran) -> None:
    assert_parity(lambda inn, x: run(inn, x, rev=rev), container(name), drawn(B, D))
    expected = MODELS[name][1][:: -1 if rev else 1]
    assert ran[: len(expected)] == expected


@pytest.mark.thinned(2)
@CONTAINERS
@DIRECTIONS
@pytest.mark.parametrize("name", ["glow", "rnvp", "nice", "one-sided", "all in one", "of all kinds"])
@pytest.mark.parametrize("n", [1, 2])
def test_numbers_with_conditions(name, n, rev, container, ran) -> None:
    """Each block sees one of them in a sequence, all of them in a graph."""
    assert_parity(lambda inn, *given: run(inn, *given, rev=rev), container(name, n), drawn(B, D), *conditions_of(n))
    assert ran[:1] == MODELS[name][1]


@DIRECTIONS
@pytest.mark.parametrize("name", ["glow", "nice", "of all kinds"])
def test_numbers_of_the_blocks_one_by_one(name, rev, monkeypatch) -> None:
    """The bits, but for the order in which log-determinants and what each row adds to a gradient are summed."""
    fuse_small_ones(monkeypatch)
    whole = fast(make(name))
    alone = copy.deepcopy(whole)
    patch.unswap(alone)
    for rows in (1, B, 200):
        for dtype in (torch.float32, torch.float64):
            call = lambda inn, x: run(inn, x, rev=rev)  # noqa: E731
            found = values_and_gradients(call, whole, (drawn(rows, D),), dtype)
            expected = values_and_gradients(call, alone, (drawn(rows, D),), dtype)
            assert found.keys() == expected.keys() and (
                torch.equal(found["y"], expected["y"]) or name == "of all kinds"
            )
            within = 1e-4 if dtype is torch.float32 else 1e-9
            torch.testing.assert_close(found, expected, rtol=within, atol=within)


# ---- what FrEIA promises, and what is odd in it ----


@CONTAINERS
@pytest.mark.parametrize("name", MODELS)
def test_kinds_of_outputs(name, container, ran) -> None:
    """Tensors, tuples, lists and numbers are where FrEIA has them, whatever `jac` says."""
    for force in (False, True):
        plain = container(name, force_tuple_output=force)
        inn = fast(plain)
        for x in (drawn(B, D), (drawn(B, D),), [drawn(B, D)]):
            for rev in (False, True):
                for jac in (True, False):
                    (y, ladj), (wanted, of_wanted) = inn(x, rev=rev, jac=jac), plain(x, rev=rev, jac=jac)
                    assert (type(y), type(ladj)) == (type(wanted), type(of_wanted))
                    torch.testing.assert_close((y, ladj), (wanted, of_wanted), rtol=1e-4, atol=1e-4)
    assert ran


def test_of_additive_blocks_alone_the_log_determinant_is_a_number(ran) -> None:
    for n in ([NICE], [NICE, PERMUTE], [PERMUTE, NICE]):
        seeded()
        inn = framework.SequenceINN(D)
        for block in n:
            inn.append(block, **({} if block is PERMUTE else {"subnet_constructor": dense}))
        inn = fast(inn)
        assert inn(drawn(B, D))[1] == 0.0 and type(inn(drawn(B, D), rev=True)[1]) is float
    assert ran == [2] * 6


@pytest.mark.parametrize("conditional", [False, True])
@CONTAINERS
def test_what_raises_raises(container, conditional) -> None:
    plain = container("of all kinds", int(conditional))
    inn, x, c = fast(plain), drawn(B, D), drawn(B, C)
    calls: list[Callable[[Any], Any]] = [
        lambda inn: inn(drawn(B, D + 1)), lambda inn: inn(drawn(B, D - 1)), lambda inn: inn((x, x)),
        lambda inn: inn(x.half()), lambda inn: inn(x[0]), lambda inn: inn(None), lambda inn: inn(x.double()),
        lambda inn: inn(x[:0]),
    ]  # fmt: skip
    if conditional:
        calls = [
            lambda inn: inn(x), lambda inn: inn(x, []), lambda inn: inn(x, [drawn(B, C + 1)]),
            lambda inn: inn(x, [drawn(B - 1, C)]), lambda inn: inn(x, [c.double()]), lambda inn: inn(x, [c[0]]),
            lambda inn: inn(x, [None]),
        ]  # fmt: skip
    for call in calls:
        try:
            expected = call(plain)
        except Exception as error:
            with pytest.raises(type(error)):
                call(inn)
        else:
            torch.testing.assert_close(call(inn), expected)


def test_graphs(ran) -> None:
    plain = graph("split", 1).double()
    inn, x, c = fast(plain), drawn(B, D).double(), drawn(B, C).double()
    torch.testing.assert_close(inn(x, c), plain(x, c))  # a tensor is one condition
    torch.testing.assert_close(inn(x, [c], jac=False), (plain(x, [c])[0], torch.zeros(B).double()))
    assert ran == [2, 2, 1, 4] * 2
    ours, theirs = (m(x, [c], intermediate_outputs=True) for m in (inn, plain))
    assert {str(k) for k in ours[0]} == {str(k) for k in theirs[0]} and ran == [2, 2, 1, 4] * 2
    with pytest.raises(ValueError, match="Got 0 conditions, but expected 1"):
        inn(x)
    with pytest.raises(RuntimeError, match=r"'block 0'.* encountered an error"):
        inn(drawn(B, D + 1).double(), [c])
    inn.module_list[4].forward = lambda *a, **k: (x, None)
    with pytest.raises(ValueError, match="returns a tensor"):
        inn(x, [c])


def test_graphs_that_are_no_chain(ran) -> None:
    seeded()
    first = framework.InputNode(4, name="in")
    parted = framework.Node(first, freia.Split, {}, name="split")
    glow = framework.Node(parted.out0, GLOW, {"subnet_constructor": dense}, name="glow")
    other = framework.Node(parted.out1, GLOW, {"subnet_constructor": dense}, name="other")
    merged = framework.Node([glow.out0, other.out0], freia.Concat, {}, name="concat")
    plain = shaken(framework.GraphINN([first, parted, glow, other, merged, framework.OutputNode(merged)]))
    for a, b in zip(fast(plain)(drawn(B, 4)), plain(drawn(B, 4)), strict=True):
        torch.testing.assert_close(a, b)
    assert ran == []


def test_training(ran) -> None:
    seeded()
    inn = framework.SequenceINN(6)
    for block in (GLOW, PERMUTE, ALL, RNVP):
        inn.append(block, **({} if block is PERMUTE else {"subnet_constructor": dense}))
    assert_same_training(lambda inn, x: inn(x)[1] - 0.5 * inn(x)[0].square().sum(1), inn, steps=30)
    assert ran == [7] * 60


def test_one_node() -> None:
    y, ladj = fast(make("rnvp"))(drawn(B, D))
    assert y.grad_fn is ladj.grad_fn and type(y.grad_fn).__name__ == "flowkernels::flowBackward"


def test_too_much_to_keep_is_run_block_by_block(ran, monkeypatch) -> None:
    inn = fast(make("glow"))
    for rows, kept in ((thresholds.COUPLED_ROWS, 0), (thresholds.COUPLED_ROWS - 1, 0), (2000, 32 << 20)):
        monkeypatch.setattr(chain, "MOST_KEPT", kept)
        inn(drawn(rows, D))
    assert ran == [4, 4]
    monkeypatch.setattr(chain, "MOST_KEPT", 0)
    with torch.no_grad():
        inn(drawn(2000, D))
    assert ran == [4] * 3


def test_of_wide_networks_a_few_rows_with_a_graph_are_freias(ran) -> None:
    seeded()
    inn = framework.SequenceINN(D)
    inn.append(GLOW, subnet_constructor=lambda i, o: nn.Sequential(nn.Linear(i, 400), nn.ReLU(), nn.Linear(400, 200),
                                                                   nn.ReLU(), nn.Linear(200, o)))  # fmt: skip
    inn = fast(inn)
    for rows in (12, 13):  # 82,600 weights a half
        inn(drawn(rows, D))
    assert ran == [2]
    with torch.no_grad():
        inn(drawn(1, D))
    assert ran == [2, 2]


# ---- what is read follows the modules ----


def _write(inn: Any) -> None:
    with torch.no_grad():
        for p in inn.parameters():
            p.mul_(1.1) if p.requires_grad else None


def _write_data(inn: Any) -> None:
    inn[0].subnet1[-1].weight.data.mul_(0.7)


def _replace_parameter(inn: Any) -> None:
    inn[0].subnet1[-1].bias = nn.Parameter(inn[0].subnet1[-1].bias.detach() * 2 + 1)


def _replace_net(inn: Any) -> None:
    inn[0].subnet2 = dense(3, 4).to(inn[0].subnet1[0].weight)


def _hook(inn: Any) -> None:
    inn[0].subnet1[0].register_forward_hook(lambda m, i, o: 2 * o)


def _hook_of_a_block(inn: Any) -> None:
    inn[2].register_forward_hook(lambda m, i, o: ((2 * o[0][0],), o[1]))


def _hook_of_a_permutation(inn: Any) -> None:
    inn[1].register_forward_hook(lambda m, i, o: ([2 * o[0][0]], o[1]))


def _clamp(inn: Any) -> None:
    inn[0].clamp = 0.3


def _clamp_function(inn: Any) -> None:
    inn[0].f_clamp = torch.tanh


def _own_clamp(inn: Any) -> None:
    inn[0].f_clamp = lambda u: 0.1 * torch.tanh(u)


def _own_forward(inn: Any) -> None:
    forward = GLOW.forward
    inn[0].forward = lambda *args, **kwargs: forward(inn[0], *args, **{**kwargs, "rev": not kwargs.get("rev")})


def _write_permutation(inn: Any) -> None:
    perm = inn[1].perm
    perm.copy_(perm.roll(1))
    inn[1].perm_inv.copy_(torch.argsort(perm))


def _other_permutation(inn: Any) -> None:
    inn[1].perm.data = inn[1].perm.flip(0)
    inn[1].perm_inv = nn.Parameter(torch.argsort(inn[1].perm), requires_grad=False)


def _write_matrix(inn: Any) -> None:
    inn[2].w_perm.copy_(inn[2].w_perm.roll(1, 0))
    inn[2].w_perm_inv.copy_(inn[2].w_perm.T)


def _soft_matrix(inn: Any) -> None:
    inn[2].w_perm.copy_(torch.linalg.qr(drawn(D, D))[0])
    inn[2].w_perm_inv.copy_(inn[2].w_perm.T)


def _learned_matrix(inn: Any) -> None:
    inn[2].w_perm.requires_grad_()
    with torch.no_grad():
        inn[2].w_perm.mul_(2)


def _scale(inn: Any) -> None:
    inn[2].global_scale.data.add_(0.5)


def _activation(inn: Any) -> None:
    inn[2].global_scale_activation = torch.exp


def _activation_of_another(inn: Any) -> None:
    inn[2].global_scale_activation = lambda a: 2 * torch.exp(a)


def _turned_before(inn: Any) -> None:
    inn[2].reverse_pre_permute = True


def _gin(inn: Any) -> None:
    inn[2].GIN = True


def _replace_block(inn: Any) -> None:
    inn.module_list[0] = inn[3]


def _append(inn: Any) -> None:
    inn.append(GLOW, subnet_constructor=dense)
    inn[-1].to(inn[0].subnet1[0].weight)


CHANGES = {
    f.__name__.strip("_"): f
    for f in (
        _write, _write_data, _replace_parameter, _replace_net, _hook, _hook_of_a_block, _hook_of_a_permutation, _clamp,
        _clamp_function, _own_clamp, _own_forward, _write_permutation, _other_permutation, _write_matrix, _soft_matrix,
        _learned_matrix, _scale, _activation, _activation_of_another, _turned_before, _gin, _replace_block, _append,
    )
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change, ran) -> None:
    x, found = drawn(B, D).double(), []
    for prepare in (lambda inn: inn, fast):
        seeded()
        inn = framework.SequenceINN(D)
        for block in (GLOW, PERMUTE, ALL, NICE):
            inn.append(block, **({} if block is PERMUTE else {"subnet_constructor": dense}))
        inn = prepare(shaken(inn).double())
        before = inn(x)[0]
        inn(x, rev=True)
        torch.manual_seed(4)
        CHANGES[change](inn)
        found.append([before, *inn(x), *inn(x, rev=True)])
        trained = [p for p in inn.parameters() if p.requires_grad]
        found[-1] += torch.autograd.grad(sum(t.sum() for t in found[-1][1:]), trained, allow_unused=True)
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    assert not torch.allclose(found[1][0], found[1][1]) and ran[0] == 5


def test_another_condition_is_seen(ran) -> None:
    plain = make("of all kinds", 2)
    inn, x, c = fast(plain), drawn(B, D), conditions_of(2)
    torch.testing.assert_close(inn(x, c), plain(x, c), rtol=1e-4, atol=1e-4)
    c[0] = drawn(B, C + 1, seed=9)[:, :C]
    torch.testing.assert_close(inn(x, c), plain(x, c), rtol=1e-4, atol=1e-4)
    for m in (plain, inn):
        m.conditions = [None if k is None else -2 + k for k in m.conditions]
    torch.testing.assert_close(inn(x, c), plain(x, c), rtol=1e-4, atol=1e-4)
    assert ran == [10] * 3
    given = {-2: c[0], -1: c[1]}  # whatever has them under its keys
    torch.testing.assert_close(inn(x, given), plain(x, given), rtol=1e-4, atol=1e-4)
    inn.conditions[0] = -1  # of other widths
    with pytest.raises(RuntimeError):
        inn(x, c)


# ---- before and after ----


def test_the_report_and_the_way_back(ran) -> None:
    plain, x = make("of all kinds"), drawn(B, D)
    inn = copy.deepcopy(plain)
    report = compat.accelerate(inn)
    assert report.notes == ("10 layers in one call (at the model)",) and not report.left_alone
    assert compat.accelerate(copy.deepcopy(make("split"))).notes == ("2, 2, 4 layers each in one call (at the model)",)
    expected = inn(x)[0]
    assert torch.equal(copy.deepcopy(inn)(x)[0], expected) and ran == [10, 10]
    assert [k for k, _ in inn.named_parameters()] == [k for k, _ in plain.named_parameters()]
    compat.restore(inn)
    assert [type(m) for m in inn.modules()] == [type(m) for m in plain.modules()]
    assert torch.equal(inn(x)[0], plain(x)[0]) and ran == [10, 10]
    with compat.accelerate_library("FrEIA"):
        assert torch.equal(make("of all kinds")(x)[0], expected)
    assert ran == [10] * 3


def test_a_sequence_without_an_accelerated_block_stays_as_it_is() -> None:
    inn = framework.SequenceINN(D)
    inn.append(ALL, subnet_constructor=nn.Linear, permute_soft=True)
    assert not compat.accelerate(inn).accelerated and type(inn) is framework.SequenceINN


def test_a_class_of_the_users(ran) -> None:
    class Mine(framework.SequenceINN):
        def forward(self, x: Any, c: Any = None, rev: bool = False, jac: bool = True) -> Any:
            return super().forward(2 * x, c, rev, jac)

    inn = make("glow")
    inn.__class__ = Mine
    torch.testing.assert_close(fast(inn)(drawn(B, D)), inn(drawn(B, D)), rtol=1e-4, atol=1e-4)
    assert ran == []


def test_a_sequence_in_a_sequence(ran) -> None:
    seeded()
    inn = framework.SequenceINN(D)
    inn.append(GLOW, subnet_constructor=dense)
    inner = make("nice", force_tuple_output=True)
    inn.append(lambda dims: inner)
    inn.append(ONE, subnet_constructor=dense)
    for rev in (False, True):
        torch.testing.assert_close(fast(inn)(drawn(B, D), rev=rev), inn(drawn(B, D), rev=rev))
    assert ran == [2, 4, 1, 1, 4, 2]


def test_elsewhere_freias_own_code_runs(ran) -> None:
    plain = make("of all kinds")
    inn, x = fast(plain), drawn(3, D)
    for m in (plain, inn):
        m.requires_grad_(False)

    def calls(inn: Any) -> list[Any]:
        with torch.autocast("cpu", torch.bfloat16):
            of_autocast = inn(x)[0]
        hook = nn.modules.module.register_module_forward_hook(lambda m, i, o: None)
        of_hook = inn(x)[0]
        hook.remove()
        rows = torch.vmap(lambda row: inn(row[None])[0][0])(x)
        compiled = torch.compile(inn, backend="eager", fullgraph=True)(x)
        return [of_autocast, of_hook, rows, compiled, *torch.func.jvp(lambda t: inn(t)[0], (x,), (x,))]

    torch.testing.assert_close(calls(inn), calls(plain))
    assert not ran


def test_files(tmp_path, ran) -> None:
    inn, x = fast(make("all in one")), drawn(B, D)
    torch.save(inn[0].state_dict(), tmp_path / "block.pt")
    expected = inn(x)[0]
    inn.load_state_dict(
        {k: v + 0.01 if v.is_floating_point() and "perm" not in k else v for k, v in inn.state_dict().items()}
    )
    assert not torch.allclose(inn(x)[0], expected)
    inn[0].load_state_dict(torch.load(tmp_path / "block.pt", weights_only=True))
    assert ran == [3, 3]
