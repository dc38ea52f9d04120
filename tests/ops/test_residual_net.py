"""The residual conditioner: values and gradients against the definition, and when it must not take over."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flowkernels import ops
from flowkernels.nets import ResidualNet
from flowkernels.ops.net.activations import FUNCTIONS

# (rows, in, hidden, out, blocks, context)
CASES = {
    "plain": (17, 3, 16, 5, 2, 0),
    "context": (17, 3, 16, 5, 2, 4),
    "no blocks": (5, 3, 8, 2, 0, 0),
    "no rows": (0, 3, 8, 2, 1, 2),
    "one of everything": (1, 1, 1, 1, 1, 1),
    "rows, units and features that fill no block": (130, 31, 77, 100, 2, 5),
    "deep": (33, 2, 13, 4, 5, 0),
}
BACKENDS = ("cpu", "fused_torch", "reference")


def _inputs(case, dtype=torch.float64):
    rows, n_in, hidden, n_out, blocks, n_context = CASES[case]
    torch.manual_seed(0)
    sizes = [(hidden, n_in + n_context)]
    for _ in range(blocks):
        sizes += [(hidden, hidden), (hidden, hidden)] + ([(hidden, n_context)] if n_context else [])
    sizes.append((n_out, hidden))
    layers = [(torch.randn(s, dtype=dtype) / s[1] ** 0.5, torch.randn(s[0], dtype=dtype)) for s in sizes]
    x = torch.randn(rows, n_in, dtype=dtype)
    context = torch.randn(rows, n_context, dtype=dtype) if n_context else None
    leaves = [t for t in (x, context) if t is not None] + [t for layer in layers for t in layer]
    for t in leaves:
        t.requires_grad_()
    return x, context, layers, blocks, leaves


def _largest(t):
    return t.abs().max().item() if t.numel() else 0.0


def _found(case, dtype, backend, compute=None):
    """Values and every gradient, on inputs of `dtype` in arithmetic of `compute`."""
    x, context, layers, blocks, leaves = _inputs(case, dtype)
    if compute is not None:
        leaves = [t.detach().to(compute).requires_grad_() for t in leaves]
        rest = iter(leaves)
        x = next(rest)
        context = None if context is None else next(rest)
        layers = [(next(rest), next(rest)) for _ in layers]
    y = ops.residual_net(x, layers, blocks=blocks, context=context, backend=backend)
    g = torch.linspace(-1, 1, y.numel()).view_as(y).to(dtype).to(y.dtype)
    return [y, *torch.autograd.grad(y, leaves, g, allow_unused=True)]


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_match_the_reference(case, dtype):
    truth = _found(case, dtype, "reference", torch.float64)
    for backend in ("cpu", "fused_torch"):
        for mine, right in zip(_found(case, dtype, backend), truth, strict=True):
            assert mine.dtype is dtype
            # Sums in another order. In 16 bits torch's products round every layer, the kernel only what goes out.
            atol = 64 * torch.finfo(dtype).eps * _largest(right)
            if backend == "cpu" or dtype.itemsize > 2:
                torch.testing.assert_close(mine.double(), right, rtol=0, atol=atol)


def test_every_instruction_set(isa, dtype):
    test_values_and_gradients_match_the_reference("rows, units and features that fill no block", dtype)


@pytest.mark.parametrize("wanted", [[0], [1], [2, 5], [-1]])
def test_only_some_gradients_wanted(wanted):
    x, context, layers, blocks, leaves = _inputs("context")
    some = [leaves[i] for i in wanted]
    for t in leaves:
        t.requires_grad_(any(t is s for s in some))
    y = [ops.residual_net(x, layers, blocks=blocks, context=context, backend=b) for b in BACKENDS]
    grads = [torch.autograd.grad(v.square().sum(), some) for v in y]
    torch.testing.assert_close(grads[0], grads[2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads[1], grads[2], rtol=1e-12, atol=1e-12)


def test_one_context_for_all_rows():
    x, context, layers, blocks, _ = _inputs("context")
    row = context[:1].detach().requires_grad_()
    wide = row.expand(17, 4)
    found = []
    for b in BACKENDS:
        y = ops.residual_net(x, layers, blocks=blocks, context=row if b == "cpu" else wide, backend=b)
        found.append((y, torch.autograd.grad(y.square().sum(), row)))
    torch.testing.assert_close(found[0], found[2], rtol=1e-12, atol=1e-12)


def test_a_bad_value_stays_in_its_row():
    x, _, layers, blocks, _ = _inputs("rows, units and features that fill no block")
    layers = [
        (w[:, :31].detach() if w.shape == (77, 36) else w.detach(), b.detach()) for w, b in layers if w.shape[1] != 5
    ]
    bad = x.detach().clone()
    bad[3, 2], bad[129, 0] = float("nan"), float("inf")
    y, clean = (ops.residual_net(v, layers, blocks=blocks, backend="cpu") for v in (bad, x.detach()))
    rows = torch.ones(130, dtype=torch.bool)
    rows[[3, 129]] = False
    assert torch.equal(y[rows], clean[rows])
    assert y[3].isnan().any()


@pytest.mark.parametrize("case", ["plain", "context"])
def test_gradcheck_and_gradgradcheck(case):
    x, context, layers, blocks, _ = _inputs(case)
    x = x[:3].detach().requires_grad_()
    context = None if context is None else context[:3].detach().requires_grad_()
    inputs = [t for t in (x, context) if t is not None]

    def f(x, context=None):
        return ops.residual_net(x, layers, blocks=blocks, context=context)

    torch.autograd.gradcheck(f, inputs)
    torch.autograd.gradgradcheck(f, inputs)


def test_transforms_and_compile():
    x, _, layers, blocks, _ = _inputs("plain")
    x = x.detach()

    def f(v):
        return ops.residual_net(v, layers, blocks=blocks)

    y = f(x)
    torch.testing.assert_close(torch.func.vmap(f)(x), y)
    jac = torch.func.jacrev(f)(x[0])
    torch.testing.assert_close(torch.func.jacfwd(f)(x[0]), jac)
    torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(x), y)


def test_any_leading_dims_and_autocast():
    x, _, layers, blocks, _ = _inputs("plain", torch.float32)
    y = ops.residual_net(x, layers, blocks=blocks)
    torch.testing.assert_close(ops.residual_net(x.view(1, 17, 3), layers, blocks=blocks)[0], y)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.residual_net(x, layers, blocks=blocks).dtype == torch.bfloat16


def test_wrong_number_of_layers():
    x, _, layers, _, _ = _inputs("plain")
    with pytest.raises(ValueError, match=r"ops.residual_net: layers must be 2 \+ 2 \* blocks = 8, got 6"):
        ops.residual_net(x, layers, blocks=3)


class TestAsNet:
    x = torch.zeros(4, 3)

    def net(self, **settings):
        return ResidualNet(3, 5, hidden=8, blocks=2, **settings)

    def test_a_plain_net_is_read(self):
        assert self.net().as_net(self.x).spec.n == 6

    def test_what_was_read_is_kept(self):
        net = self.net()
        assert net.as_net(self.x) is net.as_net(self.x)

    def test_a_net_in_evaluation_mode_has_no_dropout(self):
        net = self.net(dropout=0.5)
        assert net.as_net(self.x) is None
        assert net.eval().as_net(self.x) is not None
        assert net.train().as_net(self.x) is None

    @pytest.mark.parametrize("activation", FUNCTIONS)
    def test_every_activation_of_the_table(self, activation):
        net = self.net(activation=activation).double()
        assert net.as_net(self.x).spec.activation == activation
        called = copy.deepcopy(net)
        called.blocks[0].linear_layers[0].register_forward_hook(lambda *a: None)
        x = torch.randn(6, 3, dtype=torch.float64)
        torch.testing.assert_close(net(x), called(x), rtol=1e-13, atol=1e-13)

    @pytest.mark.parametrize("settings", [{"activation": F.softsign}, {"batch_norm": True}])
    def test_what_it_cannot_do_is_left_alone(self, settings):
        assert self.net(**settings).as_net(self.x) is None

    def test_hooks_fire(self):
        net, seen = self.net(), []
        net.blocks[1].linear_layers[0].register_forward_hook(lambda *a: seen.append(1))
        net(torch.randn(4, 3))
        assert seen == [1]

    def test_replaced_and_parametrised_layers_are_called(self):
        net = self.net()
        nn.utils.parametrizations.weight_norm(net.blocks[0].linear_layers[0])
        assert net.as_net(self.x) is None

    def test_same_numbers_as_its_own_modules(self):
        net = self.net().double()
        called = copy.deepcopy(net)
        called.register_forward_hook(lambda *a: None)  # a hook keeps the modules
        x = torch.randn(6, 3, dtype=torch.float64)
        torch.testing.assert_close(net(x), called(x), rtol=1e-13, atol=1e-13)
