"""The sums that are the gradient of a bias: by blocks for parts of each channel, where CuPy has one block for all of it."""

from __future__ import annotations

from .. import portable
from .launch import THREADS, empty, fits, for_each, launch, plain

# A block reads _CHUNK values for each of its threads, or as many times more as leave at most _PARTS parts of a channel; and of
# _ROW channels where those are what lies side by side. All depends on shapes alone, and so do the bits of the results.
_CHUNK, _PARTS, _ROW = 16, 64, 32


def sum_pixels(x):
    """portable.sum_pixels."""
    if not fits(x):
        return portable.sum_pixels(x)
    n, c = x.shape[:2]
    return _sums(x, n, c, x.size // (n * c))


def sum_rows(x):
    """portable.sum_rows."""
    if not fits(x) or not x.ndim:
        return portable.sum_rows(x)
    return _sums(x, x.size // x.shape[-1], x.shape[-1], 1)


def _sums(x, n, channels, size):
    """(n, channels, size) -> (channels,)"""
    x = plain(x)
    width = 1 if size > 1 else min(_ROW, 1 << (channels - 1).bit_length())
    values, at_once = n * size, _CHUNK * THREADS // width
    span = at_once * max(1, -(-values // (at_once * _PARTS)))
    grid = -(-channels // width), -(-values // span)
    y = empty(x, channels, x.dtype)
    parts = empty(x, (grid[1], channels), "float64") if grid[1] > 1 else None
    launch("sums", "sum_parts", grid, x, x, values, channels, size, span, width, parts, y)
    if parts is not None:
        launch("sums", "join_parts", for_each(channels), y, parts, grid[1], channels, y)
    return y
