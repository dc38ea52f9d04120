"""The residual conditioner: values and gradients against the definition, and when it must not take over."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flowkernels import ops
from flowkernels.nets import ResidualNet, batch_norms
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


def _inputs(case, dtype=torch.float64, normed=False):
    rows, n_in, hidden, n_out, blocks, n_context = CASES[case]
    torch.manual_seed(0)
    sizes = [(hidden, n_in + n_context)]
    for _ in range(blocks):
        sizes += [(hidden, hidden), (hidden, hidden)] + ([(hidden, n_context)] if n_context else [])
    sizes.append((n_out, hidden))
    layers = [(torch.randn(s, dtype=dtype) / s[1] ** 0.5, torch.randn(s[0], dtype=dtype)) for s in sizes]
    x = torch.randn(rows, n_in, dtype=dtype)
    context = torch.randn(rows, n_context, dtype=dtype) if n_context else None
    norms = [(1 + torch.randn(hidden, dtype=dtype) / 3, torch.randn(hidden, dtype=dtype)) for _ in range(2 * blocks)]
    leaves = [t for t in (x, context) if t is not None] + [t for layer in layers for t in layer]
    leaves += [t for norm in norms for t in norm] if normed else []
    for t in leaves:
        t.requires_grad_()
    return (x, context, layers, blocks, leaves, norms) if normed else (x, context, layers, blocks, leaves)


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


# ---- norms ----


def _normed(case, backend, activation, dtype, compute):
    """Values and every gradient, on inputs of `dtype` in arithmetic of `compute`."""
    x, context, layers, blocks, leaves, _ = _inputs(case, dtype, normed=True)
    leaves = [t.detach().to(compute).requires_grad_() for t in leaves]
    rest = iter(leaves)
    x, context = next(rest), None if context is None else next(rest)
    layers, norms = [(next(rest), next(rest)) for _ in layers], [(next(rest), next(rest)) for _ in range(2 * blocks)]
    y = ops.residual_net(x, layers, blocks=blocks, context=context, activation=activation, norms=norms, backend=backend)
    g = torch.linspace(-1, 1, y.numel()).view_as(y).to(dtype).to(y.dtype)
    return [y, *torch.autograd.grad(y, leaves, g, allow_unused=True)]


@pytest.mark.parametrize(
    ("case", "activation"), [*((case, "elu") for case in CASES), *(("context", name) for name in FUNCTIONS)]
)
def test_norms(case, activation, isa):
    for dtype in (torch.float32, torch.float64):
        truth = _normed(case, "reference", activation, dtype, torch.float64)
        theirs = _normed(case, "reference", activation, dtype, dtype)
        # Sums in another order; in float64 that is all the difference there is.
        floor = (16 if dtype is torch.float32 else 64) * torch.finfo(dtype).eps
        for mine, right, other in zip(_normed(case, "cpu", activation, dtype, dtype), truth, theirs, strict=True):
            assert _largest(mine.double() - right) <= 2 * _largest(other.double() - right) + floor * _largest(right)


def test_norms_are_what_batch_norm_does_in_evaluation():
    x, context, layers, blocks, _ = _inputs("context")
    modules = [nn.BatchNorm1d(16, eps=1e-3).double().eval() for _ in range(2 * blocks)]
    for m in modules:
        for t in (m.weight, m.bias, m.running_mean, m.running_var):
            t.data.copy_(torch.rand(16) + 0.5)

    def norm_of(m):
        scale = m.weight / (m.running_var + m.eps).sqrt()
        return scale, m.bias - m.running_mean * scale

    def written_out():
        (w, b), *inner, last = layers
        h = F.linear(torch.cat((x, context), 1), w, b)
        for i in range(blocks):
            first, second, gate = inner[3 * i : 3 * i + 3]
            t = F.linear(F.elu(modules[2 * i](h)), *first)
            t = F.linear(F.elu(modules[2 * i + 1](t)), *second)
            h = h + t * torch.sigmoid(F.linear(context, *gate))
        return F.linear(h, *last)

    leaves = [x, context, *[t for layer in layers for t in layer], *[t for m in modules for t in (m.weight, m.bias)]]
    g = torch.randn(17, 5, dtype=torch.float64)
    found = []
    for backend in ("cpu", "reference", None):
        more = {"context": context, "blocks": blocks, "activation": "elu"}
        y = (
            written_out()
            if backend is None
            else ops.residual_net(x, layers, norms=[norm_of(m) for m in modules], backend=backend, **more)
        )
        found.append([y, *torch.autograd.grad(y, leaves, g)])
    torch.testing.assert_close(found[0], found[2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[1], found[2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wanted", [[-1], [-2], [-7], [0], [2, -3]])
def test_only_some_gradients_wanted_with_norms(wanted):
    x, context, layers, blocks, leaves, norms = _inputs("context", normed=True)
    some = [leaves[i] for i in wanted]
    for t in leaves:
        t.requires_grad_(any(t is s for s in some))
    more = {"blocks": blocks, "context": context, "norms": norms, "activation": "elu"}
    y = [ops.residual_net(x, layers, backend=b, **more) for b in ("cpu", "reference")]
    grads = [torch.autograd.grad(v.square().sum(), some) for v in y]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-12)


def test_sums_of_many_rows_keep_their_digits():
    """A gradient of a scale or a shift is a sum over the batch, which in float32 one by one would lose digits."""
    g = torch.Generator().manual_seed(0)
    sizes = [(30_000, 2), (4, 2), (4,), (4, 4), (4,), (4, 4), (4,), (1, 4), (1,)]
    leaves = [torch.randn(s, generator=g) for s in sizes]
    leaves += [torch.rand(4, generator=g) + 0.5 for _ in range(4)]

    def grads(dtype, backend):
        x, *rest = [t.to(dtype).requires_grad_() for t in leaves]
        pairs = list(zip(rest[::2], rest[1::2], strict=True))
        y = ops.residual_net(x, pairs[:4], blocks=1, norms=pairs[4:], activation="elu", backend=backend)
        return torch.autograd.grad(y.sum(), rest[8:])

    right, theirs = grads(torch.float64, "reference"), grads(torch.float32, "reference")
    for mine, exact, other in zip(grads(torch.float32, "cpu"), right, theirs, strict=True):
        floor = 8 * torch.finfo(torch.float32).eps * _largest(exact)
        assert _largest(mine - exact) <= 2 * _largest(other - exact) + floor


@pytest.mark.parametrize(
    ("norms", "message"),
    [
        ([], r"norms must be 2 \* blocks = 4, got 0"),
        ([(torch.ones(16), torch.ones(16))] * 3, r"norms must be 2 \* blocks = 4, got 3"),
        ([(torch.ones(16), torch.ones(15))] * 4, r"norms\[0\] shift must be \[16\], got \[15\]"),
        ([(torch.ones(1, 16), torch.ones(16))] * 4, r"norms\[0\] scale must be \[16\], got \[1, 16\]"),
        ([(torch.ones(16),)] * 4, r"norms\[0\] must be \(scale, shift\), got "),
    ],
)
def test_wrong_norms(norms, message):
    x, _, layers, blocks, _ = _inputs("plain", torch.float32)
    with pytest.raises(ValueError, match=f"ops.residual_net: {message}"):
        ops.residual_net(x, layers, blocks=blocks, norms=norms)


def test_norms_of_another_dtype():
    x, _, layers, blocks, _, norms = _inputs("plain", torch.float32, normed=True)
    with pytest.raises(TypeError, match=r"norms\[0\] scale must be of the dtype of x = torch.float32, got torch"):
        ops.residual_net(x, layers, blocks=blocks, norms=[(s.double(), t) for s, t in norms])


def test_transforms_and_gradgradcheck_with_norms():
    x, context, layers, blocks, _, norms = _inputs("context", normed=True)
    more = {"blocks": blocks, "norms": norms, "activation": "elu"}

    def f(x, scale, context=context):
        return ops.residual_net(x, layers, context=context, **{**more, "norms": [(scale, norms[0][1]), *norms[1:]]})

    given = x[:3].detach().requires_grad_(), norms[0][0]
    torch.autograd.gradcheck(lambda *t: f(*t, context=context[:3]), given)
    torch.autograd.gradgradcheck(lambda *t: f(*t, context=context[:3]), given)
    scale, y = norms[0][0].detach(), f(x, norms[0][0])
    torch.testing.assert_close(torch.func.vmap(lambda v, c: f(v, scale, c))(x.detach(), context.detach()), y.detach())
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x.detach(), scale), y)


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


def test_a_bad_context_stays_in_its_row():
    """In bfloat16 torch's own product multiplies what lies next to a row by 0, on a processor with AMX."""
    x, context, layers, blocks, _ = _inputs("rows, units and features that fill no block", torch.bfloat16)
    wide = torch.full((130, 6), float("nan"), dtype=torch.bfloat16)
    wide[:, :5] = context.detach()
    bad = wide[:, :5].clone()
    bad[3, 2] = float("nan")
    clean, strided, y = (
        ops.residual_net(x, layers, blocks=blocks, context=c, backend="cpu")
        for c in (wide[:, :5].clone(), wide[:, :5], bad)
    )
    assert torch.equal(strided, clean)
    assert clean.isfinite().all() and y[3].isnan().any()
    rows = torch.arange(130) != 3
    assert torch.equal(y[rows], clean[rows])


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

    def test_what_it_cannot_do_is_left_alone(self):
        assert self.net(activation=F.softsign).as_net(self.x) is None

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


