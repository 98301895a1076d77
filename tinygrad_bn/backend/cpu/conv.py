"""Convolution: patches of some rows of the output at a time, in memory that stays in the cache, and one product for each.

With the channels last, a patch is kh runs of memory, and the product of patches (pixels, kh kw C) with the weight (kh kw C, O)
gives the output as it lies. A 1x1 kernel needs no patches. 3x3 kernels of stride 1 in float32 go by Winograd's algorithm where
that is faster, which depends on the shape alone: see ``_by_winograd``.
"""

from __future__ import annotations

import numpy as np

from .. import portable
from . import winograd
from .blas import ZERO_ONE, gemm, one_thread
from .jit import compiled, inlined
from .layout import FLOATS, channels_last, images, plain
from .memory import empty
from .team import join, leave, run, take
from .threads import threads_for

__all__ = ["conv2d", "conv2d_input", "conv2d_weight"]

_PATCH_BYTES = 1 << 18
_LEAST = 8  # channels, from which Winograd's transforms cost no more than the products that they save
_PIXEL = (1, 1, 1, 1, 0, 0, 1, 1)  # the window whose patches are the pixels themselves


def _compiled_for(x, *shapes):
    return x.dtype in FLOATS and all(0 not in shape for shape in (x.shape, *shapes))


def _by_winograd(dtype, c, shape, stride, padding, dilation, groups):
    """Whether Winograd is used for a weight of ``shape`` (O, C, kh, kw) on c channels.

    Measured, batch 64, two threads, ms by Winograd and by patches: 8 channels at 28x28 forward 1.0 and 1.0, weight 1.1 and 0.9;
    16 at 28x28 1.7 and 2.5, 1.9 and 3.4; 32 at 14x14 1.0 and 1.7, 0.9 and 2.2; 64 at 7x7 1.0 and 1.6, 1.0 and 1.8.
    """
    return (
        dtype == "float32"
        and shape[2:] == (3, 3)
        and stride == dilation == (1, 1)
        and groups == 1
        and max(padding) <= 2
        and min(c, shape[0]) >= _LEAST
    )


def conv2d(x, w, b, stride, padding, dilation, groups):
    """portable.conv2d."""
    if not _compiled_for(x, w.shape):
        return portable.conv2d(x, w, b, stride, padding, dilation, groups)
    oh, ow = portable.window_counts(x.shape, w.shape[2:], stride, padding, dilation)
    y = images(x.shape[0], w.shape[0], oh, ow, x.dtype)
    out = y.transpose(0, 2, 3, 1)
    x = channels_last(x)
    b = None if b is None else plain(b)
    if _by_winograd(x.dtype, x.shape[3], w.shape, stride, padding, dilation, groups):
        winograd.convolve(x, plain(w), b, out, padding)
        return y
    window = _window(w.shape, stride, padding, dilation)
    rows, items, threads, scratch = _plan(out, w.shape, groups, window)
    bias = np.zeros(w.shape[0], x.dtype) if b is None else b
    with one_thread:
        run(
            _convolve, items, x, _columns(w, groups), out, bias, window, rows, scratch, ZERO_ONE[x.dtype.char],
            threads=threads,
        )  # fmt: skip
    return y


def conv2d_input(g, w, shape, stride, padding, dilation, groups):
    """portable.conv2d_input."""
    if not _compiled_for(g, w.shape, shape):
        return portable.conv2d_input(g, w, shape, stride, padding, dilation, groups)
    n, c, height, width = shape
    dx = images(n, c, height, width, g.dtype)
    out = dx.transpose(0, 2, 3, 1)
    g = channels_last(g)
    if _by_winograd(g.dtype, c, w.shape, stride, padding, dilation, groups):
        winograd.convolve(g, plain(w), None, out, (2 - padding[0], 2 - padding[1]), turned=True)
        return dx
    window = _window(w.shape, stride, padding, dilation)
    rows, _, threads, scratch = _plan(g, w.shape, groups, window, items=n)
    with one_thread:
        run(_spread, n, g, _columns(w, groups), out, window, rows, scratch, ZERO_ONE[g.dtype.char], threads=threads)
    return dx


