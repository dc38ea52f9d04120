"""The tables: rows that a package ships, or that are simulated here. Nothing is fetched."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Table = Callable[[torch.Generator, int], Tensor]  # rows [N, D] in float64; of shipped ones N is theirs, at most


class Split(NamedTuple):
    """Standardised by the training rows, so that nats are of the same units for all models."""

    train: Tensor
    validation: Tensor
    test: Tensor


def split(table: str, number: int, rows: int) -> Split:
    """8 : 1 : 1 in random order; of a simulated table each split has rows of its own."""
    generator = torch.Generator().manual_seed(7919 * number + 1)
    x = TABLES[table](generator, rows)
    x = x[torch.randperm(len(x), generator=generator)[:rows]]
    tenth = max(len(x) // 10, 2)
    parts = x[2 * tenth :], x[tenth : 2 * tenth], x[:tenth]
    std, mean = torch.std_mean(parts[0], dim=0)
    std = torch.where(std > 0, std, torch.ones_like(std))  # a column that varies in other rows only
    return Split(*(((part - mean) / std).float() for part in parts))


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _uniform(g: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=g, dtype=torch.float64)


# ---- simulated ----


def two_moons(g: torch.Generator, n: int) -> Tensor:
    """Two half circles with noise."""
    angle, upper = math.pi * _uniform(g, n), _uniform(g, n) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    return torch.stack((x, y), 1) + 0.05 * _normal(g, n, 2)


def checkerboard(g: torch.Generator, n: int) -> Tensor:
    """Uniform on eight of sixteen squares: a density with edges."""
    column = (4 * _uniform(g, n)).floor()
    row = 2 * (2 * _uniform(g, n)).floor() + column % 2
    return torch.stack((column, row), 1) + _uniform(g, n, 2)


def heavy_tails(g: torch.Generator, n: int) -> Tensor:
    """Six numbers of Student's t with 3 degrees of freedom, mixed by one triangular matrix."""
    t = _normal(g, n, 6) / (_normal(g, n, 6, 3).square().mean(2)).sqrt()
    return t @ (torch.eye(6).double() + 0.6 * torch.ones(6, 6).double().tril(-1)).T


def funnel(g: torch.Generator, n: int) -> Tensor:
    """Neal's: the first of ten numbers is the logarithm of the others' variance."""
    v = 3 * _normal(g, n, 1)
    return torch.cat((v, (v / 2).exp() * _normal(g, n, 9)), 1)


def lorenz(g: torch.Generator, n: int) -> Tensor:
    """A state of Lorenz' attractor now, 0.1 and 0.2 later, by Euler's steps of 0.005: thin, curved, nine numbers."""
    state, seen = _normal(g, n, 3) + torch.tensor([0.0, 0.0, 25.0], dtype=torch.float64), []
    for step in range(1, 441):
        x, y, z = state.unbind(1)
        state = state + 0.005 * torch.stack((10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z), 1)
        if step in (400, 420, 440):
            seen.append(state)
    return torch.cat(seen, 1) + 0.1 * _normal(g, n, 9)


def particles(g: torch.Generator, n: int) -> Tensor:
    """Momenta of two massless particles that one of a narrow line of masses, or of a continuum, decayed into."""
    mass = torch.where(_uniform(g, n) < 0.4, 91 + 1.2 * _normal(g, n), 40 - 40 * (1 - _uniform(g, n)).log())
    cos, phi = 2 * _uniform(g, n) - 1, 2 * math.pi * _uniform(g, n)
    sin = (1 - cos.square()).sqrt()
    p = mass[:, None] / 2 * torch.stack((sin * phi.cos(), sin * phi.sin(), cos), 1)
    boost = 0.8 * _normal(g, n)  # rapidity along the beam
    found = [torch.cat((q[:, :2], (boost.sinh() * mass / 2 + boost.cosh() * q[:, 2])[:, None]), 1) for q in (p, -p)]
    return torch.cat(found, 1) * (1 + 0.02 * _normal(g, n, 6))


def posterior(g: torch.Generator, n: int) -> Tensor:
    """Exact draws of five parameters given an output of a simulator with signs and a shell, by rejection."""
    kept: list[Tensor] = []
    while sum(map(len, kept)) < n:
        t = 2 * _uniform(g, 50_000, 5) - 1
        kept.append(t[_uniform(g, len(t)) < likelihood(t)])
    return torch.cat(kept)[:n]


def likelihood(t: Tensor) -> Tensor:
    """Of the parameters ``[N, 5]`` of `posterior`, at most 1."""
    a, b, c, d, e = t.unbind(1)
    x = torch.stack((a * b, c.abs(), d.square() + e.square(), a + b * c), 1)
    seen = torch.tensor([0.2, 0.4, 0.5, 0.3], dtype=torch.float64)
    return (-0.5 * ((x - seen) / 0.08).square().sum(1)).exp()


# ---- of packages ----


def breast_cancer(g: torch.Generator, n: int) -> Tensor:
    """Scikit-learn's: 569 rows of 30 measurements."""
    from sklearn.datasets import load_breast_cancer

    data: Any = load_breast_cancer()
    return torch.from_numpy(data.data)


def digits(g: torch.Generator, n: int) -> Tensor:
    """Scikit-learn's: 1,797 images of 8 × 8, with uniform noise on their whole numbers; pixels that are always 0 left
    out."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    x = torch.from_numpy(data.data)
    x = x[:, (x != x[0]).any(0)]
    return x + _uniform(g, *x.shape)


def patches(g: torch.Generator, n: int) -> Tensor:
    """Grey patches of 8 × 8 of scikit-learn's two photographs, with uniform noise, less their mean and their last
    pixel, as BSDS300 is made."""
    from sklearn.datasets import load_sample_images

    found = []
    for image in load_sample_images().images:
        grey = torch.from_numpy(image.astype("float64")).mean(2)
        top, left = ((size - 8) * _uniform(g, (n + 1) // 2) for size in grey.shape)
        rows, columns = (start.long()[:, None] + torch.arange(8) for start in (top, left))
        found.append(grey[rows[:, :, None], columns[:, None, :]].flatten(1))
    x = torch.cat(found)[:n]
    x = (x + _uniform(g, *x.shape)) / 256
    return (x - x.mean(1, keepdim=True))[:, :-1]


TABLES: dict[str, Table] = {
    f.__name__: f
    for f in (
        two_moons,
        checkerboard,
        heavy_tails,
        funnel,
        lorenz,
        particles,
        posterior,
        breast_cancer,
        digits,
        patches,
    )
}
