"""Trains policies of a robot's arm by reinforcement learning: a Gaussian and a flow.

An arm of two links is to touch a target, past a round obstacle. The policy sees both and chooses two angles; most
targets can be touched with the elbow on either side, and the obstacle may close one of them. The reward is 1 for a
touch, less the squared distance, and -1 where the arm meets the obstacle. No gradient of it is known: the policy
follows that of its own log-density (REINFORCE, several actions a state, each against the mean of the others), with a
bonus for entropy that falls to nearly nothing.

A table has, of states that were not seen in training: the mean reward, touches with one try and with eight, and how
many of them are with the rarer side of the elbow, where both are open. A picture shows arms that each policy draws in
six states.

What to expect: a Gaussian has one mean, bets on a side, and from the closed one it does not reach the other. A flow
moves its mass to where the reward is, and keeps some on either side while they are worth the same.
"""

from __future__ import annotations

import argparse
import math
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from common import arguments, begin, descend, new_console, positive, positive_number
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from flowkernels.flows import NSF

LINKS, RADIUS, NEAR, TRIES = (1.0, 0.8), 0.25, 0.1, 8
COLOURS = ("#d95f02", "#1b6ca8")


# ---- the arm ----


def states(n: int) -> Tensor:
    """``[n, 4]``: a target, from whose direction angles are measured, and an obstacle's centre."""
    far = torch.rand(n, 1) * 0.9 + 0.7
    along, across = torch.rand(n, 1) * 0.4 + 0.3, (torch.rand(n, 1) * 2 - 1) * 0.7
    return torch.cat([far, torch.zeros(n, 1), along * far, across], -1)


