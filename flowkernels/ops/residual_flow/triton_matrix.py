"""Inverses and determinants of small matrices, of some rows at a time, each in registers."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _row_of(A, where):
    """Of each matrix [R, T, T] the row that `where`, [R, T], marks: [R, T]. A sum of one number is that number."""
    return tl.sum(tl.where(where[:, :, None], A, 0.0), 1)


@triton.jit
def _column_of(A, where):
    return tl.sum(tl.where(where[:, None, :], A, 0.0), 2)


@triton.jit
def _number_of(v, where):
    return tl.sum(tl.where(where, v, 0.0), 1)


@triton.jit
def inverted(A, D: tl.constexpr, R: tl.constexpr, T: tl.constexpr):
    """The inverses of [R, T, T], by Gauss and Jordan in place, and log |det| [R], in float64. Beyond D they are those
    of the unit matrix. In each column the largest number comes to the diagonal; what is no number goes first, so that
    it is seen."""
    line = tl.zeros([R, 1], tl.int32) + tl.arange(0, T)[None, :]
    places = tl.zeros([R, T], tl.int32)
    log_det = tl.zeros([R], tl.float64)
    for k in range(0, D):
        own = line == k
        column = _column_of(A, own)
        size = tl.where(column != column, float("inf"), tl.abs(column))
        place = tl.argmax(tl.where(line < k, -1.0, size), 1)
        there = line == place[:, None]
        row, before = _row_of(A, there), _row_of(A, own)
        pivot, moved = _number_of(column, there), _number_of(column, own)
        column = tl.where(own, pivot[:, None], tl.where(there, moved[:, None], column))
        A = tl.where(own[:, :, None], row[:, None, :], tl.where(there[:, :, None], before[:, None, :], A))
        log_det += tl.log(tl.abs(pivot).to(tl.float64))  # near 1 a float32 log errs by as much as at 2
        places = tl.where(own, place[:, None], places)
        row = tl.where(own, 1.0, row) / pivot[:, None]
        rest = tl.where(own[:, None, :], 0.0, A) - column[:, :, None] * row[:, None, :]
        A = tl.where(own[:, :, None], row[:, None, :], rest)
    for done in range(0, D):  # what rows did on the way in, columns do on the way out
        own = line == D - 1 - done
        there = line == _number_of(places, own)[:, None]
        first, second = _column_of(A, own), _column_of(A, there)
        A = tl.where(own[:, None, :], second[:, :, None], tl.where(there[:, None, :], first[:, :, None], A))
    return A, log_det
