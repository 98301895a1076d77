"""Convolution by patches and cuBLAS: in every dtype, and where cuDNN does not serve."""

from __future__ import annotations

from math import prod

from ..libraries import xp_of
from ..portable import window_counts
from .launch import for_each, launch, plain, struct

_PATCH_BYTES = 1 << 27  # of the patches of some samples: enough work for a product, and no burden on the memory


def conv2d(x, w, b, stride, padding, dilation, groups):
    """portable.conv2d."""
    xp, x = xp_of(x), plain(x)
    n, o = x.shape[0], w.shape[0]
    kernel, counts = w.shape[2:], window_counts(x.shape, w.shape[2:], stride, padding, dilation)
    rows = plain(w).reshape(groups, o // groups, -1)  # gok
    y = xp.empty((n, groups, o // groups, prod(counts)), x.dtype)
    for part in _parts(x, kernel, counts):
        xp.matmul(rows, _patches(x[part], kernel, counts, stride, padding, dilation, groups), out=y[part])  # gok,ngkl->ngol
    y = y.reshape(n, o, *counts)
    if b is not None:
        y += b.reshape(1, -1, 1, 1)
    return y


def conv2d_input(g, w, shape, stride, padding, dilation, groups):
    """portable.conv2d_input."""
    xp = xp_of(g)
    n, o, *counts = g.shape
    kernel = w.shape[2:]
    columns = plain(w).reshape(groups, o // groups, -1).transpose(0, 2, 1)  # gko
    g = plain(g).reshape(n, groups, o // groups, prod(counts))
    x = xp.empty(shape, g.dtype)
    for part in _parts(x, kernel, counts):
        _add_up(x[part], xp.matmul(columns, g[part]), kernel, tuple(counts), stride, padding, dilation)  # gko,ngol->ngkl
    return x


def conv2d_weight(g, x, shape, stride, padding, dilation, groups):
    """portable.conv2d_weight."""
    xp, x = xp_of(x), plain(x)
    n, o, *counts = g.shape
    kernel = shape[2:]
    g = plain(g).reshape(n, groups, o // groups, prod(counts))
    w = xp.zeros(shape, g.dtype)
    rows = w.reshape(groups, o // groups, -1)  # gok
    for part in _parts(x, kernel, counts):
        patches = _patches(x[part], kernel, tuple(counts), stride, padding, dilation, groups)
        rows += xp.matmul(g[part], patches.transpose(0, 1, 3, 2)).sum(axis=0)  # ngol,nglk->ngok
    return w


def _parts(x, kernel, counts):
    """Slices of some samples each, whose patches have about _PATCH_BYTES together."""
    n, c = x.shape[:2]
    step = max(1, _PATCH_BYTES // max(1, c * prod(kernel) * prod(counts) * x.itemsize))
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def _grid(shape, kernel, counts, stride, padding, dilation):
    return struct(*shape, *counts, *kernel, *stride, *padding, *dilation)


def _patches(x, kernel, counts, stride, padding, dilation, groups):
    """(n, C, H, W) -> (n, G, C/G * kh * kw, H' * W'): the input under each window."""
    n, c = x.shape[:2]
    shape = n, groups, c // groups * prod(kernel), prod(counts)
    if kernel == stride == (1, 1) and padding == (0, 0):
        return x.reshape(shape)
    patches = xp_of(x).empty(shape, x.dtype)
    if patches.size:
        launch(
            "conv",
            "im2col",
            for_each(patches.size),
            patches,
            x,
            _grid(x.shape, kernel, counts, stride, padding, dilation),
            patches,
        )
    return patches


def _add_up(x, patches, kernel, counts, stride, padding, dilation):
    """Fill x with the sums of what belongs to its pixels."""
    if kernel == stride == (1, 1) and padding == (0, 0):
        x[...] = patches.reshape(x.shape)
    elif x.size:
        grid = _grid(x.shape, kernel, counts, stride, padding, dilation)
        launch("conv", "col2im", for_each(x.size), patches, plain(patches), grid, x)
