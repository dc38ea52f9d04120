"""Ready models, and the `Flow` that they are."""

from .autoregressive import IAF, MAF
from .bnaf import BNAF
from .cnf import CNF, FFJORD
from .coupling import NICE, CouplingFlow
from .distribution import FlowDistribution
from .flow import Flow
from .flowavenet import FloWaveNet
from .flowpp import FlowPP
from .gaussianization import Gaussianization
from .glow import Glow
from .latent import attribute_vector, bits_per_dim, inpaint
from .low_rank import Planar, Radial, Sylvester
from .macow import MaCow
from .made import MADE, MixtureMADE
from .mintnet import MintNet
from .monotone import NAF, UMNN
from .nsf import NSF
from .pixel_cnn import PixelCNN
from .realnvp import RealNVP
from .recurrent import RecurrentFlow
from .residual import ResidualFlow
from .sos import SOS
from .waveglow import WaveGlow
from .wavenet import WaveNet

__all__ = [
    "BNAF",
    "CNF",
    "FFJORD",
    "IAF",
    "MADE",
    "MAF",
    "NAF",
    "NICE",
    "NSF",
    "SOS",
    "UMNN",
    "CouplingFlow",
    "FloWaveNet",
    "Flow",
    "FlowDistribution",
    "FlowPP",
    "Gaussianization",
    "Glow",
    "MaCow",
    "MintNet",
    "MixtureMADE",
    "PixelCNN",
    "Planar",
    "Radial",
    "RealNVP",
    "RecurrentFlow",
    "ResidualFlow",
    "Sylvester",
    "WaveGlow",
    "WaveNet",
    "attribute_vector",
    "bits_per_dim",
    "inpaint",
]
