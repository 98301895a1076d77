"""Large matrix products: on one BLAS thread each, in pieces of the result that the shapes alone decide.

OpenBLAS gives other bits with one and two threads; so the pieces are divided among our own. Small products, which OpenBLAS
itself does on one thread, and those of stacks of matrices stay with NumPy.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from .. import portable
from .blas import ZERO_ONE, begin, end, gemm, limit, numpy_one_thread, one_thread
from .jit import compiled
from .layout import FLOATS
from .memory import empty
from .team import is_helper, join, leave, run, take

__all__ = ["einsum", "linear", "linear_backward", "matmul"]

_WORTH = 1 << 17  # multiplications that are worth a second thread: 1.5 us


def matmul(x, y):
    """portable.matmul."""
    if x.dtype not in FLOATS or x.dtype != y.dtype or y.ndim != 2 or x.ndim < 2 or 0 in x.shape + y.shape:
        with numpy_one_thread:
            return portable.matmul(x, y)
    out = empty((*x.shape[:-1], y.shape[1]), x.dtype)
    _multiply(_NO_BIAS[out.dtype.char], (*_factor(_matrix(x)), *_factor(y), _matrix(out)))
    return out


def linear(x, w, b):
    """portable.linear."""
    if x.dtype not in FLOATS or not x.size or not w.size:
        return portable.linear(x, w, b)
    y = out = empty((*x.shape[:-1], len(w)), x.dtype)
    if x.ndim != 2:
        x, out = _matrix(x), _matrix(y)
    bias = _NO_BIAS[y.dtype.char] if b is None else np.ascontiguousarray(b)
    _multiply(bias, (*_factor(x), *_factor(w, True), out))
    return y


def linear_backward(g, x, w, want_x, want_w):
    """portable.linear_backward."""
    if g.dtype not in FLOATS or not g.size or 0 in x.shape:
        return portable.linear_backward(g, x, w, want_x, want_w)
    dx = dw = None
    products = []
    rows = g if g.ndim == 2 else _matrix(g)
    if want_w:
        dw = empty((g.shape[-1], x.shape[-1]), g.dtype)
        products.append((*_factor(rows, True), *_factor(x if x.ndim == 2 else _matrix(x)), dw))
    if want_x:
        dx = empty(x.shape, g.dtype)
        products.append((*_factor(rows), *_factor(w), dx if dx.ndim == 2 else _matrix(dx)))
    _multiply(_NO_BIAS[g.dtype.char], *products)
    return dx, dw


def einsum(subscripts, operands):
    """portable.einsum, with NumPy's BLAS on one thread."""
    with numpy_one_thread:
        return portable.einsum(subscripts, operands)


_NO_BIAS = {dtype: np.empty(0, dtype) for dtype in "fd"}


def _matrix(x):
    """(..., n) as rows of n."""
    return x.reshape(-1, x.shape[-1])


def _multiply(bias, product, other=None):
    """out = a @ b + bias for one product (a, whether a is turned, b, whether b is, out), or for two that share threads."""
    a, turn_a, b, turn_b, out = c, turn_c, d, turn_d, other_out = product
    first = (*a.shape, *b.shape, turn_a, turn_b)
    if other is None:
        how, items, of_first, threads = _plan(first)
    else:
        c, turn_c, d, turn_d, other_out = other
        how, items, of_first, threads = _plan(first, (*c.shape, *d.shape, turn_c, turn_d))
    args = of_first, a, b, out, c, d, other_out, how, bias, ZERO_ONE[bias.dtype.char], limit
    if one_thread.by_kernels:
        run(_pieces, items, *args, threads=threads)
    else:
        with one_thread:
            run(_pieces, items, *args, threads=threads)