class TestBatchNorm:
    """Read in evaluation, whatever the running statistics are by then; called where it looks at its batch."""

    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    context = torch.randn(50, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def net(self, **settings):
        torch.manual_seed(0)
        net = ResidualNet(3, 5, hidden=8, blocks=2, batch_norm=True, activation="elu", **settings).double()
        for p in net.parameters():
            p.data.add_(torch.randn_like(p) / 4)
        net(self.x * 2 + 1, *self.contexts(settings))  # statistics
        return net.eval()

    def contexts(self, settings):
        return (self.context,) if "context" in settings else ()

    def both(self, net, *given):
        """What it returns, and its modules do, each with every gradient."""
        called, found = copy.deepcopy(net), []
        called.register_forward_hook(lambda *a: None)  # a hook keeps the modules
        called.blocks[0].register_forward_hook(lambda *a: None)
        for m in (net, called):
            leaves = [t.clone().requires_grad_() for t in given]
            y = m(*leaves)
            found.append([y, *torch.autograd.grad(y.square().sum(), [*leaves, *m.parameters()])])
        return found

    @pytest.mark.parametrize("settings", [{}, {"context": 2}, {"dropout": 0.3}])
    def test_evaluation(self, settings):
        net = self.net(**settings)
        assert net.as_net(self.x, *self.contexts(settings)).spec.scales
        mine, theirs = self.both(net, self.x, *self.contexts(settings))
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)

    @pytest.mark.parametrize("settings", [{}, {"context": 2}, {"dropout": 0.3}])
    def test_a_wide_net_in_evaluation_runs_layer_by_layer(self, settings, monkeypatch):
        net, given, seen = self.net(**settings), (self.x, *self.contexts(settings)), []
        monkeypatch.setattr(batch_norms, "_WIDE", 8)
        run = batch_norms.BatchNorms.run
        monkeypatch.setattr(batch_norms.BatchNorms, "run", lambda *a: seen.append(run(*a)) or seen[-1])
        for own in (False, True):
            monkeypatch.setattr(batch_norms, "_has_own_products", lambda own=own: own)
            monkeypatch.setattr(batch_norms, "_OWN_PRODUCT", 0)
            mine, theirs = self.both(net, *given)
            torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)
            with torch.no_grad():
                torch.testing.assert_close(net(*given), mine[0].detach(), rtol=1e-11, atol=1e-11)
                torch.testing.assert_close(net(*[t[:1] for t in given]), mine[0][:1].detach(), rtol=1e-11, atol=1e-11)
        assert len(seen) == 5 and all(
            y is not None for y in seen
        )  # with gradients, one row, and where products are ours

    @pytest.mark.parametrize("settings", [{}, {"context": 2}])
    @pytest.mark.parametrize("momentum", [0.1, 1.0, None])
    def test_training(self, settings, momentum):
        net = self.net(**settings).train()
        for block in net.blocks:
            for norm in block.batch_norm_layers:
                norm.momentum = momentum
        assert net.as_net(self.x, *self.contexts(settings)) is None
        called = copy.deepcopy(net)
        called.blocks[0].register_forward_hook(lambda *a: None)
        given, found = (self.x * 3 - 2, *self.contexts(settings)), []
        for m in (net, called):
            leaves = [t.clone().requires_grad_() for t in given]
            y = m(*leaves)
            with torch.no_grad():
                m(*[t[:7] * 2 for t in given])
            buffers = {n: b.clone() for n, b in m.named_buffers()}
            grads = torch.autograd.grad(y.square().sum(), [*leaves, *m.parameters()])
            found.append((y, grads, buffers, m.eval()(*given)))
        torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)
        assert found[0][2]["blocks.1.batch_norm_layers.1.num_batches_tracked"] == 3

    @pytest.mark.parametrize("rows", [9, 65, 1001])
    def test_training_in_float32(self, rows):
        net = self.net(context=2).train()

        def found(seed, dtype, called):
            g = torch.Generator().manual_seed(seed)
            x, context = torch.randn(rows, 3, generator=g) * 3 + 20, torch.randn(rows, 2, generator=g)
            m = copy.deepcopy(net).to(dtype)
            if called:
                m.blocks[0].register_forward_hook(lambda *a: None)
            leaves = [t.to(dtype, copy=True).requires_grad_() for t in (x, context)]
            y = m(*leaves)
            grads = torch.autograd.grad(y.square().mean(0).sum(), [*leaves, *m.parameters()])
            return [y, *grads, *[b for b in m.buffers() if b.is_floating_point()]]

        # Sums over the rows of what a norm sends back are near 0, and their errors one draw of a lottery: several.
        of_ours, of_theirs, sizes = [], [], []
        for seed in range(6):
            exact = found(seed, torch.float64, True)
            for into, called in ((of_theirs, True), (of_ours, False)):
                into.append([_largest(a - b) for a, b in zip(found(seed, torch.float32, called), exact, strict=True)])
            sizes.append([*map(_largest, exact)])
        eps, largest = torch.finfo(torch.float32).eps, max(map(max, sizes))
        for mine, other, size in zip(*(zip(*rows, strict=True) for rows in (of_ours, of_theirs, sizes)), strict=True):
            # The gradient of a bias before a norm is 0, a sum of terms that are not: its error is that of the terms.
            floor = 8 * eps * (max(size) if max(size) > 1e-9 else largest)
            assert sum(mine) / 6 <= 2 * sum(other) / 6 + floor

    def test_training_has_the_same_bits_twice_and_on_any_number_of_threads(self, threads):
        net, x = self.net().train(), self.x.repeat(40, 1)
        found = []
        for n in (1, 1, 2, 3):
            threads(n)
            m, leaf = copy.deepcopy(net), x.clone().requires_grad_()
            m(leaf)
            found.append([b for b in m.buffers() if b.is_floating_point()])
        for other in found[1:]:
            assert all(map(torch.equal, found[0], other))

    def test_double_backward_in_training(self):
        net = self.net(context=2).train()
        called = copy.deepcopy(net)
        called.blocks[0].register_forward_hook(lambda *a: None)
        found = []
        for m in (net, called):
            x = self.x[:9].clone().requires_grad_()
            (g,) = torch.autograd.grad(m(x, self.context[:9]).square().sum(), x, create_graph=True)
            found.append(torch.autograd.grad(g.square().sum(), [x, *m.parameters()], allow_unused=True))
        torch.testing.assert_close(*[[t for t in some if t is not None] for some in found], rtol=1e-9, atol=1e-9)

    def test_one_row_cannot_train(self):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            self.net().train()(self.x[:1])

    def test_leading_dims_in_training(self):
        net = self.net().train()
        called = copy.deepcopy(net)
        torch.testing.assert_close(net(self.x.view(5, 10, 3)).view(50, 5), called(self.x), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close([*net.buffers()], [*called.buffers()])

    def test_transforms_in_training_are_its_modules(self):
        net = self.net().train()
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm1d):
                norm.track_running_stats = False  # which torch cannot update there
        y = net(self.x)
        torch.testing.assert_close(torch.func.jvp(net, (self.x,), (torch.ones_like(self.x),))[0], y)

    def test_statistics_that_changed_are_seen(self):
        net = self.net()
        called = copy.deepcopy(net)
        called.blocks[0].register_forward_hook(lambda *a: None)
        before = net(self.x)
        for m in (net, called):
            m.train()(self.x * 3 - 2)
            m.eval()
        assert not torch.allclose(net(self.x), before)
        torch.testing.assert_close(net(self.x), called(self.x), rtol=1e-11, atol=1e-11)

    @pytest.mark.parametrize("how", ["in place", "another tensor", "data", "loaded", "eps", "weight"])
    def test_what_changes_is_seen(self, how):
        net = self.net()
        net(self.x)
        norm = net.blocks[1].batch_norm_layers[1]
        if how == "in place":
            norm.running_var.mul_(2)
        elif how == "another tensor":
            norm.running_mean = norm.running_mean + 1
        elif how == "data":
            norm.running_mean.data = norm.running_mean + 1
        elif how == "loaded":
            net.load_state_dict({n: t * 1.5 if t.is_floating_point() else t for n, t in net.state_dict().items()})
        elif how == "eps":
            norm.eps = 0.5  # of one alone: then they are called
        else:
            norm.weight.data.mul_(2)
        mine, theirs = self.both(net, self.x)
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)

    def test_one_norm_in_training_is_called(self):
        net = self.net()
        assert net.as_net(self.x) is not None
        net.blocks[0].batch_norm_layers[0].train()
        assert net.as_net(self.x) is None

    @pytest.mark.parametrize(
        "norm",
        [nn.BatchNorm1d(8, affine=False), nn.BatchNorm1d(8, track_running_stats=False), nn.LayerNorm(8), nn.Identity()],
        ids=repr,
    )
    def test_other_norms_are_called(self, norm):
        net = self.net()
        net.blocks[0].batch_norm_layers[1] = norm.double().eval()
        assert net.as_net(self.x) is None
        mine, theirs = self.both(net, self.x)
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)

    def test_hooks_of_a_norm_fire(self):
        net, seen = self.net(), []
        net(self.x)
        net.blocks[1].batch_norm_layers[0].register_forward_hook(lambda *a: seen.append(1))
        net(self.x)
        assert seen == [1]

    def test_frozen_statistics_in_inference_mode(self):
        net = self.net()
        with torch.inference_mode():
            y = net(self.x)
        assert torch.equal(y, net(self.x))
        y = net(self.x)
        y.sum().backward()
