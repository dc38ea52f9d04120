"""Accelerated modules of FrEIA compute what FrEIA computes."""

from __future__ import annotations

import types

import pytest
import torch
from torch import nn

from flowkernels import compat
from flowkernels.compat.engine import thresholds
from flowkernels.compat.freia import describe as freia_describe
from flowkernels.compat.freia import layers as freia_layers
from flowkernels.compat.reading import halves
from tests.compat.parity import (
    B,
    accelerated_copy,
    assert_parity,
    assert_same_training,
    fuse_small_ones,
    table,
    watch,
)

pytest.importorskip("FrEIA", reason="FrEIA is not installed: see requirements/dev.txt")
from FrEIA import framework
from FrEIA import modules as freia

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    fuse_small_ones(monkeypatch)


def dense(a, b):
    return nn.Sequential(nn.Linear(a, 16), nn.ReLU(), nn.Linear(16, b))


def conv(a, b):
    return nn.Conv2d(a, b, 3, padding=1)


IMAGE, MANY = (4, 2, 3), (freia_layers._LEAST_FEATURES,)
BLOCKS = {
    "permutation": lambda: freia.PermuteRandom([(5,)]),
    "permutation of an image": lambda: freia.PermuteRandom([IMAGE]),
    "all in one, image": lambda: freia.AllInOneBlock([IMAGE], subnet_constructor=conv),
    "all in one, many features": lambda: freia.AllInOneBlock([MANY], subnet_constructor=dense),
    "all in one, condition": lambda: freia.AllInOneBlock([MANY], [(3,)], subnet_constructor=dense),
    "all in one, permuted before": lambda: freia.AllInOneBlock(
        [IMAGE], subnet_constructor=conv, reverse_permutation=True
    ),
    "all in one, GIN": lambda: freia.AllInOneBlock([IMAGE], subnet_constructor=conv, gin_block=True),
}
IN_ONE = [n for n in BLOCKS if "features" in n or "condition" in n]  # their networks are products, of other roundings


def silu(a, b):
    return nn.Sequential(nn.Linear(a, 9), nn.SiLU(), nn.Linear(9, 12), nn.SiLU(), nn.Linear(12, b))


# class, settings of its own, and how many ops a call is; of five features, so that halves differ
COUPLINGS = {
    "glow": (freia.GLOWCouplingBlock, {}, 2),
    "glow, tanh": (freia.GLOWCouplingBlock, {"clamp_activation": "TANH", "clamp": 1.3}, 2),
    "glow, sigmoid": (freia.GLOWCouplingBlock, {"clamp_activation": "SIGMOID", "split_len": 1}, 2),
    "glow, silu": (freia.GLOWCouplingBlock, {"subnet_constructor": silu, "clamp": 0.4}, 2),
    "rnvp": (freia.RNVPCouplingBlock, {}, 4),
    "rnvp, sigmoid": (freia.RNVPCouplingBlock, {"clamp_activation": "SIGMOID", "clamp": 3}, 4),
    "nice": (freia.NICECouplingBlock, {}, 2),
    "one-sided": (freia.AffineCouplingOneSided, {}, 1),
    "one-sided, tanh": (freia.AffineCouplingOneSided, {"clamp_activation": "TANH", "split_len": 0.3}, 1),
    "conditional": (freia.ConditionalAffineTransform, {}, 1),
    "all in one": (freia.AllInOneBlock, {}, 1),
    "all in one, soft": (freia.AllInOneBlock, {"permute_soft": True, "affine_clamping": 0.7}, 1),
    "all in one, permuted before": (freia.AllInOneBlock, {"reverse_permutation": True}, 1),
}
CONDITIONS = {"": [], ", condition": [(2,)], ", conditions": [(2,), (1,)]}


CASES = [(n, "") for n in COUPLINGS if n != "conditional"] + [
    (n, c) for n in COUPLINGS if "," not in n for c in CONDITIONS if c
]


def coupling(name, conditions="", **changed):
    torch.manual_seed(0)
    freia_seed()
    cls, settings, _ = COUPLINGS[name]
    block = cls([(5,)], CONDITIONS[conditions], **{"subnet_constructor": dense, **settings, **changed})
    with torch.no_grad():
        for name, p in block.named_parameters():
            p.mul_(3.0 if "subnet" in name and p.dim() == 2 else 1.0)  # into the bends of the clamps
    return block


def draw_for(conditions, batch=B):
    g = torch.Generator().manual_seed(1)
    return [torch.randn(batch, *s, generator=g) for s in ((5,), *CONDITIONS[conditions])]