def conv2d_weight(g, x, shape, stride, padding, dilation, groups):
    """portable.conv2d_weight."""
    if not _compiled_for(x, shape, g.shape):
        return portable.conv2d_weight(g, x, shape, stride, padding, dilation, groups)
    g, x = channels_last(g), channels_last(x)
    if _by_winograd(x.dtype, x.shape[3], shape, stride, padding, dilation, groups):
        return winograd.correlate(g, x, shape, padding)
    parts = min(winograd.PARTS, g.shape[0] * g.shape[1])
    window = _window(shape, stride, padding, dilation)
    rows, _, threads, scratch = _plan(g, shape, groups, window, items=parts)
    o, each, kh, kw = shape
    sums = empty((parts, groups, kh * kw * each, o // groups), x.dtype)
    with one_thread:
        run(
            _correlate, parts, x, g, sums, window, rows, scratch, ZERO_ONE[x.dtype.char], threads=threads,
        )  # fmt: skip
    total = sums.sum(axis=0)  # part by part
    dw = total.reshape(groups, kh, kw, each, o // groups).transpose(0, 4, 3, 1, 2)  # gijco -> gocij
    return np.ascontiguousarray(dw).reshape(shape)


def _window(shape, stride, padding, dilation):
    """What a kernel needs to know of a window: its size, steps, padding and dilation, rows before columns."""
    if shape[2:] == (1, 1):
        dilation = 1, 1
    return (*shape[2:], *stride, *padding, *dilation)


def _columns(w, groups):
    """(O, C/G, kh, kw) -> (G, kh kw C/G, O/G): the weight as the factor on the right of patches."""
    o, each, kh, kw = w.shape
    return np.ascontiguousarray(w.reshape(groups, o // groups, each, kh, kw).transpose(0, 3, 4, 2, 1)).reshape(
        groups, kh * kw * each, o // groups
    )


def _plan(y, shape, groups, window, items=None):
    """For an output (N, H', W', O): its rows in a product, items of work, threads, and patches for each thread."""
    n, oh, ow = y.shape[:3]
    size = shape[1] * shape[2] * shape[3]
    rows = min(max(1, _PATCH_BYTES // (ow * size * y.itemsize)), n * oh)
    items = -(-n * oh // rows) if items is None else items
    threads = threads_for(items)
    return rows, items, threads, empty((threads, 0 if window == _PIXEL else rows * ow * size), y.dtype)


@inlined
def _span(offset, step, size, count):
    """Those of ``count`` windows, as [first, last), whose element ``offset`` from their start lies within ``size`` elements."""
    first = 0 if offset >= 0 else min((step - 1 - offset) // step, count)
    last = 0 if offset >= size else min((size - 1 - offset) // step + 1, count)
    return first, max(first, last)


# Loops below index by unsigned numbers, which cannot mean "from the end", and make no slices, which are counted.


@inlined
def _patches(x, start, stop, oh, ow, first, each, window, patches):
    """The input under each of the windows of some rows of the output: (pixels, kh kw C/G). A row is n * H' + y."""
    kh, kw, sh, sw, ph, pw, dh, dw = window
    height, width = x.shape[1:3]
    for r in range(start, stop):
        n, p = np.uint64(r // oh), (r - start) * ow
        for i in range(kh):
            y = (r % oh) * sh - ph + i * dh
            for j in range(kw):
                at = np.uint64((i * kw + j) * each)
                left, right = _span(j * dw - pw, sw, width, ow)
                if y < 0 or y >= height:
                    left = right = ow
                for ox in range(left):
                    for c in range(each):
                        patches[np.uint64(p + ox), at + np.uint64(c)] = 0
                for ox in range(right, ow):
                    for c in range(each):
                        patches[np.uint64(p + ox), at + np.uint64(c)] = 0
                if each == 1:
                    for ox in range(left, right):
                        patches[np.uint64(p + ox), at] = x[n, np.uint64(y), np.uint64(ox * sw - pw + j * dw), np.uint64(first)]
                else:
                    for ox in range(left, right):
                        across = np.uint64(ox * sw - pw + j * dw)
                        for c in range(each):
                            patches[np.uint64(p + ox), at + np.uint64(c)] = x[n, np.uint64(y), across, np.uint64(first + c)]


@inlined
def _add_patches(patches, start, stop, ow, first, each, window, image):
    """The adjoint of ``_patches``: some rows of patches added into one image."""
    kh, kw, sh, sw, ph, pw, dh, dw = window
    height, width = image.shape[:2]
    for r in range(start, stop):
        p = (r - start) * ow
        for i in range(kh):
            y = r * sh - ph + i * dh
            if y < 0 or y >= height:
                continue
            for j in range(kw):
                at = np.uint64((i * kw + j) * each)
                left, right = _span(j * dw - pw, sw, width, ow)
                for ox in range(left, right):
                    across = np.uint64(ox * sw - pw + j * dw)
                    for c in range(each):
                        image[np.uint64(y), across, np.uint64(first + c)] += patches[np.uint64(p + ox), at + np.uint64(c)]


@compiled
def _convolve(team, items, x, w, y, bias, window, rows, scratch, zero_one):
    slot = join(team)
    samples, oh, ow, o = y.shape
    groups, size, width = w.shape
    each = x.shape[3] // groups
    direct = window == _PIXEL
    pixels, out = x.reshape(-1, x.shape[3]), y.reshape(-1, o)
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        start, stop = item * rows, min((item + 1) * rows, samples * oh)
        begin, end = start * ow, stop * ow
        many = 0 if direct else end - begin
        patches = scratch[slot][: many * size].reshape(many, size)
        for g in range(groups):
            target = out[begin:end, g * width : (g + 1) * width]
            if direct:
                gemm(pixels[begin:end, g * each : (g + 1) * each], w[g], target, False, False, False, zero_one)
            else:
                _patches(x, start, stop, oh, ow, g * each, each, window, patches)
                gemm(patches, w[g], target, False, False, False, zero_one)
        for p in range(begin, end):
            for k in range(o):
                out[np.uint64(p), np.uint64(k)] += bias[np.uint64(k)]


@compiled
def _spread(team, items, g, w, dx, window, rows, scratch, zero_one):
    """The adjoint of ``_convolve``; an item is a sample."""
    slot = join(team)
    _, oh, ow, o = g.shape
    groups, size, width = w.shape
    each = dx.shape[3] // groups
    channels = dx.shape[3]
    direct = window == _PIXEL
    while True:
        n = take(team, slot, items)
        if n >= items:
            return leave(team, slot)
        image = dx[n]
        if not direct:
            image[:] = 0
        for start in range(0, oh, rows):
            stop = min(start + rows, oh)
            count = (stop - start) * ow
            pixels = g[n, start:stop].reshape(count, o)
            many = 0 if direct else count
            patches = scratch[slot][: many * size].reshape(many, size)
            for group in range(groups):
                of_group = pixels[:, group * width : (group + 1) * width]
                first = group * each
                if direct:
                    target = image[start:stop].reshape(count, channels)[:, first : first + each]
                    gemm(of_group, w[group], target, False, True, False, zero_one)
                    continue
                gemm(of_group, w[group], patches, False, True, False, zero_one)
                _add_patches(patches, start, stop, ow, first, each, window, image)


@compiled
def _correlate(team, items, x, g, sums, window, rows, scratch, zero_one):
    """Item i sums its share of the rows of the output into ``sums[i]``: (G, kh kw C/G, O/G)."""
    slot = join(team)
    samples, oh, ow, o = g.shape
    _, groups, size, width = sums.shape
    each = x.shape[3] // groups
    direct = window == _PIXEL
    pixels, grads = x.reshape(-1, x.shape[3]), g.reshape(-1, o)
    total = samples * oh
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        first, last = item * total // items, (item + 1) * total // items
        for start in range(first, last, rows):
            stop = min(start + rows, last)
            begin, end = start * ow, stop * ow
            many = 0 if direct else end - begin
            patches = scratch[slot][: many * size].reshape(many, size)
            for group in range(groups):
                of_group = grads[begin:end, group * width : (group + 1) * width]
                target = sums[item, group]
                if direct:
                    gemm(
                        pixels[begin:end, group * each : (group + 1) * each],
                        of_group,
                        target,
                        True,
                        False,
                        start > first,
                        zero_one,
                    )
                else:
                    _patches(x, start, stop, oh, ow, group * each, each, window, patches)
                    gemm(patches, of_group, target, True, False, start > first, zero_one)
