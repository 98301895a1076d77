"""Pooling, channels last: a pixel is a row of channels, over which the inner loops run.

Forward, the windows of a row of the output are merged, offset by offset. Backward, a row of the input collects from the windows
that cover it, offset by offset too: so it is written where it lies, and no two threads meet. Some rows make an item of work.

Indices are unsigned where they are computed, since a signed one might count from the end, which hinders vectorisation. And
pixels are not sliced out (``x[n, y, w]``): a slice counts the references to its array, atomically, which takes longer than the
32 channels of a pixel.
"""

from __future__ import annotations

import numpy as np

from .. import portable
from .jit import compiled, inlined
from .layout import FLOATS, WORTH_THREADS, channels_last, images
from .team import join, leave, run, take

_ITEM_BYTES = 1 << 16  # of the larger array, in an item of work
_PLACES = np.dtype("uint8"), np.dtype("int32")

_u = np.uint64


@inlined
def _across(j, size, count, stride, padding):
    """The windows, of ``count``, whose pixel j along an axis is one of ``size``: the first, and behind the last."""
    return max(0, (padding - j + stride - 1) // stride), min(count, (size - 1 + padding - j) // stride + 1)


# ----- from pixels to windows


@compiled
def _max(team, items, step, x, y, place, kernel, stride, padding):
    """(N, H, W, C) -> (N, H', W', C) twice: the maximum, and its place."""
    slot = join(team)
    (_, height, width, channels), (samples, oh, ow, _) = x.shape, y.shape
    (kh, kw), (sh, sw), (ph, pw) = kernel, stride, padding
    none = place.dtype.type(0)
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        for r in range(item * step, min((item + 1) * step, samples * oh)):
            n, oy, top = _u(r // oh), _u(r % oh), r % oh * sh - ph
            y[n, oy] = -np.inf
            place[n, oy] = 0
            for i in range(max(0, -top), min(kh, height - top)):
                a = _u(top + i)
                for j in range(kw):
                    first, end = _across(j, width, ow, sw, pw)
                    number = place.dtype.type(i * kw + j)
                    for ox in range(first, end):
                        b = _u(ox * sw + j - pw)
                        for c in range(channels):
                            v, best, p = x[n, a, b, c], y[n, oy, ox, c], place[n, oy, ox, c]
                            p = number if v > best else p  # (nothing is larger than NaN)
                            place[n, oy, ox, c] = none if v != v else p
                            best = v if v > best else best
                            y[n, oy, ox, c] = v if v != v else best


@compiled
def _max_2x2(team, items, step, x, y, place, stride):
    """The same for 2x2 windows without padding, each in one look. ``place``: uint8."""
    slot = join(team)
    samples, oh, ow, channels = y.shape
    sh, sw = _u(stride[0]), _u(stride[1])
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        for r in range(item * step, min((item + 1) * step, samples * oh)):
            n, oy = _u(r // oh), _u(r % oh)
            top = oy * sh
            bottom = top + _u(1)
            for ox in range(ow):
                left = _u(ox) * sw
                right = left + _u(1)
                for c in range(channels):
                    v0, v1, v2, v3 = x[n, top, left, c], x[n, top, right, c], x[n, bottom, left, c], x[n, bottom, right, c]
                    upper, lower = v1 if v1 > v0 else v0, v3 if v3 > v2 else v2
                    p, q = np.uint8(1) if v1 > v0 else np.uint8(0), np.uint8(3) if v3 > v2 else np.uint8(2)
                    p, best = q if lower > upper else p, lower if lower > upper else upper
                    nan = (v0 != v0) | (v1 != v1) | (v2 != v2) | (v3 != v3)
                    y[n, oy, ox, c] = np.nan if nan else best
                    place[n, oy, ox, c] = np.uint8(0) if nan else p


@compiled
def _gather(team, items, step, x, place, y, kernel, stride, padding):
    """(N, H, W, C), (N, H', W', C) -> (N, H', W', C): of each window the pixel at its place, zero in the padding."""
    slot = join(team)
    (_, height, width, channels), (samples, oh, ow, _) = x.shape, y.shape
    (kh, kw), (sh, sw), (ph, pw) = kernel, stride, padding
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        for r in range(item * step, min((item + 1) * step, samples * oh)):
            n, oy, top = _u(r // oh), _u(r % oh), r % oh * sh - ph
            y[n, oy] = 0
            for i in range(max(0, -top), min(kh, height - top)):
                a = _u(top + i)
                for j in range(kw):
                    first, end = _across(j, width, ow, sw, pw)
                    number = place.dtype.type(i * kw + j)
                    for ox in range(first, end):
                        b = _u(ox * sw + j - pw)
                        for c in range(channels):
                            v, before = x[n, a, b, c], y[n, oy, ox, c]
                            y[n, oy, ox, c] = v if place[n, oy, ox, c] == number else before


@compiled
def _average(team, items, step, x, y, kernel, stride, padding):
    """(N, H, W, C) -> (N, H', W', C): the sum of each window, times 1 / (kh kw)."""
    slot = join(team)
    (_, height, width, channels), (samples, oh, ow, _) = x.shape, y.shape
    (kh, kw), (sh, sw), (ph, pw) = kernel, stride, padding
    share = x.dtype.type(1.0 / (kh * kw))
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        for r in range(item * step, min((item + 1) * step, samples * oh)):
            n, oy, top = _u(r // oh), _u(r % oh), r % oh * sh - ph
            y[n, oy] = 0
            for i in range(max(0, -top), min(kh, height - top)):
                a = _u(top + i)
                for j in range(kw):
                    first, end = _across(j, width, ow, sw, pw)
                    for ox in range(first, end):
                        b = _u(ox * sw + j - pw)
                        for c in range(channels):
                            y[n, oy, ox, c] += x[n, a, b, c]
            for ox in range(ow):
                for c in range(channels):
                    y[n, oy, ox, c] *= share


# ----- from windows to pixels


@compiled
def _collect(team, items, step, g, place, x, kernel, stride, padding):
    """(N, H', W', C) twice -> (N, H, W, C): each g at its place in its window; without places, its share everywhere there."""
    slot = join(team)
    (samples, height, width, channels), (_, oh, ow, _) = x.shape, g.shape
    (kh, kw), (sh, sw), (ph, pw) = kernel, stride, padding
    share, zero = x.dtype.type(1.0 / (kh * kw)), x.dtype.type(0)
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        for r in range(item * step, min((item + 1) * step, samples * height)):
            n, y = _u(r // height), _u(r % height)
            x[n, y] = 0
            for i in range(kh):
                top = r % height + ph - i
                if top < 0 or top % sh or top // sh >= oh:
                    continue
                oy = _u(top // sh)
                for j in range(kw):
                    first, end = _across(j, width, ow, sw, pw)
                    for ox in range(first, end):
                        w = _u(ox * sw + j - pw)
                        if place is None:
                            for c in range(channels):
                                x[n, y, w, c] += g[n, oy, ox, c] * share
                        else:
                            number = place.dtype.type(i * kw + j)
                            for c in range(channels):
                                v = g[n, oy, ox, c]
                                x[n, y, w, c] += v if place[n, oy, ox, c] == number else zero


@compiled
def _collect_apart(team, items, step, g, place, x, kernel):
    """The same for windows beside each other, without padding: each pixel is written once. A row of windows at a time."""
    slot = join(team)
    samples, oh, ow, channels = g.shape
    kh, kw = kernel
    share, zero = x.dtype.type(1.0 / (kh * kw)), x.dtype.type(0)
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        for r in range(item * step, min((item + 1) * step, samples * oh)):
            n, oy = _u(r // oh), _u(r % oh)
            for i in range(kh):
                y = oy * _u(kh) + _u(i)
                for j in range(kw):
                    for ox in range(ow):
                        w = _u(ox * kw + j)
                        if place is None:
                            for c in range(channels):
                                x[n, y, w, c] = g[n, oy, ox, c] * share
                        else:
                            number = place.dtype.type(i * kw + j)
                            for c in range(channels):
                                v = g[n, oy, ox, c]
                                x[n, y, w, c] = v if place[n, oy, ox, c] == number else zero
                x[n, y, ow * kw :] = 0
            if r % oh == oh - 1:
                x[n, oh * kh :] = 0


# ----- the kernels of the package


def _launch(kernel, large, small, *args):
    """``kernel`` over the rows of ``small`` (N, H, W, C), as many at a time as ``_ITEM_BYTES`` of ``large`` make."""
    rows = small.shape[0] * small.shape[1]
    step = max(1, rows * _ITEM_BYTES // large.nbytes)
    items = -(-rows // step)
    run(kernel, items, step, *args, threads=1 if large.nbytes < WORTH_THREADS else None)


def _pooled(x, kernel, stride, padding):
    """The shape of the result, or None where the portable kernel has to serve."""
    if x.dtype not in FLOATS or not x.size:
        return None
    counts = portable.window_counts(x.shape, kernel, stride, padding)
    return (*x.shape[:2], *counts) if min(counts) > 0 else None


def max_pool2d(x, kernel, stride, padding):
    """(N, C, H, W) -> the maximum of each window, and its place in it (row-major, the first of equals). NaN wins."""
    shape = _pooled(x, kernel, stride, padding)
    if shape is None:
        return portable.max_pool2d(x, kernel, stride, padding)
    x, y = channels_last(x), images(*shape, x.dtype)
    place = images(*shape, _PLACES[kernel[0] * kernel[1] > 256])
    into = y.transpose(0, 2, 3, 1), place.transpose(0, 2, 3, 1)
    if kernel == (2, 2) and padding == (0, 0):
        _launch(_max_2x2, x, into[0], x, *into, stride)
    else:
        _launch(_max, x, into[0], x, *into, kernel, stride, padding)
    return y, place


def _scattered(g, place, shape, kernel, stride, padding):
    x = images(*shape, g.dtype)
    g, into = channels_last(g), x.transpose(0, 2, 3, 1)
    if kernel == stride and padding == (0, 0):
        _launch(_collect_apart, into, g, g, place, into, kernel)
    else:
        _launch(_collect, into, into, g, place, into, kernel, stride, padding)
    return x


def max_pool2d_scatter(g, place, shape, kernel, stride, padding):
    """(N, C, H', W') -> ``shape``: each element added where its window's maximum was."""
    if g.dtype not in FLOATS or not g.size or 0 in shape or place.dtype not in _PLACES:
        return portable.max_pool2d_scatter(g, place, shape, kernel, stride, padding)
    return _scattered(g, channels_last(place), shape, kernel, stride, padding)


def max_pool2d_gather(x, place, kernel, stride, padding):
    """(N, C, H, W) -> (N, C, H', W'): of each window the element at its place."""
    if x.dtype not in FLOATS or not x.size or not place.size or place.dtype not in _PLACES:
        return portable.max_pool2d_gather(x, place, kernel, stride, padding)
    y = images(*place.shape, x.dtype)
    x, place, into = channels_last(x), channels_last(place), y.transpose(0, 2, 3, 1)
    _launch(_gather, x, into, x, place, into, kernel, stride, padding)
    return y


def avg_pool2d(x, kernel, stride, padding):
    """(N, C, H, W) -> the mean of each window, padding counted as zeros."""
    shape = _pooled(x, kernel, stride, padding)
    if shape is None:
        return portable.avg_pool2d(x, kernel, stride, padding)
    y = images(*shape, x.dtype)
    x, into = channels_last(x), y.transpose(0, 2, 3, 1)
    _launch(_average, x, into, x, into, kernel, stride, padding)
    return y


def avg_pool2d_spread(g, shape, kernel, stride, padding):
    """The adjoint of avg_pool2d: each element of g, divided over its window."""
    if g.dtype not in FLOATS or not g.size or 0 in shape:
        return portable.avg_pool2d_spread(g, shape, kernel, stride, padding)
    return _scattered(g, None, shape, kernel, stride, padding)
