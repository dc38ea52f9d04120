"""A first layer set from data: what it computes, counts, keeps and refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flowkernels
from flowkernels.flows import MAF, NSF, Glow
from flowkernels.training import standardised
from flowkernels.transforms import Logit

pytestmark = pytest.mark.usefixtures("one_thread")


def data(*shape: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(0)
    return 300 + 20 * torch.randn(*shape, generator=draws, dtype=torch.float64)


def test_the_density_is_of_x_in_its_own_units() -> None:
    x = data(200, 3)
    flow = NSF(3, transforms=2, bins=4, hidden=(8,)).double()
    made = standardised(flow, x)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    expected = flow.log_prob(z) - x.std(0, correction=0).log().sum()
    torch.testing.assert_close(made.log_prob(x), expected)
    assert (
        type(made) is NSF
        and made.base is flow.base
        and len(list(flow.parameters())) == len([p for p in made.parameters() if p.requires_grad])
    )
    torch.testing.assert_close(made.decode(made.encode(x)), x)
    drawn = made.sample(500)
    assert (drawn.mean(0) - 300).abs().max() < 10 and drawn.std(0).min() > 5
    torch.testing.assert_close(flow.log_prob(z), expected + x.std(0, correction=0).log().sum())  # untouched


def test_context_comes_before_the_embedding() -> None:
    x, c = data(50, 2), 1000 * data(50, 3)
    embedding = nn.Linear(3, 4)
    flow = MAF(2, context=4, transforms=1, hidden=(8,), embedding=embedding).double()
    made = standardised(flow, x, c)
    z, k = ((t - t.mean(0)) / t.std(0, correction=0) for t in (x, c))
    torch.testing.assert_close(made.embed(c), embedding(k))
    torch.testing.assert_close(made.log_prob(x, c), flow.log_prob(z, k) - x.std(0, correction=0).log().sum())
    assert flow.embedding is embedding and made.embedding is not embedding
    bare = standardised(MAF(2, context=3, transforms=1, hidden=(8,)).double(), x, c)
    torch.testing.assert_close(bare.embed(c), k)


def test_constant_features_keep_their_scale() -> None:
    x = data(40, 3)
    x[:, 1] = 1e6 / 3
    c = torch.full((40, 2), 7.0, dtype=torch.float64)
    made = standardised(MAF(3, context=2, transforms=1, hidden=(8,)).double(), x, c)
    z, ladj = made.transform.transforms[0](x)
    assert z[:, 1].abs().max() < 1e-6 and torch.isfinite(made.log_prob(x, c)).all()
    torch.testing.assert_close(ladj, -x[:, [0, 2]].std(0, correction=0).log().sum().expand(40))
    assert torch.equal(made.embed(c), torch.zeros_like(c))


def test_images_by_channel() -> None:
    x = torch.cat((data(6, 1, 4, 4), data(6, 1, 4, 4) * 9), 1).float()
    flow = Glow((2, 4, 4), levels=2, steps=1, hidden=(4, 4))
    z = standardised(flow, x).transform.transforms[0](x)[0]
    assert z.mean((0, 2, 3)).abs().max() < 1e-4 and (z.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-4
    assert standardised(flow, x).sample(2).shape == (2, 2, 4, 4)


def test_it_is_saved_and_loaded(tmp_path) -> None:
    pytest.importorskip("safetensors")
    x, c = data(50, 2).float(), data(50, 3).float()
    made = standardised(MAF(2, context=4, transforms=1, hidden=(8,), embedding=nn.Linear(3, 4)), x, c)
    made.save(tmp_path / "flow.safetensors")
    again = flowkernels.load(tmp_path / "flow.safetensors")
    assert type(again) is MAF and torch.equal(again.log_prob(x, c), made.log_prob(x, c))
    frozen = [name for name, p in again.named_parameters() if not p.requires_grad]
    assert frozen == [name for name, p in made.named_parameters() if not p.requires_grad] and len(frozen) == 4


def test_what_it_refuses() -> None:
    x, flow = data(20, 2).float(), MAF(2, context=1, transforms=1, hidden=(8,))
    with pytest.raises(TypeError, match=r"training.standardised: flow must be a flowkernels.flows.Flow, got Linear"):
        standardised(nn.Linear(2, 2), x)  # type: ignore[type-var]
    with pytest.raises(TypeError, match=r"training.standardised: x must be of the dtype of the weights"):
        standardised(flow, x.double())
    with pytest.raises(
        ValueError, match=r"training.standardised: context must be \[N, C\] to be standardised, got \[20"
    ):
        standardised(flow, x, torch.zeros(20, 1, 4, 4))
    glow = Glow((1, 4, 4), levels=2, steps=1, hidden=(4, 4), preprocessing=[Logit(event_dims=3)])
    with pytest.raises(ValueError, match=r"training.standardised: flow must take any real numbers, got one whose data"):
        standardised(glow, torch.rand(3, 1, 4, 4))
