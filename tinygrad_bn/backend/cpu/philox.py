"""Dropout: Philox4x64-10, the mask and the scaling in one pass.

An element's number is a function of the key and of its position in logical order, whatever the layout in memory. Salmon et al.
2011, "Parallel Random Numbers: As Easy as 1, 2, 3".
"""

from __future__ import annotations

import numpy as np

from .. import portable
from .jit import compiled, high_half, inlined
from .layout import FLOATS, images, plain
from .memory import empty
from .team import join, leave, run, take

_ITEM = 1 << 13  # elements in an item of work: a multiple of a block's four
_WORTH_THREADS = 1 << 16  # elements; a number takes more than a nanosecond

_M0, _M1 = (np.uint64(m) for m in portable._MULTIPLIERS)
_STEP0, _STEP1 = (np.uint64(s) for s in portable._KEY_STEPS)
_ZERO, _ONE = np.uint64(0), np.uint64(1)


@inlined
def _decide(first, blocks, key, least, keep):
    """For so many blocks of four 64-bit numbers whether each is at least ``least``: a byte each, in a word for the block.

    Block b is the counter b + 1, as in NumPy. (One store a block is what LLVM vectorises well.)
    """
    for b in range(blocks):
        c0, c1, c2, c3 = np.uint64(first + b) + _ONE, _ZERO, _ZERO, _ZERO
        k0, k1 = key, _ZERO
        for _ in range(10):
            high0, high1 = high_half(c0, _M0), high_half(c2, _M1)
            c0, c1, c2, c3 = high1 ^ c1 ^ k0, c2 * _M1, high0 ^ c3 ^ k1, c0 * _M0
            k0, k1 = k0 + _STEP0, k1 + _STEP1
        low = np.uint32(c0 >= least) | np.uint32(c1 >= least) << np.uint32(8)
        keep[b] = low | np.uint32(c2 >= least) << np.uint32(16) | np.uint32(c3 >= least) << np.uint32(24)


@inlined
def _select(x, keep, scale, y):
    for i in range(y.size):
        v = x[i] * scale
        y[i] = v if keep[i] else y.dtype.type(0)


@compiled
def _thin_out(team, items, x, y, key, least, scale):
    """(n,): x times ``scale`` where the number is at least ``least``, else 0."""
    slot = join(team)
    keep = np.empty(_ITEM // 4, np.uint32)
    flags = keep.view(np.uint8)  # (little-endian, as all machines that Numba serves)
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        begin, end = item * _ITEM, min((item + 1) * _ITEM, x.size)
        _decide(begin // 4, (end - begin + 3) // 4, key, least, keep)
        _select(x[begin:end], flags, scale, y[begin:end])


@compiled
def _thin_out_images(team, items, x, y, key, least, scale):
    """The same for (N, pixels, C) whose logical order is (N, C, pixels), a sample at a time."""
    slot = join(team)
    _, pixels, channels = x.shape
    size = pixels * channels
    keep = np.empty(size // 4 + 2, np.uint32)  # from the block that has the sample's first element
    flags, turned = keep.view(np.uint8), np.empty(size, np.uint8)
    while True:
        n = take(team, slot, items)
        if n >= items:
            return leave(team, slot)
        first = n * size // 4
        skip = n * size - 4 * first
        _decide(first, (skip + size + 3) // 4, key, least, keep)
        for i in range(pixels):
            for c in range(channels):
                turned[i * channels + c] = flags[skip + c * pixels + i]
        _select(x[n].reshape(-1), turned, scale, y[n].reshape(-1))


def dropout(x, p, key):
    """x / (1 - p) where the element's 53-bit number is at least p, else 0."""
    if x.dtype not in FLOATS or not x.size or not 0.0 <= p < 1.0:
        return portable.dropout(x, p, key)
    kernel, items = _thin_out, -(-x.size // _ITEM)
    if x.ndim == 4 and not x.flags.c_contiguous and (last := x.transpose(0, 2, 3, 1)).flags.c_contiguous:
        n, c = x.shape[:2]
        kernel, items = _thin_out_images, n
        y = images(*x.shape, x.dtype)
        source, target = plain(last).reshape(n, -1, c), y.transpose(0, 2, 3, 1).reshape(n, -1, c)
    else:
        y = empty(x.shape, x.dtype)
        source, target = plain(x).reshape(-1), y.reshape(-1)
    least = np.uint64(int(p * 2**53) << 11)  # the upper 53 bits of the number are compared with p
    args = source, target, np.uint64(key), least, x.dtype.type(1.0 / (1.0 - p))
    run(kernel, items, *args, threads=1 if x.size < _WORTH_THREADS else None)
    return y
