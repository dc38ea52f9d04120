"""How Triton kernels of maps whose parameters are rows of one tensor find their elements, and sum their ladj.

A program owns R rows and walks their features BD at a time, so that ladj is summed by one program in one order: no
atomics, the same bits every time.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def elements(first, rows, D, R: tl.constexpr, BD: tl.constexpr):
    """Row and feature of each of a program's R BD elements, and whether it is one."""
    e = tl.arange(0, R * BD)
    row = tl.program_id(0).to(tl.int64) * R + e // BD
    feature = first + e % BD
    return row, feature, (row < rows) & (feature < D)


@triton.jit
def of_rows(terms, ok, R: tl.constexpr, BD: tl.constexpr):
    """Sums over the features; in float64, as terms have both signs: an addition an element, which no GPU notices."""
    return tl.sum(tl.reshape(tl.where(ok, terms, 0.0).to(tl.float64), [R, BD]), 1)


@triton.jit
def store_rows(ladj_ptr, total, rows, R: tl.constexpr):
    r = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    tl.store(ladj_ptr + r, total.to(ladj_ptr.dtype.element_ty), mask=r < rows)


@triton.jit
def grads_of(grad_y_ptr, grad_ladj_ptr, row, feature, D, ok, HAS_Y: tl.constexpr, HAS_LADJ: tl.constexpr,
             dtype: tl.constexpr):  # fmt: skip
    """Of y (dense) and of ladj; 0 where there is none."""
    of_y = tl.zeros(ok.shape, dtype)
    if HAS_Y:
        of_y = tl.load(grad_y_ptr + row * D + feature, mask=ok, other=0.0).to(dtype)
    of_ladj = tl.zeros(ok.shape, dtype)
    if HAS_LADJ:
        of_ladj = tl.load(grad_ladj_ptr + row, mask=ok, other=0.0).to(dtype)
    return of_y, of_ladj
