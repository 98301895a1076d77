"""Large matrix products: on one BLAS thread each, in pieces of the result that the shapes alone decide.

OpenBLAS gives other bits with one and two threads; so the pieces are divided among our own. Small products, which OpenBLAS
itself does on one thread, and those of stacks of matrices stay with NumPy.
"""

from __future__ import annotations

import numpy as np

from .. import portable
from .blas import gemm, numpy_one_thread, one_thread
from .jit import compiled, take
from .layout import FLOATS
from .memory import empty
from .threads import run

__all__ = ["einsum", "linear", "matmul"]

_WORTH = 1 << 22  # multiplications that make an item worth another thread: some 80 us


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
    items = min(16, m * n * k // _WORTH)
    with one_thread:
        if items < 2:
            _piece(a, b, out, 0, m, 0, n, turn_a, turn_b, bias)
        else:
            width = -(-max(m, n) // (16 * items)) * 16  # of a piece: a multiple of what BLAS likes
            items = -(-max(m, n) // width)
            run(_pieces, items, items, width, a, b, out, turn_a, turn_b, bias)
    return y


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
def _piece(a, b, out, i0, i1, j0, j1, turn_a, turn_b, bias):
    """out[i0:i1, j0:j1]."""
    left = a[:, i0:i1] if turn_a else a[i0:i1, :]
    right = b[j0:j1, :] if turn_b else b[:, j0:j1]
    zero_one = np.empty(2, out.dtype)
    zero_one[0], zero_one[1] = 0, 1
    gemm(left, right, out[i0:i1, j0:j1], turn_a, turn_b, False, zero_one)
    if bias.size:
        for i in range(i0, i1):
            row = out[i]
            for j in range(j0, j1):
                row[j] += bias[j]


@compiled
def _pieces(counter, slot, items, width, a, b, out, turn_a, turn_b, bias):
    """Item i is a piece of the rows of the result, or of its columns where these are more."""
    m, n = out.shape
    while True:
        item = take(counter)
        if item >= items:
            return
        begin, end = item * width, min((item + 1) * width, max(m, n))
        if m >= n:
            _piece(a, b, out, begin, end, 0, n, turn_a, turn_b, bias)
        else:
            _piece(a, b, out, 0, m, begin, end, turn_a, turn_b, bias)
