"""Pooling: a thread for each result, so that no sum depends on which thread comes first."""

from __future__ import annotations

from functools import lru_cache
from math import prod

from .. import portable
from .launch import counts, empty, fits, for_each, launch, plain, struct


@lru_cache(1024)
def _windows(shape, sizes, kernel, stride, padding):
    n, c, h, w = shape
    return struct(n * c, h, w, *sizes, *kernel, *stride, *padding)


def _place(kernel):
    """The dtype of a place in the window, and its name in the source."""
    return ("uint8", ("Place=unsigned char",)) if prod(kernel) <= 256 else ("int32", ("Place=int",))


def max_pool2d(x, kernel, stride, padding):
    """portable.max_pool2d."""
    sizes = counts(x.shape, kernel, stride, padding)
    if not fits(x) or 0 in sizes:
        return portable.max_pool2d(x, kernel, stride, padding)
    dtype, defines = _place(kernel)
    shape = *x.shape[:2], *sizes
    y, place = empty(x, shape, x.dtype), empty(x, shape, dtype)
    windows = _windows(x.shape, sizes, kernel, stride, padding)
    launch("pool", "max_pool2d", for_each(y.size), x, plain(x), windows, y, place, defines=defines)
    return y, place


def max_pool2d_scatter(g, place, shape, kernel, stride, padding):
    """portable.max_pool2d_scatter."""
    if not fits(g):
        return portable.max_pool2d_scatter(g, place, shape, kernel, stride, padding)
    dx = empty(g, shape, g.dtype)
    windows = _windows(shape, g.shape[2:], kernel, stride, padding)
    launch("pool", "max_pool2d_scatter", for_each(dx.size), dx, plain(g), plain(place), windows, dx, defines=_place(kernel)[1])
    return dx


def max_pool2d_gather(x, place, kernel, stride, padding):
    """portable.max_pool2d_gather."""
    if not fits(x) or place.size == 0:
        return portable.max_pool2d_gather(x, place, kernel, stride, padding)
    y = empty(x, place.shape, x.dtype)
    windows = _windows(x.shape, place.shape[2:], kernel, stride, padding)
    launch("pool", "max_pool2d_gather", for_each(y.size), x, plain(x), plain(place), windows, y, defines=_place(kernel)[1])
    return y


def avg_pool2d(x, kernel, stride, padding):
    """portable.avg_pool2d."""
    sizes = counts(x.shape, kernel, stride, padding)
    if not fits(x) or 0 in sizes:
        return portable.avg_pool2d(x, kernel, stride, padding)
    y = empty(x, (*x.shape[:2], *sizes), x.dtype)
    windows = _windows(x.shape, sizes, kernel, stride, padding)
    launch("pool", "avg_pool2d", for_each(y.size), x, plain(x), windows, y, defines=_place(kernel)[1])
    return y


def avg_pool2d_spread(g, shape, kernel, stride, padding):
    """portable.avg_pool2d_spread."""
    if not fits(g):
        return portable.avg_pool2d_spread(g, shape, kernel, stride, padding)
    dx = empty(g, shape, g.dtype)
    windows = _windows(shape, g.shape[2:], kernel, stride, padding)
    launch("pool", "avg_pool2d_spread", for_each(dx.size), dx, plain(g), windows, dx, defines=_place(kernel)[1])
    return dx
