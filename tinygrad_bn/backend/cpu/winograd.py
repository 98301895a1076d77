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

from .blas import ZERO_ONE, gemm, one_thread
from .jit import compiled, inlined, take
from .memory import empty
from .threads import run, threads_for

_TILE_BYTES = 1 << 19  # of the transformed tiles of an item, input and output together
PARTS = 8  # sums that the gradient of the weight is divided into


@compiled
def _transform_weight(w, u, turned):
    """u = G k G': (O, C, 9) -> (16, C, O), or of the kernels turned by 180 degrees (16, O, C)."""
    _, a, b = u.shape
    k, row = np.empty((9, b), w.dtype), np.empty((4, 3, b), w.dtype)
    for i in range(a):
        for j in range(b):
            if turned:
                kernel = w[i, j]
                for at in range(9):
                    k[8 - at, j] = kernel[at]
            else:
                kernel = w[j, i]
                for at in range(9):
                    k[at, j] = kernel[at]
        for j in range(3):
            _expand(k[j], k[3 + j], k[6 + j], row[0, j], row[1, j], row[2, j], row[3, j])
        for j in range(4):
            r = row[j]
            _expand(r[0], r[1], r[2], u[4 * j, i], u[4 * j + 1, i], u[4 * j + 2, i], u[4 * j + 3, i])


@inlined
def _expand(k0, k1, k2, u0, u1, u2, u3):
    """u = G k, elementwise."""
    half = k0.dtype.type(0.5)
    for c in range(k0.size):
        u0[c] = k0[c]
        u3[c] = k2[c]
        outer = k0[c] + k2[c]
        u1[c] = (outer + k1[c]) * half
        u2[c] = (outer - k1[c]) * half


@inlined
def _contract(u0, u1, u2, u3, k0, k1, k2):
    """k = G' u, elementwise."""
    half = u0.dtype.type(0.5)
    for c in range(k0.size):
        both = (u1[c] + u2[c]) * half
        k0[c] = u0[c] + both
        k1[c] = (u1[c] - u2[c]) * half
        k2[c] = u3[c] + both


@inlined
def _add(a, b, out):
    for k in range(out.size):
        out[k] = a[k] + b[k]


@inlined
def _subtract(a, b, out):
    for k in range(out.size):
        out[k] = a[k] - b[k]


@inlined
def _row(x, n, y, size, nothing):
    """The first elements of row y of sample n, or zeros where the image has no such row."""
    if 0 <= y < x.shape[1]:
        return x[n, y].reshape(-1)[:size]
    return nothing[:size]


