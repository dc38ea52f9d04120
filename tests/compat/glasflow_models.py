"""glasflow's flows that the tests accelerate, as nessai builds them, and the layers of its copy of nflows."""

from __future__ import annotations

import torch
from glasflow import CouplingNSF, RealNVP
from glasflow.flows import MaskedAffineAutoregressiveFlow, MaskedPiecewiseRationalQuadraticAutoregressiveFlow

from tests.compat.nflows_models import normal, shaken, stretch, uniform

SIZES = {"n_inputs": 6, "n_transforms": 2, "n_neurons": 16, "n_blocks_per_transform": 2}
FLOWS = {
    "nsf": (CouplingNSF, {}),
    "nsf, uniform": (CouplingNSF, {"distribution": "uniform"}),
    "nsf, lu": (CouplingNSF, {"linear_transform": "lu"}),
    "nsf, batch norm": (CouplingNSF, {"batch_norm_between_transforms": True, "linear_transform": "permutation"}),
    "nsf, context": (CouplingNSF, {"n_conditional_inputs": 3}),
    "realnvp": (RealNVP, {}),
    "realnvp, scale of nflows": (RealNVP, {"scale_activation": "nflows", "linear_transform": "lu"}),
    "realnvp, log2": (RealNVP, {"scale_activation": "log2", "n_conditional_inputs": 3}),
    "realnvp, additive": (RealNVP, {"volume_preserving": True}),
    "maf": (MaskedAffineAutoregressiveFlow, {}),
    "maf, context": (MaskedAffineAutoregressiveFlow, {"n_conditional_inputs": 3}),
    "maf, scale of nflows": (MaskedAffineAutoregressiveFlow, {"scale_activation": "nflows"}),
    "spline maf": (MaskedPiecewiseRationalQuadraticAutoregressiveFlow, {"tails": "linear", "tail_bound": 3.0}),
}


def flow(name, **sizes):
    cls, settings = FLOWS[name]
    torch.manual_seed(0)
    model = cls(**{**SIZES, **sizes}, **settings)
    return stretch(model) if name.startswith(("nsf", "spline")) else model


def cases():
    """name → (flow, inputs in float64, context or None); a flow's forward and inverse are those of its transform."""
    found = {}
    for name, (_, settings) in FLOWS.items():
        model = shaken(flow(name), 0.05)
        x = uniform(6) if "uniform" in name else normal(6)
        if "batch norm" in name:  # one batch of data in training, then its running statistics
            for _ in range(20):
                model.forward(x.float())
            model.eval()
        found[name] = (model, x, normal(3) if "n_conditional_inputs" in settings else None)
    return found
