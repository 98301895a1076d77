"""Batch normalisation in one kernel each way, or two where a channel has more than a block can read in one go."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

from .. import portable
from ..libraries import xp_of
from .launch import FLOATS, empty, fits, for_each, launch, plain

# A block reads a part of a channel: all of it, if that is no more than ALONE, so that a cache still has it when the block comes
# back to it; else SPAN, which is 16 values for each of its threads; or more, so that there are at most PARTS, which all blocks
# of the second kernel join again. These depend on shapes alone, and so do the bits of the results.
_SPAN, _ALONE, _PARTS = 4096, 4 * 4096, 256


class _Cut(NamedTuple):
    """How x is cut: the sizes that kernels take (samples, channels, pixels, values of a part), the grid, what a source is to be
    told, and whether threads read vectors."""

    sizes: tuple[int, int, int, int]
    grid: tuple[int, int]
    defines: tuple[str]
    vectors: bool


@lru_cache(1024)
def _cut(shape):
    n, c = shape[:2]
    size = prod(shape[2:])
    chunks = -(-n * size // _SPAN)  # of SPAN values in a channel
    span = _SPAN * (chunks if n * size <= _ALONE else -(-chunks // _PARTS))
    vectors = size % 4 == 0
    return _Cut((n, c, size, span), (c, -(-n * size // span)), (f"WIDTH={4 if vectors else 1}",), vectors)


def _plain(x, cut):
    """x, or a copy that is contiguous, and begins where vectors of values may."""
    x = plain(x)
    return x.copy() if cut.vectors and x.data.ptr % 16 else x


def _run(kernel, cut, x, *args):
    launch("norm", kernel, cut.grid, x, *args, defines=cut.defines)


def _wide(a, x):
    """gamma, beta or statistics as the kernels take them: in float32 beside a half, and contiguous."""
    if a is None:
        return None
    if a.dtype != x.dtype or a.dtype.itemsize < 4:
        a = a.astype("float32" if x.dtype.itemsize < 4 else x.dtype, copy=False)
    return plain(a)


def batch_norm(x, gamma, beta, eps):
    """portable.batch_norm."""
    if not fits(x):
        return portable.batch_norm(x, gamma, beta, eps)
    shape = x.shape
    cut = _cut(shape)
    x, gamma, beta, eps = _plain(x, cut), _wide(gamma, x), _wide(beta, x), float(eps)
    y = empty(x, shape, x.dtype)
    mean, var = empty(x, shape[1], "float64"), empty(x, shape[1], "float64")
    if cut.grid[1] == 1:
        _run("batch_norm", cut, x, x, *cut.sizes, gamma, beta, eps, y, mean, var)
    else:
        parts = empty(x, (3, *cut.grid), "float64")
        _run("batch_norm_parts", cut, x, x, *cut.sizes, parts)
        _run("batch_norm_joined", cut, x, x, *cut.sizes, parts, gamma, beta, eps, y, mean, var)
    return y, (mean, var)


def batch_norm_backward(g, x, gamma, mean, var, eps):
    """portable.batch_norm_backward."""
    if not fits(x, g):
        return portable.batch_norm_backward(g, x, gamma, mean, var, eps)
    shape = x.shape
    cut = _cut(shape)
    x, g, mean, var, eps = _plain(x, cut), _plain(g, cut), plain(mean), plain(var), float(eps)
    dx = empty(x, shape, x.dtype)
    if gamma is None:
        weight = dgamma = dbeta = None
    else:
        weight = _wide(gamma, x)
        dgamma, dbeta = empty(x, shape[1], weight.dtype), empty(x, shape[1], weight.dtype)
    if cut.grid[1] == 1:
        _run("batch_norm_backward", cut, x, g, x, *cut.sizes, weight, mean, var, eps, dx, dgamma, dbeta)
    else:
        parts = empty(x, (2, *cut.grid), "float64")
        _run("batch_norm_backward_parts", cut, x, g, x, *cut.sizes, mean, parts)
        _run("batch_norm_backward_joined", cut, x, g, x, *cut.sizes, parts, weight, mean, var, eps, dx, dgamma, dbeta)
    if weight is not None and weight.dtype != gamma.dtype:
        dgamma, dbeta = dgamma.astype(gamma.dtype), dbeta.astype(gamma.dtype)
    return dx, dgamma, dbeta


def batch_norm_inference(x, gamma, beta, mean, var, eps):
    """portable.batch_norm_inference."""
    if not fits(x):
        return portable.batch_norm_inference(x, gamma, beta, mean, var, eps)
    cut = _cut(x.shape)
    x = _plain(x, cut)
    y = empty(x, x.shape, x.dtype)
    channels = [_wide(a, x) for a in (gamma, beta, mean, var)]
    _run("batch_norm_inference", cut, x, x, *cut.sizes, *channels, float(eps), y)
    return y


# In parts: the kernels that measure a part of a channel, and the one that joins such parts, find others than they thought of.


def batch_norm_moments(x):
    """portable.batch_norm_moments."""
    if not fits(x):
        return portable.batch_norm_moments(x)
    cut = _cut(x.shape)
    x = _plain(x, cut)
    parts = empty(x, (3, *cut.grid), "float64")
    _run("batch_norm_parts", cut, x, x, *cut.sizes, parts)
    return xp_of(x).stack(portable.join_moments(*parts.transpose(0, 2, 1)))


def batch_norm_apply(x, gamma, beta, mean, var, eps):
    """portable.batch_norm_apply."""
    if not fits(x):
        return portable.batch_norm_apply(x, gamma, beta, mean, var, eps)
    cut = _cut(x.shape)
    x = _plain(x, cut)
    parts = xp_of(x).zeros((3, *cut.grid), "float64")  # one part of one value, and others of none
    parts[0, :, 0], parts[1, :, 0], parts[2, :, 0] = 1.0, mean, var
    y = empty(x, x.shape, x.dtype)
    again = [empty(x, x.shape[1], "float64") for _ in range(2)]  # the mean and variance that came
    _run("batch_norm_joined", cut, x, x, *cut.sizes, parts, _wide(gamma, x), _wide(beta, x), float(eps), y, *again)
    return y


def batch_norm_sums(g, x, mean):
    """portable.batch_norm_sums."""
    if not fits(x, g):
        return portable.batch_norm_sums(g, x, mean)
    cut = _cut(x.shape)
    x, g = _plain(x, cut), _plain(g, cut)
    parts = empty(x, (2, *cut.grid), "float64")
    _run("batch_norm_backward_parts", cut, x, g, x, *cut.sizes, plain(mean), parts)
    return parts.sum(axis=2)


def follow(running_mean, running_var, mean, var, weight, correction):
    """portable.follow, but None for the last result: nobody waits for the GPU to say which statistics are finite."""
    if running_mean.dtype not in FLOATS or running_var.dtype != running_mean.dtype or mean.dtype != "float64":
        return portable.follow(running_mean, running_var, mean, var, weight, correction)
    old_mean, old_var, mean, var = plain(running_mean), plain(running_var), plain(mean), plain(var)
    n, dtype = mean.size, running_mean.dtype
    new_mean, new_var = empty(mean, n, dtype), empty(mean, n, dtype)
    defines = ("WIDTH=4",)  # as most others: one compilation less
    args = old_mean, old_var, mean, var, n, float(weight), float(correction), new_mean, new_var
    launch("norm", "follow", for_each(n), old_mean, *args, defines=defines)
    return new_mean, new_var, None
