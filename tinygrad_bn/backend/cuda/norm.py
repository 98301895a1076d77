"""Batch normalisation in one kernel each way, or two where a channel has more than a block can read in one go."""

from __future__ import annotations

import math

import numpy as np

from .. import portable
from ..libraries import xp_of
from .launch import FLOATS, fits, for_each, launch, plain

# A block reads a part of a channel: all of it, if that is no more than ALONE, so that a cache still has it when the block comes
# back to it; else SPAN, which is 16 values for each of its threads; or more, so that there are at most PARTS, which all blocks
# of the second kernel join again. These depend on shapes alone, and so do the bits of the results.
_SPAN, _ALONE, _PARTS = 4096, 4 * 4096, 256


def _sizes(x):
    """The sizes that the kernels take: samples, channels, pixels, and values of a part; and the grid."""
    n, c = x.shape[:2]
    size = x.size // (n * c)
    chunks = -(-n * size // _SPAN)  # of SPAN values in a channel
    span = _SPAN * (chunks if n * size <= _ALONE else -(-chunks // _PARTS))
    return (n, c, size, span), (c, -(-n * size // span))


def _width(x):
    """How many values a thread reads at a time."""
    return 1 if math.prod(x.shape[2:]) % 4 else 4


def _plain(x):
    """x, or a copy that is contiguous, and begins where vectors of values may."""
    x = plain(x)
    return x.copy() if _width(x) > 1 and x.data.ptr % 16 else x


def _run(kernel, grid, x, *args):
    launch("norm", kernel, grid, x, *args, defines=(f"WIDTH={_width(x)}",))


def _wide(a, x):
    """gamma, beta or statistics as the kernels take them: in float32 beside a half, and contiguous."""
    if a is None:
        return None
    dtype = np.dtype("float32") if x.dtype == "float16" else x.dtype
    return plain(a if a.dtype == dtype else a.astype(dtype))


def batch_norm(x, gamma, beta, eps):
    """portable.batch_norm."""
    if not fits(x):
        return portable.batch_norm(x, gamma, beta, eps)
    xp, x = xp_of(x), _plain(x)
    sizes, grid = _sizes(x)
    gamma, beta = _wide(gamma, x), _wide(beta, x)
    y = xp.empty(x.shape, x.dtype)
    mean, var = xp.empty((2, x.shape[1]), "float64")
    if grid[1] == 1:
        _run("batch_norm", grid, x, x, *sizes, gamma, beta, float(eps), y, mean, var)
    else:
        parts = xp.empty((3, *grid), "float64")
        _run("batch_norm_parts", grid, x, x, *sizes, parts)
        _run("batch_norm_joined", grid, x, x, *sizes, parts, gamma, beta, float(eps), y, mean, var)
    return y, (mean, var)


def batch_norm_backward(g, x, gamma, mean, var, eps):
    """portable.batch_norm_backward."""
    if not fits(x, g):
        return portable.batch_norm_backward(g, x, gamma, mean, var, eps)
    xp, x, g = xp_of(x), _plain(x), _plain(g)
    sizes, grid = _sizes(x)
    weight = _wide(gamma, x)
    mean, var = plain(mean), plain(var)
    dx = xp.empty(x.shape, x.dtype)
    dgamma, dbeta = (
        None if weight is None else xp.empty(x.shape[1], weight.dtype) for _ in range(2)
    )  # each an array of its own
    if grid[1] == 1:
        _run("batch_norm_backward", grid, x, g, x, *sizes, weight, mean, var, float(eps), dx, dgamma, dbeta)
    else:
        parts = xp.empty((2, *grid), "float64")
        _run("batch_norm_backward_parts", grid, x, g, x, *sizes, mean, parts)
        results = dx, dgamma, dbeta
        _run("batch_norm_backward_joined", grid, x, g, x, *sizes, parts, weight, mean, var, float(eps), *results)
    if gamma is None:
        return dx, None, None
    return dx, dgamma.astype(gamma.dtype, copy=False), dbeta.astype(gamma.dtype, copy=False)


def batch_norm_inference(x, gamma, beta, mean, var, eps):
    """portable.batch_norm_inference."""
    if not fits(x):
        return portable.batch_norm_inference(x, gamma, beta, mean, var, eps)
    x = _plain(x)
    sizes, grid = _sizes(x)
    y = xp_of(x).empty(x.shape, x.dtype)
    channels = [_wide(a, x) for a in (gamma, beta, mean, var)]
    _run("batch_norm_inference", grid, x, x, *sizes, *channels, float(eps), y)
    return y


# In parts: the kernels that measure a part of a channel, and the one that joins such parts, find others than they thought of.


def batch_norm_moments(x):
    """portable.batch_norm_moments."""
    if not fits(x):
        return portable.batch_norm_moments(x)
    xp, x = xp_of(x), _plain(x)
    sizes, grid = _sizes(x)
    parts = xp.empty((3, *grid), "float64")
    _run("batch_norm_parts", grid, x, x, *sizes, parts)
    return xp.stack(portable.join_moments(*parts.transpose(0, 2, 1)))


def batch_norm_apply(x, gamma, beta, mean, var, eps):
    """portable.batch_norm_apply."""
    if not fits(x):
        return portable.batch_norm_apply(x, gamma, beta, mean, var, eps)
    xp, x = xp_of(x), _plain(x)
    sizes, grid = _sizes(x)
    parts = xp.zeros((3, *grid), "float64")  # one part of one value, and others of none
    parts[0, :, 0], parts[1, :, 0], parts[2, :, 0] = 1.0, mean, var
    y = xp.empty(x.shape, x.dtype)
    statistics = xp.empty((2, x.shape[1]), "float64")
    affine = _wide(gamma, x), _wide(beta, x)
    _run("batch_norm_joined", grid, x, x, *sizes, parts, *affine, float(eps), y, statistics[0], statistics[1])
    return y


def batch_norm_sums(g, x, mean):
    """portable.batch_norm_sums."""
    if not fits(x, g):
        return portable.batch_norm_sums(g, x, mean)
    xp, x, g = xp_of(x), _plain(x), _plain(g)
    sizes, grid = _sizes(x)
    parts = xp.empty((2, *grid), "float64")
    _run("batch_norm_backward_parts", grid, x, g, x, *sizes, plain(mean), parts)
    return parts.sum(axis=2)


def follow(running_mean, running_var, mean, var, weight, correction):
    """portable.follow, but None for the last result: nobody waits for the GPU to say which statistics are finite."""
    if running_mean.dtype not in FLOATS or running_var.dtype != running_mean.dtype or mean.dtype != "float64":
        return portable.follow(running_mean, running_var, mean, var, weight, correction)
    arrays = [plain(a) for a in (running_mean, running_var, mean, var)]
    new_mean, new_var = xp_of(mean).empty((2, mean.size), running_mean.dtype)
    launch(
        "norm",
        "follow",
        for_each(mean.size),
        running_mean,
        *arrays,
        mean.size,
        float(weight),
        float(correction),
        new_mean,
        new_var,
        defines=("WIDTH=4",),  # as most others: one compilation less
    )
    return new_mean, new_var, None