@lru_cache(1024)
def _plan(*products):
    """How ``_pieces`` divides one or two products of such shapes: numbers, items, those of the first, and the threads.

    For each product six numbers: rows and columns of a piece, how many of these lie below and beside each other, and whether a
    and b are turned.
    """
    how, items, work = [], [], 0
    for down_a, across_a, down_b, across_b, turn_a, turn_b in products:
        m, k = (across_a, down_a) if turn_a else (down_a, across_a)
        n = down_b if turn_b else across_b
        rows, columns = _rows_of_weights(m, k, n) if turn_a else _shape_of_piece(m, k, n, turn_b)
        down, across = -(-m // rows), -(-n // columns)
        how.append((rows, columns, down, across, turn_a, turn_b))
        items.append(down * across)
        work += m * k * n
    return np.array(how, np.int64), sum(items), items[0], 1 if work < _WORTH else None


def _rows_of_weights(m, k, n):
    """Rows and columns of the pieces of a weight's gradient: whole rows, an even number of pieces, where those are no slower.

    The forward pass and the optimizer divide a weight by its rows, too. So a core goes on with the rows that are in its cache:
    between two cores' caches a weight of 784 x 100 takes longer to move than the optimizer takes to change it.
    """
    rows = 10**6 // (k * n)
    if rows < 16:
        return _shape_of_piece(m, k, n, False)
    return -(-m // max(2, 2 * -(-m // (2 * rows)))), n


def _shape_of_piece(m, k, n, turn_b_only):
    """Rows and columns of the pieces in which (m, k) @ (k, n) is computed.

    Up to a million multiplications, OpenBLAS takes its kernels for small matrices, which copy nothing first: 100 to 115 GFLOP/s
    on one core of a Zen 4 where the whole product runs at 70 to 100. The shapes are those that were fastest there; where both
    factors lie along k, those kernels are for no more than 1,200 results, and only for large k any faster. (Whole rows of the
    result are up to a quarter faster alone, but not in a training step, where each core then has to fetch the whole weight.)
    """
    elements = min(10**6 // k, max(m * n // 4, 512))
    if elements < 256:
        return max(1, -(-m // 4)), max(1, -(-n // 4))
    if turn_b_only and k <= 128 and m * n * k > 10**6:
        return max(64, -(-m // 8)), min(n, 512)
    if turn_b_only:
        elements = min(elements, 1200)
    elif k > 256:
        rows = elements // 64
        return (rows // 8 * 8 if rows > 8 else rows), 64
    rows = math.isqrt(elements) // 16 * 16
    return rows, elements // rows // 16 * 16


def _factor(a, turned=False):
    """The matrix a, contiguous, and whether it is to be turned, if what is wanted is a, or its transpose where ``turned``."""
    if a.flags.carray:
        return a, turned
    if a.T.flags.carray:
        return a.T, not turned
    return np.array(a, order="C"), turned


@compiled
def _pieces(team, items, first, a0, b0, out0, a1, b1, out1, how, bias, zero_one, limit):
    """An item is a piece of the first product, or of the second. how: see ``_plan``."""
    if not is_helper(team):
        begin(limit)
    slot = join(team)
    while True:
        item = take(team, slot, items)
        if item >= items:
            leave(team, slot)
            if slot == 0:
                end(limit)
            return
        if item < first:
            a, b, out, which, number = a0, b0, out0, 0, item
        else:
            a, b, out, which, number = a1, b1, out1, 1, item - first
        rows, columns, down, across = how[which, 0], how[which, 1], how[which, 2], how[which, 3]
        turn_a, turn_b = how[which, 4], how[which, 5]
        if turn_b:  # b is a layer's weight: whoever has some of its rows in the cache goes on with them
            i0, j0 = number % down * rows, number // down * columns
        else:
            i0, j0 = number // across * rows, number % across * columns
        i1, j1 = min(i0 + rows, out.shape[0]), min(j0 + columns, out.shape[1])
        left = a[:, i0:i1] if turn_a else a[i0:i1, :]
        right = b[j0:j1, :] if turn_b else b[:, j0:j1]
        gemm(left, right, out[i0:i1, j0:j1], turn_a, turn_b, False, zero_one)
        if bias.size:
            for row in range(i0, i1):
                for column in range(j0, j1):
                    out[np.uint64(row), np.uint64(column)] += bias[np.uint64(column)]
