"""Convolution by patches and cuBLAS: in every floating dtype, and where cuDNN does not serve.

The patches of some samples are a matrix with a row for each element of the kernel, (C kh kw, n H' W'), in groups of channels. A
sample's are columns of it, which cuBLAS multiplies where they lie; and all are one factor of the gradient of the weight.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import numpy as np

from ..libraries import xp_of
from .elementwise import add_bias
from .launch import counts as window_counts
from .launch import empty, for_each, launch, plain, struct
from .products import multiply

_PATCH_BYTES = 1 << 27  # of the patches of some samples: enough work for a product, and no burden on the memory
_MOST = 65535  # samples in one product


def conv2d(x, w, b, stride, padding, dilation, groups):
    """portable.conv2d."""
    x = plain(x)
    n, o = x.shape[0], w.shape[0]
    kernel, counts = w.shape[2:], window_counts(x.shape, w.shape[2:], stride, padding, dilation)
    rows = plain(w).reshape(groups, 1, o // groups, -1)  # g1ok
    y = empty(x, (n, groups, o // groups, prod(counts)), x.dtype)
    for part in _parts(n if y.size else 0, x.shape[1] * prod(kernel) * prod(counts) * x.itemsize):
        if _is_pointwise(x.shape, kernel, counts, stride, padding):
            patches = _by_samples(x[part], groups)
        else:
            patches = _patches(x[part], kernel, counts, stride, padding, dilation, groups)
        multiply(rows, patches.swapaxes(1, 2), y[part].swapaxes(0, 1))  # g1ok,gnkl->gnol
    y = y.reshape(n, o, *counts)
    if b is not None and y.size:
        add_bias(y, b, prod(counts))
    return y


def conv2d_input(g, w, shape, stride, padding, dilation, groups):
    """portable.conv2d_input."""
    n, o, *counts = g.shape
    kernel = w.shape[2:]
    columns = plain(w).reshape(groups, 1, o // groups, -1).swapaxes(2, 3)  # g1ko
    g = plain(g).reshape(n, groups, o // groups, prod(counts))
    x = empty(g, shape, g.dtype)
    for part in _parts(n if x.size else 0, shape[1] * prod(kernel) * prod(counts) * g.itemsize):
        images, gradient = x[part], g[part].swapaxes(0, 1)
        if _is_pointwise(shape, kernel, counts, stride, padding):
            multiply(columns, gradient, _by_samples(images, groups).swapaxes(1, 2))  # g1ko,gnol->gnkl
            continue
        patches = empty(g, (groups, columns.shape[2], len(images), prod(counts)), g.dtype)  # gknl
        multiply(columns, gradient, patches.swapaxes(1, 2))
        grid = _grid(images.shape, kernel, tuple(counts), stride, padding, dilation)
        launch("conv", "col2im", for_each(images.size), _larger(patches, images), patches, grid, images)
    return x


def conv2d_weight(g, x, shape, stride, padding, dilation, groups):
    """portable.conv2d_weight. Sums over all pixels are no halves before the last part is added."""
    xp, x = xp_of(x), plain(x)
    n, o, *counts = g.shape
    if not g.size:
        return xp.zeros(shape, g.dtype)
    g, counts, kernel = plain(g), tuple(counts), shape[2:]
    total = empty(x, (groups, 1, o // groups, prod(shape[1:])), np.result_type(g.dtype, "float32"))  # g1ok
    for part in _parts(n, (x.shape[1] * prod(kernel) + o) * prod(counts) * g.itemsize):
        patches = _patches(x[part], kernel, counts, stride, padding, dilation, groups).reshape(groups, 1, total.shape[3], -1)
        rows = _patches(g[part], (1, 1), counts, (1, 1), (0, 0), (1, 1), groups).reshape(groups, 1, total.shape[2], -1)
        multiply(rows, patches.swapaxes(2, 3), total, add=part.start > 0)  # g1o(nl),g1(nl)k->g1ok
    return total.astype(g.dtype, copy=False).reshape(shape)


def _parts(n, nbytes):
    """Slices of some of n samples each, of which one's patches have ``nbytes``, and all of a slice about _PATCH_BYTES."""
    step = min(max(1, _PATCH_BYTES // max(1, nbytes)), _MOST)
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def _is_pointwise(shape, kernel, counts, stride, padding):
    """Whether the patches are the pixels themselves."""
    return kernel == stride == (1, 1) and padding == (0, 0) and tuple(counts) == tuple(shape[2:])


def _by_samples(x, groups):
    """(n, C, H, W) -> (G, C/G, n, H W): a view."""
    return x.reshape(len(x), groups, -1, prod(x.shape[2:])).transpose(1, 2, 0, 3)


@lru_cache(1024)
def _grid(shape, kernel, counts, stride, padding, dilation):
    return struct(*shape, *counts, *kernel, *stride, *padding, *dilation)


def _larger(a, b):
    """For ``launch``, which wants to know the largest array."""
    return a if a.size >= b.size else b


def _patches(x, kernel, counts, stride, padding, dilation, groups):
    """(n, C, H, W) -> (G, C/G kh kw, n, H' W'): the input under each window."""
    n, c = x.shape[:2]
    patches = empty(x, (groups, c // groups * prod(kernel), n, prod(counts)), x.dtype)
    grid = _grid(x.shape, kernel, counts, stride, padding, dilation)
    launch("conv", "im2col", for_each(n * c * prod(counts)), _larger(patches, x), x, grid, patches)
    return patches
