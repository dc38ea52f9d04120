"""Accelerated modules of FrEIA compute what FrEIA computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flowkernels import compat
from flowkernels.compat import freia_layers
from tests.compat.parity import B, accelerated_copy, assert_parity, assert_same_training, table

pytest.importorskip("FrEIA", reason="FrEIA is not installed: see requirements/dev.txt")
from FrEIA import framework
from FrEIA import modules as freia

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]


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


@pytest.mark.parametrize("name", BLOCKS)
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
    assert len(report.accelerated) == 3 and len(report.left_alone) == 3 + 1  # the sequence itself
    compat.restore(inn)

    def log_prob(inn, x):
        z, ladj = inn(x)
        return ladj - 0.5 * z.square().sum(1)

    assert table().shape[1] == 6
    assert_same_training(log_prob, inn, steps=30)


class Own(freia.PermuteRandom):
    def forward(self, x, rev=False, jac=True):
        return super().forward(x, rev, jac)


LEFT_ALONE = {
    "its own forward": (lambda: Own([(5,)]), "Own defines its own forward"),
    "few features": (lambda: freia.AllInOneBlock([(6,)], subnet_constructor=dense), "matrix of 6 features is as fast"),
    "soft": (lambda: freia.AllInOneBlock([IMAGE], subnet_constructor=conv, permute_soft=True), "is a soft one"),
    "householder": (
        lambda: freia.AllInOneBlock([IMAGE], subnet_constructor=conv, learned_householder_permutation=2), "is learned"
    ),
    "glow": (lambda: freia.GLOWCouplingBlock([(6,)], subnet_constructor=dense), "slower than FrEIA's own"),
    "rnvp": (lambda: freia.RNVPCouplingBlock([(6,)], subnet_constructor=dense), "slower than FrEIA's own"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone_and_named(case):
    make_block, reason = LEFT_ALONE[case]
    assert reason in compat.accelerate(make_block()).left_alone[""]