@inlined
def _input_tiles(x, n, ty, pad_y, pad_x, rows, nothing, v, first):
    """B' d B of a row of tiles into ``v[:, first:]``. ``rows``: (4, 2 TW + 2, C) to work in, its margins zero."""
    channels = x.shape[3]
    y = 2 * ty - pad_y
    size = min(x.shape[2], rows.shape[1] - pad_x) * channels
    d0, d1 = _row(x, n, y, size, nothing), _row(x, n, y + 1, size, nothing)
    d2, d3 = _row(x, n, y + 2, size, nothing), _row(x, n, y + 3, size, nothing)
    begin = pad_x * channels
    end = begin + size  # (sliced one by one, each is known to be contiguous)
    _subtract(d0, d2, rows[0].reshape(-1)[begin:end])
    _add(d1, d2, rows[1].reshape(-1)[begin:end])
    _subtract(d2, d1, rows[2].reshape(-1)[begin:end])
    _subtract(d1, d3, rows[3].reshape(-1)[begin:end])
    for i in range(4):
        r = rows[i]
        v0, v1, v2, v3 = v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]
        for t in range(rows.shape[1] // 2 - 1):
            for c in range(channels):
                e0, e1, e2, e3 = r[2 * t, c], r[2 * t + 1, c], r[2 * t + 2, c], r[2 * t + 3, c]
                v0[first + t, c] = e0 - e2
                v1[first + t, c] = e1 + e2
                v2[first + t, c] = e2 - e1
                v3[first + t, c] = e1 - e3


@inlined
def _sum_columns(m0, m1, m2, m3, upper, lower):
    for k in range(upper.size):
        upper[k] = m0[k] + m1[k] + m2[k]
        lower[k] = m1[k] - m2[k] - m3[k]


@inlined
def _output_tiles(m, first, rows, y, n, ty, bias):
    """y = A' m A of a row of tiles, plus the bias. ``rows``: (2, 4, TW, O) to work in."""
    height, width, channels = y.shape[1:]
    tiles = rows.shape[2]
    last = first + tiles
    for j in range(4):
        m0, m1 = m[j, first:last].reshape(-1), m[4 + j, first:last].reshape(-1)
        m2, m3 = m[8 + j, first:last].reshape(-1), m[12 + j, first:last].reshape(-1)
        _sum_columns(m0, m1, m2, m3, rows[0, j].reshape(-1), rows[1, j].reshape(-1))
    for a in range(min(2, height - 2 * ty)):
        out = y[n, 2 * ty + a]
        s0, s1, s2, s3 = rows[a, 0], rows[a, 1], rows[a, 2], rows[a, 3]
        for t in range(width // 2):
            for c in range(channels):
                e1, e2 = s1[t, c], s2[t, c]
                out[2 * t, c] = s0[t, c] + e1 + e2 + bias[c]
                out[2 * t + 1, c] = e1 - e2 - s3[t, c] + bias[c]
        if width % 2:
            t = tiles - 1
            for c in range(channels):
                out[2 * t, c] = s0[t, c] + s1[t, c] + s2[t, c] + bias[c]


@compiled
def _convolve(counter, slot, items, x, u, y, bias, pad_y, pad_x, item_rows, scratch, zero_one):
    """Items of ``item_rows`` rows of tiles each. ``scratch``: for each thread what it needs, in one piece."""
    samples, height, width, o = y.shape
    c = x.shape[3]
    th, tw = (height + 1) // 2, (width + 1) // 2
    most = item_rows * tw
    mine = scratch[slot]
    a = 16 * most * c
    b = a + 16 * most * o
    d = b + 4 * (2 * tw + 2) * c
    e = d + 8 * tw * o
    rows, sums, nothing = mine[b:d].reshape(4, 2 * tw + 2, c), mine[d:e].reshape(2, 4, tw, o), mine[e:]
    rows[:] = 0
    nothing[:] = 0
    while True:
        item = take(counter)
        if item >= items:
            return
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
def _gradient_tiles(g, n, ty, rows, nothing, v, first):
    """A g A' of a row of tiles into ``v[:, first:]``. ``rows``: (4, 2 TW, O) to work in, its last column zero if W' is odd."""
    channels = g.shape[3]
    size = g.shape[2] * channels
    g0, g1 = _row(g, n, 2 * ty, size, nothing), _row(g, n, 2 * ty + 1, size, nothing)
    _add(g0, nothing[:size], rows[0].reshape(-1)[:size])
    _add(g0, g1, rows[1].reshape(-1)[:size])
    _subtract(g0, g1, rows[2].reshape(-1)[:size])
    _subtract(nothing[:size], g1, rows[3].reshape(-1)[:size])
    for i in range(4):
        r = rows[i]
        v0, v1, v2, v3 = v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]
        for t in range(rows.shape[1] // 2):
            for c in range(channels):
                e0, e1 = r[2 * t, c], r[2 * t + 1, c]
                v0[first + t, c] = e0
                v1[first + t, c] = e0 + e1
                v2[first + t, c] = e0 - e1
                v3[first + t, c] = -e1


@compiled
def _correlate(counter, slot, items, x, g, du, pad_y, pad_x, item_rows, scratch, zero_one):
    """Item i sums its share of the tiles into ``du[i]``: (16, O, C)."""
    samples, height, width, o = g.shape
    c = x.shape[3]
    th, tw = (height + 1) // 2, (width + 1) // 2
    most = item_rows * tw
    mine = scratch[slot]
    a = 16 * most * c
    b = a + 16 * most * o
    d = b + 4 * (2 * tw + 2) * c
    e = d + 8 * tw * o
    rows, grads, nothing = mine[b:d].reshape(4, 2 * tw + 2, c), mine[d:e].reshape(4, 2 * tw, o), mine[e:]
    rows[:] = 0
    grads[:] = 0
    nothing[:] = 0
    total = samples * th
    while True:
        item = take(counter)
        if item >= items:
            return
        begin, end = item * total // items, (item + 1) * total // items
        for start in range(begin, end, item_rows):
            stop = min(start + item_rows, end)
            count = (stop - start) * tw
            v, m = mine[: 16 * count * c].reshape(16, count, c), mine[a : a + 16 * count * o].reshape(16, count, o)
            for r in range(start, stop):
                _input_tiles(x, r // th, r % th, pad_y, pad_x, rows, nothing, v, (r - start) * tw)
                _gradient_tiles(g, r // th, r % th, grads, nothing, m, (r - start) * tw)
            for i in range(16):
                gemm(m[i], v[i], du[item, i], True, False, start > begin, zero_one)


@compiled
def _merge(du, dw):
    """dw = G' (sum of du) G: (parts, 16, O, C) -> (O, C, 9). The sum is made part by part, in du[0]."""
    total = du[0].reshape(-1)
    for p in range(1, du.shape[0]):
        part = du[p].reshape(-1)
        for k in range(total.size):
            total[k] += part[k]
    u = du[0]
    o, c, _ = dw.shape
    kernels, row = np.empty((9, c), dw.dtype), np.empty((3, 4, c), dw.dtype)
    for i in range(o):
        for j in range(4):
            _contract(u[j, i], u[4 + j, i], u[8 + j, i], u[12 + j, i], row[0, j], row[1, j], row[2, j])
        for j in range(3):
            r = row[j]
            _contract(r[0], r[1], r[2], r[3], kernels[3 * j], kernels[3 * j + 1], kernels[3 * j + 2])
        for j in range(c):
            kernel = dw[i, j]
            for at in range(9):
                kernel[at] = kernels[at, j]


def _plan(shape, c, o, itemsize):
    """Rows of tiles in an item, and elements of scratch memory for a thread, for an output of ``shape`` (N, H', W', ...)."""
    n, height, width = shape[:3]
    tw = (width + 1) // 2
    rows = max(1, _TILE_BYTES // (16 * tw * (c + o) * itemsize))
    rows = min(rows, n * ((height + 1) // 2))
    return rows, 16 * rows * tw * (c + o) + 4 * (2 * tw + 2) * c + 8 * tw * o + (2 * tw + 2) * max(c, o)


def convolve(x, w, b, y, padding, turned=False):
    """y = conv2d(x, w) + b: (N, H, W, C), (O, C, 3, 3), (O,) or None -> (N, H', W', O), which is written into ``y``.

    ``turned``: by the kernels turned by 180 degrees, from O channels to C, as the gradient of the input wants it.
    """
    c, o = x.shape[3], y.shape[3]
    u = empty((16, c, o), x.dtype)
    _transform_weight(w.reshape(*w.shape[:2], 9), u, turned)
    rows, elements = _plan(y.shape, c, o, x.itemsize)
    items = -(-y.shape[0] * ((y.shape[1] + 1) // 2) // rows)
    threads = threads_for(items)
    scratch = empty((threads, elements), x.dtype)
    bias = np.zeros(o, x.dtype) if b is None else b
    with one_thread:
        run(_convolve, items, items, x, u, y, bias, *padding, rows, scratch, ZERO_ONE[x.dtype.char], threads=threads)


def correlate(g, x, shape, padding):
    """The gradient of the weight: (N, H', W', O), (N, H, W, C) -> ``shape`` (O, C, 3, 3)."""
    o, c = shape[:2]
    rows, elements = _plan(g.shape, c, o, x.itemsize)
    parts = max(1, min(PARTS, -(-g.shape[0] * ((g.shape[1] + 1) // 2) // rows)))
    threads = threads_for(parts)
    du = empty((parts, 16, o, c), x.dtype)
    scratch = empty((threads, elements), x.dtype)
    with one_thread:
        run(_correlate, parts, parts, x, g, du, *padding, rows, scratch, ZERO_ONE[x.dtype.char], threads=threads)
    dw = np.empty(shape, x.dtype)
    _merge(du, dw.reshape(o, c, 9))
    return dw
