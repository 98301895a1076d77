"""Softmax cross-entropy: a row of logits at a time, everything in float64 in between.

A loop that carries one sum or one maximum from element to element cannot be vectorised in that order, so each row keeps
``_LANES`` of them, merged in a fixed order. The exponential is a polynomial, since a loop that calls the C library's is not
vectorised. Beside NumPy's own exponential, which the portable kernels use: on one thread, forward takes 0.4 of their time for
(64, 10), 0.7 for (64, 100) and 0.95 to 1.2 for (64, 1000), backward 0.4 to 0.5: so these serve every shape.
"""

from __future__ import annotations

import math

import numpy as np

from .. import portable
from .jit import bits, compiled, from_bits, inlined
from .layout import FLOATS, plain
from .memory import empty
from .team import join, leave, run, take

_LANES = 32  # (handed to the kernel: LLVM unrolls loops of constant length instead of vectorising them)
_OF_A_ROW = 64  # what a row costs beside its elements, in elements; one takes about a nanosecond
_ITEM = 1 << 13  # elements in an item of work
_WORTH_THREADS = 1 << 14  # elements

_LOG2_E = 1.0 / math.log(2.0)
_LN2_HIGH = 0.693147180369123816490  # the first 33 bits of ln 2, so that a whole multiple of them is exact
_LN2_LOW = 1.90821492927058770002e-10
_ROUND = 1.5 * 2.0**52  # x + _ROUND has no bits for a fraction: the whole number next to x is in the lowest bits
_TINIEST = -708.0  # e ** -708 is the last that is normal


@inlined
def _exp(x):
    """e ** x for float64 x of at most 0, to the last bit or two; 0 below -708.

    With x = n ln 2 + r, |r| <= ln 2 / 2: 2 ** n times Taylor's polynomial of r, whose rest is below 2 ** -53.
    """
    shifted = x * _LOG2_E + _ROUND
    n = shifted - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = 1.0 / 6227020800.0
    p = p * r + 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    power = from_bits((bits(shifted) + 1023) << 52)
    return 0.0 if x < _TINIEST else p * power


@compiled
def _softmax(team, items, step, width, x, labels, g, y, smoothing):
    """With e = e ** d, d = x - max(x), of each row: g (e / sum(e) - target) into y (N, C); if g is empty, losses into y (N, 1).

    (All in one function, since arrays handed to another one are counted, atomically, for each row; and one for both, since
    it takes most of a second to compile.)
    """
    slot = join(team)
    samples, classes = x.shape
    lanes = np.empty(width)
    z = np.empty(-(-classes // width) * width)  # a row, and behind it what changes nothing
    used = min(width, classes)
    even = smoothing / classes
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        for row in range(item * step, min((item + 1) * step, samples)):
            n = np.uint64(row)
            label = labels[n]
            if label < 0 or label >= classes:
                for c in range(y.shape[1]):
                    y[n, c] = np.nan
                continue

            for c in range(classes):
                z[c] = x[n, c]
            for c in range(classes, z.size):
                z[c] = -np.inf
            for k in range(width):
                lanes[k] = z[k]
            for begin in range(width, z.size, width):
                for k in range(width):
                    v, best = z[np.uint64(begin) + np.uint64(k)], lanes[k]
                    lanes[k] = v if v > best else best
            best = lanes[0]
            for k in range(1, used):  # (NaN may get lost here; it is in the sum)
                best = lanes[k] if lanes[k] > best else best

            for c in range(z.size):
                z[c] = _exp(z[c] - best)
            for k in range(width):
                lanes[k] = z[k]
            for begin in range(width, z.size, width):
                for k in range(width):
                    lanes[k] += z[np.uint64(begin) + np.uint64(k)]
            total = 0.0
            for k in range(used):
                total += lanes[k]

            if g.size == 0:
                target = np.float64(x[n, label]) - best
                if smoothing:
                    for k in range(used):
                        lanes[k] = 0.0
                    for begin in range(0, classes, width):
                        for k in range(min(width, classes - begin)):
                            lanes[k] += np.float64(x[n, np.uint64(begin) + np.uint64(k)]) - best
                    rest = 0.0
                    for k in range(used):
                        rest += lanes[k]
                    target = target * (1.0 - smoothing) + rest / classes * smoothing
                y[n, 0] = np.log(total) - target
            else:
                weight, factor = 1.0 / total, np.float64(g[n])
                for c in range(classes):
                    y[n, c] = (z[c] * weight - even) * factor
                y[n, label] = (z[label] * weight - even - (1.0 - smoothing)) * factor


def _launch(x, labels, g, y, smoothing):
    """Some rows of x at a time."""
    samples, classes = x.shape
    step = max(1, _ITEM // (classes + _OF_A_ROW))
    width = _LANES if classes > _LANES // 2 else _LANES // 2
    threads = 1 if samples * (classes + _OF_A_ROW) < _WORTH_THREADS else None
    run(_softmax, -(-samples // step), step, width, x, labels, g, y, float(smoothing), threads=threads)


def cross_entropy(x, labels, label_smoothing):
    """(N, C), (N,) -> (N,): log(sum(e ** x)) minus the target's mean logit. NaN where a label is outside 0..C-1."""
    if x.dtype not in FLOATS or not x.size or labels.dtype.kind not in "iu":
        return portable.cross_entropy(x, labels, label_smoothing)
    x, labels = plain(x), plain(labels.astype(np.int64, copy=False))
    y = np.empty(len(x), x.dtype)
    _launch(x, labels, y[:0], y.reshape(-1, 1), label_smoothing)
    return y


def cross_entropy_backward(g, x, labels, label_smoothing):
    """g (softmax(x) - target)."""
    if x.dtype not in FLOATS or g.dtype != x.dtype or not x.size or labels.dtype.kind not in "iu":
        return portable.cross_entropy_backward(g, x, labels, label_smoothing)
    g, x, labels = plain(g), plain(x), plain(labels.astype(np.int64, copy=False))
    y = empty(x.shape, x.dtype)
    _launch(x, labels, g, y, label_smoothing)
    return y
