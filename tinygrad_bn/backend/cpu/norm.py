"""Normalisations: one read of x for the statistics, one read and one write to apply them; and the same for the gradient.

Two layouts are served as they are. Channels last, x is a matrix of rows (N S, C), and statistics are those of columns;
contiguous, it is planes (N C, S), and statistics are those of a plane, or of some together. Batch and group normalisation
differ only in what is put together, so they share all kernels. Where C is small, some rows are seen as one long row, whose
columns are put together in the end: short loops are slow.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from .. import portable
from .jit import compiled, inlined
from .layout import FLOATS, WORTH_THREADS, channels_last, empty_like, plain
from .memory import SMALLEST
from .sums import (
    LANES,
    add,
    add_four,
    add_four_gaps,
    add_four_products,
    add_four_squares,
    add_gaps,
    add_products,
    add_squares,
    clear,
    copy,
    less,
    merge,
    moments,
    plane_sums,
    quarter_of,
    rebase,
    variance_of,
)
from .team import SECOND_PASS, go_on, join, leave, meet, run, take

_LEAST_ITEM, _MOST_ITEM = 1 << 13, 1 << 16  # elements in an item of work
_WIDTH = 256  # elements in a row, if rows can be joined for that
# The passes that a kernel does: the first is for statistics or sums, the second applies them.
BOTH, FIRST, SECOND = 0, 1, 2
_GROWTH = 7  # each block of rows has at most so many times the rows seen before it

# ----- rows: x is (R, W), in items of ``item_rows``, and has statistics of columns


@compiled
def _normalise_rows(
    team, items, passes, x, item_rows, each, last, share, gamma, beta, eps, parts, joined, statistics, coefficients, flat, y
):  # fmt: skip
    """y, mean and variance. parts (3, items, W), of which ``joined`` is a view, has the moments of each column in each item.

    The squares of a block of rows are those of differences from the mean of the rows before it. If blocks are not more than
    ``_GROWTH`` times as long as all before them, these have at most about ``_GROWTH`` times the sum of the squares of the
    differences from the mean of all, whatever the rows are: by Chan's formula, a gap between the two means widens that sum too.
    """
    slot, done = join(team), 0
    width = x.shape[1]
    near = np.empty(width, x.dtype)
    gap, sums, squares = np.empty(width), np.empty(width), np.empty(width)
    while True:
        item = take(team, slot, items)
        if item >= items:
            break
        begin = item * item_rows
        stop = min(begin + item_rows, x.shape[0])
        first, origin, mean, spread = x[begin], parts[0, item], parts[1, item], parts[2, item]
        copy(first, near)
        copy(first, origin)
        clear(mean)
        clear(spread)
        seen = 1
        while begin + seen < stop:
            i = begin + seen
            count = min(_GROWTH * seen, stop - i)
            clear(sums)
            clear(squares)
            quarter = quarter_of(count)
            for j in range(i, i + quarter):
                x0, x1, x2, x3 = x[j], x[j + quarter], x[j + 2 * quarter], x[j + 3 * quarter]
                add_four_gaps(x0, x1, x2, x3, near, sums)
                add_four_squares(x0, x1, x2, x3, near, squares)
            for j in range(i + 4 * quarter, i + count):
                add_gaps(x[j], near, sums)
                add_squares(x[j], near, squares)
            for k in range(width):
                rest = sums[k] / count
                squares[k] -= sums[k] * rest
                sums[k] = rest
            merge(origin, mean, spread, np.float64(seen), near, sums, squares, np.float64(count), gap)
            rebase(origin, mean, near)
            seen += count
        done += 1
    if meet(team, slot, done, items):
        _settle(joined, each, last, share, gamma, beta, eps, statistics, coefficients)
        go_on(team)
    if passes == FIRST:
        return leave(team, slot)
    while True:
        item = take(team, slot, items, SECOND_PASS)
        if item >= items:
            return leave(team, slot)
        _apply_rows(x, item, item_rows, flat, y)


@inlined
def _apply_rows(x, item, item_rows, coefficients, y):
    """y = (x - near) scale + shift, by columns: coefficients (3, Q, W), of which item i uses [:, i mod Q]."""
    q = item % coefficients.shape[1]
    near, scale, shift = coefficients[0, q], coefficients[1, q], coefficients[2, q]
    for row in range(item * item_rows, min((item + 1) * item_rows, x.shape[0])):
        i = np.uint64(row)  # (a slice of each row would be counted, by all threads in one place)
        for column in range(near.size):
            k = np.uint64(column)
            y[i, k] = (x[i, k] - near[k]) * scale[k] + shift[k]


@compiled
def _map_rows(team, items, x, item_rows, coefficients, y):
    """The second half of ``_normalise_rows`` alone."""
    slot = join(team)
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        _apply_rows(x, item, item_rows, coefficients, y)


@compiled
def _differentiate_rows(
    team, items, passes, g, x, item_rows, count, share, gamma, eps, mean, var, parts, joined, coefficients, flat, dgamma,
    dbeta, dx
):  # fmt: skip
    """dx = g scale - ((x - near) slope + shift), by columns: coefficients (4, Q, W) as in ``_apply_rows``; dgamma, dbeta.

    parts (2, items, W), of which ``joined`` is a view, has the sums of g and of g (x - near) over each item.
    """
    slot, done = join(team), 0
    channels = gamma.size
    near = np.empty(x.shape[1], x.dtype)
    while passes != SECOND:
        item = take(team, slot, items)
        if item >= items:
            break
        group = item % flat.shape[1] * (channels // share)
        for c0 in range(0, channels, share):  # (divisions would take longer than the sums)
            for c in range(c0, c0 + share):
                near[c] = mean[group]
            group += 1
        for k in range(channels, near.size):
            near[k] = near[k - channels]
        sums, products = parts[0, item], parts[1, item]
        clear(sums)
        clear(products)
        begin, stop = item * item_rows, min((item + 1) * item_rows, x.shape[0])
        quarter = quarter_of(stop - begin)
        for i in range(begin, begin + quarter):
            g0, g1, g2, g3 = g[i], g[i + quarter], g[i + 2 * quarter], g[i + 3 * quarter]
            x0, x1, x2, x3 = x[i], x[i + quarter], x[i + 2 * quarter], x[i + 3 * quarter]
            add_four(g0, g1, g2, g3, sums)
            add_four_products(g0, g1, g2, g3, x0, x1, x2, x3, near, products)
        for i in range(begin + 4 * quarter, stop):
            add(g[i], sums)
            add_products(g[i], x[i], near, products)
        done += 1
    if passes != SECOND and meet(team, slot, done, items):
        _settle_gradient(joined, mean, var, count, share, gamma, eps, dgamma, dbeta, coefficients)
        go_on(team)
    if passes == FIRST:
        return leave(team, slot)
    while True:
        item = take(team, slot, items, SECOND_PASS)
        if item >= items:
            return leave(team, slot)
        q = item % flat.shape[1]
        about, scale, slope, shift = flat[0, q], flat[1, q], flat[2, q], flat[3, q]
        for row in range(item * item_rows, min((item + 1) * item_rows, x.shape[0])):
            i = np.uint64(row)
            for column in range(about.size):
                k = np.uint64(column)
                dx[i, k] = g[i, k] * scale[k] - ((x[i, k] - about[k]) * slope[k] + shift[k])


# ----- planes: x is (P, S), in items of ``item_planes``, and has statistics of whole planes


@compiled
def _normalise_planes(
    team, items, passes, x, item_planes, each, last, share, gamma, beta, eps, parts, joined, statistics, coefficients, flat, y
):  # fmt: skip
    """y, and mean and variance. parts (3, P), of which ``joined`` is a view, has the moments of each plane."""
    slot, done = join(team), 0
    sums, squares = np.empty(LANES), np.empty(LANES)
    while True:
        item = take(team, slot, items)
        if item >= items:
            break
        for p in range(item * item_planes, min((item + 1) * item_planes, x.shape[0])):
            parts[0, p], parts[1, p], parts[2, p] = moments(x[p], sums, squares)
        done += 1
    if meet(team, slot, done, items):
        _settle(joined, each, last, share, gamma, beta, eps, statistics, coefficients)
        go_on(team)
    if passes == FIRST:
        return leave(team, slot)
    while True:
        item = take(team, slot, items, SECOND_PASS)
        if item >= items:
            return leave(team, slot)
        _apply_planes(x, item, item_planes, flat, y)


@inlined
def _apply_planes(x, item, item_planes, coefficients, y):
    """y = (x - near) scale + shift: coefficients (3, Q), of which plane p uses [:, p mod Q]."""
    for p in range(item * item_planes, min((item + 1) * item_planes, x.shape[0])):
        q = p % coefficients.shape[1]
        near, scale, shift = coefficients[0, q], coefficients[1, q], coefficients[2, q]
        source, target = x[p], y[p]
        for k in range(target.size):
            target[k] = (source[k] - near) * scale + shift


@compiled
def _map_planes(team, items, x, item_planes, coefficients, y):
    """The second half of ``_normalise_planes`` alone."""
    slot = join(team)
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        _apply_planes(x, item, item_planes, coefficients, y)


@compiled
def _differentiate_planes(
    team, items, passes, g, x, item_planes, count, share, gamma, eps, mean, var, parts, joined, coefficients, flat, dgamma,
    dbeta, dx
):  # fmt: skip
    """dx = g scale - ((x - near) slope + shift): coefficients (4, Q) as in ``_apply_planes``; dgamma, dbeta.

    parts (2, P), of which ``joined`` is a view, has the sums of g and of g (x - near) over each plane.
    """
    slot, done = join(team), 0
    sums, products = np.empty(LANES), np.empty(LANES)
    while passes != SECOND:
        item = take(team, slot, items)
        if item >= items:
            break
        for p in range(item * item_planes, min((item + 1) * item_planes, x.shape[0])):
            near = x.dtype.type(mean[p % flat.shape[1] // share])
            parts[0, p], parts[1, p] = plane_sums(g[p], x[p], near, sums, products)
        done += 1
    if passes != SECOND and meet(team, slot, done, items):
        _settle_gradient(joined, mean, var, count, share, gamma, eps, dgamma, dbeta, coefficients)
        go_on(team)
    if passes == FIRST:
        return leave(team, slot)
    while True:
        item = take(team, slot, items, SECOND_PASS)
        if item >= items:
            return leave(team, slot)
        for p in range(item * item_planes, min((item + 1) * item_planes, x.shape[0])):
            q = p % flat.shape[1]
            about, scale, slope, shift = flat[0, q], flat[1, q], flat[2, q], flat[3, q]
            h, source, target = g[p], x[p], dx[p]
            for k in range(target.size):
                target[k] = h[k] * scale - ((source[k] - about) * slope + shift)


# ----- what is between two passes: A sets of statistics (one for batch, N for group normalisation), each of C / share values


@inlined
def _repeat(coefficients):
    """(K, A, F, C): [:, :, 0] to all F."""
    for i in range(coefficients.shape[0]):
        for a in range(coefficients.shape[1]):
            for f in range(1, coefficients.shape[2]):
                copy(coefficients[i, a, 0], coefficients[i, a, f])


@inlined
def _settle(parts, each, last, share, gamma, beta, eps, statistics, coefficients):
    """From moments to statistics, mean and variance (2, A C / share), and coefficients (3, A, F, C) for ``_apply_rows``.

    parts: (3, A, B, C), of ``each`` elements, but the F last of the B of ``last`` elements; parts[:, :, 0] become their sum.
    """
    many, channels = parts.shape[2:]
    fold = coefficients.shape[2]
    gap = np.empty(channels)
    group = 0
    for a in range(parts.shape[1]):
        origin, mean, spread = parts[0, a, 0], parts[1, a, 0], parts[2, a, 0]
        seen = each if many > fold else last
        for b in range(1, many):
            count = each if b < many - fold else last
            merge(origin, mean, spread, seen, parts[0, a, b], parts[1, a, b], parts[2, a, b], count, gap)
            seen += count
        for c0 in range(0, channels, share):
            o, m, s, n = origin[c0], mean[c0], spread[c0], seen
            for c in range(c0 + 1, c0 + share):
                d = ((origin[c] - o) - m) + mean[c]
                s += spread[c] + d * d * (n * seen / (n + seen))
                m += d * (seen / (n + seen))
                n += seen
            value = o + m
            variance = variance_of(value, s, n, gamma)
            if not math.isfinite(value):
                value = np.nan
            statistics[0, group], statistics[1, group] = value, variance
            group += 1
            inv_std = 1.0 / math.sqrt(variance + eps)
            for c in range(c0, c0 + share):
                coefficients[0, a, 0, c] = value
                rest = (o - np.float64(coefficients[0, a, 0, c])) + m
                scale = inv_std * gamma[c]
                coefficients[1, a, 0, c] = scale
                coefficients[2, a, 0, c] = beta[c] - rest * scale
    _repeat(coefficients)


@inlined
def _settle_gradient(parts, mean, var, count, share, gamma, eps, dgamma, dbeta, coefficients):
    """From sums of g and g (x - near), parts (2, A, B, C), to dgamma, dbeta (C,) and coefficients (4, A, F, C).

    dx = (h - mean(h) - x_hat mean(h x_hat)) / sqrt(var + eps) with h = gamma g, a mean being of ``count`` elements.
    parts[:, :, 0] become the sums over B, and those of g (x - mean).
    """
    channels = parts.shape[3]
    total_x, total = np.empty(channels), np.empty(channels)
    clear(total_x)
    clear(total)
    group = 0
    for a in range(parts.shape[1]):
        sums, products = parts[0, a, 0], parts[1, a, 0]
        for b in range(1, parts.shape[2]):
            add(parts[0, a, b], sums)
            add(parts[1, a, b], products)
        for c0 in range(0, channels, share):
            coefficients[0, a, 0, c0] = mean[group]
            rest = mean[group] - np.float64(coefficients[0, a, 0, c0])
            inv_std = 1.0 / math.sqrt(var[group] + eps)
            h, hx = 0.0, 0.0
            for c in range(c0, c0 + share):
                product = inv_std * less(products[c], rest, sums[c])
                h += gamma[c] * sums[c]
                hx += gamma[c] * product
                total_x[c] += product
                total[c] += sums[c]
            slope = inv_std * (inv_std * (hx / count))
            shift = less(inv_std * (h / count), rest, slope)
            for c in range(c0, c0 + share):
                coefficients[0, a, 0, c] = mean[group]
                coefficients[1, a, 0, c] = inv_std * gamma[c]
                coefficients[2, a, 0, c] = slope
                coefficients[3, a, 0, c] = shift
            group += 1
    copy(total_x, dgamma)
    copy(total, dbeta)
    _repeat(coefficients)


@compiled
def _settle_inference(gamma, beta, mean, var, eps, coefficients):
    """Coefficients (3, 1, F, C) for ``_apply_rows`` from given statistics."""
    for c in range(gamma.size):
        coefficients[0, 0, 0, c] = mean[c]
        coefficients[1, 0, 0, c] = gamma[c] / math.sqrt(var[c] + eps)
        coefficients[2, 0, 0, c] = beta[c]
    _repeat(coefficients)


# ----- layouts and threads


def fits(x, *others):
    """Whether there are compiled kernels for it: one dtype, and something to do. The others may be None."""
    dtype = x.dtype
    for a in others:
        if a is not None and a.dtype != dtype:
            return False
    return dtype in FLOATS and x.size > 0


def _turned(x):
    """(N, C, *S) as (N, *S, C)."""
    return x if x.ndim == 2 else x.transpose(0, *range(2, x.ndim), 1)


def _settled(x):
    """x, or a copy where it lies otherwise, and whether it is rows; else it is planes."""
    if x.flags.c_contiguous:
        return plain(x), x.ndim == 2 or x.size == x.shape[0] * x.shape[1]
    last = _turned(x)
    if not last.flags.c_contiguous and abs(x.strides[1]) > min(abs(s) for s in x.strides):
        return plain(x), x.size == x.shape[0] * x.shape[1]
    return plain(last).transpose(0, x.ndim - 1, *range(1, x.ndim - 1)), True


def _like(g, rows):
    """g in the layout of an x that is rows, or planes, by ``_settled``."""
    if not rows or g.ndim == 2:
        return plain(g)
    if g.ndim == 4:
        return channels_last(g).transpose(0, 3, 1, 2)
    return plain(_turned(g)).transpose(0, g.ndim - 1, *range(1, g.ndim - 1))


def item_elements(size):
    """How many elements of an array of that size make an item of work."""
    return max(_LEAST_ITEM, min(size // 4, _MOST_ITEM))


class _Plan:
    """How inputs of one shape are divided, and the memory in which their kernels keep what they need while they run.

    ``matrix``: the shape in which the kernels see x, planes, or rows of which some are joined to one where C is small;
    ``each``: how many of them make an item of work; ``items``: how many of these there are; ``threads``: what ``run`` is told.
    """

    def __init__(self, shape, dtype, rows, sets):
        n, c = shape[:2]
        size = math.prod(shape)
        item = item_elements(size)
        fold = 1
        if rows:
            of_a_set = size // (c * sets)
            fold = math.gcd(of_a_set, 1 << (max(1, _WIDTH // c).bit_length() - 1))
            self.matrix = size // (fold * c), fold * c
            self.each = of_a_set // fold if sets > 1 else min(max(1, item // (fold * c)), of_a_set // fold)
            self.items = sets if sets > 1 else -(-of_a_set // (fold * self.each))
            self.counts = float(self.each), float(self.matrix[0] - (self.items - 1) * self.each)
            self._parts, self._flat = (self.items, fold * c), (sets, fold * c)
        else:
            self.matrix = n * c, size // (n * c)
            self.each = max(1, item // self.matrix[1])
            self.items = -(-n * c // self.each)
            self.counts = float(self.matrix[1]), float(self.matrix[1])
            self._parts, self._flat = (n * c,), (sets * c,)
        self.rows, self._sets, self._dtype, self._coefficients = rows, sets, dtype, (sets, fold, c)
        self.threads = 1 if size * dtype.itemsize < WORTH_THREADS else None
        self.unit = np.ones(c, dtype), np.zeros(c, dtype)  # gamma and beta, where there are none
        self._free = {3: [], 4: []}

    def seen(self, x):
        """x as the kernels see it."""
        return (x if not self.rows or x.ndim == 2 else _turned(x)).reshape(self.matrix)

    def lend(self, count):
        """What is summed in parts, and ``count`` coefficients for each channel, each also in a second shape.

        Memory for one call alone, until it is given back: other threads get their own.
        """
        try:
            return self._free[count].pop()
        except IndexError:
            parts = np.empty((3 if count == 3 else 2, *self._parts))
            coefficients = np.empty((count, *self._coefficients), self._dtype)
            joined = parts.reshape(len(parts), self._sets, -1, self._coefficients[-1])
            return parts, joined, coefficients, coefficients.reshape(count, *self._flat)

    def give_back(self, lent):
        if lent[0].nbytes + lent[2].nbytes < SMALLEST:  # it costs little to keep, and much, beside the work, to make
            self._free[len(lent[2])].append(lent)


_plan = lru_cache(256)(_Plan)


def run_kernel(kernel, items, nbytes, *args):
    run(kernel, items, *args, threads=1 if nbytes < WORTH_THREADS else None)


def _forward(x, gamma, beta, eps, sets, share):
    """y, mean and variance (sets C / share), for ``sets`` of statistics of C / share groups of channels each."""
    rows = x.ndim == 2 and x.flags.carray  # (as behind a Linear: small arrays, where each call counts)
    if not rows:
        x, rows = _settled(x)
    y = empty_like(x)
    plan = _plan(x.shape, x.dtype, rows, sets)
    lent = parts, joined, coefficients, flat = plan.lend(3)
    statistics = np.empty((2, sets * x.shape[1] // share))
    weight, bias = plan.unit if gamma is None else (plain(gamma), plain(beta))
    run(
        _normalise_rows if rows else _normalise_planes, plan.items, BOTH, plan.seen(x), plan.each, *plan.counts, share, weight,
        bias, eps, parts, joined, statistics, coefficients, flat, plan.seen(y), threads=plan.threads,
    )  # fmt: skip
    plan.give_back(lent)
    return y, statistics[0], statistics[1]


def _backward(g, x, gamma, mean, var, eps, sets, share):
    """dx, dgamma, dbeta, for flat mean and variance as ``_forward`` gave them."""
    rows = x.ndim == 2 and x.flags.carray and g.flags.carray
    if not rows:
        x, rows = _settled(x)
        g = _like(g, rows)
    dx = empty_like(x)
    plan = _plan(x.shape, x.dtype, rows, sets)
    lent = parts, joined, coefficients, flat = plan.lend(4)
    weight = plan.unit[0] if gamma is None else plain(gamma)
    dgamma, dbeta = np.empty(x.shape[1], x.dtype), np.empty(x.shape[1], x.dtype)
    run(
        _differentiate_rows if rows else _differentiate_planes, plan.items, BOTH, plan.seen(g), plan.seen(x), plan.each,
        float(x.size // mean.size), share, weight, eps, mean, var, parts, joined, coefficients, flat, dgamma, dbeta,
        plan.seen(dx), threads=plan.threads,
    )  # fmt: skip
    plan.give_back(lent)
    return (dx, None, None) if gamma is None else (dx, dgamma, dbeta)


# ----- batch and group normalisation


def batch_norm(x, gamma, beta, eps):
    """y = gamma (x - mean) / sqrt(var + eps) + beta of (N, C, *S); and the batch's mean and biased variance (C,) in float64."""
    if not fits(x, gamma, beta):
        return portable.batch_norm(x, gamma, beta, eps)
    y, mean, var = _forward(x, gamma, beta, eps, 1, 1)
    return y, (mean, var)


