"""The fused forms of nflows' two spline functions."""

from __future__ import annotations

import inspect
import sys

import pytest
import torch
from nflows.transforms import MaskedPiecewiseRationalQuadraticAutoregressiveTransform, autoregressive, splines
from nflows.transforms.base import InputOutsideDomain
from nflows.transforms.splines import rational_quadratic as theirs

from flowkernels.compat import nflows as ours
from flowkernels.compat.reading.spline_of_parts import joined
from tests.compat import nflows_models as models
from tests.compat.nflows_models import assert_numbers

K = 6
NAMES = ("rational_quadratic_spline", "unconstrained_rational_quadratic_spline")


def logits(n_slopes, shape=(models.B, 3)):
    gen = torch.Generator().manual_seed(4)
    return torch.randn(*shape, 2 * K + n_slopes, generator=gen, dtype=torch.float64)


def evaluate(function, x, params, **kwargs):
    """outputs, logabsdet and gradients"""
    x, params = (t.detach().clone().requires_grad_() for t in (x, params))
    y, ladj = function(x, *params.tensor_split((K, 2 * K), dim=-1), **kwargs)
    (y.sum() + (ladj * torch.linspace(1, 2, ladj.numel(), dtype=ladj.dtype).view_as(ladj)).sum()).backward()
    return {"y": y.detach(), "ladj": ladj.detach(), "grad of x": x.grad, "grad of params": params.grad}


@pytest.mark.parametrize("name", NAMES)
def test_signature_is_nflows(name):
    signature = inspect.signature(getattr(ours, name)).parameters.values()
    expected = inspect.signature(getattr(theirs, name)).parameters.values()
    assert [(p.name, p.default, p.kind) for p in signature] == [(p.name, p.default, p.kind) for p in expected]


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("case", ["unconstrained", "unit box", "box"])
def test_numbers(case, inverse):
    settings = {"inverse": inverse, "min_bin_width": 0.01, "min_bin_height": 0.02, "min_derivative": 0.05}
    name, x, params = NAMES[0], models.uniform(3), logits(K + 1)
    if case == "unconstrained":
        name, x, params = NAMES[1], models.normal(3), logits(K - 1)
        settings["tail_bound"] = 1.5
    elif case == "box":
        settings |= {"left": -1.0, "right": 2.0, "bottom": 0.0, "top": 1.0}

    def of(module):
        return lambda x, params, dtype: evaluate(getattr(module, name), x.to(dtype), params.to(dtype), **settings)

    assert_numbers(of(theirs), of(ours), x.float(), params.float())


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (4, 3, 2, 5)])
def test_any_leading_shape(shape):
    w, h, d = logits(K - 1, shape).float().tensor_split((K, 2 * K), dim=-1)
    y, ladj = ours.unconstrained_rational_quadratic_spline(torch.zeros(shape), w, h, d)
    assert y.shape == ladj.shape == shape


def test_neighbouring_logits_are_not_copied():
    params = logits(K - 1).float()
    parts = params.tensor_split((K, 2 * K), dim=-1)
    together = joined(*parts)
    assert together.data_ptr() == params.data_ptr()
    assert torch.equal(together.squeeze(-2), params)
    image = logits(K - 1, (4, 5)).float().transpose(0, 1)
    assert torch.equal(joined(*image.tensor_split((K, 2 * K), dim=-1)).squeeze(-2), image)


def test_logits_that_are_no_neighbours_are_copied():
    params = logits(K + 1).float()
    w, h, d = params.tensor_split((K, 2 * K), dim=-1)
    cut = (K, 2 * K)
    for parts in (
        (h, w, d),
        (w, h.clone(), d),
        (w, h[..., 1:], d),
        (w[:1], h[1:2], d[1:2]),
        logits(4 * K).float()[..., ::2].tensor_split(cut, dim=-1),
    ):
        assert torch.equal(joined(*parts).squeeze(-2), torch.cat(parts, -1))
    wanting = w.clone().requires_grad_()
    assert joined(wanting, h, d).requires_grad


def test_domain_and_tails():
    w, h, d = logits(K + 1).float().tensor_split((K, 2 * K), dim=-1)
    x = torch.full((models.B, 3), 1.5)
    with pytest.raises(InputOutsideDomain):
        theirs.rational_quadratic_spline(x, w, h, d)
    y, ladj = ours.rational_quadratic_spline(x, w, h, d)
    assert torch.equal(y, x)
    assert not ladj.any()
    for module in (theirs, ours):
        with pytest.raises(RuntimeError, match="circular tails are not implemented"):
            module.unconstrained_rational_quadratic_spline(x, w, h, d, tails="circular")
        with pytest.raises(ValueError):
            module.rational_quadratic_spline(x * 0, w, h, d, min_bin_width=0.5)


def test_inverse_where_nflows_asserts():
    gen = torch.Generator().manual_seed(0)
    w, h, d = (10 * torch.randn(120_000, 23, generator=gen)).tensor_split((8, 16), dim=-1)
    y, _ = theirs.unconstrained_rational_quadratic_spline(torch.randn(120_000, generator=gen), w, h, d, tail_bound=3.0)
    with pytest.raises(AssertionError):
        theirs.unconstrained_rational_quadratic_spline(y, w, h, d, inverse=True, tail_bound=3.0)
    x, ladj = ours.unconstrained_rational_quadratic_spline(y, w, h, d, inverse=True, tail_bound=3.0)
    assert x.isfinite().all()
    assert ladj.isfinite().all()


def patched() -> list[str]:
    """Where in nflows the fused functions are."""
    return sorted(
        f"{module}.{name}"
        for module in list(sys.modules)
        if module.split(".")[0] == "nflows"
        for name in NAMES
        if getattr(sys.modules[module], name, None) is getattr(ours, name)
    )


def test_patching_reaches_every_name_and_is_undone():
    assert not patched()
    places = [f"nflows.transforms.{m}.{n}" for m in ("autoregressive", "splines", "splines.rational_quadratic")
              for n in NAMES]  # fmt: skip
    with pytest.raises(ZeroDivisionError), ours.patch_functions():
        assert patched() == sorted(places)
        raise ZeroDivisionError
    assert not patched()


def test_patches_nest():
    outer = ours.patch_functions()
    with ours.patch_functions():
        pass
    assert patched()
    inner = ours.patch_functions()
    outer.restore()
    outer.restore()
    assert patched()
    inner.restore()
    assert not patched()
    assert splines.rational_quadratic_spline is theirs.rational_quadratic_spline
    assert autoregressive.rational_quadratic_spline.__module__ == theirs.__name__


@pytest.mark.parametrize("tails", [None, "linear"])
def test_a_patched_autoregressive_layer(tails):
    torch.manual_seed(0)
    layer = MaskedPiecewiseRationalQuadraticAutoregressiveTransform(4, 16, num_bins=5, tails=tails).double()
    x = models.uniform(4)
    expected, expected_back = layer(x), layer.inverse(x)
    with ours.patch_functions():
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer.inverse(x), expected_back)
