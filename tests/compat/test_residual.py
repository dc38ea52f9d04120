"""Residual blocks of normflows and FrEIA: exact where they estimate, and what their estimates are in the mean."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowkernels import compat
from flowkernels.compat.engine.patch import original_class
from flowkernels.compat.normflows import residual

nf = pytest.importorskip("normflows", reason="normflows is not installed: see requirements/dev.txt")
freia = pytest.importorskip("FrEIA.modules", reason="FrEIA is not installed: see requirements/dev.txt")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread")]
D = 4


def normflows(features: int = D, **settings: Any) -> Any:
    torch.manual_seed(0)
    net = nf.nets.LipschitzMLP([features, 8, 6, features], init_zeros=False, lipschitz_const=0.9)
    layer = nf.flows.Residual(net, **settings).double()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "weight" in name:
                p.mul_(3)  # beyond the bound
    nf.utils.update_lipschitz(layer, 50)
    return layer


def of_freia(features: int = D) -> Any:
    torch.manual_seed(0)
    layer = freia.IResNetLayer([(features,)])
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(2)
    layer.lipschitz_correction()
    return layer.double()


def fast_copy(layer: Any) -> Any:
    fast = copy.deepcopy(layer)
    assert compat.accelerate(fast).accelerated == [""]
    return fast


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def truth(g: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """x + g(x) and its log-determinant, by autograd."""
    J = torch.stack([torch.autograd.functional.jacobian(lambda v: g(v[None])[0], row, create_graph=True) for row in x])
    return x + g(x), torch.linalg.slogdet(J + torch.eye(x.shape[1], dtype=x.dtype))[1]


def with_gradients(outputs: Any, leaves: Any) -> list[Tensor]:
    value = sum((t * torch.linspace(0.5, 1.5, len(t), dtype=t.dtype).view(-1, *[1] * (t.dim() - 1))).cos().sum()
                for t in outputs)  # fmt: skip
    return [*outputs, *torch.autograd.grad(value, leaves)]  # type: ignore[arg-type]


def close(found: Any, expected: Any, within: float = 1e-9) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=within, atol=within)


# ---- normflows ----


def of_net(layer: Any) -> list[Any]:
    return [*layer.iresblock.nnet.parameters()]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_normflows(training, reverse) -> None:
    plain = normflows(reverse=reverse).train(training)
    fast, x = fast_copy(plain), draw(5, D).requires_grad_()
    run, back = (fast.inverse, fast.forward) if reverse else (fast.forward, fast.inverse)
    found = with_gradients(run(x), [x, *of_net(fast)])
    close(found, with_gradients(truth(plain.iresblock.nnet, x), [x, *of_net(plain)]))
    y, ladj = found[:2]
    again, negative = back(y.detach())
    close([again, negative], [x, -ladj])
    theirs = original_class(fast)
    close([(theirs.inverse if reverse else theirs.forward)(fast, x.detach())[0]], [y])


def test_normflows_estimates_it_in_the_mean() -> None:
    plain = normflows(reverse=False).eval()
    x, n = draw(1, D).expand(50, D).clone(), 20
    exact = fast_copy(plain)(x)[1][0]
    np.random.seed(0)
    estimates = torch.stack([plain(x)[1].detach().mean() for _ in range(n)])
    error = estimates.std() / n**0.5
    assert (estimates.mean() - exact).abs() < 4 * error < exact.abs()


def test_normflows_exact_modes_are_the_same_numbers() -> None:
    """Two features by brute force, with gradients."""
    plain = normflows(2, brute_force=True, reverse=False)
    fast, x = fast_copy(plain), draw(5, 2).requires_grad_()
    close(with_gradients(fast(x), [x, *of_net(fast)]), with_gradients(plain(x), [x, *of_net(plain)]))


@pytest.mark.parametrize("dist", ["geometric", "poisson", None])
def test_normflows_estimates_of_many_features_with_the_same_noise(monkeypatch, dist) -> None:
    """By its basic estimator, whose value is the log-determinant's; by Neumann's it is none."""
    monkeypatch.setattr(residual, "MOST_IN_TRAINING", 2)
    settings = {"n_power_series": 4} if dist is None else {"n_dist": dist, "n_samples": 3}
    plain = normflows(reverse=False, reduce_memory=False, **settings)
    fast, found = fast_copy(plain), []
    for layer in (plain, fast):
        torch.manual_seed(0)
        np.random.seed(0)
        x = draw(5, D).requires_grad_()
        found.append(with_gradients(layer(x), [x, *of_net(layer)]))
    close(found[1], found[0])
    for name in ("last_n_samples", "last_firmom", "last_secmom"):
        torch.testing.assert_close(getattr(fast.iresblock, name), getattr(plain.iresblock, name))


def test_normflows_norms_are_noted_and_updated() -> None:
    plain = normflows(reverse=False)
    fast, x = fast_copy(plain), draw(5, D)
    for layer in (plain, fast):
        with torch.no_grad():
            for name, p in layer.named_parameters():
                if "weight" in name:
                    p.mul_(1.5)
        layer(x)
    scales = [[m.scale for m in layer.modules() if hasattr(m, "scale")] for layer in (plain, fast)]
    close(*scales, within=1e-12)
    before = [t.clone() for t in scales[1]]
    nf.utils.update_lipschitz(fast, 5)
    nf.utils.update_lipschitz(plain, 5)
    close([fast(x)[0]], [plain(x)[0].detach()])
    assert not torch.equal(torch.stack(before), torch.stack([m.scale for m in fast.modules() if hasattr(m, "scale")]))


def test_normflows_whole_flow_keeps_its_state() -> None:
    torch.manual_seed(0)
    base = nf.distributions.DiagGaussian(D, trainable=False)
    flow = nf.NormalizingFlow(base, [normflows() for _ in range(2)]).double().eval()
    keys = flow.state_dict().keys()
    assert len(compat.accelerate(flow).accelerated) == 2
    x, log_q = flow.sample(6)
    torch.testing.assert_close(flow.log_prob(x.detach()), log_q, rtol=1e-9, atol=1e-9)
    assert flow.state_dict().keys() == keys
    assert type(pickle.loads(pickle.dumps(flow)).flows[0]) is nf.flows.Residual
    torch.testing.assert_close(copy.deepcopy(flow).log_prob(x), flow.log_prob(x), rtol=0, atol=0)


def test_normflows_hooks_within_are_called() -> None:
    fast, x, seen = fast_copy(normflows(reverse=False)), draw(3, D), []
    fast.iresblock.nnet.net[1].register_forward_hook(lambda module, args, output: seen.append(1))
    fast(x)
    assert seen


def _norms_of(layer: Any) -> None:
    layer.iresblock.nnet.net[1].domain = float("inf")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda layer: setattr(layer.iresblock, "nnet", nn.Linear(D, D)),
            "its network is a Linear, not normflows' Lip",
        ),
        (
            lambda layer: setattr(layer.iresblock.nnet.net, "0", nn.ELU()),
            "its network has other layers than normflows'",
        ),
        (_norms_of, "the norms of its network are not spectral"),
        (lambda layer: setattr(layer.iresblock.nnet.net[1], "coeff", 2.0), "do not make it a contraction"),
    ],
)
def test_normflows_what_no_kernel_has_is_left_alone(change, reason) -> None:
    layer = normflows()
    change(layer)
    assert reason in compat.accelerate(layer).left_alone[""]


def test_normflows_many_features_are_left_alone() -> None:
    layer = nf.flows.Residual(nf.nets.LipschitzMLP([130, 8, 130]))
    assert compat.accelerate(layer).left_alone[""] == "no kernel for determinants of more than 128 features"


# ---- FrEIA ----


def test_freia() -> None:
    plain = of_freia()
    fast, x = fast_copy(plain), draw(5, D).requires_grad_()
    (y,), ladj = fast([x])
    found = with_gradients([y, ladj], [x, *fast.parameters()])
    close(found, with_gradients(truth(plain.residual, x), [x, *plain.parameters()]))
    (back,), negative = fast([y.detach()], rev=True)
    close([back, negative], [x, -ladj])
    close([fast([x], jac=False)[0][0]], [plain([x], jac=False)[0][0]])
    assert fast([x], jac=False)[1] is None


def test_freia_estimates_it_in_the_mean_and_at_the_wrong_end_of_an_inverse() -> None:
    """Why the inverse differs: were it ever mended, this fails."""
    plain = of_freia()
    plain.hutchinson_samples, plain.jacobian_iterations = 50, 30
    fast, x = fast_copy(plain), draw(1, D)
    torch.manual_seed(0)
    estimate, exact = plain([x.clone()])[1], fast([x])[1]
    assert (estimate - exact).abs() < 0.5 * exact.abs()
    assert not estimate.requires_grad and exact.requires_grad
    torch.manual_seed(0)
    at_y = plain([x.clone()], rev=True)[1]
    torch.manual_seed(0)
    assert torch.equal(at_y, -plain([x.clone()])[1])


def test_freia_what_no_kernel_has_is_left_alone() -> None:
    image = freia.IResNetLayer([(2, 4, 4)])
    assert compat.accelerate(image).left_alone[""] == "its input is an image"
    wide = freia.IResNetLayer([(130,)])
    assert "more than 128 features" in compat.accelerate(wide).left_alone[""]
    other = of_freia()
    other.residual[1] = nn.Tanh()
    other.residual[3] = nn.Tanh()
    assert compat.accelerate(other).left_alone[""] == "the activation of its network is tanh"
