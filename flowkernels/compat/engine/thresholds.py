"""From how many elements on a layer runs fused: below, a call costs more than the passes over memory that it saves.

Measured on one AVX-512 core against nflows and normflows eager, forward and training; below these sizes the fused layer
was up to twice as slow, above them it was never slower.

A graph is recorded for batches of any size, and a look at a size would make it a constant, or a bound, of that graph.
"""

from __future__ import annotations

import torch

LU = 2048  # an LU layer of rows that records a graph; without one it always pays
MASKED_AFFINE = 1 << 15  # the same
AFFINE = 1 << 16  # an affine map without its network
COUPLING_ROWS = 256  # rows of a coupling with its dense network in Pyro, without a graph; with one it does not pay
CONDITIONAL_COUPLING_ROWS = 2048  # the same with a context, which Pyro's network has in its first columns
COUPLED_ROWS = 1024  # rows of a lone affine coupling and its dense network, FrEIA and normflows; at 512 it took as long
COUPLED_ELEMENTS = 170_000  # its rows times (width of the network + 4 mapped columns); twice as many with two networks
CHAIN_ROWS = 220  # rows of a run of FrEIA's or Pyro's with a graph, for each million weights of a layer beyond 25,000
COLUMNS_ROWS = 64  # rows of a run of layers with a graph, whose networks' columns are selected in every call
MERGED_ROWS = 128  # rows of a masked network whose first two layers are made one; its inverse always pays
CONVOLUTIONS = 1 << 19  # elements of a hidden layer of a network of convolutions; half as many with a graph
CONVOLUTION = 1 << 14  # elements before a 1 x 1 convolution of normflows that records a graph; its inverse always pays
NORM = 1 << 17  # one scale and one shift per channel
MASKED_WEIGHT = 1 << 14  # weights of a masked layer that stands alone
MASKED_LINEAR = 1 << 22  # its multiply-adds without a graph, rows times weights; four times as many with one


def _is_known(n: int) -> bool:
    """Whether n is the size of this call; tracers give a symbol or a tensor in its place, and compilers hide theirs."""
    return not torch.compiler.is_compiling() and type(n) is int


def may_train() -> bool:
    """Whether a call records a graph; `torch.jit.trace` checks without gradients what it recorded with them."""
    return torch.is_grad_enabled() or torch.jit.is_tracing()  # type: ignore[reportPrivateImportUsage]


def is_few(n: int, least: int) -> bool:
    """Whether n is known to be too few to pay."""
    return _is_known(n) and n < least


def is_enough(n: int, least: int) -> bool:
    """Whether n is known to pay."""
    return _is_known(n) and n >= least