def batch_norm_backward(g, x, gamma, mean, var, eps):
    """dx = gamma (g - mean(g) - x_hat mean(g x_hat)) / sqrt(var + eps); dgamma = sum(g x_hat); dbeta = sum(g)."""
    if not fits(x, g, gamma):
        return portable.batch_norm_backward(g, x, gamma, mean, var, eps)
    return _backward(g, x, gamma, plain(mean), plain(var), eps, 1, 1)


def batch_norm_inference(x, gamma, beta, mean, var, eps):
    """gamma (x - mean) / sqrt(var + eps) + beta of (N, C, *S), with given statistics (C,)."""
    if not fits(x, gamma, beta, mean, var):
        return portable.batch_norm_inference(x, gamma, beta, mean, var, eps)
    x, rows = _settled(x)
    y = empty_like(x)
    plan = _plan(x.shape, x.dtype, rows, 1)
    lent = _, _, coefficients, flat = plan.lend(3)
    weight, bias = plan.unit if gamma is None else (plain(gamma), plain(beta))
    _settle_inference(weight, bias, plain(mean), plain(var), eps, coefficients)
    run_kernel(_map_rows if rows else _map_planes, plan.items, x.nbytes, plan.seen(x), plan.each, flat, plan.seen(y))
    plan.give_back(lent)
    return y


def group_norm(x, gamma, beta, num_groups, eps):
    """y of (N, C, *S); and mean and variance of each group of each example, (N, G, 1, ...) in float64."""
    if not fits(x, gamma, beta):
        return portable.group_norm(x, gamma, beta, num_groups, eps)
    n, c = x.shape[:2]
    y, *statistics = _forward(x, gamma, beta, eps, n, c // num_groups)
    return y, tuple(v.reshape(n, num_groups, *(1,) * (x.ndim - 1)) for v in statistics)


def group_norm_backward(g, x, gamma, mean, var, num_groups, eps):
    """dx, dgamma, dbeta."""
    if not fits(x, g, gamma):
        return portable.group_norm_backward(g, x, gamma, mean, var, num_groups, eps)
    mean, var = plain(mean.reshape(-1)), plain(var.reshape(-1))
    return _backward(g, x, gamma, mean, var, eps, x.shape[0], x.shape[1] // num_groups)