def joints(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Elbow and hand ``[..., 2]`` of the shoulder's angle and the elbow's, relative to the first link."""
    first, second = angles[..., 0], angles.sum(-1)
    elbow = LINKS[0] * torch.stack([first.cos(), first.sin()], -1)
    return elbow, elbow + LINKS[1] * torch.stack([second.cos(), second.sin()], -1)


def distance_to_link(point: Tensor, begin_at: Tensor, end_at: Tensor) -> Tensor:
    along = end_at - begin_at
    share = ((point - begin_at) * along).sum(-1) / along.square().sum(-1).clamp_min(1e-12)
    return (point - begin_at - share.clamp(0, 1).unsqueeze(-1) * along).norm(dim=-1)


class Outcome(NamedTuple):
    reward: Tensor
    touched: Tensor


def act(state: Tensor, angles: Tensor) -> Outcome:
    elbow, hand = joints(angles)
    target, obstacle = state[..., :2], state[..., 2:]
    away = torch.minimum(
        distance_to_link(obstacle, torch.zeros_like(elbow), elbow), distance_to_link(obstacle, elbow, hand)
    )
    distance, met = (hand - target).norm(dim=-1), away < RADIUS
    touched = (distance < NEAR) & ~met
    return Outcome(torch.where(met, -1.0, touched.float() - distance.square()), touched)


def solutions(state: Tensor) -> Tensor:
    """The angles ``[..., 2, 2]`` that touch the target, with the elbow on either side."""
    x, y = state[..., 0], state[..., 1]
    cosine = ((x**2 + y**2 - LINKS[0] ** 2 - LINKS[1] ** 2) / (2 * LINKS[0] * LINKS[1])).clamp(-1, 1)
    elbow = torch.stack([cosine.acos(), -cosine.acos()], -1)
    shoulder = torch.atan2(y, x).unsqueeze(-1) - torch.atan2(LINKS[1] * elbow.sin(), LINKS[0] + LINKS[1] * elbow.cos())
    return torch.stack([shoulder, elbow], -1)


# ---- policies ----


class Policy(nn.Module):
    """A distribution of angles given a state: a normal of any covariance, or a flow."""

    def __init__(self, kind: str, hidden: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(3, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU())
        if kind == "flow":
            self.flow = NSF(2, hidden, transforms=3, hidden=(hidden, hidden), tail_bound=math.pi)
        else:
            self.flow, self.gaussian = None, nn.Linear(hidden, 5)

    def _context(self, state: Tensor) -> Tensor:
        return self.features(state[..., [0, 2, 3]])

    def _normal(self, context: Tensor) -> torch.distributions.MultivariateNormal:
        mean, log_scale, below = self.gaussian(context).split([2, 2, 1], -1)
        scale = torch.diag_embed(log_scale.clamp(-4, 1).exp())
        lower = torch.zeros_like(scale)
        lower[..., 1, 0] = below[..., 0]
        return torch.distributions.MultivariateNormal(mean, scale_tril=scale + lower)

    def draw(self, state: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """``n`` actions a state ``[n, B, 2]``, without gradients, and their log-densities ``[n, B]``."""
        context = self._context(state)
        if self.flow is None:
            normal = self._normal(context)
            with torch.no_grad():
                angles = normal.sample((n,))
            return angles, normal.log_prob(angles)
        with torch.no_grad():
            angles = self.flow.sample((n,), context)
        return angles, self.flow.log_prob(angles, context.expand(n, *context.shape))


def loss(policy: Policy, args: argparse.Namespace, done: list[int]) -> Tensor:
    """The score-function estimate of minus the gradient of reward and entropy; its value means nothing."""
    done[0] += 1
    bonus = args.entropy * (1 - done[0] / (args.steps + 1))
    state = states(args.states)
    angles, log_density = policy.draw(state, args.actions)
    gain = act(state, angles).reward - bonus * log_density.detach()
    advantage = (gain - gain.mean(0)) * args.actions / (args.actions - 1)  # against the mean of the other actions
    return -(advantage / advantage.std().clamp_min(1e-6) * log_density).mean()


# ---- what came of it ----


class Learnt(NamedTuple):
    kind: str
    policy: Policy
    reward: float
    one: float
    some: float
    rarer: float
    possible: float
    seconds: float


@torch.no_grad()
def judge(kind: str, policy: Policy, args: argparse.Namespace, seconds: float) -> Learnt:
    state = states(args.test)
    angles, _ = policy.draw(state, TRIES)
    found = act(state, angles)
    ways = act(state.unsqueeze(-2), solutions(state)).touched  # [B, 2], which of them are open
    both = ways.all(-1)
    bent = angles[..., 1].remainder(2 * math.pi) < math.pi  # to the left
    of_left = (bent & found.touched).sum(0)[both] / found.touched.sum(0)[both].clamp_min(1)
    rarer = torch.minimum(of_left, 1 - of_left)[found.touched.sum(0)[both] > 0]
    one, some = found.touched[0].float().mean(), found.touched.any(0).float().mean()
    possible = ways.any(-1).float().mean()
    shares = [100 * v.item() for v in (one, some, rarer.mean(), possible)]
    return Learnt(kind, policy, found.reward.mean().item(), *shares, seconds)


def show(console: Console, found: list[Learnt], args: argparse.Namespace) -> None:
    table = Table(title=f"after {args.steps} steps; {found[0].possible:.0f} % of targets can be touched")
    for heading in ("policy", "reward", "touched, %", f"in {TRIES} tries, %", "rarer way, %", "seconds"):
        table.add_column(heading, justify="left" if heading == "policy" else "right", no_wrap=True)
    for f in found:
        table.add_row(f.kind, f"{f.reward:.3f}", f"{f.one:.1f}", f"{f.some:.1f}", f"{f.rarer:.1f}", f"{f.seconds:.0f}")
    console.print(table)


@torch.no_grad()
def picture(found: list[Learnt], args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    shown = states(6)
    figure, axes = plt.subplots(len(found), 6, figsize=(12, 2.2 * len(found)), squeeze=False, layout="constrained")
    for row, f in zip(axes, found, strict=True):
        angles, _ = f.policy.draw(shown, 24)
        elbow, hand = joints(angles)
        for i, ax in enumerate(row):
            ax.set(xlim=(-2, 2), ylim=(-2, 2), aspect="equal", xticks=[], yticks=[])
            ax.add_patch(plt.Circle(tuple(shown[i, 2:].tolist()), RADIUS, color="0.7"))
            for e, h in zip(elbow[:, i], hand[:, i], strict=True):
                line = torch.stack([torch.zeros(2), e, h])
                ax.plot(line[:, 0], line[:, 1], color=COLOURS[f.kind == "flow"], alpha=0.25, lw=1.2)
            ax.plot(*shown[i, :2].tolist(), "k+", ms=9)
        row[0].set_ylabel(f.kind)
    path = args.out / "arm_policy.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__ or "")
    kinds = ("Gaussian", "flow")
    parser.add_argument("--policies", nargs="+", choices=kinds, default=kinds, help="default: both")
    parser.add_argument("--steps", type=positive, default=3000, help="of training (default: 3000)")
    parser.add_argument("--states", type=positive, default=128, help="a step (default: 128)")
    parser.add_argument("--lr", type=positive_number, default=2e-3, help="learning rate at its highest (default: 2e-3)")
    parser.add_argument("--entropy", type=positive_number, default=0.2, help="its weight at first (default: 0.2)")
    args = parser.parse_args(argv)
    args.actions, args.test, args.hidden = 16, 4000, 64
    if args.quick:
        args.steps, args.states, args.test, args.hidden = 3, 8, 50, 8
    begin(args)
    console, found = new_console(), []
    try:
        for kind in args.policies:
            torch.manual_seed(args.seed)
            policy, done = Policy(kind, args.hidden), [0]
            seconds = descend(policy, lambda p=policy, d=done: loss(p, args, d), args.steps, args.lr, kind, console)
            policy.eval()
            torch.manual_seed(args.seed + 1)
            found.append(judge(kind, policy, args, seconds))
            console.print(f"{kind}: {seconds:.1f} s", highlight=False)
    except KeyboardInterrupt:
        console.print("interrupted: what is finished is drawn")
    if found:
        show(console, found, args)
        picture(found, args)
        console.print(f"wrote {args.out / 'arm_policy.png'}", highlight=False)


if __name__ == "__main__":
    main()
