"""The optimizers' update rules, compiled: one pass over weights, gradients and state, and no other memory.

Each gradient is an array of its own, and read where it lies: to gather them first would take as long as the step, since a part
of each lies in another core's cache, where that core's share of the step finds it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numba import carray

from .. import portable
from .jit import compiled, elements_at, inlined, place
from .layout import FLOATS
from .team import join, leave, run, take

# Elements of an item of work, at most: a few microseconds' worth.
_ITEM = 1 << 13

# Weights of fewer bytes are done on one thread, in hardly more time than it takes two to work together.
_WORTH_THREADS = 1 << 16

_AT_ONCE = 8  # gradients that ``_note`` takes


def _noted(weights: np.ndarray, grads: list[np.ndarray], memory: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """The items of work; where each gradient lies, for the kernels; and the arrays that have to live until then.

    A gradient that lies as no kernel is compiled for is copied first; all are, into ``memory``, if weights lie in one of them.
    """
    dtype = weights.dtype
    flat = [(g if g.flags.carray and g.dtype == dtype else np.array(g, dtype, order="C")).ravel() for g in grads]
    places = np.empty(len(flat), np.int64)
    for first in range(0, len(flat), _AT_ONCE):
        some = flat[first : first + _AT_ONCE]
        if _note(places, first, len(some), weights, *some, *[some[0]] * (_AT_ONCE - len(some))):
            return _noted(weights, [np.concatenate(flat, out=memory)], memory)
    return _items(tuple([g.size for g in flat])), places, flat


@lru_cache(64)
def _items(sizes: tuple[int, ...]) -> np.ndarray:
    """(items, 4): of which gradient, from which of its elements on, and these weights, from and to.

    First the upper part of each gradient, then the lower ones. One core takes them from the front and the other from the back:
    so each gets, of a large weight, the rows that it has in its cache from the products.
    """
    found = []
    start = 0
    for number, size in enumerate(sizes):
        pieces = 1 if size <= _ITEM // 4 else 2 * -(-size // (2 * _ITEM))
        cuts = [size * i // pieces for i in range(pieces + 1)]
        found += [((i + 0.5) / pieces, (number, a, start + a, start + b)) for i, (a, b) in enumerate(pairwise(cuts)) if a < b]
        start += size
    return np.array([item for _, item in sorted(found)], np.int64).reshape(-1, 4)


@compiled
def _note(places, first, many, weights, a, b, c, d, e, f, g, h):
    """Write down where so many of the gradients a to h lie. Returns whether one of them lies where weights lie."""
    found = place(a), place(b), place(c), place(d), place(e), place(f), place(g), place(h)
    sizes = a.size, b.size, c.size, d.size, e.size, f.size, g.size, h.size
    begin, end = place(weights), place(weights) + weights.size * weights.itemsize
    overlaps = False
    for i in range(many):
        overlaps |= sizes[i] > 0 and found[i] < end and found[i] + sizes[i] * weights.itemsize > begin
        places[first + i] = found[i]
    return overlaps


@inlined
def _part(places, item, weights):
    """The gradient's part of an item."""
    size = item[3] - item[2]
    return carray(elements_at(places[item[0]] + item[1] * weights.itemsize, weights), size)


def _run(kernel, weights, items, *args):
    run(kernel, len(items), weights, items, *args, threads=1 if weights.nbytes < _WORTH_THREADS else None)


@compiled
def _sgd(team, items, weights, table, places, buffer, first, lr, momentum, dampening, weight_decay, nesterov):
    slot = join(team)
    dtype = weights.dtype.type
    rate, keep, share, decay = dtype(lr), dtype(momentum), dtype(1 - dampening), dtype(weight_decay)
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        start, stop = table[item, 2], table[item, 3]
        w, gradient, state = weights[start:stop], _part(places, table[item], weights), buffer[start:stop]
        for i in range(w.size):
            g = gradient[i]
            if weight_decay != 0:  # asked, since zero times an infinite weight is NaN
                g += decay * w[i]
            if momentum != 0:
                b = g if first else keep * state[i] + share * g
                state[i] = b
                g = g + keep * b if nesterov else b
            w[i] -= rate * g


def sgd(weights, grads, grad, spare, buffer, first, lr, momentum, dampening, weight_decay, nesterov):
    """portable.sgd."""
    if weights.dtype not in FLOATS:
        return portable.sgd(weights, grads, grad, spare, buffer, first, lr, momentum, dampening, weight_decay, nesterov)
    if buffer is None:
        buffer = spare  # which the kernel then leaves alone
    items, places, _alive = _noted(weights, grads, grad)
    _run(_sgd, weights, items, places, buffer, first, lr, momentum, dampening, weight_decay, nesterov)


@compiled
def _adam(team, items, weights, table, places, mean, square, beta1, beta2, scale, root, eps, weight_decay, keep):
    """``weight_decay`` of the gradient, and ``keep``, the share of the weights that decoupled decay leaves."""
    slot = join(team)
    dtype = weights.dtype.type
    beta1, share1, beta2, share2 = dtype(beta1), dtype(1 - beta1), dtype(beta2), dtype(1 - beta2)
    scale, root, eps, decay, keep = dtype(scale), dtype(root), dtype(eps), dtype(weight_decay), dtype(keep)
    while True:
        item = take(team, slot, items)
        if item >= items:
            return leave(team, slot)
        start, stop = table[item, 2], table[item, 3]
        w, gradient = weights[start:stop], _part(places, table[item], weights)
        first, second = mean[start:stop], square[start:stop]
        for i in range(w.size):
            g = gradient[i]
            if weight_decay != 0:
                g += decay * w[i]
            m = beta1 * first[i] + share1 * g
            v = beta2 * second[i] + share2 * (g * g)
            first[i] = m
            second[i] = v
            w[i] = keep * w[i] - scale * (m / (np.sqrt(v) * root + eps))


def adam(weights, grads, grad, spare, mean, square, step, lr, betas, eps, weight_decay, decoupled):
    """portable.adam."""
    if weights.dtype not in FLOATS:
        return portable.adam(weights, grads, grad, spare, mean, square, step, lr, betas, eps, weight_decay, decoupled)
    beta1, beta2 = betas
    scale, root = lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
    decay, keep = (0.0, 1 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    items, places, _alive = _noted(weights, grads, grad)
    _run(_adam, weights, items, places, mean, square, beta1, beta2, scale, root, eps, decay, keep)
