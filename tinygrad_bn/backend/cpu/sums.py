"""Sums, as normalisations need them: of rows and of long slices, vectorised, in a fixed order, and in float64.

Variances are sums of squared differences from a value near the mean, never differences of large sums; they and the means are
put together in pairs, in a fixed order, in float64. Chan, Golub and LeVeque 1983. A mean is ``near``, its value in x's dtype,
from which the difference of x is hardly rounded, plus a small rest: so large numbers with a small variance lose nothing. The
rest is not subtracted from each x, but from what is added to all.
"""

from __future__ import annotations

import math

import numpy as np

from .jit import inlined

_u = np.uint64  # indices that cannot mean "from the end" are faster; a slice would be counted, by all threads in one place
LANES = 32  # partial sums of a plane: adding in any other order than the written one is not left to the compiler
_SEGMENT = 1 << 13  # elements of a plane that are looked at twice, so they fit the fastest cache

# ----- loops that the compiler vectorises: over contiguous slices, and with one array written. Four rows at a time are added
# in x's dtype, pairwise, and then to float64.


@inlined
def clear(out):  # (for Numba, out[:] = 0 is slow to compile)
    for k in range(out.size):
        out[k] = 0


@inlined
def copy(x, out):
    for k in range(out.size):
        out[k] = x[k]


@inlined
def add(x, out):
    for k in range(out.size):
        out[k] += x[k]


@inlined
def add_four(x0, x1, x2, x3, out):
    for k in range(out.size):
        out[k] += (x0[k] + x1[k]) + (x2[k] + x3[k])


@inlined
def add_gaps(x, near, out):
    for k in range(out.size):
        out[k] += x[k] - near[k]


@inlined
def add_four_gaps(x0, x1, x2, x3, near, out):
    for k in range(out.size):
        n = near[k]
        out[k] += ((x0[k] - n) + (x1[k] - n)) + ((x2[k] - n) + (x3[k] - n))


@inlined
def add_squares(x, near, out):
    for k in range(out.size):
        d = x[k] - near[k]
        out[k] += d * d


@inlined
def add_four_squares(x0, x1, x2, x3, near, out):
    for k in range(out.size):
        n = near[k]
        d0, d1, d2, d3 = x0[k] - n, x1[k] - n, x2[k] - n, x3[k] - n
        out[k] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)


@inlined
def add_products(g, x, near, out):
    for k in range(out.size):
        out[k] += g[k] * (x[k] - near[k])


@inlined
def add_four_products(g0, g1, g2, g3, x0, x1, x2, x3, near, out):
    for k in range(out.size):
        n = near[k]
        out[k] += (g0[k] * (x0[k] - n) + g1[k] * (x1[k] - n)) + (g2[k] * (x2[k] - n) + g3[k] * (x3[k] - n))


# ----- moments, kept as three: an origin, the mean less the origin, and the sum of squared differences from the mean


@inlined
def gaps(origin, mean, near, rest, out):
    for k in range(out.size):
        out[k] = ((near[k] - origin[k]) - mean[k]) + rest[k]


@inlined
def widen(gap, weight, more, spread):
    for k in range(spread.size):
        spread[k] += more[k] + gap[k] * gap[k] * weight


@inlined
def move(gap, weight, mean):
    for k in range(mean.size):
        mean[k] += gap[k] * weight


@inlined
def merge(origin, mean, spread, seen, near, rest, more, count, gap):
    """The moments of ``seen`` rows become those of ``count`` more as well, whose mean is near + rest. Chan's formula."""
    gaps(origin, mean, near, rest, gap)
    widen(gap, seen * count / (seen + count), more, spread)
    move(gap, count / (seen + count), mean)


@inlined
def rebase(origin, mean, near):
    """near and the origin become the mean in x's dtype: far from a first row that is an outlier, differences are rounded."""
    for k in range(near.size):
        near[k] = origin[k] + mean[k]
    for k in range(near.size):
        mean[k] += origin[k] - near[k]
        origin[k] = near[k]


@inlined
def halve(lanes):
    """The sum of the lanes, whose number is a power of two."""
    half = lanes.size // 2
    while half > 0:
        add(lanes[half : 2 * half], lanes[:half])
        half //= 2
    return lanes[0]


