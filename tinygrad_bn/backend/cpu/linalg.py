"""Large matrix products: on one BLAS thread each, in pieces of the result that the shapes alone decide.

OpenBLAS gives other bits with one and two threads; so the pieces are divided among our own. Small products, which OpenBLAS
itself does on one thread, and those of stacks of matrices stay with NumPy.
"""

from __future__ import annotations

import math

import numpy as np

from .. import portable
from .blas import ZERO_ONE, gemm, numpy_one_thread, one_thread
from .jit import compiled
from .layout import FLOATS
from .memory import empty
from .team import join, leave, run, take

__all__ = ["einsum", "linear", "matmul"]

_WORTH = 1 << 18  # multiplications that are worth a second thread: 3 us


def matmul(x, y):
    """portable.matmul."""
    if x.dtype not in FLOATS or x.dtype != y.dtype or y.ndim != 2 or x.ndim < 2 or 0 in x.shape + y.shape:
        with numpy_one_thread:
            return portable.matmul(x, y)
    return _product(x, y, None, y.shape[1])


def linear(x, w, b):
    """portable.linear."""
    if x.dtype not in FLOATS or 0 in x.shape + w.shape:
        return portable.linear(x, w, b)
    return _product(x, w.T, b, w.shape[0])


def einsum(subscripts, operands):
    """portable.einsum, with NumPy's BLAS on one thread."""
    with numpy_one_thread:
        return portable.einsum(subscripts, operands)


def _product(x, b, bias, n):
    """x @ b + bias: (..., k), (k, n), (n,) or None -> (..., n)."""
    y = empty((*x.shape[:-1], n), x.dtype)
    a, out = (x, y) if x.ndim == 2 else (x.reshape(-1, x.shape[-1]), y.reshape(-1, n))
    m, k = a.shape
    a, turn_a = _factor(a)
    b, turn_b = _factor(b)
    bias = _NO_BIAS[out.dtype.char] if bias is None else np.ascontiguousarray(bias)
    rows, columns = _shape_of_piece(m, k, n, turn_b and not turn_a)
    across = -(-n // columns)
    items = -(-m // rows) * across
    with one_thread:
        run(
            _pieces, items, rows, columns, across, a, b, out, turn_a, turn_b, bias, ZERO_ONE[out.dtype.char],
            threads=1 if m * k * n < _WORTH else None,
        )  # fmt: skip
    return y


def _shape_of_piece(m, k, n, turn_b_only):
    """Rows and columns of the pieces in which (m, k) @ (k, n) is computed.

    Up to a million multiplications, OpenBLAS takes its kernels for small matrices, which copy nothing first: 100 to 115 GFLOP/s
    on one core of a Zen 4 where the whole product runs at 70 to 100. The shapes are those that were fastest there; where both
    factors lie along k, those kernels are for no more than 1,200 results.
    """
    elements = min(10**6 // k, max(m * n // 4, 512))
    if elements < 256:
        return max(1, -(-m // 4)), max(1, -(-n // 4))
    if turn_b_only and k > 128:
        elements = min(elements, 1200)
    elif k > 256:
        rows = elements // 64
        return (rows // 8 * 8 if rows > 8 else rows), 64
    rows = math.isqrt(elements) // 16 * 16
    return rows, elements // rows // 16 * 16


_NO_BIAS = {dtype: np.empty(0, dtype) for dtype in "fd"}


def _factor(a):
    """A contiguous matrix, and whether its transpose is meant."""
    flags = a.flags
    if flags.c_contiguous and flags.behaved:
        return a, False
    if flags.f_contiguous and flags.behaved:
        return a.T, True
    return np.array(a, order="C"), False


@compiled
def _pieces(team, items, rows, columns, across, a, b, out, turn_a, turn_b, bias, zero_one):
    """An item is a piece of the result, ``across`` of which lie beside each other."""
    m, n = out.shape
    slot = join(team)
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        i0, j0 = item // across * rows, item % across * columns
        i1, j1 = min(i0 + rows, m), min(j0 + columns, n)
        left = a[:, i0:i1] if turn_a else a[i0:i1, :]
        right = b[j0:j1, :] if turn_b else b[:, j0:j1]
        gemm(left, right, out[i0:i1, j0:j1], turn_a, turn_b, False, zero_one)
        if bias.size:
            for row in range(i0, i1):
                for column in range(j0, j1):
                    out[np.uint64(row), np.uint64(column)] += bias[np.uint64(column)]
