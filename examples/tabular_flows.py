"""The flows of maf_tabular.py: one per map of a feature, all of as many layers and as wide, and two of all features."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

from flowkernels.flows import BNAF, CNF, MAF, NSF, SOS, UMNN, Flow, ResidualFlow
from flowkernels.transforms import Mixture

LAYERS, BINS, TAIL_BOUND = 2, 8, 5.0  # layers of each network, or residual blocks
CLIP = 11.0  # between sums of squares, as in zuko
COMPONENTS, UNITS = 8, 8  # of a mixture; of B-NAF's hidden layers, for every feature


class Kind(NamedTuple):
    title: str
    make: Callable[[int, int, int], Flow]  # of features, transforms, width


def _nsf(features: int, transforms: int, hidden: int) -> Flow:
    widths = (hidden,) * LAYERS
    box = {"bins": BINS, "tail_bound": TAIL_BOUND}
    return NSF(features, transforms=transforms, hidden=widths, autoregressive=True, linear=None, **box)


def _mixture(features: int, transforms: int, hidden: int) -> Flow:
    return MAF(features, transforms=transforms, hidden=(hidden,) * LAYERS, univariate=Mixture(COMPONENTS))


KINDS = {
    "maf": Kind("MAF", lambda D, n, h: MAF(D, transforms=n, hidden=(h,) * LAYERS)),
    "nsf": Kind("autoregressive NSF", _nsf),
    "mixture": Kind("mixture MAF", _mixture),
    "sos": Kind("SOS", lambda D, n, h: SOS(D, transforms=n, hidden=(h,) * LAYERS, softclip=CLIP)),
    "umnn": Kind("UMNN", lambda D, n, h: UMNN(D, transforms=n, hidden=(h,) * LAYERS)),
    "bnaf": Kind("B-NAF", lambda D, n, h: BNAF(D, transforms=n, hidden=(UNITS,) * LAYERS)),
    "residual": Kind("residual flow", lambda D, n, h: ResidualFlow(D, transforms=n, hidden=(h,) * LAYERS)),
    "cnf": Kind("CNF", lambda D, n, h: CNF(D, hidden=(h,) * LAYERS)),
}


def new_flow(kind: str, features: int, args: argparse.Namespace) -> Flow:
    return KINDS[kind].make(features, args.transforms, args.hidden)
