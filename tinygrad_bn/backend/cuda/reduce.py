"""The mean of a small array, its gradient, and the one that backward begins with."""

from __future__ import annotations

from functools import lru_cache
from math import prod

from .. import portable
from ..libraries import xp_of
from .launch import empty, fits, for_each, launch, plain

_SMALL = 1 << 14  # elements: what one block reads in the time that a launch takes


def mean_all(x):
    """portable.mean_all."""
    if not fits(x) or x.size > _SMALL:
        return portable.mean_all(x)
    y = empty(x, (), x.dtype)
    launch("reduce", "mean_all", (1,), x, plain(x), x.size, y)
    return y


def spread(g, shape, count):
    """portable.spread."""
    n = prod(shape)
    if not fits(g) or not n:
        return portable.spread(g, shape, count)
    out = empty(g, shape, g.dtype)
    launch("reduce", "spread", for_each(n), out, g, n, float(count), out)
    return out


def one(like):
    """portable.one, but always the same array, which nobody may change: there is a reference to it for ever."""
    xp = xp_of(like)
    return _one(xp, like.shape, like.dtype, xp.cuda.runtime.getDevice(), xp.cuda.get_current_stream().ptr)


@lru_cache(64)
def _one(xp, shape, dtype, device, stream):
    """Made on the stream that reads it: so nobody waits for it."""
    return xp.ones(shape, dtype)