@pytest.fixture
def ops(monkeypatch):
    """The ops that ran."""
    names = []
    watch(monkeypatch, names, halves, "run_layer")
    return names


@pytest.mark.parametrize("rev", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize(("name", "conditions"), CASES)
def test_parity_of_couplings(name, conditions, rev, ops):
    assert_parity(lambda m, x, *c: run(m, x, rev, *c), coupling(name, conditions), *draw_for(conditions), accelerated=1)
    assert ops and len(ops) % COUPLINGS[name][2] == 0


@pytest.mark.parametrize("name", COUPLINGS)
def test_couplings_as_ops(name, ops):
    """In as many as said, in both directions, with a graph and without; and with the same shapes and kinds."""
    plain = coupling(name, ", condition")
    fast = accelerated_copy(plain)
    x, c = draw_for(", condition")
    for rev in (False, True):
        for graph in (False, True):
            with torch.set_grad_enabled(graph):
                ops.clear()
                (y,), ladj = fast([x], [c], rev=rev)
                assert len(ops) == COUPLINGS[name][2]
                (wanted,), of_wanted = plain([x], [c], rev=rev)
            assert (y.shape, y.is_contiguous(), y.requires_grad) == (wanted.shape, True, graph)
            assert type(ladj) is type(of_wanted) and getattr(ladj, "shape", 0) == getattr(of_wanted, "shape", 0)


@pytest.mark.parametrize("name", COUPLINGS)
def test_what_freia_promises(name):
    """rev=True undoes rev=False, and the jacobians are log |det| of what autograd finds, one each."""
    block = accelerated_copy(coupling(name, ", condition")).double()
    x, c = (t.double() for t in draw_for(", condition", 3))
    (y,), ladj = block([x], [c])
    (back,), of_inverse = block([y], [c], rev=True)
    few = 1e-6 if "soft" in name else 1e-9  # its matrix was rounded to float32
    torch.testing.assert_close(back, x, rtol=few, atol=few)
    torch.testing.assert_close(of_inverse, -ladj if torch.is_tensor(ladj) else ladj)
    for i in range(3):
        J = torch.autograd.functional.jacobian(lambda row: block([row[None]], [c[i : i + 1]])[0][0][0], x[i])  # noqa: B023
        expected = ladj[i] if torch.is_tensor(ladj) else torch.zeros((), dtype=torch.float64)
        torch.testing.assert_close(torch.linalg.slogdet(J)[1], expected)


def test_graphs_of_blocks(ops):
    """Of one that is no chain, which would be one op."""
    nodes = [framework.InputNode(4, name="in")]
    condition = framework.ConditionNode(2, name="condition")
    nodes.append(framework.Node(nodes[-1], freia.Split, {}, name="split"))
    for i in range(2):
        settings = {"subnet_constructor": dense}
        at = (nodes[1], i)
        nodes.append(framework.Node(at, freia.GLOWCouplingBlock, settings, condition, name=f"block {i}"))
    nodes.append(framework.Node([n.out0 for n in nodes[2:]], freia.Concat, {}, name="concat"))
    inn = framework.GraphINN([*nodes, condition, framework.OutputNode(nodes[-1], name="out")])
    fast = accelerated_copy(inn, 2)
    x, c = draw_for(", condition")
    for rev in (False, True):
        for a, b in zip(fast(x[:, :4], c=c, rev=rev), inn(x[:, :4], c=c, rev=rev), strict=True):
            torch.testing.assert_close(a, b)
    assert len(ops) == 8


def set_hook(block, net):
    net.register_forward_hook(lambda m, i, o: o * 2)


def set_forward(block, net):
    net[0].forward = lambda x: torch.ones(len(x), 16, dtype=x.dtype)


def set_in_place(block, net):
    net[1].inplace = True


def set_clamp(block, net):
    block.f_clamp = lambda u: 0.5 * torch.tanh(u)


def set_dropout(block, net):
    net.insert(2, nn.Dropout(0.0))


def set_end(block, net):
    net.append(nn.ReLU())


def set_subclass(block, net):
    net.__class__ = type("Mine", (nn.Sequential,), {"forward": lambda self, x: 2 * nn.Sequential.forward(self, x)})


def set_nothing(block, net):
    pass


CHANGES = [set_hook, set_forward, set_in_place, set_clamp, set_dropout, set_end, set_subclass, set_nothing]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["glow", "rnvp"])
def test_what_is_changed_afterwards_is_called(name, change, ops):
    plain = coupling(name).double()
    fast = accelerated_copy(plain)
    for block in (plain, fast):
        change(block, block.subnet1 if name == "glow" else block.subnet_t1)
    (x,) = draw_for("", 7)
    for rev in (False, True):
        for a, b in zip(run(fast, x.double(), rev), run(plain, x.double(), rev), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert (len(ops) == 2 * COUPLINGS[name][2]) if change is set_nothing else len(ops) < 2 * COUPLINGS[name][2]


def test_where_torch_is_in_another_mode(ops):
    plain = coupling("glow")
    fast = accelerated_copy(plain)
    (x,) = draw_for("", 7)

    def calls(block):
        with torch.autocast("cpu", torch.bfloat16):
            of_autocast = run(block, x, False)[0]
        hook = nn.modules.module.register_module_forward_hook(lambda m, i, o: None)
        of_hook = run(block, x, False)[0]
        hook.remove()
        rows = torch.vmap(lambda row: run(block, row[None], False)[0][0])(x)
        return [of_autocast, of_hook, rows, *torch.func.jvp(lambda t: run(block, t, False)[0], (x,), (x,))]

    torch.testing.assert_close(calls(fast), calls(plain))
    assert not ops


def test_wrong_inputs_are_freias_to_refuse():
    block, conditional = accelerated_copy(coupling("glow")), accelerated_copy(coupling("glow", ", condition"))
    for call in (
        lambda: block([torch.zeros(3, 6)]),
        lambda: block([torch.zeros(3, 4)]),
        lambda: conditional([torch.zeros(3, 5)]),
        lambda: conditional([torch.zeros(3, 5)], [torch.zeros(3, 3)]),
        lambda: conditional([torch.zeros(3, 5)], [torch.zeros(2, 2)]),
    ):
        with pytest.raises(RuntimeError):
            call()


@pytest.mark.parametrize("name", ["glow", "rnvp"])
def test_small_batches_are_freias(name, monkeypatch, ops):
    block, n = accelerated_copy(coupling(name)), COUPLINGS[name][2]
    monkeypatch.setattr(thresholds, "COUPLED_ROWS", 8)
    block([torch.zeros(7, 5)])
    assert not ops
    block([torch.zeros(8, 5)])
    assert len(ops) == n
    # 16 hidden units, first 2 columns mapped
    monkeypatch.setattr(thresholds, "COUPLED_ELEMENTS", 20 * (16 + 4 * 2) * 2 // n)
    block([torch.zeros(19, 5)])
    assert len(ops) == n
    block([torch.zeros(20, 5)])
    assert len(ops) == 2 * n


def make(name):
    torch.manual_seed(0)
    freia_seed()
    return BLOCKS[name]()


def freia_seed():
    import numpy as np

    np.random.seed(0)  # FrEIA draws its permutations from it


def run(block, x, rev, *conditions):
    (y,), ladj = block([x], *([list(conditions)] if conditions else []), rev=rev)
    return y, ladj if isinstance(ladj, torch.Tensor) else y.new_full(y.shape[:1], ladj).requires_grad_()


def draw(name, batch=B):
    g = torch.Generator().manual_seed(1)
    shape = IMAGE if "image" in name or "before" in name or "GIN" in name else MANY if "all" in name else (5,)
    shapes = [shape, *([(3,)] if "condition" in name else [])]
    return [torch.randn(batch, *s, generator=g) for s in shapes]


@pytest.mark.parametrize("rev", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("name", BLOCKS)
def test_parity(name, rev):
    assert_parity(lambda m, x, *c: run(m, x, rev, *c), make(name), *draw(name), accelerated=1)


@pytest.mark.parametrize("name", [n for n in BLOCKS if n not in IN_ONE])
def test_the_same_bits(name):
    """Where one is a permutation and the other a product with its matrix, rounding has nothing to do."""
    plain = make(name).double()
    fast = accelerated_copy(plain)
    for rev in (False, True):
        inputs = [t.double() for t in draw(name, 7)]
        for a, b in zip(run(fast, inputs[0], rev, *inputs[1:]), run(plain, inputs[0], rev, *inputs[1:]), strict=True):
            assert torch.equal(a, b)


def test_the_matrix_is_not_used(monkeypatch):
    block = accelerated_copy(make("all in one, image"))
    monkeypatch.setattr(block, "permute_function", None)
    run(block, draw("image")[0], False)
    run(block, draw("image")[0], True)


@pytest.mark.parametrize("how", ["load_state_dict", "data"])  # the second is how `to(device)` moves a parameter
def test_another_permutation_in_the_same_block(how):
    block, fast = make("all in one, image").double(), accelerated_copy(make("all in one, image").double())
    x = draw("image", 7)[0].double()
    run(fast, x, False)
    order = torch.tensor([3, 0, 2, 1])
    state = {**block.state_dict(), "w_perm": torch.eye(4)[order].view(4, 4, 1, 1)}
    state["w_perm_inv"] = state["w_perm"].transpose(0, 1)
    for b in (block, fast):
        if how == "load_state_dict":
            b.load_state_dict(state)
        else:
            b.w_perm.data, b.w_perm_inv.data = state["w_perm"].double(), state["w_perm_inv"].double()
    for rev in (False, True):
        torch.testing.assert_close(run(fast, x, rev), run(block, x, rev))


def test_training_of_a_sequence():
    freia_seed()
    torch.manual_seed(0)
    inn = framework.SequenceINN(6)
    for _ in range(3):
        inn.append(freia.PermuteRandom)
        inn.append(freia.RNVPCouplingBlock, subnet_constructor=dense)
    report = compat.accelerate(inn)
    assert len(report.accelerated) == 6 and not report.left_alone
    compat.restore(inn)

    def log_prob(inn, x):
        z, ladj = inn(x)
        return ladj - 0.5 * z.square().sum(1)

    assert table().shape[1] == 6
    assert_same_training(log_prob, inn, steps=30)


class Own(freia.PermuteRandom):
    def forward(self, x, rev=False, jac=True):
        return super().forward(x, rev, jac)


def named_as_freias(factor):
    code = (lambda u: 0.636 * torch.atan(u)).__code__
    constants = tuple(factor if c == 0.636 else c for c in code.co_consts)
    made = types.FunctionType(code.replace(co_consts=constants), {"torch": torch})
    made.__qualname__ = freia_describe._LAMBDA
    return made


def test_a_clamp_is_known_by_its_values():
    assert freia_describe.clamp_name(named_as_freias(0.636)) == "atan"
    assert freia_describe.clamp_name(torch.tanh) == "tanh"
    assert freia_describe.clamp_name(lambda u: 0.636 * torch.atan(u)) is None  # not FrEIA's own


LEFT_ALONE = {
    "its own forward": (lambda: Own([(5,)]), "Own defines its own forward"),
    "few features": (
        lambda: freia.AllInOneBlock([(6,)], subnet_constructor=lambda a, b: nn.Linear(a, b)),
        "matrix of 6 features is as fast as moving them, and its network is a Linear, not torch's Sequential",
    ),
    "soft": (lambda: freia.AllInOneBlock([IMAGE], subnet_constructor=conv, permute_soft=True), "is a soft one"),
    "householder": (
        lambda: freia.AllInOneBlock([IMAGE], subnet_constructor=conv, learned_householder_permutation=2), "is learned"
    ),
    "image": (lambda: freia.GLOWCouplingBlock([IMAGE], subnet_constructor=conv), "its input is an image"),
    "no Sequential": (lambda: coupling("glow", subnet_constructor=nn.Linear), "is a Linear, not torch's Sequential"),
    "dropout": (
        lambda: coupling("rnvp", subnet_constructor=lambda a, b: nn.Sequential(nn.Linear(a, b), nn.Dropout())),
        "does not end with a linear layer",
    ),
    "batch norm": (
        lambda: coupling("nice", subnet_constructor=lambda a, b: nn.Sequential(
            nn.Linear(a, 4), nn.BatchNorm1d(4), nn.Linear(4, b))),
        "the activation of its network is BatchNorm1d",
    ),
    "no bias": (
        lambda: coupling("nice", subnet_constructor=lambda a, b: nn.Sequential(nn.Linear(a, b, bias=False))),
        "has no weight matrix or no bias",
    ),
    "wide": (
        lambda: coupling("nice", subnet_constructor=lambda a, b: nn.Sequential(
            nn.Linear(a, 513), nn.ReLU(), nn.Linear(513, b))),
        "its network is 513 wide",
    ),
    "its own clamp": (lambda: coupling("glow", clamp_activation=lambda u: torch.atan(u)), "a function of its own"),
    "another version's": (lambda: coupling("glow", clamp_activation=named_as_freias(0.637)), "a function of its own"),
    "no clamp": (lambda: coupling("glow", clamp=0.0), "its clamp is at 0.0"),
    "an empty half": (lambda: coupling("nice", split_len=0), "one of its halves is empty"),
    "nothing mapped": (lambda: coupling("one-sided", ", condition", split_len=1.0), "one of its halves is empty"),
    "features, GIN": (lambda: coupling("all in one", gin_block=True), "subtracts the mean log-scale"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone_and_named(case):
    make_block, reason = LEFT_ALONE[case]
    assert reason in compat.accelerate(make_block()).left_alone[""]
