"""FrEIA's permutations as permutations, and its all-in-one blocks with their coupling as one op.

`PermuteRandom` indexes, whose backward pass adds up element by element, and a hard permutation of an all-in-one block
is a product with a matrix, a convolution for images. Nothing differs but the time: values are moved, not computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkernels.compat.engine.patch import FastMethods, or_theirs
from flowkernels.compat.engine.reads import CachedRead
from flowkernels.compat.reading.masks import read_order
from flowkernels.compat.reading.operands import mixed

from .couplings import call_of
from .describe import all_in_one, refusal_of

# Features from which moving them beats a product with a matrix; measured on two cores.
_LEAST_FEATURES = 32


_order_of = CachedRead[Tensor | str](read_order)
_inverse_of = CachedRead[Tensor | str](read_order)


class Permute(FastMethods):
    """The methods of an accelerated PermuteRandom."""

    def forward(self: Any, x: Any, rev: bool = False, jac: bool = True) -> tuple[list[Tensor], float]:
        return [x[0].index_select(1, self.perm_inv if rev else self.perm)], 0.0


class AllInOne(FastMethods):
    """The methods of an accelerated AllInOneBlock."""

    @or_theirs
    def forward(self: Any, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> Any:
        return _all_in_one(self, x, c, rev)

    def _permute(self: Any, x: Tensor, rev: bool = False) -> tuple[Tensor, Any]:
        scale, jac = 1.0, 0.0
        if not self.GIN:
            scale = self.global_scale_activation(self.global_scale)
            jac = torch.log(scale).sum()
        if rev:
            return (_permuted(self, x, True) - self.global_offset) / scale, jac
        return _permuted(self, x * scale + self.global_offset, False), jac

    def _pre_permute(self: Any, x: Tensor, rev: bool = False) -> Tensor:
        return _permuted(self, x, not rev)


def _all_in_one(block: Any, x: Any, c: Any, rev: bool) -> tuple[tuple[Tensor], Tensor] | None:
    """What a block of features returns, its coupling as one op; None where FrEIA's own code is called for."""
    call = None if block.householder or block.input_rank > 0 else call_of(all_in_one, block, x, c)
    if call is None:
        return None
    z, of_scales = x[0], 0.0
    if rev:
        z, of_scales = block._permute(z, rev=True)
    elif block.reverse_pre_permute:
        z = block._pre_permute(z, rev=False)
    found = call.run(z, rev)
    if found is None:
        return None
    z, ladj = found
    if not rev:
        z, of_scales = block._permute(z, rev=False)
    elif block.reverse_pre_permute:
        z = block._pre_permute(z, rev=True)
    return (z,), ladj - of_scales if rev else ladj + of_scales


def _permuted(block: Any, x: Tensor, inverse: bool) -> Tensor:
    weight = block.w_perm_inv if inverse else block.w_perm
    if block.householder or _is_narrow(block):
        return block.permute_function(x, weight)
    # The product says what is wrong with x; an index would pick columns from whatever it is given.
    fits = x.dim() > 1 and x.shape[1] == weight.shape[0] and not mixed(x, weight)
    order = (_inverse_of if inverse else _order_of)(block, (weight,)) if fits else None
    return x.index_select(1, order) if isinstance(order, Tensor) else block.permute_function(x, weight)


def _is_narrow(block: Any) -> bool:
    return block.input_rank == 0 and block.in_channels < _LEAST_FEATURES


def _permutation_refusal(block: Any) -> str | None:
    """Why a block's permutation is multiplied with as before, or None."""
    if block.householder:
        return "its permutation is learned"
    if _is_narrow(block):
        return f"a product with the matrix of {block.in_channels} features is as fast as moving them"
    order = _order_of(block, (block.w_perm,))
    return order if isinstance(order, str) else None


def refusal(block: Any) -> str | None:
    """Why an all-in-one block gains nothing, or None."""
    permutation = _permutation_refusal(block)
    if permutation is None or block.householder or block.input_rank > 0:
        return permutation
    coupling = refusal_of(all_in_one, block)
    return None if coupling is None else f"{permutation}, and {coupling}"
