"""How images lie in memory: logically (N, C, H, W), as everywhere, but with the channels of a pixel beside each other.

Products over channels, statistics of channels and pooling then run over contiguous memory. Results of kernels are such arrays;
NumPy's elementwise functions keep the layout; what comes from the user in another one is copied once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .jit import compiled
from .memory import SMALLEST, empty
from .team import join, leave, run, take

FLOATS = np.dtype("float32"), np.dtype("float64")  # what kernels are compiled for

# A kernel that moves fewer bytes than this runs on one thread: to work together costs two microseconds.
WORTH_THREADS = 1 << 16

_BLOCK = 32


def images(n: int, c: int, h: int, w: int, dtype: Any) -> np.ndarray:
    """New memory for (N, C, H, W), channels last: ``.transpose(0, 2, 3, 1)`` of it is contiguous."""
    s = np.dtype(dtype).itemsize
    return empty((n, c, h, w), dtype, (h * w * c * s, s, w * c * s, c * s))


def empty_like(x: np.ndarray) -> np.ndarray:
    """New memory in the layout of x, which fills its memory without gaps."""
    if not x.flags.c_contiguous:
        return empty(x.shape, x.dtype, x.strides)
    return np.empty(x.shape, x.dtype) if x.nbytes < SMALLEST else empty(x.shape, x.dtype)


def plain(x: np.ndarray) -> np.ndarray:
    """x itself if it is contiguous, aligned and writable, as kernels are compiled for; else such a copy."""
    if x.flags.carray:
        return x
    out = empty(x.shape, x.dtype)
    out[...] = x
    return out


def channels_last(x: np.ndarray) -> np.ndarray:
    """(N, C, H, W) as a contiguous (N, H, W, C): the same memory where it lies so already, else a copy."""
    last = x.transpose(0, 2, 3, 1)
    if last.flags.c_contiguous:
        return plain(last)
    out = empty(last.shape, x.dtype)
    if not x.flags.c_contiguous or not x.flags.behaved:
        out[...] = last
        return out
    n, c = x.shape[:2]
    source, target = x.reshape(n, c, -1), out.reshape(n, -1, c)
    run(_turn, n, source, target, threads=1 if x.nbytes < WORTH_THREADS else None)
    return out


@compiled
def _turn(team, items, source, target):
    """(N, A, B) -> (N, B, A), some columns at a time, so that a line of the cache that is read is also used."""
    slot = join(team)
    u = np.uint64  # (an index that cannot mean "from the end" is faster)
    rows, columns = source.shape[1:]
    while True:
        n = take(team, slot, items)
        if n >= items:
            return leave(team, slot)
        for first in range(0, columns, _BLOCK):
            for j in range(first, min(first + _BLOCK, columns)):
                for i in range(rows):
                    target[u(n), u(j), u(i)] = source[u(n), u(i), u(j)]
