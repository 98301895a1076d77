"""Large elementwise functions in one pass, on all threads: those that take time in a training step."""

from __future__ import annotations

import math

import numpy as np

from .. import portable
from .jit import bits, compiled, from_bits, inlined
from .layout import FLOATS, WORTH_THREADS, channels_last, empty_like
from .memory import empty
from .team import join, leave, run, take

__all__ = ["add", "relu", "relu_backward", "sigmoid", "sigmoid_backward", "sum_pixels"]

_ITEM = 1 << 13  # elements


def _flat(x):
    """The elements of x in their order in memory, if it has no gaps; else None."""
    if x.flags.c_contiguous:
        return x.reshape(-1)
    flat = x.transpose(sorted(range(x.ndim), key=lambda i: -x.strides[i]))
    return flat.reshape(-1) if flat.flags.c_contiguous else None


def _fit(arrays):
    """Flat views of arrays of one shape, dtype and layout, and new memory like the first, flat and not; None if they differ."""
    x = arrays[0]
    if any(a.dtype != x.dtype or a.shape != x.shape for a in arrays):
        return None
    if x.ndim == 4 and any(a.strides != x.strides for a in arrays):
        arrays = tuple(channels_last(a).transpose(0, 3, 1, 2) for a in arrays)
        x = arrays[0]
    flats = [_flat(a) for a in arrays]
    if any(f is None or not f.flags.behaved or a.strides != x.strides for f, a in zip(flats, arrays, strict=True)):
        return None
    out = empty_like(x)
    return *flats, _flat(out), out


def _flatly(kernel, otherwise, x, *others):
    """The compiled kernel over flat arrays of one size; ``otherwise``, where these are not such."""
    dtype, shape = x.dtype, x.shape
    simple = x.flags.carray and dtype in FLOATS
    for a in others:
        simple = simple and a.flags.carray and a.dtype == dtype and a.shape == shape
    if simple:  # (nearly always, for vectors)
        out = empty_like(x)
        flats = x.ravel(), *[a.ravel() for a in others], out.ravel()
    else:
        fit = _fit((x, *others)) if dtype in FLOATS else None
        if fit is None:
            return otherwise(x, *others)
        *flats, out = fit
    size = out.size
    run(kernel, -(-size // _ITEM), *flats, threads=None if size * 4 * len(flats) >= WORTH_THREADS else 1)
    return out


@inlined
def _part(x, item):
    return x[item * _ITEM : min((item + 1) * _ITEM, x.size)]


def relu(x):
    """portable.relu."""
    return _flatly(_relu, portable.relu, x)


@compiled
def _relu(team, items, x, y):
    slot = join(team)
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        a, out = _part(x, item), _part(y, item)
        for k in range(out.size):
            out[k] = 0 if a[k] < 0 else a[k]  # so that NaN stays


def relu_backward(g, y):
    """portable.relu_backward."""
    return _flatly(_relu_backward, portable.relu_backward, g, y)


@compiled
def _relu_backward(team, items, g, y, dx):
    slot = join(team)
    one, zero = g.dtype.type(1), g.dtype.type(0)
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        a, b, out = _part(g, item), _part(y, item), _part(dx, item)
        for k in range(out.size):
            out[k] = a[k] * (one if b[k] > 0 else zero)


# e ** x as 2 ** n times Taylor's polynomial of r, with x = n ln 2 + r: a loop that calls the C library's is not vectorised.
_LOG2_E, _LN2_HIGH, _LN2_LOW = (np.float32(v) for v in (1.4426950408889634, 0.693359375, -2.12194440e-4))
_ROUND = np.float32(1.5 * 2.0**23)  # x + _ROUND has no bits for a fraction: the whole number next to x is in the lowest bits
_C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(1.0 / math.factorial(k)) for k in range(2, 8))
_ZERO, _ONE, _TINIEST = np.float32(0.0), np.float32(1.0), np.float32(-87.0)  # e ** -87 is nearly the last that is normal


@inlined
def _exp(x):
    """e ** x for float32 x of at most 0, to two units in the last place; 0 below -87."""
    shifted = x * _LOG2_E + _ROUND
    n = shifted - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = ((((_C7 * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2
    p = (p * r + _ONE) * r + _ONE
    power = from_bits(np.int32((bits(shifted) + 127) << 23))  # (Numba computes in int64)
    return _ZERO if x < _TINIEST else p * power


def sigmoid(x):
    """portable.sigmoid, where it is float32."""
    return _flatly(_sigmoid, portable.sigmoid, x) if x.dtype == FLOATS[0] else portable.sigmoid(x)


@compiled
def _sigmoid(team, items, x, y):
    slot = join(team)
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        a, out = _part(x, item), _part(y, item)
        for k in range(out.size):
            e = _exp(-abs(a[k]))  # which never overflows
            out[k] = (e if a[k] < _ZERO else _ONE) / (_ONE + e)


def sigmoid_backward(g, y):
    """portable.sigmoid_backward."""
    return _flatly(_sigmoid_backward, portable.sigmoid_backward, g, y)


@compiled
def _sigmoid_backward(team, items, g, y, dx):
    slot = join(team)
    one = g.dtype.type(1)
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        a, b, out = _part(g, item), _part(y, item), _part(dx, item)
        for k in range(out.size):
            out[k] = a[k] * b[k] * (one - b[k])


def add(x, y):
    """portable.add."""
    return _flatly(_add, portable.add, x, y) if isinstance(y, np.ndarray) else portable.add(x, y)


@compiled
def _add(team, items, x, y, out):
    slot = join(team)
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        a, b, c = _part(x, item), _part(y, item), _part(out, item)
        for k in range(c.size):
            c[k] = a[k] + b[k]


def sum_pixels(x):
    """portable.sum_pixels, in float64."""
    if x.dtype not in FLOATS or 0 in x.shape:
        return portable.sum_pixels(x)
    pixels = channels_last(x).reshape(-1, x.shape[1])
    rows = max(1, _ITEM // x.shape[1])
    items = -(-len(pixels) // rows)
    sums = empty((items, x.shape[1]), np.float64)
    run(_sum_rows, items, pixels, rows, sums, threads=None if x.nbytes >= WORTH_THREADS else 1)
    return sums.sum(axis=0).astype(x.dtype)


@compiled
def _sum_rows(team, items, x, rows, sums):
    slot = join(team)
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        total = sums[item]
        total[:] = 0
        for i in range(item * rows, min((item + 1) * rows, x.shape[0])):
            row = x[i]
            for c in range(row.size):
                total[c] += row[c]
