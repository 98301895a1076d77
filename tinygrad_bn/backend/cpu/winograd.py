"""Winograd's convolution F(2x2, 3x3): 16 products for 4 outputs of a 3x3 kernel, where the sum has 36. Stride 1, channels last.

Each 4x4 tile d of the input (they overlap by 2) and the 3x3 kernel k of a pair of channels give a 2x2 tile of the output::

    y = A' [(G k G') * (B' d B)] A          summed over input channels

so that for each of the 16 places of a transformed tile the sum over channels is a matrix product, (tiles, C) @ (C, O). The
gradient of the kernel is the same read backwards, G' [sum over tiles of (B' d B) * (A g A')] G; that of the input is a
convolution of g with the kernels turned by 180 degrees. Lavin & Gray 2016, "Fast Algorithms for Convolutional Neural Networks".

A transform is done along the columns for a whole row of tiles at once, since these are long loops over contiguous memory, and
then along the rows. Some rows of tiles make an item of work, few enough for their matrices to stay in the cache.
"""

from __future__ import annotations

import numpy as np

from .blas import ZERO_ONE, gemm, numpy_one_thread, one_thread
from .jit import compiled, inlined
from .memory import empty
from .team import join, leave, run, take
from .threads import threads_for

_TILE_BYTES = 1 << 19  # of the transformed tiles of an item, input and output together
PARTS = 8  # sums that the gradient of the weight is divided into


# The loops over tiles index by unsigned numbers, which cannot mean "from the end", and make no slices: both are faster, to run
# and to compile.


@inlined
def _row(x, sample, y, nothing):
    """Row y of an image (W, C), or zeros where it has no such row."""
    if 0 <= y < x.shape[1]:
        return x[sample, y]
    return nothing