@inlined
def total_of(x, begin, end, lanes):
    """The sum of x[begin:end], in float64: each element by itself, so that not even near the largest number it overflows."""
    clear(lanes)
    i, n, stop = _u(begin), _u(LANES), _u(end)
    while i + n * _u(4) <= stop:
        for k in range(LANES):
            j = i + _u(k)
            x0, x1 = np.float64(x[j]), np.float64(x[j + n])
            x2, x3 = np.float64(x[j + n * _u(2)]), np.float64(x[j + n * _u(3)])
            lanes[k] += (x0 + x1) + (x2 + x3)
        i += n * _u(4)
    while i < stop:
        for k in range(min(LANES, np.int64(stop - i))):
            lanes[k] += x[i + _u(k)]
        i += n
    return halve(lanes)


@inlined
def moments(x, sums, squares):
    """Of the elements of x: near, in its dtype, and rest, whose sum is their mean; and their squared differences from it.

    Each segment is looked at twice: for its mean, and for the squares of the differences from that as rounded to x's dtype.
    """
    origin, mean, spread, seen = 0.0, 0.0, 0.0, 0.0
    for begin in range(0, x.size, _SEGMENT):
        end = min(begin + _SEGMENT, x.size)
        count = np.float64(end - begin)
        near = x.dtype.type(total_of(x, begin, end, sums) / count)
        clear(sums)
        clear(squares)
        i, n, stop = _u(begin), _u(LANES), _u(end)
        while i + n * _u(4) <= stop:
            for k in range(LANES):
                j = i + _u(k)
                d0, d1, d2, d3 = x[j] - near, x[j + n] - near, x[j + n * _u(2)] - near, x[j + n * _u(3)] - near
                sums[k] += (d0 + d1) + (d2 + d3)
                squares[k] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
            i += n * _u(4)
        while i < stop:
            for k in range(min(LANES, np.int64(stop - i))):
                d = x[i + _u(k)] - near
                sums[k] += d
                squares[k] += d * d
            i += n
        total = halve(sums)
        if begin == 0:
            origin = np.float64(near)
        gap = ((np.float64(near) - origin) - mean) + total / count
        spread += (halve(squares) - total * total / count) + gap * gap * (seen * count / (seen + count))
        mean += gap * (count / (seen + count))
        seen += count
    near = x.dtype.type(origin + mean)
    return near, (origin - np.float64(near)) + mean, spread


@inlined
def variance_of(mean, spread, count, like):
    """NaN where the mean is not finite, as it is where x is not; infinite where squares overflow in the dtype of ``like``."""
    if not math.isfinite(mean):
        return np.nan
    variance = max(spread, 0.0) / count
    if math.isnan(spread) or math.isinf(like.dtype.type(variance)):
        return np.inf
    return variance


@inlined
def quarter_of(count):
    """How far apart the four rows are that are added at a time: far, for four rows beside each other are not read ahead by the
    processor, and odd, for rows some multiple of 4 KiB apart compete for the same lines of its first cache."""
    quarter = count // 4
    return max(0, quarter - 1 + quarter % 2)


@inlined
def plane_sums(g, x, near, sums, products):
    """The sums of g and of g (x - near) over a plane."""
    clear(sums)
    clear(products)
    i, n, stop = _u(0), _u(LANES), _u(g.size)
    while i + n * _u(4) <= stop:
        for k in range(LANES):
            j = i + _u(k)
            g0, g1, g2, g3 = g[j], g[j + n], g[j + n * _u(2)], g[j + n * _u(3)]
            x0, x1, x2, x3 = x[j], x[j + n], x[j + n * _u(2)], x[j + n * _u(3)]
            sums[k] += (g0 + g1) + (g2 + g3)
            products[k] += (g0 * (x0 - near) + g1 * (x1 - near)) + (g2 * (x2 - near) + g3 * (x3 - near))
        i += n * _u(4)
    while i < stop:
        for k in range(min(LANES, np.int64(stop - i))):
            j = i + _u(k)
            sums[k] += g[j]
            products[k] += g[j] * (x[j] - near)
        i += n
    return halve(sums), halve(products)


@inlined
def less(value, rest, slope):
    """value - rest slope: what the rest of a mean, which is not subtracted from x, does to a sum. inf - inf is not wanted."""
    correction = rest * slope
    return value - correction if math.isfinite(correction) else value