@inlined
def _input_tiles(x, sample, ty, pad_y, pad_x, rows, nothing, v, first):
    """B' d B of a row of tiles into ``v[:, first:]``. ``rows``: (4, 2 TW + 2, C) to work in, its margins zero."""
    u = np.uint64
    width, channels = x.shape[2:]
    top = 2 * ty - pad_y
    d0, d1 = _row(x, sample, top, nothing), _row(x, sample, top + 1, nothing)
    d2, d3 = _row(x, sample, top + 2, nothing), _row(x, sample, top + 3, nothing)
    for j in range(min(width, rows.shape[1] - pad_x)):
        at, to = u(j), u(pad_x + j)
        for k in range(channels):
            c = u(k)
            e0, e1, e2, e3 = d0[at, c], d1[at, c], d2[at, c], d3[at, c]
            rows[u(0), to, c] = e0 - e2
            rows[u(1), to, c] = e1 + e2
            rows[u(2), to, c] = e2 - e1
            rows[u(3), to, c] = e1 - e3
    for i in range(4):
        for t in range(rows.shape[1] // 2 - 1):
            to, j = u(first + t), u(2 * t)
            for k in range(channels):
                c = u(k)
                e0, e1, e2, e3 = rows[u(i), j, c], rows[u(i), j + u(1), c], rows[u(i), j + u(2), c], rows[u(i), j + u(3), c]
                v[u(4 * i), to, c] = e0 - e2
                v[u(4 * i + 1), to, c] = e1 + e2
                v[u(4 * i + 2), to, c] = e2 - e1
                v[u(4 * i + 3), to, c] = e1 - e3


@inlined
def _output_tiles(m, first, rows, y, sample, ty, bias):
    """y = A' m A of a row of tiles, plus the bias. ``rows``: (2, 4, TW, O) to work in."""
    u = np.uint64
    height, width, channels = y.shape[1:]
    tiles = rows.shape[2]
    n = u(sample)
    for j in range(4):
        i = u(j)
        for tile in range(tiles):
            t, at = u(tile), u(first + tile)
            for k in range(channels):
                c = u(k)
                m1, m2 = m[i + u(4), at, c], m[i + u(8), at, c]
                rows[u(0), i, t, c] = m[i, at, c] + m1 + m2
                rows[u(1), i, t, c] = m1 - m2 - m[i + u(12), at, c]
    for a in range(min(2, height - 2 * ty)):
        i, b = u(2 * ty + a), u(a)
        for tile in range(width // 2):
            t, j = u(tile), u(2 * tile)
            for k in range(channels):
                c = u(k)
                e1, e2 = rows[b, u(1), t, c], rows[b, u(2), t, c]
                y[n, i, j, c] = rows[b, u(0), t, c] + e1 + e2 + bias[c]
                y[n, i, j + u(1), c] = e1 - e2 - rows[b, u(3), t, c] + bias[c]
        if width % 2:
            t, j = u(tiles - 1), u(2 * tiles - 2)
            for k in range(channels):
                c = u(k)
                y[n, i, j, c] = rows[b, u(0), t, c] + rows[b, u(1), t, c] + rows[b, u(2), t, c] + bias[c]


@compiled
def _convolve(team, items, x, u, y, bias, pad_y, pad_x, item_rows, scratch, zero_one):
    """Items of ``item_rows`` rows of tiles each. ``scratch``: for each thread what it needs, in one piece."""
    slot = join(team)
    samples, height, width, o = y.shape
    c = x.shape[3]
    th, tw = (height + 1) // 2, (width + 1) // 2
    most = item_rows * tw
    mine = scratch[slot]
    a = 16 * most * c
    b = a + 16 * most * o
    d = b + 4 * (2 * tw + 2) * c
    e = d + 8 * tw * o
    rows, sums = mine[b:d].reshape(4, 2 * tw + 2, c), mine[d:e].reshape(2, 4, tw, o)
    nothing = mine[e : e + x.shape[2] * c].reshape(x.shape[2], c)
    mine[b:] = 0
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        start, stop = item * item_rows, min((item + 1) * item_rows, samples * th)
        count = (stop - start) * tw
        v, m = mine[: 16 * count * c].reshape(16, count, c), mine[a : a + 16 * count * o].reshape(16, count, o)
        for r in range(start, stop):
            _input_tiles(x, r // th, r % th, pad_y, pad_x, rows, nothing, v, (r - start) * tw)
        for i in range(16):
            gemm(v[i], u[i], m[i], False, False, False, zero_one)
        for r in range(start, stop):
            _output_tiles(m, (r - start) * tw, sums, y, r // th, r % th, bias)


@inlined
def _gradient_tiles(g, sample, ty, rows, nothing, v, first):
    """A g A' of a row of tiles into ``v[:, first:]``. ``rows``: (4, 2 TW, O) to work in, its last column zero if W' is odd."""
    u = np.uint64
    width, channels = g.shape[2:]
    g0, g1 = _row(g, sample, 2 * ty, nothing), _row(g, sample, 2 * ty + 1, nothing)
    for column in range(width):
        j = u(column)
        for k in range(channels):
            c = u(k)
            e0, e1 = g0[j, c], g1[j, c]
            rows[u(0), j, c] = e0
            rows[u(1), j, c] = e0 + e1
            rows[u(2), j, c] = e0 - e1
            rows[u(3), j, c] = -e1
    for i in range(4):
        for t in range(rows.shape[1] // 2):
            to, j = u(first + t), u(2 * t)
            for k in range(channels):
                c = u(k)
                e0, e1 = rows[u(i), j, c], rows[u(i), j + u(1), c]
                v[u(4 * i), to, c] = e0
                v[u(4 * i + 1), to, c] = e0 + e1
                v[u(4 * i + 2), to, c] = e0 - e1
                v[u(4 * i + 3), to, c] = -e1


@compiled
def _correlate(team, items, x, g, du, pad_y, pad_x, item_rows, scratch, zero_one):
    """Item i sums its share of the tiles into ``du[i]``: (16, O, C)."""
    slot = join(team)
    samples, height, width, o = g.shape
    c = x.shape[3]
    th, tw = (height + 1) // 2, (width + 1) // 2
    most = item_rows * tw
    mine = scratch[slot]
    a = 16 * most * c
    b = a + 16 * most * o
    d = b + 4 * (2 * tw + 2) * c
    e = d + 8 * tw * o
    f = e + x.shape[2] * c
    rows, grads = mine[b:d].reshape(4, 2 * tw + 2, c), mine[d:e].reshape(4, 2 * tw, o)
    nothing, none = mine[e:f].reshape(x.shape[2], c), mine[f : f + width * o].reshape(width, o)
    mine[b:] = 0
    total = samples * th
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        begin, end = item * total // items, (item + 1) * total // items
        for start in range(begin, end, item_rows):
            stop = min(start + item_rows, end)
            count = (stop - start) * tw
            v, m = mine[: 16 * count * c].reshape(16, count, c), mine[a : a + 16 * count * o].reshape(16, count, o)
            for r in range(start, stop):
                _input_tiles(x, r // th, r % th, pad_y, pad_x, rows, nothing, v, (r - start) * tw)
                _gradient_tiles(g, r // th, r % th, grads, none, m, (r - start) * tw)
            for i in range(16):
                gemm(m[i], v[i], du[item, i], True, False, start > begin, zero_one)


_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_GG = {dtype: np.kron(_G, _G).astype(dtype) for dtype in "fd"}  # G k G', for k as 9 numbers


def _transformed(w, turned):
    """G k G': (O, C, 3, 3) -> (16, C, O), or of the kernels turned by 180 degrees (16, O, C)."""
    places = w[:, :, ::-1, ::-1].transpose(2, 3, 0, 1) if turned else w.transpose(2, 3, 1, 0)
    with numpy_one_thread:
        return (_GG[w.dtype.char] @ places.reshape(9, -1)).reshape(16, *places.shape[2:])


def _transformed_back(du):
    """G' (sum of du) G: (parts, 16, O, C) -> (O, C, 3, 3), the parts added in their order."""
    total = du.sum(axis=0).reshape(16, -1)
    with numpy_one_thread:
        places = _GG[du.dtype.char].T @ total
    return np.ascontiguousarray(places.reshape(3, 3, *du.shape[2:]).transpose(2, 3, 0, 1))


def _plan(shape, width_before, c, o, itemsize):
    """Rows of tiles in an item, and elements of scratch memory for a thread, for an output of ``shape`` (N, H', W', ...)."""
    n, height, width = shape[:3]
    tw = (width + 1) // 2
    rows = max(1, _TILE_BYTES // (16 * tw * (c + o) * itemsize))
    rows = min(rows, n * ((height + 1) // 2))
    return rows, 16 * rows * tw * (c + o) + 4 * (2 * tw + 2) * c + 8 * tw * o + width_before * c + width * o


def convolve(x, w, b, y, padding, turned=False):
    """y = conv2d(x, w) + b: (N, H, W, C), (O, C, 3, 3), (O,) or None -> (N, H', W', O), which is written into ``y``.

    ``turned``: by the kernels turned by 180 degrees, from O channels to C, as the gradient of the input wants it.
    """
    c, o = x.shape[3], y.shape[3]
    u = _transformed(w, turned)
    rows, elements = _plan(y.shape, x.shape[2], c, o, x.itemsize)
    items = -(-y.shape[0] * ((y.shape[1] + 1) // 2) // rows)
    threads = threads_for(items)
    scratch = empty((threads, elements), x.dtype)
    bias = np.zeros(o, x.dtype) if b is None else b
    with one_thread:
        run(_convolve, items, x, u, y, bias, *padding, rows, scratch, ZERO_ONE[x.dtype.char], threads=threads)


def correlate(g, x, shape, padding):
    """The gradient of the weight: (N, H', W', O), (N, H, W, C) -> ``shape`` (O, C, 3, 3)."""
    o, c = shape[:2]
    rows, elements = _plan(g.shape, x.shape[2], c, o, x.itemsize)
    parts = max(1, min(PARTS, -(-g.shape[0] * ((g.shape[1] + 1) // 2) // rows)))
    threads = threads_for(parts)
    du = empty((parts, 16, o, c), x.dtype)
    scratch = empty((threads, elements), x.dtype)
    with one_thread:
        run(_correlate, parts, x, g, du, *padding, rows, scratch, ZERO_ONE[x.dtype.char], threads=threads)
    return _transformed_back(du)
